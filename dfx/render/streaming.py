"""A recording of any length through a model, at the recording's own rate and channels, in bounded memory.

The encoder hears what it heard in training: the recording at the model's rate and channels, treated as the task
treats its audio. The effects render the recording itself, at its own rate. Treatments are done to both: a gate
must not hear thuds that it was trained without, and a compressor's threshold belongs to the level that
it was trained at. The level is that of the chain's output, as the targets of training had theirs: a master comes out
as loud as masters are, whatever the mix. ``own_level`` undoes the treatment's gain instead.

Parameters belong to the middle of their frames, and in between they move on straight lines in [0, 1]. Without
look-ahead (``causal``), a frame's context ends where the frame begins, and the frame moves to what was heard
there; the high-pass runs forwards only, twice, and so has the same magnitude but a phase; loudness is that of what has
been heard so far; all else is the same. Only the effects' own delay is made up for, in both forms.

Effects take new values at the beginning of a block. Where parameters rest, blocks are long; where they move, so short
that no step can be heard as one. The blocks lie on a grid, so that the output does not depend on the chunks.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.signal
import torch
from torch import Tensor
from tqdm import tqdm

from dfx.audio.loudness import SILENCE_LUFS, Loudness
from dfx.audio.reading import SINC_ZEROS, Recording, Stream
from dfx.datasets import Treatment
from dfx.effects import Chain, ChainSpec, EffectError, EffectSpec, ParameterSpace, Trained
from dfx.errors import DataError
from dfx.render.automation import Automation
from dfx.tasks import Task

CHUNK_SAMPLES = 2**17
"""How much of a recording is rendered at once: what bounds the memory."""

_HEARD_SAMPLES = 2**19
_FRAMES = 32
"""How much the encoder hears at once, at most."""

_FILTERED_SAMPLES = 2**16
"""How much is filtered at once."""

_LONGEST_BLOCK, _SHORTEST_BLOCK = 1024, 16
_STEP = 1 / 1000
"""How far parameters in [0, 1] may step between blocks, where those are not the shortest."""


@dataclass(frozen=True)
class StreamingOptions:
    """How a recording is rendered.

    Args:
        causal: parameters do not look ahead.
        own_level: the treatment's gain is undone in the output.
        chunk_samples: how much is rendered at once.
    """

    causal: bool = False
    own_level: bool = False
    chunk_samples: int = CHUNK_SAMPLES


def render_stream(
    task: Task,
    open_stream: Callable[[], Stream],
    write: Callable[[np.ndarray], None],
    options: StreamingOptions = StreamingOptions(),
    progress: bool = False,
) -> Automation:
    """Renders a recording from a fresh start.

    Args:
        task: the model, set to evaluation.
        open_stream: the recording, from its beginning with every call: it is read twice or three times, side by side.
        write: takes the output, part by part, float32 ``(channels, samples)``, as long as the recording in all and
            aligned with it.
        options: how.
        progress: show a bar on stderr.

    Returns:
        The automation, in the recording's time.

    Raises:
        UserError: if the recording cannot be decoded or holds samples that are not finite, if the chain cannot run at
            its rate, or if an effect fails.
    """
    with contextlib.ExitStack() as stack:

        def record(filtered: bool = True) -> Recording:
            stream = open_stream()
            causal = options.causal and filtered and task.treatment.highpass_hz is not None
            process = [_ForwardHighpass(task.treatment, stream.sample_rate, stream.channels)] if causal else []
            return stack.enter_context(Recording(stream, *process))

        recording = record()
        bar = stack.enter_context(_bar(recording, progress))
        chains = _build_chains(task, recording)
        # Also where no loudness is needed: better now than after an hour.
        whole = open_stream()
        must_be_heard = whole.is_float or (task.treatment.input_lufs is not None and not options.causal)
        whole.close()
        gain_db = _hear_whole(_Listener(task, record(), options.causal)) if must_be_heard else 0.0
        listener = _Listener(task, record(), options.causal)
        meter = _Listener(task, record(), True) if options.causal and task.treatment.input_lufs is not None else None
        batches = stack.enter_context(_ahead(_hear(task, listener, meter, 0.0 if options.causal else gain_db)))
        curve = _Curve(recording, task, options.causal, batches)
        _render(task, recording, chains, curve, write, options, bar)
        return curve.automation()


def together(channels: int) -> int:
    """How many channels one chain renders: two, or of more, one, each by a chain with the same automation."""
    return channels if channels <= 2 else 1


def native_chain(task: Task, sample_rate: int, channels: int, name: str = "the audio") -> ChainSpec:
    """The chain of a task at another rate, with the ranges that it was trained in.

    Raises:
        DataError: if it cannot run there.
    """
    specs = [
        EffectSpec(
            spec.effect,
            recipe.name,
            {p.name: Trained((p.low, p.high), p.scale, p.default) for p in recipe.parameters},
            spec.fixed,
        )
        for spec, recipe in zip(task.chain.effects, task.chain.recipes)
    ]
    try:
        return ChainSpec(specs, sample_rate, channels)
    except EffectError as error:
        raise DataError(
            f"the chain was trained at {task.chain.sample_rate} Hz and cannot run at the {sample_rate} Hz of {name}, "
            f"{channels} channels at once: {error}"
        ) from None


def _build_chains(task: Task, recording: Recording) -> list[Chain]:
    count = together(recording.channels)
    spec = native_chain(task, recording.sample_rate, count, recording.path)
    return [spec.build() for _ in range(recording.channels // count)]


@contextlib.contextmanager
def _bar(recording: Recording, progress: bool) -> Iterator[tqdm]:
    form = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]"
    with tqdm(total=recording.seconds, desc=recording.path, bar_format=form, disable=not progress) as bar:
        yield bar


# --- what the encoder hears --------------------------------------------------------------------------


class _ForwardHighpass:
    """A treatment's high-pass without look-ahead: forwards twice, for forwards and backwards."""

    def __init__(self, treatment: Treatment, sample_rate: int, channels: int) -> None:
        sections = treatment.sections(sample_rate)
        self._sections = np.concatenate([sections, sections])
        self._state = np.zeros((len(self._sections), channels, 2))

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        filtered, self._state = scipy.signal.sosfilt(self._sections, audio.astype(np.float64), zi=self._state)
        return filtered.astype(np.float32)


class _Listener:
    """A recording as the encoder hears it, but for its level: at the model's rate and channels, and filtered.

    Args:
        task: whose encoder it is.
        recording: what is heard; where ``causal``, it is filtered already.
        causal: no sample is heard before it has come.
    """

    def __init__(self, task: Task, recording: Recording, causal: bool) -> None:
        self.sample_rate = task.chain.sample_rate
        self.samples = recording.samples_at(self.sample_rate)
        self._recording = recording
        self._treatment = Treatment() if causal else task.treatment
        self._channels = task.chain.channels
        self._read_channels = self._channels if recording.channels in (1, self._channels) else 1
        window = task.window
        self.frame_samples, self.context_samples = window.frame_samples, window.context_samples
        self.frames = max(1, -(-self.samples // self.frame_samples))
        # What a sample at the model's rate holds of later ones at the recording's.
        resampled = recording.sample_rate != self.sample_rate
        reach = math.ceil(SINC_ZEROS / 0.9 * max(1.0, self.sample_rate / recording.sample_rate)) + 2
        self.lag = reach if causal and resampled else 0
        behind = self.context_samples + self.lag if causal else (self.context_samples - self.frame_samples) // 2
        self._lead = behind

    def contexts(self, first: int, count: int) -> Tensor:
        """Of consecutive frames, ``(channels, context_samples + (count - 1) * frame_samples)``."""
        start = first * self.frame_samples - self._lead
        return self.read(start, self.context_samples + (count - 1) * self.frame_samples)

    def read(self, start: int, samples: int) -> Tensor:
        audio = self._treatment.read_filtered(self._recording, start, samples, self.sample_rate, self._read_channels)
        return audio.expand(self._channels, -1)


def _hear_whole(listener: _Listener) -> float:
    """Hears all once: for its loudness, and for what is not a number. The gain in dB that the treatment wants."""
    treatment = listener._treatment
    loudness = Loudness(listener.sample_rate)
    for start in range(0, listener.samples, _HEARD_SAMPLES):
        audio = listener.read(start, min(_HEARD_SAMPLES, listener.samples - start))
        if treatment.input_lufs is not None:
            loudness.add(audio)
    return _gain_db(treatment, loudness)


def _gain_db(treatment: Treatment, loudness: Loudness) -> float:
    if treatment.input_lufs is None:
        return 0.0
    heard = loudness.integrated()
    return treatment.input_lufs - heard if heard > SILENCE_LUFS else 0.0


class _Batch(NamedTuple):
    """Consecutive frames: parameters ``(frames, P)`` and the gains of the treatment in dB ``(frames,)``."""

    parameters: np.ndarray
    gains_db: np.ndarray


def _hear(task: Task, listener: _Listener, meter: _Listener | None, gain_db: float) -> Iterator[_Batch]:
    """All frames in order; the gain is that of what ``meter`` has heard, if there is one."""
    loudness = Loudness(listener.sample_rate)
    frame, context = listener.frame_samples, listener.context_samples
    at_once = max(1, min(_FRAMES, (_HEARD_SAMPLES - context) // frame + 1))
    for first in range(0, listener.frames, at_once):
        count = min(at_once, listener.frames - first)
        contexts = listener.contexts(first, count)
        gains_db = np.full(count, gain_db)
        if meter is not None:
            for index in range(count):
                start = max(0, (first + index - 1) * frame - meter.lag)
                stop = (first + index) * frame - meter.lag
                if stop > start:
                    loudness.add(meter.read(start, stop - start))
                gains_db[index] = _gain_db(task.treatment, loudness)
            gains = torch.from_numpy(10 ** (gains_db / 20)).float()
            contexts = contexts.unfold(1, context, frame).transpose(0, 1) * gains[:, None, None]
        else:
            contexts = contexts[None] * 10 ** (gain_db / 20)
        with torch.no_grad():
            parameters = task.encode(contexts.to(task.device)).flatten(0, 1).cpu()
        yield _Batch(parameters.double().numpy(), gains_db)


@contextlib.contextmanager
def _ahead(batches: Iterator[_Batch]) -> Iterator[Iterator[_Batch]]:
    """The same, each made in another thread while the one before is used."""
    with ThreadPoolExecutor(1, "listener") as pool:

        def each() -> Iterator[_Batch]:
            coming = pool.submit(next, batches, None)
            while (batch := coming.result()) is not None:
                coming = pool.submit(next, batches, None)
                yield batch

        yield each()


class _Curve:
    """Parameters and gains over the recording's samples, straight between the points of frames, as far as known.

    Args:
        recording: whose samples count.
        task: whose frames these are.
        causal: a frame's point is its end, and not its middle: what it moves to was heard at its beginning.
        batches: the frames.
    """

    def __init__(self, recording: Recording, task: Task, causal: bool, batches: Iterator[_Batch]) -> None:
        self._space: ParameterSpace = task.chain.space
        self._sample_rate = recording.sample_rate
        self.step = task.window.frame_samples * recording.sample_rate / task.chain.sample_rate
        self.offset = 1.0 if causal else 0.5
        self._batches = batches
        self._known: list[_Batch] = []
        self._parameters = np.zeros((0, len(self._space)))
        self._gains_db = np.zeros(0)
        self._first = 0
        self._ended = False

    def reach(self, start: int, stop: int) -> None:
        """From now on the points around these samples are at hand, and none before."""
        needed = stop / self.step - self.offset
        while not self._ended and self._first + len(self._gains_db) - 1 < needed:
            batch = next(self._batches, None)
            if batch is None:
                self._ended = True
                break
            self._known.append(batch)
            unneeded = min(max(0, int(start / self.step - self.offset) - self._first), len(self._gains_db))
            self._parameters = np.concatenate([self._parameters[unneeded:], batch.parameters])
            self._gains_db = np.concatenate([self._gains_db[unneeded:], batch.gains_db])
            self._first += unneeded

    def parameters(self, samples: np.ndarray) -> np.ndarray:
        """In [0, 1], ``(len(samples), P)``."""
        return self._between(self._parameters, samples)

    def gains_db(self, samples: np.ndarray) -> np.ndarray:
        """``(len(samples),)``."""
        return self._between(self._gains_db, samples)

    @property
    def gain_is_constant(self) -> bool:
        return bool(np.ptp(self._gains_db) == 0)

    def slope(self, start: int, stop: int) -> float:
        """The most that any parameter moves a sample."""
        places = np.array([start, stop]) / self.step - self.offset - self._first
        first, last = np.clip([math.floor(places[0]), math.ceil(places[1])], 0, len(self._parameters) - 1)
        moves = np.abs(np.diff(self._parameters[first : last + 1], axis=0))
        return float(moves.max()) / self.step if moves.size else 0.0

    def automation(self) -> Automation:
        parameters = np.concatenate([batch.parameters for batch in self._known])
        times = (np.arange(len(parameters)) + self.offset) * self.step / self._sample_rate
        gains_db = np.concatenate([batch.gains_db for batch in self._known])
        return Automation(self._space, times, parameters, gains_db)

    def _between(self, points: np.ndarray, samples: np.ndarray) -> np.ndarray:
        places = np.clip(samples / self.step - self.offset - self._first, 0, len(points) - 1)
        lower = np.minimum(places.astype(int), max(0, len(points) - 2))
        upper = np.minimum(lower + 1, len(points) - 1)
        share = (places - lower).reshape(-1, *[1] * (points.ndim - 1))
        return points[lower] + share * (points[upper] - points[lower])


# --- what the effects render -------------------------------------------------------------------------


def _render(
    task: Task,
    recording: Recording,
    chains: Sequence[Chain],
    curve: _Curve,
    write: Callable[[np.ndarray], None],
    options: StreamingOptions,
    bar: tqdm,
) -> None:
    if not options.causal and task.treatment.highpass_hz is not None:
        recording = Recording(_filtered(recording, task.treatment))
    latency = chains[0].latency_samples
    # Hosts render no block faster than the first: where the parameters still rest, it is the longest.
    rest = max(_SHORTEST_BLOCK, int(curve.offset * curve.step))
    longest = min(_LONGEST_BLOCK, 2 ** int(math.log2(rest)))
    chunk = max(1, options.chunk_samples // longest) * longest
    for start in range(0, recording.samples + latency, chunk):
        stop = min(start + chunk, recording.samples + latency)
        curve.reach(max(0, start - latency), stop + longest)
        audio = recording.read(start, stop - start, recording.sample_rate, recording.channels)
        heard = np.ascontiguousarray(audio.numpy() * _gains(curve, start, stop))
        edges = _edges(curve, start, stop, longest)
        at = edges[:-1] if options.causal else (edges[:-1] + edges[1:]) / 2
        values = task.chain.space.denormalize(curve.parameters(at))
        output = np.empty_like(heard)
        width = recording.channels // len(chains)
        for (first, last), of_block in zip(zip(edges[:-1] - start, edges[1:] - start), values):
            for index, chain in enumerate(chains):
                part = slice(index * width, (index + 1) * width)
                output[part, first:last] = chain.render(np.ascontiguousarray(heard[part, first:last]), of_block)
        output = output[:, max(0, latency - start) :]
        if options.own_level:
            end = stop - latency
            output = output / _gains(curve, end - output.shape[1], end)
        if output.shape[1]:
            write(output)
        bar.update((min(stop, recording.samples) - min(start, recording.samples)) / recording.sample_rate)


def _filtered(recording: Recording, treatment: Treatment) -> Stream:
    """The recording after the treatment's high-pass, at its own rate.

    In pieces of one length, whatever is asked for: an effect can make much of what is lost in rounding.
    """
    position, rate, channels = 0, recording.sample_rate, recording.channels
    ready = np.zeros((channels, 0), dtype=np.float32)

    def read(samples: int) -> np.ndarray:
        nonlocal position, ready
        while ready.shape[1] < samples:
            piece = min(_FILTERED_SAMPLES, recording.samples - position)
            audio = treatment.read_filtered(recording, position, piece, rate, channels).numpy()
            ready = np.concatenate([ready, audio], axis=1)
            position += piece
        audio, ready = np.split(ready, [samples], axis=1)
        return audio

    return Stream(recording.path, rate, channels, recording.samples, read)


def _gains(curve: _Curve, start: int, stop: int) -> np.ndarray:
    """The treatment's gain, float32, one for all or one a sample."""
    samples = np.array([start]) if curve.gain_is_constant else np.arange(start, stop)
    return (10 ** (curve.gains_db(samples) / 20)).astype(np.float32)


def _edges(curve: _Curve, start: int, stop: int, longest: int) -> np.ndarray:
    """Where blocks begin and end: on a grid of ``longest``, halved as often as parameters move too far in one."""
    edges = []
    for block in range(start, stop, longest):
        slope = curve.slope(block, block + longest) if block else 0.0
        size = longest
        while size > _SHORTEST_BLOCK and slope * size > _STEP:
            size //= 2
        edges.append(np.arange(block, min(block + longest, stop), size))
    return np.append(np.concatenate(edges), stop)
