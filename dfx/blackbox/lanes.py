"""The live instances of every example, and who renders what in which worker."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import torch

from dfx.effects import Chain, ChainSpec


@dataclass
class RenderingOptions:
    """Who renders.

    Args:
        workers: threads or processes; by default as many as there are cores.
    """

    workers: Optional[int] = None


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Lanes:
    """A place for every example of a batch, with live chains that hear it frame by frame.

    Every lane has one chain for each rendering of a step: the nominal one, and one for each perturbed
    one. Each hears every frame of its lane once, in order, until the lane restarts. Workers are
    threads (hosts release the interpreter while they render) and take contiguous blocks of lanes.

    Args:
        spec: what every chain is built from.
        renderings: how many there are in a step.
        options: who renders.
        keep_history: remember what the lanes heard since they restarted, so that their state, which
            no host can save, can be built again from a checkpoint by rendering it once more.
    """

    def __init__(
        self, spec: ChainSpec, renderings: int, options: RenderingOptions, keep_history: bool = False
    ) -> None:
        self._spec = spec
        self._renderings = renderings
        self._workers = options.workers or cores()
        self._keep_history = keep_history
        self._chains: List[List[Chain]] = []
        self._history: List[List[Tuple[np.ndarray, np.ndarray]]] = []
        self._executor: Optional[ThreadPoolExecutor] = None

    def render(self, audio: np.ndarray, values: np.ndarray, restart: np.ndarray) -> np.ndarray:
        """Renders the next frame of every lane, at every point.

        Args:
            audio: float32 ``(batch, channels, samples)``.
            values: float64 ``(batch, renderings, P)``, in the parameters' units.
            restart: bool ``(batch,)``, the lanes that begin a new excerpt with this frame.

        Returns:
            float32 ``(batch, renderings, channels, samples)``.

        Raises:
            RenderError: as soon as one effect fails; what the other lanes still have to do is dropped.
        """
        batch = len(audio)
        self._grow(batch)
        for lane in np.flatnonzero(restart):
            self._restart(lane)
        output = np.empty((batch, self._renderings, *audio.shape[1:]), dtype=np.float32)
        failed = threading.Event()

        def work(lanes: range) -> None:
            try:
                for lane in lanes:
                    if failed.is_set():
                        return
                    self._render_lane(lane, audio[lane], values[lane], output[lane])
            except BaseException:
                failed.set()
                raise

        bounds = np.linspace(0, batch, min(self._workers, batch) + 1).round().astype(int)
        blocks = [range(first, last) for first, last in zip(bounds, bounds[1:])]
        if len(blocks) == 1:
            work(blocks[0])
            return output
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._workers, thread_name_prefix="lanes")
        futures = [self._executor.submit(work, block) for block in blocks]
        wait(futures)
        for future in futures:
            future.result()
        return output

    def end_excerpts(self) -> None:
        """Forgets what the lanes heard; every lane must restart with its next frame."""
        self._history = [[] for _ in self._history]

    def state_dict(self) -> Dict[str, Any]:
        """What every lane heard since it restarted, and at which values, as tensors."""
        return {
            "history": [
                [(torch.from_numpy(audio), torch.from_numpy(values)) for audio, values in lane]
                for lane in self._history
            ]
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Brings every lane to where it was, by rendering again what it had heard."""
        history = [[(audio.numpy(), values.numpy()) for audio, values in lane] for lane in state["history"]]
        self._grow(len(history))
        for lane, heard in enumerate(history):
            self._restart(lane)
            for audio, values in heard:
                self._render_lane(lane, audio, values, np.empty((self._renderings, *audio.shape), np.float32))

    def _grow(self, lanes: int) -> None:
        # Here, and not in a worker: some hosts load plugins on the main thread only.
        while len(self._chains) < lanes:
            self._chains.append([self._spec.build() for _ in range(self._renderings)])
            self._history.append([])

    def _restart(self, lane: int) -> None:
        # On the main thread as well: a restart may load a plugin anew.
        self._history[lane] = []
        for chain in self._chains[lane]:
            chain.restart()

    def _render_lane(self, lane: int, audio: np.ndarray, values: np.ndarray, output: np.ndarray) -> None:
        if self._keep_history:
            self._history[lane].append((audio, values))
        for rendering, chain in enumerate(self._chains[lane]):
            output[rendering] = chain.render(audio, values[rendering])
