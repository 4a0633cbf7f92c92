"""Audio files with the sample rate, channels and bit depth of what was read, written part by part."""

import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from dfx.audio.levels import amplitude_to_db
from dfx.audio.metadata import soundfile_path
from dfx.audio.reading import FLOAT_SUBTYPES, PIPE, Stream, audio_files
from dfx.errors import DataError
from dfx.writing import replacing

_FORMATS_BY_SUFFIX = {"aif": "AIFF", "bwf": "WAV", "oga": "OGG", "opus": "OGG", "wave": "WAV"}
_LARGEST_WAV_BYTES = 2**32 - 2**16
_BYTES = dict.fromkeys(("PCM_U8", "PCM_S8", "ULAW", "ALAW"), 1)
_BYTES |= {"PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
# Codecs of blocks (ADPCM, GSM) change the length, some overflow at full scale, and ALAC has errors.
_EXACT_SUBTYPES = {*_BYTES, "VORBIS", "OPUS", "MPEG_LAYER_III"}
_UNWRITABLE = ("RAW", "PAF", "SDS", "SD2")  # without a header, with overflow at full scale, or in two files
_NEAREST = {"PCM_U8": ["PCM_S8", "PCM_16"], "PCM_S8": ["PCM_U8", "PCM_16"], "ALAC_32": ["PCM_32"]}
_NEAREST |= dict.fromkeys(("ULAW", "ALAW", "ALAC_16"), ["PCM_16"])
_SUBTYPES = {"16": "PCM_16", "24": "PCM_24", "32": "PCM_32", "float": "FLOAT"}
BIT_DEPTHS = tuple(_SUBTYPES)


@dataclass(frozen=True)
class OutputFile:
    """An audio file to write, or standard output for the path ``-``; format and subtype are in soundfile's terms."""

    path: str
    sample_rate: int
    channels: int
    samples: int
    format: str
    subtype: str

    @classmethod
    def like(cls, stream: Stream, path: str, bit_depth: str | None = None) -> "OutputFile":
        """Describe an output with the rate, channels and, if its format allows, the bit depth of a stream.

        Sources without a bit depth (MP3, Ogg, ADPCM), and float sources for an integer format, are written with 24
        bits or, where the format has none, with the format's default. The suffix of ``path`` selects the format;
        ``bit_depth`` is one of :data:`BIT_DEPTHS`.

        Raises:
            DataError: if the format cannot be written, or cannot hold the stream; or for another bit depth.
        """
        format = _format_of(path)
        if format == "WAV" and stream.format == "WAVEX":
            format = "WAVEX"
        default = "OPUS" if Path(path).suffix.lower() == ".opus" else soundfile.default_subtype(format)
        if bit_depth is not None:
            if bit_depth not in BIT_DEPTHS:
                raise DataError(f"bit_depth is {bit_depth!r}; it must be any of {', '.join(map(repr, BIT_DEPTHS))}")
            wanted = [_SUBTYPES[bit_depth]]
            if not soundfile.check_format(format, *wanted):
                raise DataError(f"{path}: {format} does not come in a bit depth of {bit_depth}")
        elif default == "OPUS":
            wanted = [default]
        else:
            wanted = [stream.subtype, *_NEAREST.get(stream.subtype, []), "PCM_24", default]
        shape = stream.sample_rate, stream.channels, stream.samples
        outputs = [cls(path, *shape, format, subtype) for subtype in wanted]
        return next((output for output in outputs[:-1] if not output._fault()), outputs[-1])._checked()

    def _checked(self) -> "OutputFile":
        size = self.samples * self.channels * _BYTES.get(self.subtype, 0)
        if self.format in ("WAV", "WAVEX") and size > _LARGEST_WAV_BYTES:
            raise DataError(f"{self.path}: a WAV file holds at most 4 GB; write .rf64, .w64 or .flac")
        if fault := self._fault():
            described = f"{self.channels} channels at {self.sample_rate} Hz"
            raise DataError(f"{self.path}: {self.format} cannot hold {described} ({fault})")
        return self

    def _fault(self) -> str:
        """Return why libsndfile cannot write this format with its exact length and without overflow, or ``""``."""
        is_padded = self.format == "VOC" or (self.format == "AIFF" and self.samples * self.channels % 2)
        if self.subtype not in _EXACT_SUBTYPES or (is_padded and _BYTES.get(self.subtype) == 1):
            return f"{self.subtype} is not written exactly"
        try:
            self.open(io.BytesIO()).close()
        except (soundfile.LibsndfileError, TypeError, ValueError) as error:
            return getattr(error, "error_string", str(error))
        return ""

    def open(self, file: Any) -> soundfile.SoundFile:
        """Open a path or binary file for writing in this format."""
        return soundfile.SoundFile(file, "w", self.sample_rate, self.channels, self.subtype, format=self.format)


class AudioWriter:
    """Context manager that writes an audio file and counts clipped samples.

    The file appears under its name when the context ends; after an error nothing is left behind.
    """

    def __init__(self, output: OutputFile) -> None:
        self.output = output
        self.peak = 0.0
        self.clipped_samples = 0

    def __enter__(self) -> "AudioWriter":
        path = self.output.path
        with contextlib.ExitStack() as stack:
            partial = stack.enter_context(_standard_output() if path == PIPE else replacing(Path(path)))
            with self._errors_named():
                self._file = stack.enter_context(self.output.open(soundfile_path(str(partial))))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write(self, audio: np.ndarray) -> None:
        """Append float32 ``(channels, samples)``, clipped to full scale unless the samples are written in float."""
        magnitude = np.abs(audio)
        self.peak = max(self.peak, float(magnitude.max(initial=0.0)))
        self.clipped_samples += int((magnitude > 1).any(axis=0).sum())
        if self.output.subtype not in FLOAT_SUBTYPES:
            audio = audio.clip(-1, 1)  # libsndfile wraps A-law, mu-law and others
        with self._errors_named():
            self._file.write(audio.T)

    @property
    def clipping(self) -> str | None:
        """A sentence about samples beyond full scale, or None if there are none."""
        if self.peak <= 1:
            return None
        is_float = self.output.subtype in FLOAT_SUBTYPES
        result = "and is kept, in float" if is_float else f"{self.clipped_samples} samples are clipped"
        return f"{self.output.path}: the output peaks at {amplitude_to_db(self.peak):+.1f} dBFS: {result}"

    @contextlib.contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except soundfile.LibsndfileError as error:
            raise DataError(f"{self.output.path} cannot be written: {error.error_string}") from None


def input_output_pairs(input: str, output: str) -> list[tuple[str, str]]:
    """Return the path of the output of every input: of one file, or of all audio files in and below a folder.

    Raises:
        DataError: if a path is empty, or a folder is given with a file as output, or holds no audio file.
    """
    if not (input and output):
        raise DataError(f"the path of the {'output' if input else 'input'} is empty: give a file or a folder")
    if input == PIPE or not Path(input).is_dir():
        if output != PIPE and Path(output).is_dir():
            output = str(Path(output) / ("output.wav" if input == PIPE else Path(input).name))
        return [(input, output)]
    if output == PIPE or Path(output).is_file():
        raise DataError(f"{output} is no folder, and {input} is one: name a folder to write to")
    files, output_folder = audio_files(Path(input)), Path(output).resolve()
    if Path(input).resolve() in output_folder.parents:  # earlier outputs are no inputs
        files = [path for path in files if output_folder not in path.resolve().parents]
    if not files:
        raise DataError(f"{input} holds no audio files")
    return [(str(path), str(Path(output) / path.relative_to(input))) for path in files]


def _format_of(path: str) -> str:
    suffix = "wav" if path == PIPE else Path(path).suffix[1:].lower()
    name = _FORMATS_BY_SUFFIX.get(suffix, suffix.upper())
    if name not in soundfile.available_formats() or name in _UNWRITABLE:
        known = ".wav, .flac, .ogg, .opus, .mp3, .aiff, .rf64, .w64 and .caf are among those that can be"
        raise DataError(f"{path}: '.{suffix}' is no audio format that can be written; {known}")
    return name


@contextlib.contextmanager
def _standard_output() -> Iterator[Path]:
    """Yield a temporary path, and copy the file to standard output on success."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "output.wav"
        yield path
        try:
            with path.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            # Otherwise Python reports the broken pipe again when it flushes on exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise DataError("standard output was closed before all was written") from None
