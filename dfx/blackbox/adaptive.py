"""Lanes in threads or, where these are faster, in processes."""

import dataclasses
import multiprocessing
import time
from collections.abc import Sequence

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
        # By whether processes render.
        self._seconds = {False: 0.0, True: 0.0}
        self._rows = {False: 0, True: 0}

    def close(self) -> None:
        super().close()
        self._are_live = False
        if self._processes is not None:
            self._processes.close()
            self._processes = None

    def _render(self, lanes: Sequence[int], audio: np.ndarray, values: np.ndarray, restart: np.ndarray) -> np.ndarray:
        if restart.all() and len(lanes) == len(self._history) and (processes := self._choose()) != self._in_processes:
            self.close()
            if processes:
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
            self._seconds[self._in_processes] += time.perf_counter() - start
            self._rows[self._in_processes] += len(lanes)
        self._are_live = True
        return output

    @property
    def _in_processes(self) -> bool:
        return self._processes is not None

    def _choose(self) -> bool:
        """Return whether processes should render from now on."""
        if not self._may_move or self.workers.count == 1 or multiprocessing.current_process().daemon:
            # A daemonic process cannot start others.
            return False
        for processes in (False, True):
            if self._seconds[processes] < _TRIAL_SECONDS:
                return processes
        return min((False, True), key=lambda processes: self._seconds[processes] / self._rows[processes])
