"""Directions in which parameters are perturbed: which are drawn, and how often.

A random direction has an entry of -1 or +1 for every parameter. Directions are drawn for a whole batch at
once, as a tensor ``(batch, draws, P)``, because what makes the gradient of shared weights good is how
the directions of a batch stand to each other.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

Directions = Literal["rademacher", "hadamard", "shared", "coordinate"]
Redraw = Literal["frame", "excerpt"]


class Perturbation:
    """Draws directions, reproducibly.

    Args:
        directions: ``rademacher`` draws every sign on its own (Spall 1992; the paper, section 2.3).
            ``hadamard`` takes the rows of a Hadamard matrix whose columns are chosen, signed and its
            rows permuted at random: each direction alone is as random as before, but those of a
            batch are orthogonal or nearly so, and their errors cancel. ``shared`` gives the whole batch the
            directions of one example, as the paper's released code did without meaning to. ``coordinate`` is
            for finite differences: a direction for each parameter, nothing random.
        redraw: new directions with every ``frame``, or only where a lane begins a new ``excerpt``, so
            that a perturbed instance carries the state that belongs to its own parameters.
        draws: how many directions every example gets.
        seed: of the generator.
    """

    def __init__(self, directions: Directions, redraw: Redraw, draws: int, seed: int) -> None:
        self._draw = _DRAWS[directions]
        self._redraw = redraw
        self._draws = draws
        self._generator = torch.Generator().manual_seed(seed)
        self._held: Tensor | None = None

    def next(self, restart: Tensor, frames: int, parameters: int) -> Tensor:
        """The directions of one step.

        Args:
            restart: bool ``(batch,)``, which lanes begin a new excerpt.
            frames: how many there are in the step.
            parameters: how many there are.

        Returns:
            float64 ``(batch, draws, frames, parameters)`` of -1 and +1, or with 1 for ``frames`` where
            all of them share one.
        """
        batch = len(restart)
        if self._redraw == "frame":
            drawn = self._draw(batch * frames, self._draws, parameters, self._generator)
            return drawn.reshape(batch, frames, -1, parameters).transpose(1, 2)
        if self._held is not None and len(self._held) != batch:
            raise ValueError(
                f"{batch} lanes follow {len(self._held)}: directions held for an excerpt need batches of one size"
            )
        if self._held is None or bool(restart.any()):
            drawn = self._draw(batch, self._draws, parameters, self._generator)
            if self._held is not None:
                drawn = torch.where(restart[:, None, None], drawn, self._held)
            self._held = drawn
        return self._held[:, :, None]

    def state_dict(self) -> dict[str, Any]:
        """What the next directions depend on, as tensors."""
        return {"generator": self._generator.get_state(), "held": self._held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"].cpu())
        self._held = state["held"]


def rademacher(batch: int, draws: int, parameters: int, generator: torch.Generator) -> Tensor:
    """Independent signs, ``(batch, draws, parameters)``, float64."""
    return _signs((batch, draws, parameters), generator)


def hadamard(batch: int, draws: int, parameters: int, generator: torch.Generator) -> Tensor:
    """Rows of a randomly signed and permuted Hadamard matrix, ``(batch, draws, parameters)``, float64.

    Its order is the power of two that holds the parameters and, where that is more, the rows of the
    batch. With as many rows as the order, the directions of two parameters are orthogonal over
    the batch.
    """
    rows = batch * draws
    order = 1 << (max(rows, parameters) - 1).bit_length()
    # Sylvester's construction: the sign of an entry is the parity of the bits that its indices share.
    row = torch.randperm(order, generator=generator)[:rows, None]
    column = torch.randperm(order, generator=generator)[None, :parameters]
    shared = row & column
    for shift in (32, 16, 8, 4, 2, 1):
        shared = shared ^ (shared >> shift)
    matrix = 1.0 - 2.0 * (shared & 1).double()
    return (matrix * _signs((1, parameters), generator)).reshape(batch, draws, parameters)


def shared(batch: int, draws: int, parameters: int, generator: torch.Generator) -> Tensor:
    """The same independent signs for every example, ``(batch, draws, parameters)``, float64."""
    return _signs((1, draws, parameters), generator).repeat(batch, 1, 1)


def coordinate(batch: int, draws: int, parameters: int, generator: torch.Generator) -> Tensor:
    """One parameter after the other, whatever ``draws``: ``(batch, parameters, parameters)``, float64."""
    return torch.eye(parameters, dtype=torch.float64).expand(batch, -1, -1)


_DRAWS = {"rademacher": rademacher, "hadamard": hadamard, "shared": shared, "coordinate": coordinate}


def _signs(shape: tuple, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator).double() * 2.0 - 1.0
