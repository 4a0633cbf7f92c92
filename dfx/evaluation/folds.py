"""Cross-validation: one run for each fold of the pairs, and metrics of all pairs, each rendered by a model that was not
trained on it.

A folder holds the runs ``fold_1``, ``fold_2`` and so on, ``folds.csv`` with the means of each fold, and ``evaluation``,
the evaluation of all pairs in the form of :mod:`dfx.evaluation.evaluate`.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dfx.datasets.halves import name_half
from dfx.datasets.pairs import Pair
from dfx.effects.parameter import Parameter, ParameterSpace
from dfx.errors import DataError, UserError
from dfx.evaluation import is_evaluated
from dfx.evaluation.evaluate import list_metrics, write_evaluation
from dfx.evaluation.results import Results, as_table
from dfx.evaluation.verdict import describe_results
from dfx.writing import file_stem, write_csv


def cross_validate(folder: Path, folds: Sequence[Mapping[str, Sequence[Pair]]], train: Callable[[int], None]) -> str:
    """Train every fold that is not finished, and write the tables and the page of all.

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
        if is_evaluated(run := folder / f"fold_{number}"):
            finished[number] = _read_rows(run, splits["test"])
            print(f"fold {number} of {len(folds)} is finished: {run}")
    for number, splits in enumerate(folds, 1):
        if number not in finished:
            print(f"fold {number} of {len(folds)}: {', '.join(f'{len(splits[name])} {name}' for name in splits)} pairs")
            train(number)
            finished[number] = _read_rows(folder / f"fold_{number}", splits["test"])
    finished = dict(sorted(finished.items()))
    rows = [row for of_fold in finished.values() for row in of_fold]
    by_fold = [
        {"fold": number, "method": method, "files": of["loss"].count, **of}
        for number, of_fold in finished.items()
        for method, of in Results.of(of_fold, "hold").items()
    ]
    write_csv(folder / "folds.csv", by_fold, ["fold", "method", "files", *list_metrics(rows)])
    whole = folder / "evaluation"
    about, settings = _gather([folder / f"fold_{number}" / "evaluation" for number in finished], whole)
    results = write_evaluation(whole, about, settings, rows)
    space = ParameterSpace([Parameter(**parameter) for parameter in about["parameters"]])
    sentences = describe_results(results, whole.glob("automation/*.csv"), space)
    return "\n".join([as_table(results), *([""] if sentences else []), *sentences])


def _read_rows(run: Path, tested: Sequence[Pair]) -> list[dict[str, Any]]:
    """Return the metrics of the files that a run has tested."""
    if not is_evaluated(run):
        raise UserError(f"{run} ended without an evaluation: it needs validations, and must not be interrupted")
    rows: list[dict[str, Any]] = _read_json(run / "evaluation", "files")
    halves = {name_half(pair, number) for pair in tested for number in (1, 2)}  # of a task that takes a reference
    if {row["file"] for row in rows} not in ({pair.name for pair in tested}, halves):
        raise DataError(
            f"{run} has tested other pairs than fold {run.name[5:]} has now: restore the data and data.seed"
        )
    return rows


def _gather(evaluations: Sequence[Path], folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Copy audio and automation of evaluations into one folder, and return their common description and settings."""
    for part in ("audio", "automation"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    files: list[dict[str, Any]] = []
    settings: dict[str, dict[str, Any]] = {}
    for evaluation in evaluations:
        about = _read_json(evaluation, "evaluation")
        for file in about["files"]:
            stem = file_stem(file["name"], [known["stem"] for known in files])
            files.append({**file, "stem": stem})
            tracks = {"input", *about["methods"], "target", *file.keys() & {"reference"}}
            for place in (*(f"audio/{{}}_{track}.flac" for track in tracks), "automation/{}.csv"):
                shutil.copyfile(evaluation / place.format(file["stem"]), folder / place.format(stem))
            for method, values in _read_json(evaluation, "settings").items():
                settings.setdefault(method, {})[file["name"]] = values.get(file["name"], values)
    return {**about, "files": files}, settings


def _read_json(evaluation: Path, name: str) -> Any:
    return json.loads((evaluation / f"{name}.json").read_text(encoding="utf-8"))
