"""Recordings that are read and written as they are: front to back, in parts, at their own rate and bit depth."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pedalboard.io
import soundfile

from dfx.audio.reading import _EXACT, PIPE, Stream
from dfx.errors import DataError

_ALIASES = {"aif": "AIFF", "bwf": "WAV", "oga": "OGG", "opus": "OGG", "wave": "WAV"}
_LARGEST_WAV_BYTES = 2**32 - 2**16
_BYTES = {"PCM_U8": 1, "PCM_S8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
_SUBTYPES = {"16": "PCM_16", "24": "PCM_24", "32": "PCM_32", "float": "FLOAT"}

BIT_DEPTHS = tuple(_SUBTYPES)
"""What :class:`AudioWriter` can be asked for."""


def format_of(path: str) -> str:
    """The format, as soundfile calls it, that a file has by its suffix.

    Raises:
        DataError: if there is none.
    """
    suffix = "wav" if path == PIPE else Path(path).suffix[1:].lower()
    name = _ALIASES.get(suffix, suffix.upper())
    if name not in soundfile.available_formats() or name == "RAW":
        known = ".wav, .flac, .ogg, .opus, .mp3, .aiff, .rf64, .w64 and .caf are among what can be written"
        raise DataError(f"{path}: '.{suffix}' is no audio format that can be written; {known}")
    return name


def is_audio(path: Path) -> bool:
    """Whether a file's suffix is one of audio."""
    suffix = path.suffix.lower()
    known = {f".{name.lower()}" for name in (*soundfile.available_formats(), *_ALIASES)} - {".raw", ".mat4", ".mat5"}
    return suffix in known or suffix in pedalboard.io.get_supported_read_formats()


@dataclass(frozen=True)
class Target:
    """How an output is written.

    Args:
        path: of the file, or ``-``.
        sample_rate, channels, samples: of what is written.
        format, subtype: as soundfile calls them.
    """

    path: str
    sample_rate: int
    channels: int
    samples: int
    format: str
    subtype: str

    @classmethod
    def like(cls, stream: Stream, path: str, bit_depth: str | None = None) -> Target:
        """With the rate, the channels and, as far as the format has it, the bit depth of a stream.

        What has no bit depth (MP3, Ogg) becomes 24 bits in a format that has one, and so does float in a format
        of whole numbers.

        Raises:
            DataError: if the format of ``path`` cannot hold the stream.
        """
        format, subtype = format_of(path), None
        if format == "WAV" and stream.format == "WAVEX":
            format = "WAVEX"
        default = "OPUS" if Path(path).suffix.lower() == ".opus" else soundfile.default_subtype(format)
        if bit_depth is not None:
            subtype = _SUBTYPES[bit_depth]
            if not soundfile.check_format(format, subtype):
                raise DataError(f"{path}: {format} does not come in a bit depth of {bit_depth}")
        elif default == "OPUS":
            subtype = default
        else:
            sibling = {"PCM_U8": "PCM_S8", "PCM_S8": "PCM_U8"}.get(stream.subtype, stream.subtype)
            wanted: list[str] = [stream.subtype, sibling, "PCM_24", default]
            subtype = next(name for name in wanted if soundfile.check_format(format, name))
        target = cls(path, stream.sample_rate, stream.channels, stream.samples, format, subtype)
        target._check()
        return target

    def _check(self) -> None:
        described = f"{self.channels} channels at {self.sample_rate} Hz"
        size = self.samples * self.channels * _BYTES.get(self.subtype, 0)
        if self.format in ("WAV", "WAVEX") and size > _LARGEST_WAV_BYTES:
            raise DataError(f"{self.path}: a WAV file holds 4 GB, and this would be more; write .rf64, .w64 or .flac")
        with tempfile.TemporaryFile() as nowhere:
            try:
                self.open(nowhere).close()
            except (soundfile.LibsndfileError, TypeError) as error:
                reason = getattr(error, "error_string", str(error))
                raise DataError(f"{self.path}: {self.format} cannot hold {described} ({reason})") from None

    def open(self, file: Any) -> soundfile.SoundFile:
        return soundfile.SoundFile(file, "w", self.sample_rate, self.channels, self.subtype, format=self.format)


class AudioWriter:
    """Writes a file that is there as a whole or not at all, and counts what it clips.

    Used as a context; nothing is left behind where it ends with an error.

    Args:
        target: what is written.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.peak = 0.0
        self.samples_over = 0

    def __enter__(self) -> AudioWriter:
        if self.target.path == PIPE:
            handle, self._path = tempfile.mkstemp(suffix=".wav")
            os.close(handle)
        else:
            path = Path(self.target.path)
            self._path = str(path.with_name(f".{path.name}.part"))
        try:
            self._file = self.target.open(self._path)
        except soundfile.LibsndfileError as error:
            raise DataError(f"{self.target.path} cannot be written: {error.error_string}") from None
        return self

    def write(self, audio: np.ndarray) -> None:
        """The next part, float32 ``(channels, samples)``."""
        magnitude = np.abs(audio)
        if magnitude.size:
            self.peak = max(self.peak, float(magnitude.max()))
        if self.peak > 1:
            self.samples_over += int((magnitude > 1).any(axis=0).sum())
        try:
            self._file.write(audio.T)
        except soundfile.LibsndfileError as error:
            raise DataError(f"{self.target.path} cannot be written: {error.error_string}") from None

    def __exit__(self, kind: Any, *error: Any) -> None:
        self._file.close()
        try:
            if kind is None and self.target.path == PIPE:
                _to_standard_output(self._path)
            elif kind is None:
                os.replace(self._path, self.target.path)
        finally:
            if os.path.exists(self._path):
                os.unlink(self._path)

    @property
    def clipping(self) -> str | None:
        """What was too loud, as a sentence; none if nothing was."""
        if self.peak <= 1:
            return None
        over = 20 * np.log10(self.peak)
        what = "and is kept, in float" if self.target.subtype in _EXACT else f"{self.samples_over} samples are clipped"
        return f"{self.target.path}: the output peaks at {over:+.1f} dBFS: {what}"


def _to_standard_output(path: str) -> None:
    try:
        with open(path, "rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # Python would complain again when it flushes on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise DataError("standard output was closed before all was written") from None


def pairs_of(input: str, output: str) -> list[tuple[str, str]]:
    """Which file becomes which: one, or of a folder every audio file in it and below, under the same names.

    Raises:
        DataError: if a folder holds no audio file, or one that cannot be written in its format.
    """
    if input == PIPE or not Path(input).is_dir():
        if output != PIPE and Path(output).is_dir():
            output = str(Path(output) / ("output.wav" if input == PIPE else Path(input).name))
        return [(input, output)]
    if output == PIPE or Path(output).is_file():
        raise DataError(f"{output} is no folder, and {input} is one: name a folder to write to")
    inside = Path(output).resolve()
    files = [
        path
        for path in sorted(Path(input).rglob("*"))
        if path.is_file() and is_audio(path) and not path.name.startswith(".") and inside not in path.resolve().parents
    ]
    if not files:
        raise DataError(f"{input} holds no audio files")
    return [(str(path), str(Path(output) / path.relative_to(input))) for path in files]
