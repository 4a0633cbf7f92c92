#!/usr/bin/env python3
"""Draw a few pairs of a data set at random, to measure how well a config does with few recordings.

    python data/draw_pairs.py FOLDER DRAW --seed 0
    python train.py fit --config configs/tube_amp.yaml --config configs/few_shot.yaml --data.root DRAW

DRAW/manifest.csv lists pairs of FOLDER by their absolute paths: 5 to train on, 1 for validation and 4 to test. All are
of different groups: those of the manifest of FOLDER or, with --group, what a regular expression matches in the names
of the inputs. The splits of FOLDER are not used.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # dfx need not be installed

from dfx.datasets.pairs import SPLITS, Pair, list_pairs
from dfx.datasets.preparation.pairs import run
from dfx.errors import COUNTS, SEEDS, ArgumentParser, DataError, check_numbers
from dfx.writing import write_csv


def draw(pairs: Sequence[Pair], count: int, seed: int) -> list[Pair]:
    """Return pairs at random, all of different groups.

    Raises:
        DataError: if there are too few groups.
    """
    chosen: dict[str, Pair] = {}
    for index in np.random.default_rng(seed).permutation(len(pairs)):
        chosen.setdefault(pairs[index].group, pairs[index])
    if len(chosen) < count:
        raise DataError(f"{len(chosen)} groups of pairs are too few for {count} pairs of different groups")
    return list(chosen.values())[:count]


def regroup(pair: Pair, group: re.Pattern[str]) -> Pair:
    """Return a pair whose group is what matches in the name of its input; without a match, it is the pair's name."""
    found = group.search(Path(pair.input.path).stem)
    return Pair(pair.name, pair.input, pair.target, found[0] if found else pair.name)


def _row(text: str) -> tuple[str, str]:
    column, equals, pattern = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text} is not COLUMN=PATTERN")
    return column, pattern


def _regex(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text} is not a regular expression: {error}") from None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", help="the data set")
    parser.add_argument("draw", metavar="DRAW", type=Path, help="the folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    rows_help = "select rows, as data.rows does"
    parser.add_argument("--rows", type=_row, nargs="+", default=[], metavar="COLUMN=PATTERN", help=rows_help)
    parser.add_argument("--group", type=_regex, metavar="REGEX", help="what the inputs of one group share")
    for split, count in zip(SPLITS, (5, 1, 4)):
        parser.add_argument(f"--{split}", type=int, default=count, help="pairs of this split (default: %(default)s)")
    options = parser.parse_args(arguments)
    check_numbers(vars(options), seed=SEEDS, train=COUNTS, validation=COUNTS, test=COUNTS)
    pairs = [pair for pair, _ in list_pairs(options.folder, dict(options.rows))]
    if options.group:
        pairs = [regroup(pair, options.group) for pair in pairs]
    counts = {split: getattr(options, split) for split in SPLITS}
    splits = [split for split, count in counts.items() for _ in range(count)]
    drawn = draw(pairs, len(splits), options.seed)
    options.draw.mkdir(parents=True, exist_ok=True)
    listed = [
        {
            "name": pair.name,
            "split": split,
            "input": Path(pair.input.path).resolve(),
            "target": Path(pair.target.path).resolve(),
        }
        for pair, split in zip(drawn, splits)
    ]
    write_csv(options.draw / "manifest.csv", listed)
    for row in listed:
        print(f"{row['split']}: {row['name']}")


if __name__ == "__main__":
    run(main)
