"""Fine-tuning: a run begins with the weights of a trained model."""

import shutil

import pytest
import torch

from dfx.effects import EffectSpec
from dfx.encoder import EncoderOptions
from dfx.errors import DataError
from dfx.render.pretrained import find_checkpoint
from dfx.tasks import CheckpointError, Mastering, Task, load_task
from dfx.tasks.finetuning import take_weights
from tests.conftest import write_pairs
from tests.small_training import EFFECTS, data, task, trainer
from tests.staged_run import change, checkpoints, config, fit, same  # noqa: F401

OTHER_RANGE = EffectSpec("pedalboard:Distortion", train={"drive_db": (0, 20)})
ADDED = EffectSpec("pedalboard:Gain", train={"gain_db": (-12, 12)})


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple:
    """A folder of pairs, and the checkpoint of a model that was trained on it."""
    folder = tmp_path_factory.mktemp("trained")
    model, root = task(), write_pairs(folder / "pairs", 10, 0.2)
    fit = trainer(folder, epochs=1)
    fit.fit(model, datamodule=data(root, model))
    fit.save_checkpoint(folder / "trained.ckpt")
    return root, str(folder / "trained.ckpt")


def validate(model, root) -> float:
    return trainer().validate(model, datamodule=data(root, model), verbose=False)[0]["validation/loss"]


def test_the_first_validation_is_that_of_the_model(trained):
    root, path = trained
    model, untrained = task(), task()
    (sentence,) = take_weights(model, path)
    assert sentence.endswith("and with its output layer for 3 of 3 parameters")
    assert validate(model, root) == validate(load_task(path), root) != validate(untrained, root)


def test_rows_are_taken_of_parameters_with_one_name_scale_and_range_and_the_others_are_told(trained):
    path = trained[1]
    model = task([ADDED, EFFECTS[0], OTHER_RANGE], frames_per_step=2, frame_samples=512)
    before = model.encoder.head.weight.detach().clone()
    taken, left, audio = take_weights(model, path)
    assert "for 2 of 4 parameters" in taken
    assert left.endswith("scale and range: gain.gain_db, distortion.drive_db")
    assert audio.endswith("other audio: frame_samples 1024, here 512")
    weight, of_model = model.encoder.head.weight, load_task(path).encoder.head.weight
    assert torch.equal(weight[1:3], of_model[:2]) and torch.equal(weight[[0, 3]], before[[0, 3]])


def test_another_backbone_is_refused_and_names_what_differs(trained):
    model = task()
    model.arguments["encoder"] |= {"backbone": "conv"}
    model.encoder.backbone = torch.nn.Linear(1, 1)
    with pytest.raises(CheckpointError, match="another encoder .backbone mobilenet_v2, here conv.: give the run"):
        take_weights(model, trained[1])


def test_code_of_a_model_that_the_config_does_not_name_is_not_run(trained, tmp_path):
    content = torch.load(trained[1], weights_only=True)
    content["dfx"]["arguments"]["effects"][0]["effect"] = "python:tests.misbehaving.Nowhere"
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="trained with other effects: python:tests.misbehaving.Nowhere"):
        take_weights(task(), str(tmp_path / "other.ckpt"))


def test_a_model_that_ships_fits_a_run_with_its_encoder():
    options = EncoderOptions("conv", width=0.35)
    model = Mastering([{"effect": "pedalboard:Gain"}], context_samples=65536, frame_samples=32768, encoder=options)
    sentences = take_weights(model, find_checkpoint("mastering"))
    assert len(sentences) == 2 and "untrained" in sentences[1]


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_bit_and_loads_the_model_once(config, monkeypatch, capsys):
    change(config, "model.init_args", stages={})
    fit(config, "--run.name", "model", "--data.seed", "1", "--trainer.max_epochs", "1")
    model = config.parent / "model.ckpt"
    shutil.copy(config.parent / "runs" / "model" / "checkpoints" / "last.ckpt", model)
    change(config, "run", start_from=str(model))
    fit(config, "--run.name", "uninterrupted")
    assert "test pairs, whose metrics are then too good" in capsys.readouterr().out
    with pytest.raises(DataError, match="model.ckpt was trained on 1. of the 12 pairs, which the folds are to test"):
        fit(config, "--run.folds", "3", "--run.evaluate", "true")

    loss_of = Task.compute_loss

    def killed(self, batch):
        if self.trainer.global_step == 4:
            raise RuntimeError("killed")
        return loss_of(self, batch)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(Task, "compute_loss", killed)
        fit(config)
    model.unlink()
    with pytest.raises(CheckpointError, match="run.start_from .*model.ckpt, now None"):
        fit(config, "--run.resume", "true", "--run.start_from", "null")
    fit(config, "--run.resume", "true")
    assert same(checkpoints(config), checkpoints(config, "uninterrupted"))
