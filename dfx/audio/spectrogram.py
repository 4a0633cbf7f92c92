"""The short-time Fourier transform behind every spectrogram."""

import torch
from torch import Tensor


def magnitude_spectrogram(audio: Tensor, fft_samples: int, hop_samples: int) -> Tensor:
    """Return the magnitudes of the short-time Fourier transform with a Hann window.

    Windows are centred on every ``hop_samples``-th sample; the signal is padded with zeros.

    Args:
        audio: ``(samples,)`` or ``(batch, samples)``, floating point, of any length above 0.
        fft_samples: the length of window and transform.
        hop_samples: from one window to the next.

    Returns:
        ``(..., fft_samples // 2 + 1, samples // hop_samples + 1)``.
    """
    window = torch.hann_window(fft_samples).to(audio)
    return torch.stft(audio, fft_samples, hop_samples, window=window, pad_mode="constant", return_complex=True).abs()
