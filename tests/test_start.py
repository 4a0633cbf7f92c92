"""The start of training: CMA-ES searches the best single setting for the training pairs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from dfx.callbacks.run_folder import RunFolder
from dfx.errors import UserError
from dfx.losses import LossOptions, make_loss
from dfx.render.search import Found, Search
from dfx.tasks import Task
from dfx.tasks import task as task_module
from dfx.tasks.stages import StageOptions
from dfx.tasks.start import search_start
from tests.known_effects import SAMPLE_RATE, known
from tests.small_training import data, task, trainer, weights


@pytest.fixture
def louder(tmp_path):
    """Pairs whose targets are the inputs times 1.5, which the effect of :func:`model` can be set to."""
    random, root = np.random.default_rng(0), tmp_path / "louder"
    for side in ("input", "target"):
        (root / side).mkdir(parents=True)
    for number in range(10):
        audio = 0.1 * random.standard_normal(SAMPLE_RATE // (4 if number else 2))
        soundfile.write(root / "input" / f"{number}.wav", audio, SAMPLE_RATE, "FLOAT")
        soundfile.write(root / "target" / f"{number}.wav", 1.5 * audio, SAMPLE_RATE, "FLOAT")
    return root


def model(evaluations: int = 40, **stages) -> Task:
    return task([known("Gain")], stages=StageOptions(evaluations, **stages))


def fit(model: Task, root, *callbacks, epochs=2, ckpt_path=None) -> Task:
    trainer(epochs=epochs, callbacks=callbacks).fit(model, datamodule=data(root, model), ckpt_path=ckpt_path)
    return model


def test_training_starts_at_the_best_setting_whatever_the_input(louder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Task, "training_step", lambda self, batch, batch_idx: None)
    found = fit(model(), louder, RunFolder(tmp_path), epochs=1)
    parameters = found.encode(torch.randn(4, 1, 4096))
    torch.testing.assert_close(parameters, torch.full_like(parameters, 0.75), atol=0.01, rtol=0)
    start = json.loads((tmp_path / "start.json").read_text())
    assert start["values"]["gain.gain"] == pytest.approx(1.5, abs=0.02)
    assert start["loss"] < 0.1 * start["loss_of_defaults"]
    tried = f"training starts at the best of {start['evaluations']} settings (loss {start['loss']:.4g}, at the defaults"
    assert tried in (printed := capsys.readouterr().out) and "for the 8 training pairs" in printed


def test_the_search_is_the_same_again_and_another_with_another_seed(louder):
    chain, loss = model().whole_chain, make_loss(LossOptions(fft_sizes=[512]))
    module = data(louder, model())
    module.setup("fit")
    one, same, other = (search_start(chain, loss, module.whole_pairs("train"), 10, seed) for seed in (0, 0, 1))
    assert one == same != other


def test_the_better_of_two_searches_is_kept_and_no_two_seeds_share_one(louder, monkeypatch):
    losses, seeds = iter([2.0, 1.0, 1.0, 2.0]), []

    def search(self: Search, input: torch.Tensor, target: torch.Tensor) -> Found:
        seeds.append(self._seed)
        loss = next(losses)
        return Found(np.array([loss / 4]), loss, 3.0, 5)

    monkeypatch.setattr(Search, "__call__", search)
    module = data(louder, model())
    module.setup("fit")
    for seed in (0, 1):
        start = search_start(model().whole_chain, make_loss(LossOptions()), module.whole_pairs("train"), 10, seed)
        assert start["loss"] == 1 and start["parameters"] == [0.25] and start["evaluations"] == 10
    assert len(set(seeds)) == 4


def test_every_training_pair_is_searched_over_and_no_more_than_a_minute_of_audio(louder, monkeypatch):
    compared = []
    monkeypatch.setattr("dfx.render.search.Search.__call__", lambda self, input, target: compared.append(input))
    module = data(louder, model())
    module.setup("fit")
    pairs = module.whole_pairs("train")
    longest = max(pair.input.samples for pair in pairs.pairs)
    for many in (1, 10):
        pairs.pairs = many * list(pairs.pairs)
        with pytest.raises(AttributeError):  # nothing is found
            search_start(model().whole_chain, make_loss(LossOptions()), pairs, 10, 0)
    assert [len(excerpts) for excerpts in compared] == [8, 8, 32, 32]
    assert all(excerpts.shape[-1] == longest for excerpts in compared)


def test_pretraining_fits_to_the_found_setting(louder):
    module = model(pretraining_epochs=1)
    module.enter_stage(0)
    fit(module, louder)
    assert module.defaults.item() == pytest.approx(module.start["parameters"][0]) == pytest.approx(0.75, abs=0.01)
    assert module.compute_loss(next(iter(data_of(module, louder)))).item() < 1e-3


def data_of(module: Task, root):
    loaded = data(root, module)
    loaded.setup("fit")
    return loaded.val_dataloader()


def test_a_run_resumes_to_the_bit_without_another_search(louder, tmp_path, monkeypatch):
    uninterrupted = fit(model(10), louder, ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1))
    monkeypatch.setattr(task_module, "search_start", lambda *arguments: pytest.fail("it is searched again"))
    resumed = fit(model(10), louder, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert resumed.start == uninterrupted.start and torch.equal(resumed.defaults, uninterrupted.defaults)
    assert torch.equal(weights(resumed), weights(uninterrupted))


def test_without_pairs_to_search_over_the_option_is_refused(louder):
    module = model()
    loader = data_of(module, louder)
    with pytest.raises(UserError, match="search_evaluations needs the training pairs of a PairedAudio data module"):
        trainer().fit(module, train_dataloaders=loader)
