"""The live instances of every example, and who renders what in which worker."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dfx.blackbox.workers import Workers, cores
from dfx.effects import ChainSpec
from dfx.errors import UserError


@dataclass
class RenderingOptions:
    """Who renders.

    Args:
        workers: threads, that of the caller included, or processes; by default as many as there are cores.
        isolate: render in processes of their own, for plugins that crash or hang: the run then ends with
            an error that names the plugin and its values. What is rendered is the same.
        timeout_seconds: how long an effect may take over one frame, or to be built, before it counts as
            hung; only with ``isolate``, since nothing can stop a thread.

    Raises:
        UserError: for an option out of its range.
    """

    workers: int | None = None
    isolate: bool = False
    timeout_seconds: float = 10.0

    def __post_init__(self) -> None:
        if not self.timeout_seconds > 0:
            raise UserError(f"timeout_seconds is {self.timeout_seconds:g}; it must be above 0")


def frames_of(*arrays: np.ndarray, frames: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Arrays ``(..., frames * samples)`` frame by frame: ``(..., samples)`` each, as views."""
    samples = arrays[0].shape[-1] // frames
    for frame in range(frames):
        yield tuple(array[..., frame * samples : (frame + 1) * samples] for array in arrays)


class Lane:
    """The live chains of one example, one for each rendering of a step. It is made on the main thread.

    Args:
        watch: is told which rendering, and which effect of it, is about to work.
    """

    def __init__(self, spec: ChainSpec, renderings: int, watch: Callable[[int, slice], None] | None = None) -> None:
        self._chains = [spec.build(watch and partial(watch, rendering)) for rendering in range(renderings)]

    def restart(self) -> None:
        """Forgets everything heard; on the main thread as well, since it may load a plugin anew."""
        for chain in self._chains:
            chain.restart()

    def render(self, audio: np.ndarray, values: np.ndarray, output: np.ndarray) -> None:
        """Renders the next frame, ``(channels, samples)``, at every row of ``values`` into ``output``."""
        audio = np.ascontiguousarray(audio)
        for rendering, chain in enumerate(self._chains):
            output[rendering] = chain.render(audio, values[rendering])


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
        forget: begin anew where a lane restarts; otherwise its chains go on in the state that they are in.
    """

    def __init__(
        self,
        spec: ChainSpec,
        renderings: int,
        options: RenderingOptions,
        keep_history: bool = False,
        forget: bool = True,
    ) -> None:
        self._spec = spec
        self._renderings = renderings
        self.workers = Workers(options.workers or cores())
        self._keep_history = keep_history
        self._forget = forget
        self._history: list[list[_Heard]] = []
        self._lanes: list[Lane] = []
        self._output = np.empty(0, dtype=np.float32)

    def render(self, audio: np.ndarray, values: np.ndarray, restart: np.ndarray) -> np.ndarray:
        """Renders the next frames of every lane, at every point.

        Args:
            audio: float32 ``(batch, channels, frames * samples)``.
            values: float64 ``(batch, renderings, frames, P)``, in the parameters' units.
            restart: bool ``(batch,)``, the lanes that begin a new excerpt with the first of these frames.

        Returns:
            float32 ``(batch, renderings, channels, frames * samples)``.

        Raises:
            RenderError: as soon as one effect fails; what the other lanes still have to do is dropped.
        """
        batch = len(audio)
        self._history += [[] for _ in range(batch - len(self._history))]
        for lane in np.flatnonzero(restart).tolist():
            self._history[lane] = []
        if self._keep_history:
            for lane in range(batch):
                self._history[lane].append((audio, values, lane))
        return self._render(range(batch), audio, values, restart & self._forget)

    def end_excerpts(self) -> None:
        """Forgets what the lanes heard; every lane must restart with its next frame."""
        self._history = [[] for _ in self._history]

    def state_dict(self) -> dict[str, Any]:
        """What every lane heard since it restarted, and at which values, as tensors."""
        # Here, and not above: a process that only renders does without torch, which takes seconds.
        import torch

        return {
            "history": [
                [
                    (torch.from_numpy(audio[row].copy()), torch.from_numpy(values[row].copy()))
                    for audio, values, row in heard
                ]
                for heard in self._history
            ]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Brings every lane to where it was, by rendering again what it had heard."""
        self.close()
        self._history = [
            [(audio.numpy()[None], values.numpy()[None], 0) for audio, values in heard] for heard in state["history"]
        ]
        for lane, heard in enumerate(self._history):
            for step, (audio, values, _) in enumerate(heard):
                self._render([lane], audio, values, np.array([step == 0]))

    def close(self) -> None:
        """Lets go of all that is live; what is rendered next is rendered by new instances."""
        self._lanes = []
        self._output = np.empty(0, dtype=np.float32)
        self.workers.close()

    def _render(self, lanes: Sequence[int], audio: np.ndarray, values: np.ndarray, restart: np.ndarray) -> np.ndarray:
        """As :meth:`render`, for the lanes that are named: one for each row of the arrays."""
        # Here, and not in a worker: some hosts load plugins on the main thread only.
        while len(self._lanes) < len(self._history):
            self._lanes.append(Lane(self._spec, self._renderings))
        for row in np.flatnonzero(restart):
            self._lanes[lanes[row]].restart()
        output = self._room((len(lanes), self._renderings, *audio.shape[1:]))
        failed = threading.Event()

        def work(rows: range) -> None:
            try:
                for row in rows:
                    if failed.is_set():
                        return
                    lane, points = self._lanes[lanes[row]], values[row]
                    parts = frames_of(audio[row], output[row], frames=values.shape[2])
                    for frame, (heard, rendered) in enumerate(parts):
                        lane.render(heard, points[:, frame], rendered)
            except BaseException:
                failed.set()
                raise

        self.workers.share(work, len(lanes))
        return output

    def _room(self, shape: tuple[int, ...]) -> np.ndarray:
        """Memory for what is rendered: that of the last step, where nothing refers to it any more.

        The system clears new memory as it is used; that took a tenth of the time of long excerpts.
        """
        # Two references are the attribute's and the call's own; any view, and any tensor, is one more.
        if self._output.shape != shape or sys.getrefcount(self._output) > 2:
            self._output = np.empty(shape, dtype=np.float32)
        return self._output


_Heard = tuple[np.ndarray, np.ndarray, int]
"""The audio and values of a step, and which of their rows a lane heard."""
