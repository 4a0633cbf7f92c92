"""Plain sentences about an evaluation, where they are true."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dfx.effects.parameter import ParameterSpace
from dfx.evaluation.results import Results, format_mean

_AT_BOUND = 0.01  # distance from a bound, as a share of the range
_MOST_FRAMES = 0.9


def describe_results(results: Results, automation: Iterable[Path], space: ParameterSpace) -> list[str]:
    """Return sentences about what an evaluation does not show, and about parameters at their bounds.

    A model is worse than a baseline if the interval of their paired difference is above 0, and not shown to be better
    if it includes 0.

    Args:
        results: of :func:`~dfx.evaluation.evaluate.evaluate`.
        automation: the files that it wrote to ``automation/``.
        space: the model's parameters.
    """
    found = []
    output = results["output"]["loss"]
    for method, described in {"input": "the unprocessed input", "defaults": "the untrained effects"}.items():
        difference = results.differences[method]["loss"] if method in results.differences else None
        if difference is None or difference.low is None or (difference.excludes_zero and difference < 0):
            continue
        verdict = "worse" if difference.excludes_zero else "not shown to be better"
        losses = f"loss {output:.3f}, {results[method]['loss']:.3f} there, difference {format_mean(difference)}"
        found.append(f"The model is {verdict} than {described}: {losses}.")
    if output.groups == 1:
        files = "is one test file" if output.count == 1 else "is one group of test files"
        found.append(f"There {files}: the metrics say little about others. --run.folds K tests all pairs in turn.")
    tables = [np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2) for path in automation]
    positions = space.normalize(np.concatenate(tables)[:, 1:])
    for end, near in {"lower": positions <= _AT_BOUND, "upper": positions >= 1 - _AT_BOUND}.items():
        names = [name for name, share in zip(space.names, near.mean(axis=0)) if share > _MOST_FRAMES]
        if names:
            found.append(
                f"At the {end} end of their ranges nearly all the time: {', '.join(names)}. Wider may be better."
            )
    return found
