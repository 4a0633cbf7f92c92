"""Integrated loudness (ITU-R BS.1770-4), of whole recordings and of recordings that are read in parts."""

from typing import Any

import numpy as np
import scipy
from torch import Tensor

SILENCE_LUFS = -70.0  # the absolute gate of BS.1770: quieter audio has no loudness
_BLOCK_SECONDS = 0.4
_STEPS_PER_BLOCK = 4
_RELATIVE_GATE_LU = 10.0
_CHANNEL_GAINS = (1.0, 1.0, 1.0, 1.41, 1.41)  # left, right, centre, left and right surround
# With the low-frequency channel of 5.1, and the back channels of 7.1 before the side ones, as in WAV.
_GAINS_WITH_LFE = {6: (1.0, 1.0, 1.0, 0.0, 1.41, 1.41), 8: (1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.41, 1.41)}


def lufs(audio: Tensor, sample_rate: int) -> float:
    """Return the integrated loudness of a whole recording, in LUFS, at least -70.

    The audio, ``(channels, samples)`` at ``sample_rate`` Hz, is padded with zeros to one block of 0.4 s. The powers of
    all channels are added, so that a recording of two equal channels is 3 LU louder than one of them.
    """
    loudness = Loudness(sample_rate)
    loudness.add(audio)
    return loudness.integrated()


def weight_power(frequencies_hz: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the factors that frequencies have in the power that loudness is measured from (K-weighting)."""
    gains = np.ones(len(frequencies_hz))
    for stage in _k_weighting(sample_rate):
        response = scipy.signal.freqz(stage.b, stage.a, frequencies_hz, fs=sample_rate)[1]
        gains *= np.square(np.abs(stage.passband_gain * response))
    return gains


class Loudness:
    """The integrated loudness of all parts that were added so far, equal to :func:`lufs` of them joined.

    Memory grows by one number for every 0.1 s. The sample rate is in Hz.
    """

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._filters = _k_weighting(sample_rate)
        self._states: list[np.ndarray] = []
        self._samples = 0
        # Sums of squares of every step of 0.1 s, weighted by channel; the last step is incomplete.
        self._sums = [0.0]

    def add(self, audio: Tensor) -> None:
        """Add the next part, ``(channels, samples)``."""
        weighted = audio.double().numpy()
        if not self._states:
            self._states = [np.zeros((len(weighted), len(f.b) - 1)) for f in self._filters]
        for index, stage in enumerate(self._filters):
            weighted, self._states[index] = scipy.signal.lfilter(stage.b, stage.a, weighted, zi=self._states[index])
            weighted = stage.passband_gain * weighted
        channels = len(weighted)
        others = (1.0,) * (channels - len(_CHANNEL_GAINS))
        powers = np.array(_GAINS_WITH_LFE.get(channels, _CHANNEL_GAINS[:channels] + others)) @ np.square(weighted)
        while len(powers):
            # Steps end where pyloudnorm's do.
            missing = int(_BLOCK_SECONDS * (len(self._sums) / _STEPS_PER_BLOCK) * self._sample_rate) - self._samples
            self._sums[-1] += float(powers[:missing].sum())
            self._samples += min(missing, len(powers))
            if len(powers) >= missing:
                self._sums.append(0.0)
            powers = powers[missing:]

    def gain_db_to(self, loudness_lufs: float) -> float:
        """Return the gain in dB that brings all audio to a loudness; 0 if it is silent."""
        gain_db = 0.0
        if self.integrated() > SILENCE_LUFS:
            # A gain moves blocks across the absolute gate, which changes the mean.
            for _ in range(10):
                gain_db += loudness_lufs - self.integrated(gain_db)
        return gain_db

    def integrated(self, gain_db: float = 0.0) -> float:
        """Return the loudness in LUFS after a gain, at least -70; shorter audio is padded to one block of 0.4 s."""
        steps = self._samples / self._sample_rate / _BLOCK_SECONDS * _STEPS_PER_BLOCK
        # As in pyloudnorm, a last block counts if more than half of its last step is there.
        count = max(0, int(np.round(steps - _STEPS_PER_BLOCK))) + 1
        sums = np.array(self._sums[: count + _STEPS_PER_BLOCK - 1]) * 10 ** (gain_db / 10)
        sums = np.pad(sums, (0, count + _STEPS_PER_BLOCK - 1 - len(sums)))
        blocks = np.convolve(sums, np.ones(_STEPS_PER_BLOCK), "valid") / (_BLOCK_SECONDS * self._sample_rate)
        blocks = blocks[_power_to_lufs(blocks) >= SILENCE_LUFS]
        if not len(blocks):
            return SILENCE_LUFS
        loud = blocks[_power_to_lufs(blocks) > _power_to_lufs(blocks.mean()) - _RELATIVE_GATE_LU]
        return max(float(_power_to_lufs(loud.mean())), SILENCE_LUFS)


def _k_weighting(sample_rate: int) -> list[Any]:
    """Return the filters of K-weighting; up to 3000 Hz without the shelf at 1500 Hz, which would be unstable."""
    # Imported here, because most renderings measure no loudness.
    import pyloudnorm

    return [stage for stage in pyloudnorm.Meter(sample_rate)._filters.values() if stage.fc < sample_rate / 2]


def _power_to_lufs(power: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return -0.691 + 10 * np.log10(power)
