"""Runs in several processes reach the result of one process."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dfx.cli import DfxCLI
from dfx.loggers.history import read_history
from tests.staged_run import change, checkpoints, config, same  # noqa: F401

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


def start(*command: object, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def output_of(process: subprocess.Popen, status: int = 0) -> str:
    """Wait until a process ends, and return what it printed."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output
    return output


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def torchrun(*command: object) -> list[object]:
    return ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port(), *command]


def test_two_processes_compute_the_gradients_of_one_with_the_same_batch(make_pairs, tmp_path):
    pairs = make_pairs(20)
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        command = ["tests/several_ranks.py", pairs, folder, processes]
        output_of(start(*(torchrun(*command) if processes == 2 else command)))
    one, first, second = (torch.load(tmp_path / path) for path in ("1/rank_0.pt", "2/rank_0.pt", "2/rank_1.pt"))
    for alone, a, b in zip(one["inputs"], first["inputs"], second["inputs"]):
        assert torch.equal(torch.cat([a, b]), alone)
    assert all(torch.equal(a, b) for a, b in zip(one["directions"], second["directions"]))
    for alone, a, b in zip(one["gradients"], first["gradients"], second["gradients"]):
        assert all(torch.equal(a[name], b[name]) for name in a)
        flat = [torch.cat([gradient[name].flatten() for name in alone]) for gradient in (alone, a)]
        assert (flat[0] - flat[1]).norm() < 1e-9 * flat[0].norm()
    assert first["metrics"] == second["metrics"]
    for part in ("metrics", "buffers"):
        assert one[part].keys() == first[part].keys()
        for name, value in one[part].items():
            torch.testing.assert_close(first[part][name], value, rtol=1e-9, atol=1e-9)


TWO = ("--trainer.strategy", "ddp", "--trainer.devices", "2")


def test_a_run_in_two_processes_writes_one_folder_and_resumes_to_the_same_bits(config):
    change(config, "run", evaluate=True)
    change(config, "wandb", mode="offline")
    change(config, "trainer", limit_train_batches=6)
    change(config, "model.init_args.stages", search_evaluations=10)
    change(config, "data", steps_per_epoch=6, validation_steps=1, batch_size=5)
    fit = ("train.py", "fit", "--config", config, *TWO)
    output = output_of(start(*torchrun(*fit, "--run.name", "alone")))
    runs = config.parent / "runs"
    assert [path.name for path in runs.iterdir()] == ["alone"]
    assert len(list((runs / "alone" / "wandb").glob("offline-run-*"))) == 1
    assert output.count("output / input") == output.count("training starts at the best of") == 1

    # Started by Lightning; only one of the processes receives the signal.
    process = start(*fit, "--run.evaluate", "false")
    deadline = time.monotonic() + 200
    while not (runs / "run" / "checkpoints" / "pretraining").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert "resume with --run.name run --run.resume true" in output_of(process, 128 + signal.SIGTERM)
    assert sorted(path.name for path in runs.iterdir()) == ["alone", "run"]
    resume = ("--run.resume", "true", "--run.evaluate", "false")
    refused = output_of(start("train.py", "fit", "--config", config, *resume, "--wandb.mode", "disabled"), 1)
    assert "the run was trained in 2 processes and cannot go on in 1" in refused
    output_of(start(*torchrun(*fit, *resume)))
    assert same(checkpoints(config), checkpoints(config, "alone"))


def test_two_processes_in_bfloat16_train_write_media_and_test_with_a_batch_that_is_rounded_down(config):
    change(config, "model.init_args.encoder", backbone="mobilenet_v2")
    change(config, "model.init_args.stages", pretraining_epochs=1, progressive=False)
    change(config, "run", evaluate=True)
    change(config, "trainer", max_epochs=1, precision="bf16-mixed")
    change(config, "logging", excerpts=1)
    output = output_of(start("train.py", "fit", "--config", config, *TWO, "--data.batch_size", "5"))
    assert output.count("data.batch_size is rounded down to 4") == 1 and output.count("output / input") == 1
    assert "logging has failed" not in output
    run = config.parent / "runs" / "run"
    losses = [row["validation/loss"] for row in read_history(run) if "validation/loss" in row]
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert list((run / "media").rglob("*_output.flac")) and (run / "parameters.csv").is_file()
    saved = checkpoints(config)["best.ckpt"]["state_dict"]
    assert {weights.dtype for weights in saved.values() if weights.is_floating_point()} == {torch.float32}
    tested = DfxCLI(["test", "--config", str(config), "--ckpt_path", str(run / "checkpoints" / "best.ckpt")])
    metrics = {name: value for name, value in tested.trainer.callback_metrics.items() if "/output/" in name}
    assert metrics and all(value.isfinite() for value in metrics.values())
