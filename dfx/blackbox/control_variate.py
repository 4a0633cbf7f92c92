"""What is known of a chain from what it has rendered: how its output responds to every parameter.

However an effect works inside, a small step of a parameter mostly changes how loud the output is: in some bands
more than in others, and in quiet passages otherwise than in loud ones. A cell is a band of frequencies at a
level of loudness. With ``Y`` the spectra of the output in a cell, ``D`` those of the difference that a step ``d``
makes to it, and ``V`` those of the loss's gradient,

    change = Re <Y, D> / <Y, Y>   is about   sum over p of  response[cell, p] d[p]
    pull   = Re <Y, V>            is what the loss wants of the cell's gain, and
    sum over cells of  pull response[cell, p]   predicts   dL/dp.

The response is much the same for all examples, so every rendering tells something of it, and a regression that
forgets slowly keeps it. It takes no rendering of its own. What it predicts is no more than a guess of the gradient,
different for each example, whose errors the estimate proper then measures: a control variate.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch

FFT_SAMPLES = 1024
BANDS = 24
LOWEST_BAND_HZ = 60.0
LEVELS_DBFS = (-50.0, -40.0, -30.0, -20.0, -10.0)
"""The borders of the classes of loudness."""


class Cells(NamedTuple):
    """What the frames of a step say, cell by cell.

    Args:
        power: ``(batch, frames, cells)``, of the output.
        pull: ``(batch, frames, cells)``, the gradient of the loss with respect to the logarithm of the gain.
        change: ``(batch, directions, frames, cells)``, products of output and difference.
    """

    power: np.ndarray
    pull: np.ndarray
    change: np.ndarray


class ControlVariate:
    """Learns how the output of a chain responds to its parameters.

    Args:
        parameters: how many there are.
        sample_rate: in Hz.
        forgetting_factor: the share, in (0, 1), that is kept of all that was learnt with each step.
    """

    def __init__(self, parameters: int, sample_rate: int, forgetting_factor: float) -> None:
        self._forgetting_factor = forgetting_factor
        edges = np.geomspace(LOWEST_BAND_HZ, sample_rate / 2, BANDS)[:-1]
        band = np.searchsorted(edges, np.fft.rfftfreq(FFT_SAMPLES, 1 / sample_rate), side="right")
        self._bands = (band[:, None] == np.arange(BANDS)).astype(np.float32)
        cells = BANDS * (len(LEVELS_DBFS) + 1)
        # Of a least-squares fit in every cell: the products of steps, and of steps with changes.
        self._squares = np.zeros((cells, parameters, parameters))
        self._products = np.zeros((cells, parameters))
        self._response = np.zeros((cells, parameters))

    def measure(self, output: np.ndarray, grad_output: np.ndarray, difference: np.ndarray, frames: int) -> Cells:
        """Sorts a step's audio into cells.

        Args:
            output, grad_output: float32 ``(batch, channels, frames * samples)``.
            difference: float32 ``(batch, directions, channels, frames * samples)``.
        """
        y, v, d = (self._spectra(audio, frames) for audio in (output, grad_output, difference))
        # Over channels and bins; what is left of the shape is (batch, [directions,] frames, windows, bands).
        power, pull = (self._product(y, other) for other in (y, v))
        change = self._product(y[:, None], d)
        level = np.digitize(10 * np.log10(power.sum(axis=-1) / (FFT_SAMPLES / 2) + 1e-12), LEVELS_DBFS)
        at_level = (level[..., None] == np.arange(len(LEVELS_DBFS) + 1)).astype(power.dtype)
        return Cells(
            _sorted("bfwn,bfwl->bfnl", power, at_level),
            _sorted("bfwn,bfwl->bfnl", pull, at_level),
            _sorted("bdfwn,bfwl->bdfnl", change, at_level),
        )

    def predict(self, cells: Cells) -> np.ndarray:
        """The gradient as far as it is known, ``(batch, frames, P)``."""
        return cells.pull @ self._response

    def learn(self, cells: Cells, steps: np.ndarray) -> None:
        """Takes in what a step has shown.

        Args:
            cells: of the step.
            steps: ``(batch, directions, frames, P)``, between the two points of each difference.
        """
        total = cells.power.sum(axis=-1, keepdims=True)
        # Cells that hold next to nothing tell next to nothing.
        weight = cells.power / (cells.power + 1e-4 * total + 1e-12)
        change = cells.change / (cells.power + 1e-9 * total + 1e-12)[:, None]
        count, draws = steps.shape[0] * steps.shape[2], steps.shape[1]
        flat = steps.swapaxes(0, 1).reshape(draws, count, -1)
        weight = weight.reshape(count, -1)
        change = change.swapaxes(0, 1).reshape(draws, count, -1)
        pairs = (flat[..., :, None] * flat[..., None, :]).sum(axis=0).reshape(count, -1)
        squares = (weight.T @ pairs).reshape(self._squares.shape)
        products = sum((weight * of_draw).T @ step for of_draw, step in zip(change, flat))
        self._squares = self._forgetting_factor * self._squares + squares
        self._products = self._forgetting_factor * self._products + products
        # A tenth of an example speaks for no response at all: cells never heard stay at it.
        prior = 0.1 * np.square(steps).mean() * np.eye(steps.shape[-1])
        self._response = np.linalg.solve(self._squares + prior, self._products[..., None])[..., 0]

    def state_dict(self) -> dict[str, Any]:
        return {name: torch.from_numpy(getattr(self, f"_{name}").copy()) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in _STATE:
            setattr(self, f"_{name}", state[name].cpu().numpy())

    def _spectra(self, audio: np.ndarray, frames: int) -> np.ndarray:
        """``(..., channels, frames * samples)`` to ``(..., channels, frames, windows, bins)``."""
        audio = audio.reshape(*audio.shape[:-1], frames, -1)
        size = min(FFT_SAMPLES, audio.shape[-1])
        short = -audio.shape[-1] % size
        if short:
            audio = np.pad(audio, [(0, 0)] * (audio.ndim - 1) + [(0, short)])
        # Without overlap: a window that sees half of the audio sees enough of it.
        return np.fft.rfft(audio.reshape(*audio.shape[:-1], -1, size) * _window(size), FFT_SAMPLES)

    def _product(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        real = one.real * other.real + one.imag * other.imag
        return real.sum(axis=-4) @ self._bands * np.float32(2 / FFT_SAMPLES)


_STATE = ("squares", "products", "response")


@functools.cache
def _window(samples: int) -> np.ndarray:
    """A Hann window that leaves the power of what it sees as it is."""
    window = np.hanning(samples + 2)[1:-1]
    return (window / np.sqrt(np.square(window).mean())).astype(np.float32)


def _sorted(equation: str, of_windows: np.ndarray, at_level: np.ndarray) -> np.ndarray:
    by_level = np.einsum(equation, of_windows, at_level, optimize=True)
    return by_level.reshape(*by_level.shape[:-2], -1).astype(np.float64)
