"""Parameters over time: by name, in their units, and as files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from dfx.effects import ParameterSpace
from dfx.errors import UserError, nearest
from dfx.writing import write_csv, write_text

Interpolation = Literal["hold", "linear", "published"]
"""How parameters move between frames; see :mod:`dfx.render.interpolation`."""

INTERPOLATIONS: dict[Interpolation, str] = {
    "hold": "constant over each frame, as in training",
    "linear": "interpolated on straight lines between frames",
    "published": "smoothed as in the paper's code, latency not compensated",
}
"""Every interpolation, and its description."""


class Automation:
    """The trained parameters of a chain at points in time.

    Between points they move on straight lines in [0, 1], or hold the value of the point before, if ``interpolation`` is
    ``hold``. Before the first point and after the last they are constant.

    Args:
        space: the parameters.
        times: of the points in seconds, ascending, ``(points,)``.
        parameters: in [0, 1], ``(points, P)``.
        input_gains_db: the gain of the task's treatment, ``(points,)``; by default 0.
        interpolation: between frames.
        output_gain_db: the gain after the chain; of one that varies, the median.
    """

    def __init__(
        self,
        space: ParameterSpace,
        times: np.ndarray,
        parameters: np.ndarray,
        input_gains_db: np.ndarray | None = None,
        interpolation: Interpolation = "linear",
        output_gain_db: float = 0.0,
    ) -> None:
        self.space, self.times, self.parameters = space, times, parameters
        self.input_gains_db = np.zeros(len(times)) if input_gains_db is None else input_gains_db
        self.interpolation, self.output_gain_db = interpolation, output_gain_db

    @property
    def names(self) -> list[str]:
        """``effect.parameter``, in the order of the chain."""
        return self.space.names

    @property
    def units(self) -> dict[str, str]:
        """The unit of each parameter by name; empty if it has none."""
        return {parameter.name: parameter.unit for parameter in self.space.parameters}

    @property
    def values(self) -> np.ndarray:
        """The parameters in their units, ``(points, P)``."""
        return self.space.denormalize(self.parameters)

    def __getitem__(self, name: str) -> np.ndarray:
        """Return the values of one parameter, ``(points,)``.

        Args:
            name: ``effect.parameter``, or ``parameter`` if one effect only has it.

        Raises:
            UserError: if no parameter has this name, or several do.
        """
        names = self.names
        found = [name] if name in names else [known for known in names if known.split(".", 1)[1] == name]
        if len(found) != 1:
            which = f": there are {', '.join(found)}" if found else nearest(name, names)
            raise UserError(f"'{name}' names no single parameter{which}")
        return self.values[:, names.index(found[0])]

    def median(self) -> dict[str, float]:
        """Return the median over time of every parameter, in its unit."""
        values = self.space.denormalize(np.median(self.parameters, axis=0))
        return dict(zip(self.names, values.tolist()))

    def write(self, path: str) -> None:
        """Write ``.csv``, a column for each parameter, or ``.json``, with units and ranges.

        Raises:
            UserError: for another suffix.
        """
        automation_files(path)
        if Path(path).suffix.lower() == ".csv":
            columns = ["time (s)", *(f"{name} ({unit})" if unit else name for name, unit in self.units.items())]
            points = np.c_[self.times, self.values]
            write_csv(Path(path), [dict(zip(columns, (f"{number:.9g}" for number in row))) for row in points], columns)
            return
        parameters = {
            p.name: {"unit": p.unit, "range": [p.low, p.high], "scale": p.scale, "values": values.tolist()}
            for p, values in zip(self.space.parameters, self.values.T)
        }
        content = {"interpolation": self.interpolation, "times_s": self.times.tolist(), "parameters": parameters}
        write_text(Path(path), json.dumps(content) + "\n")


def automation_files(path: str) -> list[str]:
    """List the file that :meth:`Automation.write` writes.

    Raises:
        UserError: for another suffix than ``.csv`` and ``.json``.
    """
    if Path(path).suffix.lower() not in (".csv", ".json"):
        raise UserError(f"{path}: automation is written as .csv or .json")
    return [path]


def thin_out(times: np.ndarray, values: np.ndarray, tolerance: float) -> Sequence[int]:
    """Select points of a curve such that straight lines between them miss no other by more than ``tolerance``.

    Args:
        times, values: of the points, ``(points,)``.
        tolerance: in the unit of the values.

    Returns:
        Ascending indices, with the first and the last (Ramer 1972, Douglas and Peucker 1973).
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
