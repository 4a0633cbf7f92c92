"""Sentences after training: those that are true, and no others."""

import numpy as np
import pytest

from dfx.effects.parameter import Parameter, ParameterSpace
from dfx.evaluation.results import Results
from dfx.evaluation.verdict import describe_results

SPACE = ParameterSpace([Parameter(f"eq.{name}", "dB", -10.0, 10.0, 0.0) for name in "abc"])


def sentences(folder, output=1.0, input=2.0, defaults=2.0, groups="ab", values=(0.0, 0.0, 0.0), spread=0.0) -> str:
    """Return the sentences about files of some groups; ``spread`` is the range of the output's loss among them."""
    losses = {"input": input, "defaults": defaults, "output": output}
    rows = [
        {"file": file, "group": group, "method": method, "loss": loss + spread * (file % 2) * (method == "output")}
        for file, group in enumerate(groups)
        for method, loss in losses.items()
    ]
    results = Results.of(rows, "hold")
    (folder / "automation").mkdir()
    rows = np.column_stack([np.arange(4), np.tile(values, (4, 1))])
    np.savetxt(folder / "automation" / "a.csv", rows, delimiter=",", header="seconds,a,b,c")
    return " ".join(describe_results(results, [folder / "automation" / "a.csv"], SPACE))


def test_a_good_result_needs_no_sentence(tmp_path):
    assert sentences(tmp_path) == ""


@pytest.mark.parametrize(
    "options, expected",
    [
        (
            {"input": 0.5},
            "The model is worse than the unprocessed input: loss 1.000, 0.500 there, difference 0.500 ±0.000",
        ),
        ({"defaults": 0.5}, "The model is worse than the untrained effects: loss 1.000, 0.500 there, difference 0.500"),
        (
            {"input": 3.0, "defaults": 1.1, "spread": 0.1},
            "The model is not shown to be better than the untrained effects: loss 1.050",
        ),
        ({"groups": "a"}, "There is one test file: the metrics say little about others."),
        ({"groups": "aa"}, "There is one group of test files: the metrics say little about others."),
        ({"values": (10.0, 0.0, 10.0)}, "At the upper end of their ranges nearly all the time: eq.a, eq.c. Wider"),
        ({"values": (0.0, -10.0, 0.0)}, "At the lower end of their ranges nearly all the time: eq.b. Wider"),
    ],
)
def test_a_fault_is_the_only_sentence(options, expected, tmp_path):
    assert sentences(tmp_path, **options).startswith(expected)
