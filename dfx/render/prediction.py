"""Parameters of a recording, frame by frame, from audio as the encoder took it in training.

That is the recording at the model's rate and channels, treated as the task treats its audio. Without look-ahead
(causal), a frame's context ends where the frame begins, and loudness is that of the samples before it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dfx.audio.levels import db_to_amplitude
from dfx.audio.loudness import Loudness
from dfx.audio.reading import SINC_ZEROS, Recording
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
        self.sample_rate = model.chain.sample_rate
        self.samples = recording.samples_at(self.sample_rate)
        self.frame_samples, self.context_samples = model.window.frame_samples, model.window.context_samples
        self._recording = recording
        self._treatment = Treatment() if causal else treatment
        self._channels = model.chain.channels
        self._read_channels = self._channels if recording.channels in (1, self._channels) else 1
        # Resampling by a sinc spreads a later sample of the recording over this many at the model's rate.
        spread = math.ceil(SINC_ZEROS / 0.9 * max(1.0, self.sample_rate / recording.sample_rate)) + 2
        self.delay = spread if causal and recording.sample_rate != self.sample_rate else 0
        lead = (self.context_samples - self.frame_samples) // 2
        self._lead = self.context_samples + self.delay if causal else lead

    def contexts(self, first: int, count: int) -> Tensor:
        """Read consecutive frames' contexts, ``(channels, context_samples + (count - 1) * frame_samples)``."""
        start = first * self.frame_samples - self._lead
        return self.read(start, self.context_samples + (count - 1) * self.frame_samples)

    def read(self, start: int, samples: int) -> Tensor:
        """Read a window ``(channels, samples)`` at the model's rate; windows must not begin before earlier ones."""
        audio = self._treatment.read_filtered(self._recording, start, samples, self.sample_rate, self._read_channels)
        return audio.expand(self._channels, -1)


def measure_gain(reader: ContextReader, treatment: Treatment) -> float:
    """Read a recording once and return the treatment's gain in dB.

    Raises:
        DataError: if a sample is not finite.
    """
    loudness = Loudness(reader.sample_rate)
    for start in range(0, reader.samples, _SAMPLES_AT_ONCE):
        audio = reader.read(start, min(_SAMPLES_AT_ONCE, reader.samples - start))
        if treatment.input_lufs is not None:
            loudness.add(audio)
    return treatment.gain_db(loudness.integrated())


def predict_frames(
    model: Predictor,
    reader: ContextReader,
    treatment: Treatment,
    frames: int,
    meter: ContextReader | None,
    gain_db: float,
) -> Iterator[Frames]:
    """Predict all frames in order.

    Args:
        model: predicts them.
        reader: reads their contexts.
        treatment: of the audio.
        frames: how many.
        meter: reads the samples before each frame, whose loudness then decides its gain; none for a constant gain.
        gain_db: the constant gain.
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
            parameters = model.encode(contexts.to(model.device)).flatten(0, 1).cpu()
        yield Frames(parameters.double().numpy(), gains_db)


@contextlib.contextmanager
def prefetch(batches: Iterator[Frames]) -> Iterator[Iterator[Frames]]:
    """Compute each batch in a second thread while the one before is used."""
    with ThreadPoolExecutor(1, "predictor") as pool:

        def iterate() -> Iterator[Frames]:
            coming = pool.submit(next, batches, None)
            while (batch := coming.result()) is not None:
                coming = pool.submit(next, batches, None)
                yield batch

        yield iterate()
