"""Keep the help that ``train.py`` prints without importing torch; ``python -m tests.help_texts`` writes it again."""

from __future__ import annotations

import contextlib
import io
import os
import re
from unittest import mock

from jsonargparse import capture_parser

from dfx.commands import HELP

ARGUMENTS = {
    **{command: [command, "--help"] for command in ("fit", "validate", "test")},
    **{task: ["fit", "--model.help", task] for task in ("TubeAmp", "NonSpeech", "Mastering", "StyleTransfer")},
}
"""Arguments of ``train.py`` by the name of the file with their help."""


def write_help(name: str) -> str:
    """Return the help of the full parser, without usage and without classes that depend on what is imported."""
    from dfx.cli import DfxCLI

    parser, printed = capture_parser(lambda: DfxCLI([])), io.StringIO()
    environment = mock.patch.dict(os.environ, COLUMNS="100")
    with environment, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        parser.parse_args(ARGUMENTS[name])
    text = re.sub(r"^.*?\n(?=usage: .*--OPTION|Help for )", "", printed.getvalue(), flags=re.DOTALL)
    return re.sub(r",\s+known\s+subclasses:[^)]*", "", text)


def words(text: str) -> list[str]:
    """Return a help text without layout, in which versions of Python differ, and with one order of numbers.

    Of two unions of the same types, ``typing`` gives the one that was imported first.
    """
    text = " ".join(re.sub(r"(-\S+) \S+, (?=--)", r"\1, ", text).split())
    return text.replace("Union[float, int", "Union[int, float").split()


if __name__ == "__main__":
    for name in ARGUMENTS:
        (HELP / f"{name}.txt").write_text(write_help(name), encoding="utf-8")
