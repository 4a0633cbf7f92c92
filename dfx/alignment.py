"""Delay and polarity between two signals, for every example of a batch.

Plugins delay their output, and some invert it. Neither is audible, so the loss ignores both, as in the paper.
"""

import torch
from torch import Tensor
from torch.nn import functional


@torch.no_grad()
def find_delay(output: Tensor, target: Tensor, max_delay_samples: int) -> tuple[Tensor, Tensor]:
    """Find the delay of the output relative to the target, and its polarity.

    The correlation at every lag is normalized by the energy of the overlapping parts: a plain correlation falls with
    their length, and is biased towards 0 for periodic sounds. The residual of a lag is one minus the squared
    correlation. Among the peaks whose residual is close to the smallest, the one nearest to lag 0 is the delay: a
    steady note matches itself in every period, and differences between periods are mostly chance.

    Args:
        output, target: ``(batch, channels, samples)``; the channels of an example share one delay.
        max_delay_samples: the largest delay in either direction, limited to half of ``samples``.

    Returns:
        The delay in samples, int64 ``(batch,)``, positive where the output lags; and the polarity, ``(batch,)``, -1
        where the output is inverted. Silent examples have delay 0 and polarity 1.
    """
    samples = output.shape[-1]
    output, target = output.float(), target.float()
    reach = min(max_delay_samples, samples // 2)
    size = samples + reach
    spectrum = torch.fft.rfft(output, size) * torch.fft.rfft(target, size).conj()
    lags = torch.arange(-reach, reach + 1, device=output.device)
    products = torch.fft.irfft(spectrum, size).sum(dim=1)[:, lags % size]
    energies = _shared_energy(output, lags) * _shared_energy(target, -lags)
    correlation = products / energies.clamp(min=1e-30).sqrt()
    explained = correlation.square()
    is_peak = explained >= functional.max_pool1d(explained[:, None], 3, stride=1, padding=1)[:, 0]
    residual = (1 - explained).clamp(min=0)
    is_good = residual <= (1 + _RESIDUAL_TOLERANCE) * residual.amin(dim=1, keepdim=True) + _ROUNDING
    # Where even the best peak explains little, all residuals are alike: compare the explained part as well.
    is_good &= explained >= 0.5 * explained.amax(dim=1, keepdim=True)
    best = torch.where(is_peak & is_good, lags.abs(), reach + 1).argmin(dim=1)
    sign = correlation.gather(1, best[:, None])[:, 0]
    return lags[best], torch.where(sign < 0, -1.0, 1.0).to(output)


def align(output: Tensor, target: Tensor, delay_samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cut both signals to their overlapping part, example by example.

    Gradients flow to the output; the delay is a constant.

    Args:
        output, target: ``(batch, channels, samples)``.
        delay_samples: int64 ``(batch,)``, from :func:`find_delay`.

    Returns:
        Output and target, ``(batch, channels, samples)``, aligned at sample 0 and silent after the overlapping part,
        and the length of that part, int64 ``(batch,)``.
    """
    samples = output.shape[-1]
    n = torch.arange(samples, device=output.device)[None]
    shared = samples - delay_samples.abs()
    inside = n < shared[:, None]

    def cut(audio: Tensor, lag: Tensor) -> Tensor:
        index = (n + lag.clamp(min=0)[:, None]).clamp(max=samples - 1)[:, None].expand_as(audio)
        return audio.gather(-1, index) * inside[:, None]

    return cut(output, delay_samples), cut(target, -delay_samples), shared


def _shared_energy(audio: Tensor, lags: Tensor) -> Tensor:
    """Return the energy of the overlapping part at each lag of the audio, ``(batch, lags)``.

    It is at least a thousandth of the whole, so that a quiet part is no evidence for a lag.
    """
    skip = lags.clamp(min=0)
    sums = functional.pad(audio.square().sum(dim=1).cumsum(dim=-1), (1, 0))
    shared = sums[:, skip + audio.shape[-1] - lags.abs()] - sums[:, skip]
    return shared.maximum(1e-3 * sums[:, -1:])


_RESIDUAL_TOLERANCE = 0.25
"""Chosen in frames of 1024 samples: with 0, half of the notes of a tube amplifier without a delay are found to be a
period late; with 1, twice as many distorted copies with a delay are found at a wrong period."""

_ROUNDING = 1e-6
"""Of a correlation in float32."""
