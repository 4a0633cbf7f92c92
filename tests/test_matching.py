import numpy as np
import pytest
import torch
import torchaudio

from dfx.datasets.preparation.matching import MAX_DELAY_SECONDS, Match, cut_to_match, match

RATE = 22050


def song(seed: int = 0, seconds: float = 40.0) -> torch.Tensor:
    """Noise in bursts, ``(2, samples)``."""
    generator = np.random.default_rng(seed)
    samples = int(seconds * RATE)
    bursts = np.repeat(generator.uniform(0.05, 0.5, 1 + samples // 5000), 5000)[:samples]
    return torch.from_numpy((bursts * generator.standard_normal((2, samples))).astype(np.float32))


def master(audio: torch.Tensor) -> torch.Tensor:
    return torch.tanh(2 * torchaudio.functional.treble_biquad(audio, RATE, 3.0))


@pytest.mark.parametrize("delay", [0, 1, 1105, -1105, 80_000, -80_000])
@pytest.mark.parametrize("polarity", [1, -1])
def test_a_planted_delay_of_either_sign_is_found_and_removed(delay, polarity):
    input = song()
    target = polarity * master(input)
    input, target = input[:, max(0, delay) :], target[:, max(0, -delay) :]
    found = match(input, target, RATE)
    assert found[:3] == (delay, 0, polarity) and found.confidence > 0.8 and found.doubt == ""
    cut_input, cut_target = cut_to_match(input, target, found.delay_samples)
    assert cut_input.shape == cut_target.shape == (2, song().shape[1] - abs(delay))
    torch.testing.assert_close(cut_target, polarity * master(song())[:, abs(delay) :], atol=0.05, rtol=0)


def test_silence_before_a_target_delays_it():
    input = song()
    target = torch.cat([torch.zeros(2, 500), master(input)], dim=1)
    assert match(input, target, RATE).delay_samples == 500
    assert match(target, input, RATE).delay_samples == -500


def test_channels_may_differ():
    assert match(song().mean(0, keepdim=True), master(song()), RATE).doubt == ""


@pytest.mark.parametrize("extra", [40, -40])
def test_an_edit_in_the_middle_is_a_drift_with_its_sign(extra):
    input = song()
    half = input.shape[1] // 2
    target = torch.cat([input[:, : half - RATE * 4], torch.zeros(2, max(0, extra)), input[:, half - RATE * 4 :]], dim=1)
    if extra < 0:
        target = torch.cat([input[:, : half - RATE * 4], input[:, half - RATE * 4 - extra :]], dim=1)
    found = match(input, target, RATE)
    assert found.drift_samples == extra
    assert "the delay drifts: " in found.doubt


def test_a_tape_that_runs_too_fast_is_a_drift():
    input = song()
    position = torch.arange(input.shape[1] - 100) * (1 + 2e-5)  # 17 samples in 40 s
    before, share = position.long(), position.frac()
    target = (1 - share) * input[:, before] + share * input[:, before + 1]
    found = match(input, target, RATE)
    assert -17 <= found.drift_samples <= -12 and "drifts" in found.doubt


def test_a_small_drift_is_reported_and_allowed():
    input = song()
    half = input.shape[1] // 2 - 4 * RATE
    found = match(input, torch.cat([input[:, :half], input[:, half + 3 :]], dim=1), RATE)
    assert found.drift_samples == -3 and found.doubt == ""


def test_another_song_is_doubted():
    found = match(song(0), master(song(1)), RATE)
    assert found.confidence < 0.1 and found.doubt.startswith("input and target are too unlike (correlation 0.0")


def test_a_delay_out_of_reach_is_doubted():
    input = song()
    assert "too unlike" in match(input, master(input)[:, int((MAX_DELAY_SECONDS + 5) * RATE) :], RATE).doubt


def test_an_excerpt_is_doubted():
    input = song()
    assert match(input, master(input)[:, : 30 * RATE], RATE).doubt == (
        "the lengths are too different: 40.0 s, and 30.0 s of target"
    )


def test_a_polarity_that_changes_is_doubted():
    input = song()
    target = master(input)
    target[:, target.shape[1] * 3 // 4 :] *= -1
    assert match(input, target, RATE).doubt == "the polarity changes"


@pytest.mark.parametrize("samples", [1, 2, 10, 1000])
def test_very_short_and_silent_recordings_are_doubted_or_matched_without_an_error(samples):
    short = song()[:, :samples]
    assert isinstance(match(short, short, RATE), Match)
    assert "too unlike" in match(song(), torch.zeros(2, 40 * RATE), RATE).doubt
    assert "too unlike" in match(torch.zeros(2, samples), short, RATE).doubt
