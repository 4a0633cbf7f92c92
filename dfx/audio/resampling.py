"""Resampling by a windowed sinc, in bounded time and memory for any two sample rates."""

import math
from collections.abc import Callable

import torch
import torchaudio
from torch import Tensor

SINC_ZEROS = 32
"""Zero crossings on each side of the sinc."""
_ROLLOFF = 0.99  # of the cutoff, relative to the lower Nyquist frequency, as in torchaudio
_LARGEST_KERNEL = 2**20
_PRODUCTS_AT_ONCE = 2**20


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

    Args:
        read: returns the samples from ``start`` to ``stop``, float ``(channels, stop - start)``, zero outside of the
            recording. It is called once.
        start, samples: of the window, at ``new_rate``.
        old_rate, new_rate: in Hz.
        zeros: zero crossings on each side of the sinc.
    """
    common = math.gcd(old_rate, new_rate)
    old, new = old_rate // common, new_rate // common
    width = math.ceil(zeros * max(1.0, old / new) / _ROLLOFF)
    if new * (old + 2 * width) <= _LARGEST_KERNEL:
        # Both rates coincide every `old` samples. A window that starts there, with a margin for the sinc, has the
        # values of the whole recording.
        margin = -(-width // old) + 1
        first, last = start // new - margin, -((start + samples) // -new) + margin
        audio = torchaudio.functional.resample(read(first * old, last * old), old, new, lowpass_filter_width=zeros)
        return audio[:, start - first * new :][:, :samples]
    # torchaudio's kernel has `old` numbers for each of `new` phases: compute the same values sample by sample.
    first = start * old // new - width
    audio = read(first, (start + samples) * old // new + width + 2)
    resampled = audio.new_empty(len(audio), samples)
    taps = torch.arange(-width, width + 2)
    scale = _ROLLOFF * min(1.0, new / old)
    for part in torch.arange(start, start + samples).split(max(1, _PRODUCTS_AT_ONCE // len(taps))):
        place, phase = part * old // new, (part * old % new).double() / new
        t = ((taps - phase[:, None]) * scale).clamp(-zeros, zeros)
        kernel = torch.sinc(t) * torch.cos(t * (math.pi / 2 / zeros)).square() * scale
        windows = audio[:, place[:, None] + taps - first]
        resampled[:, part - start] = (windows * kernel.to(audio)).sum(dim=-1)
    return resampled
