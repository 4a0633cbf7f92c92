"""Parameters of effects: the only place where [0, 1] and values with units meet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Scale = Literal["linear", "log"]


@dataclass(frozen=True)
class Parameter:
    """One trained parameter of one effect.

    Args:
        name: the effect's own name for it, unit included (``threshold_db``).
        unit: for tables and plots (``dB``, ``Hz``, ``ms``, or empty).
        low, high: the values at 0 and at 1, in the unit.
        default: the initial value, in the unit, within ``[low, high]``.
        scale: ``linear``, or ``log`` for quantities that are perceived as ratios.
        smoothing_ms: time over which the effect itself smooths a new value; 0 if it jumps.

    Raises:
        ValueError: if the range is empty or not finite, not positive for a log scale, or without the default.
    """

    name: str
    unit: str
    low: float
    high: float
    default: float
    scale: Scale = "linear"
    smoothing_ms: float = 0.0

    def __post_init__(self) -> None:
        described = f"{self.name}: range [{self.low:g}, {self.high:g}]"
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"{described} must be two finite numbers, the lower first")
        if self.scale not in ("linear", "log"):
            raise ValueError(f"{self.name}: scale '{self.scale}' is neither 'linear' nor 'log'")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"{described} must be positive for a log scale")
        if not self.low <= self.default <= self.high:
            raise ValueError(f"{described} does not contain the default {self.default:g}")

    def normalize(self, value: float) -> float:
        """Return the parameter in [0, 1] for a value in [low, high]."""
        return float(ParameterSpace([self]).normalize(np.array([value]))[0])

    def denormalize(self, parameter: float) -> float:
        """Return the value in [low, high] for a parameter in [0, 1]."""
        return float(ParameterSpace([self]).denormalize(np.array([parameter]))[0])


_LARGER = {"Hz": "kHz", "ms": "s"}


def with_unit(value: float, unit: str) -> str:
    """Return a value with its unit, to four digits: ``5 kHz`` rather than ``5000 Hz``."""
    if abs(value) >= 1000 and unit in _LARGER:
        value, unit = value / 1000, _LARGER[unit]
    return f"{value:.4g} {unit}".rstrip()


class ParameterSpace:
    """The parameters of a chain as one vector, mapped by array operations.

    A log scale maps ``x`` to ``low * (high / low) ** x``. Both maps are float64, inverse to each
    other up to rounding, and exact at 0 and 1.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.parameters = tuple(parameters)
        self._low = np.array([p.low for p in self.parameters], dtype=np.float64)
        self._high = np.array([p.high for p in self.parameters], dtype=np.float64)
        self._is_log = np.array([p.scale == "log" for p in self.parameters], dtype=bool)
        # Interpolating logarithms maps linear and log scales by one formula.
        self._start = self._warp(self._low)
        self._span = self._warp(self._high) - self._start

    def __len__(self) -> int:
        return len(self.parameters)

    @property
    def names(self) -> list[str]:
        """The names of the parameters, in order."""
        return [p.name for p in self.parameters]

    @property
    def defaults(self) -> np.ndarray:
        """The default parameters in [0, 1], shape ``(P,)``."""
        return self.normalize(np.array([p.default for p in self.parameters], dtype=np.float64))

    def normalize(self, values: np.ndarray) -> np.ndarray:
        """Return parameters in [0, 1] for values in their units, both ``(..., P)``; values are clipped to the range."""
        values = np.clip(np.asarray(values, dtype=np.float64), self._low, self._high)
        return np.clip((self._warp(values) - self._start) / self._span, 0.0, 1.0)

    def denormalize(self, parameters: np.ndarray) -> np.ndarray:
        """Return values in their units for parameters, both ``(..., P)``; parameters are clipped to [0, 1]."""
        # Not np.clip, which takes twice as long for few parameters.
        parameters = np.minimum(np.maximum(np.asarray(parameters, dtype=np.float64), 0.0), 1.0)
        warped = self._start + self._span * parameters
        values = np.where(self._is_log, np.exp(np.where(self._is_log, warped, 0.0)), warped)
        # exp(log(x)) may differ from x in the last bit, so the ends are set explicitly.
        np.copyto(values, self._low, where=parameters == 0.0)
        np.copyto(values, self._high, where=parameters == 1.0)
        return np.minimum(np.maximum(values, self._low), self._high)

    def values_by_name(self, parameters: np.ndarray) -> dict[str, float]:
        """Return the values of parameters ``(P,)`` in [0, 1], in their units."""
        return dict(zip(self.names, self.denormalize(parameters).tolist()))

    def _warp(self, values: np.ndarray) -> np.ndarray:
        return np.where(self._is_log, np.log(np.where(self._is_log, values, 1.0)), values)
