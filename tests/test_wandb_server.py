"""Runs and workspaces arrive whole at a server of Weights & Biases."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfx.loggers.history import read_history
from tests.wandb_server import WandbServer

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow

MEDIA = {"media/audio", "media/spectrograms", "media/automation", "tables/parameters", "tables/automation"}
SMALL = {
    "config": "configs/smoke.yaml", "run.evaluate": "false", "trainer.limit_train_batches": "2",
    "trainer.limit_val_batches": "1", "trainer.log_every_n_steps": "1",
}  # fmt: skip


@pytest.fixture
def server() -> Iterator[WandbServer]:
    server = WandbServer()
    yield server
    server.close()


def call(server: WandbServer, home: Path, *command: str) -> str:
    """Run a module of Python that uses the server, and return what it prints."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    streams = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
    environment = {**others, **server.environment(home)}
    ended = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, timeout=200, **streams)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


def fit(server: WandbServer, home: Path, **options: str) -> None:
    given = {**SMALL, "run.folder": str(home / "runs"), **{name.replace("__", "."): v for name, v in options.items()}}
    printed = call(server, home, "train.py", "fit", *(f"--{name}={value}" for name, value in given.items()))
    assert "W&B has failed" not in printed and "logging has failed" not in printed, printed


def check(server: WandbServer, run: Path) -> None:
    """Check that one run has arrived with the metrics of its folder, its media and its best checkpoint."""
    (arrived,) = server.runs.values()
    assert arrived["complete"] and arrived["displayName"] == "smoke"
    steps = [row["_step"] for row in arrived["history"]]
    assert steps == sorted(set(steps))
    ours = {(row["step"], name) for row in read_history(run) for name in row if "/" in name}
    theirs = {(row["trainer/global_step"], name) for row in arrived["history"] for name in row}
    assert ours and ours <= theirs
    losses = [row["validation/loss"] for row in read_history(run) if "validation/loss" in row]
    assert arrived["summary"]["best/validation/loss"] == pytest.approx(min(losses))
    effects = arrived["config"]["model"]["value"]["init_args"]["effects"]
    assert effects["distortion"]["train"] == {"drive_db": [0, 30]}
    assert set(arrived["summary"]) >= MEDIA
    for kind, suffix in {"audio": ".wav", "images": ".png", "table": ".json"}.items():
        found = [size for name, size in server.files.items() if f"/media/{kind}/" in name and name.endswith(suffix)]
        assert found and all(found), kind
    models = [str(at) for at, kept in enumerate(server.artifacts, 1) if kept["artifactTypeName"] == "model"]
    best = (run / "checkpoints" / "best.ckpt").stat().st_size
    assert server.files[f"/artifacts/{models[-1]}/best.ckpt"] == best


def test_an_online_run_arrives_whole(server, tmp_path):
    fit(server, tmp_path, wandb__mode="online")
    check(server, tmp_path / "runs" / "smoke")
    assert next(iter(server.runs.values()))["summary"]["validation/loss"].keys() == {"min"}


def test_a_sync_of_an_offline_run_that_was_resumed_makes_one_run(server, tmp_path):
    fit(server, tmp_path, wandb__mode="offline", trainer__max_epochs="1")
    fit(server, tmp_path, wandb__mode="offline", trainer__max_epochs="2", run__resume="true")
    assert not server.runs
    run = tmp_path / "runs" / "smoke"
    records = sorted(map(str, (run / "wandb").glob("offline-run-*")))
    assert len(records) == 2
    call(server, tmp_path, "-m", "wandb", "sync", *records)
    check(server, run)


def test_a_workspace_arrives_with_all_of_its_sections(server, tmp_path):
    command = ["dfx.dashboard", "workspace", "--entity", "someone", "--project", "dfx", "--group", "an_ablation"]
    printed = call(server, tmp_path, "-m", *command)
    (view,) = server.views
    assert (view["entityName"], view["displayName"]) == ("someone", "dfx: an_ablation")
    sections = [of["name"] for of in view["spec"]["section"]["panelBankConfig"]["sections"]]
    assert {"Loss", "Held-out pairs", "Excerpts", "Values", "Speed"} <= set(sections)
    assert f"{server.url}/someone/dfx" in printed
