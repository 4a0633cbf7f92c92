import numpy as np
import pytest
import torch

from dfx.audio.loudness import lufs
from dfx.evaluation.matching import match_recording, third_octaves

RATE = 22050
CENTRES = third_octaves(RATE / 2)


def noise(seconds: float = 2.0, channels: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(channels, round(seconds * RATE), generator=generator)


def equalized(audio: torch.Tensor, gains_db: np.ndarray) -> torch.Tensor:
    """Apply gains at the centres of third octaves."""
    frequencies = np.fft.rfftfreq(audio.shape[-1], 1 / RATE)
    gains = np.interp(np.log2(frequencies.clip(1)), np.log2(CENTRES), 10 ** (gains_db / 20))
    return torch.fft.irfft(torch.fft.rfft(audio.double()) * torch.from_numpy(gains), audio.shape[-1]).float()


def spectrum_db(audio: torch.Tensor) -> np.ndarray:
    power = torch.fft.rfft(audio.double()).abs().square().mean(dim=0).numpy() / audio.shape[-1] ** 2
    edges = np.append(CENTRES * 2 ** (-1 / 6), RATE)
    bands = np.digitize(np.fft.rfftfreq(audio.shape[-1], 1 / RATE), edges) - 1
    return 10 * np.log10(np.bincount(bands.clip(0), power, len(CENTRES)))


@pytest.mark.parametrize("channels", [1, 2])
def test_filtered_noise_is_brought_back_to_the_spectrum_and_loudness_of_the_noise(channels):
    reference = noise(channels=channels)
    gains_db = 8 * np.sin(np.arange(len(CENTRES)))
    output = match_recording(0.1 * equalized(reference, gains_db), reference, RATE)
    # The equalizers ring for longer than the recording at the lowest frequencies.
    assert np.abs(spectrum_db(output) - spectrum_db(reference))[5:].max() < 0.2
    assert lufs(output, RATE) == pytest.approx(lufs(reference, RATE), abs=0.01)
    # Without a change of phase, the waveform comes back too.
    assert (output - reference).square().mean() < 0.001 * reference.square().mean()


def test_a_reference_may_have_another_length_and_number_of_channels():
    reference = equalized(noise(3.0, channels=2), np.linspace(-6, 6, len(CENTRES)))
    output = match_recording(noise(), reference, RATE)
    assert output.shape == noise().shape
    difference = spectrum_db(output) - spectrum_db(reference)
    assert np.ptp(difference[12:]) < 0.3
    assert lufs(output, RATE) == pytest.approx(lufs(reference, RATE), abs=0.01)


def test_a_band_is_changed_by_24_db_at_most_and_not_at_all_where_one_recording_is_empty():
    loud = np.zeros(len(CENTRES))
    loud[20] = 40
    change = spectrum_db(match_recording(noise(), equalized(noise(), loud), RATE)) - spectrum_db(noise())
    assert 20 < change.max() - np.median(change) < 45
    lowpassed = equalized(noise() * torch.hann_window(2 * RATE), np.where(CENTRES < 2000, 0.0, -200.0))
    output = match_recording(lowpassed, noise(), RATE)
    assert spectrum_db(output)[-1] < spectrum_db(noise())[-1] - 80


@pytest.mark.parametrize("samples", [1, 50, 3000])
def test_short_recordings_keep_their_length(samples):
    audio = noise()[:, :samples]
    output = match_recording(audio, noise(), RATE)
    assert output.shape == audio.shape and output.isfinite().all()


def test_silence_and_silent_references_change_nothing():
    silence = torch.zeros(1, RATE)
    assert torch.equal(match_recording(silence, noise(), RATE), silence)
    assert torch.equal(match_recording(noise(), silence, RATE), noise())
