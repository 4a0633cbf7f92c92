"""Lanes in separate processes, for plugins that crash or hang.

Audio, values and output are in memory shared by the processes; everything else goes through pipes. The memory loses
its name as soon as all workers have opened it, so that nothing remains however the processes end. Before an effect is
built, restarts or renders, its worker writes the place of the effect and a deadline into a shared status. When a worker
dies or is late, the status thus identifies the effect and its values. All workers are then stopped. Nothing has to be
repaired, since a worker holds only live effects, and the history of the lanes is in this process.

The processes do not import the main module of this one, so scripts need no ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import types
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait
from multiprocessing.shared_memory import SharedMemory
from typing import Any, ClassVar, cast

import numpy as np

from dfx.blackbox.lanes import Lane, Lanes, RenderingOptions, by_frame
from dfx.effects import ChainSpec, EffectError, RenderError
from dfx.errors import UserError

_PATIENCE_SECONDS = 0.1
"""Longest time to wait for one worker before all are checked."""

START_SECONDS = 120.0
"""Longest time from the start of a worker process until it builds its first effect."""

_DEADLINE, _ROW, _FRAME, _RENDERING, _FIRST, _LAST, _CPU_SECONDS, _DONE = range(8)
"""Entries of a worker's status: the deadline of its effect, in time.monotonic(); the place of its values, and the slice
of its recipes; the CPU time of the process until the end of its last job; and true from the end of a job, just before
the answer."""

_NO_EFFECT = -1.0
"""Value of ``_FIRST`` while no effect is active."""

_SPAWN = multiprocessing.get_context("spawn")
"""Processes are not forked: a fork inherits locks held by plugins, and by threads that do not exist in it."""

_HIDING = threading.Lock()

_Shape = tuple[int, int, int, int, int, int]
"""Rows, renderings, frames, parameters, channels, samples of all frames."""

_Job = tuple[str, _Shape, list[int], list[bool]]
"""Name and shape of the buffers; for each of their rows, the lane that it is for, and whether this restarts."""


def cpu_seconds() -> float:
    """Return the CPU time of this process, and of its workers until the end of their last jobs, in seconds."""
    return time.process_time() + _Worker.total_cpu_seconds


def call_in_process(function: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
    """Return the result of a function that is called in a new process.

    Raises:
        RenderError: if the process dies, or does not return within ``seconds``.
    """
    executor = ProcessPoolExecutor(1, mp_context=_SPAWN)
    with _main_module_hidden():
        answer = executor.submit(function, *arguments)
    try:
        return answer.result(seconds)
    except BrokenProcessPool:
        raise RenderError("the effects crashed the process in which they were probed") from None
    except FutureTimeoutError:
        # Executors have no public way to kill a process before Python 3.14.
        for process in executor._processes.values():
            process.kill()
        raise RenderError(f"the effects were probed and did not answer within {seconds:g} s") from None
    finally:
        executor.shutdown(wait=False)


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Let processes that start meanwhile begin with an empty main module, instead of importing this one's again.

    :mod:`multiprocessing` has no option for this: it names the file or module of ``__main__`` to a new process.
    """
    with _HIDING:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


class IsolatedLanes(Lanes):
    """Lanes whose workers are processes. Of n workers, worker k owns the lanes k, k + n, k + 2n and so on.

    This distributes every batch evenly, and a lane stays with its worker when batches grow. The processes start with
    the first frame. They end when the lanes are closed or garbage-collected, when an effect fails, and when this
    process ends in any way. After an error, new chains render: every lane should restart.

    Raises:
        EffectError: for an effect that is a class of the main module, which the processes do not import.
    """

    def __init__(self, spec: ChainSpec, renderings: int, options: RenderingOptions, **others: bool) -> None:
        for recipe in spec.recipes:
            if recipe.host == "python" and recipe.effect.startswith("__main__."):
                raise EffectError(
                    f"python:{recipe.effect} is in the main module, which the processes of `rendering.isolate` do not "
                    "import: move the class to another module"
                )
        super().__init__(spec, renderings, options, **others)
        self._timeout_seconds = options.timeout_seconds
        self._processes: dict[int, _Worker] = {}
        self._buffers: list[_Buffers] = []
        weakref.finalize(self, _release, self._processes, self._buffers)

    def close(self) -> None:
        super().close()
        _release(self._processes, self._buffers)

    def _render(self, lanes: Sequence[int], audio: np.ndarray, values: np.ndarray, restart: np.ndarray) -> np.ndarray:
        try:
            shape = (*values.shape, *audio.shape[1:])
            # Start all workers before the first gets a job.
            new = range(len(self._processes), min(self.workers.count, len(self._history)))
            for number in new:
                self._processes[number] = _Worker(
                    number, self.workers.count, self._spec, self._renderings, self._timeout_seconds
                )
            if new or not self._buffers or self._buffers[0].shape != shape:
                self._share_buffers(shape)
            buffers = self._buffers[0]
            buffers.audio[:], buffers.values[:] = audio, values
            self._run((buffers.name, shape, list(lanes), restart.tolist()))
            output = self._output_buffer(buffers.output.shape)
            output[:] = buffers.output
            return output
        except BaseException:
            self.close()
            raise

    def _share_buffers(self, shape: _Shape) -> None:
        """Create buffers of a shape, in place of any others, and let all workers open them."""
        _release({}, self._buffers)
        buffers = _Buffers(shape)
        self._buffers.append(buffers)
        try:
            # A job without lanes.
            self._run((buffers.name, shape, [], []))
        finally:
            buffers.unlink()

    def _run(self, job: _Job) -> None:
        """Give a job to all workers, and return when all are done."""
        message = pickle.dumps(job)
        busy = {worker.connection: worker for worker in self._processes.values()}
        for worker in busy.values():
            self._send(worker, message)
        while busy:
            # In order, since a wait for any of them takes longer the more they are; that is for when one is late.
            connection, worker = next(iter(busy.items()))
            is_ready = worker.status[_DONE] or connection.poll(_PATIENCE_SECONDS)
            ready = [connection] if is_ready else self._wait_for_any(busy)
            for connection in ready:
                self._receive(busy.pop(connection))

    def _send(self, worker: _Worker, message: bytes) -> None:
        worker.sent, worker.status[_DONE] = time.monotonic(), False
        worker.status[_DEADLINE] = max(worker.status[_DEADLINE], worker.sent + self._timeout_seconds)
        try:
            worker.connection.send_bytes(message)
        except OSError:
            raise self._error(worker, worker.describe_exit()) from None

    def _wait_for_any(self, busy: dict[Connection, _Worker]) -> list[Connection]:
        worker = min(busy.values(), key=lambda worker: worker.status[_DEADLINE])
        left = worker.status[_DEADLINE] - time.monotonic()
        # The deadline for starting is replaced by an earlier one once the worker has started.
        ready = cast(list[Connection], wait(list(busy), min(max(left, 0.0), self._timeout_seconds)))
        if left <= 0 and not ready:
            is_idle = worker.status[_FIRST] == _NO_EFFECT
            seconds = time.monotonic() - worker.sent if is_idle else self._timeout_seconds
            raise self._error(worker, f"did not answer within {seconds:.3g} s")
        return ready

    def _receive(self, worker: _Worker) -> None:
        try:
            failure = worker.connection.recv_bytes()
        except (EOFError, OSError):
            raise self._error(worker, worker.describe_exit()) from None
        worker.count_cpu_seconds()
        if failure:
            raise pickle.loads(failure)

    def _error(self, worker: _Worker, fault: str) -> RenderError:
        row, frame, rendering, first, last = map(int, worker.status[_ROW:_CPU_SECONDS])
        if first == _NO_EFFECT:
            names = " + ".join(recipe.name for recipe in self._spec.recipes)
            return RenderError(f"a worker for {names} {fault} while none of them was active")
        numbers = slice(first, last)
        values = self._buffers[0].values[row, rendering, frame, self._spec.place(numbers)]
        return RenderError.at(self._spec.recipes[numbers], values, fault)


def _release(processes: dict[int, _Worker], buffers: list[_Buffers]) -> None:
    while processes:
        processes.popitem()[1].stop()
    while buffers:
        buffers.pop().close()


class _Buffers:
    """Audio, values and output of one step in shared memory: new, or under the ``name`` of another process's."""

    def __init__(self, shape: _Shape, name: str | None = None) -> None:
        rows, renderings, frames, parameters, channels, samples = self.shape = shape
        values, audio = 8 * rows * renderings * frames * parameters, 4 * rows * channels * samples
        size = values + (1 + renderings) * audio
        self._shared = SharedMemory(name, create=name is None, size=size)
        if name is None and hasattr(os, "posix_fallocate"):
            try:
                # Memory that is not available is an error here, and a fatal signal at its first use.
                os.posix_fallocate(self._shared._fd, 0, size)  # type: ignore[attr-defined]
            except OSError:
                self._shared.close()
                self._shared.unlink()
                raise UserError(
                    f"there are no {size / 2**20:.1f} MiB of shared memory left: set `rendering.isolate` to false, or "
                    "enlarge it (in Docker with --shm-size)"
                ) from None
        self.name = self._shared.name
        buffer = self._shared.buf
        self.values = np.ndarray((rows, renderings, frames, parameters), np.float64, buffer)
        self.audio = np.ndarray((rows, channels, samples), np.float32, buffer, values)
        self.output = np.ndarray((rows, renderings, channels, samples), np.float32, buffer, values + audio)

    def unlink(self) -> None:
        """Remove the name; the memory exists until the last process has closed it."""
        self._shared.unlink()

    def close(self) -> None:
        """Release the buffers in this process."""
        # Shared memory cannot be closed while arrays use it.
        del self.values, self.audio, self.output
        self._shared.close()


class _Worker:
    """Handle of a worker process, one of ``workers``.

    Attributes:
        sent: time.monotonic() of its last job.
        total_cpu_seconds: CPU time of all worker processes.
    """

    total_cpu_seconds: ClassVar[float] = 0.0
    sent = 0.0
    _cpu_seconds = 0.0

    def __init__(self, number: int, workers: int, spec: ChainSpec, renderings: int, timeout_seconds: float) -> None:
        self.status = _SPAWN.RawArray("d", [time.monotonic() + START_SECONDS, 0, 0, 0, _NO_EFFECT, 0, 0, 0])
        self.connection, worker_end = _SPAWN.Pipe()
        arguments = (worker_end, self.status, number, workers, spec, renderings, timeout_seconds)
        self._process = _SPAWN.Process(target=_serve, args=arguments, name="lanes", daemon=True)
        with _main_module_hidden():
            self._process.start()
        # The worker then holds the only other end, so that its death closes the pipe.
        worker_end.close()

    def count_cpu_seconds(self) -> None:
        """Add the CPU time since the last call to the total."""
        before, self._cpu_seconds = self._cpu_seconds, self.status[_CPU_SECONDS]
        _Worker.total_cpu_seconds += self._cpu_seconds - before

    def describe_exit(self) -> str:
        """Return the way in which a process that no longer answers has ended."""
        self._process.join(1.0)
        if (code := self._process.exitcode) is None or code >= 0:
            return f"left its process (exit code {code})"
        name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
        return f"crashed its process ({name})"

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _serve(
    connection: Connection,
    status: Any,
    number: int,
    workers: int,
    spec: ChainSpec,
    renderings: int,
    timeout_seconds: float,
) -> None:
    """Run worker ``number`` of ``workers``: render jobs until the parent closes the connection or ends."""
    # Ctrl-C reaches all processes of a terminal; the parent decides how to react.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    lanes: defaultdict[int, Lane] = defaultdict(lambda: Lane(spec, renderings, before_effect))
    buffers: _Buffers | None = None

    def before_effect(rendering: int, recipes: slice) -> None:
        status[_RENDERING:_CPU_SECONDS] = rendering, recipes.start, recipes.stop
        status[_DEADLINE] = time.monotonic() + timeout_seconds

    while True:
        try:
            name, shape, lane_numbers, restarts = connection.recv()
        except EOFError:
            os._exit(0)
        try:
            if buffers is None or buffers.name != name:
                if buffers is not None:
                    buffers.close()
                buffers = _Buffers(shape, name)
            for row, (lane, restart) in enumerate(zip(lane_numbers, restarts)):
                if lane % workers != number:
                    continue
                status[_ROW], status[_FRAME] = row, 0
                if restart:
                    lanes[lane].restart()
                # Copies, because an effect may keep its arguments.
                values, audio = buffers.values[row].copy(), by_frame(buffers.audio[row].copy(), shape[2])
                rendered = by_frame(buffers.output[row], shape[2])
                for frame in range(shape[2]):
                    status[_FRAME] = frame
                    lanes[lane].render(audio[:, frame], values[:, frame], rendered[:, :, frame])
            failure: Exception | None = None
        except UserError as error:
            failure = error
        except Exception:
            failure = RuntimeError(traceback.format_exc())
        status[_FIRST], status[_CPU_SECONDS], status[_DONE] = _NO_EFFECT, time.process_time(), True
        connection.send_bytes(b"" if failure is None else pickle.dumps(failure))


def _exit_with_parent() -> None:
    """Exit when the parent process ends, even while an effect hangs."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
