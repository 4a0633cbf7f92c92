"""Reference recordings: how one is read, and how far an output is from one, without any alignment.

The distance of an output ``y`` from a reference ``r`` is the sum of three differences in dB:

    d(y, r) = 1/B sum_b |S_b(y) - S_b(r)| + |L(y) - L(r)| + |C(y) - C(r)|

``S_b`` is the average level of one of ``B`` third octaves, from 31 Hz to half of the sample rate, relative to the
loudness and at least -60 dB. ``L`` is the integrated loudness (ITU-R BS.1770) in LUFS. ``C`` is the mean ratio of peak
to RMS in blocks of 0.4 s, of those that are at most 10 dB below the mean power. A gain changes ``L`` alone.
"""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dfx.audio.levels import SILENCE
from dfx.audio.loudness import SILENCE_LUFS, Loudness, lufs
from dfx.audio.reading import Recording, Stream
from dfx.errors import DataError

_LEAST_SECONDS = 1.0
_EXCERPTS, _EXCERPT_SECONDS = 24, 5.0
_FRAME_SECONDS = 0.37
_LOWEST_BAND = -15  # of 31 Hz, counted from 1 kHz
_LEAST_BAND_DB = -60.0
_BLOCK_SECONDS = 0.4
_LEAST_POWER = 0.1  # of a block, relative to the mean power


@dataclass(frozen=True)
class Reference:
    """A reference recording: its name, and its audio ``(channels, samples)`` at a model's rate and channels."""

    name: str
    audio: Tensor


def read_reference(open_stream: Callable[[], Stream], sample_rate: int, channels: int) -> Reference:
    """Read a reference; of more than two minutes, 24 excerpts of 5 s, evenly spread and joined.

    Args:
        open_stream: opens the recording at its beginning.
        sample_rate, channels: of the result. Channels that it lacks are repeated, and others averaged.

    Raises:
        DataError: if the recording cannot be decoded, is shorter than a second, or is silent.
    """
    with closing(open_stream()) as stream:
        recording = Recording(stream)
        if recording.seconds < _LEAST_SECONDS:
            fault = f"{recording.path} lasts {recording.seconds:.2f} s"
            raise DataError(f"{fault}: a reference needs at least {_LEAST_SECONDS:g} s")
        read_channels = channels if recording.channels in (1, channels) else 1
        samples, length = recording.samples_at(sample_rate), round(_EXCERPT_SECONDS * sample_rate)
        places = [(0, samples)]
        if samples > _EXCERPTS * length:
            places = [(start, length) for start in np.linspace(0, samples - length, _EXCERPTS).astype(int).tolist()]
        parts = [recording.read(*place, sample_rate, read_channels) for place in places]
    audio = torch.cat(parts, dim=1).expand(channels, -1)
    if audio.abs().max() < SILENCE or lufs(audio, sample_rate) <= SILENCE_LUFS:
        raise DataError(f"{recording.path} is silent: choose another reference")
    return Reference(recording.path, audio)


class Character(NamedTuple):
    """The quantities that the distance compares: ``S``, ``(bands,)``, ``L`` and ``C`` of the module's equation."""

    bands_db: np.ndarray
    loudness_lufs: float
    crest_db: float

    def distance(self, other: "Character") -> float:
        """Return the distance from another recording of the same sample rate, in dB."""
        bands_db = float(np.abs(self.bands_db - other.bands_db).mean())
        return bands_db + abs(self.loudness_lufs - other.loudness_lufs) + abs(self.crest_db - other.crest_db)


def measure_character(audio: Tensor, sample_rate: int) -> Character:
    """Measure excerpts of a recording, ``(excerpts, channels, samples)``, as one."""
    loudness = Loudness(sample_rate)
    for excerpt in audio:
        loudness.add(excerpt)
    loudness_lufs = loudness.integrated()
    signals = audio.flatten(0, 1)
    bands_db = 10 * np.log10(np.maximum(_band_powers(signals, sample_rate), 1e-20)) - loudness_lufs
    return Character(np.maximum(bands_db, _LEAST_BAND_DB), loudness_lufs, _mean_crest_db(signals, sample_rate))


def distance_from(reference: Tensor, sample_rate: int) -> Callable[[Tensor], float]:
    """Return a function of excerpts of an output, ``(excerpts, channels, samples)``: their distance in dB.

    The reference is ``(channels, samples)``.
    """
    character = measure_character(reference[None], sample_rate)
    return lambda output: measure_character(output, sample_rate).distance(character)


def _band_powers(signals: Tensor, sample_rate: int) -> np.ndarray:
    """Return the average power of signals, ``(signals, samples)``, in each third octave."""
    size = 2 ** round(math.log2(_FRAME_SECONDS * sample_rate))
    padding = max(0, size - signals.shape[1])
    window = torch.hann_window(size)
    frames = torch.nn.functional.pad(signals, (0, padding)).unfold(1, size, size // 2) * window
    powers = torch.fft.rfft(frames).abs().square().mean(dim=(0, 1)).double() * 2 / (size * window.square().sum())
    last = math.ceil(3 * math.log2(sample_rate / 2 / 1000))
    edges = 1000 * 2 ** ((np.arange(_LOWEST_BAND, last + 1) - 0.5) / 3)
    # A bin is spread over its width, because the lowest bands are as narrow as one.
    bins = (np.arange(len(powers) + 1) - 0.5) * sample_rate / size
    return np.diff(np.interp(edges, bins, np.append(0, powers.cumsum(0).numpy())))


def _mean_crest_db(signals: Tensor, sample_rate: int) -> float:
    size = min(round(_BLOCK_SECONDS * sample_rate), signals.shape[1])
    blocks = signals.unfold(1, size, size).flatten(0, 1).double()
    powers = blocks.square().mean(dim=1)
    if not powers.any():
        return 0.0
    loud = powers >= _LEAST_POWER * powers.mean()
    ratios = blocks[loud].abs().amax(dim=1).square() / powers[loud]
    return float(10 * ratios.log10().mean())
