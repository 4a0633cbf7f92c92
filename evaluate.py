"""Compare a trained model with baselines on a test split.

    python evaluate.py runs/tube_amp/checkpoints/best.ckpt
    python evaluate.py runs/tube_amp/checkpoints/best.ckpt --baselines all
    python evaluate.py runs/tube_amp/checkpoints/best.ckpt --baselines input fixed per_file --evaluations 300
    python evaluate.py runs/tube_amp/checkpoints/best.ckpt --data my/pairs --output my/results
    python evaluate.py runs/tube_amp/checkpoints/best.ckpt --json

Prints a table of means, or with --json one object {method: {metric: mean}}. Writes to a folder the metrics of every
file, their means with intervals, settings, automation and audio, and report.html, a page for listening and for blind
ratings, which "python -m dfx.report FOLDER" writes again.

Baselines: "input" and "defaults" need no training, "fixed" and "network" learn from the training pairs, "per_file" and
"per_file_warm" search a setting for every test pair, with one rendering for each evaluation. The module
dfx/evaluation/baselines.py describes them.
"""

import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import fields
from pathlib import Path

from dfx.datasets import PairedAudio
from dfx.errors import errors_in_one_line
from dfx.evaluation.baselines import BASELINES
from dfx.evaluation.evaluate import evaluate, find_removed
from dfx.evaluation.results import as_table, list_places
from dfx.evaluation.search import BaselineOptions
from dfx.render.automation import INTERPOLATIONS
from dfx.tasks import read_checkpoint
from dfx.tasks.loading import build_task

BUDGET = {
    "evaluations": "settings that a search tries",
    "excerpts": "excerpts of training pairs on which `fixed` is searched for",
    "excerpt_seconds": "their length in seconds",
    "network_steps": "training steps of `network`",
    "seed": "of excerpts, searches and the network",
}


def main() -> None:
    options = _parser().parse_args()
    checkpoint = read_checkpoint(options.checkpoint)
    task = build_task(checkpoint, options.checkpoint, options.trust)
    trained_on = checkpoint["dfx"]["data"]
    data = PairedAudio(
        root=options.data or trained_on["root"],
        sample_rate=task.chain.sample_rate,
        channels=task.chain.channels,
        window=task.window,
        treatment=task.treatment,
        seed=trained_on["seed"],
        rows=None if options.data else trained_on.get("rows"),
    )
    data.setup("test")
    folder = options.output or Path(options.checkpoint).parent.parent / "evaluation"
    results = evaluate(
        task,
        data.whole_pairs("test"),
        folder,
        BASELINES if "all" in options.baselines else options.baselines,
        data.whole_pairs("train"),
        BaselineOptions(**{option.name: getattr(options, option.name) for option in fields(BaselineOptions)}),
        find_removed(data.splits["test"]),
        options.interpolation,
    )
    if options.json:
        print(json.dumps(results))
    else:
        print(f"\n{as_table(results)}\n\n{list_places(folder)}")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    moves = "; ".join(f"{name}: {text}" for name, text in INTERPOLATIONS.items())
    moves = f"how parameters move between frames. {moves} (default: hold)"
    names = f"methods to compare with: {', '.join(BASELINES)}, or all (default: input defaults)"
    default = ["input", "defaults"]
    add("checkpoint", help="a checkpoint that train.py wrote")
    add("--data", help="a folder of pairs (default: the training data)")
    add("--output", type=Path, help="a folder for the results (default: evaluation/ of the run)")
    add("--json", action="store_true", help="print one JSON object instead of a table")
    add(
        "--trust",
        action="store_true",
        help="run effects of the checkpoint that are Python classes, or plugins by path",
    )
    add("--baselines", nargs="+", choices=[*BASELINES, "all"], default=default, metavar="NAME", help=names)
    add("--interpolation", choices=INTERPOLATIONS, default="hold", help=moves)
    for option in fields(BaselineOptions):
        text = f"{BUDGET[option.name]} (default: {option.default:g})"
        add(f"--{option.name.replace('_', '-')}", type=type(option.default), default=option.default, help=text)
    return parser


if __name__ == "__main__":
    with errors_in_one_line():
        main()
