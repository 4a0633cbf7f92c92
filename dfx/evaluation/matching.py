"""Matching a recording to another: a smooth equalizer for the average spectrum, and a gain for the loudness."""

import tempfile
from pathlib import Path

import numpy as np
import scipy
import soundfile
import torch
from torch import Tensor

from dfx.audio.levels import db_to_amplitude
from dfx.audio.loudness import SILENCE_LUFS, Loudness, lufs
from dfx.errors import UserError

LARGEST_CHANGE_DB = 24.0
"""Limit of the equalizer's gain."""

_LOWEST_HZ = 20.0
_NO_ENERGY = 1e-9
"""Power of a band relative to the strongest one, -90 dB, below which it counts as empty."""
_PASSES = 20
_SEGMENT_SECONDS = 0.4
_RINGING_SECONDS = 0.5


def match_recording(audio: Tensor, reference: Tensor, sample_rate: int) -> Tensor:
    """Return audio with the average third-octave spectrum and the integrated loudness of a reference.

    The equalizer has zero phase, and the same gain for all channels: in dB, it is interpolated linearly between the
    centres of the bands, over the logarithm of the frequency. It is at most 24 dB in either direction from equal
    loudness. A band that is empty in one of the recordings has no gain. Nothing changes if one of them is silent.

    Args:
        audio: ``(channels, samples)``.
        reference: ``(channels, samples)``, of any length and number of channels.
        sample_rate: of both, in Hz.
    """
    loudness, wanted = (lufs(each, sample_rate) for each in (audio, reference))
    if min(loudness, wanted) <= SILENCE_LUFS:
        return audio
    audio = bring_to(wanted, audio, sample_rate)
    ours, theirs = (_average_spectrum(each, sample_rate) for each in (audio, reference))
    gains_db = _find_gains(ours, theirs, np.linspace(0, sample_rate / 2, len(ours)))
    # Ringing ahead of the beginning wraps around to the end of the padding.
    samples = audio.shape[-1] + round(_RINGING_SECONDS * sample_rate)
    gains = _between(gains_db, np.fft.rfftfreq(samples, 1 / sample_rate))
    equalized = torch.fft.irfft(torch.from_numpy(gains) * torch.fft.rfft(audio.double(), samples), samples)
    return bring_to(wanted, equalized[:, : audio.shape[-1]].to(audio.dtype), sample_rate)


def require_matchering() -> None:
    """Raise :class:`UserError` if the package matchering is not installed."""
    try:
        import matchering  # noqa: F401
    except ImportError as error:
        fault = f"the baseline 'matchering' needs the package of this name, under GPL-3 ({error})"
        raise UserError(f"{fault}: pip install matchering") from None


def match_with_matchering(audio: Tensor, reference: Tensor, sample_rate: int) -> Tensor:
    """Return audio that the package matchering brings to the spectrum, level and peaks of a reference.

    The spectra of mid and side are matched in the loudest pieces of 15 s, then the level, and the result is limited.

    Args:
        audio, reference, sample_rate: as of :func:`match_recording`; of one or two channels.

    Raises:
        UserError: if matchering cannot process them: it needs at least 4096 samples, and no silence.
    """
    import matchering

    with tempfile.TemporaryDirectory() as folder:
        input, goal, output = (str(Path(folder, f"{name}.wav")) for name in ("input", "reference", "output"))
        for path, signal in ((input, audio), (goal, reference)):
            soundfile.write(path, signal.expand(2, -1).T.numpy(), sample_rate, "FLOAT")
        config = matchering.Config(internal_sample_rate=sample_rate, allow_equality=True, temp_folder=folder)
        try:
            matchering.process(input, goal, [matchering.Result(output, "FLOAT")], config)
        except Exception as error:  # it has one class, which is not exported, and lets others through
            raise UserError(f"matchering cannot process a file: {error}") from None
        matched = torch.from_numpy(soundfile.read(output, dtype="float32")[0].T)
    return matched if len(audio) == 2 else matched.mean(dim=0, keepdim=True)


def third_octaves(highest_hz: float) -> np.ndarray:
    """Return the centres in Hz of the third octaves from 20 Hz up to a frequency."""
    first, last = (3 * np.log2(frequency / 1000) for frequency in (_LOWEST_HZ, highest_hz))
    return 1000 * 2 ** (np.arange(np.round(first), np.ceil(last)) / 3)


def _average_spectrum(audio: Tensor, sample_rate: int) -> np.ndarray:
    """Return the mean power of each frequency from 0 Hz to half of the sample rate, over time and channels."""
    segment = 2 ** round(np.log2(_SEGMENT_SECONDS * sample_rate))
    padded = torch.nn.functional.pad(audio.double(), (0, max(0, segment - audio.shape[-1])))
    return scipy.signal.welch(padded.numpy(), nperseg=segment, detrend=False)[1].mean(axis=0)


def _find_gains(powers: np.ndarray, wanted: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Return the gain in dB for each third octave that turns the powers of frequencies into those that are wanted."""
    centres = third_octaves(frequencies[-1])
    starts = np.append(np.searchsorted(frequencies, centres * 2 ** (-1 / 6)), len(frequencies))

    def in_bands(of: np.ndarray) -> np.ndarray:
        return np.diff(np.append(0, np.cumsum(of))[starts])

    is_used = np.all([in_bands(of) > _NO_ENERGY * in_bands(of).max() for of in (powers, wanted)], axis=0)
    gains_db = np.zeros(len(centres))
    for _ in range(_PASSES):
        # The power in a band also depends on the gains of its neighbours.
        reached = in_bands(powers * _between(gains_db, frequencies) ** 2)
        change_db = 10 * np.log10(in_bands(wanted)[is_used] / reached[is_used])
        gains_db[is_used] = np.clip(gains_db[is_used] + change_db, -LARGEST_CHANGE_DB, LARGEST_CHANGE_DB)
    return gains_db


def _between(gains_db: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Return the gain factor of each frequency, from 0 Hz up, between the gains of third octaves."""
    octaves = np.log2(np.maximum(frequencies, _LOWEST_HZ))
    return db_to_amplitude(np.interp(octaves, np.log2(third_octaves(frequencies[-1])), gains_db))


def bring_to(loudness_lufs: float, audio: Tensor, sample_rate: int) -> Tensor:
    """Return audio, ``(channels, samples)``, with a gain that brings it to a loudness; silence as it is."""
    loudness = Loudness(sample_rate)
    loudness.add(audio)
    return audio * db_to_amplitude(loudness.gain_db_to(loudness_lufs))
