"""Errors that a user can fix, and how a command ends with one."""

import argparse
import contextlib
import difflib
import io
import numbers
import os
import re
import signal
import sys
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn, cast

import yaml

SEEDS = "0..4294967295"
"""The :class:`Range` of seeds, which is that of NumPy."""
COUNTS = "1..1000000000"
"""Of numbers of steps, epochs or samples without a limit of their own."""
SAMPLE_RATES = "1000..768000"
"""In Hz."""
CHANNELS = "1..2"
"""Of all audio in training; the effects of most hosts process mono or stereo."""

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


class Interrupted(KeyboardInterrupt):
    """The signal ``signum`` ends the command; files that were not complete are removed on the way."""

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """End the program with one line: ``error: ...`` and status 1 for a :class:`UserError` or an ``OSError``.

    Ctrl-C, SIGTERM and SIGHUP raise :class:`Interrupted`, which ends it with ``stopped by ...`` and status 128 + n. Of
    further ones only Ctrl-C has an effect: it ends the program without removing files. Names that are not UTF-8 can be
    printed from now on, and standard streams that are closed lead nowhere.
    """
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:
            # This also takes the stream's number, which the next file would get, and output of libraries with it.
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            with _interrupted_by_signals():
                yield
        finally:
            sys.stdout.flush()
    except UserError as error:
        sys.exit(f"error: {in_one_line(error)}")
    except BrokenPipeError:
        # Python writes the rest of standard output when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit("error: standard output was closed before everything was written to it")
    except OSError as error:
        sys.exit(f"error: {in_one_line(reason_of(error))}")
    except KeyboardInterrupt as interrupt:
        signum = getattr(interrupt, "signum", signal.SIGINT)
        advice = f": {interrupt}" if interrupt.args else ""
        print(f"stopped by {signal_name(signum)}{advice}", file=sys.stderr)
        sys.exit(128 + signum)


def reason_of(error: Exception) -> str:
    """Return the message of an error; of an ``OSError``, the path and the reason without the number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


@contextlib.contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows lacks the last
    signums = [getattr(signal, name) for name in names if hasattr(signal, name)]
    # Ignored ones stay ignored: nohup ignores SIGHUP. Only the main thread may set handlers.
    is_main = threading.current_thread() is threading.main_thread()
    before = {n: signal.getsignal(n) for n in signums if is_main and signal.getsignal(n) not in (None, signal.SIG_IGN)}
    process = os.getpid()

    def interrupt(signum: int, frame: Any) -> None:
        if os.getpid() != process:  # a fork ends as if it had no handlers
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        for other in before:
            signal.signal(other, signal.SIG_DFL if other == signal.SIGINT else signal.SIG_IGN)
        raise Interrupted(signum)

    for signum in before:
        signal.signal(signum, interrupt)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def signal_name(signum: int) -> str:
    """Return how a message names a signal."""
    return "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name


def printable(text: str) -> str:
    """Return a text on one line, with escapes for control characters and for bytes of names that are not UTF-8.

    Characters that reverse the direction of writing are control characters too: they can disguise a name.
    """
    return "".join(ascii(char)[1:-1] if _is_unprintable(char) else char for char in text)


def _is_unprintable(char: str) -> bool:
    is_bidirectional = unicodedata.bidirectional(char) in (
        "LRE",
        "RLE",
        "LRO",
        "RLO",
        "PDF",
        "LRI",
        "RLI",
        "FSI",
        "PDI",
    )
    return is_bidirectional or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")


def in_one_line(message: object) -> str:
    """Return a message without line breaks, as :func:`printable`; repeated spaces within a line may be of a name."""
    return printable(" ".join(line.strip() for line in str(message).splitlines() if line.strip()))


class ArgumentParser(argparse.ArgumentParser):
    """A parser that accepts no abbreviated options, and reports a wrong argument in one line, without the usage."""

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        super().__init__(prog, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {in_one_line(message)}; --help lists the options\n")


class Range:
    """A range of numbers.

    Args:
        text: ``1..16`` for whole numbers; or an interval such as ``(0, 0.5]``, which excludes an end at a
            parenthesis.
    """

    def __init__(self, text: str) -> None:
        self._whole = ".." in text
        self._low, self._high = re.split(r"\.\.|, ", text.strip("[]()"))
        self._above, self._below = text.startswith("("), text.endswith(")")

    def __contains__(self, value: object) -> bool:
        kind = numbers.Integral if self._whole else numbers.Real
        if not isinstance(value, kind) or isinstance(value, bool):
            return False
        value = cast(float, value)
        low, high = float(self._low), float(self._high)
        return (low < value if self._above else low <= value) and (value < high if self._below else value <= high)

    def __str__(self) -> str:
        if self._whole:
            return f"a whole number from {self._low} to {self._high}"
        low, high = "above" if self._above else "at least", "below" if self._below else "at most"
        return f"{low} {self._low} and {high} {self._high}"

    def parse(self, text: str) -> Any:
        """Return the number that an argument of a command line holds, as the ``type`` of argparse."""
        with contextlib.suppress(ValueError):
            if (value := int(text) if self._whole else float(text)) in self:
                return value
        raise argparse.ArgumentTypeError(f"{text} is not {self}")


def check_numbers(options: Mapping[str, Any], **ranges: str) -> None:
    """Check that options lie in their ranges; None is not checked, and of a list or mapping, every entry is.

    Args:
        options: values by name, such as ``vars(self)`` of a dataclass.
        ranges: a :class:`Range` for each name to check.

    Raises:
        UserError: with the name, the value and the range.
    """
    for name, text in ranges.items():
        range = Range(text)
        for entry, value in _entries(name, options[name]):
            if value is not None and value not in range:
                raise UserError(f"{entry} is {value!r}; it must be {range}")


def check_file_name(option: str, name: str) -> None:
    """Check that the value of an option is the name of a file or folder, and does not lead to another folder.

    Raises:
        UserError: if it is empty or too long, has a slash, a backslash, a colon or an unprintable character, begins
            with a space, a dot or a hyphen, or ends with a space.
    """
    is_name = name.isprintable() and not re.search(r"^$|^[ .-]|[/\\:]| $", name) and len(name) <= 100
    if not is_name:
        has = "1 to 100 characters, without slashes, backslashes, colons and unprintable ones"
        ends = "does not begin with a space, dot or hyphen, or end with a space"
        raise UserError(f"{option} is {name!r}; a name has {has}, and {ends}")


def _entries(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return ((f"{name}: {key}", entry) for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return ((f"an entry of {name}", entry) for entry in value)
    return [(name, value)]


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


def refuse_repeated_keys(text: str) -> None:
    """Raise :class:`UserError` if a mapping of a YAML text has a key twice, of which YAML would drop one.

    Raises:
        yaml.YAMLError: if the text is not YAML.
    """
    pending, seen = [yaml.compose(text, Loader=yaml.SafeLoader)], set()
    while pending:
        node = pending.pop()
        if node is None or id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))
        entries = node.value
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
            if twice := next((key for key in keys if keys.count(key) > 1), None):
                raise UserError(f"'{twice}' is given twice (line {node.start_mark.line + 1} of the YAML): remove one")
            entries = [value for _, value in node.value]
        pending += entries


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: `` (did you mean 'x'?)``, or a list of all known names."""
    known = sorted(known)
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    matches = matches or [other for other in known if name.lower() in other.lower()]
    return f" (did you mean '{matches[0]}'?)" if matches else f" (there are: {', '.join(known)})"
