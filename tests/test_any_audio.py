"""Reading, windows and writing over formats, encodings, rates, channels and lengths, drawn by Hypothesis."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dfx.audio.reading import AudioFile, Stream
from dfx.audio.writing import AudioWriter, OutputFile

FLOAT = ("FLOAT", "DOUBLE")
EXACT = [
    *(("WAV", subtype) for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")),
    *(("AIFF", subtype) for subtype in ("PCM_S8", "PCM_U8", "PCM_24", "FLOAT", "ULAW", "ALAW")),
    *(("FLAC", subtype) for subtype in ("PCM_S8", "PCM_16", "PCM_24")),
    *(("CAF", subtype) for subtype in ("PCM_16", "ALAW", "ALAC_16")),
    *(("W64", "ULAW"), ("RF64", "PCM_24"), ("AU", "G721_32"), ("WAV", "MS_ADPCM"), ("WAV", "GSM610"), ("VOC", "ALAW")),
]
LOSSY = [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]
RATES = (8000, 11025, 22050, 44100, 48000, 48003, 96000)
LOSSY_RATES = {"OPUS": (8000, 16000, 24000, 48000)}
PROPERTIES = settings(max_examples=40, derandomize=True, deadline=None, database=None)


class Written(NamedTuple):
    """Audio ``(channels, samples)``, the description of the file that it was written to, and the file."""

    audio: np.ndarray
    output: OutputFile
    file: AudioFile


def write(folder: str, encoding: tuple[str, str], rate: int, channels: int, samples: int, level: float) -> Written:
    """Write noise as an output for a source of this encoding, in parts."""
    noise = np.random.default_rng(samples).standard_normal((channels, samples))
    audio = (level * (noise + np.roll(noise, 1, axis=1) + np.roll(noise, 2, axis=1))).astype(np.float32)
    format, subtype = encoding
    source = Stream("source", rate, channels, samples, decode=lambda samples: audio, format=format, subtype=subtype)
    path = str(Path(folder) / f"a.{format.lower()}")
    output = OutputFile.like(source, path)
    with AudioWriter(output) as writer:
        for part in np.array_split(audio, 3, axis=1):
            writer.write(part)
    return Written(audio, output, AudioFile.open(path))


@st.composite
def encodings(draw: st.DrawFn, among: list[tuple[str, str]]) -> tuple[tuple[str, str], int]:
    """Draw an encoding and a rate that it has."""
    encoding = draw(st.sampled_from(among))
    rates = LOSSY_RATES.get(encoding[1], RATES[:5] if encoding in LOSSY else RATES)
    return encoding, draw(st.sampled_from(rates))


@PROPERTIES
@given(encodings(EXACT), st.integers(1, 2), st.integers(1, 3000), st.sampled_from([0.01, 0.3, 3.0, 1e4]))
def test_writing_clips_and_keeps_length_and_place(encoding_and_rate, channels, samples, level):
    with tempfile.TemporaryDirectory() as folder:
        audio, output, file = write(folder, *encoding_and_rate, channels, samples, level)
        assert (file.samples, file.channels, file.sample_rate) == (samples, channels, encoding_and_rate[1])
        read = file.read(0, samples, file.sample_rate, channels).numpy()
    expected = audio if output.subtype in FLOAT else audio.clip(-1, 1)
    # The coarsest steps are those of A-law at full scale.
    np.testing.assert_allclose(read, expected, atol=0.035, rtol=1e-6)


@PROPERTIES
@given(encodings(LOSSY), st.integers(1, 2), st.integers(1, 9000))
def test_lossy_codecs_keep_length_and_place(encoding_and_rate, channels, samples):
    with tempfile.TemporaryDirectory() as folder:
        audio, _, file = write(folder, *encoding_and_rate, channels, samples, 0.1)
        assert (file.samples, file.channels, file.sample_rate) == (samples, channels, encoding_and_rate[1])
        read = file.read(0, samples, file.sample_rate, channels).numpy()
    if samples > 4000:
        products = [float((np.roll(read, shift, axis=1) * audio).sum()) for shift in range(-5, 6)]
        assert int(np.argmax(products)) == 5


@PROPERTIES
@given(
    encodings(EXACT + LOSSY),
    st.integers(1, 2),
    st.integers(1, 9000),
    st.sampled_from((None, 16000, 22050, 44100, 44101)),
    st.lists(st.tuples(st.floats(-0.2, 1.1, allow_subnormal=False), st.integers(0, 2000)), min_size=3, max_size=6),
)
def test_windows_are_parts_of_the_whole(encoding_and_rate, channels, samples, wanted_rate, windows):
    with tempfile.TemporaryDirectory() as folder:
        file = write(folder, *encoding_and_rate, channels, samples, 0.1).file
        rate = wanted_rate or file.sample_rate
        length = file.samples_at(rate)
        assert length == -(-samples * rate // file.sample_rate)
        margin = 4000
        whole = file.read(-margin - length, 3 * length + 2 * margin, rate, 1)
        for place, count in windows:
            start = int(place * length)
            window = file.read(start, count, rate, 1)
            expected = whole[:, start + margin + length :][:, :count]
            torch.testing.assert_close(window[:, : expected.shape[1]], expected, atol=2e-5, rtol=0)
            assert window.shape == (1, count) and window.isfinite().all()
