"""The ear model of PEAQ (ITU-R BS.1387, basic version), which gives the loudness of each critical band.

Equation numbers are those of BS.1387. Kabal, "An examination and interpretation of ITU-R BS.1387", McGill University,
2003, derives the model in detail. Needs no torch.
"""

import functools
from typing import NamedTuple

import numpy as np

from dfx.audio.spectrogram import magnitude_spectrogram

FULL_SCALE_DB_SPL = 92.0
"""Level of a sine of full scale, in dB SPL, that BS.1387 assumes if the playback level is not known."""

_BAND_BARK = 0.25
_BANDS = 109  # from 80 Hz to 18 kHz
# With 1.07664, the constant of BS.1387, a sine of 1 kHz at 40 dB SPL has 0.58 sones. A sone is defined as its loudness.
_SONES = 1.85 * 24 / _BANDS


class _Ear(NamedTuple):
    """Constants of a sample rate. Arrays have one value per band, unless stated."""

    fft_samples: int
    grouping: np.ndarray  # (bins, bands): from the power of bins to energy behind the middle ear, 1 at 0 dB SPL
    centres: np.ndarray  # in Hz
    smoothing: np.ndarray  # share of the energy that remains after a hop
    noise: np.ndarray  # energy of the internal noise of the ear
    flat: np.ndarray  # excitation by energy 1 in every band


def specific_loudness(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the loudness of every frame and band in sones, at least 0, ``(channels, frames, bands)``.

    The sum over bands is the loudness of a frame: 1 sone for a sine of 1 kHz at 40 dB SPL, where a sine of full scale
    has :data:`FULL_SCALE_DB_SPL`. Sound below the threshold of hearing, or masked by neighbouring bands or by the
    frames before, adds nothing or little to it.

    Args:
        audio: ``(channels, samples)``.
        sample_rate: in Hz. Bands are a quarter of a Bark wide, from 80 Hz to 18 kHz or half of the sample rate. Frames
            overlap by half; their length is the power of two closest to 43 ms.
    """
    ear = _ear(sample_rate)
    return np.stack([_loudness(_excitation(channel, ear), ear) for channel in audio.astype(np.float64)])


@functools.cache
def _ear(sample_rate: int) -> _Ear:
    fft_samples = 2 ** round(np.log2(2048 / 48000 * sample_rate))
    edges_bark = 7 * np.arcsinh(80 / 650) + _BAND_BARK * np.arange(_BANDS + 1)
    edges_bark = edges_bark[edges_bark <= 7 * np.arcsinh(sample_rate / 2 / 650)]
    edges = 650 * np.sinh(edges_bark / 7)
    centres = 650 * np.sinh((edges_bark[:-1] + _BAND_BARK / 2) / 7)
    # A bin belongs to the bands that it overlaps, in these shares.
    bin_hz = sample_rate / fft_samples
    bins = bin_hz * np.arange(fft_samples // 2 + 1)[:, None]
    overlap = np.minimum(edges[1:], bins + bin_hz / 2) - np.maximum(edges[:-1], bins - bin_hz / 2)
    khz = np.maximum(bins, bin_hz) / 1000
    outer_and_middle_ear_db = -2.184 * khz**-0.8 + 6.5 * np.exp(-0.6 * (khz - 3.3) ** 2) - 0.001 * khz**3.6
    # A sine half-way between two bins has its level in both: their Hann window passes 0.8497 of its amplitude.
    full_scale = 10 ** (FULL_SCALE_DB_SPL / 10) / (0.8497 * fft_samples / 4) ** 2
    grouping = full_scale * 10 ** (outer_and_middle_ear_db / 10) * np.clip(overlap / bin_hz, 0, None)
    time_constants = 0.008 + 100 / centres * (0.030 - 0.008)
    smoothing = np.exp(-fft_samples / 2 / sample_rate / time_constants)
    noise = 10 ** (0.4 * 0.364 * (centres / 1000) ** -0.8)  # (13)
    return _Ear(fft_samples, grouping, centres, smoothing, noise, _spread(np.ones((1, len(centres))), centres))


def _excitation(audio: np.ndarray, ear: _Ear) -> np.ndarray:
    """Return the energy of ``(samples,)`` in the ear, spread over bands and time, ``(frames, bands)``."""
    energy = magnitude_spectrogram(audio, ear.fft_samples, ear.fft_samples // 2).T ** 2 @ ear.grouping + ear.noise
    excitation = _spread(energy, ear.centres) / ear.flat
    memory = np.zeros_like(ear.smoothing)
    for frame in excitation:
        memory = ear.smoothing * memory + (1 - ear.smoothing) * frame
        np.maximum(memory, frame, out=frame)
    return excitation


def _spread(energy: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Spread energy, ``(frames, bands)``, to the bands above and below it, by the power law of exponent 0.4.

    It falls by 27 dB/Bark towards lower bands, and more slowly towards higher ones the louder it is.
    """
    energy = energy.T
    # From one band to the next.
    downwards = 10 ** (-27 * _BAND_BARK / 10)
    upwards = 10 ** ((-24 - 230 / centres[:, None] + 2 * np.log10(energy)) * _BAND_BARK / 10)
    count = len(energy)
    total, gain = np.ones_like(energy), np.ones_like(energy)
    for distance in range(1, count):
        total[distance:] += downwards**distance
        gain = gain[:-1] * upwards[:-distance]
        total[:-distance] += gain
    compressed = (energy / total) ** 0.4
    spread, falling, slope = compressed.copy(), compressed, upwards**0.4
    for distance in range(1, count):
        spread[:-distance] += downwards ** (0.4 * distance) * compressed[distance:]
        falling = falling[:-1] * slope[:-distance]
        spread[distance:] += falling
    return spread.T**2.5


def _loudness(excitation: np.ndarray, ear: _Ear) -> np.ndarray:
    """Return the specific loudness of an excitation in sones (58)."""
    threshold = 10 ** (0.364 * (ear.centres / 1000) ** -0.8)  # (60)
    index = 10 ** (-0.2 - 0.205 * np.arctan(ear.centres / 4000) - 0.075 * np.arctan((ear.centres / 1600) ** 2))  # (61)
    scale = _SONES * (threshold / index / 1e4) ** 0.23
    return scale * np.clip((1 - index + index * excitation / threshold) ** 0.23 - 1, 0, None)
