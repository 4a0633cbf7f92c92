from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from dfx import distributed
from dfx.blackbox import workers
from dfx.effects import EffectError, EffectSpec
from dfx.tasks import CheckpointError, Task, TubeAmp, load_task, read_checkpoint
from dfx.tasks.loading import build_task
from tests.known_effects import known
from tests.small_training import EFFECTS, STEPS_IN_EPOCH, data, task, trainer, weights


class Crash(pl.Callback):
    """Raises an error after some steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.after:
            raise RuntimeError("power cut")


@pytest.mark.parametrize(
    "redraw, drawn", [("excerpt", {}), ("frame", {"steps_per_epoch": STEPS_IN_EPOCH, "validation_steps": 1})]
)
def test_fit_crashed_at_any_step_and_resumed_ends_with_the_weights_of_an_uninterrupted_run(
    make_pairs, tmp_path, redraw, drawn
):
    root = make_pairs(20, seconds=0.6)
    uninterrupted = task(redraw=redraw, dropout=0.5)
    trainer().fit(uninterrupted, datamodule=data(root, uninterrupted, **drawn))

    for crashes in [(1, 3, STEPS_IN_EPOCH - 1, STEPS_IN_EPOCH), (STEPS_IN_EPOCH + 2,)]:
        last = None
        for crash in crashes:
            saved = ModelCheckpoint(tmp_path, "last", every_n_train_steps=1, enable_version_counter=False)
            crashed = task(redraw=redraw, dropout=0.5)
            with pytest.raises(RuntimeError, match="power cut"):
                fit = trainer(tmp_path, callbacks=[saved, Crash(crash)])
                fit.fit(crashed, datamodule=data(root, crashed, **drawn), ckpt_path=last)
            last = str(tmp_path / "last.ckpt")
        resumed = task(redraw=redraw, dropout=0.5)
        trainer(tmp_path).fit(resumed, datamodule=data(root, resumed, **drawn), ckpt_path=last)
        assert torch.equal(weights(resumed), weights(uninterrupted)), f"crashed after the steps {crashes}"


def test_the_same_seed_gives_the_same_weights_and_another_does_not(make_pairs):
    root, results = make_pairs(12), []
    for seed in (0, 0, 1):
        model = task()
        module = data(root, model)
        module.seed = seed
        trainer(epochs=1).fit(model, datamodule=module)
        results.append(weights(model))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_training_lowers_the_loss_below_doing_nothing(make_pairs):
    root = make_pairs(20)
    model = task()
    fit = trainer(epochs=20, check_val_every_n_epoch=20)
    fit.fit(model, datamodule=data(root, model))
    metrics = fit.callback_metrics
    assert metrics["validation/loss"] < 0.75 * metrics["validation/loss_of_input"]


def test_validation_does_not_change_the_trained_weights(make_pairs):
    root, results = make_pairs(20), []
    for validations in (0, 1.0):
        model = task()
        trainer(epochs=1, limit_val_batches=validations, val_check_interval=2).fit(model, datamodule=data(root, model))
        results.append(weights(model))
    assert torch.equal(*results)


def test_ranks_on_the_same_cores_divide_the_threads_of_torch(monkeypatch):
    monkeypatch.setattr(workers, "available_cores", lambda: 8)
    monkeypatch.setattr(distributed, "_sharing", 1)
    threads, model = torch.get_num_threads(), task()
    try:
        for ranks, expected in ((1, 6), (4, 2), (9, 1)):
            torch.set_num_threads(6)
            monkeypatch.setattr(distributed, "gather_list", lambda own, ranks=ranks: ranks * own)
            model.setup("test")
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(threads)


def test_the_target_is_delayed_by_the_latency_of_the_chain():
    model = task([known("Late")])
    generator = torch.Generator().manual_seed(0)
    audio = torch.randn(2, 1, model.window.samples, generator=generator)
    output, _ = model(audio, torch.tensor([True, True]))
    filled = slice(50, None)
    torch.testing.assert_close(
        output[..., filled] / output[0, 0, -1] * model.window.delayed_step(audio)[0, 0, -1],
        model.window.delayed_step(audio)[..., filled],
        rtol=0.1,
        atol=0.2,
    )


def test_rendering_is_aligned_with_its_input_and_as_long():
    model = task([known("Late", train={"gain": (0.999, 1.001)})])
    for samples in (1, 700, 1024, 5000):
        audio = torch.randn(1, samples)
        rendering = model.render(audio)
        torch.testing.assert_close(torch.from_numpy(rendering.audio), audio, atol=0.01, rtol=0)
        assert rendering.automation.values.shape == (max(1, -(-(samples + 50) // 1024)), 1)


def test_rendering_leaves_the_model_as_it_was():
    model = task().train()
    before = weights(model)
    model.render(torch.randn(1, 3000))
    assert model.training and torch.equal(weights(model), before)


def test_a_checkpoint_loads_without_code_and_renders_the_same(make_pairs, tmp_path):
    root, model = make_pairs(12), task()
    fit = trainer(tmp_path, epochs=1)
    fit.fit(model, datamodule=data(root, model))
    fit.save_checkpoint(tmp_path / "model.ckpt")
    loaded = load_task(str(tmp_path / "model.ckpt"))
    audio = 0.1 * torch.randn(1, 3000)
    assert isinstance(loaded, TubeAmp) and not loaded.training
    ours, theirs = model.render(audio), loaded.render(audio)
    np.testing.assert_array_equal(theirs.audio, ours.audio)
    np.testing.assert_array_equal(theirs.automation.values, ours.automation.values)


def test_scale_applies_to_all_parameters_without_one():
    effects = [
        EffectSpec("pedalboard:LowpassFilter"),
        EffectSpec("pedalboard:HighpassFilter", scale="log"),
        EffectSpec("pedalboard:PeakFilter", train={"cutoff_frequency_hz": {"scale": "log"}, "gain_db": None}),
    ]
    assert [p.scale for p in task(effects, scale="linear").chain.parameters] == ["linear", "log", "log", "linear"]
    assert [p.scale for p in task(effects).chain.parameters] == ["log", "log", "log", "linear"]
    with pytest.raises(EffectError, match="positive for a log scale"):
        task(effects, scale="log")


def test_a_checkpoint_of_another_chain_or_task_is_refused(make_pairs, tmp_path):
    class Other(Task):
        pass

    root, model = make_pairs(12), task()
    fit = trainer(tmp_path, epochs=1)
    fit.fit(model, datamodule=data(root, model))
    fit.save_checkpoint(tmp_path / "model.ckpt")
    for other, message in [
        (task(EFFECTS[:1]), "trained with other effects"),
        (task(kind=Other), "of the task TubeAmp"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            trainer(tmp_path, epochs=2).fit(other, datamodule=data(root, other), ckpt_path=str(tmp_path / "model.ckpt"))


def test_a_run_resumes_with_other_ranges_of_the_same_parameters(make_pairs, tmp_path):
    root, model = make_pairs(12), task()
    fit = trainer(tmp_path, epochs=1)
    fit.fit(model, datamodule=data(root, model))
    fit.save_checkpoint(tmp_path / "model.ckpt")
    narrower = task([EFFECTS[0], EffectSpec("pedalboard:Distortion", train={"drive_db": (5, 20)})])
    fit = trainer(tmp_path)
    fit.fit(narrower, datamodule=data(root, narrower), ckpt_path=str(tmp_path / "model.ckpt"))
    assert fit.global_step == 2 * STEPS_IN_EPOCH


def test_options_that_a_checkpoint_lacks_had_their_defaults():
    checkpoint = read_checkpoint(str(Path(__file__).parent.parent / "data" / "models" / "tube_amp" / "model.ckpt"))
    checkpoint["dfx"]["arguments"]["encoder"].pop("conventions", None)
    model = build_task(checkpoint, "model.ckpt")
    assert model.check_checkpoint(checkpoint)["stage"] == 0
    model.arguments["encoder"]["conventions"] = "keras"
    with pytest.raises(CheckpointError, match="trained with other encoder"):
        model.check_checkpoint(checkpoint)


def test_files_that_are_not_checkpoints_are_refused(tmp_path):
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    for name, message in [("none.ckpt", "no such file"), ("text.ckpt", "cannot be read"), ("foreign.ckpt", "dfx has")]:
        with pytest.raises(CheckpointError, match=message):
            load_task(str(tmp_path / name))


def test_a_checkpoint_with_options_of_another_version_is_refused(make_pairs, tmp_path):
    path, model = tmp_path / "model.ckpt", task()
    fit = trainer(tmp_path, epochs=1)
    fit.fit(model, datamodule=data(make_pairs(12), model))
    fit.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)
    for arguments in (saved["dfx"]["arguments"], saved["dfx"]["arguments"]["gradient"]):
        arguments["of_tomorrow"] = 1
        torch.save(saved, path)
        with pytest.raises(CheckpointError, match="a version of dfx with other options .*of_tomorrow"):
            load_task(str(path))
        del arguments["of_tomorrow"]
    saved["dfx"]["arguments"]["gradient"]["memory"] = 0.9
    torch.save(saved, path)
    with pytest.raises(CheckpointError, match="gradient.memory is now called gradient.forgetting_factor"):
        load_task(str(path))


@pytest.mark.parametrize("side", ["input", "target"])
def test_a_test_step_says_why_the_metrics_of_a_silent_pair_are_undefined(side, monkeypatch, capsys):
    model = task()
    logged = []
    monkeypatch.setattr(model, "log", lambda name, *_, **__: logged.append(name))
    pair = {"input": 0.1 * torch.randn(1, 8192), "target": 0.1 * torch.randn(1, 8192)}
    pair[side] = torch.zeros(1, 8192)
    model.test_step(pair, 3)
    said = capsys.readouterr().out
    assert "pair 3, input: metrics are undefined" in said and "silent" in said
    assert not [name for name in logged if name.startswith("test/input")]
