"""Chains of effects: from plain data in a config to live effects in series."""

from __future__ import annotations

import importlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from dfx.effects.effect import NYQUIST_MARGIN, Control, Effect, EffectError, Recipe, RenderError
from dfx.effects.parameter import Parameter, ParameterSpace, Scale
from dfx.errors import nearest

HOSTS = {
    "lv2": "dfx.effects.lv2",
    "pedalboard": "dfx.effects.pedalboard",
    "python": "dfx.effects.python",
    "vst3": "dfx.effects.vst3",
    "au": "dfx.effects.vst3",
}


_WILD_RMS = 1e4
"""What no effect means to return: 80 dB above full scale."""


@dataclass
class Trained:
    """How one parameter is trained; what is left out comes from the host.

    Args:
        range: the values at parameters 0 and 1.
        scale: ``linear`` or ``log``.
        default: where training starts.
    """

    range: tuple[float, float] | None = None
    scale: Scale | None = None
    default: float | None = None


@dataclass
class EffectSpec:
    """One effect of a chain, as it stands in a config.

    Args:
        effect: ``host:name``, for instance ``pedalboard:Compressor``.
        name: what logs and tables call it; by default the effect's name in snake case.
        train: the trained parameters, each with ``[low, high]``, a mapping with any of ``range``,
            ``scale`` and ``default``, or nothing for what the host says. Without ``train``, every
            parameter that can be trained and is not fixed is trained.
        fixed: values that are set once and stay.
        scale: ``linear`` or ``log``, of every trained parameter that is not given its own; by default the
            host's.
    """

    effect: str
    name: str | None = None
    train: dict[str, Trained | tuple[float, float] | None] | None = None
    fixed: dict[str, bool | float | str] = field(default_factory=dict)
    scale: Scale | None = None

    @classmethod
    def of(cls, given: EffectSpec | Mapping[str, Any]) -> EffectSpec:
        """An effect as it comes from a config, a mapping of the arguments.

        Raises:
            EffectError: if the mapping has other keys, or values of other kinds.
        """
        if isinstance(given, EffectSpec):
            return given
        known = [option.name for option in fields(cls)]
        if not isinstance(given, Mapping) or "effect" not in given:
            raise EffectError(f"an effect is a mapping with `effect: host:name`, not {given!r}")
        for name in given:
            if name not in known:
                raise EffectError(f"{given['effect']}: an effect has no option '{name}'{nearest(name, known)}")
        for name in ("train", "fixed"):
            if not isinstance(given.get(name), (Mapping, type(None))):
                raise EffectError(f"{given['effect']}: `{name}` is a mapping of parameters, not {given[name]!r}")
        return cls(**{**given, "fixed": given.get("fixed") or {}})


Watch = Callable[[slice], None]
"""Is told which effect is about to work, by the place of its values among those of the chain."""


class Chain(Effect):
    """Live effects in series, with one vector of values for all of them."""

    def __init__(
        self,
        effects: Sequence[Effect],
        parameters: Sequence[Sequence[Parameter]],
        watch: Watch | None = None,
    ) -> None:
        self._effects = list(effects)
        self._parameters = [list(p) for p in parameters]
        ends = list(itertools.accumulate(len(p) for p in self._parameters))
        self._slices = [slice(end - len(p), end) for end, p in zip(ends, self._parameters)]
        self._watch = watch
        self.latency_samples = sum(effect.latency_samples for effect in self._effects)

    def render(self, audio: np.ndarray, values: np.ndarray) -> np.ndarray:
        """As :meth:`Effect.render`.

        Raises:
            RenderError: if an effect raises, or returns audio that is not finite or far beyond full scale.
        """
        for effect, part, parameters in zip(self._effects, self._slices, self._parameters):
            if self._watch:
                self._watch(part)
            try:
                output = effect.render(audio, values[part])
            except Exception as error:
                raise RenderError.at(parameters, values[part], f"failed: {error}") from error
            # One product tells as much as a look at every sample, and costs a tenth of it. NaN fails too.
            samples = output.reshape(-1)
            if not np.dot(samples, samples) <= _WILD_RMS**2 * samples.size:
                fault = "returned audio that is not finite or wildly large"
                if not np.isfinite(audio).all():
                    fault = "was given audio that is not finite"
                raise RenderError.at(parameters, values[part], fault)
            audio = output
        return audio

    def render_whole(self, audio: np.ndarray, values: np.ndarray) -> np.ndarray:
        """A whole recording at constant values, from a fresh start, with the latency taken out."""
        self.restart()
        tail = np.zeros((audio.shape[0], self.latency_samples), dtype=np.float32)
        return self.render(np.concatenate([audio, tail], axis=1), values)[:, self.latency_samples :]

    def restart(self) -> None:
        for effect, part in zip(self._effects, self._slices):
            if self._watch:
                self._watch(part)
            effect.restart()


class ChainSpec:
    """A chain of effects as plain data: resolved, checked, picklable, and cheap to build from.

    Args:
        effects: the recipes, in the order of the signal.
        sample_rate: in Hz; frequency ranges are kept below Nyquist.
        channels: how many channels the effects will be given.

    Raises:
        EffectError: for an unknown host, effect or parameter (with the nearest name), a range outside
            of what the effect accepts, a parameter both trained and fixed, or two effects of one name.
    """

    def __init__(self, effects: Iterable[EffectSpec], sample_rate: int, channels: int = 1) -> None:
        self.sample_rate = sample_rate
        self.channels = channels
        self.effects = list(effects)
        if not self.effects:
            raise EffectError("the chain has no effects: name at least one under `effects`")
        self.recipes = _name_apart([_resolve(spec, sample_rate, channels) for spec in self.effects])
        self.space = ParameterSpace(
            [
                Parameter(**{**vars(parameter), "name": f"{recipe.name}.{parameter.name}"})
                for recipe in self.recipes
                for parameter in recipe.parameters
            ]
        )
        if not self.space.parameters:
            raise EffectError("the chain trains no parameter: name at least one under `train`")

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The trained parameters of all effects, each named ``effect.parameter``."""
        return self.space.parameters

    def settings(self, values: Mapping[str, float]) -> dict[str, dict[str, Any]]:
        """Every control of every effect as it is set, by the effects' names.

        Args:
            values: of the trained parameters in their units, by ``effect.parameter``.
        """
        settings = {}
        for recipe in self.recipes:
            controls = _host(recipe.host).controls(recipe.effect, self.sample_rate, self.channels)
            trained = {p.name: values[f"{recipe.name}.{p.name}"] for p in recipe.parameters}
            defaults = {name: control.default for name, control in controls.items()}
            settings[recipe.name] = {**defaults, **recipe.fixed, **trained}
        return settings

    def build(self, watch: Watch | None = None) -> Chain:
        """A live chain. Call it on the main thread: some hosts load plugins there only.

        Args:
            watch: is told which effect is about to be built, to render or to restart.
        """
        effects: list[Effect] = []
        parameters: list[list[Parameter]] = []
        position = 0
        for host, group in itertools.groupby(self.recipes, key=lambda recipe: recipe.host):
            recipes = list(group)
            if watch:
                watch(slice(position, position + sum(len(recipe.parameters) for recipe in recipes)))
            for effect, size in _host(host).build(recipes, self.sample_rate, self.channels):
                effects.append(effect)
                parameters.append(list(self.parameters[position : position + size]))
                position += size
        return Chain(effects, parameters, watch)


def _host(name: str) -> Any:
    if name not in HOSTS:
        raise EffectError(f"unknown host '{name}'{nearest(name, HOSTS)}; effects are named host:effect")
    return importlib.import_module(HOSTS[name])


def _resolve(spec: EffectSpec, sample_rate: int, channels: int) -> Recipe:
    if ":" not in spec.effect:
        raise EffectError(f"'{spec.effect}' names no host; write for instance 'pedalboard:{spec.effect}'")
    host, effect = spec.effect.split(":", maxsplit=1)
    controls = _host(host).controls(effect, sample_rate, channels)
    for name in [*(spec.train or {}), *spec.fixed]:
        if name not in controls:
            raise EffectError(f"{spec.effect} has no parameter '{name}'{nearest(name, controls)}")
    both = set(spec.train or {}) & set(spec.fixed)
    if both:
        raise EffectError(f"{spec.effect}: {', '.join(sorted(both))} is both trained and fixed")

    train = spec.train
    if train is None:
        train = {c.name: None for c in controls.values() if c.trainable and c.name not in spec.fixed}
    parameters = tuple(
        _parameter(controls[name], how, spec.effect, spec.scale, sample_rate) for name, how in train.items()
    )
    fixed = {name: _fixed_value(controls[name], value, spec.effect, sample_rate) for name, value in spec.fixed.items()}
    return Recipe(host, effect, spec.name or "", parameters, fixed)


def _parameter(
    control: Control,
    how: Trained | tuple[float, float] | None,
    effect: str,
    scale: Scale | None,
    sample_rate: int,
) -> Parameter:
    name = f"{effect}: {control.name}"
    if not control.trainable:
        raise EffectError(f"{name} cannot be trained; set it under `fixed`")
    if how is None:
        how = Trained()
    elif not isinstance(how, Trained):
        try:
            how = Trained(**how) if isinstance(how, Mapping) else Trained(range=tuple(how))
        except TypeError:
            how = Trained(range=())
    maximum = _maximum(control, sample_rate)
    if how.range is None:
        low, high = control.low, min(control.high, maximum)
    else:
        if len(how.range) != 2 or not all(isinstance(end, (int, float)) for end in how.range):
            raise EffectError(f"{name} is trained with [low, high], or with any of range, scale and default")
        low, high = how.range
        _check_limits(name, f"range [{low:g}, {high:g}]", (low, high), control, maximum)
    if how.default is not None:
        default = how.default
    else:
        default = min(max(control.default, low), high)
    try:
        return Parameter(
            control.name, control.unit, low, high, default, how.scale or scale or control.scale, control.smoothing_ms
        )
    except ValueError as error:
        raise EffectError(f"{effect}: {error}") from None


def _fixed_value(control: Control, value: Any, effect: str, sample_rate: int) -> Any:
    name = f"{effect}: {control.name}"
    if control.choices:
        if value not in control.choices:
            raise EffectError(f"{name} cannot be '{value}'{nearest(str(value), control.choices)}")
    elif isinstance(control.default, bool):
        if not isinstance(value, bool):
            raise EffectError(f"{name} is a switch, true or false, not {value!r}")
    elif isinstance(value, (bool, str)) or not math.isfinite(value):
        raise EffectError(f"{name} must be a finite number, not {value!r}")
    else:
        _check_limits(name, f"{value:g}", (value,), control, _maximum(control, sample_rate))
    return value


def _name_apart(recipes: list[Recipe]) -> list[Recipe]:
    """Gives every effect without a name one of its own: ``peak_filter``, ``peak_filter_2``."""
    given = Counter(recipe.name for recipe in recipes if recipe.name)
    twice = [name for name, count in given.items() if count > 1]
    if twice:
        raise EffectError(f"two effects of the chain are named '{twice[0]}'")
    taken = set(given)
    named = []
    for recipe in recipes:
        name = recipe.name
        if not name:
            base = _snake_case(recipe.effect)
            numbered = (f"{base}_{number}" for number in itertools.count(2))
            name = next(n for n in itertools.chain([base], numbered) if n not in taken)
            taken.add(name)
        named.append(Recipe(**{**vars(recipe), "name": name}))
    return named


def _snake_case(name: str) -> str:
    """Of ``PeakFilter``, ``package.module.Effect``, a URI, or a path such as ``/plugins/ZamTube.vst3``."""
    name = re.split(r"[/\\#]", name.rstrip("/"))[-1]
    name = re.sub(r"\.(vst3|component)$", "", name).split(".")[-1]
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"\W+", "_", words).strip("_").lower()


def load_chain(source: str, sample_rate: int | None = None, channels: int | None = None) -> ChainSpec:
    """The chain that ``host:effect`` or a config of a training names.

    Args:
        source: an effect, of which all that can be trained is trained, or the path of a YAML file with a list
            of effects under ``model.init_args.effects``.
        sample_rate, channels: by default those of the config; for an effect, 44100 and 1.

    Raises:
        EffectError: for a file that is no such config, and as :class:`ChainSpec`.
    """
    if Path(source).suffix not in (".yaml", ".yml"):
        return ChainSpec([EffectSpec(source)], sample_rate or 44100, channels or 1)
    # The loader of the command line of training: it reads 1e-4 as a number, which PyYAML's own does not.
    from jsonargparse import get_loader
    from yaml import YAMLError

    try:
        arguments = get_loader("yaml")(Path(source).read_text(encoding="utf-8"))["model"]["init_args"]
        effects = [EffectSpec.of(effect) for effect in arguments["effects"]]
        # The defaults are those of dfx.tasks.Task.
        sample_rate = sample_rate or arguments.get("sample_rate", 22050)
        return ChainSpec(effects, sample_rate, channels or arguments.get("channels", 1))
    except OSError as error:
        raise EffectError(f"{source} cannot be read: {error.strerror}") from None
    except KeyError as error:
        raise EffectError(f"{source} has no {error}: effects stand under model.init_args.effects") from None
    except (AttributeError, TypeError, ValueError, YAMLError) as error:
        raise EffectError(f"{source} is no config of a chain: {' '.join(str(error).split())}") from None


def _maximum(control: Control, sample_rate: int) -> float:
    if control.unit == "Hz":
        return min(control.maximum, NYQUIST_MARGIN * sample_rate)
    return control.maximum


def _check_limits(name: str, what: str, values: Sequence[float], control: Control, maximum: float) -> None:
    unit = f" {control.unit}" if control.unit else ""
    if min(values) < control.minimum:
        raise EffectError(f"{name}: {what} goes below {control.minimum:g}{unit}, the least that it accepts")
    if max(values) > maximum:
        why = "the most that it accepts"
        if maximum < control.maximum:
            why = f"{NYQUIST_MARGIN} of the sample rate, the most that a filter can take"
        raise EffectError(f"{name}: {what} goes above {maximum:g}{unit}, {why}")
