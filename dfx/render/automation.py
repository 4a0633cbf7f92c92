"""Parameters over time: by name, in their units, in between, and as files."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dfx.effects import ParameterSpace
from dfx.errors import UserError, nearest

Interpolation = Literal["hold", "linear", "published"]
"""How parameters move between frames; see :mod:`dfx.render.interpolation`."""

INTERPOLATIONS: dict[Interpolation, str] = {
    "hold": "constant over each frame, as in training",
    "linear": "on straight lines between frames",
    "published": "smoothed as in the paper's code, latency not compensated",
}
"""Every interpolation, and its description."""


class Automation:
    """The trained parameters of a chain at points in time.

    Between points they move on straight lines in [0, 1], or hold the value of the point before, if ``interpolation`` is
    ``hold``. Before the first point and after the last they are constant.

    Args:
        space: the parameters.
        times: of the points, in seconds, ascending, ``(points,)``.
        parameters: in [0, 1], ``(points, P)``.
        input_gains_db: the gain of the task's treatment, ``(points,)``; by default 0.
        interpolation: between frames.
    """

    def __init__(
        self,
        space: ParameterSpace,
        times: np.ndarray,
        parameters: np.ndarray,
        input_gains_db: np.ndarray | None = None,
        interpolation: Interpolation = "linear",
    ) -> None:
        self.space = space
        self.times = times
        self.parameters = parameters
        self.input_gains_db = np.zeros(len(times)) if input_gains_db is None else input_gains_db
        self.interpolation = interpolation

    @property
    def names(self) -> list[str]:
        """``effect.parameter``, in the order of the chain."""
        return self.space.names

    @property
    def units(self) -> dict[str, str]:
        """By name; empty where a parameter has none."""
        return {parameter.name: parameter.unit for parameter in self.space.parameters}

    @property
    def values(self) -> np.ndarray:
        """In their units, ``(points, P)``."""
        return self.space.denormalize(self.parameters)

    def __getitem__(self, name: str) -> np.ndarray:
        """The values of one parameter, ``(points,)``, by its name, or by its own name where only one has it.

        Raises:
            UserError: if none has it, or several.
        """
        return self.values[:, self._index(name)]

    def median(self) -> dict[str, float]:
        """One setting for all: of every parameter the median over time, in its unit."""
        values = self.space.denormalize(np.median(self.parameters, axis=0))
        return dict(zip(self.names, values.tolist()))

    def write(self, path: str) -> None:
        """As ``.csv``, a column each, or as ``.json``, with units and ranges.

        Raises:
            UserError: for another suffix.
        """
        automation_files(path)
        if Path(path).suffix.lower() == ".csv":
            with open(path, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                titles = [f"{name} ({unit})" if unit else name for name, unit in self.units.items()]
                writer.writerow(["time (s)", *titles])
                writer.writerows([f"{number:.9g}" for number in row] for row in np.c_[self.times, self.values])
            return
        values = self.values
        parameters: dict[str, Any] = {
            parameter.name: {
                "unit": parameter.unit,
                "range": [parameter.low, parameter.high],
                "scale": parameter.scale,
                "values": values[:, index].tolist(),
            }
            for index, parameter in enumerate(self.space.parameters)
        }
        content = {"interpolation": self.interpolation, "times_s": self.times.tolist(), "parameters": parameters}
        Path(path).write_text(json.dumps(content) + "\n", encoding="utf-8")

    def _index(self, name: str) -> int:
        if name in self.names:
            return self.names.index(name)
        found = [index for index, known in enumerate(self.names) if known.split(".", 1)[1] == name]
        if len(found) != 1:
            several = [self.names[index] for index in found]
            which = f": there are {', '.join(several)}" if several else nearest(name, self.names)
            raise UserError(f"there is no one parameter '{name}'{which}")
        return found[0]


def automation_files(path: str) -> list[str]:
    """The file that :meth:`Automation.write` makes.

    Raises:
        UserError: for another suffix than ``.csv`` and ``.json``.
    """
    if Path(path).suffix.lower() not in (".csv", ".json"):
        raise UserError(f"{path}: automation is written as .csv or .json")
    return [path]


def thinned(times: np.ndarray, values: np.ndarray, tolerance: float) -> Sequence[int]:
    """Which points of a curve suffice: straight lines between them miss no other by more than ``tolerance``.

    Args:
        times, values: of the points, ``(points,)``.
        tolerance: in the values' unit.

    Returns:
        Indices, ascending, the first and the last among them (Ramer 1972, Douglas and Peucker 1973).
    """
    kept = {0, len(times) - 1}
    spans = [(0, len(times) - 1)]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        line = np.interp(times[first : last + 1], times[[first, last]], values[[first, last]])
        errors = np.abs(values[first : last + 1] - line)
        worst = int(np.argmax(errors))
        if errors[worst] > tolerance:
            kept.add(first + worst)
            spans += [(first, first + worst), (first + worst, last)]
    return sorted(kept)
