"""Measure the behaviour of effects and report deviations from their description.

    python -m dfx.effects.probe pedalboard:Compressor
    python -m dfx.effects.probe lv2:http://calf.sourceforge.net/plugins/Limiter --sample-rate 22050
    python -m dfx.effects.probe configs/tube_amp.yaml --json
    python -m dfx.effects.probe --list

renders a probe signal through the chain, moves every trained parameter, and prints which parameters change the
output and by how much, the latency, the errors after a restart and of rendering in frames, the cost of a frame,
and every surprise as a plain sentence. ``--list`` prints the effects of all hosts that are installed.

:func:`dead_parameters` is the short form, which training calls before it starts.
"""

import bisect
import contextlib
import dataclasses
import itertools
import json
import sys
import timeit
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from dfx.effects.chain import Chain, ChainSpec, load_chain
from dfx.effects.effect import EffectError, RenderError
from dfx.effects.latency import TOLERANCE_MS, measure_delay
from dfx.errors import CHANNELS, SAMPLE_RATES, ArgumentParser, Range, UserError, errors_in_one_line, printable

FRAME_SAMPLES = 1024
ODD_FRAME_SAMPLES = 1000  # not a multiple of any host's blocks
ROUNDING = 1e-6  # relative difference that counts as rounding: -120 dB
ABOVE_ROUNDING = 10  # a live parameter changes the output by more than this multiple of the rounding error
RANDOM_SETTINGS = 4  # of the other parameters, besides the defaults, at which a parameter is tested
STEP = 0.05  # from the default in [0, 1], where the local effect of a parameter is measured
GLIDE_SHARE = 0.05  # a glide has ended when at most this share of the change remains
GLIDES_MS = tuple(0.5 * 1.25**step for step in range(32))  # the grid of glide times, up to half a second
MIN_SECONDS = 0.2  # a shorter probe signal contains too few low frequencies


@dataclasses.dataclass
class ParameterReport:
    """The behaviour of one trained parameter.

    Args:
        name, unit, low, high, default: as in the chain.
        dead: it changes nothing at any tested setting of the others; see :func:`dead_parameters`.
        range_db: level of the difference between the outputs at both ends of the range, relative to the louder one,
            the others at their defaults; None without a difference or without output.
        default_db: the same for ``STEP`` to both sides of the default.
        reads_back: true if the live effect reports the values that were set; None if it reports none.
        declared_glide_ms: smoothing time according to the host.
        glide_ms: measured smoothing time. The value moves from the low to the high end at the start of a frame
            of 1024 samples while the input is silent, so that filters and envelopes are at rest. A sound that
            starts after this delay gives the output of a constant value, up to ``GLIDE_SHARE`` of the difference
            between both values. 0 is a jump; other times are found on a grid of ratio 1.25. None if the ends
            give the same output, or after more than half a second (an oscillator's phase keeps the old value).
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
    """The behaviour of a chain. Errors are the largest absolute differences between samples.

    Args:
        effects: ``host:name`` of each.
        latency_reported, latency_measured: in samples; measured by cross-correlation of noise with its output at the
            defaults, None if the two are hardly correlated.
        inverted: that correlation is negative.
        level_db: of the output at the defaults, relative to the input; None for silence.
        difference_of_instances: between two new instances; 0 if the chain is deterministic.
        restart_error: of a second pass after a restart, relative to a new instance.
        frame_errors: of rendering in frames relative to the whole, by the samples of a frame.
        frame_microseconds: for a frame of 1024 samples at values that change slightly with every frame (median of 40).
        times_real_time: duration of a frame over its rendering time.
        surprises: deviations from the description, as sentences.
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
    """Render a chain in every way that training does, and report; on the main thread.

    Args:
        spec: the chain; its trained parameters are moved within their ranges.
        seconds: length of the probe signal.

    Raises:
        UserError: if the chain cannot be built, if it fails at its defaults, or if ``seconds`` is below 0.2.
    """
    bench = _Bench(spec, seconds)
    output = bench.output(bench.defaults)
    peak = float(np.abs(output).max())
    surprises = [] if peak > ROUNDING else ["output silent at the defaults"]
    live = bench.find_live()
    parameters = [_report_parameter(bench, i, live.get(i), surprises) for i in range(len(spec.parameters))]
    _check_read_back(bench, parameters, surprises)
    report = ProbeReport(
        effects=[effect.effect for effect in spec.effects],
        sample_rate=spec.sample_rate,
        channels=spec.channels,
        parameters=parameters,
        latency_reported=bench.chain.latency_samples,
        **_measure_latency(bench),
        level_db=_level_db(output, bench.audio),
        **_measure_repetition(bench),
        **_measure_cost(bench),
        surprises=surprises,
    )
    report.surprises += _surprises(report, peak)
    return report


def _surprises(report: ProbeReport, peak: float) -> Iterator[str]:
    if dead := [parameter.name for parameter in report.parameters if parameter.dead]:
        yield (
            f"dead parameter{'s' if len(dead) > 1 else ''} {', '.join(dead)}: no value in the range changes "
            "the output; a switch may disable it, or the sample rate may put it out of reach"
        )
    reported, measured = report.latency_reported, report.latency_measured
    if measured is not None and abs(measured - reported) > TOLERANCE_MS / 1000 * report.sample_rate:
        yield f"latency reported {reported} but measured {measured} samples"
    if report.inverted:
        yield "output inverted: its polarity is opposite to that of the input"
    # Other errors cannot be smaller than the difference between instances.
    tolerance = max(ROUNDING * max(1.0, peak), 4 * report.difference_of_instances)
    if report.difference_of_instances:
        yield f"not deterministic: two new instances differ by {report.difference_of_instances:.2g}"
    if report.restart_error > tolerance:
        yield f"restart not exact: the next pass differs from a new instance by {report.restart_error:.2g}"
    for samples, error in report.frame_errors.items():
        if error > tolerance:
            yield f"frames of {samples} differ from the whole by {error:.2g}"


def dead_parameters(spec: ChainSpec, seconds: float = 2.0) -> list[str]:
    """Return the names of the parameters without effect; on the main thread, with the errors of :func:`probe`.

    A parameter is dead if moving it to either end of its range changes no frame of the output by clearly more
    than rounding does, neither with the others at their defaults nor at ``RANDOM_SETTINGS`` random settings. A
    rendering ends at the first difference, so live parameters cost little.
    """
    live = _Bench(spec, seconds).find_live()
    return [parameter.name for i, parameter in enumerate(spec.parameters) if i not in live]


def probe_signal(sample_rate: int, channels: int = 1, seconds: float = 2.0) -> np.ndarray:
    """Return audio to which compressors, gates and equalizers of all frequencies react.

    Tones from 16 Hz to Nyquist fade from full scale to -80 dB over 60 % of the time. Bursts of noise at 0, -20, -40
    and -60 dB over a floor of -80 dB take 30 %, and silence the rest. The channels differ.

    Returns:
        float32, shape ``(channels, samples)``, in [-1, 1].
    """
    random = np.random.default_rng(0)
    samples = int(seconds * sample_rate)
    position = np.arange(samples) / samples
    phase = 2 * np.pi * seconds * position
    frequencies = np.geomspace(16, 0.49 * sample_rate, 64)
    tones = sum(np.sin(hz * phase + random.uniform(0, 2 * np.pi, (channels, 1))) for hz in frequencies)
    tones *= 10 ** (-4 * position / 0.6) / np.abs(tones).max()

    noise = random.uniform(-1, 1, (channels, samples))
    burst = (position - 0.6) / 0.3 * 4
    noise *= np.where(burst % 1 < 0.5, 10 ** -np.floor(np.clip(burst, 0, 3)), 1e-4)
    audio = np.where(position < 0.6, tones, np.where(position < 0.9, noise, 0))
    return audio.astype(np.float32)


class _Bench:
    """A live chain and the probe signal. Parameters are in [0, 1]; every pass begins with a restart."""

    def __init__(self, spec: ChainSpec, seconds: float) -> None:
        if not seconds >= MIN_SECONDS:
            raise UserError(f"a probe signal of {seconds:g} s is too short: give it {MIN_SECONDS} s or more")
        self.spec = spec
        self.defaults = spec.space.defaults
        self.values = spec.space.denormalize
        self.chain = spec.build()
        self.audio = probe_signal(spec.sample_rate, spec.channels, seconds)
        random = np.random.default_rng(0).uniform(-1, 1, self.audio.shape)
        self._rounding = (1 + ROUNDING * random).astype(np.float32)
        self._fails = np.zeros(len(spec.parameters), dtype=bool)
        others = np.random.default_rng(0).uniform(size=(RANDOM_SETTINGS, len(spec.parameters)))
        self.settings = [self.defaults, *others]

    def working(self, setting: np.ndarray) -> np.ndarray:
        """Return a setting, or one closer to the defaults at which the chain does not fail."""
        for share in (1.0, 0.5, 0.25, 0.125):
            closer = self.defaults + share * (np.where(self._fails, self.defaults, setting) - self.defaults)
            with contextlib.suppress(RenderError):
                self.output(closer)
                return closer
        return self.defaults

    def moved(self, index: int, to: float, setting: np.ndarray | None = None) -> np.ndarray:
        """Return a setting, by default the defaults, with one parameter moved."""
        setting = self.defaults if setting is None else setting
        return np.where(np.arange(len(setting)) == index, to, setting)

    def frames(self, parameters: np.ndarray, audio: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Render audio, by default the probe signal, one frame after the other."""
        values = self.values(parameters)
        return _frames(self.chain, self.audio if audio is None else audio, lambda start: values)

    def output(self, parameters: np.ndarray, audio: np.ndarray | None = None) -> np.ndarray:
        return np.concatenate([*self.frames(parameters, audio)], axis=1)

    def find_live(self) -> dict[int, np.ndarray]:
        """Return the indices of the live parameters, each with a setting of the others at which it is live."""
        live: dict[int, np.ndarray] = {}
        for setting in self.settings:
            suspects = [i for i in range(len(setting)) if i not in live]
            if not suspects:
                break
            setting = self.working(setting)
            frames = [*self.frames(setting)]
            # Filters near Nyquist amplify rounding: a pass with other last digits in the input measures by how much,
            # and includes the difference between passes of a chain that is not deterministic.
            rounded = self.frames(setting, self.audio * self._rounding)
            least = ROUNDING / 10 * max(np.abs(frame).max() for frame in frames)
            bounds = [max(least, ABOVE_ROUNDING * np.abs(a - b).max()) for a, b in zip(frames, rounded)]
            for i in suspects:
                if any(self._differs(i, end, setting, frames, bounds) for end in (1.0, 0.0) if end != setting[i]):
                    live[i] = setting
        return live

    def _differs(self, i: int, end: float, setting: np.ndarray, frames: list[np.ndarray], bounds: list[float]) -> bool:
        try:
            moved = self.frames(self.moved(i, end, setting))
            return any(np.abs(a - b).max() > bound for a, b, bound in zip(moved, frames, bounds))
        except RenderError:
            # The parameter is live, and stays at its default in further settings.
            self._fails[i] = True
            return True


def _frames(
    chain: Chain, audio: np.ndarray, values: Callable[[int], np.ndarray], samples: int = FRAME_SAMPLES
) -> Iterator[np.ndarray]:
    """Render a stream after a restart; ``values`` maps the first sample of a frame to its values."""
    chain.restart()
    for start in range(0, audio.shape[1], samples):
        frame = audio[:, start : start + samples]
        output = chain.render(frame, values(start))
        if output.shape != frame.shape:
            raise RenderError(f"a frame of shape {frame.shape} came back with shape {output.shape}")
        yield output


def _report_parameter(bench: _Bench, index: int, setting: np.ndarray | None, surprises: list[str]) -> ParameterReport:
    """Measure one parameter; ``setting`` is one of the others at which it is live, None if it is dead."""
    parameter, default = bench.spec.parameters[index], bench.defaults[index]
    places = {"low": 0.0, "high": 1.0, "below": max(default - STEP, 0.0), "above": min(default + STEP, 1.0)}
    outputs: dict[str, np.ndarray] = {}
    for place, position in places.items():
        try:
            outputs[place] = bench.output(bench.moved(index, position))
        except RenderError as error:
            if place in ("low", "high"):
                cause = error.__cause__
                fault = f"the chain fails ({cause})" if cause else "output not finite or far too loud"
                surprises.append(f"{fault} at the {place} end of {parameter.name}")

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
        **{name: getattr(parameter, name) for name in ("name", "unit", "low", "high", "default")},
        dead=setting is None,
        range_db=difference_db("low", "high"),
        default_db=difference_db("below", "above"),
        declared_glide_ms=parameter.smoothing_ms,
        glide_ms=glide_ms,
    )


def _measure_glide(bench: _Bench, index: int, setting: np.ndarray) -> float | None:
    """Return the smoothing time in ms, see :class:`ParameterReport`."""
    sample_rate, channels = bench.spec.sample_rate, bench.spec.channels
    sound = probe_signal(sample_rate, channels, 0.2)
    change = 8 * FRAME_SAMPLES
    low, high = (bench.values(bench.moved(index, end, setting)) for end in (0.0, 1.0))

    def output(before: np.ndarray, after: np.ndarray, delay: int) -> np.ndarray:
        audio = np.pad(sound, ((0, 0), (change + delay, 0)))
        frames = [*_frames(bench.chain, audio, lambda start: before if start < change else after)]
        return np.concatenate(frames, axis=1)[:, change + delay :]

    def has_arrived(delay_ms: float) -> bool:
        delay = round(delay_ms / 1000 * sample_rate)
        rest = output(low, high, delay) - output(high, high, delay)
        return bool(np.abs(rest).max() <= GLIDE_SHARE * whole)

    try:
        target = output(high, high, 0)
        whole = np.abs(output(low, low, 0) - target).max()
        if whole <= ROUNDING * np.abs(target).max():
            return None
        if has_arrived(0.0):
            return 0.0
        place = bisect.bisect_left(GLIDES_MS, True, key=has_arrived)
    except RenderError:
        return None
    return GLIDES_MS[place] if place < len(GLIDES_MS) else None


def _measure_latency(bench: _Bench) -> dict[str, Any]:
    samples = bench.spec.sample_rate
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (bench.spec.channels, samples)).astype(np.float32)
    output = bench.output(bench.defaults, noise)
    delay, is_inverted = measure_delay(noise, output) or (None, False)
    return {"latency_measured": delay, "inverted": is_inverted}


def _measure_repetition(bench: _Bench) -> dict[str, Any]:
    def rendered(chain: Chain, values: np.ndarray, samples: int = bench.audio.shape[1]) -> np.ndarray:
        return np.concatenate([*_frames(chain, bench.audio, lambda start: values, samples)], axis=1)

    def error(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a - b).max())

    frames = {FRAME_SAMPLES: 0.0, ODD_FRAME_SAMPLES: 0.0}
    for setting in bench.settings:
        values = bench.values(bench.working(setting))
        whole = rendered(bench.chain, values)
        for samples in frames:
            frames[samples] = max(frames[samples], error(rendered(bench.chain, values, samples), whole))

    new, other = (bench.spec.build().render(bench.audio, values) for _ in range(2))
    restart_error = error(rendered(bench.chain, values), new)
    return {"difference_of_instances": error(new, other), "restart_error": restart_error, "frame_errors": frames}


def _measure_cost(bench: _Bench) -> dict[str, Any]:
    frame = bench.audio[:, :FRAME_SAMPLES]
    near = np.where(bench.defaults > 0.5, bench.defaults - 0.01, bench.defaults + 0.01)
    values = itertools.cycle([bench.values(bench.defaults), bench.values(bench.working(near))])
    bench.chain.restart()
    seconds = float(np.median(timeit.repeat(lambda: bench.chain.render(frame, next(values)), number=1, repeat=40)))
    return {"frame_microseconds": 1e6 * seconds, "times_real_time": FRAME_SAMPLES / bench.spec.sample_rate / seconds}


def _check_read_back(bench: _Bench, reports: list[ParameterReport], surprises: list[str]) -> None:
    """Set all parameters to two values each, read them back, and add the result to the reports."""
    for share in (0.3, 0.8):
        values = bench.values(bench.working(np.full(len(reports), share)))
        bench.chain.render(bench.audio[:, :FRAME_SAMPLES], values)
        for report, value, reported in zip(reports, values, bench.chain.read_values()):
            if not np.isnan(reported) and report.reads_back is not False:
                # The texts of plugins are rounded.
                report.reads_back = bool(abs(reported - value) <= 1e-3 * (report.high - report.low))
                if not report.reads_back:
                    surprises.append(f"{report.name} was set to {value:g} but reads back {reported:g}")


def _level_db(audio: np.ndarray, reference: np.ndarray) -> float | None:
    """Return the level of audio relative to other audio; None if one of them is silent."""
    power, reference_power = (float(np.square(a, dtype=np.float64).mean()) for a in (audio, reference))
    return 10 * float(np.log10(power / reference_power)) if power and reference_power else None


def as_text(report: ProbeReport) -> str:
    """Return a report as a table of the parameters, a few lines on the chain, and its surprises."""
    rows = [["parameter", "unit", "low", "high", "default", "range dB", "default dB", "reads back", "glide ms"]]
    for p in report.parameters:
        effect = ["dead", ""] if p.dead else [_cell(p.range_db, ".1f"), _cell(p.default_db, ".1f")]
        reads_back = {True: "yes", False: "no", None: "-"}[p.reads_back]
        numbers = [f"{number:.6g}" for number in (p.low, p.high, p.default)]
        rows.append([printable(p.name), printable(p.unit), *numbers, *effect, reads_back, _cell(p.glide_ms, ".3g")])
    frames = "".join(f", {error:.2g} in frames of {samples}" for samples, error in report.frame_errors.items())
    lines = [
        f"{' > '.join(report.effects)} at {report.sample_rate} Hz, channels: {report.channels}",
        "",
        tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=("left", "left", *["right"] * 7)),
        "",
        f"latency      {report.latency_reported} samples, measured {_cell(report.latency_measured, 'd')}",
        f"level        {_cell(report.level_db, '+.1f')} dB at the defaults",
        f"differences  {report.difference_of_instances:.2g} between new instances, "
        f"{report.restart_error:.2g} after a restart{frames}",
        f"cost         {report.frame_microseconds:.0f} us for a frame of {FRAME_SAMPLES}, "
        f"{report.times_real_time:.0f} times real time",
        "",
        *([f"! {printable(surprise)}" for surprise in report.surprises] or ["no surprises"]),
    ]
    return "\n".join(lines)


def _cell(number: float | None, form: str) -> str:
    return "-" if number is None else format(number, form)


def list_effects() -> dict[str, str]:
    """Return the effects of all hosts, as a config names them, with the plugin's own name or the path of its file.

    Plugins are found but not loaded, so some may turn out to be instruments. The classes of the host ``python`` are
    not listed. Without liblilv, LV2 is left out, and a line on standard error says so. Call this on the main thread.
    """
    # Imported here: a probe needs one host only.
    from dfx.effects import lv2, pedalboard, vst3

    effects = {f"pedalboard:{name}": "built in" for name in sorted(pedalboard.EFFECTS)}
    try:
        effects |= {f"lv2:{uri}": name for uri, name in sorted(lv2.list_plugins().items())}
    except EffectError as error:
        print(f"LV2 plugins are not listed: {error}", file=sys.stderr)
    for name, path in sorted(vst3.installed().items()):
        effects[f"{'vst3' if path.endswith('.vst3') else 'au'}:{name}"] = path
    return effects


def _print_effects(as_json: bool) -> None:
    effects = list_effects()
    if as_json:
        print(json.dumps(effects))
        return
    rows = [[printable(effect), printable(name)] for effect, name in effects.items()]
    print(tabulate(rows, tablefmt="plain", disable_numparse=True))
    counts = Counter(effect.partition(":")[0] for effect in effects)
    print(f"\n{', '.join(f'{host} {count}' for host, count in counts.items())}")


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        UserError: if the chain cannot be built or probed.
    """
    description = "Measure how an effect or a chain behaves, or list the effects that are installed."
    parser = ArgumentParser(prog="python -m dfx.effects.probe", description=description)
    help = "host:effect, for instance pedalboard:Compressor, or the path of a config"
    parser.add_argument("spec", nargs="?", help=help)
    parser.add_argument("--list", action="store_true", help="list the built-in effects and the installed plugins")
    parser.add_argument("--sample-rate", type=Range(SAMPLE_RATES).parse, help="in Hz (default: the config's, or 44100)")
    parser.add_argument(
        "--channels", type=Range(CHANNELS).parse, help="number of channels (default: the config's, or 1)"
    )
    parser.add_argument(
        "--seconds", type=Range("[0.1, 600]").parse, default=2.0, help="length of the probe signal (default: 2)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    options = parser.parse_args(args)
    if options.list:
        _print_effects(options.json)
        return
    if options.spec is None:
        parser.error("name an effect or a config, or give --list")
    report = probe(load_chain(options.spec, options.sample_rate, options.channels), options.seconds)
    print(json.dumps(dataclasses.asdict(report), allow_nan=False) if options.json else as_text(report))


if __name__ == "__main__":
    with errors_in_one_line():
        main()
