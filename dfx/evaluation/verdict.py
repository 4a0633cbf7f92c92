"""Plain sentences about an evaluation, where they are true."""

from pathlib import Path

import numpy as np

from dfx.effects.parameter import ParameterSpace
from dfx.evaluation.results import Results

_AT_BOUND = 0.01  # distance from a bound, as a share of the range
_MOST_FRAMES = 0.9


def describe_results(results: Results, folder: Path, space: ParameterSpace) -> list[str]:
    """Return a sentence for a model that is worse than a baseline, a single test file, and parameters at their bounds.

    Args:
        results: of :func:`~dfx.evaluation.evaluate.evaluate`.
        folder: that it wrote to.
        space: the model's parameters.
    """
    found = []
    output = results["output"]["loss"]
    for method, described in {"input": "the unprocessed input", "defaults": "the untrained effects"}.items():
        if method in results and output > results[method]["loss"]:
            found.append(
                f"The model is worse than {described}: loss {output:.3f}, {results[method]['loss']:.3f} there."
            )
    if output.count == 1:
        found.append("There is one test file: the metrics say little about others.")
    tables = [np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2) for path in (folder / "automation").glob("*.csv")]
    positions = space.normalize(np.concatenate(tables)[:, 1:])
    for end, near in {"lower": positions <= _AT_BOUND, "upper": positions >= 1 - _AT_BOUND}.items():
        names = [name for name, share in zip(space.names, near.mean(axis=0)) if share > _MOST_FRAMES]
        if names:
            found.append(
                f"At the {end} end of their ranges nearly all the time: {', '.join(names)}. Wider may be better."
            )
    return found
