"""Functions that other threads hand to the main thread: some hosts load and render plugins there only."""

from __future__ import annotations

import contextvars
import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


class MainThread:
    """A queue of functions, which :meth:`run` calls one after the other."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future, Callable[[], Any]]] = queue.SimpleQueue()
        self._has_stopped = False

    def call(self, function: Callable[[], T]) -> T:
        """Call a function on the main thread, in the context (``contextvars``) of this thread; wait for its result.

        Raises:
            CancelledError: if the main thread has stopped.
            Exception: that of the function.
        """
        future: Future[T] = Future()
        context = contextvars.copy_context()
        self._jobs.put((future, lambda: context.run(function)))
        if self._has_stopped:
            future.cancel()
        return future.result()

    def run(self) -> NoReturn:
        """Call functions until an interrupt, which cancels those that wait."""
        future: Future = Future()
        try:
            while True:
                try:
                    # With a timeout, because Windows does not interrupt a thread that waits.
                    future, function = self._jobs.get(timeout=1)
                except queue.Empty:
                    continue
                try:
                    future.set_result(function())
                except Exception as error:
                    future.set_exception(error)
        finally:
            self._has_stopped = True  # before the queue is emptied, so that no function is left in it
            future.cancel()
            while not self._jobs.empty():
                self._jobs.get()[0].cancel()
