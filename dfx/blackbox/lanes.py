"""Lanes: the live chains of every example of a batch, and the threads that render them."""

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dfx.blackbox.workers import Workers
from dfx.effects import ChainSpec
from dfx.errors import check_numbers

LONGEST_TIMEOUT_SECONDS = 86400.0

_Step = tuple[np.ndarray, np.ndarray, int]
"""Audio and values of a batch, and the row of a lane in them."""


@dataclass
class RenderingOptions:
    """Options of the rendering; the audio does not depend on them.

    Args:
        workers: number of threads, including the calling one, or of processes, whichever are faster, see
            :class:`~dfx.blackbox.adaptive.AdaptiveLanes`; by default the number of cores, which the ranks of a
            machine share.
        isolate: render in processes from the start, for plugins that crash or hang: the run then ends with an error
            that names the plugin and its values.
        timeout_seconds: longest time to build an effect, or to render one frame with it; only with ``isolate``,
            since a thread cannot be stopped.

    Raises:
        UserError: for an option out of its range.
    """

    workers: int | None = None
    isolate: bool = False
    timeout_seconds: float = 10.0

    def __post_init__(self) -> None:
        check_numbers(vars(self), workers="1..1024", timeout_seconds=f"(0, {LONGEST_TIMEOUT_SECONDS:g}]")


def by_frame(audio: np.ndarray, frames: int) -> np.ndarray:
    """Return a view ``(..., frames, samples)`` of audio ``(..., frames * samples)``."""
    return audio.reshape(*audio.shape[:-1], frames, -1)


class Lane:
    """The live chains of one example, one per rendering of a step. Create and restart it on the main thread.

    Args:
        spec: of the chains.
        renderings: number of chains.
        before_effect: called with the number of the rendering and the slice of an effect's recipes, before the effect
            is built, restarts or renders.
    """

    def __init__(
        self, spec: ChainSpec, renderings: int, before_effect: Callable[[int, slice], None] | None = None
    ) -> None:
        self._chains = [spec.build(before_effect and partial(before_effect, number)) for number in range(renderings)]

    def restart(self) -> None:
        """Reset the state of all chains; this may load plugins again."""
        for chain in self._chains:
            chain.restart()

    def render(self, audio: np.ndarray, values: np.ndarray, output: np.ndarray) -> None:
        """Render the next frame with every chain.

        Args:
            audio: float32 ``(channels, samples)``.
            values: ``(renderings, P)``.
            output: float32 ``(renderings, channels, samples)``, to write to.
        """
        audio = np.ascontiguousarray(audio)
        for chain, its_values, its_output in zip(self._chains, values, output):
            its_output[:] = chain.render(audio, its_values)


class Lanes:
    """Renders batches frame by frame, each example in its own lane.

    A lane has one chain for the nominal rendering and one for each perturbed rendering. Each chain renders every
    frame of its lane once, in order, until the lane restarts. Workers are threads, since hosts release the interpreter
    lock while they render, and take contiguous blocks of lanes.

    Args:
        spec: of every chain.
        renderings: renderings per example and step.
        options: of the rendering.
        keep_history: keep audio and values of every lane since its restart. No host can save the state of its effects;
            a checkpoint restores it by rendering the history again.
        restart_chains: restart the chains of a lane that restarts; otherwise they continue in their present state.
    """

    def __init__(
        self,
        spec: ChainSpec,
        renderings: int,
        options: RenderingOptions,
        keep_history: bool = False,
        restart_chains: bool = True,
    ) -> None:
        self.workers = Workers(options.workers)
        self._spec, self._renderings = spec, renderings
        self._keep_history, self._restart_chains = keep_history, restart_chains
        self._history: list[list[_Step]] = []
        self._lanes: list[Lane] = []
        self._output = np.empty(0, dtype=np.float32)

    def render(self, audio: np.ndarray, values: np.ndarray, restart: np.ndarray) -> np.ndarray:
        """Render the next frames of every lane with all of its chains.

        Args:
            audio: float32 ``(batch, channels, frames * samples)``.
            values: float64 ``(batch, renderings, frames, P)``, in the parameters' units.
            restart: bool ``(batch,)``, the lanes that begin a new excerpt with the first of these frames.

        Returns:
            float32 ``(batch, renderings, channels, frames * samples)``.

        Raises:
            RenderError: as soon as an effect fails; the remaining work of the step is dropped.
        """
        batch = len(audio)
        self._history += [[] for _ in range(batch - len(self._history))]
        for lane in np.flatnonzero(restart).tolist():
            self._history[lane] = []
        if self._keep_history:
            for lane in range(batch):
                self._history[lane].append((audio, values, lane))
        return self._render(range(batch), audio, values, restart & self._restart_chains)

    def end_excerpts(self) -> None:
        """Discard the history; every lane must restart with its next frame."""
        self._history = [[] for _ in self._history]

    def state_dict(self) -> dict[str, Any]:
        """Return audio and values of every lane since its restart, as tensors."""
        # Imported here: importing torch takes seconds, and worker processes do not need it.
        from torch import tensor

        history = self._history
        return {"history": [[(tensor(audio[row]), tensor(values[row])) for audio, values, row in s] for s in history]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of every lane by rendering its history again."""
        self.close()
        history = state["history"]
        self._history = [[(audio.numpy()[None], values.numpy()[None], 0) for audio, values in s] for s in history]
        for lane, steps in enumerate(self._history):
            for number, (audio, values, _) in enumerate(steps):
                self._render([lane], audio, values, np.array([number == 0]))

    def close(self) -> None:
        """Release all chains and threads; the next rendering creates new ones."""
        self._lanes = []
        self._output = np.empty(0, dtype=np.float32)
        self.workers.close()

    def _render(self, lanes: Sequence[int], audio: np.ndarray, values: np.ndarray, restart: np.ndarray) -> np.ndarray:
        """Render as :meth:`render`, for the given lanes: one for each row of the arrays."""
        # Not in a worker: some hosts load plugins on the main thread only.
        while len(self._lanes) < len(self._history):
            self._lanes.append(Lane(self._spec, self._renderings))
        for row in np.flatnonzero(restart).tolist():
            self._lanes[lanes[row]].restart()
        output = self._output_buffer((len(lanes), self._renderings, *audio.shape[1:]))
        frames = values.shape[2]
        # By row and frame; a loop over an array takes half of the time of as many indices.
        given, wanted = by_frame(audio, frames).swapaxes(1, 2), values.swapaxes(1, 2)
        rendered = np.moveaxis(by_frame(output, frames), 3, 1)
        failed = threading.Event()

        def work(rows: range) -> None:
            block = slice(rows.start, rows.stop)
            try:
                for number, *of_row in zip(lanes[block], given[block], wanted[block], rendered[block]):
                    if failed.is_set():
                        return
                    lane = self._lanes[number]
                    for of_frame in zip(*of_row):
                        lane.render(*of_frame)
            except BaseException:
                failed.set()
                raise

        self.workers.run(work, len(lanes))
        return output

    def _output_buffer(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return the buffer of the last step if nothing refers to it any more, or a new one.

        The system clears new memory on its first use, which took a tenth of the time of long excerpts.
        """
        # Two references are the attribute's and the call's; any view or tensor of the buffer is another.
        if self._output.shape != shape or sys.getrefcount(self._output) > 2:
            self._output = np.empty(shape, dtype=np.float32)
        return self._output
