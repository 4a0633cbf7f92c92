"""Gradients from renderings: where to render, and how the differences become a gradient.

Every estimator is a matrix of directions ``d`` and a divisor. With ``f`` the rendered audio, ``g`` the gradient of
the loss with respect to it, ``p+`` and ``p-`` the points ``p + epsilon d`` and ``p - epsilon d`` clipped to [0, 1],

    two-sided:  dL/dp = d / (p+ - p-) * g . (f(p+) - f(p-))
    one-sided:  dL/dp = 2 d / (p+ - p-) * g . (f(p+) - f(p))

averaged over the draws (SPSA: Spall 1992, equation 2.2; the paper, section 2.3). ``p+ - p-``, taken for ``d`` = 1, is
the step really possible, coordinate by coordinate: at a bound it is half as long as inside, and the estimate
stays unbiased, where dividing by ``2 epsilon`` would halve it. The one-sided form shares the divisor: a coordinate
at a bound moves for one of the two signs only, and counts double for it. Finite differences are the same with a
direction for each coordinate, summed instead of averaged. What the paper's released code does, so that it can be
compared, are options: ``directions: shared``, ``restart: never`` and ``divisor: epsilon``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from dfx.blackbox.control_variate import Cells, ControlVariate
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
        control_variate: of ``spsa``: a guess of each example's gradient, from earlier steps, so that an estimate
            measures only how it deviates from it, and what is known already is no longer noise. ``regression``
            learns how the output responds to the parameters, see :mod:`dfx.blackbox.control_variate`; ``none`` does
            without.
        forgetting_factor: of the control variate: how much of its statistics each step keeps, in (0, 1).
        residual_weight: of the control variate: weight of the measured residual, in [0, 1]. 1 leaves the
            estimate unbiased where directions are drawn anew; less trades its noise for a pull towards the guess.
        restart: when the effects that train forget what they have heard: with every ``excerpt``; or ``never``, as
            in the paper's released code, whose reset did nothing, so that an excerpt begins in what others have
            left behind. Validation and evaluation begin anew all the same; and so does the excerpt under way,
            in a run that is resumed.
        divisor: what a difference is divided by: the ``step`` that was taken; or, as in the paper's released code,
            ``epsilon``, whatever of it the bounds have cut off: at a bound the gradient is then half of the true
            one, and within ``epsilon`` of it too small.
        seed: of the directions.

    Raises:
        UserError: for an option out of its range, or for ``divisor: epsilon`` with anything but two sides.
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
    residual_weight: float = 1.0
    restart: Literal["excerpt", "never"] = "excerpt"
    divisor: Literal["step", "epsilon"] = "step"
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
        if not 0.0 < self.forgetting_factor < 1.0:
            raise UserError(f"forgetting_factor is {self.forgetting_factor:g}; it must be above 0 and below 1")
        if not 0.0 <= self.residual_weight <= 1.0:
            raise UserError(f"residual_weight is {self.residual_weight:g}; it must be from 0 to 1")
        if self.estimator == "finite_difference" and (self.draws > 1 or self.control_variate != "none"):
            raise UserError("finite_difference takes no draws and no control_variate: it has nothing random")
        if self.divisor == "epsilon" and self.sides == 1:
            raise UserError("divisor: epsilon is the released code's, which has sides: 2")

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
        sample_rate: of the audio, in Hz.

    Raises:
        UserError: if ``epsilon_of`` names a parameter that is not there.
    """

    def __init__(self, options: GradientOptions, names: Sequence[str], sample_rate: int) -> None:
        unknown = set(options.epsilon_of) - set(names)
        if unknown:
            raise UserError(f"epsilon_of names {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
        self.options = options
        self._relative = np.array([options.epsilon_of.get(name, options.epsilon) / options.epsilon for name in names])
        self._response: ControlVariate | None = None
        if options.control_variate == "regression":
            self._response = ControlVariate(len(names), sample_rate, options.forgetting_factor)

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
        if self.options.divisor == "epsilon":
            possible = np.broadcast_to(2 * epsilon, possible.shape)
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

    def blocks(self, rendered: np.ndarray) -> list[slice]:
        """The parts of a batch to measure one by one, small enough for their differences to stay in the cache.

        They depend on the shape alone, and on no worker: rounding differs between blocks of other sizes, and a run
        repeats to the last bit.
        """
        batch = len(rendered)
        size = -(-batch // min(batch, -(-rendered.size // _CACHED_SAMPLES)))
        return [slice(first, first + size) for first in range(0, batch, size)]

    def measure(self, grad_output: np.ndarray, rendered: np.ndarray, frames: int) -> Measured:
        """What the renderings say of a block of examples; it may be called from several threads.

        Args:
            grad_output: float32 ``(batch, channels, frames * samples)``, the gradient of the loss.
            rendered: float32 ``(batch, renderings, channels, frames * samples)``, in the order of
                ``Points.where``.
        """
        if self.options.sides == 1:
            plus, minus = rendered[:, 1:], rendered[:, :1]
        else:
            plus, minus = np.split(rendered[:, 1:], 2, axis=1)
        difference = plus - minus
        by_frame = difference.reshape(*difference.shape[:3], frames, -1)
        grad = grad_output.reshape(*grad_output.shape[:2], frames, -1)
        slopes = np.einsum("bdcfs,bcfs->bdf", by_frame, grad).astype(np.float64)
        if self._response is None:
            return Measured(slopes, None)
        return Measured(slopes, self._response.measure(rendered[:, 0], grad_output, difference, frames))

    def estimate(self, measured: Measured, points: Points) -> np.ndarray:
        """The vector-Jacobian product, ``(batch, frames, P)``.

        Args:
            measured: from :meth:`measure`, of all examples in ``points``.
            points: where was rendered.
        """
        if self._response is None:
            return np.einsum("bdf,bdfp->bfp", measured.slopes, points.weights)
        # What the guess expects of a slope is taken off, and the guess itself put in its place. It comes from
        # earlier steps alone: of directions drawn since it knows nothing, and so cannot bias the estimate. Those
        # held for an excerpt it has met, but among all the others of its memory.
        guess = self._response.predict(measured.cells)
        rest = measured.slopes - np.einsum("bdfp,bfp->bdf", points.steps, guess)
        residual = np.einsum("bdf,bdfp->bfp", rest, points.weights)
        return guess + self.options.residual_weight * residual

    def learn(self, cells: Cells, steps: np.ndarray) -> None:
        """Takes in what a step has shown, after its estimate.

        Args:
            cells: what was measured, of the whole batch.
            steps: ``Points.steps``, of the whole batch.
        """
        self._response.learn(cells, steps)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._response is None else self._response.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # A run may be resumed with a control variate that it did not have before.
        if self._response is not None and state:
            self._response.load_state_dict(state)


class Measured(NamedTuple):
    """What the renderings of a step say.

    Args:
        slopes: ``(batch, directions, frames)``, how the loss changes from ``p-`` or ``p`` to ``p+``.
        cells: the same audio sorted into cells, where a :class:`ControlVariate` is learnt.
    """

    slopes: np.ndarray
    cells: Cells | None

    @classmethod
    def joined(cls, parts: Sequence[Measured]) -> Measured:
        """Of parts of a batch, in their order."""
        cells = [part.cells for part in parts if part.cells]
        slopes = np.concatenate([part.slopes for part in parts])
        return cls(slopes, Cells(*map(np.concatenate, zip(*cells))) if cells else None)


_CACHED_SAMPLES = 1 << 16
