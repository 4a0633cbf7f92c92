import auraloss
import librosa
import numpy as np
import pyloudnorm
import pytest
import torch
from sklearn.metrics.pairwise import paired_distances

from dfx.audio.hearing import FULL_SCALE_DB_SPL, specific_loudness
from dfx.metrics import COLUMNS, METRICS, Undefined, attenuated, compare, damage, level_change, outside

SAMPLE_RATE = 22050


@pytest.fixture(params=[0, 1])
def signals(request) -> tuple:
    generator = torch.Generator().manual_seed(request.param)
    n = torch.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    target = 0.3 * torch.sin(2 * torch.pi * 220 * n)[None] * torch.exp(-n) + 0.01 * torch.randn(
        1, len(n), generator=generator
    )
    return torch.tanh(3 * target), target


@pytest.mark.parametrize("name, turned", [("mfcc_cosine", False), ("mfcc_cosine_per_frame", True)])
def test_mfcc_cosine_agrees_with_librosa_and_scikit_learn(signals, name, turned):
    output, target = (s[0].double().numpy() for s in signals)
    output = output * np.abs(target).mean() / np.abs(output).mean()

    def mfcc(audio: np.ndarray) -> np.ndarray:
        mel = librosa.feature.melspectrogram(
            y=audio, sr=SAMPLE_RATE, n_fft=1024, hop_length=256, n_mels=128, pad_mode="reflect"
        )
        coefficients = librosa.feature.mfcc(S=librosa.power_to_db(mel, ref=np.max), n_mfcc=13)
        return coefficients.T if turned else coefficients

    expected = paired_distances(mfcc(output), mfcc(target), metric="cosine").mean()
    # The distance per frame is too small for an absolute tolerance of 1e-4.
    assert METRICS[name](*signals) == pytest.approx(expected, rel=1e-3)


def test_lufs_difference_agrees_with_pyloudnorm(signals):
    meter = pyloudnorm.Meter(SAMPLE_RATE)
    output, target = (meter.integrated_loudness(s[0].numpy()) for s in signals)
    assert METRICS["lufs_difference"](*signals) == pytest.approx(abs(output - target), abs=1e-4)


def test_mrstft_agrees_with_auraloss(signals):
    output, target = signals
    expected = float(auraloss.freq.MultiResolutionSTFTLoss()(output[None], target[None]))
    assert METRICS["mrstft"](*signals) == pytest.approx(expected, abs=1e-4)


def test_esr_agrees_with_auraloss(signals):
    output, target = signals
    expected = float(auraloss.time.ESRLoss()(output[None], target[None]))
    assert METRICS["esr"](*signals) == pytest.approx(expected, abs=1e-4)
    assert METRICS["esr"](torch.zeros_like(target), target) == 1


def test_the_centroid_agrees_with_librosa_for_the_mean_spectrum(signals):
    def centroid(audio: torch.Tensor) -> float:
        spectrum = np.abs(librosa.stft(audio[0].double().numpy(), n_fft=2048, hop_length=512, pad_mode="constant"))
        return librosa.feature.spectral_centroid(S=spectrum.mean(axis=1, keepdims=True), sr=SAMPLE_RATE).item()

    expected = abs(centroid(signals[0]) - centroid(signals[1]))
    assert METRICS["centroid_difference_hz"](*signals) == pytest.approx(expected, abs=1e-4)
    assert expected > 1


def test_the_crest_factor_of_a_sine_is_3_db_above_that_of_a_square():
    sine = torch.sin(2 * torch.pi * torch.arange(22050) / 22.05)[None]
    difference = METRICS["crest_factor_difference_db"](0.1 * sine, 0.7 * torch.sign(sine + 1e-3))
    assert difference == pytest.approx(3.0103, abs=1e-3)


def sine(hertz: float, level_db: float, sample_rate: int = SAMPLE_RATE) -> torch.Tensor:
    return 10 ** (level_db / 20) * torch.sin(2 * torch.pi * hertz * torch.arange(sample_rate / 2) / sample_rate)[None]


def sones(audio: torch.Tensor, sample_rate: int = SAMPLE_RATE) -> float:
    return specific_loudness(audio.numpy(), sample_rate).sum(axis=-1)[0, 5:-5].mean()


@pytest.mark.parametrize("sample_rate", [22050, 44100, 48000])
def test_a_sine_of_1_khz_at_40_db_has_1_sone_and_10_db_double_it(sample_rate):
    loudness = [
        sones(sine(1000, level - FULL_SCALE_DB_SPL, sample_rate), sample_rate) for level in (40, 50, 60, 70, 80)
    ]
    assert loudness[0] == pytest.approx(1, rel=0.02)
    assert [b / a for a, b in zip(loudness, loudness[1:])] == pytest.approx([2] * 4, rel=0.2)


def test_sound_below_the_threshold_of_hearing_has_no_loudness():
    # Thresholds of ISO 226:2003 are 27 dB SPL at 100 Hz, 2 at 1 kHz and -5 at 4 kHz.
    for hertz, inaudible, audible in [(100, 15, 45), (1000, -5, 10), (4000, -10, 5)]:
        assert (
            sones(sine(hertz, inaudible - FULL_SCALE_DB_SPL)) < 0.002 < sones(sine(hertz, audible - FULL_SCALE_DB_SPL))
        )


def test_the_bark_spectral_distortion_grows_with_noise_and_with_a_gain(signals):
    target, distortion = signals[1], METRICS["bark_spectral_distortion"]
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(2))
    noisy = [distortion(target + 10 ** (level_db / 20) * noise, target) for level_db in (-100, -80, -60, -40, -20)]
    assert noisy == sorted(noisy) and noisy[0] < 1e-6 and noisy[-1] > 1
    for sign in (-1, 1):
        gained = [distortion(10 ** (sign * gain_db / 20) * target, target) for gain_db in (1, 3, 6, 12)]
        assert gained == sorted(gained) and gained[0] > 1e-3
    assert distortion(1e-4 * target, target) == pytest.approx(1, abs=1e-3)


def test_masked_sound_counts_less_in_the_bark_spectral_distortion():
    target, masked, audible = sine(1000, -20), sine(1200, -60), sine(2000, -60)
    assert sones(masked) == pytest.approx(sones(audible), rel=0.3)
    distortion = METRICS["bark_spectral_distortion"]
    assert 5 * distortion(target + masked, target) < distortion(target + audible, target)


@pytest.mark.parametrize("sample_rate", [22050, 44100])
@pytest.mark.parametrize("delay, polarity", [(0, 1), (37, -1), (-200, 1)])
def test_delay_and_polarity_are_found_at_the_native_rate(sample_rate, delay, polarity):
    noise = torch.randn(1, 9000, generator=torch.Generator().manual_seed(0))
    output, target = polarity * noise[:, 500 - delay : 8500 - delay], noise[:, 500:8500]
    found = compare(output, target, sample_rate).metrics
    assert (found["latency_samples"], found["polarity"]) == (delay, polarity)


def test_the_delay_of_a_long_recording_is_found_where_it_is_loudest():
    target = torch.zeros(1, 25 * 8000)
    target[:, 90000:150000] = torch.randn(1, 60000, generator=torch.Generator().manual_seed(0))
    found = compare(-target.roll(25, dims=1), target, 8000).metrics
    assert (found["latency_samples"], found["polarity"]) == (25, -1)


def test_two_equal_channels_have_the_metrics_of_one(signals):
    stereo = [signal.expand(2, -1) for signal in signals]
    assert compare(*stereo, SAMPLE_RATE).metrics == pytest.approx(compare(*signals, SAMPLE_RATE).metrics, abs=1e-4)


@pytest.mark.parametrize("gain", [0.01, 0.5, 3.0])
def test_the_level_matched_error_ignores_a_gain(signals, gain):
    output, target = signals
    matched = METRICS["mrstft_level_matched"]
    assert matched(gain * target, target) == pytest.approx(0, abs=1e-4)
    assert matched(gain * output, target) == pytest.approx(matched(output, target), rel=1e-4)


def test_equal_signals_have_distance_0(signals):
    expected = {**dict.fromkeys(METRICS, 0.0), "latency_samples": 0, "polarity": 1}
    assert compare(signals[1], signals[1], SAMPLE_RATE).metrics == pytest.approx(expected, abs=1e-5)


def test_other_sample_rates_are_compared_at_that_of_the_paper(signals):
    import torchaudio

    at_44100 = [torchaudio.functional.resample(s, SAMPLE_RATE, 44100) for s in signals]
    here, there = compare(*signals, SAMPLE_RATE).metrics, compare(*at_44100, 44100).metrics
    assert there["lufs_difference"] == pytest.approx(here["lufs_difference"], abs=0.05)
    for name in ("mrstft", "bark_spectral_distortion"):
        assert there[name] == pytest.approx(here[name], rel=0.1)


@pytest.mark.parametrize("samples", [1, 100, 1000, 5000])
@pytest.mark.parametrize("channels", [1, 2])
def test_short_files_give_numbers(samples, channels):
    sound = 0.1 + 0.1 * torch.rand(channels, samples)
    one_sided = sound * torch.tensor([[1.0], [0.0]])[:channels]
    for output, target in [(sound, sound), (one_sided, sound), (sound, one_sided)]:
        metrics, left_out = compare(output, target, SAMPLE_RATE)
        assert list(metrics) == list(COLUMNS) and not left_out
        assert all(np.isfinite(value) for value in metrics.values())


SILENT = {
    "digital silence": lambda sound: torch.zeros_like(sound),
    "below -100 dBFS": lambda sound: 1e-6 * sound,
    "the last bit of 24": lambda sound: 2**-23 * sound.sign(),
    "a constant offset": lambda sound: torch.full_like(sound, 0.3),
    "an offset for each channel": lambda sound: torch.tensor([[0.3], [-0.3]]).expand_as(sound),
}


@pytest.mark.parametrize("silence", SILENT.values(), ids=SILENT)
@pytest.mark.parametrize("sample_rate", [SAMPLE_RATE, 44100])
def test_nothing_is_compared_with_silence(silence, sample_rate):
    sound = 0.1 * torch.randn(2, 9000, generator=torch.Generator().manual_seed(0))
    for output, target, side in [
        (silence(sound), sound, "output"),
        (sound, silence(sound), "target"),
        (silence(sound), silence(sound), "output"),
    ]:
        assert compare(output, target, sample_rate) == ({}, dict.fromkeys(COLUMNS, f"the {side} is silent"))
    for name, metric in METRICS.items():
        with pytest.raises(Undefined, match="the target is silent"):
            metric(sound, silence(sound))
        if name != "esr":
            with pytest.raises(Undefined, match="the output is silent"):
                metric(silence(sound), sound)


def test_a_metric_is_undefined_where_its_own_view_of_a_signal_is_silent():
    noise = 0.1 * torch.randn(1, 22050, generator=torch.Generator().manual_seed(0))
    of_the_mean = {"mfcc_cosine", "mfcc_cosine_per_frame", "centroid_difference_hz"}
    inverted = torch.cat([noise, -noise])
    for output, target, side in [(inverted, noise.expand(2, -1), "output"), (noise.expand(2, -1), inverted, "target")]:
        left_out = compare(output, target, SAMPLE_RATE).left_out
        assert left_out == dict.fromkeys(of_the_mean, f"the channels of the {side} cancel in their mean")
    below_hearing = sine(100, -80)
    with pytest.raises(Undefined, match="the target is below the threshold of hearing"):
        METRICS["bark_spectral_distortion"](below_hearing, below_hearing)
    left_out = compare(0.002 * noise, noise, SAMPLE_RATE).left_out
    assert left_out == {"lufs_difference": "the output is below -70 LUFS, where it has no loudness"}
    ultrasonic = 0.1 * torch.sin(2 * torch.pi * 20000 * torch.arange(44100) / 44100)[None]
    left_out = compare(ultrasonic, noise.repeat(1, 2), 44100).left_out
    assert "lufs_difference" in left_out and "latency_samples" not in left_out


@pytest.mark.parametrize("level", [1e-3, 1e-4])
@pytest.mark.parametrize("name", ["mfcc_cosine", "mfcc_cosine_per_frame", "centroid_difference_hz"])
def test_metrics_of_timbre_do_not_depend_on_the_level_of_both(signals, name, level):
    quiet = METRICS[name](*(level * signal for signal in signals))
    assert quiet == pytest.approx(METRICS[name](*signals), rel=1e-3)


def test_signals_that_cannot_be_compared_are_refused():
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


def test_damage_is_the_mean_distance_of_levels_in_audible_frames():
    input = torch.cat([0.1 * torch.ones(1, 400), torch.zeros(1, 100)], dim=1)
    output = input.clone()
    # Of 20 audible frames, five are 20 dB lower and five 6 dB louder; sound in place of silence is no damage.
    output[:, :100] *= 0.1
    output[:, 100:200] *= 1.9953
    output[:, 400:] = 0.1
    assert damage(input, output, [(0.0, 0.5)], 1000) == pytest.approx(6.5, abs=1e-3)
    assert damage(input, output, [(0.2, 0.4)], 1000) == 0
    assert damage(input, output, [], 1000) == 0


def test_attenuated_spans_are_found_if_the_target_preserves_the_rest():
    input = 0.1 * torch.ones(2, 1000)
    target = input.clone()
    target[:, 200:300] *= 0.1
    found = attenuated(input, target, 1000)
    assert np.ravel(outside(found, 1.0)) == pytest.approx([0.0, 0.2, 0.3, 1.0])
    for other in (input, 0.5 * input, torch.zeros_like(input)):
        assert attenuated(input, other, 1000) is None
    assert attenuated(torch.zeros(1, 1), torch.zeros(1, 1), 1000) is None


@pytest.mark.parametrize(
    "spans, gaps",
    [
        ([], [(0.0, 10)]),
        ([(2, 3), (0, 1)], [(1, 2), (3, 10)]),
        ([(1, 5), (2, 3), (4, 12)], [(0.0, 1)]),
        ([(0, 10)], []),
    ],
)
def test_the_gaps_between_spans(spans, gaps):
    assert outside(spans, 10) == gaps
