"""Benchmarks of the gradient: ``python -m dfx.benchmark fidelity`` and ``python -m dfx.benchmark speed``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dfx.benchmark.chains import BenchmarkChain, chains
from dfx.benchmark.fidelity import fidelity
from dfx.benchmark.speed import MODES, speed
from dfx.errors import UserError, errors_in_one_line, nearest
from dfx.figures import draw_fidelity

_WIDTHS = {"chain": 16, "name": 37}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dfx.benchmark", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {"fidelity": "compare estimated gradients with exact ones", "speed": "time the layer against its effects"}
    for name, help in helps.items():
        command = commands.add_parser(name, help=help)
        command.add_argument("--chains", nargs="+", help="names; by default all that can be built here")
        command.add_argument("--batches", nargs="+", type=int, default=[16, 100], help="examples in a batch")
        command.add_argument("--json", action="store_true", help="print a list of rows instead of a table")
        if name == "fidelity":
            command.add_argument("--means-of", type=int, default=6, help="batches to average over")
            command.add_argument("--seconds", type=float, default=2.0, help="of every note")
            command.add_argument("--late-steps", type=int, default=150, help="training steps before 'late'; 0 for none")
            command.add_argument("--seed", type=int, default=0, help="of the encoder")
            command.add_argument("--figure", type=Path, help="path of a PNG to draw")
        else:
            command.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
            command.add_argument("--seconds", type=float, default=4.0, help="per chain, mode and batch")
    given = parser.parse_args()

    chosen = _choose(given.chains)
    if given.command == "fidelity":
        measured = fidelity(chosen, given.batches, given.means_of, given.seconds, given.late_steps, given.seed)
        columns = ["chain", "batch", "parameters", "when", "name", "renderings"]
        columns += ["cosine_encoder", "cosine_parameters", "error_encoder", "error_parameters"]
    else:
        measured = speed(chosen, given.modes, given.batches, given.seconds)
        columns = ["chain", "mode", "batch", "workers", "layer_ms", "bare_ms", "original_ms", "step_ms"]
        columns += ["layer_over_limit", "threads_over_limit", "original_over_layer", "regression_over_layer"]
        columns += ["share_of_step", "layer_mb", "original_mb"]
    rows = list(measured) if given.json else _print_rows(measured, columns)
    if given.json:
        print(json.dumps(rows, indent=1))
    if given.command == "fidelity" and given.figure:
        draw_fidelity(rows).savefig(given.figure)


def _choose(names: Sequence[str] | None) -> list[BenchmarkChain]:
    known = {chain.name: chain for chain in chains()}
    for name in names or []:
        if name not in known:
            raise UserError(f"no chain '{name}' here{nearest(name, known)}")
    return [known[name] for name in names or known]


def _print_rows(rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Print every row as soon as it is measured, and return them all."""
    widths = [max(len(column), _WIDTHS.get(column, 8)) for column in columns]

    def show(cells: Iterable[str]) -> None:
        tqdm.write("  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip())
        sys.stdout.flush()

    show(columns)
    shown = []
    for row in rows:
        show(_cell(row[column]) for column in columns)
        shown.append(row)
    return shown


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    with errors_in_one_line():
        main()
