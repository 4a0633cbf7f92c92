"""Rendering a recording of any length through a model, at its own rate and channels, in bounded memory.

The encoder takes the recording at the model's rate and channels, treated as the task treats its audio. The effects
render the recording at its own rate. Both get the treatment: a gate must not react to rumble that it was trained
without, and a compressor's threshold belongs to the level that it was trained at. The output keeps that level, as the
targets of training had it: a master is as loud as masters are, whatever the mix. ``own_level`` undoes the treatment's
gain instead, and ``loudness`` brings the output to a stated loudness by one gain after the chain.

:mod:`dfx.render.interpolation` decides how parameters move between frames. Without look-ahead (``causal``), a frame's
context ends where the frame begins, the high-pass runs forwards twice, which has the same magnitude but a phase, and
loudness is that of the samples so far. The latency of the effects is compensated, except by ``published``.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy
from tqdm import tqdm

from dfx.audio.reading import Recording, Stream, stream_array
from dfx.datasets.treatment import Treatment
from dfx.effects import Chain, ChainSpec, EffectError, EffectSpec, Trained
from dfx.errors import COUNTS, DataError, UserError, check_numbers, nearest
from dfx.render.automation import INTERPOLATIONS, Automation, Interpolation
from dfx.render.interpolation import CURVES, Curve
from dfx.render.levelling import HeldAudio
from dfx.render.prediction import (
    ContextReader,
    Predictor,
    check_samples,
    filtered_stream,
    measure_gain,
    predict_frames,
    prefetch,
)

if TYPE_CHECKING:
    from dfx.render.refinement import Refinement

_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} {unit} [{elapsed}<{remaining}]"


@dataclass(frozen=True)
class StreamingOptions:
    """How to render a recording.

    Args:
        interpolation: how parameters move between frames.
        causal: without look-ahead.
        own_level: undo the treatment's gain in the output.
        loudness: the integrated loudness (ITU-R BS.1770) of the output, in LUFS, by one gain after the chain; silence
            stays as it is. None applies no gain.
        treated: the recording is treated already.
        chunk_samples: samples rendered at once, which bounds the memory and does not change the output.

    Raises:
        UserError: for a number out of its range, an unknown interpolation, ``published`` without look-ahead, or
            ``own_level`` with a ``loudness``.
    """

    interpolation: Interpolation = "linear"
    causal: bool = False
    own_level: bool = False
    loudness: float | None = None
    treated: bool = False
    chunk_samples: int = 2**17

    def __post_init__(self) -> None:
        check_numbers(vars(self), chunk_samples=COUNTS, loudness="(-70, 0]")
        if self.interpolation not in INTERPOLATIONS:
            known = nearest(self.interpolation, INTERPOLATIONS)
            raise UserError(f"there is no interpolation '{self.interpolation}'{known}")
        if self.causal and self.interpolation == "published":
            raise UserError("interpolation 'published' looks ahead: render with 'hold' or 'linear', or not causally")
        if self.own_level and self.loudness is not None:
            raise UserError("the input's own level and a loudness exclude each other: choose one for the output")


@dataclass
class Rendering:
    """A recording that a model has rendered.

    Args:
        audio: float32, of the input's shape; aligned with it, except by the interpolation ``published``.
        sample_rate: in Hz.
        automation: the parameters over time.
        refinement: what a search for a target has brought, or None.
    """

    audio: np.ndarray
    sample_rate: int
    automation: Automation
    refinement: Refinement | None = None


def render_array(
    model: Predictor,
    audio: np.ndarray,
    sample_rate: int,
    options: StreamingOptions = StreamingOptions(),
    progress: bool = False,
) -> Rendering:
    """Render a recording in memory, ``(channels, samples)``; see :func:`render_stream`."""
    parts: list[np.ndarray] = []
    automation = render_stream(model, lambda: stream_array(audio, sample_rate), parts.append, options, progress)
    return Rendering(np.concatenate(parts, axis=1), sample_rate, automation)


def render_stream(
    model: Predictor,
    open_stream: Callable[[], Stream],
    write: Callable[[np.ndarray], None],
    options: StreamingOptions = StreamingOptions(),
    progress: bool = False,
) -> Automation:
    """Render a recording from a fresh start.

    Args:
        model: a task in evaluation mode.
        open_stream: opens the recording at its beginning; called two to five times, for streams that are read
            simultaneously.
        write: receives the output in parts, float32 ``(channels, samples)``, in all as long as the recording.
        options: how to render.
        progress: show a bar on stderr.

    Returns:
        The automation, in the recording's time.

    Raises:
        UserError: if the recording cannot be decoded or holds samples that are not finite, if the chain cannot run at
            its rate, or if an effect fails.
    """
    if options.loudness is None:
        return _render_through(model, open_stream, write, options, progress)
    with contextlib.closing(open_stream()) as stream:
        sample_rate = stream.sample_rate
    with HeldAudio(sample_rate) as held:
        automation = _render_through(model, open_stream, held.write, options, progress)
        automation.output_gain_db = held.release(write, options.loudness)
    return automation


def _render_through(
    model: Predictor,
    open_stream: Callable[[], Stream],
    write: Callable[[np.ndarray], None],
    options: StreamingOptions,
    progress: bool,
) -> Automation:
    """Render a recording at the level that the chain gives it."""
    treatment = Treatment() if options.treated else model.treatment
    causal, is_levelled = options.causal, treatment.input_lufs is not None
    with contextlib.ExitStack() as stack:

        def open_recording() -> Recording:
            stream = open_stream()
            process = [_forward_highpass(treatment, stream)] if causal and treatment.highpass_hz is not None else []
            return stack.enter_context(Recording(stream, *process))

        def open_reader(measures: bool = False) -> ContextReader:
            return ContextReader(model, open_recording(), treatment, causal, measures)

        recording = open_recording()
        name = Path(recording.path).name
        bar = tqdm(total=recording.seconds, desc=name, unit="s of audio", bar_format=_BAR, disable=not progress)
        stack.enter_context(bar)
        spec = chain_at_rate(model, recording.sample_rate, recording.channels, recording.path)
        chains = [spec.build() for _ in range(recording.channels // spec.channels)]
        latency = 0 if options.interpolation == "published" else chains[0].latency_samples
        gain_db = 0.0
        if is_levelled and not causal:
            gain_db = measure_gain(open_reader(measures=True), treatment)
        else:
            with contextlib.closing(open_stream()) as stream:
                check_samples(stream)
        reader, meter = open_reader(), open_reader(measures=True) if is_levelled and causal else None
        # As in training, a held frame may begin after the recording's end and before that of the delayed output.
        samples = recording.samples + (latency if options.interpolation == "hold" else 0)
        frames = -(-samples * reader.sample_rate // (recording.sample_rate * reader.frame_samples))
        batches = prefetch(predict_frames(reader, treatment, range(frames), meter, gain_db))
        stack.enter_context(contextlib.closing(batches))
        samples = recording.samples + latency
        curve = CURVES[options.interpolation](batches, frames, model, recording.sample_rate, samples, causal)
        if not causal and treatment.highpass_hz is not None:
            whole = recording.sample_rate, recording.channels
            recording = Recording(filtered_stream(recording, treatment, *whole))
        for output in _render_chunks(recording, chains, curve, options):
            write(output)
            # Rounding may lead beyond the total, of which tqdm warns.
            bar.update(min(output.shape[1] / recording.sample_rate, bar.total - bar.n))
        if cancellation := reader.recording.cancellation:
            warnings.warn(cancellation, stacklevel=2)
        automation = curve.automation()
        if options.own_level:
            automation.output_gain_db = -float(np.median(automation.input_gains_db))
        return automation


def chain_at_rate(model: Predictor, sample_rate: int, channels: int, name: str = "the audio") -> ChainSpec:
    """Return the model's chain for the rate and channels of the recording ``name``, with the ranges of training.

    One chain renders one or two channels, or as many as the model has. Otherwise every channel is rendered by a
    separate chain, all with the same automation.

    Raises:
        DataError: if the chain cannot run there.
    """
    trained = model.chain
    channels = channels if channels in (1, 2, trained.channels) else 1
    if (sample_rate, channels) == (trained.sample_rate, trained.channels):
        return trained
    specs = []
    for spec, recipe in zip(trained.effects, trained.recipes):
        train: dict = {p.name: Trained((p.low, p.high), p.scale, p.default) for p in recipe.parameters}
        specs.append(EffectSpec(spec.effect, recipe.name, train, spec.fixed))
    try:
        return ChainSpec(specs, sample_rate, channels)
    except EffectError as error:
        several = f", {channels} channels at once" if channels > 1 else ""
        fault = f"cannot run at the {sample_rate} Hz of {name}{several}: {error}"
        raise DataError(f"the chain was trained at {trained.sample_rate} Hz and {fault}") from None


def _render_chunks(
    recording: Recording, chains: Sequence[Chain], curve: Curve, options: StreamingOptions
) -> Iterator[np.ndarray]:
    width, latency = recording.channels // len(chains), curve.samples - recording.samples
    cells, chunk = math.ceil(curve.samples / curve.grid), max(1, int(options.chunk_samples / curve.grid))
    for first in range(0, cells, chunk):
        last = min(first + chunk, cells)
        start, stop = curve.edges([first, last]).tolist()
        curve.load(stop + math.ceil(curve.grid))
        audio = recording.read(start, stop - start, recording.sample_rate, recording.channels)
        input = audio.numpy() * curve.gains(start, stop)
        edges, parameters = curve.blocks(first, last)
        output = np.empty_like(input)
        for begin, end, values in zip(edges - start, edges[1:] - start, curve.space.denormalize(parameters)):
            for index, chain in enumerate(chains):
                part = slice(index * width, (index + 1) * width), slice(begin, end)
                output[part] = chain.render(np.ascontiguousarray(input[part]), values)
        output = output[:, max(0, latency - start) :]
        if options.own_level:
            output = output / curve.gains(stop - latency - output.shape[1], stop - latency)
        yield output


def _forward_highpass(treatment: Treatment, stream: Stream) -> Callable[[np.ndarray], np.ndarray]:
    """A treatment's high-pass without look-ahead: forwards twice instead of forwards and backwards."""
    sections = np.tile(treatment.sections(stream.sample_rate), (2, 1))
    state = np.zeros((len(sections), stream.channels, 2))

    def filter_part(audio: np.ndarray) -> np.ndarray:
        nonlocal state
        filtered, state = scipy.signal.sosfilt(sections, audio.astype(np.float64), zi=state)
        return filtered.astype(np.float32)

    return filter_part
