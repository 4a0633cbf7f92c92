"""Run a grid of training runs and compare its arms.

    python -m dfx.sweep configs/sweeps/estimator.yaml
    python -m dfx.sweep configs/sweeps/estimator.yaml --seeds 0 1 --arms released written -- --trainer.max_epochs 2
    python -m dfx.sweep configs/sweeps/estimator.yaml --list
    python -m dfx.sweep configs/sweeps/estimator.yaml --summarize

The same command again runs the missing points, and resumes interrupted ones. If a point fails, the others still run;
the failed point is listed at the end, and the exit status is 1. The folder then holds a run for each point, their
logs, and summary.md, summary.csv, runs.csv and summary.png; if several parameters are swept, also marginal_means.csv.
`python -m dfx.dashboard summary FOLDER` writes the tables, with the curves of all runs, as one HTML file.

The files have the format of Weights & Biases: `wandb sweep FILE` and `wandb agent` run the same points from its server.
`--list` prints a command for each unfinished point, for any scheduler: in a SLURM array, run line
$SLURM_ARRAY_TASK_ID of it. List again to resume interrupted points, and summarize when all have finished.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dfx.errors import SEEDS, ArgumentParser, Range, errors_in_one_line, nearest
from dfx.evaluation import is_evaluated
from dfx.sweep.grid import SweepError, read_sweep
from dfx.sweep.runner import Budget, Runner, register, run_here, run_on_ray
from dfx.sweep.summary import summarize


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 if a point has failed, else 0."""
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt as interrupt:
        interrupt.args = ("the same command resumes from here",)
        raise


def _run(arguments: list[str]) -> int:
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    given = _parser().parse_args(arguments[:cut])
    sweep = read_sweep(given.file)
    points = sweep.points(given.seeds, arguments[cut + 1 :])
    known = {point.arm for point in points}
    for arm in given.arms or ():
        if arm not in known:
            raise SweepError(f"the sweep has no arm '{arm}'{nearest(arm, known)}")
    points = [point for point in points if point.arm in (given.arms or known)]
    folder = Path(given.folder or Path("runs", "sweeps", sweep.name))
    if not given.summarize:
        register(folder, points)
    left = [point for point in points if not is_evaluated(folder / point.name)]
    budget = Budget.of(len(left), given.jobs)
    runner = Runner(folder, sweep.name, given.wandb_mode, given.threads or budget.threads)
    if given.list:
        for point in left:
            print(shlex.join(runner.command(point)))
        return 0
    failures = []
    if left and not given.summarize:
        if given.ray:
            failures = run_on_ray(runner, left, given.ray, given.gpus)
        else:
            how = f"{budget.jobs} at once, {runner.threads} thread{'s' if runner.threads > 1 else ''} each"
            print(f"{len(left)} of {len(points)} runs to do, {how}; in {folder}")
            failures = run_here(runner, left, budget.jobs)
    print(f"\n{summarize(folder, sweep.name, points)}\n")
    missing = [point.name for point in points if not is_evaluated(folder / point.name)]
    if missing:
        print(f"not finished: {', '.join(missing)}")
    if len(missing) < len(points):
        print(f"table, figure and runs: {folder}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m dfx.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s FILE [options] [-- options of train.py for every run]",
    )
    parser.add_argument("file", metavar="FILE", help="a sweep file, for instance from configs/sweeps/")
    parser.add_argument("--seeds", type=Range(SEEDS).parse, nargs="+", help="seeds instead of those of the file")
    parser.add_argument("--arms", nargs="+", help="names of the arms to run; by default all")
    parser.add_argument(
        "--jobs", type=Range("1..1024").parse, help="number of parallel runs; by default one per core, at most 16"
    )
    parser.add_argument(
        "--threads", type=Range("1..1024").parse, help="threads of each run; by default the cores divided by the jobs"
    )
    parser.add_argument("--folder", help="the sweep's folder; by default runs/sweeps/NAME")
    parser.add_argument("--list", action="store_true", help="print the commands of unfinished points, and run none")
    parser.add_argument("--summarize", action="store_true", help="compare the finished points, and run none")
    parser.add_argument("--ray", metavar="ADDRESS", help="run on a Ray cluster; 'local' starts one on this machine")
    gpus = "with --ray: number of GPUs of each run, or a fraction of one"
    parser.add_argument("--gpus", type=Range("[0, 64]").parse, default=0, help=gpus)
    modes = ("offline", "online", "disabled")
    parser.add_argument("--wandb-mode", choices=modes, help="mode of all runs; by default the one of their config")
    return parser


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main())
