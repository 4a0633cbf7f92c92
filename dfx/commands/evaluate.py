"""Compare a trained model with baselines on the test pairs of its training, or on other pairs.

    python evaluate.py runs/tube_amp/checkpoints/best.ckpt
    python evaluate.py runs/tube_amp/checkpoints/best.ckpt --baselines all
    python evaluate.py runs/tube_amp/checkpoints/best.ckpt --baselines input fixed per_file --evaluations 300
    python evaluate.py runs/tube_amp/checkpoints/best.ckpt --data my/pairs --output my/results
    python evaluate.py runs/tube_amp/checkpoints/best.ckpt --data my/pairs --compare cafx=my/cafx other=my/other
    python evaluate.py runs/tube_amp/checkpoints/best.ckpt --json

The pairs of each split are those of the checkpoint, also if others were added since. --data evaluates all pairs of a
folder, or the test split of its manifest if there is one.

Prints a table of means and of the differences between the model and each baseline, or with --json one object {method:
{metric: mean}}. A difference is shown where its 95 % interval excludes 0; intervals count each group of pairs (column
"group" of the manifest) once. Writes to a folder the metrics of every file, means and differences with intervals,
settings, automation and audio, and report.html, a page for listening and for blind ratings, which "python -m dfx.report
FOLDER" writes again.

Baselines: "input" and "defaults" need no training, "levelled", "fixed" and "network" learn from the training pairs,
"per_file" and "per_file_warm" search a setting for every test pair, and "refined" the best shift of the model's
automation, with one rendering for each evaluation. "matched" brings every input to the spectrum and loudness of its
reference, "matchering" does so with the package of this name, and "per_reference" searches the setting that comes
nearest to it. In tasks without references, the targets stand in for them. The module dfx/evaluation/baselines.py
describes all of them, of which "all" leaves out "matchering".

A model that takes references is evaluated as it was trained: the target of every pair is cut in halves, of which one is
degraded to the input, and the other is the reference. The page names and plays it.

--compare adds the output of another system, a file for each test pair. The files have the names of the inputs and any
suffix, sample rate and number of channels. Their delay against the target is taken out, up to 0.25 s, and each pair is
cut where the first of its files ends; their level is left as it is.

The paper's code renders with --interpolation published --seconds 50: the beginning of each file, in blocks of 64
samples, with smoothed parameters, and with the latency of the effects left in.
"""

import json
import re
import sys
from argparse import ArgumentTypeError, RawDescriptionHelpFormatter
from dataclasses import fields
from pathlib import Path

from dfx.errors import ArgumentParser, DataError
from dfx.evaluation.options import ALL, BASELINES, LEARNED, BaselineOptions
from dfx.render.automation import INTERPOLATIONS

TAKEN = (*BASELINES, "output", "target", "reference")
BUDGET = {
    "evaluations": "settings that a search tries",
    "excerpts": "excerpts of training pairs on which `fixed` is searched for",
    "excerpt_seconds": "their length in seconds",
    "network_steps": "training steps of `network`",
    "seed": "of excerpts, searches and the network",
}


def main() -> None:
    """Run the command line.

    Raises:
        UserError: if the checkpoint or its pairs cannot be used.
    """
    options = _parser().parse_args()
    # Imported here because --help and wrong options do not need torch.
    from dfx.datasets.halves import halve
    from dfx.datasets.pairs import as_recording, check_audio, find_test_pairs
    from dfx.datasets.splits import count_trained, restore_splits
    from dfx.datasets.treatment import TreatedPairs
    from dfx.evaluation.clips import PairsWithClips
    from dfx.evaluation.evaluate import evaluate, find_removed
    from dfx.evaluation.results import as_table, list_places
    from dfx.tasks import read_checkpoint
    from dfx.tasks.loading import build_task, find_device, restore_degradation

    device = find_device(options.device)
    checkpoint = read_checkpoint(options.checkpoint)
    task = build_task(checkpoint, options.checkpoint, options.trust).to(device)
    trained_on = checkpoint["dfx"]["data"]
    baselines = ALL if "all" in options.baselines else options.baselines
    learned = set(baselines) & set(LEARNED)
    splits = {"train": []} if options.data and not learned else restore_splits(trained_on)
    tested = find_test_pairs(options.data) if options.data else splits["test"]
    if not tested:
        raise DataError(f"none of the checkpoint's test pairs is left in {trained_on['root']}: give --data")
    checked = [*tested, *splits["train"]] if learned else tested
    check_audio([as_recording(pair) for pair in checked] if task.takes_reference else checked)
    if options.data and (known := count_trained(trained_on, tested, options.data)):
        text = (
            f"{known} of the {len(tested)} pairs of {options.data} are training or validation pairs of the checkpoint"
        )
        print(text, file=sys.stderr)
    if task.takes_reference:
        degradation = restore_degradation(checkpoint, options.checkpoint, options.trust)
        context_seconds = task.window.context_samples / task.chain.sample_rate
        tested, splits["train"] = (halve(pairs, degradation, context_seconds) for pairs in (tested, splits["train"]))
    audio = task.treatment, task.chain.sample_rate, task.chain.channels
    training, evaluated = TreatedPairs(splits["train"], *audio), TreatedPairs(tested, *audio, options.seconds)
    compared = PairsWithClips(evaluated, dict(options.compare)) if options.compare else evaluated
    folder = options.output or Path(options.checkpoint).parent.parent / "evaluation"
    budget = BaselineOptions(**{option.name: getattr(options, option.name) for option in fields(BaselineOptions)})
    removed = find_removed(tested)
    results = evaluate(task, compared, folder, baselines, training, budget, removed, options.interpolation)
    if options.wandb:
        from dfx.loggers.evaluation import log_evaluation

        log_evaluation(folder, options.wandb, options.wandb_project)
    if options.json:
        print(json.dumps(results))
    else:
        print(f"\n{as_table(results)}\n\n{list_places(folder)}")


def _system(text: str) -> tuple[str, Path]:
    """Return the name and folder of ``NAME=FOLDER``."""
    name, _, folder = text.partition("=")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in TAKEN:
        raise ArgumentTypeError(f"'{name}' cannot name a system: use letters, digits, _ and -, and no method's name")
    if not (folder and Path(folder).is_dir()):
        raise ArgumentTypeError(f"{folder or text}: no such folder; give NAME=FOLDER")
    return name, Path(folder)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    moves = "; ".join(f"{name}: {text}" for name, text in INTERPOLATIONS.items())
    moves = f"how parameters move between frames. {moves} (default: hold)"
    names = f"methods to compare with: {', '.join(BASELINES)}, or all (default: input defaults)"
    default = ["input", "defaults"]
    add("checkpoint", help="a checkpoint that train.py wrote")
    add("--data", help="a folder of pairs to evaluate (default: the test pairs of the checkpoint)")
    add("--output", type=Path, help="a folder for the results (default: evaluation/ of the run)")
    add("--json", action="store_true", help="print one JSON object instead of a table")
    add(
        "--trust",
        action="store_true",
        help="run effects of the checkpoint that are Python classes, or plugins by path",
    )
    add("--device", default="auto", help="of the encoder: cpu, cuda, cuda:N, or auto, a GPU if there is one (default)")
    add("--baselines", nargs="+", choices=[*BASELINES, "all"], default=default, metavar="NAME", help=names)
    system = "the outputs of another system: its name, and a folder of clips"
    add("--compare", action="extend", nargs="+", type=_system, default=[], metavar="NAME=FOLDER", help=system)
    add("--wandb", choices=("offline", "online"), help="log to Weights & Biases as a run of its own (default: no)")
    add("--wandb-project", default="dfx", help="the project of that run (default: %(default)s)")
    add("--interpolation", choices=INTERPOLATIONS, default="hold", help=moves)
    add("--seconds", type=float, help="evaluate the beginnings of the pairs, of this length (default: whole pairs)")
    for option in fields(BaselineOptions):
        text = f"{BUDGET[option.name]} (default: {option.default:g})"
        add(f"--{option.name.replace('_', '-')}", type=type(option.default), default=option.default, help=text)
    return parser
