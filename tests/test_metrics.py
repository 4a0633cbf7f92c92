import auraloss
import librosa
import numpy as np
import pyloudnorm
import pytest
import torch
from sklearn.metrics.pairwise import paired_distances

from dfx.metrics import METRICS, compare, level_change, outside

SAMPLE_RATE = 22050


@pytest.fixture(params=[0, 1])
def signals(request) -> tuple:
    generator = torch.Generator().manual_seed(request.param)
    n = torch.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    target = 0.3 * torch.sin(2 * torch.pi * 220 * n)[None] * torch.exp(-n) + 0.01 * torch.randn(
        1, len(n), generator=generator
    )
    return torch.tanh(3 * target), target


def test_mfcc_cosine_is_that_of_librosa_and_scikit_learn(signals):
    output, target = (s[0].numpy() for s in signals)
    output = output * np.abs(target).mean() / np.abs(output).mean()

    def mfcc(audio: np.ndarray) -> np.ndarray:
        mel = librosa.feature.melspectrogram(
            y=audio, sr=SAMPLE_RATE, n_fft=1024, hop_length=256, n_mels=128, pad_mode="reflect"
        )
        return librosa.feature.mfcc(S=librosa.power_to_db(mel, ref=np.max), n_mfcc=13)

    expected = paired_distances(mfcc(output), mfcc(target), metric="cosine").mean()
    assert METRICS["mfcc_cosine"](*signals) == pytest.approx(expected, abs=1e-4)


def test_lufs_difference_is_that_of_pyloudnorm(signals):
    meter = pyloudnorm.Meter(SAMPLE_RATE)
    output, target = (meter.integrated_loudness(s[0].numpy()) for s in signals)
    assert METRICS["lufs_difference"](*signals) == pytest.approx(abs(output - target), abs=1e-4)


def test_mrstft_is_that_of_auraloss(signals):
    output, target = signals
    expected = float(auraloss.freq.MultiResolutionSTFTLoss()(output[None], target[None]))
    assert METRICS["mrstft"](*signals) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("gain", [0.01, 0.5, 3.0])
def test_the_level_matched_error_does_not_hear_a_gain(signals, gain):
    output, target = signals
    matched = METRICS["mrstft_level_matched"]
    assert matched(gain * target, target) == pytest.approx(0, abs=1e-4)
    assert matched(gain * output, target) == pytest.approx(matched(output, target), rel=1e-4)


def test_equal_signals_are_at_no_distance(signals):
    assert compare(signals[1], signals[1], SAMPLE_RATE) == pytest.approx(dict.fromkeys(METRICS, 0.0), abs=1e-5)


def test_other_sample_rates_are_compared_at_the_papers(signals):
    import torchaudio

    at_44100 = [torchaudio.functional.resample(s, SAMPLE_RATE, 44100) for s in signals]
    here, there = compare(*signals, SAMPLE_RATE), compare(*at_44100, 44100)
    assert there["lufs_difference"] == pytest.approx(here["lufs_difference"], abs=0.05)
    assert there["mrstft"] == pytest.approx(here["mrstft"], rel=0.1)


@pytest.mark.parametrize("samples", [1, 100, 1000, 5000])
@pytest.mark.parametrize("channels", [1, 2])
def test_silence_and_short_files_give_numbers(samples, channels):
    silence, sound = torch.zeros(channels, samples), 0.1 * torch.randn(channels, samples)
    for output, target in [(silence, silence), (sound, silence), (silence, sound), (sound, sound)]:
        assert all(np.isfinite(value) for value in compare(output, target, SAMPLE_RATE).values())


def test_what_cannot_be_compared_is_refused():
    for output, target in [
        (torch.zeros(1, 5), torch.zeros(1, 6)),
        (torch.zeros(1, 0), torch.zeros(1, 0)),
        (torch.full((1, 5), torch.nan), torch.zeros(1, 5)),
    ]:
        with pytest.raises(ValueError):
            compare(output, target, SAMPLE_RATE)


def test_level_change_is_that_of_the_median_frame_in_all_spans():
    input = 0.1 * torch.ones(1, 1000)
    output = input.clone()
    # Frames of 20 samples: ten are let through, five lowered by 20 dB and ten by 40 dB.
    for place, gain in zip((slice(200, 300), slice(300, 500)), (0.1, 0.01)):
        output[:, place] *= gain
    assert level_change(input, output, [(0.0, 0.3), (0.3, 0.5)], 1000) == pytest.approx(-20, abs=1e-3)
    assert level_change(input, output, [(0.19, 0.21), (0.3, 0.5), (0.501, 0.51)], 1000) == pytest.approx(-40, abs=1e-3)
    assert level_change(input, 2 * input, outside([(0.0, 0.5)], 1.0), 1000) == pytest.approx(6.02, abs=0.01)


def test_level_change_of_silence_short_spans_and_none_is_a_number():
    silence, sound = torch.zeros(2, 100), 0.1 * torch.ones(2, 100)
    assert level_change(silence, silence, [(0, 10)], 10) == 0
    assert level_change(sound, silence, [(0, 10)], 10) == pytest.approx(-80, abs=1e-3)
    assert level_change(sound, silence, [(5, 5), (20, 30), (-2, -1)], 10) == 0
    assert level_change(sound, silence, [], 10) == 0


@pytest.mark.parametrize(
    "spans, gaps",
    [
        ([], [(0.0, 10)]),
        ([(2, 3), (0, 1)], [(1, 2), (3, 10)]),
        ([(1, 5), (2, 3), (4, 12)], [(0.0, 1)]),
        ([(0, 10)], []),
    ],
)
def test_what_lies_outside_of_spans(spans, gaps):
    assert outside(spans, 10) == gaps
