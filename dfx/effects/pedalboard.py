"""The host of pedalboard's built-in effects, and of multiband effects composed of them.

Consecutive effects are rendered by one call of one ``pedalboard.Pedalboard``. Properties of pedalboard that matter for
streaming, and how this host deals with them:

* A block longer than the first re-initializes the effects and discards their state: the length of the first block is
  the ``buffer_size`` of all later ones.
* Look-ahead effects drop the first ``latency`` samples of a stream: these are replaced by silence, so that every block
  has its full length, delayed by ``latency_samples``.
* Look-ahead effects lose samples inside a ``Mix``: no composite contains one.
* A reset does not clear a phaser or a reverb completely: boards that contain one are rebuilt instead.
* Setting an attribute, even to its present value, disturbs some effects (Phaser): only changes are set.
* Attributes accept any value: ranges and frequencies are checked here before use.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pedalboard

from dfx.effects.effect import NYQUIST_MARGIN, Control, Effect, EffectError, Recipe
from dfx.effects.parameter import Scale
from dfx.errors import nearest

BLOCK_SAMPLES = 8192
"""The longest block that pedalboard renders at once; it splits longer ones."""

Targets = list[tuple[Any, str]]
"""The attributes that one control sets, each with the plugin that has it."""


class BuiltPlugin(NamedTuple):
    """A live plugin, and its controls with the targets of each."""

    plugin: Any
    targets: dict[Control, Targets]


def controls(name: str, sample_rate: int, channels: int) -> dict[str, Control]:
    """Return the controls of a built-in or composite effect, by name.

    Raises:
        EffectError: if there is no such effect (with the nearest name), or if it cannot be streamed.
    """
    if name in _NOT_STREAMABLE:
        raise EffectError(f"pedalboard:{name} cannot be rendered frame by frame: {_NOT_STREAMABLE[name]}")
    if name not in EFFECTS:
        raise EffectError(f"pedalboard has no effect '{name}'{nearest(name, EFFECTS)}")
    return {control.name: control for control in EFFECTS[name](sample_rate).targets}


def build(recipes: Sequence[Recipe], sample_rate: int, channels: int) -> list[tuple[Effect, int]]:
    """Build one live effect for all recipes."""
    return [(PedalboardEffect(recipes, sample_rate, channels), len(recipes))]


def build_plugin(effect: str, settings: Mapping[str, Any], sample_rate: int) -> BuiltPlugin:
    """Build the pedalboard plugin of an effect with the given values of its controls, by default their own."""
    built = EFFECTS[effect](sample_rate)
    for control, targets in built.targets.items():
        value = settings.get(control.name, control.default)
        for plugin, attribute in targets:
            if isinstance(value, str):
                # The modes of an attribute are members of an enumeration of the plugin's class.
                value = getattr(getattr(type(plugin), attribute.capitalize()), value)
            setattr(plugin, attribute, value)
    return built


class LatencyBuffer:
    """Delays a stream whose start a look-ahead has dropped, with silence in place of the dropped samples."""

    def __init__(self, channels: int, latency_samples: int) -> None:
        self._audio = np.zeros((channels, latency_samples), dtype=np.float32)

    def fill(self, output: np.ndarray, samples: int) -> np.ndarray:
        """Append ``output``, which may be shorter than ``samples``, and return the next ``samples`` of the stream."""
        if not self._audio.size:
            return output
        output, self._audio = np.split(np.concatenate([self._audio, output], axis=1), [samples], axis=1)
        return output


class PedalboardEffect(Effect):
    """Built-in effects in series, on one board."""

    def __init__(self, recipes: Sequence[Recipe], sample_rate: int, channels: int) -> None:
        self._recipes = recipes
        self._sample_rate = sample_rate
        self._channels = channels
        self._build_board()
        effects = {recipe.effect for recipe in recipes}
        self._reset_is_exact = effects.isdisjoint(_INEXACT_RESET)
        self.latency_samples = 0 if effects.isdisjoint(_WITH_LATENCY) else self._measure_latency()
        self.restart()

    def restart(self) -> None:
        if not self._reset_is_exact:
            self._build_board()
        self._block_samples = 0
        self._latency_buffer = LatencyBuffer(self._channels, self.latency_samples)

    def render(self, audio: np.ndarray, values: np.ndarray) -> np.ndarray:
        new_values = values.tolist()
        for targets, value, old in zip(self._targets, new_values, self._values):
            if value != old:
                for plugin, attribute in targets:
                    setattr(plugin, attribute, value)
        self._values[:] = new_values
        if self._block_samples == 0:
            # Reset after the values are set, so that smoothed parameters start at them.
            self._board.reset()
            self._block_samples = min(audio.shape[1], BLOCK_SAMPLES)
        # By position, which takes half a microsecond less. The last argument: do not reset.
        output = self._board.process(audio, self._sample_rate, self._block_samples, False)
        return self._latency_buffer.fill(output, audio.shape[1])

    def read_values(self) -> np.ndarray:
        return np.array([float(getattr(*targets[0])) for targets in self._targets])

    def _build_board(self) -> None:
        plugins = []
        self._targets: list[Targets] = []
        for recipe in self._recipes:
            plugin, targets = build_plugin(recipe.effect, recipe.fixed, self._sample_rate)
            by_name = {control.name: attributes for control, attributes in targets.items()}
            self._targets += [by_name[parameter.name] for parameter in recipe.parameters]
            plugins.append(plugin)
        self._values = [math.nan] * len(self._targets)
        self._board = pedalboard.Pedalboard(plugins)

    def _measure_latency(self) -> int:
        silence = np.zeros((1, self._sample_rate), dtype=np.float32)
        return silence.shape[1] - self._board.process(silence, self._sample_rate, reset=False).shape[1]


_UNITS = {"_db": "dB", "_hz": "Hz", "_ms": "ms", "_seconds": "s", "bit_depth": "bit"}
"""Units by the end of a control's name."""


def _control(name: str, low: float, high: float, scale: Scale, default: float, **options: Any) -> Control:
    unit = next((u for ending, u in _UNITS.items() if name.endswith(ending)), "")
    options.setdefault("minimum", {"Hz": 1e-3, "ms": 0.0, "s": 0.0}.get(unit, -math.inf))
    return Control(name, default, low, high, unit, scale, **options)


def _share(name: str, default: float, high: float = 1, smoothing_ms: float = 0.0) -> Control:
    return _control(name, 0, high, "linear", default, smoothing_ms=smoothing_ms, minimum=0.0, maximum=1.0)


def _cutoff(low: float, high: float, default: float) -> Control:
    return _control("cutoff_frequency_hz", low, high, "log", default)


_THRESHOLD = _control("threshold_db", -60, 0, "linear", -20)
_RATIO = _control("ratio", 1, 20, "log", 2, minimum=1.0)
_ATTACK = _control("attack_ms", 0.1, 200, "log", 5)
_RELEASE = _control("release_ms", 1, 1000, "log", 100)
_GATE_THRESHOLD = _control("threshold_db", -80, 0, "linear", -60)
_GATE_RATIO = _control("ratio", 1, 20, "log", 4, minimum=1.0)
_Q = _control("q", 0.3, 5, "log", 0.7071, minimum=1e-3)
_GAIN = _control("gain_db", -24, 24, "linear", 0)
_INPUT_GAIN = _control("input_gain_db", -36, 36, "linear", 0)
_OUTPUT_GAIN = _control("output_gain_db", -36, 36, "linear", 0)
_FEEDBACK = _control("feedback", 0, 0.9, "linear", 0, smoothing_ms=50, minimum=-0.99, maximum=0.99)

# Training ranges are recommendations. Limits are those of pedalboard's setters or, where a setter accepts
# anything, sensible ones. Defaults are neutral where pedalboard's own are not.
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
        _share("depth", 0.25, smoothing_ms=50),
        _control("centre_delay_ms", 1, 30, "log", 7, minimum=1.0, maximum=100.0),
        _FEEDBACK,
        _share("mix", 0.5, smoothing_ms=50),
    ],
    "Clipping": [_control("threshold_db", -36, 0, "linear", 0)],
    "Compressor": [_THRESHOLD, _RATIO, _ATTACK, _RELEASE],
    "Delay": [
        _control("delay_seconds", 0.001, 1, "log", 0.1, maximum=30.0),
        _control("feedback", 0, 0.95, "linear", 0, minimum=0.0, maximum=0.99),
        _share("mix", 0.3),
    ],
    "Distortion": [_control("drive_db", 0, 40, "linear", 6)],
    "Gain": [_control("gain_db", -36, 36, "linear", 0)],
    "HighShelfFilter": [_cutoff(1000, 10000, 4000), _GAIN, _Q],
    "HighpassFilter": [_cutoff(10, 1000, 20)],
    "Invert": [],
    "LadderFilter": [
        _control("cutoff_hz", 20, 10000, "log", 8000, smoothing_ms=50),
        _share("resonance", 0, 0.95, smoothing_ms=50),
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
        _share("depth", 0.5, smoothing_ms=50),
        _control("centre_frequency_hz", 100, 6000, "log", 1300, smoothing_ms=260),
        _FEEDBACK,
        _share("mix", 0.5, smoothing_ms=50),
    ],
    "Reverb": [
        _share("room_size", 0.5),
        _share("damping", 0.5),
        _share("wet_level", 0.33, smoothing_ms=10),
        _share("dry_level", 0.4, smoothing_ms=10),
        _share("width", 1, smoothing_ms=10),
    ],
}

_NOT_STREAMABLE = {
    "Convolution": "it needs an impulse response",
    "GSMFullRateCompressor": "it has no parameter to train and resamples inside",
    "MP3Compressor": "it works on frames of a fixed length",
    "PitchShift": "it returns nothing for the first second",
    "Resample": "it resamples inside",
}
_WITH_LATENCY = {"BrickwallLimiter"}
_INEXACT_RESET = {"Phaser", "Reverb"}


def _built_in(name: str, declared: list[Control], sample_rate: int) -> BuiltPlugin:
    plugin = getattr(pedalboard, name)()
    return BuiltPlugin(plugin, {control: [(plugin, control.name)] for control in declared})


_CROSSOVERS = [
    _control("crossover_1_hz", 30, 400, "log", 120),
    _control("crossover_2_hz", 300, 3000, "log", 1000),
    _control("crossover_3_hz", 2000, 10000, "log", 6000),
]


def _multiband(dynamics: Callable[[], Any], band_controls: list[Control], sample_rate: int) -> BuiltPlugin:
    """Build four bands, each with ``dynamics`` and a gain, between an input and an output gain.

    First-order low- and high-pass filters with the same cutoff sum to their input, and so does a tree of
    them: while all bands have unity gain, the output equals the input (to 2e-7).
    """
    input_gain, output_gain = pedalboard.Gain(0), pedalboard.Gain(0)
    targets: dict[Control, Targets] = {_INPUT_GAIN: [(input_gain, "gain_db")], **{hz: [] for hz in _CROSSOVERS}}
    bands: list[list[pedalboard.Plugin]] = []
    for band in range(len(_CROSSOVERS) + 1):
        processor, gain = dynamics(), pedalboard.Gain(0)
        for plugin, control in [*((processor, control) for control in band_controls), (gain, _GAIN)]:
            targets[replace(control, name=f"band_{band + 1}_{control.name}")] = [(plugin, control.name)]
        bands.append([processor, gain])
    # From the highest crossover down, each splits off the band below it from all bands above it.
    above = bands.pop()
    for control in reversed(_CROSSOVERS):
        lowpass, highpass = pedalboard.LowpassFilter(), pedalboard.HighpassFilter()
        targets[control] = [(plugin, "cutoff_frequency_hz") for plugin in (lowpass, highpass)]
        branches = ([lowpass, *bands.pop()], [highpass, *above])
        above = [pedalboard.Mix([pedalboard.Pedalboard(branch) for branch in branches])]
    targets[_OUTPUT_GAIN] = [(output_gain, "gain_db")]
    return BuiltPlugin(pedalboard.Pedalboard([input_gain, *above, output_gain]), targets)


THIRD_OCTAVES_HZ = (
    16, 20, 25, 31.5, 40, 50, 63, 80, 100, 125, 160, 200, 250, 315, 400, 500, 630, 800, 1000, 1250, 1600,
    2000, 2500, 3150, 4000, 5000, 6300, 8000, 10000, 12500, 16000, 20000,
)  # fmt: skip
"""Nominal centre frequencies of third-octave bands (IEC 61260-1)."""


def _graphic_equalizer(sample_rate: int) -> BuiltPlugin:
    """Build one bell filter for every third-octave band below Nyquist, and an output gain."""
    centres = [hz for hz in THIRD_OCTAVES_HZ if hz <= NYQUIST_MARGIN * sample_rate]
    bells = [pedalboard.PeakFilter(cutoff_frequency_hz=hz) for hz in centres]
    output_gain = pedalboard.Gain(0)
    targets: dict[Control, Targets] = {
        _control(f"gain_{int(hz)}_hz_db", -12, 12, "linear", 0): [(bell, "gain_db")] for hz, bell in zip(centres, bells)
    }
    # A bandwidth of one third of an octave.
    targets[Control("q", 4.318, minimum=1e-3, trainable=False)] = [(bell, "q") for bell in bells]
    targets[_OUTPUT_GAIN] = [(output_gain, "gain_db")]
    return BuiltPlugin(pedalboard.Pedalboard([*bells, output_gain]), targets)


EFFECTS: dict[str, Callable[[int], BuiltPlugin]] = {
    **{name: partial(_built_in, name, declared) for name, declared in _BUILT_INS.items()},
    "MultibandCompressor": partial(_multiband, pedalboard.Compressor, [_THRESHOLD, _RATIO, _ATTACK, _RELEASE]),
    "MultibandGate": partial(_multiband, pedalboard.NoiseGate, [_GATE_THRESHOLD, _GATE_RATIO, _ATTACK, _RELEASE]),
    "GraphicEqualizer": _graphic_equalizer,
}
"""How to build each effect of this host at a sample rate, by name."""
