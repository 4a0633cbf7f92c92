"""The pairs of each split are kept in the checkpoint."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
import soundfile
import torch

from dfx.cli import main
from dfx.commands import evaluate as evaluation_script
from dfx.datasets.pairs import SPLITS, find_pairs, find_test_pairs
from dfx.datasets.splits import read_records, restore_splits
from dfx.effects import EffectSpec
from dfx.errors import DataError
from dfx.evaluation.evaluate import find_removed
from dfx.tasks import read_checkpoint
from tests.conftest import write_pairs
from tests.known_effects import SAMPLE_RATE
from tests.small_training import data, task, trainer

GAIN = EffectSpec("pedalboard:Gain", train={"gain_db": (-12, 12)})


def add(root, name: str, of: str = "note_00") -> None:
    """Add a pair of other audio than all others have."""
    for side in ("input", "target"):
        audio, _ = soundfile.read(root / side / f"{of}.wav")
        (root / side / name).parent.mkdir(exist_ok=True)
        soundfile.write(root / side / f"{name}.wav", audio[::-1], SAMPLE_RATE)


def remove(root, *names: str) -> None:
    for name in names:
        for side in ("input", "target"):
            (root / side / f"{name}.wav").unlink()


def names_of(splits) -> dict:
    return {split: [pair.name for pair in pairs] for split, pairs in splits.items()}


def fit(root, folder, resumes=False, **changes):
    """Train for one epoch, or resume for another one, and return the module of the data and the checkpoint."""
    model = task([GAIN])
    pairs = data(root, model)
    for name, value in changes.items():
        setattr(pairs, name, value)
    checkpoint = str(folder / "run" / "checkpoints" / "last.ckpt")
    fit = trainer(folder, epochs=2 if resumes else 1)
    fit.fit(model, datamodule=pairs, ckpt_path=checkpoint if resumes else None)
    if not resumes:
        fit.save_checkpoint(checkpoint)
    return pairs, checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with 20 pairs, ``pairs``, and a run that was trained on them."""
    folder = tmp_path_factory.mktemp("trained")
    write_pairs(folder / "pairs", 20, 0.2)
    fit(folder / "pairs", folder)
    return folder


@pytest.fixture
def trained(run, tmp_path):
    """The folder of 20 pairs, their names by split, and a checkpoint that was trained on them."""
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    content["dfx"]["data"]["root"] = str(tmp_path / "pairs")
    torch.save(content, checkpoint)
    splits = {split: [row[0] for row in rows] for split, rows in content["dfx"]["data"]["pairs"].items()}
    return tmp_path / "pairs", splits, str(checkpoint)


def evaluate(monkeypatch, checkpoint: str, *options: object) -> None:
    arguments = ["evaluate.py", checkpoint, "--baselines", "input", *map(str, options)]
    monkeypatch.setattr(sys, "argv", arguments)
    evaluation_script.main()


def evaluated(checkpoint: str) -> list:
    with (Path(checkpoint).parent.parent / "evaluation" / "files.csv").open(encoding="utf-8") as file:
        return [row["file"] for row in csv.DictReader(file) if row["method"] == "output"]


def test_pairs_that_are_added_move_no_pair_to_another_split(trained, monkeypatch, capsys, tmp_path):
    root, splits, checkpoint = trained
    for name in ("aaa", "more/zzz", "note_20", "note_21"):
        add(root, name)
    assert names_of(find_pairs(str(root)))["test"] != splits["test"]  # they would move if the folder was split again
    evaluate(monkeypatch, checkpoint)
    assert evaluated(checkpoint) == splits["test"]
    assert "new and left out: aaa, more/zzz, note_20 and 1 more\n" in capsys.readouterr().err
    resumed, _ = fit(root, tmp_path, resumes=True)
    assert names_of(resumed.splits) == splits
    assert "new and left out: aaa, more/zzz, note_20 and 1 more\n" in capsys.readouterr().err


def test_a_checkpoint_holds_its_pairs_as_plain_types_and_a_resumed_run_keeps_them(trained, tmp_path):
    root, splits, checkpoint = trained
    stored = read_checkpoint(checkpoint)["dfx"]["data"]
    assert {split: [row[0] for row in rows] for split, rows in stored["pairs"].items()} == splits
    assert stored["pairs"]["test"][0][1:3] == [f"{side}/{splits['test'][0]}.wav" for side in ("input", "target")]
    add(root, "note_20")
    resumed, _ = fit(root, tmp_path, resumes=True)
    assert resumed.arguments["pairs"] == stored["pairs"]


def test_the_checkpoints_splits_hold_when_a_manifest_gives_others(trained, monkeypatch, capsys):
    root, splits, checkpoint = trained
    rows = [f"{name},input/{name}.wav,target/{name}.wav,test" for some in splits.values() for name in some]
    (root / "manifest.csv").write_text("\n".join(["name,input,target,split", *rows]))
    evaluate(monkeypatch, checkpoint)
    assert evaluated(checkpoint) == splits["test"]
    assert f"in another split of the manifest now: {splits['train'][0]}, " in capsys.readouterr().err


def test_pairs_that_are_missing_are_told_and_the_others_evaluated(trained, monkeypatch, capsys):
    root, splits, checkpoint = trained
    remove(root, splits["test"][0], *splits["train"][:4])
    evaluate(monkeypatch, checkpoint)
    assert evaluated(checkpoint) == splits["test"][1:]
    missing = ", ".join(splits["train"][:3])
    assert f"{root} has changed since training; missing: {missing} and 2 more\n" in capsys.readouterr().err
    remove(root, splits["test"][1])
    with pytest.raises(DataError, match="none of the checkpoint's test pairs is left"):
        evaluate(monkeypatch, checkpoint)


def _without_a_pair(root, splits):
    remove(root, splits["train"][3])
    return root, {}, rf"has changed since training; missing: {splits['train'][3]}: restore the pairs"


def _with_another_target(root, splits):
    name = splits["validation"][0]
    shutil.copy(root / "target" / f"{splits['train'][0]}.wav", root / "target" / f"{name}.wav")
    return root, {}, rf"has changed since training; changed: {name}: restore the pairs"


def _with_another_root(root, splits):
    other = root.with_name("other")
    shutil.copytree(root, other)
    for file in (other / "target").iterdir():
        audio, sample_rate = soundfile.read(file)
        soundfile.write(file, 0.5 * audio, sample_rate)
    return other, {}, r"other is not .*pairs, with which the checkpoint was trained; changed: .* and 17 more"


def _with_another_seed(root, splits):
    return root, {"seed": 3}, "data.seed is 3, and was 0"


def _with_other_excerpts(root, splits):
    return root, {"excerpt_seconds": 0.1}, "data.excerpt_seconds is 0.1, and was 0.15"


@pytest.mark.parametrize(
    "change",
    [_without_a_pair, _with_another_target, _with_another_root, _with_another_seed, _with_other_excerpts],
)
def test_a_run_does_not_resume_with_other_data_and_says_what_differs(trained, tmp_path, change):
    root, splits, _ = trained
    root, changes, message = change(root, splits)
    with pytest.raises(DataError, match=message):
        fit(root, tmp_path, resumes=True, **changes)


def test_a_run_resumes_with_its_pairs_in_another_place(trained, tmp_path, capsys):
    root, splits, _ = trained
    moved = root.rename(root.with_name("moved"))
    resumed, _ = fit(moved, tmp_path, resumes=True)
    assert names_of(resumed.splits) == splits and not capsys.readouterr().err


def test_test_pairs_are_those_of_the_checkpoint_in_every_command_of_the_trainer(trained, tmp_path):
    root, splits, checkpoint = trained
    add(root, "aaa")
    model = task([GAIN])
    pairs = data(root, model)
    trainer(tmp_path).test(model, datamodule=pairs, ckpt_path=checkpoint, verbose=False)
    assert names_of(pairs.splits) == splits


def test_a_checkpoint_of_an_earlier_version_uses_the_split_of_the_folder(trained, tmp_path, monkeypatch, capsys):
    root, splits, checkpoint = trained
    content = torch.load(checkpoint, weights_only=True)
    del content["dfx"]["data"]["pairs"], content["dfx"]["data"]["excerpt_seconds"]
    torch.save(content, checkpoint)
    evaluate(monkeypatch, checkpoint)
    assert evaluated(checkpoint) == splits["test"] and "earlier version" in capsys.readouterr().err
    resumed, _ = fit(root, tmp_path, resumes=True)
    assert names_of(resumed.splits) == splits and "earlier version" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damaged",
    [
        None,
        [],
        {"train": []},
        {split: [["a", "b"]] for split in SPLITS},
        {split: 1 for split in SPLITS},
        {split: [[1, 2, 3, 4]] for split in SPLITS},
    ],
)
def test_a_damaged_list_of_pairs_is_refused(damaged):
    with pytest.raises(DataError, match="list of pairs is damaged"):
        read_records({"pairs": damaged})


@pytest.mark.parametrize("data", [{}, {"root": None}, {"root": "x", "rows": 3}, {"root": "x", "rows": {"a": 1}}])
def test_a_checkpoint_that_does_not_name_its_data_is_refused(data):
    with pytest.raises(DataError, match="does not say on which data it was trained"):
        restore_splits(data)


def test_a_root_that_is_not_utf_8_is_refused_in_one_line_that_can_be_printed():
    with pytest.raises(SystemExit, match=r"^error: caf\\udce9 is not in UTF-8: rename it, or link to it"):
        main(["fit", "--data.root", "caf\udce9"])


# Folders given to evaluate.py


def test_a_folder_is_evaluated_whole_and_with_any_number_of_pairs(trained, make_pairs, monkeypatch, capsys):
    _, _, checkpoint = trained
    for count in (1, 2, 8):
        folder = make_pairs(count, seconds=0.1, folder=f"other_{count}")
        evaluate(monkeypatch, checkpoint, "--data", folder)
        assert evaluated(checkpoint) == [f"note_{i:02}" for i in range(count)]
    assert "training" not in capsys.readouterr().err
    with pytest.raises(DataError, match="has no pairs"):
        evaluate(monkeypatch, checkpoint, "--data", make_pairs(0, folder="empty"))


@pytest.mark.parametrize(
    "splits, expected",
    [(["train", "Test", "val", "test"], [1, 3]), (["train", "train", "val", ""], [0, 1, 2, 3]), (None, [0, 1, 2, 3])],
)
def test_of_a_folder_with_a_manifest_the_test_split_is_evaluated_if_it_has_one(
    trained, make_pairs, monkeypatch, splits, expected
):
    folder = make_pairs(4, seconds=0.1, folder="other")
    rows = [f"{i},input/note_0{i}.wav,target/note_0{i}.wav" for i in range(4)]
    if splits:
        rows = [f"{row},{split}" for row, split in zip(rows, splits)]
    header = "name,input,target" + (",split" if splits else "")
    (folder / "manifest.csv").write_text("\n".join([header, *rows]))
    evaluate(monkeypatch, trained[2], "--data", folder)
    assert evaluated(trained[2]) == [str(i) for i in expected]


def test_training_pairs_in_an_evaluated_folder_are_told_also_under_other_names(trained, tmp_path, monkeypatch, capsys):
    root, splits, checkpoint = trained
    for side in ("input", "target"):
        (tmp_path / "other" / side).mkdir(parents=True)
        for i, name in enumerate([splits["train"][0], splits["validation"][0], splits["test"][0]]):
            shutil.copy(root / side / f"{name}.wav", tmp_path / "other" / side / f"{i}.wav")
    evaluate(monkeypatch, checkpoint, "--data", tmp_path / "other")
    assert evaluated(checkpoint) == ["0", "1", "2"]
    assert "2 of the 3 pairs of" in capsys.readouterr().err


@pytest.mark.parametrize("baseline", ["fixed", "network"])
def test_baselines_learn_from_the_checkpoints_training_pairs(trained, make_pairs, monkeypatch, baseline):
    root, splits, checkpoint = trained
    add(root, "note_20")
    seen = []

    def evaluate_nothing(task, pairs, folder, baselines, training, *others):
        seen.append([pair.name for pair in training.pairs])
        return {}

    monkeypatch.setattr("dfx.evaluation.evaluate.evaluate", evaluate_nothing)
    for options in ([], ["--data", make_pairs(2, seconds=0.1, folder="other")]):
        evaluate(monkeypatch, checkpoint, "--baselines", baseline, "--json", *options)
    assert seen == [splits["train"], splits["train"]]


@pytest.mark.parametrize("listed", [False, True])
def test_files_of_one_name_in_two_folders_keep_their_own_spans_rows_and_audio(trained, monkeypatch, listed):
    root, _, checkpoint = trained
    ends = {"anna/001": 0.05, "anna_001": 0.15, "bob/001": 0.1}
    for place, end in ends.items():
        add(root, place)
        (root / "input" / f"{place}_removed.json").write_text(json.dumps([{"t0": 0, "t1": end}]))
    remove(root, *(f"note_{i:02}" for i in range(20)))
    names = list(ends)
    if listed:
        rows = [f"001,input/{place}.wav,target/{place}.wav" for place in ends]
        (root / "manifest.csv").write_text("\n".join(["name,input,target", *rows]))
        names = [f"input/{place}" for place in ends]
    spans = find_removed(find_test_pairs(str(root)))
    assert spans == {name: [(0, end)] for name, end in zip(names, ends.values())}
    evaluate(monkeypatch, checkpoint, "--data", root)
    assert evaluated(checkpoint) == names
    assert len(list((Path(checkpoint).parent.parent / "evaluation" / "audio").glob("*_output.flac"))) == 3
