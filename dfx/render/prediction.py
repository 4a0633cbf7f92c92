"""Parameters of a recording, frame by frame, from audio as the encoder took it in training.

:mod:`dfx.render.streaming` describes this audio, also for rendering without look-ahead (``causal``).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from dfx.audio.levels import db_to_amplitude
from dfx.audio.loudness import Loudness
from dfx.audio.reading import FLOAT_SUBTYPES, Recording, Stream
from dfx.audio.resampling import SINC_ZEROS
from dfx.datasets.frames import Window
from dfx.datasets.treatment import Treatment
from dfx.effects import ChainSpec
from dfx.errors import UserError

_SAMPLES_AT_ONCE = 2**19
_FRAMES_AT_ONCE = 32
"""Bounds of the audio and of the frames that are encoded at once."""
_PIECE_SAMPLES = 2**16
"""Samples that are resampled and filtered at once."""


class Predictor(Protocol):
    """The part of a task that rendering needs: an encoder, its chain, and the form of its audio."""

    chain: ChainSpec
    window: Window
    treatment: Treatment

    @property
    def device(self) -> torch.device: ...

    def eval(self) -> Predictor: ...

    def encode(self, context: Tensor) -> Tensor: ...


@runtime_checkable
class TakesReference(Protocol):
    """A predictor whose parameters also follow from a reference."""

    def set_reference(self, audio: Tensor) -> None: ...


class Frames(NamedTuple):
    """Consecutive frames: parameters ``(frames, P)`` in [0, 1] and gains of the treatment in dB ``(frames,)``."""

    parameters: np.ndarray
    gains_db: np.ndarray


class ContextReader:
    """Reads the contexts of a recording's frames, at the model's rate and channels, filtered but at the file's level.

    Windows must not begin before earlier ones.

    Args:
        model: whose contexts these are.
        recording: the audio; already filtered if ``causal``.
        treatment: of the audio.
        causal: return no sample that depends on one of the recording later than the requested window.
        measures: read all channels of which the model takes the mean, for :func:`measure_gain`.
    """

    def __init__(
        self, model: Predictor, recording: Recording, treatment: Treatment, causal: bool, measures: bool = False
    ) -> None:
        self.model, self.sample_rate = model, model.chain.sample_rate
        self.path, self.samples = recording.path, recording.samples_at(self.sample_rate)
        self.frame_samples, self.context_samples = model.window.frame_samples, model.window.context_samples
        self._channels = channels = model.chain.channels
        self._read_channels = channels if recording.channels in (1, channels) else 1
        if measures and self._read_channels == 1:
            self._channels = self._read_channels = recording.channels
        self.recording = recording
        filters = Treatment() if causal else treatment
        # Contexts overlap: a stream resamples and filters every sample once.
        self._audio = Recording(filtered_stream(recording, filters, self.sample_rate, self._read_channels))
        # Resampling by a sinc spreads a later sample of the recording over this many at the model's rate.
        spread = math.ceil(SINC_ZEROS / 0.9 * max(1.0, self.sample_rate / recording.sample_rate)) + 2
        self.delay = spread if causal and recording.sample_rate != self.sample_rate else 0
        centred = (self.context_samples - self.frame_samples) // 2
        self._lead = self.context_samples + self.delay if causal else centred

    def contexts(self, first: int, count: int) -> Tensor:
        """Read consecutive frames' contexts, ``(channels, context_samples + (count - 1) * frame_samples)``."""
        start = first * self.frame_samples - self._lead
        return self.read(start, self.context_samples + (count - 1) * self.frame_samples)

    def read(self, start: int, samples: int) -> Tensor:
        """Read a window ``(channels, samples)`` at the model's rate."""
        return self._audio.read(start, samples, self.sample_rate, self._read_channels).expand(self._channels, -1)


def filtered_stream(recording: Recording, treatment: Treatment, sample_rate: int, channels: int) -> Stream:
    """Resample a recording and filter it with the treatment's high-pass.

    Pieces have one length, however much is read at once, because an effect may amplify differences of rounding.
    """
    samples, position = recording.samples_at(sample_rate), 0
    ready = np.zeros((channels, 0), dtype=np.float32)

    def read(count: int) -> np.ndarray:
        nonlocal position, ready
        parts = [ready]
        while sum(part.shape[1] for part in parts) < count:
            piece = min(_PIECE_SAMPLES, samples - position)
            parts.append(treatment.read_filtered(recording, position, piece, sample_rate, channels).numpy())
            position += piece
        audio, ready = np.split(np.concatenate(parts, axis=1), [count], axis=1)
        return audio

    return Stream(recording.path, sample_rate, channels, samples, read)


def check_samples(stream: Stream) -> None:
    """Read a stream once: a sample that is not finite is a ``DataError`` now, instead of after an hour."""
    if stream.subtype not in FLOAT_SUBTYPES:
        return
    recording = Recording(stream)
    for start in range(0, stream.samples, _PIECE_SAMPLES):
        samples = min(_PIECE_SAMPLES, stream.samples - start)
        recording.read(start, samples, stream.sample_rate, stream.channels)


def measure_gain(reader: ContextReader, treatment: Treatment) -> float:
    """Read a recording once and return the treatment's gain in dB; a sample that is not finite is a ``DataError``."""
    loudness = Loudness(reader.sample_rate)
    for start in range(0, reader.samples, _SAMPLES_AT_ONCE):
        loudness.add(reader.read(start, min(_SAMPLES_AT_ONCE, reader.samples - start)))
    return treatment.gain_db(loudness.integrated())


def predict_frames(
    reader: ContextReader, treatment: Treatment, frames: range, meter: ContextReader | None, gain_db: float
) -> Iterator[Frames]:
    """Predict consecutive frames; with a meter, from the first on.

    The treatment's gain is ``gain_db``, or with a ``meter`` that of the loudness of the samples before each frame.

    Raises:
        UserError: if the encoder returns parameters that are not finite.
    """
    loudness = Loudness(reader.sample_rate)
    frame, context = reader.frame_samples, reader.context_samples
    at_once = max(1, min(_FRAMES_AT_ONCE, (_SAMPLES_AT_ONCE - context) // frame + 1))
    for first in frames[::at_once]:
        count = min(at_once, frames.stop - first)
        contexts = reader.contexts(first, count)
        gains_db = np.full(count, gain_db)
        if meter is not None:
            for index in range(count):
                stop = (first + index) * frame - meter.delay
                start = max(0, stop - frame)
                if stop > start:
                    loudness.add(meter.read(start, stop - start))
                gains_db[index] = treatment.gain_db(loudness.integrated())
            gains = torch.from_numpy(db_to_amplitude(gains_db)).float()
            contexts = contexts.unfold(1, context, frame).transpose(0, 1) * gains[:, None, None]
        else:
            contexts = contexts[None] * db_to_amplitude(gain_db)
        with torch.no_grad():
            parameters = reader.model.encode(contexts.to(reader.model.device)).flatten(0, 1).cpu()
        finite = parameters.isfinite().all(dim=1)
        if not finite.all():
            seconds = (first + int(finite.int().argmin())) * frame / reader.sample_rate
            fault = f"{reader.path}: the parameters are not finite at {seconds:.2f} s"
            raise UserError(f"{fault}: the input is wildly loud there, or the weights of the checkpoint are damaged")
        yield Frames(parameters.double().numpy(), gains_db)


def prefetch(batches: Iterator[Frames]) -> Generator[Frames, None, None]:
    """Compute each batch in a second thread while the one before is used; close it to end the thread."""
    with ThreadPoolExecutor(1, "predictor") as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch
