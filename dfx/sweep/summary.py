"""What the runs of a sweep say together: a table, a figure, and both in Weights & Biases."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dfx.sweep.grid import Point
from dfx.sweep.runner import is_finished
from dfx.writing import write_csv

COLUMNS = (
    "validation loss at the end", "validation loss at best", "renderings", "test loss", "test mrstft", "seconds"
)  # fmt: skip
"""Of the table: means over the seeds, each with its standard deviation. ``renderings`` are those of training, of one
example's step each; ``seconds`` those of training and validation on the cores that a run had. Test metrics are of the
best checkpoint."""

Row = dict[str, Any]


def read_runs(folder: Path, points: Sequence[Point]) -> list[Row]:
    """What every finished point has reached, and its course.

    Returns:
        For each ``arm``, ``run``, the columns of :data:`COLUMNS`, and ``course``: pairs of renderings and validation
        loss, of all stages that render.
    """
    # Not before the end: it brings torch, which the runner does without.
    from dfx.loggers.history import read_history

    runs = []
    for point in points:
        if not is_finished(folder, point):
            continue
        run = folder / point.name
        history = [row for row in read_history(run) if "validation/loss" in row]
        last = history[-1]
        losses = [row["validation/loss"] for row in history if row["stage"] == last["stage"]]
        of_output = json.loads((run / "evaluation" / "metrics.json").read_text(encoding="utf-8"))["output"]
        reached = (
            losses[-1], min(losses), last["progress/renderings"], of_output["loss"], of_output["mrstft"],
            last["progress/seconds"],
        )  # fmt: skip
        # Pretraining renders nothing.
        course = [
            (row["progress/renderings"], row["validation/loss"]) for row in history if row["progress/renderings"] > 0
        ]
        runs.append({"arm": point.arm, "run": point.name, **dict(zip(COLUMNS, reached)), "course": course})
    return runs


def arms_of(runs: Sequence[Row]) -> list[Row]:
    """Means over the runs of each arm, and under ``NAME deviation`` their standard deviation (of one run: none)."""
    rows = []
    for arm in dict.fromkeys(run["arm"] for run in runs):
        of_arm = [run for run in runs if run["arm"] == arm]
        row: Row = {"arm": arm, "runs": len(of_arm)}
        for column in COLUMNS:
            values = [run[column] for run in of_arm]
            row[column] = statistics.fmean(values)
            row[f"{column} deviation"] = statistics.stdev(values) if len(values) > 1 else None
        rows.append(row)
    return rows


def as_markdown(arms: Sequence[Row]) -> str:
    """The table of :func:`arms_of`, aligned, so that it also reads well in a terminal."""
    lines = [["arm", "runs", *COLUMNS]]
    lines += [[arm["arm"], str(arm["runs"]), *(_cell(arm, column) for column in COLUMNS)] for arm in arms]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join(
        f"| {' | '.join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:]))])} |"
        for line in lines
    )


def _cell(arm: Row, column: str) -> str:
    digits = 0 if column in ("renderings", "seconds") else 3
    mean, deviation = f"{arm[column]:.{digits}f}", arm[f"{column} deviation"]
    # Arms that cost the same in every run say so once.
    return mean if deviation is None or (digits == 0 and deviation < 0.5) else f"{mean} ± {deviation:.{digits}f}"


def draw(runs: Sequence[Row], title: str, path: Path) -> None:
    """Draws validation loss over renderings: a line for the mean of each arm, in a band of one deviation."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axis = figure.subplots()
    for index, arm in enumerate(dict.fromkeys(run["arm"] for run in runs)):
        at: dict[float, list[float]] = {}
        for run in runs:
            for renderings, loss in run["course"] if run["arm"] == arm else ():
                at.setdefault(renderings, []).append(loss)
        x = sorted(at)
        mean = [statistics.fmean(at[renderings]) for renderings in x]
        spread = [statistics.stdev(at[r]) if len(at[r]) > 1 else 0.0 for r in x]
        axis.plot(x, mean, "osD^vP*X"[index % 8] + "-", color=f"C{index % 10}", markersize=4, label=arm)
        low, high = ([m + sign * s for m, s in zip(mean, spread)] for sign in (-1, 1))
        axis.fill_between(x, low, high, color=f"C{index % 10}", alpha=0.15, linewidth=0)
    axis.set(xscale="log", xlabel="renderings in training", ylabel="validation loss", title=title)
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def summarize(folder: Path, sweep: str, points: Sequence[Point], wandb_mode: str) -> str:
    """Writes ``summary.csv``, ``summary.md``, ``runs.csv`` and ``summary.png`` into a sweep's folder.

    In Weights & Biases they are a run of the job type ``summary`` in the group of the sweep.

    Returns:
        The table, or a line if no point is finished.
    """
    runs = read_runs(folder, points)
    if not runs:
        return "No run of the sweep is finished."
    arms = arms_of(runs)
    table = as_markdown(arms)
    write_csv(folder / "summary.csv", arms)
    write_csv(folder / "runs.csv", [{name: run[name] for name in ("arm", "run", *COLUMNS)} for run in runs])
    (folder / "summary.md").write_text(table + "\n", encoding="utf-8")
    draw(runs, sweep, folder / "summary.png")
    if wandb_mode != "disabled":
        import wandb

        options = {"project": "dfx", "group": sweep, "job_type": "summary", "name": f"{sweep}_summary"}
        with wandb.init(dir=folder, mode=wandb_mode, settings=wandb.Settings(silent=True), **options) as run:
            columns = list(arms[0])
            data = [[arm[column] for column in columns] for arm in arms]
            run.log({"summary": wandb.Table(columns, data), "figure": wandb.Image(str(folder / "summary.png"))})
    return table
