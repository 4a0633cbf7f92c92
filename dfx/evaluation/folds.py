"""Cross-validation: one run for each fold of the pairs, and metrics of all pairs, each rendered by a model that was not
trained on it.

A folder holds the runs ``fold_1``, ``fold_2`` and so on, ``folds.csv`` with the means of each fold, and the tables of
:mod:`dfx.evaluation.evaluate` over all pairs: ``metrics.json``, and as CSV and JSON ``means``, ``differences`` and
``files``.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dfx.datasets.pairs import Pair
from dfx.effects.parameter import Parameter, ParameterSpace
from dfx.errors import DataError, UserError
from dfx.evaluation.evaluate import list_metrics, write_tables
from dfx.evaluation.results import Results, as_table
from dfx.evaluation.verdict import describe_results
from dfx.writing import write_csv


def cross_validate(folder: Path, folds: Sequence[Mapping[str, Sequence[Pair]]], train: Callable[[int], None]) -> str:
    """Train every fold that is not finished, and write the tables of all.

    Args:
        folder: of the runs.
        folds: the pairs of each fold by split, see :func:`~dfx.datasets.pairs.find_pairs`.
        train: is called with the number of a fold, from 1; it trains and evaluates the run ``fold_NUMBER``, or
            continues it.

    Returns:
        The table of means, and sentences about them.

    Raises:
        DataError: if a finished fold has tested other pairs than it would now.
        UserError: if a run ended without an evaluation.
    """
    finished = {}
    for number, splits in enumerate(folds, 1):
        if is_finished(run := folder / f"fold_{number}"):
            finished[number] = _read_rows(run, splits["test"])
            print(f"fold {number} of {len(folds)} is finished: {run}")
    for number, splits in enumerate(folds, 1):
        if number not in finished:
            print(f"fold {number} of {len(folds)}: {', '.join(f'{len(splits[name])} {name}' for name in splits)} pairs")
            train(number)
            finished[number] = _read_rows(folder / f"fold_{number}", splits["test"])
    rows = [row for number in range(1, len(folds) + 1) for row in finished[number]]
    results = Results.of(rows, "hold")
    write_tables(folder, results, rows)
    by_fold = [
        {"fold": number, "method": method, "files": of["loss"].count, **of}
        for number in range(1, len(folds) + 1)
        for method, of in Results.of(finished[number], "hold").items()
    ]
    write_csv(folder / "folds.csv", by_fold, ["fold", "method", "files", *list_metrics(rows)])
    about = json.loads((folder / "fold_1" / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    space = ParameterSpace([Parameter(**parameter) for parameter in about["parameters"]])
    sentences = describe_results(results, folder.glob("fold_*/evaluation/automation/*.csv"), space)
    return "\n".join([as_table(results), *([""] if sentences else []), *sentences])


def is_finished(run: Path) -> bool:
    """Return whether a run has been evaluated, by the last file of an evaluation."""
    return (run / "evaluation" / "report.html").is_file()


def _read_rows(run: Path, tested: Sequence[Pair]) -> list[dict[str, Any]]:
    """Return the metrics of the files that a run has tested."""
    if not is_finished(run):
        raise UserError(f"{run} ended without an evaluation: it needs validations, and must not be interrupted")
    rows = json.loads((run / "evaluation" / "files.json").read_text(encoding="utf-8"))
    if {row["file"] for row in rows} != {pair.name for pair in tested}:
        raise DataError(
            f"{run} has tested other pairs than fold {run.name[5:]} has now: restore the data and data.seed"
        )
    return rows
