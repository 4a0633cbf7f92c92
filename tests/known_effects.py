"""Python effects whose behaviour is known exactly."""

from __future__ import annotations

import numpy as np

from dfx.effects import Control, EffectSpec

SAMPLE_RATE = 22050

GRADIENT = np.array([0.7, -0.4, 0.2])
CURVATURE = np.array([[0.5, 0.3, -0.2], [0.3, -0.4, 0.1], [-0.2, 0.1, 0.6]])


def known(effect: str, **options: object) -> EffectSpec:
    """Return the spec of an effect of tests/known_effects.py."""
    return EffectSpec(f"python:tests.known_effects.{effect}", **options)


class Gain:
    """Multiply by ``gain``."""

    controls = (Control("gain", 1.0, 0.0, 2.0),)

    def __init__(self, sample_rate: int, channels: int) -> None:
        pass

    def process(self, audio: np.ndarray, gain: float) -> np.ndarray:
        return audio * np.float32(gain)

    def reset(self) -> None:
        pass


class Kilohertz(Gain):
    """Gain with a parameter in kHz."""

    controls = (Control("frequency_khz", 1.0, 0.1, 20.0, "kHz", "log"),)


class Quadratic:
    """Multiply by a quadratic form of three values, each in [0, 1]."""

    controls = tuple(Control(name, 0.5, 0.0, 1.0) for name in "abc")

    def __init__(self, sample_rate: int, channels: int) -> None:
        pass

    def process(self, audio: np.ndarray, **values: float) -> np.ndarray:
        v = np.array([values[name] for name in "abc"])
        return (audio * (1 + GRADIENT @ v + v @ CURVATURE @ v / 2)).astype(np.float32)

    def reset(self) -> None:
        pass


class Leaky(Gain):
    """A one-pole low-pass, whose output depends on all earlier input."""

    controls = (Control("gain", 1.0, 0.0, 2.0),)

    def __init__(self, sample_rate: int, channels: int) -> None:
        self.state = np.zeros(channels)

    def process(self, audio: np.ndarray, gain: float) -> np.ndarray:
        output = np.empty_like(audio)
        for n in range(audio.shape[1]):
            self.state = 0.9 * self.state + 0.1 * gain * audio[:, n]
            output[:, n] = self.state
        return output

    def reset(self) -> None:
        self.state = np.zeros_like(self.state)


class Late(Gain):
    """Multiply by ``gain``, with a latency of 50 samples that is reported."""

    latency_samples = 50

    def __init__(self, sample_rate: int, channels: int) -> None:
        self.channels = channels
        self.reset()

    def process(self, audio: np.ndarray, gain: float) -> np.ndarray:
        delayed = np.concatenate([self.pending, audio * np.float32(gain)], axis=1)
        self.pending = delayed[:, audio.shape[1] :]
        return delayed[:, : audio.shape[1]]

    def reset(self) -> None:
        self.pending = np.zeros((self.channels, self.latency_samples), dtype=np.float32)


class Raising(Gain):
    """Raise an error above a gain of 1.5."""

    def process(self, audio: np.ndarray, gain: float) -> np.ndarray:
        if gain > 1.5:
            raise RuntimeError("too loud")
        return audio


class NotFinite(Gain):
    """Return NaN above a gain of 1.5."""

    def process(self, audio: np.ndarray, gain: float) -> np.ndarray:
        return audio * np.float32("nan") if gain > 1.5 else audio


class Unreported(Late):
    """Multiply by ``gain``, 219 samples late, but report no latency, as Calf's limiter does."""

    latency_samples = 0
    delay_samples = 219

    def reset(self) -> None:
        self.pending = np.zeros((self.channels, self.delay_samples), dtype=np.float32)


class Overstated(Unreported):
    """Multiply by ``gain``, 100 samples late, but report 500."""

    latency_samples = 500
    delay_samples = 100
