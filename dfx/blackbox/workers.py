"""A pool of threads that renders and measures."""

import functools
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

_BLOCKS_PER_WORKER = 4
"""With several blocks per worker, the others take over from one that starts late or loses its core."""

_MIN_SECONDS = 1e-4
"""Least amount of work that justifies another worker; waking it takes about half as long."""


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

    It adapts to the work: as many threads run as the time of the previous rows justifies.

    Args:
        count: maximum number of threads; by default the number of cores, which the ranks of a machine share.
    """

    def __init__(self, count: int | None = None) -> None:
        self._count = count
        self._executor: ThreadPoolExecutor | None = None
        self._seconds_per_row = _MIN_SECONDS

    @functools.cached_property
    def count(self) -> int:
        """The maximum number of threads, first read when work is done: layers are built before ranks are known."""
        return self._count or cores_per_rank()

    def run(self, work: Callable[[range], None], rows: int) -> None:
        """Call ``work`` with contiguous blocks of ``range(rows)``, and return when all are done.

        Raises:
            Exception: raised by ``work``; blocks that have not started are dropped.
        """
        workers = max(1, min(self.count, rows, round(rows * self._seconds_per_row / _MIN_SECONDS)))
        size = -(-rows // (workers * _BLOCKS_PER_WORKER if workers > 1 else 1))
        blocks = [range(first, min(first + size, rows)) for first in range(0, rows, size)]
        seconds: list[float] = []

        def run_blocks() -> None:
            start = time.perf_counter()
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
            seconds.append(time.perf_counter() - start)

        futures: list[Future[None]] = []
        if workers > 1:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(self.count - 1, thread_name_prefix="workers")
            futures = [self._executor.submit(run_blocks) for _ in range(workers - 1)]
        try:
            run_blocks()
        finally:
            wait(futures)
        # The wake-up cost is left out: it would call for more workers where one is faster.
        self._seconds_per_row = sum(seconds) / rows
        for future in futures:
            future.result()

    def close(self) -> None:
        """End the threads; the next :meth:`run` starts new ones."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None
