"""Audio files, streams and arrays, read window by window at any sample rate."""

import functools
import math
import os
import shutil
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pedalboard.io
import soundfile
import torch
from torch import Tensor

from dfx.audio.metadata import soundfile_path
from dfx.audio.resampling import resample_window
from dfx.errors import DataError

PIPE = "-"  # standard input, or standard output
FLOAT_SUBTYPES = ("FLOAT", "DOUBLE")  # sample formats that hold values beyond full scale, infinities and NaN
_LOWEST_RATE = 100
_CANCELLATION_DB = 20.0
_EXACT_SUBTYPES = ("PCM", "FLOAT", "DOUBLE", "ULAW", "ALAW")  # beginnings of those in which seeking is exact
_DECODED_FILES = 16  # kept decoded in the temporary folder: 85 MB for 4 minutes of stereo
_DECODED_AT_ONCE = 2**20
_SHORT_FILES = 256  # kept decoded in memory
_SHORT_SAMPLES = 2**18  # of all channels: 1 MiB, 12 s at 22050 Hz

_SUFFIXES = {f".{format.lower()}" for format in soundfile.available_formats()} - {".raw", ".mat4", ".mat5"}
_SUFFIXES |= {".aif", ".aifc", ".bwf", ".oga", ".opus", ".snd", ".wave", *pedalboard.io.get_supported_read_formats()}
_SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN"}


def audio_files(folder: Path) -> list[Path]:
    """Return the audio files in and below a folder, in the order of their paths; any other file is ignored.

    An audio file has the suffix of an audio format, in upper or lower case. Names that begin with a dot (``._take.wav``
    of macOS) and folders of the system (``__MACOSX``) are left out. Links to folders are not followed.
    """
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") or part in _SYSTEM_FOLDERS for part in path.relative_to(folder).parts)
    ]


class AudioSource(ABC):
    """Audio named ``path``, of which windows can be read at any sample rate; its own rate is in Hz."""

    path: str
    sample_rate: int
    channels: int
    samples: int

    @property
    def seconds(self) -> float:
        """The length in seconds."""
        return self.samples / self.sample_rate

    @property
    def title(self) -> str:
        """The name of the file and, of a part, its place in it."""
        return Path(self.path).name

    def samples_at(self, sample_rate: int) -> int:
        """Return the length in samples at another sample rate."""
        return math.ceil(self.samples * sample_rate / self.sample_rate)

    def read(self, start: int, samples: int, sample_rate: int, channels: int) -> Tensor:
        """Read a window; adjacent windows join as if they had been read at once.

        Args:
            start, samples: in samples at ``sample_rate``; outside of the source there is silence.
            sample_rate: in Hz; other rates than the native one are resampled by a windowed sinc.
            channels: 1 returns the mean of all channels; for any other count the source must have as many, or one,
                which is then repeated.

        Returns:
            float32 ``(channels, samples)``.

        Raises:
            DataError: if the source cannot be decoded, or has other channels.
        """
        if self.channels not in (1, channels) and channels != 1:
            raise DataError(f"{self.path} has {self.channels} channels where {channels} are wanted")

        def read(start: int, stop: int) -> Tensor:
            audio = self._read_native(start, stop)
            return self._mean(audio) if channels == 1 else audio

        audio = resample_window(read, start, samples, self.sample_rate, sample_rate)
        return audio.expand(channels, -1).contiguous()

    def _mean(self, audio: Tensor) -> Tensor:
        """Return the mean of the channels, ``(1, samples)``."""
        return audio.mean(dim=0, keepdim=True)

    def _read_native(self, start: int, stop: int) -> Tensor:
        """Return float32 ``(channels, stop - start)`` at the native rate, zero outside of the source."""
        first, last = (min(max(place, 0), self.samples) for place in (start, stop))
        window = np.zeros((self.channels, stop - start), dtype=np.float32)
        if first < last:
            window[:, first - start : last - start] = self._read_inside(first, last)
        return torch.from_numpy(window)

    @abstractmethod
    def _read_inside(self, first: int, last: int) -> np.ndarray:
        """Return float32 ``(channels, last - first)`` at the native rate, with ``0 <= first < last <= samples``."""


@dataclass(frozen=True)
class AudioFile(AudioSource):
    """The header of an audio file, whose samples are decoded when they are read."""

    path: str
    sample_rate: int
    channels: int
    samples: int

    @classmethod
    def open(cls, path: str) -> "AudioFile":
        """Read the header; errors as in :func:`stream_file`."""
        with closing(stream_file(path)) as stream:
            return cls(path, stream.sample_rate, stream.channels, stream.samples)

    def _read_inside(self, first: int, last: int) -> np.ndarray:
        if self.samples * self.channels <= _SHORT_SAMPLES and os.path.isfile(self.path):
            return _decode_short(self.path, os.stat(self.path).st_mtime_ns)[:, first:last]
        with closing(stream_file(self.path)) as stream:
            if stream.format and stream.subtype.startswith(_EXACT_SUBTYPES):
                return stream.read(last - first, first)
        return _decode_once(self.path, os.stat(self.path).st_mtime_ns)[first:last].T


@dataclass(frozen=True)
class AudioPart(AudioSource):
    """Consecutive samples of another source, from ``first`` on; outside of them there is silence."""

    path: str
    sample_rate: int
    channels: int
    samples: int
    source: AudioSource
    first: int

    @classmethod
    def of(cls, source: AudioSource, first: int, samples: int) -> "AudioPart":
        """Return a part, in samples at the source's own rate."""
        return cls(source.path, source.sample_rate, source.channels, samples, source, first)

    @property
    def title(self) -> str:
        start, stop = (sample / self.sample_rate for sample in (self.first, self.first + self.samples))
        return f"{self.source.title}, {start:.1f} to {stop:.1f} s"

    def _read_inside(self, first: int, last: int) -> np.ndarray:
        return self.source._read_inside(self.first + first, self.first + last)


@functools.lru_cache(maxsize=_SHORT_FILES)
def _decode_short(path: str, modified_ns: int) -> np.ndarray:
    """Decode a short file, which training reads in every epoch: float32 ``(channels, samples)``."""
    with closing(stream_file(path)) as stream:
        return stream.read(stream.samples)


@functools.lru_cache(maxsize=_DECODED_FILES)
def _decode_once(path: str, modified_ns: int) -> np.ndarray:
    """Decode a file whose windows are not exact (MP3, Vorbis) or cannot be sought (GSM), from front to back.

    Returns:
        float32 ``(samples, channels)``, in a temporary file that is removed with the array.
    """
    try:
        with closing(stream_file(path)) as stream, tempfile.TemporaryFile() as file:
            for start in range(0, stream.samples, _DECODED_AT_ONCE):
                file.write(stream.read(min(_DECODED_AT_ONCE, stream.samples - start)).T.tobytes())
            return np.memmap(file, np.float32, "r", shape=(stream.samples, stream.channels))
    except OSError as error:
        place = f"it is decoded to {tempfile.gettempdir()}"
        raise DataError(f"{path}: {place}: {error.strerror}; make room there, or convert the file to FLAC") from None


@dataclass
class Stream:
    """Audio that is decoded from front to back, with its name in errors; the format is in soundfile's terms.

    ``decode`` returns the next samples, at most as many as requested, float32 ``(channels, samples)``; ``seek`` moves
    to a sample, and ``close`` releases the file.
    """

    name: str
    sample_rate: int
    channels: int
    samples: int
    decode: Callable[[int], np.ndarray]
    close: Callable[[], object] = lambda: None
    seek: Callable[[int], object] = lambda start: None
    format: str = "WAV"
    subtype: str = "FLOAT"

    def read(self, samples: int, start: int | None = None) -> np.ndarray:
        """Return the next samples, or those from ``start``, float32 ``(channels, samples)``.

        Raises:
            DataError: if they cannot be decoded, or end too early.
        """
        try:
            if start:
                self.seek(start)
            audio = self.decode(samples)
        except soundfile.LibsndfileError as error:
            raise DataError(f"{self.name} cannot be decoded: {error.error_string}") from None
        if audio.shape[1] < samples:
            raise DataError(f"{self.name} ends before its header says: copy it again")
        return audio


def stream_file(path: str, name: str | None = None) -> Stream:
    """Open an audio file with soundfile or, for formats that soundfile cannot read, with pedalboard.

    The name, by default the path, is that of the file in errors.

    Raises:
        DataError: if the file does not exist, is not audio, is empty, or has a sample rate below 100 Hz.
    """
    name = name or path
    if not Path(path).is_file():
        raise DataError(f"{name}: no such file")
    try:
        stream = _open_with_soundfile(path, name)
    except soundfile.LibsndfileError as error:
        try:
            stream = _open_with_pedalboard(path, name)
        except ValueError:
            raise DataError(f"{name} is not an audio file that can be read: {error.error_string}") from None
    if not stream.samples or stream.sample_rate < _LOWEST_RATE:
        stream.close()
        rate = f"has a sample rate of {stream.sample_rate} Hz; it must be at least {_LOWEST_RATE}"
        raise DataError(f"{name} {rate if stream.samples else 'holds no audio'}")
    return stream


def stream_array(audio: np.ndarray, sample_rate: int, name: str = "the audio") -> Stream:
    """Stream samples in memory, ``(channels, samples)``."""
    position = 0

    def decode(samples: int) -> np.ndarray:
        nonlocal position
        position += samples
        return audio[:, position - samples : position].astype(np.float32, copy=False)

    return Stream(name, sample_rate, len(audio), audio.shape[1], decode)


class Recording(AudioSource, AbstractContextManager["Recording"]):
    """Windows of a stream that move forwards: none may start before the previous one.

    ``process`` is applied to the stream part by part; a ``with`` statement closes it.
    """

    def __init__(self, stream: Stream, process: Callable[[np.ndarray], np.ndarray] = lambda audio: audio) -> None:
        self.path = stream.name
        self.sample_rate, self.channels, self.samples = stream.sample_rate, stream.channels, stream.samples
        self._stream = stream
        self._process = process
        # The samples from `_first` on that later windows may contain.
        self._kept = np.zeros((stream.channels, 0), dtype=np.float32)
        self._first = 0
        self._energy = self._energy_of_mean = 0.0

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    @property
    def cancellation(self) -> str | None:
        """A sentence if the channels nearly cancel in the mean that was read so far, or None."""
        return describe_cancellation(self.path, self._energy, self._energy_of_mean)

    def _mean(self, audio: Tensor) -> Tensor:
        mean = super()._mean(audio)
        self._energy += float(audio.square().mean(dim=0).sum())
        self._energy_of_mean += float(mean.square().sum())
        return mean

    def _read_inside(self, first: int, last: int) -> np.ndarray:
        if first < self._first:
            raise ValueError(f"{self.path}: sample {first} was requested after sample {self._first}; read forwards")
        end = self._first + self._kept.shape[1]
        if last > end:
            audio = self._stream.read(last - end)
            finite = np.isfinite(audio).all(axis=0)
            if not finite.all():
                seconds = (end + int(np.argmin(finite))) / self.sample_rate
                raise DataError(f"{self.path} holds a sample that is not a number, or infinite, at {seconds:.3f} s")
            self._kept = np.concatenate([self._kept, self._process(audio)], axis=1)
        self._kept = self._kept[:, first - self._first :]
        self._first = first
        return self._kept[:, : last - first]


def describe_cancellation(name: str, energy: float, energy_of_mean: float) -> str | None:
    """Return a sentence if the mean of a file's channels is at least 20 dB below them, or None."""
    below_db = 10 * math.log10((energy + 1e-30) / (energy_of_mean + 1e-30))
    if below_db < _CANCELLATION_DB:
        return None
    mean = f"their mean, which the encoder takes, is {below_db:.0f} dB below them"
    return f"{name}: its channels nearly cancel, and {mean}: one may be inverted"


@contextmanager
def readable_path(path: str) -> Iterator[str]:
    """Yield a path that can be opened several times: the given one or, for ``-``, that of a copy of standard input."""
    if path != PIPE:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "input.wav"
        with copy.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield str(copy)


def _open_with_soundfile(path: str, name: str) -> Stream:
    file = soundfile.SoundFile(soundfile_path(path))

    def decode(samples: int) -> np.ndarray:
        return file.read(samples, dtype="float32", always_2d=True).T

    shape = file.samplerate, file.channels, file.frames
    return Stream(name, *shape, decode, file.close, file.seek, file.format, file.subtype)


def _open_with_pedalboard(path: str, name: str) -> Stream:
    file = pedalboard.io.AudioFile(path)
    subtype = {"int8": "PCM_S8", "int16": "PCM_16", "int24": "PCM_24", "int32": "PCM_32"}.get(file.file_dtype, "FLOAT")
    shape = round(file.samplerate), file.num_channels, file.frames
    return Stream(name, *shape, file.read, file.close, file.seek, "", subtype)
