"""The console scripts of the package."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from dfx.errors import errors_in_one_line

HELP = Path(__file__).parent / "help"
"""The help of ``train.py``, which LightningCLI takes seconds to write: ``python -m tests.help_texts`` writes the rest
of it, and a test compares."""


def run_train() -> None:
    """Run ``dfx-train``, as ``python train.py``; help that is asked for alone is printed from a file."""
    if (name := _find_help(sys.argv[1:])) and (file := HELP / f"{name}.txt").is_file():
        with errors_in_one_line():
            print(file.read_text(encoding="utf-8"), end="")
        return
    # Not at the top: importing torch takes seconds, and help does not need it.
    import_module("dfx.cli").main()


def _find_help(arguments: Sequence[str]) -> str | None:
    match arguments:
        case ["-h" | "--help"]:
            return "train"
        case ["fit" | "validate" | "test" as command, "-h" | "--help"]:
            return command
        case ["fit", "--model.help", task] if task.isidentifier():
            return task
    return None


def run_evaluate() -> None:
    """Run ``dfx-evaluate``, as ``python evaluate.py``."""
    _run("dfx.commands.evaluate")


def run_render() -> None:
    """Run ``dfx-render``, as ``python -m dfx.render``."""
    _run("dfx.render.__main__")


def run_probe() -> None:
    """Run ``dfx-probe``, as ``python -m dfx.effects.probe``."""
    _run("dfx.effects.probe")


def run_sweep() -> None:
    """Run ``dfx-sweep``, as ``python -m dfx.sweep``."""
    _run("dfx.sweep.__main__")


def run_dashboard() -> None:
    """Run ``dfx-dashboard``, as ``python -m dfx.dashboard``."""
    _run("dfx.dashboard.__main__")


def run_report() -> None:
    """Run ``dfx-report``, as ``python -m dfx.report``."""
    _run("dfx.report.__main__")


def run_demo() -> None:
    """Run ``dfx-demo``, as ``python -m dfx.demo``."""
    _run("dfx.demo.__main__")


def _run(module: str) -> None:
    with errors_in_one_line():
        sys.exit(import_module(module).main())
