"""Lanes in threads or, where these are faster, in processes."""

import dataclasses
import multiprocessing
import time
from collections.abc import Sequence
from typing import Literal

import numpy as np

from dfx.blackbox.isolation import IsolatedLanes
from dfx.blackbox.lanes import LONGEST_TIMEOUT_SECONDS, Lanes, RenderingOptions
from dfx.effects import ChainSpec
from dfx.errors import UserError

_TRIAL_SECONDS = 5.0
"""Time for which threads, and then processes, render before they are compared."""


def make_lanes(spec: ChainSpec, renderings: int, options: RenderingOptions, **others: bool) -> Lanes:
    """Return lanes that follow ``options.isolate``; see :class:`Lanes` for the arguments."""
    return (IsolatedLanes if options.isolate else AdaptiveLanes)(spec, renderings, options, **others)


@dataclasses.dataclass
class _Total:
    """Time of all steps that were rendered one way, and the number of their rows."""

    seconds: float = 0.0
    rows: int = 0


_Way = Literal["threads", "processes"]


class AdaptiveLanes(Lanes):
    """Lanes that move to processes, and back to threads, whichever are faster; the audio is the same to the bit.

    Effects hold the interpreter's lock for a part of each call, so threads cannot use many cores for short frames.
    Processes can, but they need messages and copies. Which are faster depends on effects, frames, batch and machine, so
    threads render first, then processes, each for some seconds, and then those that took less time. Lanes move only
    when all of them restart, so no state is lost. Chains with effects of the host ``python`` remain in threads, since
    these may use objects of this process.
    """

    def __init__(self, spec: ChainSpec, renderings: int, options: RenderingOptions, **others: bool) -> None:
        super().__init__(spec, renderings, options, **others)
        # As in threads, nothing ends an effect that is slow.
        self._process_options = dataclasses.replace(options, isolate=True, timeout_seconds=LONGEST_TIMEOUT_SECONDS)
        self._processes: IsolatedLanes | None = None
        self._are_live = False
        self._may_move = all(recipe.host != "python" for recipe in spec.recipes)
        self._totals: dict[_Way, _Total] = {"threads": _Total(), "processes": _Total()}

    def close(self) -> None:
        super().close()
        self._are_live = False
        if self._processes is not None:
            self._processes.close()
            self._processes = None

    def _render(self, lanes: Sequence[int], audio: np.ndarray, values: np.ndarray, restart: np.ndarray) -> np.ndarray:
        if restart.all() and len(lanes) == len(self._history) and (way := self._choose()) != self._way:
            self.close()
            if way == "processes":
                self._processes = IsolatedLanes(self._spec, self._renderings, self._process_options)
        start = time.perf_counter()
        if self._processes is None:
            output = super()._render(lanes, audio, values, restart)
        else:
            try:
                output = self._processes.render(audio, values, restart)
            except UserError:
                if self._are_live:
                    raise
                # There is too little shared memory, say. The first step of all lanes can be rendered again.
                self.close()
                self._may_move = False
                output = super()._render(lanes, audio, values, restart)
        # The first step builds the effects.
        if self._are_live:
            self._totals[self._way].seconds += time.perf_counter() - start
            self._totals[self._way].rows += len(lanes)
        self._are_live = True
        return output

    @property
    def _way(self) -> _Way:
        return "threads" if self._processes is None else "processes"

    def _choose(self) -> _Way:
        """Return the way in which lanes should render from now on."""
        if not self._may_move or self.workers.count == 1 or multiprocessing.current_process().daemon:
            # A daemonic process cannot start others.
            return "threads"
        for way, total in self._totals.items():
            if total.seconds < _TRIAL_SECONDS:
                return way
        return min(self._totals, key=lambda way: self._totals[way].seconds / self._totals[way].rows)
