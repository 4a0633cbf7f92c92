"""An upward expander, the inverse of a compressor's static curve, which pedalboard lacks."""

import math

import numpy as np
import scipy

from dfx.effects.effect import Control

_SILENCE = 1e-10  # power of -100 dBFS, below every threshold


class Expander:
    """Raise what lies above a threshold: 1 dB more input gives ``expansion_ratio`` dB more output.

    The level is that of the mean power of all channels, smoothed by a one-pole filter of ``time_ms``. At a ratio of 1,
    the output equals the input. ``python:dfx.effects.expander.Expander`` names the effect in a chain.
    """

    controls = (
        Control("threshold_db", -20.0, -60.0, 0.0, "dB", minimum=-90.0, maximum=20.0),
        Control("expansion_ratio", 1.0, 1.0, 2.0, minimum=1.0, maximum=4.0),
        Control("time_ms", 50.0, 1.0, 1000.0, "ms", "log", minimum=0.1, maximum=10000.0),
    )

    def __init__(self, sample_rate: int, channels: int) -> None:
        self._sample_rate = sample_rate
        self._power = 0.0

    def process(self, audio: np.ndarray, threshold_db: float, expansion_ratio: float, time_ms: float) -> np.ndarray:
        pole = math.exp(-1000 / (time_ms * self._sample_rate))
        power = np.square(audio, dtype=np.float64).mean(axis=0)
        power, _ = scipy.signal.lfilter([1 - pole], [1, -pole], power, zi=[pole * self._power])
        self._power = power[-1]
        level_db = 10 * np.log10(np.maximum(power, _SILENCE))
        gain_db = (expansion_ratio - 1) * np.maximum(level_db - threshold_db, 0)
        return audio * (10 ** (gain_db / 20)).astype(np.float32)

    def reset(self) -> None:
        self._power = 0.0
