"""Means over files and differences of methods, with confidence intervals, and the table that compares them."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
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
        low, high: the interval by Student's t over groups of files, which are independent of each other; see
            :meth:`of`. None for a single group.
        count: of the files that have a value.
        groups: of these files.
    """

    low: float | None = None
    high: float | None = None
    count: int = 1
    groups: int = 1

    @classmethod
    def of(cls, values: Sequence[float], groups: Sequence[Hashable] | None = None) -> Mean:
        """Return the mean of at least one value, and its interval.

        Args:
            values: one for each file.
            groups: of the files, such as their speakers; by default each file is one. The variance of the mean is
                estimated from the sums of the deviations in each group (Liang and Zeger 1986). For groups of one size,
                this is the interval by Student's t of the groups' means.
        """
        mean = cls(math.fsum(values) / len(values))
        deviations: dict[Hashable, float] = defaultdict(float)
        for value, group in zip(values, range(len(values)) if groups is None else groups):
            deviations[group] += value - mean
        mean.count, mean.groups = len(values), len(deviations)
        if mean.groups > 1:
            variance = mean.groups / (mean.groups - 1) * math.fsum(of_group**2 for of_group in deviations.values())
            half = scipy.stats.t.ppf(0.975, mean.groups - 1) * math.sqrt(variance) / len(values)
            mean.low, mean.high = float(mean - half), float(mean + half)
        return mean

    @property
    def excludes_zero(self) -> bool:
        """Return whether zero is outside of the interval."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def as_dict(self) -> dict[str, float | None]:
        return {"mean": self, "low": self.low, "high": self.high, "files": self.count, "groups": self.groups}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Mean:
        """Return the mean of :meth:`as_dict`; earlier versions took each file for a group."""
        mean = cls(row["mean"])
        mean.low, mean.high, mean.count = row["low"], row["high"], row["files"]
        mean.groups = row.get("groups", mean.count)
        return mean


Means = dict[str, dict[str, Mean]]
"""``{method: {metric: mean over the files}}``."""


class Results(Means):
    """The means of each method.

    Attributes:
        differences: the means of the model's metrics minus those of each other method, file by file.
        interpolation: how the model's parameters moved between frames.
    """

    interpolation: Interpolation = "hold"

    def __init__(self, means: Means | None = None, differences: Means | None = None) -> None:
        super().__init__(means or {})
        self.differences = differences or {}

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], interpolation: Interpolation) -> Results:
        """Average rows with ``file``, ``group``, ``method`` and metrics, one for each file and method."""
        groups = {row["file"]: row["group"] for row in rows}
        methods = list(dict.fromkeys(row["method"] for row in rows))
        values = {
            (method, name): {row["file"]: row[name] for row in rows if row["method"] == method and name in row}
            for method in methods
            for name in EXPLAINED
        }

        def average(of_files: Mapping[str, Mapping[str, float]]) -> dict[str, Mean]:
            return {name: Mean.of([*of.values()], [groups[file] for file in of]) for name, of in of_files.items() if of}

        def subtract(method: str, name: str) -> dict[str, float]:
            output, other = values["output", name], values[method, name]
            return {file: output[file] - other[file] for file in output if file in other}

        results = cls(
            {method: average({name: values[method, name] for name in EXPLAINED}) for method in methods},
            {
                method: average({name: subtract(method, name) for name in EXPLAINED})
                for method in methods
                if method != "output"
            },
        )
        results.interpolation = interpolation
        return results


def read_means(folder: Path) -> Results:
    """Read the results of :func:`~dfx.evaluation.evaluate.evaluate` from the folder that it wrote."""

    def read(name: str) -> Any:
        return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))

    def as_means(content: Mapping[str, Any]) -> Means:
        return {method: {name: Mean.from_dict(row) for name, row in of.items()} for method, of in content.items()}

    # Earlier versions wrote no differences, held parameters, and did not say so.
    differences = read("differences") if (folder / "differences.json").exists() else {}
    results = Results(as_means(read("means")), as_means(differences))
    results.interpolation = read("evaluation").get("interpolation", "hold")
    return results


def as_table(results: Results, columns: int = 120) -> str:
    """Format results as text: a row for each method, one with the ratio of the output's errors to the input's, and one
    for each difference of the output from another method.

    A cell is a mean, with half of its interval. If not all metrics fit, the most important ones are shown.

    Args:
        results: the means.
        columns: the width of the text, at most.
    """
    everything = [name for name in EXPLAINED if any(name in of for of in results.values())]
    rows = {method: {name: format_mean(mean) for name, mean in of.items()} for method, of in results.items()}
    if results.get("input") and results.get("output"):
        rows["output / input"] = {name: _ratio(results["output"], results["input"], name) for name in everything}
    for method, of in results.differences.items():
        rows[f"output - {method}"] = {name: format_mean(mean) for name, mean in of.items()}
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
    means = [mean for of in results.values() for mean in of.values()]
    most, groups = (max((getattr(mean, name) for mean in means), default=0) for name in ("count", "groups"))
    files = f"{most} files" if groups == most else f"{most} files in {groups} group{'s' * (groups > 1)}"
    notes = ["Values of one file." if most == 1 else f"Means of {files}, ± half of their 95 % intervals."]
    if groups > 1 and results.differences:
        notes.append(describe_differences(results))
    counts = {name: min(of[name].count for of in results.values() if name in of) for name in shown}
    fewer = ", ".join(f"{name} {count}" for name, count in counts.items() if count < most)
    if fewer:
        notes.append(f"Of fewer files: {fewer}; files.csv says why.")
    if hidden:
        notes.append(f"{hidden} more metrics are in means.csv.")
    notes.append(f"Parameters: {results.interpolation}, {INTERPOLATIONS[results.interpolation]}.")
    return notes


def describe_differences(results: Results) -> str:
    """Return a sentence that compares the loss of the model with that of each other method."""
    losses = {method: of["loss"] for method, of in results.differences.items()}
    found = {
        "better than": [method for method, loss in losses.items() if loss.excludes_zero and loss < 0],
        "worse than": [method for method, loss in losses.items() if loss.excludes_zero and loss > 0],
        "not shown to differ from": [method for method, loss in losses.items() if not loss.excludes_zero],
    }
    parts = (f"{verdict} {', '.join(methods)}" for verdict, methods in found.items() if methods)
    return f"By loss, output is {'; '.join(parts)}."


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
