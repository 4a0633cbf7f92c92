"""The pool of threads that renders and measures, and how many cores there are for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Threads that share rows among them, the calling thread as one of them: it is awake already.

    Args:
        count: how many there are at most. Fewer are woken for rows that took so little time before that
            waking more would take longer.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._executor: ThreadPoolExecutor | None = None
        self._seconds_a_row = _LEAST_SECONDS

    def share(self, work: Callable[[range], None], rows: int) -> None:
        """Calls ``work`` with contiguous blocks that make up ``range(rows)``; a worker takes several in turn.

        Raises:
            Exception: what a call raises; the blocks that are left are not begun.
        """
        workers = max(1, min(self.count, rows, round(rows * self._seconds_a_row / _LEAST_SECONDS)))
        size = -(-rows // (workers * _BLOCKS if workers > 1 else 1))
        blocks = [range(first, min(first + size, rows)) for first in range(0, rows, size)]
        seconds: list[float] = []

        def take() -> None:
            start = time.perf_counter()
            while True:
                try:
                    # Taking from the end of a list, and appending to one, is safe between threads.
                    block = blocks.pop()
                except IndexError:
                    break
                try:
                    work(block)
                except BaseException:
                    blocks.clear()
                    raise
            seconds.append(time.perf_counter() - start)

        if workers > 1 and self._executor is None:
            self._executor = ThreadPoolExecutor(self.count - 1, thread_name_prefix="workers")
        futures = [self._executor.submit(take) for _ in range(workers - 1)]
        try:
            take()
        finally:
            wait(futures)
        # Without what it takes a worker to wake: that would call for more of them where one is quicker.
        self._seconds_a_row = sum(seconds) / rows
        for future in futures:
            future.result()

    def close(self) -> None:
        """Ends the threads; those that are needed again are started again."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None


_BLOCKS = 4
"""How many blocks there are for each worker: one that woke late, or was kept from its core, leaves more to others."""

_LEAST_SECONDS = 1e-4
"""What a worker is woken for; to be woken takes it about half of that."""
