"""Audio files as one signal at one sample rate, read window by window."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor

from dfx.errors import UserError


class DataError(UserError):
    """Data that cannot be trained on; the message names the file, what is wrong, and the way out."""


class Readable(ABC):
    """Audio of which any window can be had at any sample rate.

    ``path`` names it in errors; ``sample_rate``, ``channels`` and ``samples`` are its own.
    """

    path: str
    sample_rate: int
    channels: int
    samples: int

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate

    def samples_at(self, sample_rate: int) -> int:
        """The length at another sample rate."""
        return math.ceil(self.samples * sample_rate / self.sample_rate)

    def read(self, start: int, samples: int, sample_rate: int, channels: int) -> Tensor:
        """A window of the file, the same whether it is read whole or in parts.

        Args:
            start, samples: in samples at ``sample_rate``; silence stands for what lies outside of the file.
            sample_rate: in Hz; resampled by a windowed sinc where it is not the file's own.
            channels: 1 takes the mean of the file's channels; otherwise the file must have as many, or
                one, which is then repeated.

        Returns:
            float32 ``(channels, samples)``.

        Raises:
            DataError: if the file cannot be decoded, or has other channels.
        """
        if self.sample_rate == sample_rate:
            audio = self._read_native(start, start + samples)
        else:
            # Both rates meet every `old` samples of the file: windows that begin there, with a margin for
            # the sinc, are resampled as the whole file would be.
            common = math.gcd(self.sample_rate, sample_rate)
            old, new = self.sample_rate // common, sample_rate // common
            margin = math.ceil(SINC_ZEROS * max(1.0, old / new) / (0.9 * old)) + 1
            first, last = start // new - margin, -((start + samples) // -new) + margin
            audio = torchaudio.functional.resample(
                self._read_native(first * old, last * old), old, new, lowpass_filter_width=SINC_ZEROS
            )
            audio = audio[:, start - first * new :][:, :samples]
        if channels == 1:
            return audio.mean(dim=0, keepdim=True)
        if self.channels not in (1, channels):
            raise DataError(f"{self.path} has {self.channels} channels where {channels} are wanted")
        return audio.expand(channels, -1).contiguous()

    @abstractmethod
    def _read_native(self, start: int, stop: int) -> Tensor:
        """float32 ``(channels, stop - start)`` at its own rate, silent where there is none."""


@dataclass(frozen=True)
class AudioFile(Readable):
    """An audio file's header.

    Args:
        path: of the file.
        sample_rate: in Hz.
        channels: how many.
        samples: in each channel, at the file's own rate.
    """

    path: str
    sample_rate: int
    channels: int
    samples: int

    @classmethod
    def open(cls, path: str) -> AudioFile:
        """Reads the header.

        Raises:
            DataError: if there is no such file, it is not audio, or it is empty.
        """
        if not Path(path).is_file():
            raise DataError(f"{path}: no such file")
        try:
            info = soundfile.info(str(path))
        except soundfile.LibsndfileError as error:
            raise DataError(f"{path} is not an audio file that can be read: {error.error_string}") from None
        if info.frames == 0:
            raise DataError(f"{path} holds no audio")
        return cls(str(path), info.samplerate, info.channels, info.frames)

    def _read_native(self, start: int, stop: int) -> Tensor:
        first, last = max(start, 0), min(stop, self.samples)
        window = np.zeros((self.channels, stop - start), dtype=np.float32)
        if first < last:
            try:
                heard, _ = soundfile.read(self.path, last - first, first, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise DataError(f"{self.path} cannot be decoded: {error.error_string}") from None
            if len(heard) < last - first:
                raise DataError(f"{self.path} ends before its header says: copy it again")
            window[:, first - start : last - start] = heard.T
        return torch.from_numpy(window)


SINC_ZEROS = 32
