"""Lanes in processes of their own, for plugins that crash or hang.

Audio, values and output go through memory that the processes share, and everything else in small messages.
Before an effect works, its worker notes which one it is and until when it should have answered. So, when
a worker dies or is late, the effect is known, and so are its values. The workers are then stopped, and there
is nothing to repair: a worker holds live effects and nothing else, and what the lanes heard is kept here.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

from dfx.blackbox.lanes import Lane, Lanes, RenderingOptions, frames_of
from dfx.effects import ChainSpec, RenderError
from dfx.errors import UserError

START_SECONDS = 120.0
"""How long a worker process may take until it builds its first effect."""

_DEADLINE, _ROW, _FRAME, _RENDERING, _FIRST, _LAST = range(6)
"""A worker's note: when its effect is late, in time.monotonic(), and the place of its values in a step's."""

_NO_EFFECT = -1.0
"""What stands at ``_FIRST`` while no effect works."""


def make_lanes(spec: ChainSpec, renderings: int, options: RenderingOptions, **others: bool) -> Lanes:
    """Lanes in threads or, with ``options.isolate``, in processes; see :class:`Lanes` for the others."""
    kind = IsolatedLanes if options.isolate else Lanes
    return kind(spec, renderings, options, **others)


def in_process(function: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
    """What a function returns that is called in a new process.

    Raises:
        RenderError: if the process dies, or does not answer in time.
    """
    executor = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    answer = executor.submit(function, *arguments)
    try:
        return answer.result(seconds)
    except BrokenProcessPool:
        raise RenderError("the effects crashed the process in which they were probed") from None
    except FutureTimeoutError:
        for process in executor._processes.values():
            process.kill()
        raise RenderError(f"the effects were probed and did not answer within {seconds:g} s") from None
    finally:
        executor.shutdown(wait=False)


class IsolatedLanes(Lanes):
    """Lanes whose workers are processes. Of n workers, worker k owns the lanes k, k + n, k + 2n and so on.

    So every batch is shared out evenly, and a lane stays where its instances are when batches grow. The
    processes start with the first frame. They end when these lanes are closed or collected, when an effect
    fails, and when this process ends, in whatever way. What is rendered after an error is rendered by
    new instances, which have heard nothing: every lane should restart.
    """

    def __init__(self, spec: ChainSpec, renderings: int, options: RenderingOptions, **others: bool) -> None:
        super().__init__(spec, renderings, options, **others)
        self._timeout_seconds = options.timeout_seconds
        self._processes: dict[int, _Worker] = {}
        self._memory: list[_Memory] = []

    def close(self) -> None:
        _stop(self._processes, self._memory)

    def _render(self, lanes: Sequence[int], audio: np.ndarray, values: np.ndarray, restart: np.ndarray) -> np.ndarray:
        try:
            memory = self._memory_for(audio, values)
            memory.audio[:] = audio
            memory.values[:] = values
            jobs: dict[int, _Rows] = {}
            for row, lane in enumerate(lanes):
                jobs.setdefault(lane % self.workers.count, []).append((row, lane, bool(restart[row])))
            # All are started before the first is given anything to do.
            busy = {number: self._process(number) for number in jobs}
            for number, worker in busy.items():
                self._send(worker, (memory.name, memory.shape, jobs[number]))
            self._wait({worker.connection: worker for worker in busy.values()})
            return memory.output.copy()
        except BaseException:
            self.close()
            raise

    def _memory_for(self, audio: np.ndarray, values: np.ndarray) -> _Memory:
        shape = (*values.shape, *audio.shape[1:])
        if not self._memory or self._memory[0].shape != shape:
            while self._memory:
                self._memory.pop().remove()
            self._memory.append(_Memory(shape))
        return self._memory[0]

    def _process(self, number: int) -> _Worker:
        if not self._processes:
            weakref.finalize(self, _stop, self._processes, self._memory)
        if number not in self._processes:
            self._processes[number] = _Worker(self._spec, self._renderings, self._timeout_seconds)
        return self._processes[number]

    def _send(self, worker: _Worker, job: _Job) -> None:
        worker.note[_DEADLINE] = max(worker.note[_DEADLINE], time.monotonic() + self._timeout_seconds)
        try:
            worker.connection.send(job)
        except OSError:
            raise self._error(worker, worker.last_words()) from None

    def _wait(self, busy: dict[Connection, _Worker]) -> None:
        while busy:
            worker = min(busy.values(), key=lambda worker: worker.note[_DEADLINE])
            left = worker.note[_DEADLINE] - time.monotonic()
            # A deadline that was there to start by moves closer once the worker has started.
            answers = wait(list(busy), min(max(left, 0.0), self._timeout_seconds))
            if left <= 0 and not answers:
                seconds = START_SECONDS if worker.note[_FIRST] == _NO_EFFECT else self._timeout_seconds
                raise self._error(worker, f"did not answer within {seconds:g} s")
            for connection in answers:
                worker = busy.pop(connection)
                try:
                    failure = connection.recv()
                except (EOFError, OSError):
                    raise self._error(worker, worker.last_words()) from None
                if failure is not None:
                    raise failure

    def _error(self, worker: _Worker, fault: str) -> RenderError:
        row, frame, rendering, first, last = map(int, worker.note[_ROW:])
        if first == _NO_EFFECT:
            names = " + ".join(recipe.name for recipe in self._spec.recipes)
            return RenderError(f"a worker for {names} {fault} while it was at none of them")
        place = slice(first, last)
        values = self._memory[0].values[row, rendering, frame, place]
        return RenderError.at(self._spec.parameters[place], values, fault)


def _stop(processes: dict[int, _Worker], memory: list[_Memory]) -> None:
    # The processes first: none may come upon memory that is gone.
    while processes:
        processes.popitem()[1].stop()
    while memory:
        memory.pop().remove()


_Shape = tuple[int, int, int, int, int, int]
"""Rows, renderings, frames, parameters, channels, samples of all frames."""

_Rows = list[tuple[int, int, bool]]
"""The place of a frame in the memory, its lane, and whether the lane restarts."""

_Job = tuple[str, _Shape, _Rows]
"""The memory by name, its shape, and what of it a worker has to render."""


class _Memory:
    """The audio, values and output of one step, in memory that processes share.

    Args:
        name: of memory that another process has made; without it, the memory is made.
    """

    def __init__(self, shape: _Shape, name: str | None = None) -> None:
        rows, renderings, frames, parameters, channels, samples = self.shape = shape
        values, audio = 8 * rows * renderings * frames * parameters, 4 * rows * channels * samples
        self._shared = SharedMemory(name, create=name is None, size=values + (1 + renderings) * audio)
        self.name = self._shared.name
        buffer = self._shared.buf
        self.values = np.ndarray((rows, renderings, frames, parameters), np.float64, buffer)
        self.audio = np.ndarray((rows, channels, samples), np.float32, buffer, values)
        self.output = np.ndarray((rows, renderings, channels, samples), np.float32, buffer, values + audio)

    def close(self) -> None:
        """Lets go of it in this process."""
        # Memory cannot be closed while arrays lie in it.
        del self.values, self.audio, self.output
        self._shared.close()

    def remove(self) -> None:
        """Lets go of it in all processes, as soon as they have closed it."""
        self.close()
        self._shared.unlink()


class _Worker:
    """A worker process, as it is seen from outside."""

    def __init__(self, spec: ChainSpec, renderings: int, timeout_seconds: float) -> None:
        # A fork would inherit the locks of plugins, and of threads that do not live on in it.
        context = multiprocessing.get_context("spawn")
        self.note = context.RawArray("d", [time.monotonic() + START_SECONDS, 0, 0, 0, _NO_EFFECT, 0])
        self.connection, theirs = context.Pipe()
        arguments = (theirs, self.note, spec, renderings, timeout_seconds)
        self._process = context.Process(target=_work, args=arguments, name="lanes", daemon=True)
        self._process.start()
        # The worker holds the only other end: that it dies can be heard.
        theirs.close()

    def last_words(self) -> str:
        """How a process ended that answers no more."""
        self._process.join(1.0)
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"left its process (exit code {code})"
        name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
        return f"crashed its process ({name})"

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _work(connection: Connection, note: Any, spec: ChainSpec, renderings: int, timeout_seconds: float) -> None:
    """What a worker process does: the jobs that it is sent, as long as there is someone to send them."""
    # Ctrl-C goes to all processes of a terminal, and the one that started this one decides what comes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    lanes: dict[int, Lane] = {}
    memory: _Memory | None = None

    def watch(rendering: int, place: slice) -> None:
        note[_RENDERING:] = rendering, place.start, place.stop
        note[_DEADLINE] = time.monotonic() + timeout_seconds

    while True:
        try:
            name, shape, rows = connection.recv()
        except EOFError:
            os._exit(0)
        try:
            if memory is None or memory.name != name:
                if memory is not None:
                    memory.close()
                memory = _Memory(shape, name)
            for row, lane, restart in rows:
                note[_ROW], note[_FRAME] = row, 0
                if lane not in lanes:
                    lanes[lane] = Lane(spec, renderings, watch)
                if restart:
                    lanes[lane].restart()
                # Copies, because an effect may keep what it was given.
                points = memory.values[row].copy()
                parts = frames_of(memory.audio[row].copy(), memory.output[row], frames=shape[2])
                for frame, (heard, rendered) in enumerate(parts):
                    note[_FRAME] = frame
                    lanes[lane].render(heard, points[:, frame], rendered)
            failure = None
        except UserError as error:
            failure = error
        except Exception:
            failure = RuntimeError(traceback.format_exc())
        note[_FIRST] = _NO_EFFECT
        connection.send(failure)


def _end_with_parent() -> None:
    """Ends this process with the one that started it, even while an effect hangs."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
