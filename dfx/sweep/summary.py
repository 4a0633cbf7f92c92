"""The summary of a sweep: tables and a figure, which are also logged to Weights & Biases."""

import csv
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from dfx.errors import in_one_line
from dfx.evaluation import is_evaluated
from dfx.sweep.grid import CONFIG, Point, SweepError
from dfx.writing import write_csv, write_text

COLUMNS = ("validation loss at the end", "validation loss at best", "renderings", "test loss", "test mrstft", "seconds")
"""Columns of the tables: means over runs, each with its interval. ``renderings`` counts renderings of one example in
one step of training; ``seconds`` is the time of training and validation on the cores of a run. Test metrics are those
of the best checkpoint. In a cross-validation they are of all pairs, and the other columns are means over the folds."""

TABLES = {"summary.csv": "Arms", "marginal_means.csv": "Marginal means"}
"""Files of a sweep's folder with the tables of its summary, and their titles."""

NOTE = "Means over runs ± half of their 95 % intervals over seeds (Student's t)."

Row = dict[str, Any]


def read_runs(folder: Path, points: Sequence[Point]) -> list[Row]:
    """Read the results of all finished points.

    Returns:
        For each the ``arm``, the ``run``, the ``seed``, the ``values`` of the swept parameters, the columns of
        :data:`COLUMNS`, ``course``: pairs of renderings and validation loss, over all stages that render; and the
        options ``wandb``.

    Raises:
        SweepError: if the files of a run are damaged.
    """
    runs = []
    for point in [point for point in points if is_evaluated(folder / point.name)]:
        try:
            runs.append(_read_run(folder / point.name, point))
        except (OSError, LookupError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
            fault = f"is damaged ({type(error).__name__}: {in_one_line(error)})"
            raise SweepError(f"{folder / point.name} {fault}: remove it, and run the sweep again") from None
    return runs


def _read_run(run: Path, point: Point) -> Row:
    trainings = sorted(run.glob("fold_*")) or [run]
    trained, courses = zip(*map(_read_training, trainings))
    at_end, best, renderings, seconds = (statistics.fmean(values) for values in zip(*trained))
    tested = json.loads((run / "evaluation" / "metrics.json").read_text(encoding="utf-8"))["output"]
    results = (at_end, best, renderings, float(tested["loss"]), float(tested["mrstft"]), seconds)
    course = [tuple(map(statistics.fmean, zip(*validation))) for validation in zip(*courses)]
    labels = {"arm": point.arm, "run": point.name, "seed": point.seed, "values": point.values}
    return {**labels, **dict(zip(COLUMNS, results)), "course": course, "wandb": read_wandb(trainings[0])}


def _read_training(run: Path) -> tuple[tuple[float, ...], list[tuple[float, float]]]:
    """Return the last and the best validation loss, renderings and seconds of a training, and its course."""
    # Imports torch, which the runner does not need.
    from dfx.loggers.history import read_history

    history = [row for row in read_history(run) if "validation/loss" in row]
    last = history[-1]
    losses = [row["validation/loss"] for row in history if row["stage"] == last["stage"]]
    # Pretraining renders nothing.
    rendered = [row for row in history if row["progress/renderings"] > 0]
    course = [(row["progress/renderings"], row["validation/loss"]) for row in rendered]
    return (losses[-1], min(losses), last["progress/renderings"], last["progress/seconds"]), course


def summarize_arms(runs: Sequence[Row]) -> list[Row]:
    """Return the values of the swept parameters and the means over the runs of each arm.

    ``NAME interval`` is half of the 95 % interval of a mean by Student's t, None for a single run.
    """
    return [{"arm": arm[0]["arm"], **_columns(arm[0]), "runs": len(arm), **_means([arm])} for arm in _arms(runs)]


def marginal_means(runs: Sequence[Row]) -> list[Row]:
    """Return the means of all arms with the same value of a parameter, for every value of every swept parameter.

    Each arm has the same weight. The interval is that of a mean over other seeds with the same arms: it pools the
    variance between the runs of one arm over these arms. Means of values with different ``arms`` cannot be compared.
    """
    arms, rows = _arms(runs), []
    for name in runs[0]["values"]:
        values: dict[str, list[list[Row]]] = {}
        for arm in arms:
            values.setdefault(str(arm[0]["values"][name]), []).append(arm)
        for value, of_value in values.items():
            counts = {"arms": len(of_value), "runs": sum(map(len, of_value))}
            rows.append({"parameter": name, "value": value, **counts, **_means(of_value)})
    return rows


def _arms(runs: Sequence[Row]) -> list[list[Row]]:
    return [[run for run in runs if run["arm"] == arm] for arm in dict.fromkeys(run["arm"] for run in runs)]


def _columns(run: Row) -> Row:
    """Return the values of the swept parameters, unless an arm's name is all that distinguishes it."""
    return {} if list(run["values"]) == [CONFIG] else run["values"]


def _means(arms: Sequence[Sequence[Row]]) -> Row:
    """Return the means of the arms' means, with intervals by the pooled variance within the arms."""
    import scipy.stats

    row: Row = {}
    freedom = sum(len(arm) - 1 for arm in arms)
    for column in COLUMNS:
        row[column] = statistics.fmean(statistics.fmean(run[column] for run in arm) for arm in arms)
        row[f"{column} interval"] = None
        if freedom:
            spread = math.fsum((len(arm) - 1) * _variance([run[column] for run in arm]) for arm in arms)
            error = math.sqrt(spread / freedom * sum(1 / len(arm) for arm in arms)) / len(arms)
            row[f"{column} interval"] = float(scipy.stats.t.ppf(0.975, freedom)) * error
    return row


def _variance(values: Sequence[float]) -> float:
    return statistics.variance(values) if len(values) > 1 else 0.0


def as_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the texts of the cells of a table, each mean with its interval in one cell."""
    names = [name for name in rows[0] if not name.endswith(" interval")]
    return names, [[_cell(name, row[name], row.get(f"{name} interval")) for name in names] for row in rows]


def _cell(name: str, value: Any, interval: Any) -> str:
    if name not in COLUMNS:
        return str(value)
    digits = 0 if name in ("renderings", "seconds") else 3
    mean, half = f"{float(value):.{digits}f}", float(interval or 0)
    # No interval where all runs cost the same.
    return mean if interval in (None, "") or (digits == 0 and half < 0.5) else f"{mean} ± {half:.{digits}f}"


def as_markdown(rows: Sequence[Row]) -> str:
    """Format rows of means as a Markdown table that is also aligned in a terminal."""
    names, cells = as_cells(rows)
    alignment = ["left" if name in ("arm", "parameter") else "right" for name in names]
    return tabulate(cells, names, "pipe", colalign=alignment, disable_numparse=True)


def read_tables(folder: Path) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Return the tables in a sweep's folder by title, each as :func:`as_cells` does; none if it has no summary."""
    tables = {}
    for file, title in TABLES.items():
        if (folder / file).is_file():
            with (folder / file).open(newline="", encoding="utf-8") as lines:
                tables[title] = as_cells(list(csv.DictReader(lines)))
    return tables


def summarize(folder: Path, sweep: str, points: Sequence[Point]) -> str:
    """Write ``summary.csv``, ``summary.md``, ``runs.csv`` and ``summary.png`` to a sweep's folder.

    If several parameters are swept, also ``marginal_means.csv``. In Weights & Biases they become a run of the job type
    ``summary`` in the group of the sweep, with the mode and project of its runs.

    Returns:
        The tables, or one line if no point is finished.
    """
    runs = read_runs(folder, points)
    if not runs:
        return "No run of the sweep is finished."
    # Imports torch, as above.
    from dfx.figures import draw_sweep

    tables = {"summary.csv": summarize_arms(runs)}
    marginal = marginal_means(runs)
    if len(runs[0]["values"]) > 1:
        tables["marginal_means.csv"] = marginal
    for file, rows in tables.items():
        write_csv(folder / file, rows)
    text = "\n\n".join([*map(as_markdown, tables.values()), NOTE])
    write_text(folder / "summary.md", text + "\n")
    kept = ("seed", *COLUMNS)
    rows = [
        {"arm": run["arm"], "run": run["run"], **_columns(run), **{name: run[name] for name in kept}} for run in runs
    ]
    write_csv(folder / "runs.csv", rows)
    draw_sweep(runs, marginal, sweep.replace("_", " ")).savefig(folder / "summary.png")
    log_summary(
        folder, sweep, runs[0]["wandb"], {Path(file).stem: rows for file, rows in tables.items()}, "summary.png"
    )
    return text


def read_wandb(run: Path) -> dict[str, Any]:
    """Return mode and project of a run in Weights & Biases."""
    options = yaml.safe_load((run / "resolved_config.yaml").read_text(encoding="utf-8"))["wandb"]
    return {"mode": options["mode"], "project": options["project"]}


def log_summary(
    folder: Path, group: str, wandb_options: Mapping[str, Any], tables: Mapping[str, Sequence[Row]], figure: str
) -> None:
    """Log tables and a figure to Weights & Biases, as a run of the job type ``summary``, unless that is disabled.

    Args:
        folder: with the figure; holds the record of an offline run.
        group: of the runs that are summarized.
        wandb_options: of :func:`read_wandb`.
        tables: rows by name.
        figure: name of the file.
    """
    if wandb_options["mode"] == "disabled":
        return
    import wandb

    options: Any = {**wandb_options, "group": group, "job_type": "summary", "name": f"{group}_summary"}
    with wandb.init(dir=folder, settings=wandb.Settings(silent=True), **options) as run:
        logged = {
            name: wandb.Table(list(rows[0]), [list(row.values()) for row in rows]) for name, rows in tables.items()
        }
        run.log({**logged, "figure": wandb.Image(str(folder / figure))})
