"""The benchmarks run and report consistent rows; the figures themselves need a quiet machine."""

import contextlib
import itertools
import json
import math

import pytest

from dfx.benchmark import speed as speed_module
from dfx.benchmark.__main__ import main
from dfx.benchmark.chains import chains, notes
from dfx.benchmark.fidelity import ESTIMATORS, fidelity
from dfx.benchmark.speed import speed
from dfx.blackbox.workers import available_cores
from dfx.figures import draw_fidelity

TUBE_AMP = [chain for chain in chains() if chain.name == "tube_amp"]


def test_the_notes_are_the_shipped_ones_and_repeat_if_there_are_too_few():
    input, target = notes(113, 2048)
    assert input.shape == target.shape == (113, 1, 2048)
    assert input[:2].equal(input[111:]) and not input[0].equal(input[1])


def test_fidelity_reports_a_row_for_each_time_and_estimator_and_a_figure(tmp_path):
    rows = list(fidelity(TUBE_AMP, [4], batches=1, seconds=0.1, late_steps=1, seed=0))
    assert [(row["when"], row["name"]) for row in rows] == [(w, n) for w in ("start", "late") for n in ESTIMATORS]
    for row in rows:
        assert {"chain", "directions", "sides", "draws"} <= set(row)
        assert row["batch"] == 4 and row["parameters"] == 11 and row["renderings"] >= 2
        assert all(-1 <= row[f"cosine_{of}"] <= 1 for of in ("encoder", "parameters"))
    differences = [row for row in rows if row["estimator"] == "finite_difference"]
    assert all(row["cosine_parameters"] > 0.99 for row in differences)
    draw_fidelity(rows).savefig(tmp_path / "fidelity.png")
    assert (tmp_path / "fidelity.png").stat().st_size > 10000


def test_speed_reports_a_row_for_each_number_of_workers_and_ratios_that_agree_with_its_times(monkeypatch):
    monkeypatch.setattr(speed_module, "_MAX_DEVIATION", math.inf)
    rows = list(speed(TUBE_AMP, ["frame", "frames"], [2], seconds=0))
    assert [row["workers"] for row in rows] == 2 * sorted({1, available_cores()})
    for row in rows:
        assert row["rounds"] == row["passed"] == 3
        assert all(math.isfinite(row[f"{of}_ms"]) for of in ("layer", "bare", "original", "step"))
        assert math.isclose(row["original_over_layer"], row["original_ms"] / row["layer_ms"])
        assert math.isclose(row["layer_over_limit"], row["layer_ms"] * row["workers"] / row["bare_ms"])


def test_speed_counts_only_rounds_between_two_controls_that_find_enough_free_cores(monkeypatch):
    monkeypatch.setattr(speed_module, "_time_turn", lambda run: [run()])
    candidates = {"candidate": itertools.count().__next__}
    free_cores = iter([2, 1, 0, 2, 2, 2]).__next__
    monkeypatch.setattr(speed_module, "_MIN_ROUNDS", 5)
    medians, *rounds = speed_module._medians(candidates, free_cores, [1, 2], seconds=0, label="")
    assert medians == {1: {"candidate": 3}, 2: {"candidate": 3.5}} and rounds == [5, {1: 3, 2: 2}]
    medians, *rounds = speed_module._medians(candidates, lambda: 0, [1], seconds=0, label="")
    assert math.isnan(medians[1]["candidate"]) and rounds == [5, {1: 0}]


def test_figures_that_no_round_gave_are_null_in_json(monkeypatch, capsys):
    monkeypatch.setattr("dfx.benchmark.speed.speed", lambda *_: iter([{"passed": 0, "layer_ms": math.nan}]))
    monkeypatch.setattr("sys.argv", ["benchmark", "speed", "--chains", "tube_amp", "--json"])
    main()
    assert json.loads(capsys.readouterr().out) == [{"passed": 0, "layer_ms": None}]


def test_the_control_does_not_find_all_cores_free_while_other_processes_keep_them_busy():
    with contextlib.closing(speed_module._Control(2 * available_cores())) as control:
        # Every core has two processes.
        assert all(control.free_cores() <= 1 for _ in range(3))


@pytest.mark.parametrize("alone, together, free", [(1.0, 1.0, 3), (1.0, 1.2, 1), (1.2, 1.2, 0), (1.2, 1.0, 0)])
def test_the_control_compares_the_time_of_processes_with_their_cpu_time(alone, together, free, monkeypatch):
    with contextlib.closing(speed_module._Control(3)) as control:
        monkeypatch.setattr(control, "ask", lambda messages: [1.0])
        clock = iter([0.0, alone, alone + together]).__next__
        monkeypatch.setattr(speed_module.time, "perf_counter", clock)
        assert control.free_cores() == free
