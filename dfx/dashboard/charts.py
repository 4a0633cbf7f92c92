"""The interactive charts of a summary as plain data, which charts.js draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dfx.dashboard.workspace import Curves
from dfx.effects.parameter import with_unit

COLOURS = 6
"""Number of colours of lines, in summary.css."""

_AXES = {"lr-Adam": "learning rate", "speed/share_effects": "share of the time"}
"""Labels of vertical axes, where they are not the name of the first metric."""

_STILL = 0.1
"""Share of its range that a parameter must move in an excerpt to have a chart."""

_DECADE = 10.0
"""``parameters.csv`` does not hold scales; positive ranges of at least a decade have logarithmic axes."""

Chart = dict[str, Any]
Lines = Mapping[str, Mapping[str, Sequence[float]]]
"""Values of parameters by excerpt and by name, with their ``seconds``."""


def chart_curves(names: Sequence[str], histories: Sequence[Sequence[Mapping[str, Any]]], panel: Curves) -> Chart | None:
    """Return metrics over training steps. One run has a colour for each metric, several runs one colour each.

    Args:
        names: of the runs.
        histories: for each run the rows of :func:`~dfx.loggers.history.read_history`.
        panel: metrics, title and scale.

    Returns:
        The chart; None if no run has logged any of the metrics.
    """
    several = len(names) > 1
    lines, labels = [], {metric: _readable(metric) for metric in panel.metrics}
    for run, (name, history) in enumerate(zip(names, histories)):
        for index, metric in enumerate(panel.metrics):
            points = [(row["total_step"], row[metric]) for row in history if _is_drawn(row.get(metric), panel.log)]
            if not points:
                continue
            label = f"{name}, {labels[metric]}" if several and len(labels) > 1 else name if several else labels[metric]
            colour, dash = (run % COLOURS, index + len(labels) * (run // COLOURS)) if several else (index, 0)
            x, y = zip(*points)
            lines.append({"label": label, "colour": colour, "dash": dash % 4, "x": x, "y": y})
    if not lines:
        return None
    keys = [
        {"label": label, "colour": None if several else index, "dash": index if several else 0}
        for index, label in enumerate(labels.values())
    ]
    axis = _AXES.get(panel.metrics[0], labels[panel.metrics[0]])
    scale = {"log": panel.log, "range": panel.range, "held": False}
    keys = keys if len(keys) > 1 else []
    return {"title": panel.title, "x": "step", "y": axis, **scale, "lines": lines, "keys": keys}


def chart_automation(lines: Lines, parameters: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Return a chart over time for each parameter that moves in an excerpt, with a line for each excerpt.

    Args:
        lines: values of each excerpt.
        parameters: rows of ``parameters.csv``.
    """
    charts = []
    for row in parameters:
        name, is_log = row["name"], row["low"] > 0 and row["high"] / row["low"] >= _DECADE
        values = {excerpt: of[name] for excerpt, of in lines.items() if name in of}
        if not any(_travel(of, row, is_log) >= _STILL for of in values.values()):
            continue
        chart_lines = [
            {"label": excerpt, "colour": index % COLOURS, "dash": 0, "x": lines[excerpt]["seconds"], "y": of}
            for index, (excerpt, of) in enumerate(values.items())
        ]
        scale = {"log": is_log, "range": (None, None), "held": True}
        axis = row["unit"] or "value"
        charts.append({"title": name, "x": "seconds", "y": axis, **scale, "lines": chart_lines, "keys": []})
    return charts


def still_values(lines: Lines, parameters: Sequence[Mapping[str, Any]], charts: Sequence[Chart]) -> list[list[str]]:
    """Return a row of name and mean value in each excerpt for every parameter without a chart."""
    drawn = {chart["title"] for chart in charts}
    rows = []
    for name, unit in ((row["name"], row["unit"]) for row in parameters):
        if name not in drawn and all(name in of for of in lines.values()):
            means = (math.fsum(of[name]) / len(of[name]) for of in lines.values())
            rows.append([name, *(with_unit(mean, unit) for mean in means)])
    return rows


def _travel(values: Sequence[float], row: Mapping[str, Any], is_log: bool) -> float:
    """Return how far a parameter moves, as a share of its range."""
    if is_log:
        return math.log(max(values) / min(values)) / math.log(row["high"] / row["low"])
    return (max(values) - min(values)) / (row["high"] - row["low"])


def _is_drawn(value: Any, log: bool) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and (value > 0 or not log)


def _readable(metric: str) -> str:
    return metric.rsplit("/", 1)[-1].replace("_", " ")
