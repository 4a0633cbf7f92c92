"""Integrated loudness of a recording that is heard in parts."""

from __future__ import annotations

import warnings

import numpy as np
import pyloudnorm
import scipy.signal
import torch
from torch import Tensor

_BLOCK_SECONDS = 0.4
_STEPS_A_BLOCK = 4
_RELATIVE_GATE_LU = 10.0
_CHANNEL_GAINS = (1.0, 1.0, 1.0, 1.41, 1.41)


class Loudness:
    """Integrated loudness (ITU-R BS.1770-4) of all that was heard so far, as :func:`dfx.metrics.lufs` has it.

    What is kept grows by one number for every tenth of a second.

    Args:
        sample_rate: in Hz.
    """

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._filters = list(pyloudnorm.Meter(sample_rate)._filters.values())
        self._states: list[np.ndarray] = []
        self._samples = 0
        # Sums of squares, weighted by channel, between the edges of steps; the last is not complete yet.
        self._sums = [0.0]

    def hear(self, audio: Tensor) -> None:
        """The next part, ``(channels, samples)``."""
        heard = audio.double().numpy()
        if not self._states:
            self._states = [np.zeros((len(heard), len(f.b) - 1)) for f in self._filters]
        for index, stage in enumerate(self._filters):
            heard, self._states[index] = scipy.signal.lfilter(stage.b, stage.a, heard, zi=self._states[index])
            heard = stage.passband_gain * heard
        gains = np.array(_CHANNEL_GAINS[: len(heard)] + (1.0,) * (len(heard) - len(_CHANNEL_GAINS)))
        powers = gains @ np.square(heard)
        while len(powers):
            room = self._edge(len(self._sums)) - self._samples
            self._sums[-1] += float(powers[:room].sum())
            self._samples += min(room, len(powers))
            if len(powers) >= room:
                self._sums.append(0.0)
            powers = powers[room:]

    def integrated(self) -> float:
        """In LUFS, -70 for what is quieter; what is shorter is padded to one block of 0.4 s."""
        steps = self._samples / self._sample_rate / _BLOCK_SECONDS * _STEPS_A_BLOCK
        # As pyloudnorm counts them: a last block that is more than half there is one.
        count = max(0, int(np.round(steps - _STEPS_A_BLOCK))) + 1
        sums = np.array(self._sums[: count + _STEPS_A_BLOCK - 1])
        sums = np.pad(sums, (0, count + _STEPS_A_BLOCK - 1 - len(sums)))
        blocks = np.convolve(sums, np.ones(_STEPS_A_BLOCK), "valid") / (_BLOCK_SECONDS * self._sample_rate)
        blocks = blocks[_lufs(blocks) >= SILENCE_LUFS]
        if not len(blocks):
            return SILENCE_LUFS
        loud = blocks[_lufs(blocks) > _lufs(blocks.mean()) - _RELATIVE_GATE_LU]
        return max(float(_lufs(loud.mean())), SILENCE_LUFS)

    def _edge(self, step: int) -> int:
        return int(_BLOCK_SECONDS * (step / _STEPS_A_BLOCK) * self._sample_rate)


def _lufs(power: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return -0.691 + 10 * np.log10(power)


SILENCE_LUFS = -70.0
"""The absolute gate of BS.1770: what is quieter has no loudness."""


def lufs(audio: Tensor, sample_rate: int) -> float:
    """Integrated loudness in LUFS (ITU-R BS.1770-4), -70 for what is quieter; padded to one 0.4 s block."""
    padding = max(0, int(0.4 * sample_rate) + 1 - audio.shape[-1])
    samples = torch.nn.functional.pad(audio, (0, padding)).double().T.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the logarithm of silence
        loudness = pyloudnorm.Meter(sample_rate).integrated_loudness(samples)
    return max(float(loudness), SILENCE_LUFS)
