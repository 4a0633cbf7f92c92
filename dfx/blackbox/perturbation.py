"""Directions in which parameters are perturbed.

A random direction has an entry of -1 or +1 for every parameter. Directions are drawn for a whole batch at once, as an
array ``(batch, draws, P)``: the gradient of the encoder's weights sums over the batch, so its variance depends on the
correlation between the directions of different examples.
"""

import functools
from typing import Any, Literal

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

Directions = Literal["rademacher", "hadamard", "shared", "coordinate"]
Redraw = Literal["frame", "excerpt"]


class Perturbation:
    """Draws the directions of every step, reproducibly from a seed.

    Args:
        directions: ``rademacher`` draws independent signs (Spall 1992; the paper). ``hadamard`` draws
            rows of a Hadamard matrix, permuted and with random signs: each direction is as random as before, but
            those of a batch are nearly orthogonal, and their errors cancel. ``shared`` gives all examples the same
            signs, as the paper's released code does by mistake. ``coordinate`` has one direction for each
            parameter, for finite differences; nothing is random.
        redraw: draw new directions for every ``frame``, or only for lanes that begin a new ``excerpt``, so that
            the state of a perturbed chain belongs to its own parameters.
        draws: directions per example.
        seed: of the random generator.
    """

    def __init__(self, directions: Directions, redraw: Redraw, draws: int, seed: int) -> None:
        self._sample, self._redraw, self._draws = _SAMPLERS[directions], redraw, draws
        self._generator = torch.Generator().manual_seed(seed)
        self._held: np.ndarray | None = None

    def next(self, restart: np.ndarray, frames: int, parameters: int) -> np.ndarray:
        """Return the directions of the next step.

        Args:
            restart: bool ``(batch,)``, the lanes that begin a new excerpt.
            frames: number of frames in the step.
            parameters: number of parameters, P.

        Returns:
            float64 ``(batch, draws, frames, P)``, or ``(batch, draws, 1, P)`` where all frames share a direction.

        Raises:
            ValueError: if the batch size changes while directions are held.
        """
        batch = len(restart)
        if self._redraw == "frame":
            drawn = self._sample(batch * frames, self._draws, parameters, self._generator).numpy()
            return drawn.reshape(batch, frames, -1, parameters).swapaxes(1, 2)
        if self._held is not None and len(self._held) != batch:
            raise ValueError(
                f"{batch} lanes follow {len(self._held)}: directions held for an excerpt need a constant batch size"
            )
        if self._held is None or restart.any():
            drawn = self._sample(batch, self._draws, parameters, self._generator).numpy()
            self._held = drawn if self._held is None else np.where(restart[:, None, None], drawn, self._held)
        return self._held[:, :, None]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator and the held directions, as tensors."""
        held = None if self._held is None else torch.from_numpy(self._held)
        return {"generator": self._generator.get_state(), "held": held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`."""
        self._generator.set_state(state["generator"].cpu())
        self._held = None if state["held"] is None else state["held"].cpu().numpy()


def rademacher(batch: int, draws: int, parameters: int, generator: torch.Generator) -> Tensor:
    """Draw independent signs, float64 ``(batch, draws, parameters)``."""
    return torch.randint(0, 2, (batch, draws, parameters), generator=generator).double() * 2.0 - 1.0


def hadamard(batch: int, draws: int, parameters: int, generator: torch.Generator) -> Tensor:
    """Draw rows of a randomly permuted and signed Hadamard matrix, float64 ``(batch, draws, parameters)``.

    The order of the matrix is the smallest power of two that is at least ``batch * draws`` and ``parameters``. With as
    many rows as the order, the entries of any two parameters are orthogonal over the batch. Hadamard matrices as
    perturbations of SPSA: Bhatnagar et al. 2003, "Two-timescale SPSA using deterministic perturbation sequences".
    """
    rows = batch * draws
    order = 1 << (max(rows, parameters) - 1).bit_length()
    row = torch.randperm(order, generator=generator)[:rows].numpy()
    column = torch.randperm(order, generator=generator)[:parameters].numpy()
    matrix = torch.from_numpy(_hadamard_matrix(order)[row[:, None], column]).double()
    return (matrix * rademacher(1, 1, parameters, generator)).reshape(batch, draws, parameters)


def shared(batch: int, draws: int, parameters: int, generator: torch.Generator) -> Tensor:
    """Draw signs that all examples share, float64 ``(batch, draws, parameters)``."""
    return rademacher(1, draws, parameters, generator).repeat(batch, 1, 1)


def coordinate(batch: int, draws: int, parameters: int, generator: torch.Generator) -> Tensor:
    """Return the unit vector of every parameter, float64 ``(batch, parameters, parameters)``; ignores ``draws``."""
    return torch.eye(parameters, dtype=torch.float64).expand(batch, -1, -1)


_SAMPLERS = {"rademacher": rademacher, "hadamard": hadamard, "shared": shared, "coordinate": coordinate}


@functools.lru_cache(maxsize=1)
def _hadamard_matrix(order: int) -> np.ndarray:
    return scipy.linalg.hadamard(order, dtype=np.int8)
