"""Losses between output and target."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import auraloss
import torch
from torch import Tensor, nn

from dfx.alignment import align, find_delay
from dfx.errors import UserError


@dataclass
class LossOptions:
    """Which loss the encoder is trained on.

    Args:
        kind: ``mrstft``, auraloss' multi-resolution STFT loss (Yamamoto et al. 2020; Steinmetz and Reiss
            2020), which ignores polarity; or ``paper``, see :class:`PaperLoss`.
        fft_sizes: of ``mrstft``, in samples, 64 to 2048 in powers of two; a frame must be longer than half
            of the largest.
        max_delay_samples: of ``paper``, the largest delay that is compensated; 0 compensates none.
        alignment: of ``paper``: ``signed`` compensates the delay; ``reversed`` does so with the wrong sign, as the
            paper's released code: a late output stays late, and an early one becomes twice as early; ``none`` ignores
            the delay.
        polarity: of ``paper``, the better of the two for each ``example``, or for the whole ``batch`` as in the
            paper's released code.
        time_weight, magnitude_weight, log_magnitude_weight: of the terms of ``paper``.
    """

    kind: Literal["mrstft", "paper"] = "mrstft"
    fft_sizes: list[int] = field(default_factory=lambda: [1024, 2048, 512])
    max_delay_samples: int = 300
    alignment: Literal["signed", "reversed", "none"] = "signed"
    polarity: Literal["example", "batch"] = "example"
    time_weight: float = 10.0
    magnitude_weight: float = 1.0
    log_magnitude_weight: float = 1.0


def make_loss(options: LossOptions) -> Loss:
    """Return the loss that the options select."""
    return MultiResolutionSTFT(options.fft_sizes) if options.kind == "mrstft" else PaperLoss(options)


@torch.no_grad()
def loss_of_recordings(loss: Loss, output: Tensor, target: Tensor) -> float:
    """Return the loss of whole recordings, ``(batch, channels, samples)``; short ones are padded with silence."""
    padding = max(0, loss.least_samples - output.shape[-1])
    return float(loss(*(nn.functional.pad(audio, (0, padding)).contiguous() for audio in (output, target))))


# FFT size: hop and window, in samples. Those of 512, 1024 and 2048 are auraloss' defaults.
_RESOLUTIONS = {64: (6, 30), 128: (12, 60), 256: (25, 120), 512: (50, 240), 1024: (120, 600), 2048: (240, 1200)}


class Loss(nn.Module):
    """A module ``(output, target) -> scalar`` that takes signals of at least ``least_samples``."""

    least_samples: int


class MultiResolutionSTFT(Loss):
    """auraloss' multi-resolution STFT loss: spectral convergence and L1 of log magnitudes.

    Args:
        fft_sizes: in samples, any of 64, 128, 256, 512, 1024 and 2048.

    Raises:
        UserError: for other sizes.
    """

    def __init__(self, fft_sizes: list[int]) -> None:
        super().__init__()
        unknown = [size for size in fft_sizes if size not in _RESOLUTIONS]
        if unknown or not fft_sizes:
            raise UserError(f"fft_sizes {fft_sizes}: choose any of {', '.join(map(str, _RESOLUTIONS))}")
        self.least_samples = max(fft_sizes) // 2 + 1
        self.loss = auraloss.freq.MultiResolutionSTFTLoss(
            fft_sizes=fft_sizes,
            hop_sizes=[_RESOLUTIONS[size][0] for size in fft_sizes],
            win_lengths=[_RESOLUTIONS[size][1] for size in fft_sizes],
        )

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Compare two signals ``(batch, channels, samples)``.

        Raises:
            UserError: if the signals are too short for the largest FFT.
        """
        if output.shape[-1] < self.least_samples:
            raise UserError(
                f"{output.shape[-1]} samples are too few for an FFT of {2 * self.least_samples - 2}: "
                "lengthen the frame, take more `frames_per_step` or choose smaller `fft_sizes`"
            )
        return self.loss(output, target)


class PaperLoss(Loss):
    """The paper's loss (its section 2.4), invariant to delay and polarity.

    ``10 |y - s yhat| + (|Y| - |Yhat|)^2 + (ln(|Y| + 1e-5) - ln(|Yhat| + 1e-5))^2``, each the mean over samples or bins,
    after both signals are cut to their common part. ``s`` is the better of the two polarities. Spectra are of Hann
    windows of 1024 samples that do not overlap, the last one padded with silence.
    """

    window: Tensor

    def __init__(self, options: LossOptions) -> None:
        super().__init__()
        self.options = options
        self.least_samples = 1
        self.register_buffer("window", torch.hann_window(_FFT_SAMPLES), persistent=False)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Compare two signals ``(batch, channels, samples)``."""
        options = self.options
        delay, _ = find_delay(output, target, 0 if options.alignment == "none" else options.max_delay_samples)
        if options.alignment == "reversed":
            delay = (-delay).clamp(min=0)
        output, target, shared = align(output, target, delay)
        same, inverted = ((target - sign * output).abs().sum(dim=(1, 2)) for sign in (1, -1))
        length = shared * output.shape[1]
        if options.polarity == "example":
            time = (torch.minimum(same, inverted) / length).mean()
        else:
            time = torch.minimum((same / length).mean(), (inverted / length).mean())

        estimated, true = self._magnitude(output), self._magnitude(target)
        magnitude = (true - estimated).square().mean()
        log_magnitude = ((true + 1e-5).log() - (estimated + 1e-5).log()).square().mean()
        return (
            options.time_weight * time
            + options.magnitude_weight * magnitude
            + options.log_magnitude_weight * log_magnitude
        )

    def _magnitude(self, audio: Tensor) -> Tensor:
        signals = nn.functional.pad(audio, (0, -audio.shape[-1] % _FFT_SAMPLES)).flatten(0, 1)
        spectrum = torch.stft(
            signals, _FFT_SAMPLES, _FFT_SAMPLES, window=self.window, center=False, return_complex=True
        ).transpose(1, 2)
        # The gradient of the root is infinite at 0.
        return (spectrum.real.square() + spectrum.imag.square() + 1e-12).sqrt()


_FFT_SAMPLES = 1024
