"""Find the delay between two recordings of the same performance, and reject those that do not match."""

from typing import NamedTuple

import scipy.signal
import torch
from torch import Tensor

from dfx.alignment import find_delay

MAX_DELAY_SECONDS = 10.0  # that is searched, in both directions
MAX_DRIFT_SECONDS = 0.0005  # largest change of the delay within a recording: 11 samples at 22 050 Hz
MIN_CONFIDENCE = 0.3  # in MP3 files of 19 songs, a mix and its master reach more than 0.9, two songs less than 0.05
MIN_OVERLAP = 0.9  # smallest part of the longer recording that the other one must cover
_COARSE_SECONDS = 30.0
_FINE_SECONDS = 5.0
_REACH_SECONDS = 0.25
_HIGHPASS_HZ = 2000.0


class Match(NamedTuple):
    """The position of a target relative to its input.

    Args:
        delay_samples: delay of the target; negative if it is early.
        drift_samples: change of the delay from start to end.
        polarity: -1 if the target is inverted, otherwise 1.
        confidence: the smallest normalized correlation of the high-passed signals, in [0, 1].
        doubt: why they should not be used as a pair; empty if they can be.
    """

    delay_samples: int
    drift_samples: int
    polarity: int
    confidence: float
    doubt: str


def match(input: Tensor, target: Tensor, sample_rate: int) -> Match:
    """Find delay, drift and polarity of a target, and check that it belongs to the input.

    The delay is found in the middle by cross-correlation above 2 kHz, where mixes differ most and correlation peaks
    are narrow (as in the paper's code), and then refined near the start, the middle and the end.

    Args:
        input, target: ``(channels, samples)``, of any lengths and numbers of channels.
        sample_rate: of both, in Hz.
    """
    sides = _highpass(input, sample_rate), _highpass(target, sample_rate)
    common = min(len(side) for side in sides)
    window = min(common, round(_COARSE_SECONDS * sample_rate))
    reach = min(round(MAX_DELAY_SECONDS * sample_rate), window // 2)
    delay, _, _ = _compare(*sides, (common - window) // 2, window, 0, reach)

    first = max(0, -delay)
    overlap = min(len(sides[0]), len(sides[1]) - delay) - first
    window = min(overlap // 3, round(_FINE_SECONDS * sample_rate))
    reach = min(round(_REACH_SECONDS * sample_rate), window // 2)
    # Songs fade at the very ends.
    starts = [first + round(place * (overlap - window)) for place in (0.1, 0.5, 0.9)]
    delays, polarities, correlations = zip(*(_compare(*sides, start, window, delay, reach) for start in starts))
    drift, confidence = delays[2] - delays[0], min(correlations)

    doubt = ""
    if confidence < MIN_CONFIDENCE:
        doubt = f"input and target are too unlike (correlation {confidence:.2f})"
    elif max(delays) - min(delays) > MAX_DRIFT_SECONDS * sample_rate:
        doubt = f"the delay drifts: {', '.join(map(str, delays))} samples at the start, middle and end"
    elif len(set(polarities)) > 1:
        doubt = "the polarity changes"
    elif overlap < MIN_OVERLAP * max(map(len, sides)):
        seconds = [f"{len(side) / sample_rate:.1f}" for side in sides]
        doubt = f"the lengths are too different: {seconds[0]} s, and {seconds[1]} s of target"
    return Match(delays[1], drift, polarities[1], confidence, doubt)


def cut_to_match(input: Tensor, target: Tensor, delay_samples: int) -> tuple[Tensor, Tensor]:
    """Return input and target, ``(channels, samples)``, cut to the part that both cover.

    The delay of the target is that of :func:`match`.
    """
    input, target = input[:, max(0, -delay_samples) :], target[:, max(0, delay_samples) :]
    samples = min(input.shape[1], target.shape[1])
    return input[:, :samples], target[:, :samples]


def _highpass(audio: Tensor, sample_rate: int) -> Tensor:
    """Return the mean of the channels, ``(samples,)``, through a Butterworth high-pass of 4th order."""
    sections = scipy.signal.butter(4, min(_HIGHPASS_HZ, sample_rate / 4), "highpass", fs=sample_rate, output="sos")
    return torch.from_numpy(scipy.signal.sosfilt(sections, audio.mean(dim=0).double().numpy())).float()


def _compare(input: Tensor, target: Tensor, start: int, samples: int, delay: int, reach: int) -> tuple[int, int, float]:
    """Return the delay within ``reach`` of ``delay``, the polarity and the correlation of one window."""
    input = input[start : start + samples]
    target = target[start + delay : start + delay + samples]
    if not (input.any() and target.any()):
        return delay, 1, 0.0
    late, polarity = find_delay(target[None, None], input[None, None], reach)
    input, target = cut_to_match(input[None], target[None], int(late))
    correlation = (input * target).sum() / (input.norm() * target.norm()).clamp(min=1e-30)
    return delay + int(late), int(polarity), abs(float(correlation))
