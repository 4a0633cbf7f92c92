import copy
import csv
import json
import math
import os
import shutil
import sys

import numpy as np
import pytest
import scipy.stats
import soundfile
import torch

from dfx.datasets.pairs import find_pairs
from dfx.errors import DataError, UserError
from dfx.evaluation.evaluate import evaluate, find_removed
from dfx.evaluation.meanings import EXPLAINED
from dfx.evaluation.options import ALL, BaselineOptions
from dfx.evaluation.results import Mean, Results, as_table, describe_differences, read_means
from dfx.metrics import COLUMNS
from tests.known_effects import known
from tests.small_training import task

QUICK = BaselineOptions(evaluations=120, excerpts=2, excerpt_seconds=0.2, network_steps=1)


def pairs(gain: float = 0.3, names=("one", "two")) -> list:
    inputs = [0.1 * torch.randn(1, 8000, generator=torch.Generator().manual_seed(i)) for i in range(len(names))]
    return [{"input": input, "target": gain * input, "name": name} for input, name in zip(inputs, names)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The evaluation of an untrained gain against everything."""
    folder = tmp_path_factory.mktemp("evaluation")
    evaluate(task([known("Gain")]), pairs(), folder, ALL, pairs(names=("t",)), QUICK, {"two": [(0.0, 0.1)]})
    return folder


def test_every_method_has_its_metrics_and_the_training_loss(folder):
    results = json.loads((folder / "metrics.json").read_text())
    assert list(results) == [*ALL, "output"]
    known_of_file = {"removed_db", "kept_db", "damage_db"}
    assert all(set(metrics) == {"loss", *COLUMNS, *known_of_file} for metrics in results.values())
    for better in ("fixed", "per_file", "per_file_warm", "refined", "matched"):
        for worse in ("input", "defaults", "output"):
            assert results[better]["loss"] < 0.2 * results[worse]["loss"]


def test_every_file_has_a_row_for_every_method_and_audio_for_all(folder):
    rows = list(csv.DictReader((folder / "files.csv").open()))
    assert [(row["file"], row["method"]) for row in rows] == [
        (name, method) for name in ("one", "two") for method in (*ALL, "output")
    ]
    sides = (*ALL, "output", "target")
    outputs = {side: soundfile.read(folder / "audio" / f"two_{side}.flac")[0] for side in sides}
    assert all(len(audio) == 8000 for audio in outputs.values())
    assert abs(outputs["per_file"] - outputs["target"]).max() < 0.05 * abs(outputs["target"]).max()


def test_metrics_of_removed_spans_exist_where_spans_are_known(folder):
    rows = {(row["file"], row["method"]): row for row in csv.DictReader((folder / "files.csv").open())}
    assert rows["one", "input"]["removed_db"] == "" and float(rows["two", "input"]["kept_db"]) == 0
    assert float(rows["two", "per_file"]["removed_db"]) == pytest.approx(-10.46, abs=0.2)


def test_the_settings_of_the_baselines_are_kept(folder):
    settings = json.loads((folder / "settings.json").read_text())
    assert list(settings) == ["defaults", "fixed", "per_file", "per_file_warm", "per_reference"]
    assert settings["fixed"]["gain.gain"] == pytest.approx(0.3, abs=0.02)
    assert settings["per_file"]["two"]["gain.gain"] == pytest.approx(0.3, abs=0.02)


def test_means_come_with_their_intervals_as_json_and_csv(folder):
    files = json.loads((folder / "files.json").read_text())
    values = [row["esr"] for row in files if row["method"] == "output"]
    mean = json.loads((folder / "means.json").read_text())["output"]["esr"]
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values))
    assert mean == pytest.approx({"mean": np.mean(values), "low": low, "high": high, "files": 2, "groups": 2})
    assert json.loads((folder / "metrics.json").read_text())["output"]["esr"] == mean["mean"]
    rows = {(row["method"], row["metric"]): row for row in csv.DictReader((folder / "means.csv").open())}
    assert float(rows["output", "esr"]["high"]) == mean["high"]
    assert rows["output", "removed_db"]["files"] == "1" and rows["output", "removed_db"]["low"] == ""
    read = read_means(folder)["output"]["esr"]
    assert (read, read.low, read.high, read.count, read.groups) == tuple(mean.values())


def test_differences_are_paired_by_file_and_written_as_json_and_csv(folder):
    rows = {(row["file"], row["method"]): row for row in json.loads((folder / "files.json").read_text())}
    differences = [rows[file, "output"]["loss"] - rows[file, "fixed"]["loss"] for file in ("one", "two")]
    low, high = scipy.stats.t.interval(0.95, 1, np.mean(differences), scipy.stats.sem(differences))
    mean = json.loads((folder / "differences.json").read_text())["fixed"]["loss"]
    assert (mean["mean"], mean["low"], mean["high"]) == pytest.approx((np.mean(differences), low, high))
    read = {(row["method"], row["metric"]): row for row in csv.DictReader((folder / "differences.csv").open())}
    assert {method for method, _ in read} == set(ALL)
    assert float(read["fixed", "loss"]["low"]) == mean["low"]


def test_an_interval_counts_each_group_once():
    one_each, three_each = Mean.of([1.0, 3.0]), Mean.of([1.0] * 3 + [2.0, 3.0, 4.0], ["a"] * 3 + ["b"] * 3)
    assert (three_each.low, three_each.high) == pytest.approx((one_each.low, one_each.high))
    assert (three_each.count, three_each.groups) == (6, 2)
    alone = Mean.of([1.0, 2.0], ["a", "a"])
    assert alone == 1.5 and alone.low is None and not alone.excludes_zero


def test_intervals_of_groups_of_unequal_sizes_hold_the_mean_as_often_as_they_say():
    random = np.random.default_rng(0)
    sizes = random.integers(1, 5, 12)
    groups = np.repeat(np.arange(12), sizes).tolist()
    held = 0
    for _ in range(1000):
        values = np.repeat(random.standard_normal(12), sizes) + 0.3 * random.standard_normal(len(groups))
        mean = Mean.of(values.tolist(), groups)
        held += mean.low < 0 < mean.high
    assert 0.91 < held / 1000 < 0.97


def rows_of(**losses: list) -> list:
    """Return rows of four files in two groups."""
    files = {"a1": "a", "a2": "a", "b1": "b", "b2": "b"}
    return [
        {"file": file, "group": group, "method": method, "loss": loss}
        for method, of in losses.items()
        for (file, group), loss in zip(files.items(), of)
    ]


def test_a_difference_is_called_better_only_if_its_interval_excludes_zero():
    output = [1.0, 1.2, 2.0, 2.2]
    others = {"input": [2.0, 2.2, 3.01, 3.21], "defaults": [1.1, 1.3, 3.0, 3.2], "fixed": [0.5, 0.7, 1.51, 1.71]}
    results = Results.of(rows_of(**others, output=output), "hold")
    sentence = "By loss, output is better than input; worse than fixed; not shown to differ from defaults."
    assert describe_differences(results) == sentence
    table = as_table(results)
    assert sentence in table and "Means of 4 files in 2 groups" in table
    assert [line.split()[3:] for line in table.splitlines() if line.startswith("output - defaults")] == [
        ["-0.550", "±5.718"]
    ]


def test_a_mean_is_a_number_that_can_be_copied_with_its_interval():
    mean = copy.deepcopy(Mean.of([1.0, 2.0]))
    assert mean == 1.5 and (mean.low, mean.high, mean.count) == pytest.approx((-4.853, 7.853, 2), abs=1e-3)


def test_the_automation_of_every_file_is_kept_in_its_units(folder):
    about = json.loads((folder / "evaluation.json").read_text())
    assert [parameter["name"] for parameter in about["parameters"]] == ["gain.gain"]
    rows = list(csv.DictReader((folder / "automation" / "two.csv").open()))
    seconds, gains = ([float(row[name]) for row in rows] for name in ("seconds", "gain.gain"))
    assert np.diff(seconds) == pytest.approx(about["frame_samples"] / about["sample_rate"])
    # The values are those of the audio.
    input, output = (soundfile.read(folder / "audio" / f"two_{side}.flac")[0] for side in ("input", "output"))
    assert seconds[-1] < len(input) / about["sample_rate"]
    first = slice(0, about["frame_samples"])
    assert output[first] == pytest.approx(gains[0] * input[first], abs=1e-4)


def test_the_page_is_there_and_every_metric_is_explained(folder):
    assert (folder / "report.html").is_file()
    about = json.loads((folder / "evaluation.json").read_text())
    assert set(about["metrics"]) == set(EXPLAINED)


def test_removed_spans_are_found_in_the_target_if_no_file_lists_them(tmp_path):
    pair = pairs(gain=1.0, names=("speech",))[0]
    pair["target"] = pair["target"].clone()
    pair["target"][:, 2000:4000] *= 0.05
    results = evaluate(task([known("Gain")]), [pair], tmp_path)
    assert results["input"]["removed_db"] == results["input"]["damage_db"] == 0


def test_silence_one_sidedness_and_single_samples_have_numbers_or_a_reason(tmp_path):
    sound = 0.1 * torch.randn(2, 3000, generator=torch.Generator().manual_seed(0))
    silence, one_sided = torch.zeros_like(sound), sound * torch.tensor([[1.0], [0.0]])
    sides = {
        "silent_target": (sound, silence),
        "silent": (silence, silence),
        "one_sided": (one_sided, sound),
        "mono_in_stereo": (sound[:1].expand(2, -1), sound[:1].expand(2, -1)),
        "one_sample": (sound[:, :1], sound[:, :1]),
    }
    some = [{"input": input, "target": target, "name": name} for name, (input, target) in sides.items()]
    results = evaluate(task([known("Gain")], channels=2), some, tmp_path)
    assert all(math.isfinite(mean) for of in results.values() for mean in of.values())
    assert results["input"]["esr"].count == results["input"]["mrstft"].count == 3
    rows = {(row["file"], row["method"]): row for row in csv.DictReader((tmp_path / "files.csv").open())}
    row = rows["silent_target", "output"]
    assert row["esr"] == "" and "esr: the target is silent" in row["left_out"]
    assert "esr 3" in as_table(results)


def test_pairs_of_one_name_do_not_overwrite_each_other(tmp_path):
    two = pairs(names=("a/b", "a_b"))
    evaluate(task([known("Gain")]), two, tmp_path)
    for pair, stem in zip(two, ("a_b", "a_b-2")):
        audio = soundfile.read(tmp_path / "audio" / f"{stem}_input.flac")[0]
        assert audio == pytest.approx(pair["input"][0].numpy(), abs=1e-4)


def means(**values: list) -> dict:
    return {name: Mean.of(of) for name, of in values.items()}


def test_the_table_has_intervals_and_a_ratio_where_less_is_better():
    input, output = means(loss=[1.0, 3.0], removed_db=[-3.0]), means(loss=[1.0, 1.0], removed_db=[-3.0])
    lines = as_table(Results({"input": input, "output": output})).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["method", "input", "output", "output"]
    assert lines[1].split()[1:] == ["2.000", "±12.71", "-3.000"]
    assert lines[3].split()[-2:] == ["0.50", "-"]
    assert "Means of 2 files" in lines[5] and "removed_db 1" in lines[6]


def test_the_table_is_never_wider_than_120_columns():
    wide = {name: [-12345.678, 12345.678] for name in EXPLAINED}
    text = as_table(Results({method: means(**wide) for method in (*ALL, "output")}))
    assert max(map(len, text.splitlines())) <= 120 and "more metrics are in means.csv" in text
    assert text.splitlines()[0].split()[1:4] == ["loss", "mrstft_level_matched", "mfcc_cosine"]


@pytest.mark.parametrize("interpolation", ["hold", "linear", "published"])
def test_table_and_description_say_how_parameters_moved(tmp_path, interpolation):
    results = evaluate(task([known("Gain")]), pairs(), tmp_path, interpolation=interpolation)
    assert f"Parameters: {interpolation}, " in as_table(results)
    assert as_table(read_means(tmp_path)) == as_table(results)
    assert json.loads((tmp_path / "evaluation.json").read_text())["interpolation"] == interpolation


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


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is Unicode")
def test_recordings_of_one_name_and_names_that_are_no_file_names_keep_their_audio(tmp_path):
    names = ["a/b", "a_b", "A_B", 200 * "ä", "..", "a:b\\n"]
    evaluate(task([known("Gain")]), pairs(names=names), tmp_path / os.fsdecode(b"caf\xe9"))
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    stems = [file["stem"] for file in json.loads((folder / "evaluation.json").read_text())["files"]]
    assert stems[:3] == ["a_b", "a_b-2", "A_B-3"] and len({stem.casefold() for stem in stems}) == len(names)
    assert {path.name for path in (folder / "audio").glob("*_output.flac")} == {f"{stem}_output.flac" for stem in stems}


@pytest.mark.parametrize(
    "content", ["no json", "[1, 2]", '[{"t0": 1}]', '{"t0": 0}', '[{"t0": 2, "t1": 1}]', '[{"t0": 0, "t1": NaN}]']
)
def test_removed_spans_of_another_form_are_refused(make_pairs, content):
    root = make_pairs(10)
    (root / "input" / "note_03_removed.json").write_text(content)
    with pytest.raises(DataError, match="note_03_removed.json"):
        find_removed([pair for split in find_pairs(str(root)).values() for pair in split])
