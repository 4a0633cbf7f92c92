"""Compares a trained model with what it has to beat, on a test split.

    python evaluate.py runs/tube_amp/checkpoints/best.ckpt
    python evaluate.py runs/tube_amp/checkpoints/best.ckpt --baselines all
    python evaluate.py runs/tube_amp/checkpoints/best.ckpt --baselines input fixed per_file --evaluations 300
    python evaluate.py runs/tube_amp/checkpoints/best.ckpt --data my/pairs --output my/results
    python evaluate.py runs/tube_amp/checkpoints/best.ckpt --json

Prints a table of means, or with ``--json`` one object ``{method: {metric: mean}}``. Writes to a folder all metrics, of
every file and their means with intervals, as CSV and JSON; settings, automation and audio; and ``report.html``, a page
to listen on and to rate blindly, which ``python -m dfx.report FOLDER`` writes again. The baselines are described in
dfx/baselines.py: `input` and `defaults` cost nothing, `fixed` and `network` are learned from the training pairs,
`per_file` and `per_file_warm` are searched for on every test pair, which takes as many renderings of it as there are
evaluations.
"""

import argparse
import json
from dataclasses import fields
from pathlib import Path

from dfx.datasets import PairedAudio
from dfx.errors import errors_in_one_line
from dfx.evaluation.baselines import BASELINES
from dfx.evaluation.evaluate import evaluate, find_removed
from dfx.evaluation.results import as_table, where_it_lies
from dfx.evaluation.search import BaselineOptions
from dfx.tasks import build_task, read_checkpoint

BUDGET = {
    "evaluations": "settings that a search tries",
    "excerpts": "excerpts of training pairs that `fixed` is searched for on",
    "excerpt_seconds": "their length",
    "network_steps": "training steps of `network`",
    "seed": "of excerpts, searches and the network",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a checkpoint that train.py wrote")
    parser.add_argument("--data", help="a folder of pairs; by default the one that was trained on")
    parser.add_argument("--output", type=Path, help="where to write; by default beside the checkpoints")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument(
        "--baselines", nargs="+", choices=[*BASELINES, "all"], default=["input", "defaults"],
        help="what to compare with (default: input defaults)", metavar="NAME",
    )  # fmt: skip
    for option in fields(BaselineOptions):
        parser.add_argument(
            f"--{option.name.replace('_', '-')}", type=type(option.default), default=option.default,
            help=f"{BUDGET[option.name]} (default: {option.default:g})",
        )  # fmt: skip
    arguments = parser.parse_args()

    checkpoint = read_checkpoint(arguments.checkpoint)
    task = build_task(checkpoint, arguments.checkpoint)
    trained_on = checkpoint["dfx"]["data"]
    data = PairedAudio(
        root=arguments.data or trained_on["root"],
        sample_rate=task.chain.sample_rate,
        channels=task.chain.channels,
        window=task.window,
        treatment=task.treatment,
        seed=trained_on["seed"],
        rows=None if arguments.data else trained_on.get("rows"),
    )
    data.setup("test")
    folder = arguments.output or Path(arguments.checkpoint).parent.parent / "evaluation"
    results = evaluate(
        task,
        data.whole_pairs("test"),
        folder,
        BASELINES if "all" in arguments.baselines else arguments.baselines,
        data.whole_pairs("train"),
        BaselineOptions(**{option.name: getattr(arguments, option.name) for option in fields(BaselineOptions)}),
        find_removed(data.splits["test"]),
    )
    if arguments.json:
        print(json.dumps(results))
    else:
        print(f"\n{as_table(results)}\n\n{where_it_lies(folder)}")


if __name__ == "__main__":
    with errors_in_one_line():
        main()
