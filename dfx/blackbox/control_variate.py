"""A control variate for the gradient: a prediction from earlier renderings, whose error alone is then measured.

However an effect works inside, a small step of a parameter mostly changes the gain of the output: more in some bands
than in others, and differently in quiet and in loud passages. A cell is a band of frequencies at a level of the signal.
Let ``Y`` be the spectra of the output in a cell, ``D`` those of the difference that a step ``d`` of the parameters
causes, and ``V`` those of the gradient of the loss with respect to the output. Then

    change = Re <Y, D> / <Y, Y>  =  sum over p of  response[cell, p] d[p]  +  noise

is a linear regression on the steps, with weights shared by all examples and frames. It is solved by least squares with
exponential forgetting and a ridge prior of zero, from renderings that the estimator needs anyway. With the gradient of
the loss with respect to the logarithm of a cell's gain, ``Re <Y, V>``, it predicts

    dL/dp  =  sum over cells of  Re <Y, V> response[cell, p].

The estimator subtracts the slopes that this prediction implies from those it measures, and adds the prediction back
(control variates: Mohamed et al. 2020, "Monte Carlo gradient estimation in machine learning", section 7.4).
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
import torch

FFT_SAMPLES = 1024
BANDS = 24
LOWEST_BAND_HZ = 60.0
LEVELS_DBFS = (-50.0, -40.0, -30.0, -20.0, -10.0)
"""Limits between the levels."""

_STATE = ("squares", "products", "response")


class Cells(NamedTuple):
    """Statistics of the frames of a step, by cell.

    Args:
        power: ``(batch, frames, cells)``, of the output, ``<Y, Y>``.
        gradient: ``(batch, frames, cells)``, of the loss with respect to the logarithm of the gain, ``Re <Y, V>``.
        change: ``(batch, directions, frames, cells)``, ``Re <Y, D>``.
    """

    power: np.ndarray
    gradient: np.ndarray
    change: np.ndarray


class ControlVariate:
    """Predicts gradients by a regression of the output's gain on the parameters; see the module.

    Args:
        parameters: number of parameters, P.
        sample_rate: in Hz.
        forgetting_factor: factor, in (0, 1), by which each step scales the statistics of all earlier ones.
    """

    def __init__(self, parameters: int, sample_rate: int, forgetting_factor: float) -> None:
        self._forgetting_factor = forgetting_factor
        edges = np.geomspace(LOWEST_BAND_HZ, sample_rate / 2, BANDS)[:-1]
        band = np.searchsorted(edges, np.fft.rfftfreq(FFT_SAMPLES, 1 / sample_rate), side="right")
        self._bands = (band[:, None] == np.arange(BANDS)) * np.float32(2 / FFT_SAMPLES)
        cells = BANDS * (len(LEVELS_DBFS) + 1)
        # The normal equations of every cell, and their solution.
        self._squares = np.zeros((cells, parameters, parameters))
        self._products = np.zeros((cells, parameters))
        self._response = np.zeros((cells, parameters))

    def measure(self, output: np.ndarray, grad_output: np.ndarray, difference: np.ndarray, frames: int) -> Cells:
        """Return the statistics of a step's audio by cell.

        Args:
            output: float32 ``(batch, channels, frames * samples)``.
            grad_output: the gradient of the loss with respect to ``output``, of its shape.
            difference: float32 ``(batch, directions, channels, frames * samples)``, between two renderings.
            frames: number of frames.
        """
        y, v, d = (_spectra(audio, frames) for audio in (output, grad_output, difference))
        # Summed over channels and bins: (batch, [directions,] frames, windows, bands).
        power, gradient = (self._band_products(y, other) for other in (y, v))
        change = self._band_products(y[:, None], d)
        level_dbfs = 10 * np.log10(power.sum(axis=-1) / (FFT_SAMPLES / 2) + 1e-12)
        level = np.searchsorted(LEVELS_DBFS, level_dbfs, side="right")
        at_level = (level[..., None] == np.arange(len(LEVELS_DBFS) + 1)).astype(power.dtype)
        return Cells(*(_sum_by_level(products, at_level) for products in (power, gradient, change)))

    def predict(self, cells: Cells) -> np.ndarray:
        """Return the predicted gradient of the parameters, ``(batch, frames, P)``."""
        return cells.gradient @ self._response

    def solve_residual(self, slopes: np.ndarray, steps: np.ndarray, cells: Cells) -> np.ndarray:
        """Return the gradient of least norm, ``(batch, frames, P)``, whose slopes along the steps are those given.

        The norm divides the square of each parameter's entry by the power of the change of the output that the
        regression expects from it: an error of the prediction is large where a parameter has a large effect. This is
        the mean, given the slopes, of independent Gaussian entries whose variances are these powers.

        Args:
            slopes: ``(batch, directions, frames)``, of the residual.
            steps: ``(batch, directions, frames, P)``, between the two points of each difference.
            cells: statistics of the step.
        """
        power = cells.power @ np.square(self._response)
        variance = power / (power.mean(axis=-1, keepdims=True) + 1e-12) + 1e-4
        by_frame = steps.swapaxes(1, 2)
        scaled = by_frame * variance[:, :, None]
        covariance = scaled @ by_frame.swapaxes(-1, -2)
        # A pseudoinverse, since the covariance is singular where directions coincide.
        power, axes = np.linalg.eigh(covariance)
        inverse = np.divide(1.0, power, out=np.zeros_like(power), where=power > 1e-6 * power[..., -1:])
        solved = axes @ (inverse[..., None] * (axes.swapaxes(-1, -2) @ slopes.swapaxes(1, 2)[..., None]))
        return (scaled.swapaxes(-1, -2) @ solved)[..., 0]

    def update(self, cells: Cells, steps: np.ndarray) -> None:
        """Add a step to the regression.

        Args:
            cells: statistics of the step.
            steps: ``(batch, directions, frames, P)``, between the two points of each difference.
        """
        if not steps.any():
            # All parameters are at a bound, and all steps would leave the range.
            return
        total = cells.power.sum(axis=-1, keepdims=True)
        # Down-weight cells with almost no energy.
        weight = cells.power / (cells.power + 1e-4 * total + 1e-12)
        change = cells.change / (cells.power + 1e-9 * total + 1e-12)[:, None]
        by_frame, weighted = steps.swapaxes(1, 2), (change * weight[:, None]).swapaxes(1, 2)
        pairs = by_frame.swapaxes(-1, -2) @ by_frame
        cell_count, parameters = self._products.shape
        squares = weight.reshape(-1, cell_count).T @ pairs.reshape(-1, parameters**2)
        products = weighted.reshape(-1, cell_count).T @ by_frame.reshape(-1, parameters)
        self._squares = self._forgetting_factor * self._squares + squares.reshape(self._squares.shape)
        self._products = self._forgetting_factor * self._products + products
        # The prior counts as a tenth of an example without any change; cells without data keep it.
        prior = 0.1 * np.square(steps).mean() * np.eye(steps.shape[-1])
        self._response = np.linalg.solve(self._squares + prior, self._products[..., None])[..., 0]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the regression, as tensors."""
        return {name: torch.tensor(getattr(self, f"_{name}")) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`."""
        for name in _STATE:
            setattr(self, f"_{name}", state[name].cpu().numpy())

    def _band_products(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return ``Re <one, other>`` of spectra in every band, summed over channels."""
        products = one.real * other.real + one.imag * other.imag
        return (products @ self._bands).sum(axis=-4)


def _spectra(audio: np.ndarray, frames: int) -> np.ndarray:
    """Transform ``(..., channels, frames * samples)`` to spectra ``(..., channels, frames, windows, bins)``."""
    audio = audio.reshape(*audio.shape[:-1], frames, -1)
    size = min(FFT_SAMPLES, audio.shape[-1])
    if short := -audio.shape[-1] % size:
        audio = np.pad(audio, [(0, 0)] * (audio.ndim - 1) + [(0, short)])
    # Windows do not overlap: half of the power is enough for statistics.
    # NumPy's transform of float32 takes two to six times as long as SciPy's.
    return scipy.fft.rfft(audio.reshape(*audio.shape[:-1], -1, size) * _window(size), FFT_SAMPLES)


@functools.cache
def _window(samples: int) -> np.ndarray:
    """Return a Hann window of mean power 1."""
    window = np.hanning(samples + 2)[1:-1]
    return (window / np.sqrt(np.square(window).mean())).astype(np.float32)


def _sum_by_level(products: np.ndarray, at_level: np.ndarray) -> np.ndarray:
    """Sum ``(batch, [directions,] frames, windows, bands)`` to ``(batch, [directions,] frames, cells)``."""
    if products.ndim > at_level.ndim:
        at_level = at_level[:, None]
    by_level = products.swapaxes(-1, -2) @ at_level
    return by_level.reshape(*by_level.shape[:-2], -1).astype(np.float64)
