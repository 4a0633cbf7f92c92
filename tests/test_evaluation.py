import csv
import json
import shutil

import pytest
import soundfile
import torch

from dfx.baselines import BASELINES, BaselineOptions
from dfx.datasets import DataError
from dfx.datasets.pairs import find_pairs
from dfx.errors import UserError
from dfx.evaluation import as_table, evaluate, find_removed
from dfx.metrics import METRICS
from tests.conftest import known
from tests.test_task import task

QUICK = BaselineOptions(evaluations=120, excerpts=2, excerpt_seconds=0.2, network_steps=1)


def pairs(gain: float = 0.3, names=("one", "two")) -> list:
    inputs = [0.1 * torch.randn(1, 8000, generator=torch.Generator().manual_seed(i)) for i in range(len(names))]
    return [{"input": input, "target": gain * input, "name": name} for input, name in zip(inputs, names)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The evaluation of an untrained gain against everything."""
    folder = tmp_path_factory.mktemp("evaluation")
    evaluate(task([known("Gain")]), pairs(), folder, BASELINES, pairs(names=("t",)), QUICK, {"two": [(0.0, 0.1)]})
    return folder


def test_every_method_has_its_metrics_and_the_training_loss(folder):
    results = json.loads((folder / "metrics.json").read_text())
    assert list(results) == [*BASELINES, "output"]
    assert all(set(metrics) == {"loss", *METRICS, "removed_db", "kept_db"} for metrics in results.values())
    for better in ("fixed", "per_file", "per_file_warm"):
        for worse in ("input", "defaults", "output"):
            assert results[better]["loss"] < 0.2 * results[worse]["loss"]


def test_every_file_has_a_row_for_every_method_and_audio_for_all(folder):
    rows = list(csv.DictReader((folder / "files.csv").open()))
    assert [(row["file"], row["method"]) for row in rows] == [
        (name, method) for name in ("one", "two") for method in (*BASELINES, "output")
    ]
    sides = (*BASELINES, "output", "target")
    heard = {side: soundfile.read(folder / "audio" / f"two_{side}.flac")[0] for side in sides}
    assert all(len(audio) == 8000 for audio in heard.values())
    assert abs(heard["per_file"] - heard["target"]).max() < 0.05 * abs(heard["target"]).max()


def test_what_a_file_removes_has_columns_where_it_is_known(folder):
    rows = {(row["file"], row["method"]): row for row in csv.DictReader((folder / "files.csv").open())}
    assert rows["one", "input"]["removed_db"] == "" and float(rows["two", "input"]["kept_db"]) == 0
    assert float(rows["two", "per_file"]["removed_db"]) == pytest.approx(-10.46, abs=0.2)


def test_the_settings_of_the_baselines_are_kept(folder):
    settings = json.loads((folder / "settings.json").read_text())
    assert list(settings) == ["defaults", "fixed", "per_file", "per_file_warm"]
    assert settings["fixed"]["gain.gain"] == pytest.approx(0.3, abs=0.02)
    assert settings["per_file"]["two"]["gain.gain"] == pytest.approx(0.3, abs=0.02)


def test_the_table_has_a_ratio_where_less_is_better():
    results = {m: {"loss": 2.0 if m == "input" else 1.0, "removed_db": -3.0} for m in ("input", "output")}
    lines = as_table(results).splitlines()
    assert [line.split()[0] for line in lines] == ["method", "input", "output", "output"]
    assert lines[-1].split()[-2:] == ["0.50", "-"]


def test_without_input_there_is_no_ratio(tmp_path):
    results = evaluate(task([known("Gain")]), pairs(), tmp_path, ["defaults"])
    assert list(results) == ["defaults", "output"] and "output / input" not in as_table(results)


def test_recordings_of_one_sample_are_evaluated(tmp_path):
    one = [{"input": torch.ones(1, 1), "target": torch.ones(1, 1), "name": "one"}]
    assert evaluate(task([known("Gain")]), one, tmp_path)["input"]["loss"] == 0


def test_a_baseline_that_is_not_known_leaves_no_folder_behind(tmp_path):
    with pytest.raises(UserError, match="no baseline 'fix'"):
        evaluate(task([known("Gain")]), pairs(), tmp_path / "evaluation", ["fix"])
    assert not (tmp_path / "evaluation").exists()


def test_removed_spans_are_found_beside_the_input(make_pairs):
    root = make_pairs(10)
    shutil.copy(root / "input" / "note_00.wav", root / "input" / "take_x.wav")
    shutil.copy(root / "target" / "note_00.wav", root / "target" / "take_x.wav")
    for name in ("note_03", "take"):
        (root / "input" / f"{name}_removed.json").write_text('[{"t0": 0.1, "t1": 0.25}, {"t0": 0.3, "t1": 0.4}]')
    found = find_removed([pair for split in find_pairs(str(root)).values() for pair in split])
    assert found == dict.fromkeys(("note_03", "take_x"), [(0.1, 0.25), (0.3, 0.4)])


@pytest.mark.parametrize("content", ["no json", "[1, 2]", '[{"t0": 1}]', '{"t0": 0}'])
def test_removed_spans_of_another_form_are_refused(make_pairs, content):
    root = make_pairs(10)
    (root / "input" / "note_03_removed.json").write_text(content)
    with pytest.raises(DataError, match="note_03_removed.json"):
        find_removed([pair for split in find_pairs(str(root)).values() for pair in split])
