"""The console scripts of the package; a process that a script starts imports this module and no more."""

import sys
from importlib import import_module

from dfx.errors import errors_in_one_line


def run_train() -> None:
    """Run ``dfx-train``, as ``python train.py``; ``--help`` alone prints :mod:`dfx.commands.train`."""
    # LightningCLI takes seconds to describe its subcommands, and does not say what they are good for.
    if sys.argv[1:] in (["-h"], ["--help"]):
        with errors_in_one_line():
            print(import_module("dfx.commands.train").__doc__)
        return
    # Not at the top: the processes of isolated effects import this module too.
    import_module("dfx.cli").main()


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


def _run(module: str) -> None:
    with errors_in_one_line():
        sys.exit(import_module(module).main())
