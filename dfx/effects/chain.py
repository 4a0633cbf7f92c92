"""Chains of effects: from plain data in a config to live effects in series.

An :class:`EffectSpec` is plain data, as written in a config. A :class:`ChainSpec` resolves a list of them against the
descriptions of their hosts, which gives every trained parameter without rendering a sample. ``ChainSpec.build``
returns a live :class:`Chain`.
"""

from __future__ import annotations

import importlib
import itertools
import math
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from dfx.effects.effect import NYQUIST_MARGIN, Control, Effect, EffectError, Host, Recipe, RenderError
from dfx.effects.parameter import Parameter, ParameterSpace, Scale
from dfx.errors import nearest

HOSTS = {
    "lv2": "dfx.effects.lv2",
    "pedalboard": "dfx.effects.pedalboard",
    "python": "dfx.effects.python",
    "vst3": "dfx.effects.vst3",
    "au": "dfx.effects.vst3",
}
"""The modules of the hosts, imported on first use."""

_NAME = re.compile(r"(?=.{1,64}$)[\w-]+( [\w-]+)*")

_MAX_RMS = 1e4  # the largest that is accepted from an effect: 80 dB above full scale

EffectCallback = Callable[[slice], None]
"""Called before an effect is built, renders or restarts, with the slice of the chain's recipes that it renders."""


@dataclass
class Trained:
    """How one parameter is trained; the host provides what is left out.

    Args:
        range: the values at parameters 0 and 1.
        scale: ``linear`` or ``log``.
        default: the value at which training starts.
    """

    range: tuple[float, float] | None = None
    scale: Scale | None = None
    default: float | None = None


@dataclass
class EffectSpec:
    """One effect of a chain, as written in a config.

    Args:
        effect: ``host:name``, for instance ``pedalboard:Compressor``.
        name: its name in logs and tables, of letters, digits, ``_``, ``-`` and single spaces; by default the effect's
            name in snake case.
        train: the trained parameters, each with ``[low, high]``, a mapping with any of ``range``, ``scale`` and
            ``default``, or nothing for the host's description. By default every trainable parameter that is not fixed.
        fixed: values that are set once. A name that ends in ``?``, such as ``alr?``, is optional: where the installed
            version of the effect lacks that control, a warning says so and nothing is set.
        scale: ``linear`` or ``log``, for every trained parameter without its own; by default the host's.

    Raises:
        EffectError: if a value is of another type.
    """

    effect: str
    name: str | None = None
    train: dict[str, Trained | tuple[float, float] | None] | None = None
    fixed: dict[str, bool | float | str] = field(default_factory=dict)
    scale: Scale | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.effect, str):
            raise EffectError(f"an effect is named host:effect, not {self.effect!r}")
        # The name becomes part of files, tables and programs in other languages.
        if self.name is not None and not (isinstance(self.name, str) and _NAME.fullmatch(self.name)):
            rule = "at most 64 letters, digits, _, - and single spaces"
            raise EffectError(f"{self.effect}: the name {self.name!r} must consist of {rule}")
        for option in ("train", "fixed"):
            if not isinstance(getattr(self, option), (Mapping, type(None))):
                given = getattr(self, option)
                raise EffectError(f"{self.effect}: `{option}` is a mapping of parameters, not {given!r}")
        self.fixed = self.fixed or {}
        _check_scale(self.effect, self.scale)

    @classmethod
    def of(cls, given: EffectSpec | Mapping[str, Any]) -> EffectSpec:
        """Return a spec from a config, where it is a mapping of the arguments.

        Raises:
            EffectError: if the mapping has other keys, or values of other types.
        """
        if isinstance(given, EffectSpec):
            return given
        known = [option.name for option in fields(cls)]
        if not isinstance(given, Mapping) or "effect" not in given:
            raise EffectError(f"an effect is a mapping with `effect: host:name`, not {given!r}")
        for name in given:
            if name not in known:
                raise EffectError(f"{given['effect']}: an effect has no option '{name}'{nearest(str(name), known)}")
        return cls(**given)


_OWN = ("python:dfx.effects.expander.Expander",)
"""Python classes that ship with dfx."""


def is_foreign(effect: str) -> bool:
    """Return whether ``host:name`` is code that need not be an installed effect: a Python class, a plugin by path."""
    host, _, name = effect.partition(":")
    if host in ("pedalboard", "lv2") or effect in _OWN:
        return False
    location = name.partition("#")[0]
    return host not in ("vst3", "au") or re.search(r"[/\\:]|\.(vst3|component)$", location) is not None


def _host(name: str) -> Host:
    if name not in HOSTS:
        raise EffectError(f"unknown host '{name}'{nearest(name, HOSTS)}; effects are named host:effect")
    return cast(Host, importlib.import_module(HOSTS[name]))


def _resolve(spec: EffectSpec, sample_rate: int, channels: int) -> Recipe:
    if ":" not in spec.effect:
        raise EffectError(f"'{spec.effect}' names no host; write for instance 'pedalboard:{spec.effect}'")
    host, effect = spec.effect.split(":", maxsplit=1)
    controls = _host(host).controls(effect, sample_rate, channels)
    fixed = _without_absent(spec, controls)
    for name in [*(spec.train or {}), *fixed]:
        if name not in controls:
            raise EffectError(f"{spec.effect} has no parameter '{name}'{nearest(str(name), controls)}")
    if both := set(spec.train or {}) & set(fixed):
        raise EffectError(f"{spec.effect}: {', '.join(sorted(both))} is both trained and fixed")

    by_default = {c.name: None for c in controls.values() if c.trainable and c.name not in fixed}
    train = by_default if spec.train is None else spec.train
    parameters = tuple(_parameter(controls[name], given, spec, sample_rate) for name, given in train.items())
    fixed = {name: _fixed_value(controls[name], value, spec.effect, sample_rate) for name, value in fixed.items()}
    return Recipe(host, effect, spec.name or "", parameters, fixed)


def _without_absent(spec: EffectSpec, controls: Mapping[str, Control]) -> dict[str, Any]:
    """Return the fixed values by the names of controls, without optional ones that the effect lacks."""
    fixed: dict[str, Any] = {}
    for given, value in spec.fixed.items():
        is_optional = isinstance(given, str) and given.endswith("?")
        name = given[:-1] if is_optional else given
        if name in fixed:
            raise EffectError(f"{spec.effect}: '{name}' is fixed twice")
        if is_optional and name not in controls:
            warnings.warn(f"{spec.effect} has no '{name}' in the version installed here: it is not set", stacklevel=2)
        else:
            fixed[name] = value
    return fixed


def _parameter(control: Control, given: Any, spec: EffectSpec, sample_rate: int) -> Parameter:
    name = f"{spec.effect}: {control.name}"
    if not control.trainable:
        raise EffectError(f"{name} cannot be trained; set it under `fixed`")
    trained = _trained(name, given)
    maximum = _maximum(control, sample_rate)
    low, high = trained.range or (control.low, min(control.high, maximum))
    if trained.range:
        _check_limits(name, f"range [{low:g}, {high:g}]", (low, high), control, maximum)
    default = min(max(control.default, low), high) if trained.default is None else trained.default
    scale = trained.scale or spec.scale or control.scale
    try:
        return Parameter(control.name, control.unit, low, high, default, scale, control.smoothing_ms)
    except ValueError as error:
        raise EffectError(f"{spec.effect}: {error}") from None


def _trained(name: str, given: Any) -> Trained:
    """Return the options of a trained parameter from the forms that a config may give them in."""
    try:
        if not isinstance(given, Trained):
            given = Trained(**given) if isinstance(given, Mapping) else Trained(range=given)
    except TypeError:
        raise EffectError(f"{name} is trained with {_FORMS}, not {given!r}") from None
    numbers = given.range
    if numbers is not None:
        if not isinstance(numbers, (list, tuple)) or len(numbers) != 2 or not all(map(_is_number, numbers)):
            raise EffectError(f"{name} is trained with {_FORMS}: low and high are finite numbers, not {numbers!r}")
        given = replace(given, range=(numbers[0], numbers[1]))
    if given.default is not None and not _is_number(given.default):
        raise EffectError(f"{name}: the default is a finite number, not {given.default!r}")
    _check_scale(name, given.scale)
    return given


def _check_scale(name: str, scale: Any) -> None:
    if scale not in (None, "linear", "log"):
        raise EffectError(f"{name}: the scale is linear or log, not {scale!r}")


def _is_number(value: Any) -> bool:
    """Return whether a value of a config is a finite number; false for true and false, which Python counts as such."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


_FORMS = "[low, high], or with any of range, scale and default"


def _fixed_value(control: Control, value: Any, effect: str, sample_rate: int) -> Any:
    name = f"{effect}: {control.name}"
    if control.choices:
        if value not in control.choices:
            raise EffectError(f"{name} cannot be '{value}'{nearest(str(value), control.choices)}")
    elif isinstance(control.default, bool):
        if not isinstance(value, bool):
            raise EffectError(f"{name} is a switch, true or false, not {value!r}")
    elif not _is_number(value):
        raise EffectError(f"{name} must be a finite number, not {value!r}")
    else:
        _check_limits(name, f"{value:g}", (value,), control, _maximum(control, sample_rate))
    return value


def _maximum(control: Control, sample_rate: int) -> float:
    hertz = {"Hz": 1.0, "kHz": 1e3}.get(control.unit, 0.0)
    return min(control.maximum, NYQUIST_MARGIN * sample_rate / hertz if hertz else math.inf)


def _check_limits(name: str, described: str, values: Sequence[float], control: Control, maximum: float) -> None:
    unit = f" {control.unit}" if control.unit else ""
    if min(values) < control.minimum:
        raise EffectError(f"{name}: {described} goes below {control.minimum:g}{unit}, the effect's minimum")
    if max(values) > maximum:
        nyquist = f"{NYQUIST_MARGIN} of the sample rate, the limit for frequencies"
        reason = nyquist if maximum < control.maximum else "the effect's maximum"
        raise EffectError(f"{name}: {described} goes above {maximum:g}{unit}, {reason}")


def _with_unique_names(recipes: list[Recipe]) -> list[Recipe]:
    """Name every effect that has no name: ``peak_filter``, ``peak_filter_2``."""
    taken = Counter(recipe.name for recipe in recipes if recipe.name)
    for name, count in taken.items():
        if count > 1:
            raise EffectError(f"two effects of the chain are named '{name}'")
    named = []
    for recipe in recipes:
        base = _snake_case(recipe.effect)
        candidates = itertools.chain([base], (f"{base}_{number}" for number in itertools.count(2)))
        name = recipe.name or next(candidate for candidate in candidates if candidate not in taken)
        taken[name] += 1
        named.append(replace(recipe, name=name))
    return named


def _snake_case(name: str) -> str:
    """Convert ``PeakFilter``, ``package.module.Effect``, a URI, or a path such as ``/plugins/ZamTube.vst3``."""
    name = re.split(r"[/\\#]", name.rstrip("/"))[-1]
    name = re.sub(r"\.(vst3|component)$", "", name).split(".")[-1]
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"\W+", "_", words).strip("_").lower()[:40] or "effect"


class ChainSpec:
    """A chain of effects as plain data: resolved, checked, picklable, and cheap to build from.

    Args:
        effects: the effects, in the order of the signal.
        sample_rate: in Hz; frequency ranges are limited to below Nyquist.
        channels: number of channels of the audio.

    Raises:
        EffectError: for an unknown host, effect or parameter (with the nearest name), a range outside the effect's
            limits, a parameter both trained and fixed, or two effects of one name.
    """

    def __init__(self, effects: Iterable[EffectSpec], sample_rate: int, channels: int = 1) -> None:
        self.sample_rate = sample_rate
        self.channels = channels
        self.effects = list(effects)
        if not self.effects:
            raise EffectError("the chain has no effects: name at least one under `effects`")
        self.recipes = _with_unique_names([_resolve(spec, sample_rate, channels) for spec in self.effects])
        parameters = [replace(p, name=f"{recipe.name}.{p.name}") for recipe in self.recipes for p in recipe.parameters]
        if not parameters:
            raise EffectError("the chain trains no parameter: name at least one under `train`")
        self.space = ParameterSpace(parameters)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The trained parameters of all effects, each named ``effect.parameter``."""
        return self.space.parameters

    def settings(self, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the values of all controls by effect, with the trained ones given by ``effect.parameter``."""
        settings = {}
        for recipe in self.recipes:
            controls = _host(recipe.host).controls(recipe.effect, self.sample_rate, self.channels)
            trained = {p.name: values[f"{recipe.name}.{p.name}"] for p in recipe.parameters}
            settings[recipe.name] = {name: c.default for name, c in controls.items()} | recipe.fixed | trained
        return settings

    def build(self, before_effect: EffectCallback | None = None) -> Chain:
        """Return a live chain. Call this on the main thread: some hosts load plugins only there."""
        parts: list[Part] = []
        start = 0
        for host, group in itertools.groupby(self.recipes, key=lambda recipe: recipe.host):
            recipes = list(group)
            if before_effect:
                before_effect(slice(start, start + len(recipes)))
            for effect, count in _host(host).build(recipes, self.sample_rate, self.channels):
                numbers = slice(start, start + count)
                parts.append(Part(effect, numbers, self.recipes[numbers], self.place(numbers)))
                start += count
        return Chain(parts, before_effect)

    def place(self, numbers: slice) -> slice:
        """Return the slice of the chain's values that a slice of its recipes takes."""
        ends = np.cumsum([0, *(len(recipe.parameters) for recipe in self.recipes)]).tolist()
        return slice(ends[numbers.start], ends[numbers.stop])


class Part(NamedTuple):
    """One live effect of a chain.

    Args:
        effect: that renders one or several consecutive recipes.
        numbers: the slice of these among the chain's recipes.
        recipes: these recipes.
        place: the slice of the chain's values that the effect takes.
    """

    effect: Effect
    numbers: slice
    recipes: Sequence[Recipe]
    place: slice


class Chain(Effect):
    """Live effects in series, with one vector of values for all of them.

    Attributes:
        parts: the live effects in the order of the signal. A host may render several effects of a spec as one.
    """

    def __init__(self, parts: Iterable[Part], before_effect: EffectCallback | None = None) -> None:
        self.parts = tuple(parts)
        self._before_effect = before_effect
        self.latency_samples = sum(part.effect.latency_samples for part in self.parts)

    def render(self, audio: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Render the next block, see :meth:`Effect.render`.

        Raises:
            RenderError: if an effect raises, or returns audio that is not finite or more than 80 dB above full scale.
        """
        for effect, numbers, recipes, place in self.parts:
            if self._before_effect:
                self._before_effect(numbers)
            try:
                output = effect.render(audio, values[place])
            except Exception as error:
                raise RenderError.at(recipes, values[place], f"failed: {error}") from error
            # One dot product finds NaN, infinity and excess at a tenth of the cost of checking every sample.
            if not np.vdot(output, output) <= _MAX_RMS**2 * output.size:
                fault = "returned audio that is not finite or wildly large"
                if not np.isfinite(audio).all():
                    fault = "was given audio that is not finite"
                raise RenderError.at(recipes, values[place], fault)
            audio = output
        return audio

    def render_whole(self, audio: np.ndarray, values: np.ndarray, frame_samples: int = 0) -> np.ndarray:
        """Render a whole recording after a restart, with the latency removed.

        Args:
            audio: ``(channels, samples)``.
            values: constant, ``(P,)``; or of frames, ``(frames, P)``, the last of which lasts to the end.
            frame_samples: length of the frames, which are at most as many as the recording has.
        """
        self.restart()
        tail = np.zeros((audio.shape[0], self.latency_samples), dtype=np.float32)
        values = np.atleast_2d(values)
        frames = np.split(np.concatenate([audio, tail], axis=1), frame_samples * np.arange(1, len(values)), axis=1)
        outputs = [self.render(np.ascontiguousarray(frame), row) for frame, row in zip(frames, values)]
        return np.concatenate(outputs, axis=1)[:, self.latency_samples :]

    def restart(self) -> None:
        for part in self.parts:
            if self._before_effect:
                self._before_effect(part.numbers)
            part.effect.restart()

    def read_values(self) -> np.ndarray:
        """Return the values of all trained parameters, NaN where an effect or its host cannot report them."""
        values = np.full(self.parts[-1].place.stop, np.nan)
        for part in self.parts:
            if (reported := part.effect.read_values()) is not None:
                values[part.place] = reported
        return values


def load_chain(source: str, sample_rate: int | None = None, channels: int | None = None) -> ChainSpec:
    """Return the chain that ``host:effect`` or a training config names.

    Args:
        source: an effect, of which every trainable parameter is trained, or the path of a YAML file with a list of
            effects under ``model.init_args.effects``.
        sample_rate, channels: by default those of the config; for an effect, 44100 and 1.

    Raises:
        EffectError: for a file that is not such a config, and as :class:`ChainSpec`.
    """
    if Path(source).suffix not in (".yaml", ".yml"):
        return ChainSpec([EffectSpec(source)], sample_rate or 44100, channels or 1)
    # The loader of the training command line: it reads 1e-4 as a number, which PyYAML's own does not.
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
        raise EffectError(f"{source} has no {error}: effects are listed under model.init_args.effects") from None
    except (AttributeError, TypeError, ValueError, YAMLError) as error:
        raise EffectError(f"{source} is not the config of a chain: {' '.join(str(error).split())}") from None
