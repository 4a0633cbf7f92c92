import errno
import os

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from dfx.audio.metadata import lost_metadata
from dfx.audio.reading import AudioFile, Stream
from dfx.audio.resampling import resample, resample_window
from dfx.audio.writing import AudioWriter, OutputFile
from dfx.errors import DataError


@pytest.fixture
def stereo(tmp_path):
    """A second of stereo noise at 44.1 kHz, and its samples."""
    audio = (0.1 * np.random.default_rng(0).standard_normal((44100, 2))).astype(np.float32)
    soundfile.write(tmp_path / "stereo.wav", audio, 44100, subtype="FLOAT")
    return AudioFile.open(str(tmp_path / "stereo.wav")), torch.from_numpy(audio.T.copy())


def test_the_header_has_rate_channels_and_length(stereo):
    file, _ = stereo
    assert (file.sample_rate, file.channels, file.samples, file.seconds) == (44100, 2, 44100, 1.0)
    assert file.samples_at(22050) == 22050 and file.samples_at(48000) == 48000


def test_one_channel_is_the_mean_of_all(stereo):
    file, audio = stereo
    torch.testing.assert_close(file.read(0, 44100, 44100, 1), audio.mean(dim=0, keepdim=True))
    torch.testing.assert_close(file.read(0, 44100, 44100, 2), audio)


def test_a_mono_file_is_repeated_for_two_channels_but_stereo_is_not_for_three(tmp_path, stereo):
    soundfile.write(tmp_path / "mono.wav", np.linspace(-0.5, 0.5, 100), 44100)
    mono = AudioFile.open(str(tmp_path / "mono.wav")).read(0, 100, 44100, 2)
    assert torch.equal(mono[0], mono[1])
    with pytest.raises(DataError, match="2 channels where 3"):
        stereo[0].read(0, 10, 44100, 3)


def test_a_window_is_silent_outside_of_the_file(stereo):
    file, audio = stereo
    window = file.read(-100, 44300, 44100, 2)
    assert not window[:, :100].any() and not window[:, -100:].any()
    torch.testing.assert_close(window[:, 100:-100], audio)


@pytest.mark.parametrize(
    "name, format, subtype, sample_rate",
    [("a.ogg", "OGG", "VORBIS", 8000), ("a.opus", "OGG", "OPUS", 8000), ("a.mp3", "MP3", "MPEG_LAYER_III", 44100),
     ("a.wav", "WAV", "GSM610", 8000), ("a.au", "AU", "G721_32", 8000), ("a.wav", "WAV", "IMA_ADPCM", 22050),
     ("a.caf", "CAF", "ALAC_16", 44100), ("a.flac", "FLAC", "PCM_16", 44100), ("a.wav", "WAV", "ALAW", 8000)],
)  # fmt: skip
def test_windows_are_those_of_the_whole_decode_in_every_codec(
    tmp_path, monkeypatch, name, format, subtype, sample_rate
):
    monkeypatch.setattr("dfx.audio.reading._SHORT_SAMPLES", 0)
    path = str(tmp_path / name)
    soundfile.write(path, 0.2 * np.random.default_rng(0).standard_normal(30000), sample_rate, subtype, format=format)
    whole = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    file = AudioFile.open(path)
    for start in [*range(0, 29000, 477), 5]:
        assert torch.equal(file.read(start, 1000, sample_rate, 1)[0], whole[start : start + 1000])


def test_a_compressed_file_that_has_changed_is_decoded_again(tmp_path):
    path = tmp_path / "a.mp3"
    for value in (0.0, 0.5):
        soundfile.write(path, np.full(9000, value), 44100)
        os.utime(path, ns=(0, int(1e9 * value)))
        assert AudioFile.open(str(path)).read(4000, 100, 44100, 1).mean() == pytest.approx(value, abs=0.01)


def test_a_short_file_is_decoded_once(stereo, monkeypatch):
    file, audio = stereo
    file.read(0, 10, 44100, 2)
    monkeypatch.setattr("dfx.audio.reading.stream_file", None)
    assert torch.equal(file.read(100, 1000, 44100, 2), audio[:, 100:1100])


def test_a_full_temporary_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("dfx.audio.reading._SHORT_SAMPLES", 0)
    soundfile.write(tmp_path / "full.ogg", np.zeros(9000), 44100)
    file = AudioFile.open(str(tmp_path / "full.ogg"))

    def refuse():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(DataError, match="full.ogg: .*No space left on device; make room there"):
        file.read(0, 100, 44100, 1)


@pytest.mark.parametrize("old, new", [(48003, 22050), (22050, 48003), (44056, 44100), (192001, 22050), (8000, 44101)])
def test_rates_with_no_common_divisor_are_resampled_in_bounded_memory(old, new):
    sine = torch.sin(2 * torch.pi * 1000 * torch.arange(old // 4 + 3, dtype=torch.float64) / old)[None].float()
    whole = resample(sine, old, new)
    assert whole.shape[1] == -(-sine.shape[1] * new // old)
    expected = torch.sin(2 * torch.pi * 1000 * torch.arange(whole.shape[1], dtype=torch.float64) / new)[None].float()
    torch.testing.assert_close(whole[:, 500:-500], expected[:, 500:-500], atol=1e-3, rtol=0)
    padded = torch.nn.functional.pad(sine, (2 * old, 2 * old))
    for start, samples in [(0, 100), (1234, 1), (-50, 999), (whole.shape[1] - 20, 20), (77, 0)]:
        window = resample_window(lambda a, b: padded[:, a + 2 * old : b + 2 * old], start, samples, old, new)
        inside = max(0, -start)
        torch.testing.assert_close(window[:, inside:], whole[:, start + inside : start + samples], atol=1e-6, rtol=0)


@pytest.mark.parametrize("old, new", [(44100, 48000), (96000, 44100), (11025, 192000), (22050, 44100), (44100, 22050)])
def test_resampling_agrees_with_torchaudio(old, new):
    audio = torch.randn(2, 5001, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for zeros in (6, 32):
        expected = torchaudio.functional.resample(audio, old, new, lowpass_filter_width=zeros)
        torch.testing.assert_close(resample(audio, old, new, zeros), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("sample_rate", [22050, 48000, 16000, 44100])
def test_windows_of_resampled_audio_are_those_of_the_whole_file(stereo, sample_rate):
    file, audio = stereo
    whole = resample(audio, 44100, sample_rate)
    for start, samples in [(0, 4000), (1, 777), (5000, 3000), (sample_rate - 500, 500), (-50, 100)]:
        window = file.read(start, samples, sample_rate, 2)
        assert window.shape == (2, samples)
        inside = max(0, -start)
        torch.testing.assert_close(window[:, inside:], whole[:, max(start, 0) : start + samples], atol=1e-6, rtol=0)


def test_one_sample_is_audio(tmp_path):
    soundfile.write(tmp_path / "one.wav", np.array([0.25]), 44100, subtype="FLOAT")
    file = AudioFile.open(str(tmp_path / "one.wav"))
    assert file.read(0, 1, 44100, 1).item() == 0.25
    assert file.read(-5, 20, 22050, 1).isfinite().all()


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "text.wav").write_text("this is no audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 44100)
    soundfile.write(tmp_path / "slow.wav", np.zeros(10), 1)
    for name, fault in [
        ("missing.wav", "no such file"),
        ("text.wav", "not an audio file"),
        ("empty.wav", "no audio"),
        ("slow.wav", "sample rate of 1 Hz"),
    ]:
        with pytest.raises(DataError, match=fault) as error:
            AudioFile.open(str(tmp_path / name))
        assert name in str(error.value)


def test_a_file_cut_short_is_named(tmp_path):
    soundfile.write(tmp_path / "whole.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 40000), 44100)
    whole = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    file = AudioFile.open(str(tmp_path / "cut.flac"))
    with pytest.raises(DataError, match="cut.flac"):
        file.read(0, 40000, 44100, 1)


# --- writing -----------------------------------------------------------------------------------------


def encodings():
    """Return every format that soundfile offers with each of its subtypes, but for files without a header."""
    formats = [format for format in soundfile.available_formats() if format != "RAW"]
    return [(format, subtype) for format in formats for subtype in soundfile.available_subtypes(format)]


def write_like(path, format, subtype, audio, sample_rate) -> OutputFile:
    """Write ``(channels, samples)`` as an output for a source of this encoding."""
    source = Stream("source", sample_rate, *audio.shape, decode=lambda samples: audio, format=format, subtype=subtype)
    output = OutputFile.like(source, str(path))
    with AudioWriter(output) as writer:
        writer.write(audio)
    return output


@pytest.mark.parametrize("format, subtype", encodings())
@pytest.mark.parametrize("samples", [4001, 4000])
def test_loud_outputs_are_clipped_and_keep_their_length_in_every_encoding(tmp_path, format, subtype, samples):
    loud = (2 * np.sin(0.02 * np.arange(samples))).astype(np.float32)[None]
    path = tmp_path / f"a.{format.lower()}"
    rate = 48000 if subtype == "OPUS" else 8000
    try:
        output = write_like(path, format, subtype, loud, rate)
    except DataError as error:
        assert format in ("PAF", "SDS", "SD2", "XI"), error
        return
    read = soundfile.read(path, dtype="float32", always_2d=True)[0].T
    assert read.shape == loud.shape
    if output.subtype in ("VORBIS", "OPUS", "MPEG_LAYER_III"):
        assert np.corrcoef(read[0], loud.clip(-1, 1)[0])[0, 1] > 0.95
    else:
        np.testing.assert_allclose(read, loud if output.subtype in ("FLOAT", "DOUBLE") else loud.clip(-1, 1), atol=0.03)


@pytest.mark.parametrize(
    "format, subtype, name, expected",
    [("MP3", "MPEG_LAYER_III", "a.wav", "PCM_24"), ("OGG", "VORBIS", "a.flac", "PCM_24"), ("WAV", "MS_ADPCM", "a.wav",
     "PCM_24"), ("WAV", "GSM610", "a.aiff", "PCM_24"), ("CAF", "ALAC_16", "a.wav", "PCM_16"), ("WAV", "ULAW", "a.flac",
     "PCM_16"), ("WAV", "DOUBLE", "a.flac", "PCM_24"), ("WAV", "PCM_24", "a.mp3", "MPEG_LAYER_III"), ("OGG", "VORBIS",
     "a.mp3", "MPEG_LAYER_III"), ("WAV", "ALAW", "a.wav", "ALAW"), ("MP3", "MPEG_LAYER_III", "a.ogg", "VORBIS")],
)  # fmt: skip
def test_an_output_has_the_nearest_encoding_that_its_format_holds(tmp_path, format, subtype, name, expected):
    assert write_like(tmp_path / name, format, subtype, np.zeros((1, 4000), np.float32), 44100).subtype == expected
    assert soundfile.info(tmp_path / name).subtype == expected


# --- metadata ----------------------------------------------------------------------------------------


def add_chunk(path, name: bytes, content: bytes) -> None:
    """Append a chunk to a RIFF file."""
    data = path.read_bytes() + name + len(content).to_bytes(4, "little") + content + b"\0" * (len(content) % 2)
    path.write_bytes(data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8:])


@pytest.mark.parametrize(
    "chunk, content, described",
    [
        (
            b"bext",
            bytes(338) + (158760000).to_bytes(8, "little") + bytes(256),
            "bext (time reference 158760000 samples)",
        ),
        (b"iXML", b"<BWFXML/>!", "iXML"),
        (b"cue ", bytes(4), "cue"),
        (b"smpl", bytes(36), "smpl"),
        (b"LIST", b"adtl", "labels of cue points"),
        (b"LIST", b"INFOINAM\x04\0\0\0song", "tags (title)"),
    ],
)
def test_chunks_that_an_output_lacks_are_named(tmp_path, chunk, content, described):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(101), 44100, "PCM_24")
    assert lost_metadata(str(path), "WAV") == []
    add_chunk(path, b"JUNK", bytes(3))
    add_chunk(path, chunk, content)
    assert lost_metadata(str(path), "WAV") == [described]


@pytest.mark.parametrize(
    "format, mask, lost",
    [("WAVEX", 0x3F, []), ("WAVEX", 0x60F, [0x60F]), ("WAVEX", 0, [0]), ("FLAC", 0x60F, [0x60F]), ("FLAC", 0, [])],
)
def test_another_channel_mask_is_named(tmp_path, format, mask, lost):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros((100, 6)), 44100, "PCM_16", format="WAVEX")
    data = bytearray(path.read_bytes())
    place = data.index(b"fmt ") + 28
    data[place : place + 4] = mask.to_bytes(4, "little")
    path.write_bytes(data)
    assert lost_metadata(str(path), format) == [f"channel mask 0x{value:X}" for value in lost]


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.aiff", "a.mp3"])
def test_tags_are_named_in_every_format(tmp_path, name):
    path = str(tmp_path / name)
    for title in ("", "song"):
        with soundfile.SoundFile(path, "w", 44100, 1) as file:
            if title:
                file.title = title
            file.write(np.zeros(5000))
        assert any("title" in lost or lost in ("ID3", "NAME") for lost in lost_metadata(path, "WAV")) == bool(title)
