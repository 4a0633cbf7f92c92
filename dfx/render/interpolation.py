"""Parameters between frames: the blocks that a chain renders, and the parameters of each block.

A chain takes new values at the beginning of a block. Every interpolation divides the output along a grid of its own,
so that the blocks do not depend on how much is rendered at once:

- ``hold``: one block a frame, at the parameters of that frame, as in training.
- ``linear``: straight lines in [0, 1] between the centres of frames, or between their ends without look-ahead; blocks
  of 1024 samples where the parameters rest, and down to 16 where they move.
- ``published``: as in the code of the paper. Parameters are low-pass filtered at half of the frames' Nyquist frequency,
  held, and low-pass filtered at 0.001 of the audio's, both by a Butterworth of 4th order without phase; blocks of 64
  samples. That code does not compensate the latency of the chain, and neither does this interpolation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np
import scipy.signal

from dfx.audio.levels import db_to_amplitude
from dfx.render.automation import Automation, Interpolation
from dfx.render.prediction import Frames, Predictor

_LONGEST_BLOCK, _SHORTEST_BLOCK = 1024, 16
_LARGEST_STEP = 1 / 1000
"""The largest step of a parameter in [0, 1] between blocks that are not the shortest."""

# The smoothing of the paper's code: cutoffs relative to the Nyquist frequencies of frames and of the model's audio.
_FRAME_CUTOFF, _AUDIO_CUTOFF = 0.5, 0.001
_PADDING = 15  # samples of odd extension at both ends, as scipy.signal.filtfilt has by default for the 4th order
_PUBLISHED_BLOCK = 64
_MARGIN = 32_000
"""Samples at the model's rate, 16 periods of the audio's cutoff, after which its filter has decayed to 1e-16."""
_BLOCKS_PER_PIECE = 1024
"""Blocks that are filtered at once, whatever the chunk, so that rounding does not depend on it."""
_BLOCKS_PER_POINT = 4
"""Every fourth block is a point of the automation: 86 a second at 22.05 kHz, for curves of up to 11 Hz."""


class Curve:
    """Parameters and gains over the samples of a recording, on straight lines between the points of frames.

    Only the frames around the requested samples are kept, besides the automation.

    Args:
        batches: all frames, in order.
        model: whose frames these are.
        sample_rate: of the recording, in Hz.
        samples: of the output, before the latency is cut off.
        causal: a frame's point is its end instead of its centre.
    """

    interpolation: Interpolation = "linear"

    def __init__(
        self, batches: Iterator[Frames], model: Predictor, sample_rate: int, samples: int, causal: bool
    ) -> None:
        self.space = model.chain.space
        self.samples = samples
        self._batches = batches
        self._frame_samples, self._model_rate = model.window.frame_samples, model.chain.sample_rate
        self._sample_rate = sample_rate
        self._step = self._frame_samples * sample_rate / self._model_rate
        self._causal = causal
        self._offset = 1.0 if causal else 0.5
        self._all: list[Frames] = []
        self._parameters = np.zeros((0, len(self.space)))
        self._gains_db = np.zeros(0)
        self._first = 0
        self._ended = False
        self.grid = self._cell_samples()

    def edge(self, index: int) -> int:
        """The sample at which a cell of the grid begins."""
        return min(math.ceil(index * self.grid), self.samples)

    def load(self, start: int, stop: float) -> None:
        """Read frames up to the sample ``stop``, and drop those before ``start``."""
        needed = stop / self._step - self._offset
        while not self._ended and self._first + len(self._gains_db) - 1 < needed:
            batch = next(self._batches, None)
            if batch is None:
                self._ended = True
                break
            self._all.append(batch)
            unneeded = min(max(0, int(start / self._step - self._offset) - self._first), len(self._gains_db))
            self._parameters = np.concatenate([self._parameters[unneeded:], batch.parameters])
            self._gains_db = np.concatenate([self._gains_db[unneeded:], batch.gains_db])
            self._first += unneeded

    def gains(self, start: int, stop: int) -> np.ndarray:
        """The treatment's gain as a factor, float32: one for all samples where it is constant, or one a sample."""
        samples = np.array([start]) if np.ptp(self._gains_db) == 0 else np.arange(start, stop)
        return db_to_amplitude(self._between(self._gains_db, samples)).astype(np.float32)

    def blocks(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Divide cells of the grid into blocks.

        Args:
            first, last: the cells, ``last`` excluded; :meth:`load` has read their frames and one cell more.

        Returns:
            The edges of the blocks in samples, ``(blocks + 1,)``, and their parameters in [0, 1], ``(blocks, P)``.
        """
        edges = np.concatenate([*(self._split(index) for index in range(first, last)), [self.edge(last)]])
        at = edges[:-1] if self._causal else (edges[:-1] + edges[1:]) / 2
        return edges, self._between(self._parameters, at)

    def automation(self) -> Automation:
        """All points that were read, in the recording's time."""
        frames, gains_db = (np.concatenate(column) for column in zip(*self._all))
        times = (np.arange(len(frames)) + self._offset) * self._step / self._sample_rate
        return Automation(self.space, times, frames, gains_db, self.interpolation)

    def _edges(self, first: int, last: int) -> np.ndarray:
        return np.array([self.edge(index) for index in range(first, last + 1)])

    def _cell_samples(self) -> float:
        # Hosts render no block faster than the first: where the parameters still rest, it is the longest.
        rest = max(_SHORTEST_BLOCK, int(self._offset * self._step))
        return min(_LONGEST_BLOCK, 2 ** int(math.log2(rest)))

    def _between(self, points: np.ndarray, samples: np.ndarray) -> np.ndarray:
        return _interpolate(points, samples / self._step - self._offset - self._first)

    def _split(self, index: int) -> np.ndarray:
        """The starts of a cell's blocks: halved as often as parameters move too far in one."""
        start, size = self.edge(index), int(self.grid)
        slope = self._slope(start, start + size) if start else 0.0
        while size > _SHORTEST_BLOCK and slope * size > _LARGEST_STEP:
            size //= 2
        return np.arange(start, self.edge(index + 1), size)

    def _slope(self, start: int, stop: int) -> float:
        """The largest move of any parameter, per sample."""
        places = np.array([start, stop]) / self._step - self._offset - self._first
        first, last = np.clip([math.floor(places[0]), math.ceil(places[1])], 0, len(self._parameters) - 1)
        moves = np.abs(np.diff(self._parameters[first : last + 1], axis=0))
        return float(moves.max()) / self._step if moves.size else 0.0


class HeldCurve(Curve):
    """Parameters that are constant over each frame, which is one block."""

    interpolation: Interpolation = "hold"

    def blocks(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        frames = np.arange(first, last) - self._first
        return self._edges(first, last), self._parameters[np.minimum(frames, len(self._parameters) - 1)]

    def automation(self) -> Automation:
        """All frames, at their beginnings."""
        points = super().automation()
        points.times = np.arange(len(points.times)) * self._step / self._sample_rate
        return points

    def _cell_samples(self) -> float:
        return self._step


class PublishedCurve(Curve):
    """Parameters that are smoothed as in the code of the paper (see the module's docstring)."""

    interpolation: Interpolation = "published"

    def __init__(
        self, batches: Iterator[Frames], model: Predictor, sample_rate: int, samples: int, causal: bool
    ) -> None:
        super().__init__(batches, model, sample_rate, samples, causal)
        self._points: dict[int, np.ndarray] = {}
        self._piece = functools.lru_cache(maxsize=2)(self._filter_piece)

    def load(self, start: int, stop: float) -> None:
        """Read all frames: a filter without phase depends on later ones."""
        if not self._ended:
            super().load(0, math.inf)
            if len(self._parameters) > _PADDING:
                low_pass = scipy.signal.butter(4, _FRAME_CUTOFF, output="sos")
                self._parameters = scipy.signal.sosfiltfilt(low_pass, self._parameters, axis=0, padlen=_PADDING)

    def blocks(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        numbers = range(first // _BLOCKS_PER_PIECE, (last - 1) // _BLOCKS_PER_PIECE + 1)
        skipped = first - numbers[0] * _BLOCKS_PER_PIECE
        parameters = np.concatenate([self._piece(number) for number in numbers])[skipped : skipped + last - first]
        self._points.update({i: p for i, p in enumerate(parameters, first) if i % _BLOCKS_PER_POINT == 0})
        return self._edges(first, last), parameters

    def automation(self) -> Automation:
        """The smoothed parameters, at every fourth block."""
        times = np.array(list(self._points)) * self.grid / self._sample_rate
        gains_db = np.full(len(times), self._gains_db[0])
        return Automation(self.space, times, np.array(list(self._points.values())), gains_db, self.interpolation)

    def _cell_samples(self) -> float:
        return _PUBLISHED_BLOCK

    def _filter_piece(self, number: int) -> np.ndarray:
        """The parameters of some consecutive blocks, ``(blocks, P)``."""
        blocks = np.arange(number * _BLOCKS_PER_PIECE, (number + 1) * _BLOCKS_PER_PIECE)
        places = blocks[blocks * self.grid < self.samples] * self.grid * self._model_rate / self._sample_rate
        length = math.ceil(self.samples * self._model_rate / self._sample_rate)
        first, last = max(0, int(places[0]) - _MARGIN), min(length, int(places[-1]) + 2 + _MARGIN)
        held = self._parameters[np.arange(first, last) // self._frame_samples]
        low_pass = scipy.signal.butter(4, _AUDIO_CUTOFF, output="sos")
        smooth = scipy.signal.sosfiltfilt(low_pass, held, axis=0, padlen=min(_PADDING, len(held) - 1))
        return np.clip(_interpolate(smooth, places - first), 0, 1)


def _interpolate(points: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Interpolate rows of ``points`` linearly at fractional indices; those outside get the nearest row."""
    places = np.clip(places, 0, len(points) - 1)
    lower = np.minimum(places.astype(int), max(0, len(points) - 2))
    upper = np.minimum(lower + 1, len(points) - 1)
    fraction = (places - lower).reshape(-1, *[1] * (points.ndim - 1))
    return points[lower] + fraction * (points[upper] - points[lower])


CURVES: dict[Interpolation, type[Curve]] = {kind.interpolation: kind for kind in (HeldCurve, Curve, PublishedCurve)}
