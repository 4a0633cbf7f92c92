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

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy

from dfx.audio.levels import db_to_amplitude
from dfx.render.automation import Automation, Interpolation
from dfx.render.prediction import Frames, Predictor

_LONGEST_BLOCK, _SHORTEST_BLOCK = 1024, 16
_LARGEST_STEP = 1 / 1000
"""The largest step of a parameter in [0, 1] between blocks that are not the shortest."""

# The smoothing of the paper's code: cutoffs relative to the Nyquist frequencies of frames and of the model's audio.
_FRAME_CUTOFF, _AUDIO_CUTOFF = 0.5, 0.001
_PADDING = 15  # samples of odd extension at both ends, as scipy.signal.filtfilt has by default for the 4th order
_MARGIN = 32_000
"""Samples at the model's rate, 16 periods of the audio's cutoff, after which its filter has decayed to 1e-16."""
_BLOCKS_PER_PIECE = 1024
"""Blocks that are filtered at once, whatever the chunk, so that rounding does not depend on it."""
_BLOCKS_PER_POINT = 4
"""Every fourth block is a point of the automation: 86 a second at 22.05 kHz, for curves of up to 11 Hz."""


@dataclass(eq=False)
class Curve:
    """Parameters and gains over the samples of a recording, on straight lines between the points of frames.

    Args:
        batches: all frames, in order.
        count: of the frames.
        model: whose frames these are.
        sample_rate: of the recording, in Hz.
        samples: of the output, before the latency is cut off.
        causal: a frame's point is its end instead of its centre.
    """

    interpolation: ClassVar[Interpolation] = "linear"
    batches: Iterator[Frames]
    count: int
    model: Predictor
    sample_rate: int
    samples: int
    causal: bool

    def __post_init__(self) -> None:
        self.space = self.model.chain.space
        self._step = self.model.window.frame_samples * self.sample_rate / self.model.chain.sample_rate
        self._offset = 1.0 if self.causal else 0.5
        self._loaded = 0
        self._parameters = np.zeros((self.count, len(self.space)))
        self._gains_db = np.zeros(self.count)

    @property
    def grid(self) -> float:
        """The samples of a cell."""
        # Hosts render no block faster than the first: where the parameters still rest, it is the longest.
        rest = max(_SHORTEST_BLOCK, int(self._offset * self._step))
        return min(_LONGEST_BLOCK, 2 ** int(math.log2(rest)))

    def edges(self, cells: Sequence[int]) -> np.ndarray:
        """Return the samples at which cells of the grid begin."""
        return np.minimum(np.ceil(np.array(cells) * self.grid).astype(int), self.samples)

    def load(self, stop: float) -> None:
        """Read frames up to the sample ``stop``."""
        while self._loaded < self.count and self._loaded - 1 < self._places(stop):
            batch = next(self.batches)
            frames = slice(self._loaded, self._loaded + len(batch.gains_db))
            self._parameters[frames], self._gains_db[frames] = batch
            self._loaded = frames.stop

    def gains(self, start: int, stop: int) -> np.ndarray:
        """Return the treatment's gain as a factor, float32: one a sample, or a single one where it is constant."""
        is_constant = np.ptp(self._gains_db[: self._loaded]) == 0
        samples = np.array([start]) if is_constant else np.arange(start, stop)
        return db_to_amplitude(_interpolate(self._gains_db, self._places(samples))).astype(np.float32)

    def blocks(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Divide cells of the grid into blocks.

        Args:
            first, last: the cells, ``last`` excluded; :meth:`load` has read their frames and one cell more.

        Returns:
            The edges of the blocks in samples, ``(blocks + 1,)``, and their parameters in [0, 1], ``(blocks, P)``.
        """
        starts, stops = self.edges(range(first, last)), self.edges(range(first + 1, last + 1))
        sizes = self._block_sizes(starts)
        counts = -(-(stops - starts) // sizes)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        edges = np.append(np.repeat(starts, counts) + within * np.repeat(sizes, counts), stops[-1])
        at = edges[:-1] if self.causal else (edges[:-1] + edges[1:]) / 2
        return edges, _interpolate(self._parameters, self._places(at))

    def automation(self) -> Automation:
        """Return all points in the recording's time; held parameters have theirs where a frame begins."""
        offset = 0 if self.interpolation == "hold" else self._offset
        times = (np.arange(self.count) + offset) * self._step / self.sample_rate
        return Automation(self.space, times, self._parameters, self._gains_db, self.interpolation)

    def _places(self, samples: Any) -> Any:
        """Convert samples to fractional indices of frames."""
        return samples / self._step - self._offset

    def _block_sizes(self, starts: np.ndarray) -> np.ndarray:
        """The lengths of the blocks in cells: halved as often as parameters move too far in one."""
        sizes = np.full(len(starts), int(self.grid))
        first, last = np.floor(self._places(starts)), np.ceil(self._places(starts + sizes))
        first, last = (np.clip(frames, 0, self.count - 1).astype(int) for frames in (first, last))
        # Of the parameter that moves most from each frame of these cells to the next, per sample.
        rows = self._parameters[first[0] : last[-1] + 1]
        slopes = np.append(np.abs(np.diff(rows, axis=0)).max(axis=1, initial=0.0), 0.0) / self._step
        spans = np.stack([first, last], axis=1).ravel() - first[0]
        slope = np.where(last > first, np.maximum.reduceat(slopes, spans)[::2], 0.0)
        # Whatever the parameters of later frames, the first block is the longest.
        slope[starts == 0] = 0.0
        while (halved := (sizes > _SHORTEST_BLOCK) & (slope * sizes > _LARGEST_STEP)).any():
            sizes[halved] //= 2
        return sizes


class HeldCurve(Curve):
    """Parameters that are constant over each frame, which is one block."""

    interpolation = "hold"

    @property
    def grid(self) -> float:
        """The samples of a frame."""
        return self._step

    def blocks(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        frames = np.minimum(np.arange(first, last), self.count - 1)
        return self.edges(range(first, last + 1)), self._parameters[frames]


class PublishedCurve(Curve):
    """Parameters that are smoothed as in the code of the paper (see the module's docstring)."""

    interpolation = "published"
    grid = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self._points: dict[int, np.ndarray] = {}
        self._piece = functools.lru_cache(maxsize=2)(self._filter_piece)

    def load(self, stop: float) -> None:
        """Read all frames: a filter without phase depends on later ones."""
        if not self._loaded:
            super().load(math.inf)
            if self.count > _PADDING:
                low_pass = scipy.signal.butter(4, _FRAME_CUTOFF, output="sos")
                self._parameters = scipy.signal.sosfiltfilt(low_pass, self._parameters, axis=0, padlen=_PADDING)

    def blocks(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        numbers = range(first // _BLOCKS_PER_PIECE, (last - 1) // _BLOCKS_PER_PIECE + 1)
        skipped = first - numbers[0] * _BLOCKS_PER_PIECE
        parameters = np.concatenate([self._piece(number) for number in numbers])[skipped : skipped + last - first]
        self._points.update({i: p for i, p in enumerate(parameters, first) if i % _BLOCKS_PER_POINT == 0})
        return self.edges(range(first, last + 1)), parameters

    def automation(self) -> Automation:
        """Return the smoothed parameters, at every fourth block."""
        times = np.array(list(self._points)) * self.grid / self.sample_rate
        gains_db = np.full(len(times), self._gains_db[0])
        return Automation(self.space, times, np.array(list(self._points.values())), gains_db, self.interpolation)

    def _filter_piece(self, number: int) -> np.ndarray:
        """The parameters of some consecutive blocks, ``(blocks, P)``."""
        model_rate = self.model.chain.sample_rate
        blocks = np.arange(number * _BLOCKS_PER_PIECE, (number + 1) * _BLOCKS_PER_PIECE)
        places = blocks[blocks * self.grid < self.samples] * self.grid * model_rate / self.sample_rate
        length = math.ceil(self.samples * model_rate / self.sample_rate)
        first, last = max(0, int(places[0]) - _MARGIN), min(length, int(places[-1]) + 2 + _MARGIN)
        held = self._parameters[np.arange(first, last) // self.model.window.frame_samples]
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
