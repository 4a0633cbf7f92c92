"""The start of training with the backbone ``summary``: a share of the way to the spectrum of targets or references."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy
import soundfile
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from dfx.audio.loudness import lufs
from dfx.datasets import Degradation
from dfx.encoder import SUMMARY_FEATURES, Encoder, EncoderOptions
from dfx.errors import UserError
from dfx.tasks import Mastering, StyleTransfer
from dfx.tasks import task as task_module
from dfx.tasks.balance import smooth_bands
from tests.small_training import trainer, weights

RATE = 22050
CHAIN = [
    {"effect": "pedalboard:LowShelfFilter", "train": {"gain_db": [-12, 12]}, "fixed": {"cutoff_frequency_hz": 400}},
    {"effect": "pedalboard:HighShelfFilter", "train": {"gain_db": [-12, 12]}, "fixed": {"cutoff_frequency_hz": 3000}},
    {"effect": "pedalboard:Gain", "train": {"gain_db": {"range": [-24, 24], "default": 0}}},
]


def noise(tilt_db: float, seed: int) -> np.ndarray:
    """Return 1.5 s of noise at 0.1, whose high frequencies are raised by so many dB."""
    audio = np.random.default_rng(seed).standard_normal(RATE * 3 // 2)
    sections = scipy.signal.butter(1, 1500, output="sos", fs=RATE)
    low = scipy.signal.sosfilt(sections, audio)
    tilted = low + 10 ** (tilt_db / 20) * (audio - low)
    return (0.1 * tilted / tilted.std()).astype(np.float32)


def write_pairs(root, pairs):
    for side in ("input", "target"):
        (root / side).mkdir(parents=True)
    for number, pair in enumerate(pairs):
        for side, audio in zip(("input", "target"), pair):
            soundfile.write(root / side / f"{number}.wav", audio, RATE, "FLOAT")
    return root


@pytest.fixture
def balanced(tmp_path):
    """Pairs whose inputs differ in balance, and whose targets have the same one and are 6 dB louder."""
    tilts = np.linspace(-6, 6, 12)
    return write_pairs(tmp_path / "balanced", [(noise(tilt, i), 2 * noise(0, i)) for i, tilt in enumerate(tilts)])


@pytest.fixture
def faithful(tmp_path):
    """Pairs whose inputs differ in balance, and whose targets keep it and are 6 dB louder."""
    tilts = np.linspace(-6, 6, 12)
    audio = [noise(tilt, i) for i, tilt in enumerate(tilts)]
    return write_pairs(tmp_path / "faithful", [(each, 2 * each) for each in audio])


def model(effects=CHAIN, **options) -> Mastering:
    torch.manual_seed(0)
    return Mastering(
        effects,
        context_samples=16384,
        frame_samples=8192,
        treatment=task_module.Treatment(),
        encoder=EncoderOptions("summary"),
        **options,
    )


def data(root, module):
    return task_module.PairedAudio(
        str(root), RATE, 1, module.window, module.treatment, batch_size=4, excerpt_seconds=1.0, check_audio=False
    )


def fit(module, root, *callbacks, epochs=1, ckpt_path=None):
    trainer(epochs=epochs, callbacks=callbacks).fit(module, datamodule=data(root, module), ckpt_path=ckpt_path)
    return module


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr(Mastering, "training_step", lambda self, batch, batch_idx: None)


def test_all_of_the_way_if_all_targets_have_one_balance(balanced, untrained, capsys):
    module = fit(model(), balanced)
    assert module.start["share"] >= 0.8
    assert module.start["loss"] < 0.8 * module.start["loss_of_defaults"]
    bright, dark = (torch.from_numpy(noise(tilt, 99))[None] for tilt in (6, -6))
    spectra = [module.encoder.summarize(audio[None])[0, 2:] for audio in (bright, dark)]
    rendered = [torch.from_numpy(module.render(audio).audio) for audio in (bright, dark)]
    matched = [module.encoder.summarize(audio[None])[0, 2:] for audio in rendered]
    assert (matched[0] - matched[1]).abs().mean() < 0.5 * (spectra[0] - spectra[1]).abs().mean()
    share = f"training starts at {module.start['share']:.0%} of the way to the mean spectrum of the targets"
    assert share in capsys.readouterr().out


def test_none_of_the_way_if_targets_keep_the_balance_of_their_inputs(faithful, untrained, capsys):
    module = fit(model(), faithful)
    assert module.start["share"] == 0
    assert "training starts at 0% of the way to the mean spectrum of the targets" in capsys.readouterr().out
    assert module.start["values"]["gain.gain_db"] == pytest.approx(6, abs=1.5)
    audio = torch.from_numpy(noise(4, 99))[None]
    output = torch.from_numpy(module.render(audio).audio)
    assert 20 * torch.log10(output.std() / audio.std()) == pytest.approx(6, abs=0.3)
    assert module.start["loss"] == module.start["loss_of_defaults"]


def pulsing(depth_db: float, seed: int) -> np.ndarray:
    """Return noise at -20 LUFS, whose level rises and falls by so many dB in 0.5 s."""
    audio = noise(0, seed)
    audio *= 10 ** (depth_db / 40 * np.sin(4 * np.pi * np.arange(len(audio)) / RATE))
    gain_db = -20 - lufs(torch.from_numpy(audio)[None], RATE)
    return (10 ** (gain_db / 20) * audio).astype(np.float32)


def test_a_limiter_leaves_inputs_that_fluctuate_as_loud_as_others(tmp_path, untrained):
    audio = [pulsing(depth, i) for i, depth in enumerate(np.linspace(0, 20, 12))]
    root = write_pairs(tmp_path / "pulsing", [(each, 2 * audio[0]) for each in audio])
    limiter = {"effect": "pedalboard:BrickwallLimiter", "fixed": {"ceiling_db": -3, "release_ms": 100}}
    module = fit(model(effects=[*CHAIN, limiter]), root)

    def loudness() -> list[float]:
        inputs = [torch.from_numpy(pulsing(depth, 99))[None] for depth in (0, 18)]
        return [lufs(torch.from_numpy(module.render(audio).audio), RATE) for audio in inputs]

    steady, fluctuating = loudness()
    assert np.mean([steady, fluctuating]) == pytest.approx(-14, abs=0.5)
    difference = abs(steady - fluctuating)
    module.encoder.head.weight.data.zero_()
    steady, fluctuating = loudness()
    assert fluctuating < steady - 1
    assert difference < 0.5 * (steady - fluctuating)


def test_silent_recordings_do_not_count(faithful, untrained):
    silence = np.zeros(RATE * 3 // 2, np.float32)
    before = fit(model(), faithful).start["values"]["gain.gain_db"]
    for side in ("input", "target"):
        soundfile.write(faithful / side / "12.wav", silence, RATE, "FLOAT")
    after = fit(model(), faithful).start["values"]["gain.gain_db"]
    assert after == pytest.approx(before, abs=1)


def test_smoothing_keeps_what_all_bands_have_and_halves_what_one_has_alone():
    smoothing = smooth_bands(16)
    everywhere, alone = torch.ones(16).double(), torch.eye(16).double()[5]
    torch.testing.assert_close(smoothing @ everywhere, everywhere)
    assert (smoothing @ alone)[4:7].tolist() == [0.25, 0.5, 0.25]


def test_logits_are_a_line_over_the_summary():
    encoder = Encoder([0.5, 0.5], RATE, EncoderOptions("summary"), 16384, 8192)
    weight, bias, mean = torch.randn(2, 18) / 10, torch.randn(2), torch.randn(18)
    encoder.start_at_line(weight, bias, mean)
    audio = torch.from_numpy(noise(3, 0))[None, None, :16384]
    expected = bias + weight @ (encoder.summarize(audio)[0] - mean)
    torch.testing.assert_close(encoder(audio)[0, 0].logit(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encoder(torch.zeros_like(audio))[0, 0].logit(), bias, atol=1e-4, rtol=1e-4)


def test_a_run_resumes_to_the_bit_without_measuring_again(balanced, tmp_path, monkeypatch):
    uninterrupted = fit(model(), balanced, ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1), epochs=2)
    monkeypatch.setattr(task_module, "find_balance", lambda *arguments: pytest.fail("it is measured again"))
    resumed = fit(model(), balanced, epochs=2, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert resumed.start == uninterrupted.start
    assert torch.equal(weights(resumed), weights(uninterrupted))
    assert torch.equal(resumed.encoder.backbone.mean, uninterrupted.encoder.backbone.mean)


def test_the_line_is_drawn_around_the_best_single_setting_if_one_is_searched(balanced, untrained):
    options = task_module.StageOptions(search_evaluations=40)
    searched, plain = fit(model(stages=options), balanced), fit(model(), balanced)
    assert searched.start["values"] != plain.start["values"]
    assert searched.start["loss"] < searched.start["loss_of_defaults"]


def test_without_pairs_to_measure_the_backbone_is_refused(balanced):
    module = model()
    loaded = data(balanced, module)
    loaded.setup("fit")
    with pytest.raises(UserError, match="encoder.backbone summary needs the training pairs of a PairedAudio"):
        trainer().fit(module, train_dataloaders=loaded.val_dataloader())


@pytest.mark.parametrize("options", [{"width": 0.5}, {"conventions": "keras"}])
def test_options_of_networks_are_refused(options):
    with pytest.raises(UserError, match="summary (has one size|is not a network)"):
        EncoderOptions("summary", **options)


@pytest.fixture
def styled(tmp_path):
    """Recordings that differ in balance and level, for a task that takes their halves as references."""
    tilts = torch.linspace(-6, 6, 8)[torch.randperm(8, generator=torch.Generator().manual_seed(0))]
    audio = [10 ** (i / 20) * np.tile(noise(float(tilt), i), 2) for i, tilt in enumerate(tilts)]
    return write_pairs(tmp_path / "styled", [(each, each) for each in audio])


@pytest.fixture
def transfer(monkeypatch):
    """Start style transfer from the recordings of a folder, and do not train it."""
    monkeypatch.setattr(StyleTransfer, "training_step", lambda self, batch, batch_idx: None)

    def start(root, context_samples: int = 16384) -> StyleTransfer:
        torch.manual_seed(0)
        options = {"frame_samples": 8192, "encoder": EncoderOptions("summary")}
        module = StyleTransfer(CHAIN, context_samples=context_samples, **options)
        draw = {"gain_db": {"deviation": 6}, "cutoff_frequency_hz": [1000, 4000]}
        loaded = task_module.PairedAudio(
            str(root), RATE, 1, module.window, module.treatment, batch_size=4, excerpt_seconds=1.0, check_audio=False,
            degradation=Degradation([{"effect": CHAIN[1]["effect"], "draw": draw}]), takes_reference=True,
        )  # fmt: skip
        trainer(epochs=1).fit(module, datamodule=loaded)
        return module

    return start


def test_with_a_reference_training_starts_where_the_output_has_its_balance_and_loudness(styled, transfer, capsys):
    module = transfer(styled)
    assert "of the way to the spectrum of the reference" in capsys.readouterr().out
    assert module.start["share"] >= 0.6
    input = module.treat(torch.from_numpy(noise(0, 99))[None])
    for tilt, gain in itertools.product((-5, 5), (1.2, 2)):
        reference = gain * torch.from_numpy(noise(tilt, 50))[None]
        module.set_reference(reference)
        output = torch.from_numpy(module.render(input).audio)
        before, after = (
            (spectrum(module, audio) - spectrum(module, reference)).abs().mean() for audio in (input, output)
        )
        assert after < 0.5 * before
        assert lufs(output, RATE) == pytest.approx(lufs(reference, RATE), abs=1.5)


def interrupted(depth_db: float, seed: int) -> np.ndarray:
    """Return noise at -20 LUFS, quieter by so many dB in its second half."""
    audio = noise(0, seed)
    audio[len(audio) // 2 :] *= 10 ** (-depth_db / 20)
    gain_db = -20 - lufs(torch.from_numpy(audio)[None], RATE)
    return (10 ** (gain_db / 20) * audio).astype(np.float32)


def test_a_reference_with_quiet_passages_makes_the_output_as_loud_as_one_without(tmp_path, transfer):
    depths = np.linspace(0, 30, 8)
    recordings = [np.concatenate([interrupted(0, i), interrupted(depth, 9 + i)]) for i, depth in enumerate(depths)]
    root = write_pairs(tmp_path / "interrupted", [(each, each) for each in recordings])
    module = transfer(root, context_samples=32768)
    input = module.treat(torch.from_numpy(noise(0, 99))[None])

    def loudness(depth: float) -> float:
        module.set_reference(torch.from_numpy(interrupted(depth, 50))[None])
        return lufs(torch.from_numpy(module.render(input).audio), RATE)

    difference = abs(loudness(25) - loudness(0))
    difference_of_fluctuation = SUMMARY_FEATURES + 1 + 1
    module.encoder.head.weight.data[:, difference_of_fluctuation] = 0
    assert loudness(25) < loudness(0) - 1.5
    assert difference < 0.5


def spectrum(module, audio: torch.Tensor) -> torch.Tensor:
    return module.encoder.summarize(audio[None])[0, 2:]
