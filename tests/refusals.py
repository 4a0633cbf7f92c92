"""Runs a command in this process, and returns the line with which it refuses its input."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture
def refusal(capsys, monkeypatch):
    """Return a function of an entry point, its arguments and a folder: the only line of the refused command.

    The entry point is a script of this repository or a module; it runs in the folder, in which it must write nothing.
    """

    def run(entry: str, arguments: list[str], folder: Path) -> str:
        monkeypatch.chdir(folder)
        monkeypatch.setattr("sys.argv", [entry, *arguments])
        # A script finds the modules beside it; those of data/ also add to the path.
        monkeypatch.setattr("sys.path", [str((ROOT / entry).parent), *sys.path])
        before = contents(folder)
        with pytest.raises(SystemExit) as exit:
            if entry.endswith(".py"):
                runpy.run_path(str(ROOT / entry), run_name="__main__")
            else:
                runpy.run_module(entry, run_name="__main__")
        code = exit.value.code
        printed = [line.rsplit("\r", 1)[-1] for line in capsys.readouterr().err.split("\n")]
        printed = [line for line in printed if line.strip("\x1b[A ") and "%|" not in line]  # no progress bars
        lines = [*printed, *([code] if isinstance(code, str) else [])]
        assert code not in (0, None) and len(lines) == 1, lines
        assert lines[0].startswith("error: ") and len(lines[0]) > 20 and "Traceback" not in lines[0]
        assert contents(folder) == before
        return lines[0]

    return run


def contents(folder: Path) -> dict[Path, object]:
    """Return all files of a folder with their times of modification; of this repository, its first level."""
    if folder == ROOT:
        return dict.fromkeys(ROOT.iterdir())
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*") if not path.is_dir()} | {
        path: None for path in folder.rglob("*") if path.is_dir()
    }
