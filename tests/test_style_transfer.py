"""Style transfer is trained on halves of recordings, and renders with a reference."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from dfx.commands.evaluate import main
from dfx.datasets import Degradation, PairedAudio
from dfx.datasets.halves import halve
from dfx.datasets.pairs import find_recordings
from dfx.errors import UserError
from dfx.render.pretrained import find_checkpoint
from dfx.tasks import CheckpointError, StyleTransfer
from dfx.tasks.finetuning import take_weights
from dfx.tasks.loading import restore_degradation
from tests import small_training
from tests.known_effects import SAMPLE_RATE
from tests.small_training import STEPS_IN_EPOCH, trainer, weights
from tests.test_task import Crash

DEGRADATION = Degradation([{"effect": "pedalboard:PeakFilter", "draw": {"gain_db": {"deviation": 6}, "q": None}}])
CONTEXT = 4096


def task(**options) -> StyleTransfer:
    return small_training.task(kind=StyleTransfer, **options)


def data(root, model: StyleTransfer, degradation: Degradation | None = DEGRADATION, **options) -> PairedAudio:
    options = {"degradation": degradation, "takes_reference": model.takes_reference, **options}
    return small_training.data(root, model, treatment=model.treatment, **options)


def ready(root, **options) -> PairedAudio:
    module = data(root, task(), **options)
    module.setup("fit")
    return module


def noise(seconds: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(1, int(seconds * SAMPLE_RATE), generator=generator)


def write_ramps(folder, count: int = 10, seconds: float = 1.0):
    """Write pairs whose targets tell a sample's place: they rise from 0.1 to 0.9."""
    for side in ("input", "target"):
        (folder / side).mkdir(parents=True)
        for number in range(count):
            ramp = np.linspace(0.1, 0.9, int(seconds * SAMPLE_RATE))
            soundfile.write(folder / side / f"{number}.wav", ramp, SAMPLE_RATE, "FLOAT")
    return folder


@pytest.mark.parametrize("backbone", ["conv", "mobilenet_v2"])
def test_the_reference_changes_the_parameters_and_the_output(backbone):
    model, audio, outputs = task(backbone=backbone), noise(0.5), []
    bright = noise(1.5, seed=1)
    for reference in (bright, bright.cumsum(dim=1), bright):
        model.set_reference(reference)
        outputs.append(model.render(audio))
    assert np.array_equal(outputs[0].audio, outputs[2].audio)
    assert np.abs(outputs[0].automation.parameters - outputs[1].automation.parameters).max() > 1e-4
    assert np.abs(outputs[0].audio - outputs[1].audio).max() > 1e-5


def test_every_example_of_a_batch_has_its_own_reference():
    model = task().eval()
    context = torch.stack([noise(0.5)[:, :CONTEXT]] * 2)
    references = torch.stack([noise(1.5, seed=1), 0.01 * noise(1.5, seed=2)])
    together = model.encoder(context, model.encoder.summarize(references))
    for number, reference in enumerate(references):
        model.set_reference(reference)
        torch.testing.assert_close(model.encode(context)[number], together[number])


def test_the_summary_of_a_frame_is_that_of_its_context_alone():
    model = task(backbone="conv").eval()
    model.set_reference(noise(1.5, seed=1))
    audio = noise(1)[None, :, : CONTEXT + 3 * 1024]
    alone = [model.encode(audio[..., start : start + CONTEXT]) for start in range(0, 4 * 1024, 1024)]
    torch.testing.assert_close(model.encode(audio), torch.cat(alone, dim=1))


def test_silence_around_a_recording_does_not_change_its_summary_and_gives_no_invalid_parameters():
    model = task(context_samples=16384).eval()
    audio = (noise(3) * (1.1 + torch.sin(torch.arange(3 * SAMPLE_RATE) / 2000)))[None]
    padded = torch.nn.functional.pad(audio, (2 * SAMPLE_RATE, 2 * SAMPLE_RATE))
    torch.testing.assert_close(*map(model.encoder.summarize, (audio, padded)), atol=0.5, rtol=0)
    model.set_reference(audio[0])
    assert model.encode(torch.zeros(1, 1, 16384)).isfinite().all()


def test_a_style_changes_target_and_reference_alike_and_the_input_is_made_of_the_target(make_pairs):
    louder = [{"effect": "pedalboard:Gain", "draw": {"gain_db": {"deviation": 0, "default": 6.0206}}}]
    root = make_pairs(12, seconds=1.0)
    plain, styled = (
        next(iter(ready(root, degradation=Degradation(louder, style_share=share)).train_dataloader()))
        for share in (0.0, 1.0)
    )
    for side in ("target", "reference"):
        torch.testing.assert_close(styled[side], 2 * plain[side], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(styled["input"], plain["input"], atol=1e-5, rtol=1e-3)


def test_an_excerpt_and_its_reference_come_from_different_halves(tmp_path):
    module = ready(write_ramps(tmp_path / "ramps"))
    middle = 0.5
    for loader in (module.train_dataloader(), module.val_dataloader()):
        for batch in loader:
            assert batch["reference"].shape == (len(batch["input"]), 1, CONTEXT)
            for target, reference in zip(batch["target"], batch["reference"]):
                inside = target[target > 0]
                assert (inside.min() > middle - 1e-3) == (reference.max() < middle + 1e-3)
                assert (inside.max() < middle + 1e-3) == (reference.min() > middle - 1e-3)
    first, second = (module.whole_pairs("test")[index] for index in (0, 1))
    assert torch.equal(first["reference"], second["target"]) and torch.equal(second["reference"], first["target"])


def test_inputs_of_the_folder_are_neither_checked_nor_compared_with_targets(make_pairs, capsys):
    root = make_pairs(10, seconds=1.0)
    for path in (root / "target").iterdir():
        (root / "input" / path.name).write_bytes(path.read_bytes())
    soundfile.write(root / "input" / "note_00.wav", np.zeros(SAMPLE_RATE), SAMPLE_RATE)
    ready(root, check_audio=True)
    assert "warning" not in capsys.readouterr().err


def test_held_out_inputs_are_degraded_alike_in_every_run(make_pairs):
    root = make_pairs(12, seconds=1.0)
    one, other = ready(root), ready(root)
    for ours, theirs in zip(one.val_dataloader(), other.val_dataloader()):
        assert torch.equal(ours["input"], theirs["input"]) and torch.equal(ours["reference"], theirs["reference"])
    recordings = find_recordings(str(root / "target"))
    pairs = [{pair.name: pair for pair in halve(some, DEGRADATION, 0.1)} for some in (recordings, recordings[::-1])]
    for name, pair in pairs[0].items():
        made, again, target = (
            audio.read(100, 5000, SAMPLE_RATE, 1) for audio in (pair.input, pairs[1][name].input, pair.target)
        )
        assert torch.equal(made, again) and (made - target).abs().max() > 1e-4


def test_a_killed_run_with_references_resumes_to_the_bit(make_pairs, tmp_path):
    root = make_pairs(20, seconds=1.0)
    degradation = dataclasses.replace(DEGRADATION, style_share=0.5)

    def fit(*callbacks, **options):
        model = task(backbone="conv")
        trainer(tmp_path, epochs=1, callbacks=callbacks).fit(
            model, datamodule=data(root, model, degradation), **options
        )
        return weights(model)

    uninterrupted = fit()
    saved = ModelCheckpoint(tmp_path, "last", every_n_train_steps=1, enable_version_counter=False)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(saved, Crash(STEPS_IN_EPOCH // 2))
    assert torch.equal(fit(ckpt_path=str(tmp_path / "last.ckpt")), uninterrupted)


def test_a_model_is_tested_with_the_references_of_its_pairs(make_pairs):
    model = task()
    module = data(make_pairs(10, seconds=2.1), model)
    (metrics,) = trainer().test(model, datamodule=module, verbose=False)
    assert metrics["test/output/mrstft"] != metrics["test/input/mrstft"]


def test_evaluation_halves_pairs_as_training_did_and_the_page_plays_the_reference(make_pairs, tmp_path, monkeypatch):
    model, path = task(), tmp_path / "style.ckpt"
    fitted, root = trainer(tmp_path, epochs=1), make_pairs(10, seconds=2.2)
    fitted.fit(model, datamodule=data(root, model))
    fitted.save_checkpoint(path)
    for input in (root / "input").iterdir():  # which are not read
        soundfile.write(input, np.zeros(int(2.2 * SAMPLE_RATE)), SAMPLE_RATE)
    folder = tmp_path / "evaluation"
    options = ["--baselines", "input", "matched", "--output", str(folder)]
    monkeypatch.setattr("sys.argv", ["evaluate.py", str(path), *options])
    main()
    first, second = json.loads((folder / "evaluation.json").read_text())["files"][:2]
    assert first["reference"].endswith(".wav, 1.1 to 2.2 s") and second["reference"].endswith(".wav, 0.0 to 1.1 s")
    reference, target = (
        soundfile.read(folder / "audio" / f"{name}.flac")[0]
        for name in (f"{first['stem']}_reference", f"{second['stem']}_target")
    )
    assert np.corrcoef(reference, target)[0, 1] > 0.999
    page = (folder / "report.html").read_text()
    assert 'id="audio-0-reference"' in page and first["reference"] in page


def test_a_checkpoint_cannot_degrade_with_foreign_code_unless_it_is_trusted():
    saved = {"dfx": {"data": {"degradation": {"effects": [{"effect": "python:os.path.join"}]}}}}
    with pytest.raises(CheckpointError, match="names code to run, python:os.path.join: .* --trust"):
        restore_degradation(saved, "a.ckpt")
    assert restore_degradation(saved, "a.ckpt", trust=True).effects[0]["effect"] == "python:os.path.join"
    with pytest.raises(CheckpointError, match="a.ckpt does not say how its inputs were degraded"):
        restore_degradation({"dfx": {"data": {"degradation": None}}}, "a.ckpt")


def test_what_lacks_a_reference_is_refused_with_a_way_out(make_pairs):
    model = task()
    with pytest.raises(UserError, match="StyleTransfer needs a reference, .* give one"):
        model.render(noise(0.5))
    with pytest.raises(UserError, match=r"the reference lasts 0.50 s: give one of a second or more"):
        model.set_reference(noise(0.5))
    with pytest.raises(UserError, match="the reference is silent"):
        model.set_reference(torch.zeros(1, 2 * SAMPLE_RATE))
    with pytest.raises(UserError, match=r"set data.degradation, .* as in configs/style.yaml"):
        data("anywhere", model, degradation=None)
    with pytest.raises(
        UserError, match=r"lasts 0.30 s, too short to be cut in halves: .* context, 0.19 s; leave it out"
    ):
        ready(make_pairs(10, seconds=0.3))


def test_a_model_of_a_task_without_a_reference_is_no_start():
    model = task(backbone="conv", context_samples=65536, frame_samples=32768)
    with pytest.raises(CheckpointError, match="is of Mastering, and only one of it and StyleTransfer takes"):
        take_weights(model, find_checkpoint("mastering"))
