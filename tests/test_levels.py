"""Decibels, levels and the spectrogram, which everything that measures audio shares."""

import math

import numpy as np
import pytest
import scipy.signal
import torch

from dfx.audio.levels import amplitude_to_db, db_to_amplitude, frame_levels_db, matching_gain, rms
from dfx.audio.spectrogram import magnitude_spectrogram


@pytest.mark.parametrize("kind", [float, np.float32, np.array, torch.tensor])
def test_decibels_are_those_of_floats_arrays_and_tensors(kind):
    for amplitude, level_db in [(1.0, 0.0), (0.5, -6.0206), (0.0, -100.0)]:
        assert float(amplitude_to_db(kind(amplitude))) == pytest.approx(level_db, abs=1e-4)
    assert float(db_to_amplitude(kind(-20.0))) == pytest.approx(0.1)


@pytest.mark.parametrize("audio", [np.array([[3.0, -4.0]]), torch.tensor([[3.0, -4.0]])])
def test_root_mean_square_and_the_gain_that_matches_it(audio):
    assert float(rms(audio)) == pytest.approx(math.sqrt(12.5))
    assert float(matching_gain(2 * audio, audio)) == pytest.approx(0.5)
    assert matching_gain(0 * audio, audio) == 1


def test_levels_are_those_of_whole_frames_over_all_channels():
    audio = torch.tensor([[1.0], [0.0]]) * torch.cat([torch.ones(20), torch.zeros(25)])
    torch.testing.assert_close(
        frame_levels_db(audio, 1000), torch.tensor([-3.0103, -100.0]).double(), atol=1e-4, rtol=0
    )
    assert frame_levels_db(audio[:, :19], 1000).shape == (0,)


@pytest.mark.parametrize("samples", [1, 500, 5000])
def test_the_spectrogram_agrees_with_scipy_for_any_length(samples):
    audio = np.random.default_rng(0).standard_normal(samples)
    expected = scipy.signal.ShortTimeFFT(scipy.signal.get_window("hann", 512), 128, 1.0).stft(
        np.pad(audio, (0, max(0, 512 - samples))), p0=0, p1=samples // 128 + 1
    )
    found = magnitude_spectrogram(audio, 512, 128)
    np.testing.assert_allclose(found, np.abs(expected), atol=1e-5)
