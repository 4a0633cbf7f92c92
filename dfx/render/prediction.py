"""Parameters of a recording, frame by frame, from audio as the encoder took it in training.

:mod:`dfx.render.streaming` describes this audio, also for rendering without look-ahead (``causal``).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dfx.audio.levels import db_to_amplitude
from dfx.audio.loudness import Loudness
from dfx.audio.reading import Recording
from dfx.audio.resampling import SINC_ZEROS
from dfx.datasets.frames import Window
from dfx.datasets.treatment import Treatment
from dfx.effects import ChainSpec

_SAMPLES_AT_ONCE = 2**19
_FRAMES_AT_ONCE = 32
"""Bounds of the audio and of the frames that are encoded at once."""


class Predictor(Protocol):
    """The part of a task that rendering needs: an encoder, its chain, and the form of its audio."""

    chain: ChainSpec
    window: Window
    treatment: Treatment

    @property
    def device(self) -> torch.device: ...

    def eval(self) -> Predictor: ...

    def encode(self, context: Tensor) -> Tensor: ...


class Frames(NamedTuple):
    """Consecutive frames: parameters ``(frames, P)`` in [0, 1] and gains of the treatment in dB ``(frames,)``."""

    parameters: np.ndarray
    gains_db: np.ndarray


class ContextReader:
    """Reads the contexts of a recording's frames, at the model's rate and channels, filtered but at the file's level.

    Args:
        model: whose contexts these are.
        recording: the audio; already filtered if ``causal``.
        treatment: of the audio.
        causal: read no sample of the recording that is later than the requested window.
    """

    def __init__(self, model: Predictor, recording: Recording, treatment: Treatment, causal: bool) -> None:
        self.model, self.sample_rate = model, model.chain.sample_rate
        self.samples = recording.samples_at(self.sample_rate)
        self.frame_samples, self.context_samples = model.window.frame_samples, model.window.context_samples
        self._recording, self._treatment = recording, Treatment() if causal else treatment
        self._channels = model.chain.channels
        self._read_channels = self._channels if recording.channels in (1, self._channels) else 1
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
        """Read a window ``(channels, samples)`` at the model's rate; windows must not begin before earlier ones."""
        audio = self._treatment.read_filtered(self._recording, start, samples, self.sample_rate, self._read_channels)
        return audio.expand(self._channels, -1)


def measure_gain(reader: ContextReader, treatment: Treatment) -> float:
    """Read a recording once and return the treatment's gain in dB; a sample that is not finite is a ``DataError``."""
    loudness = Loudness(reader.sample_rate)
    for start in range(0, reader.samples, _SAMPLES_AT_ONCE):
        audio = reader.read(start, min(_SAMPLES_AT_ONCE, reader.samples - start))
        if treatment.input_lufs is not None:
            loudness.add(audio)
    return treatment.gain_db(loudness.integrated())


def predict_frames(
    reader: ContextReader, treatment: Treatment, frames: int, meter: ContextReader | None, gain_db: float
) -> Iterator[Frames]:
    """Predict all frames in order.

    The treatment's gain is ``gain_db``, or with a ``meter`` that of the loudness of the samples before each frame.
    """
    loudness = Loudness(reader.sample_rate)
    frame, context = reader.frame_samples, reader.context_samples
    at_once = max(1, min(_FRAMES_AT_ONCE, (_SAMPLES_AT_ONCE - context) // frame + 1))
    for first in range(0, frames, at_once):
        count = min(at_once, frames - first)
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
        yield Frames(parameters.double().numpy(), gains_db)


def prefetch(batches: Iterator[Frames]) -> Generator[Frames, None, None]:
    """Compute each batch in a second thread while the one before is used; close it to end the thread."""
    with ThreadPoolExecutor(1, "predictor") as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch
