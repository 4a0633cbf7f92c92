"""Runs that are killed, stopped or out of disk space lose nothing and resume to the same bits."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb
from pytorch_lightning.loggers import WandbLogger

from dfx.cli import main
from dfx.tasks import Task
from tests.staged_run import STEPS_IN_EPOCH, change, checkpoints, config, fit, same  # noqa: F401

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
UNINTERRUPTED = ("--run.name", "uninterrupted")
RESUME = ("--run.resume", "true")


def last(config: Path, name: str = "run") -> Path:
    return config.parent / "runs" / name / "checkpoints" / "last.ckpt"


def failed_fit(config: Path, *arguments: object) -> SystemExit:
    """Run a command that fails, and return how it ends."""
    with pytest.raises(SystemExit) as exit:
        main(["fit", "--config", str(config), *map(str, arguments)])
    return exit.value


def call_in_step(monkeypatch: pytest.MonkeyPatch, function, stage: str, step: int, training: bool) -> None:
    """Call a function once, in the middle of a step of training or validation."""
    loss_of, done = Task.compute_loss, []

    def loss(self, batch):
        if (self.stage.name, self.trainer.global_step, self.training) == (stage, step, training) and not done:
            done.append(True)
            function()
        return loss_of(self, batch)

    monkeypatch.setattr(Task, "compute_loss", loss)


# --- killed ------------------------------------------------------------------------------------------


def identity(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def train(config: Path, name: str, moments: random.Random | None = None) -> bool:
    """Run the command in a process, or resume its run; with ``moments``, kill it at a random time.

    Returns:
        True if it was killed.
    """
    file = last(config, name)
    seen = identity(file)
    resume = RESUME if file.parent.parent.exists() else ()
    # The server has imported everything, which takes longer than the steps between two kills.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["dfx.cli"])
    process = server.Process(target=main, args=(["fit", "--config", str(config), "--run.name", name, *resume],))
    process.start()
    if moments is not None:
        # Wait for some steps, each of which writes a checkpoint, then for a random time.
        steps = moments.randint(1, 8)
        while steps and process.is_alive():
            found = identity(file)
            steps -= found not in (None, seen)
            seen = found or seen
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
    process.join(500)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_a_run_that_is_killed_10_times_reaches_the_weights_of_an_uninterrupted_run(config):
    # Long enough for 10 kills on a fast machine too, which takes more steps before each.
    change(config, "trainer", max_epochs=5, limit_train_batches=8)
    change(config, "model.init_args.stages", pretraining_epochs=5)
    change(config, "model.init_args", gradient={"control_variate": "regression"})
    # By the same function, since the last bits depend on the number of threads.
    train(config, "uninterrupted")
    moments, killed = random.Random(1), 0
    while killed < 10:
        assert train(config, "run", moments), f"the run ended after {killed} kills"
        killed += 1
        of_last = checkpoints(config).get("last.ckpt")
        where = (of_last["dfx"]["stage"], of_last["epoch"], of_last["global_step"]) if of_last else None
        print(f"killed {killed} times; stage, epoch and step of the last checkpoint: {where}")
    train(config, "run")
    assert same(checkpoints(config), checkpoints(config, "uninterrupted"))


# --- stopped by a signal -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "signum, stage, step, training, stopped_after",
    [
        (signal.SIGTERM, "pretraining", 1, True, 2),
        (signal.SIGINT, "stage_1", 3, True, 4),
        # After the last step of an epoch the run stops after the validation.
        (signal.SIGTERM, "stage_2", STEPS_IN_EPOCH - 1, True, STEPS_IN_EPOCH),
        (signal.SIGINT, "stage_2", STEPS_IN_EPOCH, False, STEPS_IN_EPOCH),
    ],
)
def test_a_run_stopped_by_a_signal_writes_a_checkpoint_prints_how_to_resume_and_resumes(
    config,
    monkeypatch,
    capfd,
    signum,
    stage,
    step,
    training,
    stopped_after,
):
    # Checkpoints at the end of an epoch and at the signal only.
    change(config, "run", checkpoint_minutes=60.0)
    fit(config, *UNINTERRUPTED)
    with monkeypatch.context() as signalled:
        call_in_step(signalled, lambda: signal.raise_signal(signum), stage, step, training)
        assert failed_fit(config).code == 128 + signum
    printed = capfd.readouterr().err
    name = "Ctrl-C" if signum == signal.SIGINT else "SIGTERM"
    assert f"{name}: the run stops after this step" in printed
    assert (
        f"stopped after step {stopped_after}" in printed and "resume with --run.name run --run.resume true" in printed
    )
    assert checkpoints(config)["last.ckpt"]["global_step"] == stopped_after
    fit(config, *RESUME)
    assert same(best_of(config), best_of(config, "uninterrupted"))


def best_of(config: Path, name: str = "run") -> dict:
    """Return all checkpoints but the one before the last, which may come from another step."""
    return {file: content for file, content in checkpoints(config, name).items() if file != "last.previous.ckpt"}


def test_a_second_ctrl_c_ends_the_run_at_once(config, monkeypatch):
    with monkeypatch.context() as signalled:
        call_in_step(signalled, lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)], "stage_1", 1, True)
        assert failed_fit(config).code == 1
    fit(config, *UNINTERRUPTED)
    fit(config, *RESUME)
    assert same(checkpoints(config), checkpoints(config, "uninterrupted"))


def test_a_slurm_job_whose_time_ends_is_requeued_and_resumes(
    config,
    monkeypatch,
    tmp_path,
):
    fit(config, *UNINTERRUPTED)
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "asked"}\n')
    scontrol.chmod(0o755)
    job = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "localhost",
    }
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    # A run of another job with the same name.
    (last(config).parent.parent).mkdir()
    with monkeypatch.context() as signalled:
        call_in_step(signalled, lambda: signal.raise_signal(signal.SIGUSR1), "stage_1", 1, True)
        assert failed_fit(config).code == 128 + signal.SIGUSR1
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    fit(config)
    assert same(best_of(config, "run-2"), best_of(config, "uninterrupted"))


# --- files on disk -----------------------------------------------------------------------------------


@pytest.fixture
def stopped(config, monkeypatch) -> Path:
    """Return the config of a run that was stopped in its second stage."""
    with monkeypatch.context() as signalled:
        call_in_step(signalled, lambda: signal.raise_signal(signal.SIGTERM), "stage_1", 1, True)
        failed_fit(config)
    return config


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
@pytest.mark.parametrize("file", ["last", "stage_1/best"])
def test_a_full_disk_ends_in_one_line_and_leaves_the_checkpoints_intact(stopped, capfd, file):
    fit(stopped, *UNINTERRUPTED)
    folder = last(stopped).parent
    before = {path: path.read_bytes() for path in folder.rglob("*.ckpt")}
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / f"{file}.ckpt.partial").symlink_to("/dev/full")
    message = str(failed_fit(stopped, *RESUME))
    assert message.startswith("error: ") and len(message.splitlines()) == 1
    assert f"{file}.ckpt could not be written (No space left on device)" in message
    assert all(path.read_bytes() == content for path, content in before.items())
    assert not list(folder.rglob("*.partial"))
    fit(stopped, *RESUME)
    assert same(checkpoints(stopped), checkpoints(stopped, "uninterrupted"))


def test_a_broken_last_checkpoint_is_replaced_by_the_one_before(stopped, capfd):
    fit(stopped, *UNINTERRUPTED)
    previous = last(stopped).with_name("last.previous.ckpt")
    with open(last(stopped), "r+b") as file:
        file.truncate(1000)
    with_both_broken = stopped.parent / "runs" / "broken"
    shutil.copytree(last(stopped).parent.parent, with_both_broken)
    (with_both_broken / "checkpoints" / previous.name).write_bytes(b"")
    assert "cannot be read as a checkpoint" in str(failed_fit(stopped, "--run.name", "broken", *RESUME))
    fit(stopped, *RESUME)
    assert f"the run resumes from the previous checkpoint, {previous}" in capfd.readouterr().out
    assert same(checkpoints(stopped), checkpoints(stopped, "uninterrupted"))


# --- Weights & Biases --------------------------------------------------------------------------------


def test_steps_are_counted_over_all_stages_by_a_resumed_run_too(config, monkeypatch):
    change(config, "trainer", log_every_n_steps=1)
    change(config, "wandb", mode="offline")
    change(config, "run", checkpoint_minutes=60.0)
    logged = []
    monkeypatch.setattr(WandbLogger, "log_metrics", lambda self, metrics, step=None: logged.append(step))
    with monkeypatch.context() as signalled:
        call_in_step(signalled, lambda: signal.raise_signal(signal.SIGTERM), "stage_1", 1, True)
        failed_fit(config)
    fit(config, *RESUME)
    wandb.finish()
    assert logged == sorted(logged) and set(logged) == set(range(3 * 2 * STEPS_IN_EPOCH))


def without_wandb() -> dict:
    """Return the environment without the variables of W&B, with which a process shares the W&B process of this one."""
    return {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}


def test_a_run_that_cannot_reach_wandb_warns_and_logs_offline(config):
    change(config, "wandb", mode="online")
    change(config, "model.init_args", stages={"pretraining_epochs": 0})
    # No server listens there, and the timeout is short.
    away = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": 40 * "0", "WANDB_INIT_TIMEOUT": "2"}
    command = [sys.executable, "train.py", "fit", "--config", str(config)]
    environment = {**without_wandb(), **away}
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "W&B cannot be reached" in done.stderr
    records = list((config.parent / "runs" / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(records) == 1 and records[0].stat().st_size > 0
    assert json.loads((config.parent / "runs" / "run" / "metrics.json").read_text())["step"] == 2 * STEPS_IN_EPOCH
