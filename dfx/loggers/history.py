"""Reads the history of a run: all metrics over its steps, in its folder. It needs no Lightning."""

import contextlib
import json
from pathlib import Path
from typing import Any

HISTORY = "history.jsonl"


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Read ``history.jsonl`` of a run's folder: one row for each step, in order.

    If a step was logged twice, because the run was killed and resumed from an earlier step, the later values count.

    Returns:
        Rows of ``stage``, ``step``, ``total_step`` (counted over all stages), ``time`` and metrics; an empty list if
        there is no history.
    """
    path = folder / HISTORY
    if not path.is_file():
        return []
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        # The last line is incomplete if the run was killed while writing it.
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if not _is_row(row):
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


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or not all(isinstance(value, (int, float)) for value in row.values()):
        return False
    return isinstance(row.get("stage"), int) and isinstance(row.get("step"), int)


def best_row(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the row with the lowest validation loss of the last stage, that of ``best.ckpt``, or None."""
    of_stage = [row for row in rows if row["stage"] == rows[-1]["stage"] and "validation/loss" in row]
    return min(of_stage, key=lambda row: row["validation/loss"]) if of_stage else None
