"""Errors that a user can fix, and how a command ends with one."""

import contextlib
import difflib
import io
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

RENAMED_OPTIONS = {
    "gradient.memory": "gradient.forgetting_factor",
    "gradient.deviation": "gradient.residual_weight",
    "gradient.control_variate=response": "gradient.control_variate=regression",
}
"""Former names of options, or of ``option=value``, and their names now."""


class UserError(Exception):
    """Something that the user gave cannot be used: one line names it and says how to fix it.

    Not a ``ValueError``, which jsonargparse would take for a config that does not parse.
    """


class DataError(UserError):
    """Data cannot be used for training or rendering: the message names the file and the fault."""


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """End the program with the line ``error: ...`` and status 1 where a :class:`UserError` is raised.

    Names that are not UTF-8 can be printed from then on.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {printable(str(error))}")


def printable(text: str) -> str:
    """Return a text on one line, with escapes for control characters and for bytes of names that are not UTF-8."""
    unprintable = ("Cc", "Cs", "Zl", "Zp")
    return "".join(ascii(char)[1:-1] if unicodedata.category(char) in unprintable else char for char in text)


def refuse_renamed(options: Any, name: str = "") -> None:
    """Raise :class:`UserError` if nested ``options`` hold one of :data:`RENAMED_OPTIONS` under its former name.

    Args:
        options: a mapping of options, or the value of the option ``name``.
        name: of the option that ``options`` are the value of, with dots: ``model.init_args.gradient``.
    """
    if isinstance(options, Mapping):
        for key, value in options.items():
            refuse_renamed(value, f"{name}.{key}")
    for old, new in RENAMED_OPTIONS.items():
        if f".{name}".endswith(f".{old}") or f".{name}={options}".endswith(f".{old}"):
            raise UserError(f"the option {old} is now called {new}: rename it")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: `` (did you mean 'x'?)``, or a list of all known names."""
    known = sorted(known)
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    matches = matches or [other for other in known if name.lower() in other.lower()]
    return f" (did you mean '{matches[0]}'?)" if matches else f" (there are: {', '.join(known)})"
