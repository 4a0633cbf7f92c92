"""The plan of a comparison: data and plugins that are absent, and the duration of the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfx.paper.models import PREPARED_BY, Model
from dfx.sweep.runner import THREADS

MEASURED_STEPS = "3"


@dataclass(frozen=True)
class Estimate:
    """The cost of one run of a model, or the reason why it cannot run."""

    model: Model
    seconds: float = 0.0  # at most: training may stop early
    absent: str | None = None


def estimate(model: Model, threads: int) -> Estimate:
    """Check that the data of a model are there and that its effects can be built, and measure steps of its training.

    Args:
        model: to train.
        threads: of a run.
    """
    config = model.read_config()
    root = config["data"]["root"]
    if not Path(root).is_dir():
        return Estimate(model, absent=f"no data in {root}: {PREPARED_BY[model.task]}")
    command = [sys.executable, "-m", "dfx.benchmark", "step", model.configs[0], "--json", "--steps", MEASURED_STEPS]
    environment = {**os.environ, **dict.fromkeys(THREADS, str(threads))}
    done = subprocess.run([*command, "--options", *model.options], env=environment, capture_output=True, text=True)
    if done.returncode:
        return Estimate(model, absent=(done.stderr.strip().splitlines() or ["the benchmark failed"])[-1])
    rows = json.loads(done.stdout)
    steps = rows[0]["steps_per_epoch"] * count_epochs(config)
    return Estimate(model, steps * sum(row["wall_ms"] for row in rows) / 1000)


def count_epochs(config: dict[str, Any]) -> int:
    """Return the epochs of all stages of a config, at most; an epoch of pretraining counts as any other."""
    task = config["model"]["init_args"]
    stages = task.get("stages", {})
    trained = [effect for effect in task["effects"] if effect.get("train", True)]
    count = len(trained) if stages.get("progressive") else 1
    return int(stages.get("pretraining_epochs", 0)) + count * int(config["trainer"]["max_epochs"])


def describe(estimates: list[Estimate], seeds: int, jobs: int, threads: int) -> str:
    """Return a line for each model, with the duration of a run or what is absent, and one with that of all runs."""
    possible = [one for one in estimates if not one.absent]
    lines = [f"{one.model.arm:<28}{_cost(one)}" for one in estimates]
    total = seeds * sum(one.seconds for one in possible)
    how = f"{jobs} at once, {threads} thread{'s' if threads > 1 else ''} each"
    if possible:
        count = seeds * len(possible)
        runs = f"{count} run{'s' if count != 1 else ''}"
        lines.append(f"{runs}, {how}: at most {_duration(total / jobs)} of training")
    return "\n".join(lines)


def _cost(estimated: Estimate) -> str:
    return f"absent: {estimated.absent}" if estimated.absent else f"{_duration(estimated.seconds)} a run"


def _duration(seconds: float) -> str:
    if seconds < 5400:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"
