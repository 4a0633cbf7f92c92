"""Logging to the run's folder and to Weights & Biases, which neither changes nor ends a run."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import soundfile
import torch

from dfx.blackbox import EffectLayer
from dfx.callbacks.excerpts import SIDES, Excerpts, LoggingOptions
from dfx.callbacks.health import Health, _Step, signal_to_noise
from dfx.cli import main
from dfx.effects import ChainSpec, EffectSpec
from dfx.errors import UserError
from dfx.loggers.history import best_row, read_history
from dfx.loggers.history_logger import History
from dfx.loggers.wandb import WandbRun
from dfx.tasks import load_task
from tests.known_effects import SAMPLE_RATE
from tests.small_training import data, task, trainer, weights
from tests.wandb_records import merged, records

ROOT = Path(__file__).parent.parent
SCALARS = {
    "train/loss", "validation/loss", "validation/loss_of_input", "lr-Adam", "gradient/norm", "gradient/signal_to_noise",
    "parameters/share_at_bounds", "parameters/dead", "speed/renderings_per_second", "speed/share_effects",
    "speed/share_encoder", "speed/share_loss", "speed/share_logging", "test/input/loss", "test/output/mrstft",
}  # fmt: skip
MEDIA = {
    "media/audio": "audio-file", "media/spectrograms": "image-file", "media/automation": "image-file",
    "tables/parameters": "table-file", "tables/automation": "table-file",
}  # fmt: skip


@pytest.fixture(scope="module")
def record(logged_run) -> list:
    return records(logged_run)


# --- records and files -------------------------------------------------------------------------------------


def test_the_offline_record_holds_every_scalar(record):
    logged = merged(record)
    assert set(logged) >= SCALARS
    assert all(isinstance(logged[name], (int, float)) for name in SCALARS)


def test_the_offline_record_holds_audio_images_and_tables_and_their_files(record, logged_run):
    logged = merged(record)
    (files,) = (logged_run / "wandb").glob("offline-run-*/files")
    for name, kind in MEDIA.items():
        shown = logged.get(f"{name}.audio") or [{k: logged.get(f"{name}.{k}") for k in ("_type", "path")}]
        for one in shown:
            assert one["_type"] == kind and (files / one["path"]).stat().st_size > 0, name
    assert [one["caption"].split(": ")[1] for one in logged["media/audio.audio"]] == ["input, output, target"] * 3
    table = json.loads((files / logged["tables/parameters.path"]).read_text())
    assert table["columns"][:6] == ["name", "value", "unit", "low", "high", "default"]
    assert [row[0] for row in table["data"]] == ["distortion.drive_db", "gain.gain_db"]
    assert [row[2:6] for row in table["data"]] == [["dB", 0, 30, 6], ["dB", -24, 24, 0]]


def test_the_offline_record_holds_config_versions_group_and_tags(record, logged_run):
    run = next(line["run"] for line in record if line["type"] == "run")
    config = run["config"]["update"]
    assert config["model"]["init_args"]["gradient"]["epsilon"] == 0.01
    assert config["versions"] == json.loads((logged_run / "versions.json").read_text())
    assert (run["run_group"], run["job_type"], run["display_name"]) == ("an_ablation", "fit", "smoke")
    assert run["tags"] == ["TubeAmp", "one_arm"]


def test_the_offline_record_holds_the_best_checkpoint_with_its_metrics(record, logged_run):
    artifacts = [line["artifact"] for line in record if line["type"] == "artifact"]
    (artifact,) = [artifact for artifact in artifacts if artifact["type"] == "model"]
    (file,) = artifact["manifest"]["contents"]
    assert file["local_path"] == str(logged_run / "checkpoints" / "best.ckpt") and "best" in artifact["aliases"]
    metrics = json.loads(artifact["metadata"])
    evaluated = json.loads((logged_run / "evaluation" / "metrics.json").read_text())
    assert metrics["validation/loss"] == best_row(read_history(logged_run))["validation/loss"]
    assert metrics["test/output/loss"] == evaluated["output"]["loss"]


def test_the_run_folder_holds_the_same_scalars_at_the_same_steps(record, logged_run):
    recorded = {}
    for line in record:
        if line["type"] == "history":
            item = line["history"]["item"]
            step = item["trainer/global_step"]
            recorded.update({(step, name): item[name] for name in SCALARS & set(item)})
    kept = {(row["step"], name): row[name] for row in read_history(logged_run) for name in SCALARS & set(row)}
    assert kept == pytest.approx(recorded)


def test_the_excerpts_are_the_output_for_validation_pairs_at_one_gain(logged_run):
    folder = sorted((logged_run / "media").iterdir())[-1]
    about = json.loads((folder / "about.json").read_text())
    assert about["step"] == 9 and len(about["excerpts"]) == 3
    assert {path.name for path in folder.iterdir()} == {
        "about.json", "automation.csv", "automation.png", "parameters.csv", "spectrograms.png",
        *(f"{name}_{side}.flac" for name in about["excerpts"] for side in SIDES),
    }  # fmt: skip
    name = about["excerpts"][0]
    sides = {side: soundfile.read(folder / f"{name}_{side}.flac", dtype="float32")[0] for side in SIDES}
    note, _ = soundfile.read(ROOT / "data" / "tube_amp" / "input" / f"{name}.flac", dtype="float32")
    samples = len(sides["output"])
    rendering = load_task(str(logged_run / "checkpoints" / "last.ckpt")).render(torch.from_numpy(note)[None])
    gain = sides["input"].std() / note[:samples].std()
    assert gain <= 1.0001
    np.testing.assert_allclose(sides["input"], gain * note[:samples], atol=1e-4)
    np.testing.assert_allclose(sides["output"], gain * rendering.audio[0, :samples], atol=1e-3)
    rows = [row for row in csv.DictReader((folder / "automation.csv").open()) if row["excerpt"] == name]
    shown = [[float(row[parameter]) for parameter in ("distortion.drive_db", "gain.gain_db")] for row in rows]
    np.testing.assert_allclose(shown, rendering.automation.values[: len(shown)], rtol=1e-3)


def test_the_media_of_the_first_the_best_and_the_last_step_are_kept(make_pairs, tmp_path):
    model = task()
    logging = Excerpts(tmp_path, LoggingOptions(excerpts=1, media_every_n_validations=1))
    callbacks = [logging, _Losses([3.0, 2.0, 1.0, 4.0, 5.0, 6.0])]
    trainer(epochs=6, callbacks=callbacks).fit(model, datamodule=data(make_pairs(12), model))
    kept = [json.loads(about.read_text()) for about in sorted((tmp_path / "media").glob("*/about.json"))]
    assert [about["validation/loss"] for about in kept] == [3.0, 1.0, 6.0]


class _Losses(pl.Callback):
    """Replaces the validation losses."""

    def __init__(self, losses: list) -> None:
        self._losses = losses

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        pl_module.log("validation/loss", self._losses[trainer.current_epoch])


# --- the health of training ----------------------------------------------------------------------------------


def test_the_signal_to_noise_ratio_is_that_of_the_sum_of_both_estimates():
    generator = torch.Generator().manual_seed(0)
    gradient = [torch.randn(300, 200, generator=generator), torch.randn(400, generator=generator)]
    for noise in (0.2, 1.0, 3.0):
        one, other = ([part + noise * torch.randn(part.shape, generator=generator) for part in gradient] for _ in "ab")
        # Of the sum: the signal doubles in amplitude, the noise in power.
        assert signal_to_noise(one, other) == pytest.approx(2 / noise**2, rel=0.1)


def measure_step(batch: dict, **options) -> tuple:
    """Return the metrics of one training step, the encoder's gradient after it, and the model."""
    model = task(redraw="frame", **options)
    step = _Step(model)
    loss = model.compute_loss(batch)
    step.begin_backward()
    loss.backward()
    step.end_backward()
    return step.end(), [weight.grad for weight in model.encoder.parameters()], model


def notes(model_samples: int, batch: int) -> dict:
    generator = torch.Generator().manual_seed(1)
    input = 0.3 * torch.randn(batch, 1, model_samples, generator=generator)
    return {"input": input, "target": torch.tanh(3 * input), "restart": torch.ones(batch, dtype=torch.bool)}


def test_measuring_a_step_does_not_change_its_gradient_and_leaves_no_hook():
    samples = task().window.samples
    _, gradients, model = measure_step(notes(samples, 5))
    untouched = task(redraw="frame")
    untouched.compute_loss(notes(samples, 5)).backward()
    assert all(map(torch.equal, gradients, [weight.grad for weight in untouched.encoder.parameters()]))
    for part in (model.encoder, model.effect_layer, model.loss):
        assert not part._forward_hooks and not part._forward_pre_hooks


def test_the_shares_of_a_step_sum_to_at_most_one_and_its_renderings_are_counted():
    metrics, _, model = measure_step(notes(task(frames_per_step=2).window.samples, 4), frames_per_step=2)
    shares = [metrics[f"speed/share_{part}"] for part in ("effects", "encoder", "loss")]
    assert min(shares) > 0 and sum(shares) <= 1
    assert metrics["speed/renderings_per_second"] > 0 and math.isfinite(metrics["gradient/signal_to_noise"])


def test_logging_leaves_no_trace_in_training(make_pairs, tmp_path):
    root, results = make_pairs(20), []
    for callbacks in ([], [Health(1), Excerpts(tmp_path, LoggingOptions(media_every_n_validations=1))]):
        model = task()
        trainer(callbacks=callbacks).fit(model, datamodule=data(root, model))
        results.append(weights(model))
    assert torch.equal(*results)
    assert len(list((tmp_path / "media").iterdir())) == 2


def test_parameters_at_their_bounds_are_counted(make_pairs, tmp_path):
    model = task()
    with torch.no_grad():
        model.encoder.head.bias.copy_(torch.tensor([30.0, 0.0, -30.0]))
    logger = History(tmp_path)
    fit = trainer(epochs=1, callbacks=[Excerpts(tmp_path, LoggingOptions())])
    fit.loggers = [logger]
    fit.fit(model, datamodule=data(make_pairs(12), model))
    assert read_history(tmp_path)[-1]["parameters/share_at_bounds"] == pytest.approx(2 / 3)
    rows = {row["name"]: row for row in csv.DictReader((tmp_path / "parameters.csv").open())}
    assert [float(row["share_at_bounds"]) for row in rows.values()] == [1, 0, 1]
    threshold = rows["compressor.threshold_db"]
    assert float(threshold["value"]) == pytest.approx(float(threshold["high"]))


def test_sensitivity_is_the_level_of_the_change_by_a_step_and_minus_infinity_for_dead_parameters():
    chain = ChainSpec(
        [EffectSpec("pedalboard:Gain", train={"gain_db": (-24, 24)}),
         EffectSpec("pedalboard:Chorus", train={"rate_hz": None}, fixed={"mix": 0})], SAMPLE_RATE,
    )  # fmt: skip
    layer = EffectLayer(chain)
    generator = torch.Generator().manual_seed(0)
    audio = 0.1 * torch.randn(1, 4096, generator=generator)
    levels = layer.sensitivity(audio, torch.tensor([[0.5, 0.5], [1.0, 1.0]]))
    # 0 dB for the first half, then 24 dB, from where the step goes down: 2.4 dB each.
    power = ((10 ** (2.4 / 20) - 1) ** 2 + 10**2.4 * (1 - 10 ** (-2.4 / 20)) ** 2) / (1 + 10**2.4)
    assert levels[0] == pytest.approx(10 * math.log10(power), abs=0.1) and levels[1] == -math.inf


# --- failures of logging -------------------------------------------------------------------------------------


def fit(*arguments: object, **environment: str) -> str:
    """Return the standard error of a short run that succeeds."""
    command = [sys.executable, "train.py", "fit", "--config", "configs/smoke.yaml", "--run.evaluate", "false",
               "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1",
               *map(str, arguments)]  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    ended = subprocess.run(
        command, cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


def check_folder(run: Path) -> None:
    assert {"train/loss", "validation/loss", "parameters/dead"} <= {n for row in read_history(run) for n in row}
    assert len(list((run / "media").iterdir())) == 2 and (run / "checkpoints" / "best.ckpt").exists()


def test_a_run_that_cannot_go_online_is_recorded_offline(tmp_path):
    # A home without a login, and a server that does not exist.
    stderr = fit("--run.folder", tmp_path, "--wandb.mode", "online", "--trainer.log_every_n_steps", 1,
               HOME=str(tmp_path), WANDB_BASE_URL="http://127.0.0.1:1")  # fmt: skip
    assert stderr.count("W&B cannot be reached") == 1 and "No API key" in stderr
    check_folder(tmp_path / "smoke")
    assert "validation/loss" in merged(records(tmp_path / "smoke"))
    assert len(list((tmp_path / "smoke" / "wandb").glob("*run-*-*"))) == 1


def test_a_run_that_resumes_continues_the_id_of_its_last_record(tmp_path):
    for record in ("offline-run-20260102_000000-my-run-1", "run-20260101_000000-another"):
        (tmp_path / "wandb" / record).mkdir(parents=True)
    assert WandbRun(tmp_path, offline=True).version == "my-run-1"


class KillsWandb(pl.Callback):
    """Kills W&B's service during the run."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == 1:
            children = subprocess.run(["pgrep", "-P", str(os.getpid()), "wandb-core"], capture_output=True, check=True)
            for child in children.stdout.split():
                os.kill(int(child), signal.SIGKILL)


@pytest.mark.slow
def test_a_run_continues_when_wandb_dies(tmp_path):
    stderr = fit("--run.folder", tmp_path, "--wandb.mode", "offline", "--trainer.log_every_n_steps", 1,
               "--trainer.callbacks", "tests.test_callbacks.KillsWandb")  # fmt: skip
    assert stderr.count("W&B has failed") == 1
    check_folder(tmp_path / "smoke")


def test_a_run_without_wandb_keeps_everything_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    main(["fit", "--config", "configs/smoke.yaml", "--run.folder", str(tmp_path), "--run.evaluate", "false",
          "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1", "--trainer.log_every_n_steps", "1",
          "--wandb.mode", "disabled"])  # fmt: skip
    check_folder(tmp_path / "smoke")
    assert not (tmp_path / "smoke" / "wandb").exists()


def test_media_that_cannot_be_written_cause_one_warning(make_pairs, tmp_path):
    (tmp_path / "media").write_text("a file in place of the folder")
    model = task()
    logging = Excerpts(tmp_path, LoggingOptions(media_every_n_validations=1))
    fit = trainer(epochs=3, callbacks=[logging])
    with pytest.warns(UserWarning, match="logging has failed, and the run continues") as warned:
        fit.fit(model, datamodule=data(make_pairs(12), model))
    assert fit.current_epoch == 3
    assert sum("logging has failed" in str(warning.message) for warning in warned) == 1


# --- the history ------------------------------------------------------------------------------------------------


def test_later_values_of_a_step_logged_twice_count_and_steps_continue_over_stages(tmp_path):
    for stage, rows in [(0, [(0, 5.0), (9, 4.0), (19, 3.0)]), (0, [(9, 4.5), (19, 3.5)]), (1, [(4, 2.0), (9, 2.5)])]:
        for step, loss in rows:
            History(tmp_path, stage).log_metrics({"validation/loss": loss}, step)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"stage": 1, "st')
    rows = read_history(tmp_path)
    found = [(row["total_step"], row["validation/loss"]) for row in rows]
    assert found == [(0, 5), (9, 4.5), (19, 3.5), (24, 2), (29, 2.5)]
    assert best_row(rows)["validation/loss"] == 2.0


def test_a_row_that_follows_a_part_of_a_line_is_kept(tmp_path):
    for step in (0, 1):
        History(tmp_path).log_metrics({"loss": 1.0}, step)
        with (tmp_path / "history.jsonl").open("a") as file:
            file.write('{"stage": 0, "st')
    assert [row["step"] for row in read_history(tmp_path)] == [0, 1]
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("option", ["excerpts", "media_every_n_validations", "health_every_n_steps", "excerpt_seconds"])
def test_logging_options_out_of_their_range_are_refused(option):
    with pytest.raises(UserError, match=f"{option} is -1"):
        LoggingOptions(**{option: -1})
