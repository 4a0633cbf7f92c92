"""Audio files as one signal at one sample rate, read window by window."""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pedalboard.io
import soundfile
import torch
import torchaudio
from torch import Tensor

from dfx.errors import DataError


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


class Stream:
    """Audio that comes once, in parts.

    Args:
        name: what errors call it.
        sample_rate: in Hz.
        channels: how many.
        samples: in each channel.
        read: the next samples, as many as asked for or what is left, float32 ``(channels, samples)``.
        close: ends it.
        format, subtype: as soundfile calls them, of the file that it comes from.
    """

    def __init__(
        self,
        name: str,
        sample_rate: int,
        channels: int,
        samples: int,
        read: Callable[[int], np.ndarray],
        close: Callable[[], None] = lambda: None,
        format: str = "WAV",
        subtype: str = "FLOAT",
    ) -> None:
        self.name = name
        self.sample_rate = sample_rate
        self.channels = channels
        self.samples = samples
        self.read = read
        self.close = close
        self.format = format
        self.subtype = subtype

    @property
    def may_hold_nan(self) -> bool:
        return self.subtype in _EXACT


def stream_file(path: str, name: str | None = None) -> Stream:
    """A file, by soundfile, or by pedalboard where soundfile does not know its format.

    Args:
        path: of the file.
        name: what errors call it, if not by its path.

    Raises:
        DataError: if there is no such file, it is not audio, or it is empty.
    """
    name = name or path
    if not Path(path).is_file():
        raise DataError(f"{name}: no such file")
    try:
        stream = _by_soundfile(path, name)
    except soundfile.LibsndfileError as error:
        try:
            stream = _by_pedalboard(path, name)
        except ValueError:
            raise DataError(f"{name} is not an audio file that can be read: {error.error_string}") from None
    if not stream.samples:
        stream.close()
        raise DataError(f"{name} holds no audio")
    return stream


def stream_array(audio: np.ndarray, sample_rate: int, name: str = "the audio") -> Stream:
    """Samples in memory, ``(channels, samples)``."""
    position = 0

    def read(samples: int) -> np.ndarray:
        nonlocal position
        position += samples
        return audio[:, position - samples : position].astype(np.float32)

    return Stream(name, sample_rate, len(audio), audio.shape[1], read)


def _by_soundfile(path: str, name: str) -> Stream:
    file = soundfile.SoundFile(path)

    def read(samples: int) -> np.ndarray:
        try:
            return file.read(samples, dtype="float32", always_2d=True).T
        except soundfile.LibsndfileError as error:
            raise DataError(f"{name} cannot be decoded: {error.error_string}") from None

    return Stream(name, file.samplerate, file.channels, file.frames, read, file.close, file.format, file.subtype)


def _by_pedalboard(path: str, name: str) -> Stream:
    file = pedalboard.io.AudioFile(path)
    subtype = {"int8": "PCM_S8", "int16": "PCM_16", "int24": "PCM_24", "int32": "PCM_32"}.get(file.file_dtype, "FLOAT")
    return Stream(name, round(file.samplerate), file.num_channels, file.frames, file.read, file.close, "", subtype)


class Recording(Readable):
    """A stream as windows, each beginning no earlier than the one before: only what may be asked for again is kept.

    Args:
        stream: what is read.
        process: is done to the stream, part by part.
    """

    def __init__(self, stream: Stream, process: Callable[[np.ndarray], np.ndarray] = lambda audio: audio) -> None:
        self.path = stream.name
        self.sample_rate = stream.sample_rate
        self.channels = stream.channels
        self.samples = stream.samples
        self._stream = stream
        self._process = process
        self._kept = np.zeros((stream.channels, 0), dtype=np.float32)
        self._first = 0

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stream.close()

    def _read_native(self, start: int, stop: int) -> Tensor:
        first, last = min(max(start, 0), self.samples), min(max(stop, 0), self.samples)
        if first < self._first:
            raise ValueError(f"what comes before sample {self._first} is no longer kept, {first} was asked for")
        missing = last - self._first - self._kept.shape[1]
        if missing > 0:
            self._kept = np.concatenate([self._kept[:, first - self._first :], self._read_next(missing)], axis=1)
        else:
            self._kept = self._kept[:, first - self._first :]
        self._first = first
        window = np.zeros((self.channels, stop - start), dtype=np.float32)
        window[:, first - start : last - start] = self._kept[:, : last - first]
        return torch.from_numpy(window)

    def _read_next(self, samples: int) -> np.ndarray:
        position = self._first + self._kept.shape[1]
        audio = self._stream.read(samples)
        if audio.shape[1] < samples:
            raise DataError(f"{self.path} ends before its header says: copy it again")
        finite = np.isfinite(audio).all(axis=0)
        if not finite.all():
            seconds = (position + int(np.argmin(finite))) / self.sample_rate
            raise DataError(f"{self.path} holds a sample that is not a number, or infinite, at {seconds:.3f} s")
        return self._process(audio)


@contextmanager
def local(path: str) -> Iterator[str]:
    """A path to read from: the given one, or where standard input has been kept, which may come only once."""
    if path != PIPE:
        yield path
        return
    # Not deleted on closing: on Windows, an open file cannot be opened again.
    file = tempfile.NamedTemporaryFile(suffix=".wav", delete=False)  # noqa: SIM115
    try:
        with file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield file.name
    finally:
        os.unlink(file.name)


PIPE = "-"
"""Stands for standard input and standard output."""
_EXACT = ("FLOAT", "DOUBLE")
"""What holds more than full scale, and what is not a number."""
