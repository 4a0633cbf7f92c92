"""The metrics of a run over its steps, in its folder."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from dfx.loggers.best_effort import aside

HISTORY = "history.jsonl"


class History(Logger):
    """Appends every metric that is logged to ``history.jsonl``, as it is logged: a run that dies leaves all of them.

    A line is a JSON object of ``stage`` (its index), ``step``, ``time`` (in seconds since 1970) and metrics by name.
    Steps count from 0 in every stage. A run that is resumed appends, and may repeat steps: see :func:`read_history`.

    Args:
        folder: of the run.
        stage: the index of the stage that logs.
    """

    def __init__(self, folder: Path, stage: int = 0) -> None:
        super().__init__()
        self._path = folder / HISTORY
        self._stage = stage

    @property
    def name(self) -> str | None:
        return None

    @property
    def version(self) -> str | None:
        return None

    @rank_zero_only
    @aside
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        place = {"stage": self._stage, "step": step, "time": time.time()}
        line = {**place, **{name: float(value) for name, value in metrics.items() if name != "stage"}}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: ``resolved_config.yaml`` holds them."""


def read_history(folder: Path) -> list[dict[str, float]]:
    """What ``history.jsonl`` of a run's folder tells: one row for every step, in order.

    Of a step that was logged twice, since the run was killed and resumed from before, the later values count. Rows
    have one more number, ``total_step``, which goes on over all stages.

    Returns:
        Dictionaries of ``stage``, ``step``, ``total_step``, ``time`` and metrics; none where there is no history.
    """
    path = folder / HISTORY
    if not path.is_file():
        return []
    rows: dict[tuple, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            # The last line of a run that was killed while it wrote.
            continue
        rows.setdefault((row["stage"], row["step"]), {}).update(row)
    ordered = [rows[key] for key in sorted(rows)]
    before, stage, last = 0, None, 0
    for row in ordered:
        if row["stage"] != stage:
            before, stage = last, row["stage"]
        row["total_step"] = before + row["step"]
        last = row["total_step"] + 1
    return ordered


def best_row(rows: list[dict[str, float]]) -> dict[str, float] | None:
    """The row of the lowest validation loss of the last stage, whose weights are in ``best.ckpt``; or none."""
    of_stage = [row for row in rows if row["stage"] == rows[-1]["stage"] and "validation/loss" in row]
    return min(of_stage, key=lambda row: row["validation/loss"]) if of_stage else None
