"""Errors that a user can fix, and how a command ends with one."""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """Something that the user gave cannot be used: one line names it and says how to fix it.

    Not a ``ValueError``, which jsonargparse would take for a config that does not parse.
    """


class DataError(UserError):
    """Data cannot be used for training or rendering: the message names the file and the fault."""


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """End the program with the line ``error: ...`` and status 1 where a :class:`UserError` is raised."""
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: `` (did you mean 'x'?)``, or a list of all known names."""
    known = sorted(known)
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not matches:
        matches = [other for other in known if name.lower() in other.lower()][:1]
    return f" (did you mean '{matches[0]}'?)" if matches else f" (there are: {', '.join(known)})"
