"""Logging that cannot end a run."""

import functools
import time
import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary


class BestEffort:
    """Decorator for methods that only log: an exception becomes a warning, once for each object and method.

    Attributes:
        seconds: time that this process has spent in the decorated methods.
        cpu_seconds: its CPU time in them.
    """

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self._depth = 0
        self._warned: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()

    def __call__(self, method: Callable) -> Callable:
        name = method.__qualname__

        @functools.wraps(method)
        def wrapper(owner: Any, *args: Any, **kwargs: Any) -> Any:
            start, cpu_start = time.perf_counter(), time.process_time()
            self._depth += 1
            try:
                return method(owner, *args, **kwargs)
            except Exception as error:
                warned = self._warned.setdefault(owner, set())
                if name not in warned:
                    warned.add(name)
                    message = f"logging has failed, and the run continues: {name}: {in_one_line(error)}"
                    warnings.warn(message, stacklevel=2)
            finally:
                self._depth -= 1
                # Nested calls are counted once.
                if not self._depth:
                    self.seconds += time.perf_counter() - start
                    self.cpu_seconds += time.process_time() - cpu_start

        return wrapper


best_effort = BestEffort()


def in_one_line(error: Exception) -> str:
    """Return the type and the message of an error without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())
