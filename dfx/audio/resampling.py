"""Resampling by a windowed sinc, in bounded time and memory for any two sample rates."""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

SINC_ZEROS = 32
"""Zero crossings on each side of the sinc."""
_ROLLOFF = 0.99  # of the cutoff, relative to the lower Nyquist frequency, as in torchaudio
_LARGEST_GROUP = 64  # samples that one product with a dense matrix computes
_WINDOWS_AT_ONCE = 2**12


def resample(audio: Tensor, old_rate: int, new_rate: int, zeros: int = SINC_ZEROS) -> Tensor:
    """Resample a whole recording, float ``(channels, samples)``, to ``ceil(samples * new_rate / old_rate)`` samples."""
    length = audio.shape[-1]

    def read(start: int, stop: int) -> Tensor:
        inside = audio[:, max(0, start) : max(0, stop)]
        return torch.nn.functional.pad(inside, (min(stop, 0) - min(start, 0), max(stop, length) - max(start, length)))

    return resample_window(read, 0, -(-length * new_rate // old_rate), old_rate, new_rate, zeros)


def resample_window(
    read: Callable[[int, int], Tensor], start: int, samples: int, old_rate: int, new_rate: int, zeros: int = SINC_ZEROS
) -> Tensor:
    """Resample a window of a recording to the values that the whole recording has there.

    Sample ``n`` is at the time ``n / new_rate``. The filter is that of ``torchaudio.functional.resample``, a sinc under
    a squared cosine. Its kernel there grows with the product of the rates, and its convolution with strides is several
    times slower than these products with dense matrices.

    Args:
        read: returns the samples from ``start`` to ``stop``, float ``(channels, stop - start)``, zero outside of the
            recording. It is called once.
        start, samples: of the window, at ``new_rate``.
        old_rate, new_rate: in Hz.
        zeros: zero crossings on each side of the sinc.
    """
    if old_rate == new_rate:
        return read(start, start + samples)
    # In a period of `old` samples that become `new`, both rates coincide once or more. It is computed in groups of
    # consecutive samples, each from one window of the recording. Periods count from the recording's start, so that
    # every window gets the same values.
    common = math.gcd(old_rate, new_rate)
    repeats = max(1, _LARGEST_GROUP * common // new_rate)
    old, new = repeats * old_rate // common, repeats * new_rate // common
    groups = -(-new // _LARGEST_GROUP)
    size = -(-new // groups)
    width = math.ceil(zeros * max(1.0, old / new) / _ROLLOFF)
    first, stop = start // new, start + samples
    periods = max(1, -(-stop // new) - first)
    audio = read(first * old - width, (first + periods) * old + width + 2 + -(-groups * old // new))
    resampled = audio.new_empty(len(audio), periods, new)
    for begin in range(0, new, size):
        kernel = _kernel(old, new, begin, size, zeros, audio.dtype)
        windows = audio[:, begin * old // new :].unfold(1, kernel.shape[1], old)
        # Groups before and after the requested window are left out.
        skipped = int(first * new + begin + size <= start)
        last = periods - int((first + periods - 1) * new + begin >= stop)
        for part in range(skipped, last, _WINDOWS_AT_ONCE):
            place = slice(part, min(part + _WINDOWS_AT_ONCE, last))
            resampled[:, place, begin : begin + size] = windows[:, place] @ kernel.T[:, : new - begin]
    return resampled.flatten(1)[:, start - first * new :][:, :samples]


@functools.lru_cache(maxsize=1024)
def _kernel(old: int, new: int, begin: int, size: int, zeros: int, dtype: torch.dtype) -> Tensor:
    """Return the weights of ``size`` samples from ``begin`` on in a window of the recording, ``(size, taps)``."""
    cutoff = _ROLLOFF * min(1.0, new / old)
    width = math.ceil(zeros / cutoff)
    taps = torch.arange(-width, width + 2 + size * old // new, dtype=torch.float64)
    # Relative to the first sample's place in the recording, rounded down.
    places = (torch.arange(begin, begin + size) * old - begin * old // new * new).double() / new
    t = ((taps - places[:, None]) * cutoff).clamp(-zeros, zeros)
    return (torch.sinc(t) * torch.cos(t * (math.pi / 2 / zeros)).square() * cutoff).to(dtype)
