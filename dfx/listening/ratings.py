"""Ratings of many listeners: read from CSV files, screened, and averaged."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dfx.datasets.manifest import Row, read_manifest
from dfx.errors import DataError, printable
from dfx.evaluation.results import Mean
from dfx.report.write import ANCHOR

REFERENCE = "hidden_reference"
_NAMES = {"reference": REFERENCE, "anchor35": ANCHOR, "anchor70": "anchor_7_khz"}
_PAGE = ("evaluation", "listener", "file", "method", "rating")
_WEBMUSHRA = ("session_test_id", "trial_id", "rating_stimulus", "rating_score")
_LOWEST_REFERENCE, _MOST_MISSED = 90.0, 0.15


class Rating(NamedTuple):
    """A rating from 0 to 100 of one condition of one item."""

    listener: str
    item: str
    condition: str
    score: float


class Average(NamedTuple):
    """The mean rating of a condition, or the mean difference of two."""

    condition: str
    mean: Mean


def read_ratings(paths: Iterable[Path]) -> list[Rating]:
    """Read the ratings of the page's blind test (``ratings.csv``) and of webMUSHRA (``mushra.csv``).

    A listener of the page has a name, or else that of the file. One of webMUSHRA has the identifier of the session, or
    in its earlier versions the answers to its questions. If a listener rates a condition of an item again, the last
    rating counts.

    Raises:
        DataError: if a file is neither, or a rating is no number from 0 to 100.
    """
    found: dict[tuple[str, str, str], float] = {}
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        for row in read_manifest(path):
            listener, item, condition, score = _values(path, row)
            try:
                number = float(score)
            except ValueError:
                number = -1.0
            if not 0 <= number <= 100:
                raise DataError(f"{path}, line {row.line}: the rating '{score}' is not a number from 0 to 100")
            found[listener, item, _NAMES.get(condition, condition)] = number
    return [
        Rating(printable(listener), printable(item), printable(condition), score)
        for (listener, item, condition), score in found.items()
    ]


def find_unreliable(ratings: Sequence[Rating]) -> list[str]:
    """Return the listeners that BS.1534-3 excludes: they rate the hidden reference below 90 in over 15 % of the items.

    Listeners without ratings of the hidden reference are kept.
    """
    unreliable = []
    for listener in dict.fromkeys(rating.listener for rating in ratings):
        scores = [one.score for one in ratings if one.listener == listener and one.condition == REFERENCE]
        if sum(score < _LOWEST_REFERENCE for score in scores) > _MOST_MISSED * len(scores):
            unreliable.append(listener)
    return unreliable


def average(ratings: Sequence[Rating]) -> list[Average]:
    """Return the mean of each condition, the highest first, and ``output`` minus each other, with 95 % intervals.

    Intervals are by Student's t over listeners (see :class:`~dfx.evaluation.results.Mean`): they say what other
    listeners would rate on the same items. Differences are between ratings of one item by one listener.
    """
    scores: dict[str, dict[tuple[str, str], float]] = {}
    for listener, item, condition, score in ratings:
        scores.setdefault(condition, {})[listener, item] = score

    def mean(of: dict[tuple[str, str], float]) -> Mean:
        return Mean.of(list(of.values()), [listener for listener, _ in of])

    means = sorted((Average(condition, mean(of)) for condition, of in scores.items()), key=lambda of: -of.mean)
    differences = []
    for condition in [of.condition for of in means if "output" in scores and of.condition != "output"]:
        both = scores["output"].keys() & scores[condition].keys()
        if both:
            paired = {key: scores["output"][key] - scores[condition][key] for key in sorted(both)}
            differences.append(Average(f"output - {condition}", mean(paired)))
    return [*means, *differences]


def _values(path: Path, row: Row) -> tuple[str, str, str, str]:
    """Return listener, item, condition and score of a row."""
    values = row.values
    if values.keys() >= set(_PAGE):
        listener = values["listener"] or str(path)
        return listener, f"{values['evaluation']} {values['file']}", values["method"], values["rating"]
    if values.keys() >= set(_WEBMUSHRA):
        columns = list(values)
        answers = [values[column] for column in columns[1 : columns.index("trial_id")] if column != "session_uuid"]
        listener = values.get("session_uuid") or ", ".join(answers) or str(path)
        item = f"{values['session_test_id']} {values['trial_id']}"
        return listener, item, values["rating_stimulus"], values["rating_score"]
    raise DataError(f"{path} has neither the columns {', '.join(_PAGE)} nor {', '.join(_WEBMUSHRA)}")
