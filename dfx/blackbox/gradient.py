"""Gradients from renderings: where to render, and how the differences become a gradient.

Every estimator is a matrix of directions ``d`` and a divisor. With ``f`` the rendered audio, ``g`` the gradient of
the loss with respect to it, ``p+`` and ``p-`` the points ``p + epsilon d`` and ``p - epsilon d`` clipped to [0, 1],

    two-sided:  dL/dp = d / (p+ - p-) * g . (f(p+) - f(p-))
    one-sided:  dL/dp = 2 d / (p+ - p-) * g . (f(p+) - f(p))

averaged over the draws (SPSA: Spall 1992, equation 2.2; the paper, section 2.3). ``p+ - p-``, taken for ``d`` = 1, is
the step really possible, coordinate by coordinate: at a bound it is half as long as inside, and the estimate
stays unbiased, where dividing by ``2 epsilon`` would halve it. The one-sided form shares the divisor: a coordinate
at a bound moves for one of the two signs only, and counts double for it. Finite differences are the same with a
direction for each coordinate, summed instead of averaged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, Literal, NamedTuple, Optional, Sequence

import numpy as np
import torch

from dfx.blackbox.perturbation import Perturbation, Redraw
from dfx.errors import UserError


@dataclass
class GradientOptions:
    """How the gradient of an effect is estimated.

    Args:
        estimator: ``spsa`` moves all parameters at once, ``finite_difference`` one after the other: as exact as
            differences get, and as dear as there are parameters.
        directions: of ``spsa``: ``hadamard``, ``rademacher`` or ``shared``, see
            :class:`~dfx.blackbox.perturbation.Perturbation`.
        sides: 2 renders at both ends of a direction; 1 renders at one end and takes the nominal
            rendering, which is needed anyhow, for the other.
        draws: of ``spsa``: directions for every example and step.
        redraw: of ``spsa``: new directions every ``frame``, or one for a whole ``excerpt``.
        epsilon: the length of a step, in units of the parameters' range, in (0, 0.5].
        epsilon_of: the steps of parameters that need another, by name.
        epsilon_end: what epsilon becomes by the end of the run, geometrically; by default it stays.
        running_mean: of ``spsa``: the share, in (0, 1), that a running mean of the gradient over examples and
            steps keeps of itself. Each example's estimate then measures only how it deviates from the mean
            (a control variate): what all examples have in common is no longer noise. None does without.
        deviation: with ``running_mean``, how much of that measured deviation counts, in (0, 1]. 1 leaves the
            estimate unbiased; less trades its noise for a pull towards the mean.
        seed: of the directions.

    Raises:
        UserError: for an option out of its range.
    """

    estimator: Literal["spsa", "finite_difference"] = "spsa"
    directions: Literal["hadamard", "rademacher", "shared"] = "hadamard"
    sides: Literal[1, 2] = 1
    draws: int = 1
    redraw: Redraw = "excerpt"
    epsilon: float = 0.01
    epsilon_of: Dict[str, float] = field(default_factory=dict)
    epsilon_end: Optional[float] = None
    running_mean: Optional[float] = None
    deviation: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        named = {"epsilon": self.epsilon, "epsilon_end": self.epsilon_end or self.epsilon}
        for name, epsilon in {**named, **self.epsilon_of}.items():
            if not 0.0 < epsilon <= 0.5:
                raise UserError(f"epsilon: {name} is {epsilon:g}; it must be above 0 and at most 0.5")
        if self.draws < 1:
            raise UserError(f"draws is {self.draws}; every example needs at least one direction")
        if self.sides not in (1, 2):
            raise UserError(f"sides is {self.sides}; a difference has 1 or 2")
        if self.running_mean is not None and not 0.0 < self.running_mean < 1.0:
            raise UserError(f"running_mean is {self.running_mean:g}; it must be above 0 and below 1")
        if not 0.0 < self.deviation <= 1.0:
            raise UserError(f"deviation is {self.deviation:g}; it must be above 0 and at most 1")
        if self.estimator == "finite_difference" and (self.draws > 1 or self.running_mean is not None):
            raise UserError("finite_difference takes no draws and no running_mean: it has nothing random")

    def perturbation(self) -> Perturbation:
        """What draws the directions."""
        directions = "coordinate" if self.estimator == "finite_difference" else self.directions
        return Perturbation(directions, self.redraw, self.draws, self.seed)

    def renderings(self, parameters: int) -> int:
        """How often every example is rendered in a step with gradients, the nominal rendering included."""
        directions = parameters if self.estimator == "finite_difference" else self.draws
        return 1 + self.sides * directions


class Points(NamedTuple):
    """Where to render for one step, and what the differences then mean.

    Args:
        where: ``(batch, renderings, frames, P)`` in [0, 1]: nominal, ``p+`` of every direction, and with two
            sides ``p-`` of every direction.
        steps: ``(batch, directions, frames, P)``, what lies between the two points of a difference.
        weights: ``(batch, directions, frames, P)``, with which the slopes add up to the gradient.
    """

    where: np.ndarray
    steps: np.ndarray
    weights: np.ndarray


class Estimator:
    """Estimates gradients as :class:`GradientOptions` say. All arrays are float64 unless said otherwise.

    In NumPy and not in torch: these are many small operations, and torch would wake its own threads for the
    large ones, on the cores that the workers have.

    Args:
        options: how.
        names: of the parameters.

    Raises:
        UserError: if ``epsilon_of`` names a parameter that is not there.
    """

    def __init__(self, options: GradientOptions, names: Sequence[str]) -> None:
        unknown = set(options.epsilon_of) - set(names)
        if unknown:
            raise UserError(f"epsilon_of names {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
        self.options = options
        self._relative = np.array([options.epsilon_of.get(name, options.epsilon) / options.epsilon for name in names])
        self._mean = np.zeros(len(names))
        self._mean_weight = 0.0

    def epsilon(self, progress: float) -> np.ndarray:
        """The step of every parameter, ``(P,)``, when a share ``progress`` of the run is over."""
        first = self.options.epsilon
        return self._relative * first * ((self.options.epsilon_end or first) / first) ** progress

    def points(self, parameters: np.ndarray, directions: np.ndarray, progress: float = 0.0) -> Points:
        """Where to render.

        Args:
            parameters: ``(batch, frames, P)`` in [0, 1].
            directions: ``(batch, directions, frames, P)``, or with 1 for frames where all of them share one.
            progress: the share of the run that is over, in [0, 1].
        """
        sides, epsilon, nominal = self.options.sides, self.epsilon(progress), parameters[:, None]
        possible = np.minimum(nominal + epsilon, 1.0) - np.maximum(nominal - epsilon, 0.0)
        if self.options.estimator == "spsa":
            weights = directions * (2 / sides) / (possible * directions.shape[1])
        elif sides == 2:
            weights = directions / possible
        else:
            # Inwards, where there always is room.
            directions = np.where(nominal > 0.5, -directions, directions)
            weights = directions / epsilon
        move = epsilon * directions
        plus = np.clip(nominal + move, 0.0, 1.0)
        if sides == 1:
            return Points(np.concatenate([nominal, plus], axis=1), plus - nominal, weights)
        minus = np.clip(nominal - move, 0.0, 1.0)
        return Points(np.concatenate([nominal, plus, minus], axis=1), plus - minus, weights)

    def slopes(self, grad_output: np.ndarray, rendered: np.ndarray, frames: int) -> np.ndarray:
        """How the loss changes along every direction, from ``p-`` or ``p`` to ``p+``.

        Args:
            grad_output: float32 ``(batch, channels, frames * samples)``, the gradient of the loss.
            rendered: float32 ``(batch, renderings, channels, frames * samples)``, in the order of
                ``Points.where``.

        Returns:
            ``(batch, directions, frames)``.
        """
        if self.options.sides == 1:
            plus, minus = rendered[:, 1:], rendered[:, :1]
        else:
            plus, minus = np.split(rendered[:, 1:], 2, axis=1)
        grad = grad_output.reshape(*grad_output.shape[:2], frames, -1)
        slopes = np.empty((len(grad), plus.shape[1], frames))
        # A few rows at a time: their differences stay in the processor's cache.
        rows = max(1, _CACHED_SAMPLES // plus[0].size)
        for first in range(0, len(grad), rows):
            block = slice(first, first + rows)
            difference = plus[block] - minus[block]
            difference = difference.reshape(*difference.shape[:3], frames, -1)
            slopes[block] = np.einsum("bdcfs,bcfs->bdf", difference, grad[block])
        return slopes

    def estimate(self, slopes: np.ndarray, points: Points) -> np.ndarray:
        """The vector-Jacobian product, ``(batch, frames, P)``.

        Args:
            slopes: ``(batch, directions, frames)``, from :meth:`slopes`.
            points: where was rendered.
        """
        keep = self.options.running_mean
        if keep is None:
            return np.einsum("bdf,bdfp->bfp", slopes, points.weights)
        # What the mean predicts of a slope is taken off, and the mean itself put in its place.
        mean = self._mean / self._mean_weight if self._mean_weight else self._mean
        rest = slopes - points.steps @ mean
        deviation = np.einsum("bdf,bdfp->bfp", rest, points.weights)
        self._mean = keep * self._mean + (1 - keep) * (mean + deviation.mean(axis=(0, 1)))
        self._mean_weight = keep * self._mean_weight + (1 - keep)
        return mean + self.options.deviation * deviation

    def state_dict(self) -> Dict[str, Any]:
        return {"mean": torch.from_numpy(self._mean.copy()), "mean_weight": self._mean_weight}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        self._mean, self._mean_weight = state["mean"].cpu().numpy(), state["mean_weight"]


_CACHED_SAMPLES = 1 << 16
