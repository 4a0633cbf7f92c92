"""Benchmarks of the gradient: ``python -m dfx.benchmark fidelity`` and ``python -m dfx.benchmark speed``."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dfx.benchmark.chains import BenchmarkChain, chains
from dfx.benchmark.fidelity import fidelity
from dfx.benchmark.speed import MODES, speed
from dfx.errors import UserError, errors_in_one_line, nearest
from dfx.figures import draw_fidelity

_WIDTHS = {"chain": 16, "name": 37}
_COLUMNS = {
    "fidelity": "chain batch parameters when name renderings "
    "cosine_encoder cosine_parameters error_encoder error_parameters",
    "speed": "chain mode batch workers layer_ms bare_ms original_ms step_ms layer_over_limit threads_over_limit "
    "original_over_layer regression_over_layer share_of_step layer_mb original_mb",
}


def main() -> None:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--chains", nargs="+", help="names; by default all that can be built here")
    shared.add_argument("--batches", nargs="+", type=int, default=[16, 100], help="examples in a batch")
    shared.add_argument("--json", action="store_true", help="print a list of rows instead of a table")
    parser = argparse.ArgumentParser(prog="python -m dfx.benchmark", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("fidelity", parents=[shared], help="compare estimated gradients with exact ones")
    command.add_argument("--means-of", type=int, default=6, help="batches to average over")
    command.add_argument("--seconds", type=float, default=2.0, help="of every note")
    command.add_argument("--late-steps", type=int, default=150, help="training steps before 'late'; 0 for none")
    command.add_argument("--seed", type=int, default=0, help="of the encoder")
    command.add_argument("--figure", type=Path, help="path of a PNG to draw")
    command = commands.add_parser("speed", parents=[shared], help="time the layer against its effects")
    command.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    command.add_argument("--seconds", type=float, default=4.0, help="per chain, mode and batch")
    given = parser.parse_args()

    chosen = _choose(given.chains)
    if given.command == "fidelity":
        measured = fidelity(chosen, given.batches, given.means_of, given.seconds, given.late_steps, given.seed)
    else:
        measured = speed(chosen, given.modes, given.batches, given.seconds)
    rows = list(measured if given.json else _printed(measured, _COLUMNS[given.command].split()))
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


def _printed(rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield every row, and print it as soon as it is measured."""
    widths = [max(len(column), _WIDTHS.get(column, 8)) for column in columns]

    def show(cells: Iterable[str]) -> None:
        tqdm.write("  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip())
        sys.stdout.flush()

    show(columns)
    for row in rows:
        cells = (row[column] for column in columns)
        show(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells)
        yield row


if __name__ == "__main__":
    with errors_in_one_line():
        main()
