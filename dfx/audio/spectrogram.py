"""The short-time Fourier transform behind every spectrogram."""

import torch
from torch import Tensor


def magnitude_spectrogram(audio: Tensor, fft_samples: int, hop_samples: int) -> Tensor:
    """Return the magnitudes of the short-time Fourier transform with a Hann window of ``fft_samples``.

    Windows are centred on every ``hop_samples``-th sample; the signal is padded with zeros. It may have any length
    above 0: ``(samples,)`` or ``(batch, samples)`` gives ``(..., fft_samples // 2 + 1, samples // hop_samples + 1)``.
    """
    window = torch.hann_window(fft_samples).to(audio)
    return torch.stft(audio, fft_samples, hop_samples, window=window, pad_mode="constant", return_complex=True).abs()
