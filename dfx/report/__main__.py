"""Writes the listening page of an evaluation again; see :mod:`dfx.report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dfx.errors import errors_in_one_line
from dfx.report import PAGE_MEGABYTES, PAGE_SECONDS, write_report


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dfx.report",
        description="Writes the listening page of an evaluation again, from what evaluate.py left in its folder.",
    )
    parser.add_argument("evaluation", type=Path, help="the folder, for instance runs/tube_amp/evaluation")
    parser.add_argument(
        "--seconds", type=_positive, default=PAGE_SECONDS,
        help="how much of each file the page holds, from its beginning (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--megabytes", type=_positive, default=PAGE_MEGABYTES,
        help="the size at which another page is begun (default: %(default)g)",
    )  # fmt: skip
    arguments = parser.parse_args()
    for path in write_report(arguments.evaluation, arguments.seconds, arguments.megabytes):
        print(path)


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


if __name__ == "__main__":
    with errors_in_one_line():
        main()
