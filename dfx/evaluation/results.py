"""Means over files with their intervals, and the table that compares methods."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import scipy.stats

from dfx.metrics import METRICS


class Mean(float):
    """A mean over files: a number, with the interval that holds the mean of all such files.

    Attributes:
        low, high: the 95 % interval by Student's t, which takes files for independent: those of one song or speaker
            are not quite. None for a single file.
        count: of the files that have a value.
    """

    low: float | None = None
    high: float | None = None
    count: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """The mean of the values of some files, of one at least."""
        mean = cls(math.fsum(values) / len(values))
        mean.count = len(values)
        if len(values) > 1:
            half = scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)
            mean.low, mean.high = float(mean - half), float(mean + half)
        return mean


Results = dict[str, dict[str, Mean]]
"""``{method: {metric: mean over the files}}``; see :func:`evaluate`."""

ERRORS = ("loss", *METRICS, "damage_db")
"""The metrics of which less is better."""

EXPLAINED = {
    "loss": "what was trained on, here of whole files",
    "mrstft": "multi-resolution STFT error",
    "mrstft_level_matched": "the same, both brought to one level",
    "mfcc_cosine": "cosine distance between MFCCs, along time, as the paper's code has it",
    "mfcc_cosine_per_frame": "cosine distance between MFCCs, frame by frame",
    "esr": "error-to-signal ratio of the waveform",
    "lufs_difference": "difference of integrated loudness, in LU",
    "crest_factor_difference_db": "difference of crest factors, in dB",
    "centroid_difference_hz": "difference of spectral centroids, in Hz",
    "latency_samples": "how late the output still is",
    "polarity": "-1 where the output is inverted",
    "removed_db": "change of level where the target removes something",
    "kept_db": "change of level elsewhere: at best 0",
    "damage_db": "mean distance from the input's level elsewhere",
}
"""Every metric that a file may have, and what it says."""


def read_means(folder: Path) -> Results:
    """What :func:`evaluate` has returned, from the folder that it wrote."""
    results: Results = {}
    for method, metrics in json.loads((folder / "means.json").read_text(encoding="utf-8")).items():
        for name, row in metrics.items():
            mean = results.setdefault(method, {})[name] = Mean(row["mean"])
            mean.low, mean.high, mean.count = row["low"], row["high"], row["files"]
    return results


def as_table(results: Results, columns: int = 120) -> str:
    """The results as text, no wider than so many columns: a line for each method, and the ratio to the input.

    Of the metrics there are as many as find room, those first that say most. Beside a mean stands half of its
    interval.
    """
    everything = [name for name in EXPLAINED if any(name in of for of in results.values())]
    lines = {
        method: {name: _cell(of[name]) if name in of else "-" for name in everything} for method, of in results.items()
    }
    if results.get("input") and results.get("output"):
        lines["output / input"] = {name: _ratio(results["output"], results["input"], name) for name in everything}
    widths = {name: max(len(name), *(len(line[name]) for line in lines.values())) for name in everything}
    first = max(len(name) for name in ("method", *lines))
    left, shown = columns - first, []
    for name in [*_FIRST, *everything]:
        if name in widths and name not in shown and widths[name] + 2 <= left:
            left -= widths[name] + 2
            shown.append(name)
    shown.sort(key=everything.index)
    table = [{name: name for name in shown}, *lines.values()]
    named = zip(["method", *lines], table)
    text = ["  ".join([name.ljust(first), *(line[n].rjust(widths[n]) for n in shown)]).rstrip() for name, line in named]
    counts = {mean.count for of in results.values() for mean in of.values()}
    most = max(counts, default=0)
    text.append("\nValues of one file." if most == 1 else f"\nMeans of {most} files, ± half of their 95 % intervals.")
    fewer = {name: min(of[name].count for of in results.values() if name in of) for name in shown}
    some = ", ".join(f"{name} {count}" for name, count in fewer.items() if count < most)
    if some:
        text.append(f"Of fewer files: {some}; files.csv says why.")
    if len(shown) < len(everything):
        text.append(f"{len(everything) - len(shown)} more metrics are in means.csv.")
    return "\n".join(text)


def where_it_lies(folder: Path) -> str:
    """Where to find what :func:`evaluate` has written, for the end of a command."""
    places = {"metrics": folder, "audio": folder / "audio", "page": folder / "report.html"}
    return "\n".join(f"{name:<11}  {place}" for name, place in places.items())


_FIRST = (
    "loss", "removed_db", "kept_db", "mrstft_level_matched", "mfcc_cosine", "lufs_difference", "mrstft", "esr"
)  # fmt: skip


def _cell(mean: Mean) -> str:
    def rounded(value: float) -> str:
        # Four digits, of a small number three behind the point.
        return f"{value:.{min(3, max(0, 3 - int(math.log10(max(1.0, abs(value))))))}f}"

    return rounded(mean) if mean.low is None else f"{rounded(mean)} ±{rounded(mean - mean.low)}"


def _as_dict(mean: Mean) -> dict[str, object]:
    return {"mean": mean, "low": mean.low, "high": mean.high, "files": mean.count}


def _ratio(output: Mapping[str, float], input: Mapping[str, float], name: str) -> str:
    if name not in ERRORS or name not in output or name not in input:
        return "-"
    if not input[name]:
        return "1.00" if not output[name] else "-"
    return f"{output[name] / input[name]:.2f}"


def _means(rows: Sequence[Mapping[str, object]]) -> Results:
    results: Results = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = [row for row in rows if row["method"] == method]
        values = {name: [row[name] for row in of_method if name in row] for name in EXPLAINED}
        results[method] = {name: Mean.of(some) for name, some in values.items() if some}
    return results
