"""The host of pedalboard's built-in effects, and of the multiband effects made of them.

Consecutive effects are rendered in one call of one ``pedalboard.Pedalboard``. What pedalboard does to a
stream, and what we do about it:

* a block longer than the first re-prepares the effects, and their state is lost: the length of
  the first block is kept as the ``buffer_size`` of all later ones;
* look-ahead effects swallow the first ``latency`` samples of a stream: silence stands in for them,
  so that every block comes back at its full length, later by ``latency_samples``;
* look-ahead effects lose samples inside of a ``Mix``: none of the composites holds one;
* a reset leaves something behind in a phaser and a reverb: boards that hold one are made anew;
* setting a value, even to what it is, disturbs some effects (Phaser): only changes are set;
* values are accepted without a check: ranges and frequencies are checked here, before they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pedalboard

from dfx.effects.effect import NYQUIST_MARGIN, Control, Effect, EffectError, Recipe
from dfx.effects.parameter import Scale
from dfx.errors import nearest

BLOCK_SAMPLES = 8192
"""The longest block that pedalboard renders at once; it cuts longer ones itself."""

Targets = list[tuple[Any, str]]


class Built(NamedTuple):
    """A live plugin, and which attributes of which of its parts each control sets."""

    plugin: Any
    targets: dict[str, Targets]


def controls(name: str, sample_rate: int, channels: int) -> dict[str, Control]:
    """The controls of a built-in or composite effect, by name.

    Raises:
        EffectError: if there is no such effect, with the nearest name, or if it cannot be streamed.
    """
    if name in _NOT_STREAMABLE:
        raise EffectError(f"pedalboard:{name} cannot be rendered frame by frame: {_NOT_STREAMABLE[name]}")
    if name not in EFFECTS:
        raise EffectError(f"pedalboard has no effect '{name}'{nearest(name, EFFECTS)}")
    return {control.name: control for control in EFFECTS[name].controls(sample_rate)}


def build(recipes: Sequence[Recipe], sample_rate: int, channels: int) -> list[tuple[Effect, int]]:
    """One live effect for all recipes, with the number of their trained parameters."""
    return [(PedalboardEffect(recipes, sample_rate, channels), sum(len(recipe.parameters) for recipe in recipes))]


class Pending:
    """Output that is still to come: silence stands in for what a look-ahead swallows of a stream's start."""

    def __init__(self, channels: int, latency_samples: int) -> None:
        self._latency_samples = latency_samples
        self._audio = np.zeros((channels, latency_samples), dtype=np.float32)

    def fill(self, output: np.ndarray, samples: int) -> np.ndarray:
        """The next ``samples`` of the stream, when ``output``, which may be shorter, is added to its end."""
        if not self._latency_samples:
            return output
        output, self._audio = np.split(np.concatenate([self._audio, output], axis=1), [samples], axis=1)
        return output


class PedalboardEffect(Effect):
    """Built-in effects in series, in one board."""

    def __init__(self, recipes: Sequence[Recipe], sample_rate: int, channels: int) -> None:
        self._recipes = recipes
        self._sample_rate = sample_rate
        self._channels = channels
        definitions = [EFFECTS[recipe.effect] for recipe in recipes]
        self._reset_is_exact = all(definition.reset_is_exact for definition in definitions)
        self._make_board()
        has_latency = any(definition.has_latency for definition in definitions)
        self.latency_samples = self._measure_latency() if has_latency else 0
        self.restart()

    def render(self, audio: np.ndarray, values: np.ndarray) -> np.ndarray:
        new_values = values.tolist()
        for targets, value, old in zip(self._setters, new_values, self._values):
            if value != old:
                for part, attribute in targets:
                    setattr(part, attribute, value)
        self._values = new_values
        if self._block_samples == 0:
            # A reset after the values are set: effects that glide begin at them.
            self._board.reset()
            self._block_samples = min(audio.shape[1], BLOCK_SAMPLES)
        output = self._board.process(audio, self._sample_rate, buffer_size=self._block_samples, reset=False)
        return self._pending.fill(output, audio.shape[1])

    def restart(self) -> None:
        if not self._reset_is_exact:
            self._make_board()
        self._block_samples = 0
        self._pending = Pending(self._channels, self.latency_samples)

    def _make_board(self) -> None:
        plugins = []
        self._setters: list[Targets] = []
        for recipe in self._recipes:
            controls_of_effect = EFFECTS[recipe.effect].controls(self._sample_rate)
            defaults = {control.name: control.default for control in controls_of_effect}
            plugin, targets = made(recipe.effect, {**defaults, **recipe.fixed}, self._sample_rate)
            self._setters += [targets[parameter.name] for parameter in recipe.parameters]
            plugins.append(plugin)
        self._values = [float("nan")] * len(self._setters)
        self._board = pedalboard.Pedalboard(plugins)

    def _measure_latency(self) -> int:
        silence = np.zeros((1, self._sample_rate), dtype=np.float32)
        return silence.shape[1] - self._board.process(silence, self._sample_rate, reset=False).shape[1]


def made(effect: str, settings: Mapping[str, Any], sample_rate: int) -> Built:
    """pedalboard's own plugin of an effect, with all controls set."""
    built = EFFECTS[effect].make(sample_rate)
    for name, value in settings.items():
        for part, attribute in built.targets[name]:
            _set(part, attribute, value)
    return built


def _set(part: Any, attribute: str, value: Any) -> None:
    if isinstance(value, str):
        value = getattr(getattr(type(part), attribute.capitalize()), value)
    setattr(part, attribute, value)


# --- the effects -------------------------------------------------------------------------------------


class Definition(NamedTuple):
    """How one effect is made, and what its controls are at a sample rate."""

    make: Callable[[int], Built]
    controls: Callable[[int], list[Control]]
    has_latency: bool = False
    reset_is_exact: bool = True


def _control(
    name: str, low: float, high: float, scale: Scale, default: float, smoothing_ms: float = 0.0, **limits: float
) -> Control:
    unit = next((u for ending, u in _UNITS.items() if name.endswith(ending)), "")
    if unit == "Hz":
        limits = {"minimum": 1e-3} | limits
    if unit in ("ms", "s"):
        limits = {"minimum": 0.0} | limits
    return Control(name, default, low, high, unit, scale, smoothing_ms=smoothing_ms, **limits)


_UNITS = {"_db": "dB", "_hz": "Hz", "_ms": "ms", "_seconds": "s", "semitones": "st", "bit_depth": "bit"}

_FILTER = dict(minimum=1e-3)
_UNIT_RANGE = dict(minimum=0.0, maximum=1.0)
_THRESHOLD = _control("threshold_db", -60, 0, "linear", -20)
_RATIO = _control("ratio", 1, 20, "log", 2, minimum=1.0)
_ATTACK = _control("attack_ms", 0.1, 200, "log", 5)
_RELEASE = _control("release_ms", 1, 1000, "log", 100)
_GATE_THRESHOLD = _control("threshold_db", -80, 0, "linear", -60)
_GATE_RATIO = _control("ratio", 1, 20, "log", 4, minimum=1.0)
_Q = _control("q", 0.3, 5, "log", 0.7071, **_FILTER)
_GAIN = _control("gain_db", -24, 24, "linear", 0)


def _cutoff(low: float, high: float, default: float) -> Control:
    return _control("cutoff_frequency_hz", low, high, "log", default)


# Ranges for training are recommendations; limits are what pedalboard's setters accept or, where they
# accept anything, what makes sense. Defaults are neutral where pedalboard's own are not.
_BUILT_INS: dict[str, list[Control]] = {
    "Bitcrush": [_control("bit_depth", 4, 16, "linear", 16, minimum=1.0, maximum=32.0)],
    "BrickwallLimiter": [
        _control("ceiling_db", -24, 0, "linear", 0),
        _RELEASE,
        # A look-ahead that changes while audio streams drops samples.
        Control("lookahead_ms", 5.0, unit="ms", minimum=0.01, maximum=100.0, trainable=False),
        Control("true_peak", False, trainable=False),
    ],
    "Chorus": [
        _control("rate_hz", 0.05, 10, "log", 1, maximum=100.0),
        _control("depth", 0, 1, "linear", 0.25, smoothing_ms=50, **_UNIT_RANGE),
        _control("centre_delay_ms", 1, 30, "log", 7, minimum=1.0, maximum=100.0),
        _control("feedback", 0, 0.9, "linear", 0, smoothing_ms=50, minimum=-0.99, maximum=0.99),
        _control("mix", 0, 1, "linear", 0.5, smoothing_ms=50, **_UNIT_RANGE),
    ],
    "Clipping": [_control("threshold_db", -36, 0, "linear", 0)],
    "Compressor": [_THRESHOLD, _RATIO, _ATTACK, _RELEASE],
    "Delay": [
        _control("delay_seconds", 0.001, 1, "log", 0.1, maximum=30.0),
        _control("feedback", 0, 0.95, "linear", 0, minimum=0.0, maximum=0.99),
        _control("mix", 0, 1, "linear", 0.3, **_UNIT_RANGE),
    ],
    "Distortion": [_control("drive_db", 0, 40, "linear", 6)],
    "Gain": [_control("gain_db", -36, 36, "linear", 0)],
    "HighShelfFilter": [_cutoff(1000, 10000, 4000), _GAIN, _Q],
    "HighpassFilter": [_cutoff(10, 1000, 20)],
    "Invert": [],
    "LadderFilter": [
        _control("cutoff_hz", 20, 10000, "log", 8000, smoothing_ms=50),
        _control("resonance", 0, 0.95, "linear", 0, smoothing_ms=50, **_UNIT_RANGE),
        _control("drive", 1, 10, "log", 1, minimum=1.0),
        Control("mode", "LPF12", trainable=False, choices=("LPF12", "HPF12", "BPF12", "LPF24", "HPF24", "BPF24")),
    ],
    # pedalboard's Limiter is a maximiser: automatic make-up gain into a clipper at 0 dBFS.
    "Limiter": [_control("threshold_db", -36, 0, "linear", 0, smoothing_ms=1), _RELEASE],
    "LowShelfFilter": [_cutoff(20, 1000, 200), _GAIN, _Q],
    "LowpassFilter": [_cutoff(500, 20000, 10000)],
    "NoiseGate": [_GATE_THRESHOLD, _GATE_RATIO, _ATTACK, _RELEASE],
    "PeakFilter": [_cutoff(20, 10000, 1000), _GAIN, _Q],
    "Phaser": [
        _control("rate_hz", 0.05, 10, "log", 1),
        _control("depth", 0, 1, "linear", 0.5, smoothing_ms=50, **_UNIT_RANGE),
        _control("centre_frequency_hz", 100, 6000, "log", 1300, smoothing_ms=260),
        _control("feedback", 0, 0.9, "linear", 0, smoothing_ms=50, minimum=-0.99, maximum=0.99),
        _control("mix", 0, 1, "linear", 0.5, smoothing_ms=50, **_UNIT_RANGE),
    ],
    "Reverb": [
        _control("room_size", 0, 1, "linear", 0.5, **_UNIT_RANGE),
        _control("damping", 0, 1, "linear", 0.5, **_UNIT_RANGE),
        _control("wet_level", 0, 1, "linear", 0.33, smoothing_ms=10, **_UNIT_RANGE),
        _control("dry_level", 0, 1, "linear", 0.4, smoothing_ms=10, **_UNIT_RANGE),
        _control("width", 0, 1, "linear", 1, smoothing_ms=10, **_UNIT_RANGE),
    ],
}

_NOT_STREAMABLE = {
    "Convolution": "it needs an impulse response",
    "GSMFullRateCompressor": "it has no parameter to train and resamples inside",
    "MP3Compressor": "it works on frames of its own",
    "PitchShift": "it returns nothing for the first second",
    "Resample": "it resamples inside",
}


def _built_in(name: str, effect_controls: list[Control]) -> Definition:
    def make(sample_rate: int) -> Built:
        plugin = getattr(pedalboard, name)()
        return Built(plugin, {control.name: [(plugin, control.name)] for control in effect_controls})

    return Definition(
        make,
        lambda sample_rate: effect_controls,
        has_latency=name == "BrickwallLimiter",
        reset_is_exact=name not in ("Phaser", "Reverb"),
    )


BANDS = 4
_CROSSOVERS = [(30, 400, 120), (300, 3000, 1000), (2000, 10000, 6000)]


def _multiband(dynamics: Callable[[], Any], band_controls: list[Control]) -> Definition:
    """Four bands, each through ``dynamics`` and a gain, between an input and an output gain.

    First-order low- and high-pass filters of one cutoff add up to the signal they split, and so does a
    tree of them: with the bands at rest the effect returns its input (to 2e-7).
    """

    def make(sample_rate: int) -> Built:
        lows = [pedalboard.LowpassFilter() for _ in range(BANDS - 1)]
        highs = [[pedalboard.HighpassFilter() for _ in range(min(band, BANDS - 1))] for band in range(BANDS)]
        dynamics_of_band = [dynamics() for _ in range(BANDS)]
        gain_of_band = [pedalboard.Gain(0) for _ in range(BANDS)]
        bands = [
            pedalboard.Pedalboard([*highs[b], *lows[b : b + 1], dynamics_of_band[b], gain_of_band[b]])
            for b in range(BANDS)
        ]
        input_gain, output_gain = pedalboard.Gain(0), pedalboard.Gain(0)
        targets: dict[str, Targets] = {"input_gain_db": [(input_gain, "gain_db")]}
        for crossover in range(BANDS - 1):
            filters = [lows[crossover], *(highs[b][crossover] for b in range(crossover + 1, BANDS))]
            targets[f"crossover_{crossover + 1}_hz"] = [(part, "cutoff_frequency_hz") for part in filters]
        for b in range(BANDS):
            for control in band_controls:
                targets[f"band_{b + 1}_{control.name}"] = [(dynamics_of_band[b], control.name)]
            targets[f"band_{b + 1}_gain_db"] = [(gain_of_band[b], "gain_db")]
        targets["output_gain_db"] = [(output_gain, "gain_db")]
        return Built(pedalboard.Pedalboard([input_gain, pedalboard.Mix(bands), output_gain]), targets)

    def all_controls(sample_rate: int) -> list[Control]:
        crossovers = [
            _control(f"crossover_{i + 1}_hz", low, high, "log", default)
            for i, (low, high, default) in enumerate(_CROSSOVERS)
        ]
        bands = [
            Control(**{**vars(control), "name": f"band_{b + 1}_{control.name}"})
            for b in range(BANDS)
            for control in [*band_controls, _GAIN]
        ]
        gains = [_control(f"{end}_gain_db", -36, 36, "linear", 0) for end in ("input", "output")]
        return [gains[0], *crossovers, *bands, gains[1]]

    return Definition(make, all_controls)


THIRD_OCTAVES_HZ = (
    16, 20, 25, 31.5, 40, 50, 63, 80, 100, 125, 160, 200, 250, 315, 400, 500, 630, 800, 1000, 1250, 1600,
    2000, 2500, 3150, 4000, 5000, 6300, 8000, 10000, 12500, 16000, 20000,
)  # fmt: skip
"""Nominal centres of third-octave bands (IEC 61260-1)."""


def _graphic_equalizer() -> Definition:
    """One bell filter for every third-octave band below Nyquist, and an output gain."""

    def centres(sample_rate: int) -> list[float]:
        return [hz for hz in THIRD_OCTAVES_HZ if hz <= NYQUIST_MARGIN * sample_rate]

    def make(sample_rate: int) -> Built:
        bells = {hz: pedalboard.PeakFilter(cutoff_frequency_hz=hz) for hz in centres(sample_rate)}
        gain = pedalboard.Gain(0)
        targets: dict[str, Targets] = {f"gain_{int(hz)}_hz_db": [(b, "gain_db")] for hz, b in bells.items()}
        targets["q"] = [(bell, "q") for bell in bells.values()]
        targets["output_gain_db"] = [(gain, "gain_db")]
        return Built(pedalboard.Pedalboard([*bells.values(), gain]), targets)

    def all_controls(sample_rate: int) -> list[Control]:
        gains = [_control(f"gain_{int(hz)}_hz_db", -12, 12, "linear", 0) for hz in centres(sample_rate)]
        # The bandwidth of a third of an octave.
        q = Control("q", 4.318, unit="", minimum=1e-3, trainable=False)
        return [*gains, q, _control("output_gain_db", -36, 36, "linear", 0)]

    return Definition(make, all_controls)


EFFECTS: dict[str, Definition] = {
    **{name: _built_in(name, declared) for name, declared in _BUILT_INS.items()},
    "MultibandCompressor": _multiband(pedalboard.Compressor, [_THRESHOLD, _RATIO, _ATTACK, _RELEASE]),
    "MultibandGate": _multiband(pedalboard.NoiseGate, [_GATE_THRESHOLD, _GATE_RATIO, _ATTACK, _RELEASE]),
    "GraphicEqualizer": _graphic_equalizer(),
}
"""Every effect of this host by name."""
