"""Write the listening page of an evaluation again; see :mod:`dfx.report`."""

from pathlib import Path

from dfx.errors import ArgumentParser, Range, errors_in_one_line
from dfx.report import PAGE_MEGABYTES, PAGE_SECONDS


def main() -> None:
    parser = ArgumentParser(
        prog="python -m dfx.report",
        description="Write the listening page of an evaluation again, from the folder written by evaluate.py.",
    )
    parser.add_argument("evaluation", type=Path, help="the folder, for instance runs/tube_amp/evaluation")
    length = "maximum length of each file, from its beginning (default: %(default)g)"
    parser.add_argument("--seconds", type=Range("(0, 86400]").parse, default=PAGE_SECONDS, help=length)
    size = "maximum size of a page; more files go to the next (default: %(default)g)"
    parser.add_argument("--megabytes", type=Range("(0, 1e6]").parse, default=PAGE_MEGABYTES, help=size)
    arguments = parser.parse_args()
    # Imported here because --help does not need it.
    from dfx.report.write import write_report

    for path in write_report(arguments.evaluation, arguments.seconds, arguments.megabytes):
        print(path)


if __name__ == "__main__":
    with errors_in_one_line():
        main()
