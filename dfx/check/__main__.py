"""Check a folder of pairs before training on it.

    python -m dfx.check mine --config configs/mine.yaml
    python -m dfx.check mine --config configs/mine.yaml --json

prints the pairs of each split with their sample rates, channels, lengths, levels, silence and clipping, the offset and
polarity of every target relative to its input, what training converts, and what looks wrong. Faults (!) make training
refuse the data, and the status is 1; warnings (?) do not. Training runs a short form of these checks.
"""

import dataclasses
import json
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence

from dfx.errors import ArgumentParser, errors_in_one_line


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; the status is 1 if training would refuse the data."""
    parser = ArgumentParser(
        prog="python -m dfx.check", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="the folder of the pairs, as for --data.root of train.py")
    help = "config of the training, which may be given several times, as for train.py (default: 22050 Hz, mono)"
    parser.add_argument("--config", action="append", default=[], help=help)
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    options = parser.parse_args(args)
    # Imported here because --help and wrong options do not need torch.
    from dfx.check.folder import as_text, check_folder, read_options

    report = check_folder(options.folder, read_options(options.config))
    print(json.dumps(dataclasses.asdict(report), allow_nan=False) if options.json else as_text(report))
    if report.faults:
        sys.exit(1)


if __name__ == "__main__":
    with errors_in_one_line():
        main()
