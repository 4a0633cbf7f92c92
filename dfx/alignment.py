"""Delay and polarity between two signals, for every example of a batch on its own.

Plugins delay what they process, and some invert it; neither is heard as an error, so the loss must not
count it (the paper, section 2.4).
"""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor


@torch.no_grad()
def find_delay(output: Tensor, target: Tensor, max_delay_samples: int) -> Tuple[Tensor, Tensor]:
    """How much later the output comes than the target, and whether it is inverted.

    The delay is where the cross-correlation is largest in magnitude among the lags allowed.

    Args:
        output, target: ``(batch, channels, samples)``; the channels of an example share one delay.
        max_delay_samples: the largest delay looked for, either way; less than ``samples``.

    Returns:
        The delay in samples, int64 ``(batch,)``, positive where the output lags; and the polarity,
        ``(batch,)``, -1 where the output is inverted. Silent examples have delay 0 and polarity 1.
    """
    samples = output.shape[-1]
    reach = min(max_delay_samples, samples - 1)
    size = samples + reach
    spectrum = torch.fft.rfft(output.float(), size) * torch.fft.rfft(target.float(), size).conj()
    correlation = torch.fft.irfft(spectrum, size).sum(dim=1)
    # Lag d stands at index d, lag -d at the end; 0 first, so that a tie (silence) finds no delay.
    lags = torch.arange(-reach, reach + 1, device=output.device)
    lags = lags[lags.abs().argsort(stable=True)]
    candidates = correlation[:, lags % size]
    best = candidates.abs().argmax(dim=1)
    peak = candidates.gather(1, best[:, None])[:, 0]
    return lags[best], torch.where(peak < 0, -1.0, 1.0).to(output)


def align(output: Tensor, target: Tensor, delay_samples: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Cuts both signals to the part in which each has a partner, example by example.

    Gradients flow to the output; the delay counts as a constant.

    Args:
        output, target: ``(batch, channels, samples)``.
        delay_samples: int64 ``(batch,)``, from :func:`find_delay`.

    Returns:
        Output and target, ``(batch, channels, samples)``, aligned at sample 0 and silent after the
        part they share, and the length of that part, int64 ``(batch,)``.
    """
    samples = output.shape[-1]
    n = torch.arange(samples, device=output.device)[None]
    shared = samples - delay_samples.abs()
    inside = n < shared[:, None]

    def cut(audio: Tensor, skip: Tensor) -> Tensor:
        index = (n + skip[:, None]).clamp(max=samples - 1)[:, None].expand_as(audio)
        return audio.gather(-1, index) * inside[:, None]

    return cut(output, delay_samples.clamp(min=0)), cut(target, (-delay_samples).clamp(min=0)), shared
