"""Compares a trained model with the unprocessed input on a test split.

    python evaluate.py runs/tube_amp/checkpoints/best.ckpt
    python evaluate.py runs/tube_amp/checkpoints/best.ckpt --data my/pairs --output my/results
    python evaluate.py runs/tube_amp/checkpoints/best.ckpt --json

Prints a table of means (less is better), or with ``--json`` one object ``{method: {metric: mean}}``; writes
metrics and audio to a folder.
"""

import argparse
import json
import sys
from pathlib import Path

from dfx.datasets import PairedAudio
from dfx.errors import UserError
from dfx.evaluation import as_table, evaluate
from dfx.tasks import read_checkpoint, task_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a checkpoint that train.py wrote")
    parser.add_argument("--data", help="a folder of pairs; by default the one that was trained on")
    parser.add_argument("--output", type=Path, help="where to write; by default beside the checkpoints")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()

    checkpoint = read_checkpoint(arguments.checkpoint)
    task = task_of(checkpoint, arguments.checkpoint)
    trained_on = checkpoint["dfx"]["data"]
    data = PairedAudio(
        root=arguments.data or trained_on["root"],
        sample_rate=task.chain.sample_rate,
        channels=task.chain.channels,
        window=task.window,
        seed=trained_on["seed"],
    )
    data.setup("test")
    folder = arguments.output or Path(arguments.checkpoint).parent.parent / "evaluation"
    results = evaluate(task, data.test_dataloader().dataset, folder)
    if arguments.json:
        print(json.dumps(results))
    else:
        print(f"\n{as_table(results)}\n\nmetrics  {folder}\naudio    {folder / 'audio'}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
