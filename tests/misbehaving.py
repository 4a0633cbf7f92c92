"""Python effects that misbehave, most of them above a gain of 0.5, and pass audio through below.

This file imports neither torch nor pytest, because worker processes import it.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np

from tests.known_effects import Gain

SPIN_SECONDS = 0.3


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


class Crashing(Gain):
    """Crash the process."""

    def process(self, audio: np.ndarray, gain: float) -> np.ndarray:
        return crash() if gain > 0.5 else audio


class Hanging(Gain):
    """Never return."""

    def process(self, audio: np.ndarray, gain: float) -> np.ndarray:
        while gain > 0.5:
            time.sleep(1)
        return audio


class Spinning(Gain):
    """Take ``SPIN_SECONDS`` of CPU time."""

    def process(self, audio: np.ndarray, gain: float) -> np.ndarray:
        end = time.process_time() + SPIN_SECONDS
        while gain > 0.5 and time.process_time() < end:
            pass
        return audio


class Leaving(Gain):
    """Exit the process."""

    def process(self, audio: np.ndarray, gain: float) -> np.ndarray:
        return sys.exit(3) if gain > 0.5 else audio


class NotFinite(Gain):
    """Return NaN."""

    def process(self, audio: np.ndarray, gain: float) -> np.ndarray:
        return audio * np.float32("nan") if gain > 0.5 else audio


class CrashingWhenBuilt(Gain):
    def __init__(self, sample_rate: int, channels: int) -> None:
        crash()


class CrashingWhenReset(Gain):
    def reset(self) -> None:
        crash()


class Flagged(Gain):
    """Crash the process while the file named by the environment variable ``FLAG`` exists."""

    def process(self, audio: np.ndarray, gain: float) -> np.ndarray:
        return crash() if os.path.exists(os.environ["FLAG"]) else audio * np.float32(gain)
