"""What a plugin really does, before it is trusted.

    python -m dfx.effects.probe pedalboard:Compressor
    python -m dfx.effects.probe lv2:http://calf.sourceforge.net/plugins/Limiter --sample-rate 22050
    python -m dfx.effects.probe configs/tube_amp.yaml --json

renders a probe signal through the chain, moves every trained parameter, and prints what it found: which
parameters change the output and by how much, how late the output is, what a restart and a cut into frames
leave behind, what a frame costs, and, as plain sentences, all that a user would not expect.

:func:`dead_parameters` is the quick form, which training calls before it starts.
"""

from __future__ import annotations

import argparse
import bisect
import dataclasses
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from dfx.effects.chain import Chain, ChainSpec, load_chain
from dfx.effects.effect import Effect, RenderError
from dfx.errors import UserError, errors_in_one_line

FRAME_SAMPLES = 1024
ODD_FRAME_SAMPLES = 1000
"""A length that is no multiple of the blocks of any host."""

ROUNDING = 1e-6
"""A share that is lost in rounding: -120 dB."""

ABOVE_ROUNDING = 10
"""How many times the difference that rounding makes a parameter must make to be called live."""

RANDOM_SETTINGS = 4
"""At how many settings of the others, besides the defaults, a parameter must do nothing to be called dead."""

STEP = 0.05
"""How far from its default a parameter is moved to see what it does around it, in shares of its range."""

GLIDE_SHARE = 0.05
"""A new value has arrived when this share of the change is left to come."""

GLIDES_MS = tuple(0.5 * 1.25**step for step in range(32))
"""The delays among which the length of a glide is looked for, up to half a second."""

LEAST_SECONDS = 0.2
"""A shorter probe signal has no low frequencies to speak of."""

LATENCY_TOLERANCE_MS = 1.0
"""Filters shift what they pass by a part of this; what is later comes late."""


@dataclasses.dataclass
class ParameterReport:
    """What one trained parameter does.

    Args:
        name, unit, low, high, default: as in the chain.
        dead: it changed nothing, wherever the others stood; see :func:`dead_parameters`.
        range_db: the level of the difference between the outputs at both ends of the range, relative to the
            louder of them, the others at their defaults; none where there is no difference or no output.
        default_db: the same for a twentieth of the range to both sides of the default.
        reads_back: whether the host or the plugin shows the values that were set; none where it has no say.
        declared_glide_ms: how long the host says that the effect takes to a new value.
        glide_ms: how long it takes, by measurement. The value goes from one end of its range to the other,
            at the start of a frame of 1024 samples and while the effect hears silence, so that its filters
            and envelopes are at rest. To a sound that sets in after this delay, the effect does what one does
            that had the new value from the start, up to a twentieth of the difference that the value makes.
            0 is a jump; others are found on a grid, each a quarter longer than the last. None where the
            ends sound the same, or where half a second is not enough (the phase of an oscillator remembers
            the old value for ever).
    """

    name: str
    unit: str
    low: float
    high: float
    default: float
    dead: bool = False
    range_db: float | None = None
    default_db: float | None = None
    reads_back: bool | None = None
    declared_glide_ms: float = 0.0
    glide_ms: float | None = None


@dataclasses.dataclass
class ProbeReport:
    """What a chain does; errors are the largest differences between samples.

    Args:
        effects: ``host:name`` of each.
        latency_reported, latency_measured: in samples; measured by correlation of noise with what becomes of
            it at the defaults, none where little of it is left.
        inverted: whether that correlation is negative.
        level_db: of the output at the defaults, relative to the input; none for silence.
        difference_of_instances: between two that are new; 0 if the chain is deterministic.
        restart_error: of a second pass after a restart, against a new instance.
        frame_errors: of frames of so many samples against the whole.
        frame_microseconds: for a frame of 1024 samples at values that move a little with every frame.
        times_real_time: the same as a ratio.
        surprises: sentences.
    """

    effects: list[str]
    sample_rate: int
    channels: int
    parameters: list[ParameterReport]
    latency_reported: int
    latency_measured: int | None
    inverted: bool
    level_db: float | None
    difference_of_instances: float
    restart_error: float
    frame_errors: dict[int, float]
    frame_microseconds: float
    times_real_time: float
    surprises: list[str]


def probe(spec: ChainSpec, seconds: float = 2.0) -> ProbeReport:
    """Renders a chain in every way that training will, and reports; on the main thread.

    Args:
        spec: the chain; what is probed are its trained parameters, in their ranges.
        seconds: how long the probe signal is.

    Raises:
        UserError: if the chain cannot be built, fails at its defaults, or if ``seconds`` is below 0.2.
    """
    bench = _Bench(spec, seconds)
    output = bench.output(bench.defaults)
    level_db = _level_db(output, bench.audio)
    surprises = [] if np.abs(output).max() > ROUNDING else ["output silent at the defaults"]

    live = bench.live()
    parameters = [_parameter_report(bench, i, live.get(i), surprises) for i in range(len(spec.parameters))]
    _check_read_back(bench, parameters, surprises)
    dead = [parameter.name for parameter in parameters if parameter.dead]
    if dead:
        surprises.append(
            f"dead parameter{'s' if len(dead) > 1 else ''} {', '.join(dead)}: nothing in the range changes "
            "the output; a switch may keep it asleep, or the sample rate put it out of reach"
        )

    latency, inverted = _measure_latency(bench)
    reported = bench.chain.latency_samples
    if latency is not None and abs(latency - reported) > LATENCY_TOLERANCE_MS / 1000 * spec.sample_rate:
        surprises.append(f"latency reported {reported} but measured {latency} samples")
    if inverted:
        surprises.append("output inverted: its polarity is not that of the input")

    instances, restart, frames = _measure_repetition(bench)
    # What differs from instance to instance cannot repeat itself in any other way.
    least = max(ROUNDING * max(1.0, float(np.abs(output).max())), 4 * instances)
    if instances:
        surprises.append(f"not deterministic: two new instances differ by {instances:.2g}")
    if restart > least:
        surprises.append(f"restart not exact: the next pass differs from a new instance by {restart:.2g}")
    for samples, error in frames.items():
        if error > least:
            surprises.append(f"frames of {samples} differ from the whole by {error:.2g}")

    microseconds = _measure_cost(bench)
    return ProbeReport(
        effects=[effect.effect for effect in spec.effects],
        sample_rate=spec.sample_rate,
        channels=spec.channels,
        parameters=parameters,
        latency_reported=reported,
        latency_measured=latency,
        inverted=inverted,
        level_db=level_db,
        difference_of_instances=instances,
        restart_error=restart,
        frame_errors=frames,
        frame_microseconds=microseconds,
        times_real_time=1e6 * FRAME_SAMPLES / spec.sample_rate / microseconds,
        surprises=surprises,
    )


def dead_parameters(spec: ChainSpec, seconds: float = 2.0) -> list[str]:
    """The names of the parameters that do nothing; on the main thread.

    A parameter is dead if moving it to either end of its range changes no frame of the output by clearly more
    than rounding does, neither with all others at their defaults nor at ``RANDOM_SETTINGS`` random ones. A
    rendering ends as soon as it differs, so live parameters cost little.

    Raises:
        UserError: as :func:`probe`.
    """
    bench = _Bench(spec, seconds)
    live = bench.live()
    return [parameter.name for i, parameter in enumerate(spec.parameters) if i not in live]


def probe_signal(sample_rate: int, channels: int = 1, seconds: float = 2.0) -> np.ndarray:
    """Audio to which compressors, gates and equalizers of all frequencies react.

    Tones from 16 Hz to Nyquist fade from full scale to -80 dB over 60 % of the time; bursts of noise at 0,
    -20, -40 and -60 dB over a floor of -80 dB take 30 %; the rest is silence. The channels differ.

    Returns:
        float32, shape ``(channels, samples)``, in [-1, 1].
    """
    random = np.random.default_rng(0)
    samples = int(seconds * sample_rate)
    position = np.arange(samples) / samples
    phase = 2 * np.pi * seconds * position
    tones = sum(
        np.sin(hz * phase + random.uniform(0, 2 * np.pi, (channels, 1)))
        for hz in np.geomspace(16, 0.49 * sample_rate, 64)
    )
    tones *= 10 ** (-4 * position / 0.6) / np.abs(tones).max()

    noise = random.uniform(-1, 1, (channels, samples))
    burst = (position - 0.6) / 0.3 * 4
    noise *= np.where(burst % 1 < 0.5, 10 ** -np.floor(np.clip(burst, 0, 3)), 1e-4)
    audio = np.where(position < 0.6, tones, np.where(position < 0.9, noise, 0))
    return audio.astype(np.float32)


# --- what is measured --------------------------------------------------------------------------------


class _Bench:
    """A live chain, and the probe signal. Parameters are in [0, 1]; every pass begins with a restart."""

    def __init__(self, spec: ChainSpec, seconds: float) -> None:
        if not seconds >= LEAST_SECONDS:
            raise UserError(f"a probe signal of {seconds:g} s is too short: give it {LEAST_SECONDS} s or more")
        self.spec = spec
        self.defaults = spec.space.defaults
        self.chain = spec.build()
        self.audio = probe_signal(spec.sample_rate, spec.channels, seconds)
        random = np.random.default_rng(0).uniform(-1, 1, self.audio.shape)
        self._rounding = (1 + ROUNDING * random).astype(np.float32)
        self._fails = np.zeros(len(spec.parameters), dtype=bool)
        others = np.random.default_rng(0).uniform(size=(RANDOM_SETTINGS, len(spec.parameters)))
        self.settings = [self.defaults, *others]

    def values(self, parameters: np.ndarray) -> np.ndarray:
        return self.spec.space.denormalize(parameters)

    def near(self, setting: np.ndarray) -> np.ndarray:
        """A setting, or one on the way from it to the defaults at which the chain does not fail."""
        for share in (1.0, 0.5, 0.25, 0.125):
            nearer = self.defaults + share * (np.where(self._fails, self.defaults, setting) - self.defaults)
            try:
                self.output(nearer)
                return nearer
            except RenderError:
                continue
        return self.defaults

    def moved(self, index: int, to: float, setting: np.ndarray | None = None) -> np.ndarray:
        """A setting, by default the defaults, with one parameter moved."""
        parameters = (self.defaults if setting is None else setting).copy()
        parameters[index] = to
        return parameters

    def frames(self, parameters: np.ndarray, audio: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Audio, by default the probe signal, rendered one frame after the other."""
        values = self.values(parameters)
        return _frames(self.chain, self.audio if audio is None else audio, lambda start: values)

    def output(self, parameters: np.ndarray) -> np.ndarray:
        return np.concatenate([*self.frames(parameters)], axis=1)

    def live(self) -> dict[int, np.ndarray]:
        """The live parameters by their place, each with a setting of the others that shows it."""
        live: dict[int, np.ndarray] = {}
        for setting in self.settings:
            suspects = [i for i in range(len(setting)) if i not in live]
            if not suspects:
                break
            setting = self.near(setting)
            frames = [*self.frames(setting)]
            # Filters near Nyquist make much of rounding: how much, an input with other last digits tells. By
            # how much passes differ, if they do, it tells as well.
            rounded = self.frames(setting, self.audio * self._rounding)
            least = ROUNDING / 10 * max(np.abs(frame).max() for frame in frames)
            bounds = [max(least, ABOVE_ROUNDING * np.abs(a - b).max()) for a, b in zip(frames, rounded)]
            for i in suspects:
                ends = [end for end in (1.0, 0.0) if end != setting[i]]
                if any(self._differs(i, end, setting, frames, bounds) for end in ends):
                    live[i] = setting
        return live

    def _differs(self, i: int, end: float, setting: np.ndarray, frames: list[np.ndarray], bounds: list[float]) -> bool:
        try:
            moved = self.frames(self.moved(i, end, setting))
            return any(np.abs(a - b).max() > bound for a, b, bound in zip(moved, frames, bounds))
        except RenderError:
            # It moves, and the others must be looked at without it.
            self._fails[i] = True
            return True


def _frames(
    chain: Chain, audio: np.ndarray, values: Callable[[int], np.ndarray], samples: int = FRAME_SAMPLES
) -> Iterator[np.ndarray]:
    """Renders a stream from a fresh start; ``values`` are those of the frame that starts at a sample."""
    chain.restart()
    for start in range(0, audio.shape[1], samples):
        frame = audio[:, start : start + samples]
        output = chain.render(frame, values(start))
        if output.shape != frame.shape:
            raise RenderError(f"a frame of shape {frame.shape} came back with shape {output.shape}")
        yield output


def _parameter_report(bench: _Bench, index: int, setting: np.ndarray | None, surprises: list[str]) -> ParameterReport:
    """Reports one parameter; ``setting`` is one of the others that shows it, none if it is dead."""
    parameter, default = bench.spec.parameters[index], bench.defaults[index]
    places = {"low": 0.0, "high": 1.0, "below": max(default - STEP, 0.0), "above": min(default + STEP, 1.0)}
    outputs: dict[str, np.ndarray] = {}
    for place, position in places.items():
        try:
            outputs[place] = bench.output(bench.moved(index, position))
        except RenderError as error:
            why = "output not finite or far too loud"
            if error.__cause__:
                why = f"the chain fails ({error.__cause__})"
            if place in ("low", "high"):
                surprises.append(f"{why} at the {place} end of {parameter.name}")

    def difference_db(a: str, b: str) -> float | None:
        if a not in outputs or b not in outputs:
            return None
        louder = max(outputs[a], outputs[b], key=lambda output: np.square(output).sum())
        return _level_db(outputs[a] - outputs[b], louder)

    glide_ms = None if setting is None else _measure_glide(bench, index, setting)
    if glide_ms is not None and glide_ms > 2 * parameter.smoothing_ms + 1:
        declared = f"{parameter.smoothing_ms:g} ms" if parameter.smoothing_ms else "a jump"
        surprises.append(f"{parameter.name} glides for about {glide_ms:.3g} ms; its host declares {declared}")
    return ParameterReport(
        parameter.name,
        parameter.unit,
        parameter.low,
        parameter.high,
        parameter.default,
        dead=setting is None,
        range_db=difference_db("low", "high"),
        default_db=difference_db("below", "above"),
        declared_glide_ms=parameter.smoothing_ms,
        glide_ms=glide_ms,
    )


def _measure_glide(bench: _Bench, index: int, setting: np.ndarray) -> float | None:
    """See :class:`ParameterReport`."""
    sample_rate, channels = bench.spec.sample_rate, bench.spec.channels
    sound = probe_signal(sample_rate, channels, 0.2)
    change = 8 * FRAME_SAMPLES
    low, high = (bench.values(bench.moved(index, end, setting)) for end in (0.0, 1.0))

    def output(before: np.ndarray, after: np.ndarray, delay: int) -> np.ndarray:
        silence = np.zeros((channels, change + delay), dtype=np.float32)
        audio = np.concatenate([silence, sound], axis=1)
        frames = [*_frames(bench.chain, audio, lambda start: before if start < change else after)]
        return np.concatenate(frames, axis=1)[:, change + delay :]

    def arrived(delay_ms: float) -> bool:
        delay = round(delay_ms / 1000 * sample_rate)
        left = output(low, high, delay) - output(high, high, delay)
        return bool(np.abs(left).max() <= GLIDE_SHARE * whole)

    try:
        there = output(high, high, 0)
        whole = np.abs(output(low, low, 0) - there).max()
        if whole <= ROUNDING * np.abs(there).max():
            return None
        if arrived(0.0):
            return 0.0
        place = bisect.bisect_left(GLIDES_MS, True, key=arrived)
    except RenderError:
        return None
    return GLIDES_MS[place] if place < len(GLIDES_MS) else None


def _measure_latency(bench: _Bench) -> tuple[int | None, bool]:
    """The delay of noise through the chain, in samples, and whether it comes out inverted."""
    samples = bench.spec.sample_rate
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (bench.spec.channels, samples)).astype(np.float32)
    values = bench.values(bench.defaults)
    output = np.concatenate([*_frames(bench.chain, noise, lambda start: values)], axis=1)
    # Padded to twice the length, the circular correlation is the linear one.
    spectra = [np.fft.rfft(audio, 2 * samples) for audio in (noise, output)]
    correlation = np.fft.irfft((spectra[0].conj() * spectra[1]).sum(axis=0))[: samples // 2]
    correlation /= np.sqrt(np.square(noise).sum() * np.square(output).sum()) + 1e-30
    delay = int(np.abs(correlation).argmax())
    if abs(correlation[delay]) < 0.1:
        return None, False
    return delay, bool(correlation[delay] < 0)


def _measure_repetition(bench: _Bench) -> tuple[float, float, dict[int, float]]:
    """How far new instances differ, a restart from a new instance, and frames from the whole."""

    def rendered(chain: Chain, values: np.ndarray, samples: int = bench.audio.shape[1]) -> np.ndarray:
        return np.concatenate([*_frames(chain, bench.audio, lambda start: values, samples)], axis=1)

    def error(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a - b).max())

    frames = {FRAME_SAMPLES: 0.0, ODD_FRAME_SAMPLES: 0.0}
    for setting in bench.settings:
        values = bench.values(bench.near(setting))
        whole = rendered(bench.chain, values)
        for samples in frames:
            frames[samples] = max(frames[samples], error(rendered(bench.chain, values, samples), whole))

    new, other = (bench.spec.build().render(bench.audio, values) for _ in range(2))
    return error(new, other), error(rendered(bench.chain, values), new), frames


def _measure_cost(bench: _Bench) -> float:
    """Microseconds for a frame, the median of 40."""
    frame = bench.audio[:, :FRAME_SAMPLES]
    near = np.where(bench.defaults > 0.5, bench.defaults - 0.01, bench.defaults + 0.01)
    both = [bench.values(bench.defaults), bench.values(bench.near(near))]
    bench.chain.restart()
    times = []
    for step in range(40):
        start = time.perf_counter()
        bench.chain.render(frame, both[step % 2])
        times.append(time.perf_counter() - start)
    return 1e6 * float(np.median(times))


def _check_read_back(bench: _Bench, reports: list[ParameterReport], surprises: list[str]) -> None:
    """Sets all parameters to two values, reads them back, and adds what it finds to the reports."""
    for share in (0.3, 0.8):
        values = bench.values(bench.near(np.full(len(reports), share)))
        bench.chain.render(bench.audio[:, :FRAME_SAMPLES], values)
        shown = [_shown(effect, values[part]) for effect, part in zip(bench.chain._effects, bench.chain._slices)]
        for report, value, number in zip(reports, values, itertools.chain(*shown)):
            if number is None or report.reads_back is False:
                continue
            # Texts are rounded.
            report.reads_back = bool(abs(number - value) <= 1e-3 * (report.high - report.low))
            if not report.reads_back:
                surprises.append(f"{report.name} was set to {value:g} but reads back {number:g}")


def _shown(effect: Effect, values: np.ndarray) -> list[float | None]:
    """The values of its parameters as the host or the plugin has them; none where it cannot tell."""
    host = type(effect).__name__
    if host == "Lv2Effect":
        return effect._values[effect._trained].tolist()
    if host == "PedalboardEffect":
        return [float(getattr(*targets[0])) for targets in effect._setters]
    if host == "PluginEffect":
        return [_number(targets[0].string_value) for targets in effect._targets]
    return [None] * len(values)


def _number(text: str) -> float | None:
    found = re.match(r"\s*[-+]?\d*\.?\d+(e[-+]?\d+)?", text, re.IGNORECASE)
    return float(found[0]) if found else None


def _level_db(audio: np.ndarray, reference: np.ndarray) -> float | None:
    """The level of audio relative to other audio; none if one of them is silent."""
    power, reference_power = (float(np.square(a, dtype=np.float64).mean()) for a in (audio, reference))
    return 10 * float(np.log10(power / reference_power)) if power and reference_power else None


# --- what is printed ---------------------------------------------------------------------------------


def as_text(report: ProbeReport) -> str:
    """A report as a table of the parameters, a few lines on the chain, and its surprises."""
    heads = "parameter,unit,low,high,default,range dB,default dB,reads back,glide ms"
    rows = [heads.split(",")]
    for p in report.parameters:
        effect = ["dead", ""] if p.dead else [_cell(p.range_db, ".1f"), _cell(p.default_db, ".1f")]
        reads_back = {True: "yes", False: "no", None: "-"}[p.reads_back]
        numbers = [f"{number:.6g}" for number in (p.low, p.high, p.default)]
        rows.append([p.name, p.unit, *numbers, *effect, reads_back, _cell(p.glide_ms, ".3g")])
    widths = [max(map(len, column)) for column in zip(*rows)]

    def line(row: list[str]) -> str:
        names = [cell.ljust(width) for cell, width in zip(row[:2], widths)]
        return "  ".join([*names, *(cell.rjust(width) for cell, width in zip(row[2:], widths[2:]))])

    differences = {
        "between new instances": report.difference_of_instances,
        "after a restart": report.restart_error,
        **{f"in frames of {samples}": error for samples, error in report.frame_errors.items()},
    }
    lines = [
        f"{' > '.join(report.effects)} at {report.sample_rate} Hz, channels: {report.channels}",
        "",
        *map(line, rows),
        "",
        f"latency      {report.latency_reported} samples, measured {_cell(report.latency_measured, 'd')}",
        f"level        {_cell(report.level_db, '+.1f')} dB at the defaults",
        f"differences  {', '.join(f'{error:.2g} {where}' for where, error in differences.items())}",
        f"cost         {report.frame_microseconds:.0f} us for a frame of {FRAME_SAMPLES}, "
        f"{report.times_real_time:.0f} times real time",
        "",
        *([f"! {surprise}" for surprise in report.surprises] or ["no surprises"]),
    ]
    return "\n".join(lines)


def _cell(number: Any, form: str) -> str:
    return "-" if number is None else format(number, form)


def main(args: Sequence[str] | None = None) -> None:
    """The command line; an error in what the user gave ends it with one line."""
    parser = argparse.ArgumentParser(prog="python -m dfx.effects.probe", description="Says what an effect really does.")
    parser.add_argument("spec", help="host:effect, for instance pedalboard:Compressor, or a config of a training")
    parser.add_argument("--sample-rate", type=int, help="in Hz; by default the config's, or 44100")
    parser.add_argument("--channels", type=int, help="by default the config's, or 1")
    parser.add_argument("--seconds", type=float, default=2.0, help="of the probe signal")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(args)
    with errors_in_one_line():
        report = probe(load_chain(options.spec, options.sample_rate, options.channels), options.seconds)
    print(json.dumps(dataclasses.asdict(report), allow_nan=False) if options.json else as_text(report))


if __name__ == "__main__":
    main()
