"""A pool of threads that renders and measures."""

import functools
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

_BLOCKS_PER_WORKER = 4
"""With several blocks per worker, the others take over from one that starts late or loses its core."""

_FORGETTING_FACTOR = 0.99
"""Factor of a time for each run since it was measured: trials of other numbers of threads cost about 1 %."""

_FIRST_TRIAL = 10
"""First run with another number of threads than the largest."""


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_per_rank() -> int:
    """Return the number of cores for each of the ranks that share those of this process, at least 1."""
    # Imported here: importing torch takes seconds, and worker processes do not need it.
    from dfx import distributed

    return max(1, available_cores() // distributed.ranks_on_cores())


class Workers:
    """A pool of threads, including the calling thread.

    It adapts to the work: as many threads run as were fastest. These can be fewer than there are, since a thread has to
    be woken up, and since effects hold the interpreter's lock for a part of each call. Now and then, a run tries half
    or twice as many; the more often, the less they differ.

    Args:
        count: maximum number of threads; by default the number of cores, which the ranks of a machine share.
    """

    def __init__(self, count: int | None = None) -> None:
        self._count = count
        self._executor: ThreadPoolExecutor | None = None
        self._runs = 0
        self._times: dict[int, tuple[float, int]] = {}
        """Seconds of a row, by the number of threads, and the run that measured them last."""

    @functools.cached_property
    def count(self) -> int:
        """The maximum number of threads, first read when work is done: layers are built before ranks are known."""
        return self._count or cores_per_rank()

    def run(self, work: Callable[[range], None], rows: int) -> None:
        """Call ``work`` with contiguous blocks of ``range(rows)``, and return when all are done.

        Raises:
            Exception: raised by ``work``; blocks that have not started are dropped.
        """
        if self.count == 1:
            work(range(rows))
            return
        workers = self._choose(min(self.count, rows))
        size = -(-rows // (workers * _BLOCKS_PER_WORKER if workers > 1 else 1))
        blocks = [range(first, min(first + size, rows)) for first in range(0, rows, size)]

        def run_blocks() -> None:
            while True:
                try:
                    # list.pop and list.append are atomic.
                    block = blocks.pop()
                except IndexError:
                    break
                try:
                    work(block)
                except BaseException:
                    blocks.clear()
                    raise

        start = time.perf_counter()
        futures: list[Future[None]] = []
        if workers > 1:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(self.count - 1, thread_name_prefix="workers")
            futures = [self._executor.submit(run_blocks) for _ in range(workers - 1)]
        try:
            run_blocks()
        finally:
            wait(futures)
        seconds = (time.perf_counter() - start) / rows
        # The shortest time so far, since other jobs only add to it; but it rises, since the work may have changed.
        shortest, _ = self._times.get(workers, (seconds, 0))
        self._times[workers] = min(seconds, 1.1 * shortest), self._runs
        for future in futures:
            future.result()

    def _choose(self, limit: int) -> int:
        """Return the number of threads for the next run, at most ``limit``."""
        self._runs += 1
        if self._runs < _FIRST_TRIAL:
            return limit
        # Times fall until they are measured again: a core may have become free.
        expected = {
            count: seconds * _FORGETTING_FACTOR ** (self._runs - run)
            for count, (seconds, run) in self._times.items()
            if count <= limit
        }
        fastest = min(expected, key=expected.__getitem__, default=limit)
        near = (max(1, fastest // 2), fastest, min(2 * fastest, limit))
        return min(near, key=lambda count: expected.get(count, 0.0))

    def close(self) -> None:
        """End the threads; the next :meth:`run` starts new ones."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None
