"""Levels of signals as floats, NumPy arrays or tensors: decibels, root mean square, levels of 20 ms. Needs no torch."""

import math
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Level = TypeVar("Level", float, np.ndarray, "Tensor")

SILENCE = 1e-5
"""Peak of -100 dBFS, below which audio counts as silent."""

REMOVED_DB = 3.0
"""A target that is at least this far below its input, in a frame of 20 ms, removes something there."""


def db_to_amplitude(level_db: Level) -> Level:
    """Return the amplitude, or the gain factor, of a level in dB."""
    return 10 ** (level_db / 20)


def amplitude_to_db(amplitude: Level, floor: float = 1e-5) -> Level:
    """Return the level in dB of an amplitude or a gain factor; smaller amplitudes count as ``floor`` (-100 dB)."""
    if isinstance(amplitude, (int, float)):
        return 20 * math.log10(max(amplitude, floor))
    if isinstance(amplitude, (np.ndarray, np.generic)):
        return 20 * np.log10(np.maximum(amplitude, floor))
    return 20 * amplitude.clamp(min=floor).log10()


def rms(audio: Any) -> Any:
    """Return the root mean square of all samples, a scalar of the array's or tensor's own kind."""
    return (audio * audio).mean() ** 0.5


def matching_gain(audio: Any, reference: Any) -> Any:
    """Return the factor that brings audio to the root mean square of a reference; 1 for silence."""
    level = rms(audio)
    return rms(reference) / level if level > 0 else 1.0


def level_frame_samples(sample_rate: int) -> int:
    """Return the length in samples of the frames, of 20 ms, whose levels are measured."""
    return max(1, round(0.02 * sample_rate))


def frame_levels_db(audio: "Tensor", sample_rate: int) -> "Tensor":
    """Return the level of every whole frame of 20 ms, over all channels of ``(channels, samples)``.

    The levels are in dBFS, at least -100, float64 ``(frames,)``; there are none for audio shorter than a frame.
    """
    frame = level_frame_samples(sample_rate)
    frames = audio[:, : audio.shape[1] // frame * frame].double().unflatten(1, (-1, frame))
    return amplitude_to_db(frames.square().mean(dim=(0, 2)).sqrt())
