"""The summary of a sweep: a table and a figure, which are also logged to Weights & Biases."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from dfx.errors import in_one_line
from dfx.sweep.grid import Point, SweepError
from dfx.sweep.runner import WandbMode, is_finished
from dfx.writing import write_csv

COLUMNS = ("validation loss at the end", "validation loss at best", "renderings", "test loss", "test mrstft", "seconds")
"""Columns of the table: means over the seeds, each with its standard deviation. ``renderings`` counts renderings of one
example in one step of training; ``seconds`` is the time of training and validation on the cores of a run. Test metrics
are those of the best checkpoint."""

Row = dict[str, Any]


def read_runs(folder: Path, points: Sequence[Point]) -> list[Row]:
    """Read the results of all finished points.

    Returns:
        For each the ``arm``, the ``run``, the columns of :data:`COLUMNS`, and ``course``: pairs of renderings and
        validation loss, over all stages that render.

    Raises:
        SweepError: if the files of a run are damaged.
    """
    runs = []
    for point in [point for point in points if is_finished(folder, point)]:
        try:
            runs.append(_read_run(folder / point.name, point))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            fault = f"is damaged ({type(error).__name__}: {in_one_line(error)})"
            raise SweepError(f"{folder / point.name} {fault}: remove it, and run the sweep again") from None
    return runs


def _read_run(run: Path, point: Point) -> Row:
    # Imports torch, which the runner does not need.
    from dfx.loggers.history import read_history

    history = [row for row in read_history(run) if "validation/loss" in row]
    last = history[-1]
    losses = [row["validation/loss"] for row in history if row["stage"] == last["stage"]]
    tested = json.loads((run / "evaluation" / "metrics.json").read_text(encoding="utf-8"))["output"]
    renderings, seconds = last["progress/renderings"], last["progress/seconds"]
    results = (losses[-1], min(losses), renderings, float(tested["loss"]), float(tested["mrstft"]), seconds)
    # Pretraining renders nothing.
    rendered = [row for row in history if row["progress/renderings"] > 0]
    course = [(row["progress/renderings"], row["validation/loss"]) for row in rendered]
    return {"arm": point.arm, "run": point.name, **dict(zip(COLUMNS, results)), "course": course}


def summarize_arms(runs: Sequence[Row]) -> list[Row]:
    """Return the means over the runs of each arm, and as ``NAME deviation`` their standard deviation.

    The deviation of a single run is None.
    """
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
    """Format the rows of :func:`summarize_arms` as a Markdown table that is also aligned in a terminal."""
    rows = [[arm["arm"], str(arm["runs"]), *(_cell(arm, column) for column in COLUMNS)] for arm in arms]
    alignment = ["left", *["right"] * (1 + len(COLUMNS))]
    return tabulate(rows, ["arm", "runs", *COLUMNS], "pipe", colalign=alignment, disable_numparse=True)


def _cell(arm: Row, column: str) -> str:
    digits = 0 if column in ("renderings", "seconds") else 3
    mean, deviation = f"{arm[column]:.{digits}f}", arm[f"{column} deviation"]
    # No deviation where all runs cost the same.
    return mean if deviation is None or (digits == 0 and deviation < 0.5) else f"{mean} ± {deviation:.{digits}f}"


def summarize(folder: Path, sweep: str, points: Sequence[Point], wandb_mode: WandbMode) -> str:
    """Write ``summary.csv``, ``summary.md``, ``runs.csv`` and ``summary.png`` to a sweep's folder.

    In Weights & Biases they become a run of the job type ``summary`` in the group of the sweep.

    Returns:
        The table, or one line if no point is finished.
    """
    runs = read_runs(folder, points)
    if not runs:
        return "No run of the sweep is finished."
    # Imports torch, as above.
    from dfx.figures import draw_sweep

    arms = summarize_arms(runs)
    table = as_markdown(arms)
    write_csv(folder / "summary.csv", arms)
    write_csv(folder / "runs.csv", [{name: run[name] for name in ("arm", "run", *COLUMNS)} for run in runs])
    (folder / "summary.md").write_text(table + "\n", encoding="utf-8")
    draw_sweep(runs, sweep).savefig(folder / "summary.png")
    if wandb_mode != "disabled":
        import wandb

        options: Any = {"project": "dfx", "group": sweep, "job_type": "summary", "name": f"{sweep}_summary"}
        with wandb.init(dir=folder, mode=wandb_mode, settings=wandb.Settings(silent=True), **options) as run:
            table_of_arms = wandb.Table(list(arms[0]), [list(arm.values()) for arm in arms])
            run.log({"summary": table_of_arms, "figure": wandb.Image(str(folder / "summary.png"))})
    return table
