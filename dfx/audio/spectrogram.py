"""The short-time Fourier transform behind every spectrogram. Needs no torch."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def magnitude_spectrogram(audio: np.ndarray, fft_samples: int, hop_samples: int) -> np.ndarray:
    """Return the magnitudes of the short-time Fourier transform with a Hann window of ``fft_samples``.

    Windows are centred on every ``hop_samples``-th sample; the signal is padded with zeros. It may have any length
    above 0: ``(samples,)`` gives ``(fft_samples // 2 + 1, samples // hop_samples + 1)``, of its own precision.
    """
    frames = sliding_window_view(np.pad(audio, fft_samples // 2), fft_samples)[::hop_samples]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(fft_samples) / fft_samples)
    return np.abs(np.fft.rfft(frames * window.astype(audio.dtype))).T
