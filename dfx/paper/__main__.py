"""Train the models of the paper and ours, and write one table that compares them.

    python -m dfx.paper --scale small
    python -m dfx.paper --scale small --tasks nonspeech --seeds 0
    python -m dfx.paper --scale published --jobs 1 --rival mastering:LANDR=landr/
    python -m dfx.paper --scale small --plan

`published` trains on the data of the paper as published, which takes a GPU and days; `small` on the data that ship, for
a few CPU minutes per run. First, a few steps of each model are timed: the command says what is
absent and how long the rest takes at most, and with --plan ends there. The same command again runs what is missing, and
resumes interrupted runs.

The folder then holds a run for each model and seed, and table.md, table.csv and table.png. For each task the table has
the figures of the paper, our means with intervals, the unprocessed input, the defaults and the best fixed setting of
each chain, and a small network in place of the chain. --rival adds the renderings of another method: a folder with a
file for each test pair.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from dfx.errors import SEEDS, ArgumentParser, Range, UserError, errors_in_one_line
from dfx.evaluation import is_evaluated
from dfx.paper.models import EVALUATION, OURS, SCALES, TASKS, Model, list_models
from dfx.paper.plan import describe, estimate
from dfx.sweep.grid import Point
from dfx.sweep.runner import THREADS, Budget, Runner, register, run_here


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 if a run has failed, else 0."""
    given = _parser().parse_args(arguments)
    folder = given.folder or Path("runs", f"paper_{given.scale}")
    runs = {model: [model.point(seed) for seed in given.seeds] for model in list_models(given.scale, given.tasks)}
    rivals = [_parse_rival(rival) for rival in given.rival]
    left = [point for points in runs.values() for point in points if not is_evaluated(folder / point.name)]
    budget = Budget.of(len(left) or 1, given.jobs)
    failures: list[str] = []
    if left or given.plan:
        training = [model for model, points in runs.items() if any(point in left for point in points) or given.plan]
        bar = tqdm(training, desc="Measuring steps", unit="model", disable=None)
        estimates = [estimate(model, budget.threads) for model in bar]
        print(describe(estimates, len(given.seeds), budget.jobs, budget.threads))
        if given.plan:
            return 0
        absent = [point for one in estimates if one.absent for point in runs[one.model]]
        left = [point for point in left if point not in absent]
        register(folder, left)
        failures += run_here(Runner(folder, folder.name, given.wandb_mode, budget.threads), left, budget.jobs)
    trained = {
        model: [point for point in points if is_evaluated(folder / point.name)] for model, points in runs.items()
    }
    # Imports torch, which --help and --plan do not need.
    from dfx.paper.table import read_rows, write_table

    options = ["--evaluations", str(given.evaluations), "--network-steps", str(given.network_steps)]
    failures += _evaluate(folder, trained, rivals, options, Budget.of(len(given.seeds) * len(runs), given.jobs))
    for model, points in trained.items():
        trained[model] = [point for point in points if (folder / point.name / EVALUATION / "files.json").is_file()]
    evaluated = [point for points in trained.values() for point in points]
    if not evaluated:
        raise UserError("no run is finished" + "".join(f"; {failure}" for failure in failures))
    table = write_table(folder, read_rows(folder, trained), folder / evaluated[0].name)
    print(f"\n{table}\n\ntable, figure and runs: {folder}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _evaluate(
    folder: Path,
    runs: dict[Model, list[Point]],
    rivals: Sequence[tuple[str, str]],
    options: Sequence[str],
    budget: Budget,
) -> list[str]:
    """Evaluate the runs that are not evaluated yet, in parallel, and return a line for each that fails.

    The baselines of a chain, and the rivals, are evaluated once, with the first seed.
    """
    numbered = [(index, model, point) for model, points in runs.items() for index, point in enumerate(points)]
    commands = {
        point.name: _evaluation(folder / point.name, model, rivals, options if index == 0 else None)
        for index, model, point in sorted(numbered, key=lambda run: run[0])  # the longest first
        if not (folder / point.name / EVALUATION / "files.json").is_file()
    }
    environment = {**os.environ, **dict.fromkeys(THREADS, str(budget.threads))}

    def run(name: str) -> str | None:
        done = subprocess.run(commands[name], env=environment, capture_output=True, text=True)
        if not done.returncode:
            return None
        return f"{name}: {(done.stderr.strip().splitlines() or ['evaluation failed'])[-1]}"

    with ThreadPoolExecutor(budget.jobs) as executor:
        results = [executor.submit(run, name) for name in commands]
        finished = tqdm(as_completed(results), total=len(results), desc="Evaluating", unit="run", disable=None)
        try:
            return [failure for result in finished if (failure := result.result())]
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _evaluation(run: Path, model: Model, rivals: Sequence[tuple[str, str]], options: Sequence[str] | None) -> list[str]:
    """Return the command that evaluates a run; with options, of the baselines and rivals as well."""
    command = [sys.executable, "evaluate.py", str(run / "checkpoints" / "best.ckpt"), "--output", str(run / EVALUATION)]
    # As in the paper's code, which evaluates the first 50 s.
    command += ["--interpolation", model.interpolation, "--seconds", "50", "--baselines", "input"]
    if options is not None:
        command += ["defaults", "fixed", *(["network"] if model.name == OURS else []), *options]
        if model.name == OURS:
            command += [part for task, rival in rivals if task == model.task for part in ("--compare", rival)]
    return command


def _parse_rival(text: str) -> tuple[str, str]:
    task, colon, rival = text.partition(":")
    if task not in TASKS or not colon or "=" not in rival:
        raise UserError(f"--rival {text}: give TASK:NAME=FOLDER, for one of the tasks {', '.join(TASKS)}")
    return task, rival


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m dfx.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--scale", choices=SCALES, required=True, help="data and length of training")
    add("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="by default all")
    add("--seeds", type=Range(SEEDS).parse, nargs="+", default=[0, 1, 2], help="by default 0 1 2")
    add("--plan", action="store_true", help="say what is absent and how long the runs take, and run none")
    add("--jobs", type=Range("1..1024").parse, help="number of parallel runs; by default one per core, at most 16")
    add("--folder", type=Path, help="of the runs and the table; by default runs/paper_SCALE")
    add("--rival", action="append", default=[], metavar="TASK:NAME=FOLDER", help="renderings of another method")
    add(
        "--evaluations", type=Range("1..1000000").parse, default=300, help="settings that `fixed` tries; by default 300"
    )
    add("--network-steps", type=Range("1..1000000").parse, default=1000, help="training steps of `network`")
    modes = ("offline", "online", "disabled")
    add("--wandb-mode", choices=modes, help="mode of all runs; by default the one of their config")
    return parser


if __name__ == "__main__":
    with errors_in_one_line():
        try:
            sys.exit(main())
        except KeyboardInterrupt as interrupt:
            interrupt.args = ("the same command resumes from here",)
            raise
