"""Gradients from renderings: where to render, and how the differences become a gradient.

Every estimator is a matrix of directions ``D`` and a divisor. With ``f`` the rendered audio, ``g`` the
gradient of the loss with respect to it, and ``d`` a direction,

    two-sided:  dL/dp = d / (p+ - p-) * g . (f(p+) - f(p-))
    one-sided:  dL/dp = 2 d / (p+ - p-) * g . (f(p+) - f(p))

averaged over the draws, where ``p+`` and ``p-`` are ``p + epsilon d`` and ``p - epsilon d`` clipped to [0, 1]
(Spall 1992, equation 2.2; the paper, section 2.3). ``p+ - p-`` is the step really taken, coordinate by
coordinate: at a bound it is half as long as inside, and the estimate stays unbiased, where dividing
by ``2 epsilon`` would halve it. The one-sided form shares the divisor: a coordinate at a bound moves for
one of the two signs only, and counts double for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Tuple

import torch
from torch import Tensor

from dfx.blackbox.perturbation import Directions, Redraw
from dfx.errors import UserError


@dataclass
class GradientOptions:
    """How the gradient of an effect is estimated.

    Args:
        directions: ``hadamard`` or ``rademacher``, see :class:`~dfx.blackbox.perturbation.Perturbation`.
        sides: 2 renders at both ends of a direction; 1 renders at one end and takes the nominal
            rendering, which is needed anyhow, for the other.
        draws: directions for every example and step.
        redraw: new directions every ``frame``, or one for a whole ``excerpt``.
        epsilon: the length of a step, in units of the parameters' range, in (0, 0.5].
        seed: of the directions.

    Raises:
        UserError: for an option out of its range.
    """

    directions: Directions = "hadamard"
    sides: Literal[1, 2] = 1
    draws: int = 1
    redraw: Redraw = "excerpt"
    epsilon: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.epsilon <= 0.5:
            raise UserError(f"epsilon is {self.epsilon:g}; it must be above 0 and at most 0.5")
        if self.draws < 1:
            raise UserError(f"draws is {self.draws}; every example needs at least one direction")
        if self.sides not in (1, 2):
            raise UserError(f"sides is {self.sides}; a difference has 1 or 2")

    @property
    def renderings(self) -> int:
        """How often every example is rendered in a step with gradients, the nominal one included."""
        return 1 + self.sides * self.draws


def points(parameters: Tensor, directions: Tensor, options: GradientOptions) -> Tuple[Tensor, Tensor]:
    """Where to render, and with which weights the differences count.

    Args:
        parameters: float64 ``(batch, P)`` in [0, 1].
        directions: float64 ``(batch, draws, P)``.

    Returns:
        The points, ``(batch, renderings, P)``: nominal, then ``p+`` of every draw, then ``p-`` of every
        draw if there are two sides. The weights, ``(batch, draws, P)``, for :func:`estimate`.
    """
    nominal = parameters[:, None]
    step = options.epsilon * directions
    sides = [(nominal + step).clamp(0.0, 1.0)]
    if options.sides == 2:
        sides.append((nominal - step).clamp(0.0, 1.0))
    taken = (nominal + options.epsilon).clamp(max=1.0) - (nominal - options.epsilon).clamp(min=0.0)
    weights = directions * (2 / options.sides) / (taken * options.draws)
    return torch.cat([nominal, *sides], dim=1), weights


def differences(rendered: Tensor, options: GradientOptions) -> Tensor:
    """``f(p+) - f(p-)`` or ``f(p+) - f(p)`` of every draw.

    Args:
        rendered: ``(batch, renderings, channels, samples)``, in the order of :func:`points`.

    Returns:
        ``(batch, draws, channels, samples)``.
    """
    plus = rendered[:, 1 : 1 + options.draws]
    return plus - (rendered[:, 1 + options.draws :] if options.sides == 2 else rendered[:, :1])


def estimate(grad_output: Tensor, difference: Tensor, weights: Tensor) -> Tensor:
    """The vector-Jacobian product.

    Args:
        grad_output: ``(batch, channels, samples)``, the gradient of the loss.
        difference: ``(batch, draws, channels, samples)``, from :func:`differences`.
        weights: ``(batch, draws, P)``, from :func:`points`.

    Returns:
        ``(batch, P)``, the gradient with respect to the parameters.
    """
    slopes = torch.einsum("bdcs,bcs->bd", difference, grad_output)
    return torch.einsum("bd,bdp->bp", slopes.to(weights.dtype), weights)
