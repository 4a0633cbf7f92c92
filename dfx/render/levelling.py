"""One gain that brings an output to a loudness, which is known when all of it is rendered."""

import tempfile
from collections.abc import Callable

import numpy as np
import torch

from dfx.audio.levels import db_to_amplitude
from dfx.audio.loudness import Loudness

_BYTES_IN_MEMORY = 2**26
_SAMPLES_AT_ONCE = 2**17


class HeldAudio:
    """Context manager that holds audio back: in memory, and beyond 64 MB in a temporary file.

    The sample rate is in Hz.
    """

    def __init__(self, sample_rate: int) -> None:
        self._loudness = Loudness(sample_rate)
        self._channels = 1

    def __enter__(self) -> "HeldAudio":
        self._file = tempfile.SpooledTemporaryFile(_BYTES_IN_MEMORY)
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, audio: np.ndarray) -> None:
        """Append float32 ``(channels, samples)``."""
        self._channels = len(audio)
        self._loudness.add(torch.from_numpy(audio))
        self._file.write(audio.T.tobytes())

    def release(self, write: Callable[[np.ndarray], None], loudness_lufs: float) -> float:
        """Pass all audio on, in parts and with one gain that gives it a loudness; return the gain in dB.

        Silence has no loudness: its gain is 0 dB.
        """
        gain_db = self._loudness.gain_db_to(loudness_lufs)
        gain = np.float32(db_to_amplitude(gain_db))
        self._file.seek(0)
        while part := self._file.read(4 * self._channels * _SAMPLES_AT_ONCE):
            write(np.frombuffer(part, np.float32).reshape(-1, self._channels).T * gain)
        return gain_db
