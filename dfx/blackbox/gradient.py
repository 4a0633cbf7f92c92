"""Gradient estimators: where to render, and how differences of renderings become a gradient.

Every estimator is a matrix of directions ``d`` and a divisor. Let ``f`` be the rendered audio, ``g`` the gradient of
the loss with respect to it, and ``p+`` and ``p-`` the points ``p + epsilon d`` and ``p - epsilon d``, clipped to [0,1]:

    two-sided:  dL/dp = d / (p+ - p-) * g . (f(p+) - f(p-))
    one-sided:  dL/dp = 2 d / (p+ - p-) * g . (f(p+) - f(p))

averaged over the draws. The two-sided form is SPSA (Spall 1992, equation 2.2), as in the paper; the one-sided form is
that of Chen, Duncan and Pasik-Duncan 1999. The divisor ``p+ - p-``, taken for ``d`` = 1, is the possible step of each
parameter: at a bound it is half as long as inside. Dividing by it leaves the estimate unbiased, where dividing by
``2 epsilon`` would halve it. The one-sided form has the same divisor: a parameter at a bound moves for one of the two
signs only, and counts twice then. Finite differences are the same with one direction per parameter, summed instead of
averaged; with one side, they step inwards, where no bound is in the way, and divide by epsilon.

The behaviour of the paper's released code is available for comparison: ``directions: shared``, ``restart: never`` and
``divisor: epsilon``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from dfx import distributed
from dfx.blackbox.control_variate import Cells, ControlVariate
from dfx.blackbox.perturbation import Redraw
from dfx.blackbox.workers import Workers
from dfx.errors import SEEDS, UserError, check_numbers

_CACHED_SAMPLES = 1 << 16

_EPSILONS = "[1e-6, 0.5]"
"""Smaller steps vanish in the rounding of the values that effects hold as float32."""


@dataclass
class GradientOptions:
    """Options of the gradient estimator.

    Args:
        estimator: ``spsa`` moves all parameters at once; ``finite_difference`` moves one at a time, which is exact up
            to the step size, at one rendering per parameter and side.
        directions: of ``spsa``: ``hadamard``, ``rademacher`` or ``shared``, see
            :class:`~dfx.blackbox.perturbation.Perturbation`.
        sides: 2 renders at both ends of a direction; 1 renders at one end and uses the nominal rendering, which is
            needed anyway, as the other.
        draws: of ``spsa``: directions per example and step.
        redraw: of ``spsa``: new directions for every ``frame``, or for every ``excerpt``.
        epsilon: step size, in units of the parameters' range, in [1e-6, 0.5].
        epsilon_of: step sizes of single parameters, by name.
        epsilon_end: epsilon at the end of the run, approached geometrically; by default epsilon is constant.
            ``epsilon_of`` changes by the same factor, and must stay in the same range.
        control_variate: of ``spsa``: ``regression`` predicts each example's gradient from earlier renderings, so that
            an estimate measures only the residual, see :mod:`dfx.blackbox.control_variate`; ``none`` does without.
        forgetting_factor: of the control variate: factor, in (0, 1), by which each step scales its statistics.
        residual: of the control variate: ``mean`` averages the measured residual over the draws, which is unbiased
            where directions are new; ``least_norm`` takes the least residual that explains the measured slopes, see
            :meth:`~dfx.blackbox.control_variate.ControlVariate.solve_residual`, which has less variance, and a bias
            towards the prediction with fewer draws than parameters.
        residual_weight: of the control variate: weight of the residual, in [0, 1]; less than 1 trades variance for
            a bias towards the prediction.
        restart: when the chains of training restart: with every ``excerpt``; or ``never``, as in the paper's released
            code, whose reset has no effect, so that an excerpt begins in the state that another one left. Chains
            of validation and evaluation restart in any case, and so does the current excerpt of a resumed run.
        divisor: of a difference: the possible ``step``; or ``epsilon``, as in the paper's released code, whose
            gradient is half of the true one at a bound, and too small within ``epsilon`` of it.
        seed: of the directions.

    Raises:
        UserError: for an option out of its range, or for options that exclude each other.
    """

    estimator: Literal["spsa", "finite_difference"] = "spsa"
    directions: Literal["hadamard", "rademacher", "shared"] = "hadamard"
    sides: Literal[1, 2] = 1
    draws: int = 1
    redraw: Redraw = "excerpt"
    epsilon: float = 0.01
    epsilon_of: dict[str, float] = field(default_factory=dict)
    epsilon_end: float | None = None
    control_variate: Literal["none", "regression"] = "none"
    forgetting_factor: float = 0.9
    residual: Literal["mean", "least_norm"] = "mean"
    residual_weight: float = 1.0
    restart: Literal["excerpt", "never"] = "excerpt"
    divisor: Literal["step", "epsilon"] = "step"
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(vars(self), **dict.fromkeys(("epsilon", "epsilon_of", "epsilon_end"), _EPSILONS))
        check_numbers(vars(self), sides="1..2", draws="1..1024", seed=SEEDS)
        check_numbers(vars(self), forgetting_factor="(0, 1)", residual_weight="[0, 1]")
        if self.epsilon_end is not None:
            at_end = {name: step * self.epsilon_end / self.epsilon for name, step in self.epsilon_of.items()}
            check_numbers({"epsilon_of at the end": at_end}, **{"epsilon_of at the end": _EPSILONS})
        if self.estimator == "finite_difference" and (self.draws > 1 or self.control_variate != "none"):
            raise UserError("finite_difference is not random: leave out draws and control_variate")
        if self.divisor == "epsilon" and self.sides == 1:
            raise UserError("divisor: epsilon is that of the released code: set sides: 2")

    def renderings(self, parameters: int) -> int:
        """Return the renderings per example in a step with gradients, including the nominal one."""
        directions = parameters if self.estimator == "finite_difference" else self.draws
        return 1 + self.sides * directions


class Points(NamedTuple):
    """The points to render in one step, and how their differences combine to a gradient.

    Args:
        parameters: ``(batch, renderings, frames, P)`` in [0, 1]: the nominal point, then ``p+`` of every direction,
            then, with two sides, ``p-`` of every direction.
        steps: ``(batch, directions, frames, P)``, between the two points of each difference.
        weights: ``(batch, directions, frames, P)``, of the slopes in the gradient.
    """

    parameters: np.ndarray
    steps: np.ndarray
    weights: np.ndarray


class Estimator:
    """Estimates gradients according to :class:`GradientOptions`. Arrays are float64 unless stated otherwise.

    It uses NumPy instead of torch: for large operations torch would start its own threads, on the workers' cores.

    Args:
        options: of the gradient.
        names: of the parameters.
        sample_rate: in Hz.
        workers: that measure the differences.

    Raises:
        UserError: if ``epsilon_of`` names an unknown parameter.
    """

    def __init__(self, options: GradientOptions, names: Sequence[str], sample_rate: int, workers: Workers) -> None:
        if unknown := set(options.epsilon_of) - set(names):
            raise UserError(f"epsilon_of names {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
        self.options, self._workers = options, workers
        self._relative = np.array([options.epsilon_of.get(name, options.epsilon) / options.epsilon for name in names])
        self._control_variate: ControlVariate | None = None
        if options.control_variate == "regression":
            self._control_variate = ControlVariate(len(names), sample_rate, options.forgetting_factor)

    def epsilon(self, progress: float) -> np.ndarray:
        """Return the step size of every parameter, ``(P,)``, at ``progress`` of the run in [0, 1]."""
        first = self.options.epsilon
        return self._relative * first * ((self.options.epsilon_end or first) / first) ** progress

    def points(self, parameters: np.ndarray, directions: np.ndarray, progress: float = 0.0) -> Points:
        """Return the points to render.

        Args:
            parameters: ``(batch, frames, P)`` in [0, 1].
            directions: ``(batch, directions, frames, P)``, or with 1 in place of ``frames`` if all share a direction.
            progress: fraction of the run that is complete, in [0, 1].
        """
        sides, epsilon, nominal = self.options.sides, self.epsilon(progress), parameters[:, None]
        possible = np.minimum(nominal + epsilon, 1.0) - np.maximum(nominal - epsilon, 0.0)
        if self.options.divisor == "epsilon":
            possible = np.broadcast_to(2 * epsilon, possible.shape)
        if self.options.estimator == "spsa":
            weights = directions * (2 / sides) / (possible * directions.shape[1])
        elif sides == 2:
            weights = directions / possible
        else:
            # Step inwards, where no bound is in the way.
            directions = np.where(nominal > 0.5, -directions, directions)
            weights = directions / epsilon
        step = epsilon * directions
        plus = _clip(nominal + step)
        if sides == 1:
            return Points(np.concatenate([nominal, plus], axis=1), plus - nominal, weights)
        minus = _clip(nominal - step)
        return Points(np.concatenate([nominal, plus, minus], axis=1), plus - minus, weights)

    def estimate(self, grad_output: np.ndarray, rendered: np.ndarray, points: Points) -> np.ndarray:
        """Return the estimated vector-Jacobian product, ``(batch, frames, P)``, then update the control variate.

        Args:
            grad_output: float32 ``(batch, channels, frames * samples)``, the gradient of the loss.
            rendered: float32 ``(batch, renderings, channels, frames * samples)``, at ``points.parameters``.
            points: the points that were rendered.
        """
        batch, frames = len(rendered), points.parameters.shape[2]
        # Measure blocks of examples whose differences fit into the cache. Their size depends on the shape alone, not on
        # the number of workers, since rounding depends on it, and a run repeats to the last bit.
        size = -(-batch // min(batch, -(-rendered.size // _CACHED_SAMPLES)))
        slopes = np.empty(points.steps.shape[:3])
        cells_of: dict[int, Cells] = {}

        def measure(numbers: range) -> None:
            for number in numbers:
                block = slice(number * size, (number + 1) * size)
                nominal, plus, grad = rendered[block, :1], rendered[block, 1:], grad_output[block]
                plus, minus = (plus, nominal) if self.options.sides == 1 else np.split(plus, 2, axis=1)
                difference = plus - minus
                by_frame, grad_by_frame = (a.reshape(*a.shape[:-1], frames, -1) for a in (difference, grad))
                slopes[block] = np.einsum("bdcfs,bcfs->bdf", by_frame, grad_by_frame)
                if self._control_variate is not None:
                    cells_of[number] = self._control_variate.measure(nominal[:, 0], grad, difference, frames)

        self._workers.run(measure, -(-batch // size))
        if self._control_variate is None:
            return np.einsum("bdf,bdfp->bfp", slopes, points.weights)
        cells = Cells(*map(np.concatenate, zip(*(cells_of[number] for number in sorted(cells_of)))))
        # The prediction comes from earlier steps, so it is independent of new directions and does not bias the
        # estimate. Directions held for an excerpt are part of its statistics, among those of all other examples.
        prediction = self._control_variate.predict(cells)
        residual_slopes = slopes - np.einsum("bdfp,bfp->bdf", points.steps, prediction)
        if self.options.residual == "least_norm":
            residual = self._control_variate.solve_residual(residual_slopes, points.steps, cells)
        else:
            residual = np.einsum("bdf,bdfp->bfp", residual_slopes, points.weights)
        all_cells = Cells(*map(distributed.gather_array, cells))
        self._control_variate.update(all_cells, distributed.gather_array(points.steps))
        return prediction + self.options.residual_weight * residual

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the control variate, as tensors."""
        return {} if self._control_variate is None else self._control_variate.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`, which may be that of a run without a control variate."""
        if self._control_variate is not None and state:
            self._control_variate.load_state_dict(state)


def _clip(parameters: np.ndarray) -> np.ndarray:
    """Limit to [0, 1], in half of the time that np.clip takes for few parameters."""
    return np.minimum(np.maximum(parameters, 0.0), 1.0)
