"""Benchmarks: ``python -m dfx.benchmark fidelity``, ``speed``, ``step`` and ``twin``.

``fidelity`` compares estimated gradients with exact ones, ``speed`` times the effect layer, ``step`` times the parts of
a training step, and ``twin`` trains with exact and with estimated gradients.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from dfx.benchmark import GRADIENTS, MODES
from dfx.errors import SEEDS, ArgumentParser, Range, UserError, errors_in_one_line, nearest

if TYPE_CHECKING:
    from dfx.benchmark.chains import BenchmarkChain

_WIDTHS = {"chain": 16, "name": 37, "config": 26, "part": 10}
_COLUMNS = {
    "fidelity": "chain batch parameters when name renderings "
    "cosine_encoder cosine_parameters error_encoder error_parameters",
    "speed": "chain mode batch workers rounds passed layer_ms bare_ms original_ms step_ms layer_over_limit "
    "threads_over_limit original_over_layer isolated_over_layer regression_over_layer share_of_step layer_mb "
    "original_mb",
    "step": "config part cpu_ms wall_ms share",
}


def main() -> None:
    given = _parser().parse_args()
    # Imported here because --help and wrong options do not need torch.
    from dfx.benchmark.fidelity import fidelity
    from dfx.benchmark.speed import speed
    from dfx.benchmark.step import step
    from dfx.benchmark.twin import as_table, twin
    from dfx.figures import draw_fidelity, draw_twin

    measured: Iterable[dict[str, Any]]
    if given.command == "twin":
        seeds = range(given.seeds)
        measured = twin(given.config, given.gradients, seeds, given.folder, given.options, given.jobs, given.folds)
    elif given.command == "step":
        measured = step(given.configs, given.steps, given.options)
    elif given.command == "fidelity":
        chosen = _choose(given.chains)
        measured = fidelity(chosen, given.batches, given.means_of, given.seconds, given.late_steps, given.seed)
    else:
        measured = speed(_choose(given.chains), given.modes, given.batches, given.seconds)
    is_printed = not given.json and given.command in _COLUMNS
    rows = list(_printed(measured, _COLUMNS[given.command].split()) if is_printed else measured)
    if given.json:
        # JSON has no NaN.
        defined = [{name: None if value != value else value for name, value in row.items()} for row in rows]
        print(json.dumps(defined, indent=1, allow_nan=False))
    elif given.command == "twin":
        print(as_table(rows))
    if getattr(given, "figure", None):
        draw = draw_twin if given.command == "twin" else draw_fidelity
        draw(rows).savefig(given.figure)


def _parser() -> ArgumentParser:
    output = ArgumentParser(add_help=False)
    output.add_argument("--json", action="store_true", help="print a list of rows instead of a table")
    figure = ArgumentParser(add_help=False)
    figure.add_argument("--figure", type=Path, help="path of a PNG to draw")
    layer = ArgumentParser(add_help=False)
    layer.add_argument("--chains", nargs="+", help="names; by default all that can be built here")
    layer.add_argument(
        "--batches", nargs="+", type=Range("1..65536").parse, default=[16, 100], help="examples in a batch"
    )
    parser = ArgumentParser(
        prog="python -m dfx.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    parents = [layer, output, figure]
    command = commands.add_parser("fidelity", parents=parents, help="compare estimated gradients with exact ones")
    command.add_argument("--means-of", type=Range("1..10000").parse, default=6, help="batches to average over")
    command.add_argument("--seconds", type=Range("(0, 3600]").parse, default=2.0, help="of every note")
    command.add_argument(
        "--late-steps", type=Range("0..1000000").parse, default=150, help="training steps before 'late'; 0 for none"
    )
    command.add_argument("--seed", type=Range(SEEDS).parse, default=0, help="of the encoder")
    command = commands.add_parser("speed", parents=[layer, output], help="time the layer against its effects")
    command.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    command.add_argument("--seconds", type=Range("(0, 3600]").parse, default=4.0, help="per chain, mode and batch")
    command = commands.add_parser("step", parents=[output], help="time the parts of a training step")
    command.add_argument("configs", nargs="+", help="of the tasks; where their data are absent, noise is used")
    command.add_argument("--steps", type=Range("1..1000000").parse, default=48, help="to measure")
    command.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="the rest: options of train.py")
    command = commands.add_parser("twin", parents=[output, figure], help="train with exact and estimated gradients")
    command.add_argument("--config", default="configs/tube_amp.yaml", help="a task whose effects have a twin")
    which = f"any of {', '.join(GRADIENTS)}, or overlays (.yaml)"
    command.add_argument("--gradients", nargs="+", default=list(GRADIENTS), metavar="NAME", help=which)
    command.add_argument("--seeds", type=Range("1..1000").parse, default=5, help="runs of each gradient")
    fold_help = "runs of each gradient and seed, which leave the groups of pairs out in turn"
    command.add_argument("--folds", type=Range("2..1000").parse, help=fold_help)
    command.add_argument("--jobs", type=Range("1..1024").parse, help="runs at once; by default one per core")
    command.add_argument("--folder", type=Path, default=Path("runs/twin"), help="of the runs; finished ones are kept")
    command.add_argument("options", nargs="*", help="after `--`: options of train.py for every run")
    return parser


def _choose(names: Sequence[str] | None) -> "list[BenchmarkChain]":
    from dfx.benchmark.chains import chains

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
