"""Means over files with confidence intervals, and the table that compares methods."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import scipy.stats
from tabulate import tabulate

from dfx.evaluation.meanings import EXPLAINED
from dfx.metrics import METRICS
from dfx.render.automation import INTERPOLATIONS, Interpolation

ERRORS = ("loss", *METRICS, "damage_db")
"""The metrics of which less is better."""

_FIRST = ["loss", "removed_db", "kept_db", "mrstft_level_matched", "mfcc_cosine", "lufs_difference", "mrstft", "esr"]
"""The metrics of a table, the most important first, if not all fit."""


class Mean(float):
    """A mean over files, with the 95 % interval of the mean of all such files.

    Attributes:
        low, high: the interval by Student's t, which assumes independent files; files of one song or speaker are not
            quite. None for a single file.
        count: of the files that have a value.
    """

    low: float | None = None
    high: float | None = None
    count: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Return the mean of at least one value."""
        mean = cls(math.fsum(values) / len(values))
        mean.count = len(values)
        if len(values) > 1:
            half = scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)
            mean.low, mean.high = float(mean - half), float(mean + half)
        return mean

    def as_dict(self) -> dict[str, float | None]:
        return {"mean": self, "low": self.low, "high": self.high, "files": self.count}


class Results(dict[str, dict[str, Mean]]):
    """``{method: {metric: mean over the files}}``.

    Attributes:
        interpolation: how the model's parameters moved between frames.
    """

    interpolation: Interpolation = "hold"

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], interpolation: Interpolation) -> Results:
        """Average rows with ``method`` and metrics, one for each file and method."""
        results = cls()
        results.interpolation = interpolation
        for method in dict.fromkeys(row["method"] for row in rows):
            of_method = [row for row in rows if row["method"] == method]
            values = {name: [row[name] for row in of_method if name in row] for name in EXPLAINED}
            results[method] = {name: Mean.of(some) for name, some in values.items() if some}
        return results


def read_means(folder: Path) -> Results:
    """Read the results of :func:`~dfx.evaluation.evaluate.evaluate` from the folder that it wrote."""
    results = Results()
    about = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    results.interpolation = about.get("interpolation", "hold")  # earlier versions held parameters and did not say so
    for method, metrics in json.loads((folder / "means.json").read_text(encoding="utf-8")).items():
        for name, row in metrics.items():
            mean = results.setdefault(method, {})[name] = Mean(row["mean"])
            mean.low, mean.high, mean.count = row["low"], row["high"], row["files"]
    return results


def as_table(results: Results, columns: int = 120) -> str:
    """Format results as text: a row for each method, and one with the ratio of the output's errors to the input's.

    A cell is a mean, with half of its interval. If not all metrics fit, the most important ones are shown.

    Args:
        results: the means.
        columns: the width of the text, at most.
    """
    everything = [name for name in EXPLAINED if any(name in of for of in results.values())]
    rows = {method: {name: format_mean(mean) for name, mean in of.items()} for method, of in results.items()}
    if results.get("input") and results.get("output"):
        rows["output / input"] = {name: _ratio(results["output"], results["input"], name) for name in everything}
    left, shown = columns - max(len(name) for name in ("method", *rows)), []
    for name in dict.fromkeys([*_FIRST, *everything]):
        width = 2 + max(len(name), *(len(row.get(name, "")) for row in rows.values()))
        if name in everything and width <= left:
            left -= width
            shown.append(name)
    shown.sort(key=everything.index)
    cells = [[method, *(row.get(name, "-") for name in shown)] for method, row in rows.items()]
    sides = "left", *["right"] * len(shown)
    table = tabulate(cells, ["method", *shown], tablefmt="plain", colalign=sides, disable_numparse=True)
    return "\n".join([table, "", *_notes(results, shown, len(everything) - len(shown))])


def list_places(folder: Path) -> str:
    """List where :func:`~dfx.evaluation.evaluate.evaluate` has written metrics, audio and page, a line each."""
    places = {"metrics": folder, "audio": folder / "audio", "page": folder / "report.html"}
    return "\n".join(f"{name:<11}  {place}" for name, place in places.items())


def _notes(results: Results, shown: Sequence[str], hidden: int) -> list[str]:
    most = max((mean.count for of in results.values() for mean in of.values()), default=0)
    notes = ["Values of one file." if most == 1 else f"Means of {most} files, ± half of their 95 % intervals."]
    counts = {name: min(of[name].count for of in results.values() if name in of) for name in shown}
    fewer = ", ".join(f"{name} {count}" for name, count in counts.items() if count < most)
    if fewer:
        notes.append(f"Of fewer files: {fewer}; files.csv says why.")
    if hidden:
        notes.append(f"{hidden} more metrics are in means.csv.")
    notes.append(f"Parameters: {results.interpolation}, {INTERPOLATIONS[results.interpolation]}.")
    return notes


def format_mean(mean: Mean) -> str:
    """Return a mean ± half of its interval, rounded."""

    def rounded(value: float) -> str:  # to four digits, at most three of them decimals
        return f"{value:.{max(0, 3 - int(math.log10(max(1.0, abs(value)))))}f}"

    return rounded(mean) if mean.low is None else f"{rounded(mean)} ±{rounded(mean - mean.low)}"


def _ratio(output: Mapping[str, float], input: Mapping[str, float], name: str) -> str:
    if name not in ERRORS or name not in output or name not in input:
        return "-"
    if not input[name]:
        return "1.00" if not output[name] else "-"
    return f"{output[name] / input[name]:.2f}"
