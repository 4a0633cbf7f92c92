"""The table of the comparison: means over files and seeds, with intervals, beside the figures of the paper."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from dfx.evaluation.results import Mean, format_mean
from dfx.paper.models import EVALUATION, OURS, PUBLISHED, Model
from dfx.sweep.grid import Point, SweepError
from dfx.sweep.summary import log_summary, read_wandb
from dfx.writing import write_csv, write_text

METRICS = {
    "mfcc_cosine": "MFCC distance",
    "mrstft": "multi-resolution STFT error",
    "mrstft_level_matched": "the same at equal loudness",
}
"""The metrics of the table; the paper reports the first one."""

COMPARED = "mrstft"
"""The metric whose differences to ours are shown."""

Row = dict[str, Any]


def read_rows(folder: Path, models: Mapping[Model, Sequence[Point]]) -> list[Row]:
    """Return a row for each method of each task, of the runs that are evaluated.

    Args:
        folder: of the runs.
        models: the evaluated runs of each model, one for each seed.

    Returns:
        Rows with ``task``, ``method``, ``published``, ``seeds``, a :class:`~dfx.evaluation.results.Mean` for each of
        :data:`METRICS`, ``range`` of :data:`COMPARED` over the seeds, ``difference`` of ours to the method, file by
        file, ``cpu_minutes`` of training, and ``command``. Values of a file are averaged over the seeds first.
    """
    rows: list[Row] = []
    for task in dict.fromkeys(model.task for model in models):
        of_task = {model: points for model, points in models.items() if model.task == task and points}
        methods = {name: row for model, points in of_task.items() for name, row in _read_model(folder, model, points)}
        ours = methods.get(OURS, {}).get("values", {}).get(COMPARED, {})
        listed = [name for paper_task, name in PUBLISHED if paper_task == task]
        for name in dict.fromkeys([*methods, *listed]):
            rows.append(_as_row(task, name, methods.get(name, {}), ours))
    return rows


def _read_model(folder: Path, model: Model, points: Sequence[Point]) -> Iterator[tuple[str, Row]]:
    """Yield the baselines of a model's first run, and the model."""
    files = [_read_files(folder / point.name / EVALUATION) for point in points]
    groups = {row["file"]: row["group"] for row in files[0]}
    for method in dict.fromkeys(row["method"] for row in files[0]):
        runs = files if method == "output" else files[:1]
        values: dict[str, dict[str, list[float]]] = {metric: defaultdict(list) for metric in METRICS}
        for row in (row for rows in runs for row in rows if row["method"] == method):
            for metric in METRICS:
                if metric in row:
                    values[metric][row["file"]].append(row[metric])
        row = {"values": {name: {file: statistics.fmean(v) for file, v in of.items()} for name, of in values.items()}}
        row["groups"] = groups
        if method == "output":
            means = [_mean_of_run(rows) for rows in files]
            minutes = [_cpu_minutes(folder / point.name) for point in points]
            row |= {"seeds": len(points), "range": (min(means), max(means)), "cpu_minutes": statistics.fmean(minutes)}
            row["command"] = " ".join(["python", *points[0].command[1:]])
        # The chain of a model has its own defaults, and its own best setting.
        of_chain = method in ("defaults", "fixed")
        yield {"output": model.name}.get(method, f"{method} ({model.name})" if of_chain else method), row


def _read_files(folder: Path) -> list[Row]:
    try:
        rows: list[Row] = json.loads((folder / "files.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SweepError(f"{folder} is damaged ({error}): remove it, and run the command again") from None
    return rows


def _mean_of_run(rows: Sequence[Row]) -> float:
    return statistics.fmean(row[COMPARED] for row in rows if row["method"] == "output" and COMPARED in row)


def _cpu_minutes(run: Path) -> float:
    # Imports torch, which the command line does not need.
    from dfx.loggers.history import read_history

    history = [row for row in read_history(run) if "progress/cpu_seconds" in row]
    return float(history[-1]["progress/cpu_seconds"]) / 60


def _as_row(task: str, name: str, method: Row, ours: Mapping[str, float]) -> Row:
    row: Row = {"task": task, "method": name, "published": PUBLISHED.get((task, name))}
    row |= {key: method.get(key) for key in ("seeds", "range", "cpu_minutes", "command")}
    groups = method.get("groups", {})
    for metric in METRICS:
        values = method.get("values", {}).get(metric, {})
        row[metric] = Mean.of([*values.values()], [groups[file] for file in values]) if values else None
    compared = method.get("values", {}).get(COMPARED, {})
    shared = [file for file in compared if file in ours]
    row["difference"] = None
    if shared and name != OURS:
        row["difference"] = Mean.of([ours[file] - compared[file] for file in shared], [groups[file] for file in shared])
    return row


def as_markdown(rows: Sequence[Row]) -> str:
    """Format rows as a Markdown table that is also aligned in a terminal."""
    headers = ["task", "method", "paper: MFCC distance", *METRICS.values(), "seeds", "over seeds", "dfx minus this"]
    cells = []
    for row in rows:
        lowest_and_highest = f"{row['range'][0]:.3f} to {row['range'][1]:.3f}" if row["range"] else ""
        published = "" if row["published"] is None else f"{row['published']:.4f}"
        means = ["" if row[name] is None else format_mean(row[name]) for name in (*METRICS, "difference")]
        cpu = "" if row["cpu_minutes"] is None else f"{row['cpu_minutes']:.1f}"
        cells.append([row["task"], row["method"], published, *means[:-1], row["seeds"] or "", lowest_and_highest])
        cells[-1] += [means[-1], cpu]
    sides = ["left", "left", *["right"] * (len(headers) - 1)]
    return tabulate(cells, [*headers, "CPU minutes"], "pipe", colalign=sides, disable_numparse=True)


NOTE = (
    "Means over the test files, each averaged over the seeds first, ± half of their 95 % intervals over groups of "
    "files (note, speaker or song; Student's t). `over seeds`: the lowest and the highest mean of a seed, and `dfx "
    "minus this` the paired difference, both of the multi-resolution STFT error. `CPU minutes`: of training and "
    "validation. The paper's figures are of its data and longer training; they could not be compared with its text."
)


def write_table(folder: Path, rows: Sequence[Row], run: Path) -> str:
    """Write ``table.md``, ``table.csv`` and ``table.png``, and return the text of the first.

    In Weights & Biases, table and figure become a run of the job type ``summary`` in the group of the runs.

    Args:
        folder: to write to.
        rows: of :func:`read_rows`.
        run: one of the runs, whose mode and project the summary takes over.
    """
    # Imports torch, as above.
    from dfx.figures import draw_paper

    commands = [f"- {row['task']}, {row['method']}: `{row['command']}`" for row in rows if row["command"]]
    text = "\n\n".join([as_markdown(rows), NOTE, "Commands, of the first seed:\n\n" + "\n".join(commands)])
    write_text(folder / "table.md", text + "\n")
    flat = [_flat(row) for row in rows]
    write_csv(folder / "table.csv", flat)
    draw_paper(rows, METRICS).savefig(folder / "table.png")
    log_summary(folder, folder.name, read_wandb(run), {"table": flat}, "table.png")
    return text


def _flat(row: Row) -> Row:
    flat: Row = {}
    for name, value in row.items():
        if name in (*METRICS, "difference"):
            flat |= {name: value, f"{name}_low": value and value.low, f"{name}_high": value and value.high}
        elif name == "range":
            flat |= dict(zip(("lowest_seed", "highest_seed"), value or (None, None)))
        else:
            flat[name] = value
    return flat
