import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from dfx.audio.reading import AudioFile
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


@pytest.mark.parametrize("sample_rate", [22050, 48000, 16000, 44100])
def test_windows_of_resampled_audio_are_those_of_the_whole_file(stereo, sample_rate):
    file, audio = stereo
    whole = torchaudio.functional.resample(audio, 44100, sample_rate, lowpass_filter_width=32)
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
    for name, fault in [
        ("missing.wav", "no such file"),
        ("text.wav", "not an audio file"),
        ("empty.wav", "no audio"),
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
