import numpy as np
import pyloudnorm
import pytest
import scipy.signal
import soundfile
import torch

from dfx.audio.loudness import lufs
from dfx.audio.reading import AudioFile
from dfx.datasets import Augmentation, PairedAudio, Treatment, Window
from dfx.datasets.frames import Excerpt
from dfx.datasets.treatment import TreatedPairs
from dfx.errors import DataError, UserError
from dfx.tasks import Mastering, NonSpeech, TubeAmp
from tests.known_effects import SAMPLE_RATE

HIGHPASS = Treatment(highpass_hz=100)
LOUDNESS = Treatment(input_lufs=-25)


@pytest.fixture
def file(tmp_path) -> AudioFile:
    """Three seconds of loud noise on an offset, so that both ends ring."""
    noise = 0.3 + 0.2 * np.random.default_rng(0).standard_normal(3 * SAMPLE_RATE)
    soundfile.write(tmp_path / "noise.wav", noise.clip(-1, 1), SAMPLE_RATE, subtype="FLOAT")
    return AudioFile.open(str(tmp_path / "noise.wav"))


def whole(file: AudioFile, treatment: Treatment = Treatment(), side: str = "input") -> torch.Tensor:
    return treatment.read(file, 0, file.samples, SAMPLE_RATE, 1, side)


def test_the_high_pass_is_a_zero_phase_butterworth_of_4th_order():
    impulse = torch.zeros(1, 2 * SAMPLE_RATE)
    impulse[0, SAMPLE_RATE] = 1
    response = HIGHPASS(impulse, SAMPLE_RATE)
    torch.testing.assert_close(response.flip(1)[:, :-1], response[:, 1:], atol=1e-6, rtol=0)
    decibels = 20 * torch.log10(torch.fft.rfft(response[0].double()).abs())
    hz = torch.fft.rfftfreq(2 * SAMPLE_RATE, 1 / SAMPLE_RATE)
    for frequency, expected in [(100, -6.02), (50, -48.2), (1000, 0)]:
        assert float(decibels[hz == frequency]) == pytest.approx(expected, abs=0.1)


def test_it_is_the_papers_filtfilt_away_from_the_ends(file):
    sections = scipy.signal.butter(4, 100, "highpass", fs=SAMPLE_RATE, output="sos")
    expected = scipy.signal.sosfiltfilt(sections, whole(file).double().numpy())
    middle = slice(SAMPLE_RATE // 2, -SAMPLE_RATE // 2)
    np.testing.assert_allclose(whole(file, HIGHPASS)[:, middle], expected[:, middle], atol=1e-6)


@pytest.mark.parametrize("treatment", [HIGHPASS, LOUDNESS, Treatment(80, -20)])
@pytest.mark.parametrize("side", ["input", "target"])
def test_an_excerpt_is_treated_as_the_whole_file_is(file, treatment, side):
    audio = treatment(whole(file), SAMPLE_RATE, side)
    torch.testing.assert_close(whole(file, treatment, side), audio, atol=1e-6, rtol=0)
    padded = torch.nn.functional.pad(audio, (5000, 5000))
    for start, samples in [(0, 1), (-5000, 7000), (30_000, 1024), (file.samples - 100, 3000)]:
        read = treatment.read(file, start, samples, SAMPLE_RATE, 1, side)
        torch.testing.assert_close(read, padded[:, start + 5000 :][:, :samples], atol=1e-6, rtol=0)


def test_the_whole_input_is_brought_to_a_loudness_and_the_target_is_unchanged(file):
    assert lufs(whole(file, LOUDNESS), SAMPLE_RATE) == pytest.approx(-25, abs=0.01)
    assert torch.equal(whole(file, LOUDNESS, "target"), whole(file))


@pytest.mark.parametrize("right", [1.0, 0.0, -0.5, -0.997, -1.0])
def test_the_loudness_of_a_mono_sum_is_that_of_the_channels(tmp_path, right):
    noise = 0.1 * np.random.default_rng(0).standard_normal(3 * SAMPLE_RATE)
    stereo = np.stack([noise, right * noise], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, SAMPLE_RATE, "FLOAT")
    file = AudioFile.open(str(tmp_path / "a.wav"))
    gain = 10 ** ((-25 - pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(stereo)) / 20)
    torch.testing.assert_close(whole(file, LOUDNESS), gain * whole(file), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("level, is_bounded", [(5e-4, True), (1e-3, True), (0.1, False), (0.5, False)])
def test_no_input_is_raised_by_more_than_30_db(level, is_bounded):
    noise = level * torch.randn(1, 3 * SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
    found_db = 20 * float(torch.log10(LOUDNESS(noise, SAMPLE_RATE).std() / noise.std()))
    assert found_db == pytest.approx(30 if is_bounded else -25 - lufs(noise, SAMPLE_RATE), abs=1e-3)


def test_the_low_frequency_channel_of_surround_has_no_loudness_and_the_surrounds_more():
    noise = torch.randn(1, SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
    alone = [lufs(0.1 * noise * torch.eye(6)[:, [channel]], SAMPLE_RATE) for channel in range(6)]
    assert alone[3] == -70 and alone[0] == pytest.approx(lufs(0.1 * noise, SAMPLE_RATE), abs=1e-3)
    assert alone[4] - alone[0] == pytest.approx(1.49, abs=0.01)


@pytest.mark.parametrize(
    "right, treatment, message",
    [
        (lambda left: -left, Treatment(), "silent in training, .*the mean of its channels: they cancel"),
        (lambda left: -left, LOUDNESS, "silent in training"),
        (lambda left: -left + 1e-6, HIGHPASS, "silent in training"),
        (lambda left: -left, Treatment(80, -20), "silent in training"),
        (lambda left: -0.997 * left, Treatment(), None),
    ],
)
def test_silence_is_looked_for_in_the_audio_that_training_reads(make_pairs, capsys, right, treatment, message):
    root = make_pairs(4)
    path = root / "input" / "note_00.wav"
    left = soundfile.read(path)[0]
    soundfile.write(path, np.stack([left, right(left)], axis=1), SAMPLE_RATE)
    module = PairedAudio(str(root), SAMPLE_RATE, 1, Window(4096, 1024), treatment=treatment, batch_size=2)
    if message is None:
        module.setup("fit")
        assert "note_00.wav: its channels nearly cancel" in capsys.readouterr().err
        return
    with pytest.raises(DataError, match=message):
        module.setup("fit")


@pytest.mark.parametrize("samples", [1, 100, 30_000])
def test_silence_has_no_loudness_and_short_recordings_are_measured_as_if_silence_followed(samples):
    silence = torch.zeros(1, samples)
    assert torch.equal(Treatment(100, -25)(silence, SAMPLE_RATE), silence)
    tone = 0.5 * torch.sin(torch.arange(samples + 1.0) * 0.3)[None, 1:]
    treated = LOUDNESS(tone, SAMPLE_RATE)
    assert treated.isfinite().all()
    assert lufs(treated, SAMPLE_RATE) == pytest.approx(-25, abs=0.01) or torch.equal(treated, tone)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Treatment(highpass_hz=0), "above 0"),
        (lambda: Treatment(highpass_hz=20000)(torch.zeros(1, 100), SAMPLE_RATE), "below half"),
        (lambda: Augmentation(noise_db=(50, 30)), "the lower first"),
        (lambda: Augmentation(gain=(0, 1)), "above 0"),
        (lambda: Augmentation(deeper_db=-1), "at least 0"),
        (lambda: Augmentation(deeper_db=float("inf")), "at most 200"),
    ],
)
def test_impossible_options_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


# --- augmentation ------------------------------------------------------------------------------------


def test_noise_is_in_the_input_only_at_the_requested_ratio():
    audio = torch.randn(1, 50_000)
    input, target = Augmentation(noise_db=(30, 50))(audio, audio, SAMPLE_RATE, seed=3)
    assert torch.equal(target, audio)
    ratios = []
    for seed in range(20):
        noise = Augmentation(noise_db=(30, 50))(audio, audio, SAMPLE_RATE, seed)[0] - audio
        ratios.append(-20 * float(torch.log10(noise.std() / audio.std())))
    assert 29.9 < min(ratios) < 35 and 45 < max(ratios) < 50.1


def test_the_signal_level_is_that_of_the_excerpt_without_its_context(make_pairs):
    root, ratio = make_pairs(10), Augmentation(noise_db=(40, 40))
    noisy, plain = (data(root, augmentation=a).train_dataloader().dataset for a in (ratio, Augmentation()))
    excerpt = Excerpt(pair=0, start=0, steps=2, seed=0)
    rendered = noisy.window.before + torch.arange(2 * noisy.window.step_samples)
    signal, noise = plain._excerpt(excerpt)[0], noisy._excerpt(excerpt)[0] - plain._excerpt(excerpt)[0]
    # The context begins before the file, in silence.
    level = signal[:, rendered].square().mean().sqrt()
    assert level > 1.1 * signal.square().mean().sqrt()
    assert 20 * float(torch.log10(level / noise.std())) == pytest.approx(40, abs=0.3)


def test_one_gain_applies_to_both():
    audio = torch.randn(2, 1, 1000)
    gains = []
    for seed in range(20):
        input, target = Augmentation(gain=(0.1, 1))(*audio, SAMPLE_RATE, seed)
        gains.append(float(target[0, 0] / audio[1, 0, 0]))
        torch.testing.assert_close(input, gains[-1] * audio[0])
    assert 0.1 <= min(gains) < 0.3 and 0.8 < max(gains) <= 1


def test_targets_are_lowered_further_where_they_attenuate_and_bit_identical_elsewhere():
    audio = torch.randn(2, SAMPLE_RATE)
    removed = slice(round(0.3 * SAMPLE_RATE), round(0.6 * SAMPLE_RATE))
    target = audio.clone()
    target[:, removed] *= 0.1
    input, deeper = Augmentation(deeper_db=20)(audio, target, SAMPLE_RATE, seed=0)
    assert torch.equal(input, audio)
    frame = round(0.02 * SAMPLE_RATE)
    inside = slice(removed.start + 2 * frame, removed.stop - 2 * frame)
    torch.testing.assert_close(deeper[:, inside], 0.1 * target[:, inside])
    for outside in (slice(removed.start - 2 * frame), slice(removed.stop + 2 * frame, None)):
        assert torch.equal(deeper[:, outside], target[:, outside])
    assert torch.equal(Augmentation()(audio, target, SAMPLE_RATE, seed=0)[1], target)


@pytest.mark.parametrize("samples", [1, 100, SAMPLE_RATE])
def test_silence_and_short_excerpts_can_be_lowered_further(samples):
    silence = torch.zeros(1, samples)
    deepen = Augmentation(deeper_db=20)
    assert torch.equal(deepen(silence, silence, SAMPLE_RATE, seed=0)[1], silence)
    noise = torch.randn(1, samples)
    torch.testing.assert_close(deepen(noise, 0.1 * noise, SAMPLE_RATE, seed=0)[1], 0.01 * noise)


def data(root, **options) -> PairedAudio:
    module = PairedAudio(
        str(root),
        SAMPLE_RATE,
        1,
        Window(4096, 1024, frames=2),
        batch_size=2,
        excerpt_seconds=0.2,
        check_audio=False,
        **options,
    )
    module.setup("fit")
    return module


def test_augmentation_is_drawn_again_each_epoch_in_training_and_fixed_in_validation(make_pairs):
    module = data(make_pairs(12), augmentation=Augmentation(noise_db=(30, 50), gain=(0.1, 1)))
    plain = data(module.root)

    def inputs(loader, epoch=None):
        if epoch is not None:
            loader.batch_sampler.sampler.set_epoch(epoch)
        return torch.cat([batch["input"].flatten() for batch in loader])

    validation = module.val_dataloader()
    assert not torch.equal(inputs(validation), inputs(plain.val_dataloader()))
    assert torch.equal(inputs(validation), inputs(validation))
    assert torch.equal(inputs(module.train_dataloader(), 2), inputs(module.train_dataloader(), 2))
    assert not torch.equal(inputs(module.train_dataloader(), 2), inputs(module.train_dataloader(), 3))


def test_test_pairs_are_treated_and_not_augmented(make_pairs):
    root = make_pairs(12)
    module = data(root, treatment=LOUDNESS, augmentation=Augmentation(noise_db=(30, 50), gain=(0.1, 1)))
    pair, plain = module.test_dataloader().dataset[0], data(root).test_dataloader().dataset[0]
    assert torch.equal(pair["target"], plain["target"])
    torch.testing.assert_close(pair["input"], LOUDNESS(plain["input"], SAMPLE_RATE))


def test_the_beginning_of_a_pair_is_treated_as_the_whole_pair(make_pairs):
    module = data(make_pairs(12))
    pairs, of = module.splits["test"], (Treatment(80, -20), SAMPLE_RATE, 1)
    whole, beginning, longer = (TreatedPairs(pairs, *of, seconds)[0] for seconds in (None, 0.1, 9.0))
    for side in ("input", "target"):
        torch.testing.assert_close(beginning[side], whole[side][:, :2205], atol=1e-6, rtol=0)
        assert torch.equal(longer[side], whole[side])
    with pytest.raises(UserError, match="seconds is 0"):
        TreatedPairs(pairs, *of, 0)


def test_tasks_treat_their_audio_as_the_paper_does():
    def make(kind):
        return kind([{"effect": "pedalboard:Gain"}], frame_samples=2048)

    assert (make(TubeAmp).treatment, make(TubeAmp).augmentation) == (Treatment(), Augmentation())
    noise_and_gain = Augmentation(noise_db=(30, 50), gain=(0.1, 1))
    assert (make(NonSpeech).treatment, make(NonSpeech).augmentation) == (HIGHPASS, noise_and_gain)
    assert (make(Mastering).treatment, make(Mastering).augmentation) == (LOUDNESS, Augmentation())
    tone = torch.sin(torch.arange(SAMPLE_RATE) * 0.1)[None]
    assert torch.equal(make(Mastering).treat(tone), LOUDNESS(tone, SAMPLE_RATE))
