"""Command line of listening tests; see :mod:`dfx.listening`."""

import argparse
from argparse import RawDescriptionHelpFormatter
from pathlib import Path

import dfx.listening
from dfx.errors import ArgumentParser, DataError, Range, errors_in_one_line


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.command == "export":
        _export(arguments)
    else:
        _pool(arguments)


def _export(arguments: argparse.Namespace) -> None:
    # Imported here, as in _pool, because --help does not need it.
    from dfx.listening.webmushra import ExportOptions, export_webmushra

    options = ExportOptions(
        arguments.name, dict(arguments.items), arguments.methods, arguments.seconds, arguments.own_levels
    )
    config = export_webmushra(arguments.evaluation, arguments.folder, options)
    print(f"{config}\nopen it with http://SERVER/?config={config.name}")


def _pool(arguments: argparse.Namespace) -> None:
    from dfx.evaluation.results import format_mean
    from dfx.figures import draw_ratings
    from dfx.listening.ratings import average, find_unreliable, read_ratings
    from dfx.writing import write_csv

    ratings = read_ratings(arguments.ratings)
    if not arguments.all and (unreliable := find_unreliable(ratings)):
        print(f"left out, for ratings of the hidden reference below 90: {', '.join(unreliable)}")
        ratings = [rating for rating in ratings if rating.listener not in unreliable]
    if not ratings:
        raise DataError("there are no ratings to average")
    averages = average(ratings)
    width = max(len(of.condition) for of in averages)
    for of in averages:
        numbers = (of.mean.count, "rating"), (of.mean.groups, "listener")
        count = " of ".join(f"{number} {noun}{'s' * (number > 1)}" for number, noun in numbers)
        print(f"{of.condition:<{width}}  {format_mean(of.mean):>14}  {count}")
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "ratings.csv", [rating._asdict() for rating in ratings])
    columns = ("mean", "low", "high", "ratings", "listeners")
    rows = [{"condition": of.condition, **dict(zip(columns, of.mean.as_dict().values()))} for of in averages]
    write_csv(folder / "means.csv", rows)
    draw_ratings(ratings, averages).savefig(folder / "ratings.png")
    print(folder)


def _item(text: str) -> tuple[str, float]:
    """Return the name and the offset in seconds of ``NAME=SECONDS``, or of ``NAME``, from the beginning."""
    name, _, offset = text.rpartition("=")
    try:
        return (name, float(offset)) if name else (text, 0.0)
    except ValueError:
        return text, 0.0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m dfx.listening", description=dfx.listening.__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    export = commands.add_parser("export", help="write an evaluation as a test for webMUSHRA")
    add = export.add_argument
    add("evaluation", type=Path, help="a folder that evaluate.py wrote, for instance runs/tube_amp/evaluation")
    add("folder", type=Path, help="the folder of webMUSHRA; files are added to its folder configs")
    add("--name", default="", help="of the test (default: that of the task)")
    items = "files of the evaluation, with the offset of the excerpt in seconds (default: all, from the beginning)"
    add("--items", nargs="+", type=_item, default=[], metavar="FILE[=SECONDS]", help=items)
    add("--methods", nargs="+", metavar="NAME", help="under test (default: all but input and defaults)")
    add(
        "--seconds",
        type=Range("(0, 12]").parse,
        default=4.0,
        help="maximum length of an excerpt, at most 12 (default: %(default)g)",
    )
    levels = "keep all levels, as the paper's test did (default: all have the loudness of the reference)"
    add("--own-levels", action="store_true", help=levels)
    pool = commands.add_parser("pool", help="average the ratings of all listeners")
    add = pool.add_argument
    add("ratings", nargs="+", type=Path, help="CSV files of webMUSHRA (mushra.csv) or of the page (ratings.csv)")
    add("--output", type=Path, default=Path("ratings"), help="a folder for table and figure (default: %(default)s)")
    add("--all", action="store_true", help="keep listeners whom BS.1534 excludes")
    return parser


if __name__ == "__main__":
    with errors_in_one_line():
        main()
