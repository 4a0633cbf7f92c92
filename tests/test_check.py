"""python -m dfx.check: what it measures, and what it calls wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dfx.check.__main__ import main
from dfx.check.folder import Options, check_folder, read_options
from dfx.datasets import PairedAudio
from dfx.datasets.frames import Window
from dfx.datasets.inspection import glance
from dfx.datasets.pairs import SPLITS, find_pairs
from dfx.errors import DataError, UserError

ROOT = Path(__file__).parent.parent
RATE = 22050


def music(seed: int, seconds: float = 2.0) -> np.ndarray:
    """Return decaying noise, ``(samples,)``, whose whitened correlation has one peak."""
    samples = int(seconds * RATE)
    return 0.2 * np.random.default_rng(seed).standard_normal(samples).clip(-3, 3) * np.linspace(1, 0.2, samples)


def clip(audio: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(audio)) // 50 == 7, 1.0, audio)


@pytest.fixture
def make(tmp_path):
    """Write ten pairs of noise and softly clipped noise; ``change`` maps a target, for the first ``count`` pairs."""

    def write(change=lambda target, index: target, count: int = 10, channels: int = 1) -> Path:
        for index in range(10):
            input = music(index)
            target = np.tanh(3 * input) / 3
            target = change(target, index) if index < count else target
            for side, audio in {"input": input, "target": target}.items():
                (tmp_path / "mine" / side).mkdir(parents=True, exist_ok=True)
                path = tmp_path / "mine" / side / f"take_{index}.wav"
                soundfile.write(path, np.stack([audio] * channels, axis=1), RATE, subtype="FLOAT")
        return tmp_path / "mine"

    return write


def test_nothing_looks_wrong_in_pairs_without_faults(make, capsys):
    main([str(make())])
    printed = capsys.readouterr().out
    assert "nothing looks wrong" in printed and "train 8 (16.0 s), validation 1 (2.0 s), test 1 (2.0 s)" in printed
    assert all(f"take_{index}" in printed for index in range(10))


@pytest.mark.parametrize("task", ["tube_amp", "nonspeech", "mastering"])
def test_nothing_looks_wrong_in_a_glance_at_the_shipped_pairs(task):
    assert glance(find_pairs(str(ROOT / "data" / task))["train"]) == []


FAULTS = {
    "late": (lambda target, index: np.roll(target, 441), "the target is early or late, by +20.0 ms in the median"),
    "early": (lambda target, index: np.roll(target, -441), "the target is early or late, by -20.0 ms in the median"),
    "inverted": (lambda target, index: -target, "the target has the opposite polarity of its input"),
    "unrelated": (lambda target, index: music(100 + index), "the target does not resemble its input"),
    "unchanged": (lambda target, index: music(index), "the target equals its input"),
    "clipped": (lambda target, index: clip(target), "clip, in input and target: "),
}


@pytest.mark.parametrize("change, sentence", FAULTS.values(), ids=FAULTS)
def test_every_fault_of_a_target_is_a_sentence_that_counts_and_names_the_pairs(make, change, sentence):
    (found,) = check_folder(str(make(change, count=2))).warnings
    assert found.startswith("2 of 10 pairs") and sentence in found and "take_0" in found and "take_1" in found


def test_a_delay_is_found_in_a_target_that_is_distorted_inverted_and_noisy(make):
    def change(target, index):
        late = np.sign(-np.roll(target, 100 * (index + 1))) * 0.1
        return late + 0.05 * music(50 + index)

    looks = check_folder(str(make(change))).pairs
    delays = {look.name: round(look.offset_ms * RATE / 1000) for look in looks}
    assert delays == {f"take_{index}": 100 * (index + 1) for index in range(10)}
    assert all(look.inverted for look in looks)


def test_silence_and_unusual_levels_are_sentences(make):
    def change(target, index):
        return target * (0.05 if index == 0 else 1) * (np.arange(len(target)) < (2000 if index == 1 else len(target)))

    unusual, silent = sorted(check_folder(str(make(change))).warnings, reverse=True)
    assert "the target changes the loudness" in unusual and "take_0" in unusual and "take_2" not in unusual
    assert silent.startswith("1 of 10 pairs are silent for more than 90%") and "take_1 0% and 95%" in silent


def test_what_training_converts_is_noted_and_no_warning(make):
    folder = str(make(channels=2))
    report = check_folder(folder, Options(sample_rate=48000, context_samples=5 * 48000))
    resampled, folded, shorter, tests = report.notes
    assert resampled.startswith("20 of 20 files are resampled from 22050 to 48000 Hz; there is nothing above 11025 Hz")
    assert folded == "20 of 20 files have several channels, of which training takes the mean"
    assert shorter.startswith("10 of 10 pairs are shorter than the context (5.00 s)")
    assert tests.startswith("1 of 10 pairs are for testing") and not report.warnings


def test_copies_in_two_splits_are_a_warning(make):
    folder = make()
    for side in ("input", "target"):
        for index in range(1, 10):
            (folder / side / f"take_{index}.wav").write_bytes((folder / side / "take_0.wav").read_bytes())
    (warning,) = [text for text in check_folder(str(folder)).warnings if "copies" in text]
    assert warning.startswith("10 of 10 pairs have copies in another split") and warning.endswith(" and 7 more")


def test_a_group_in_two_splits_is_a_warning(make):
    folder = make()
    splits = [*["train"] * 8, "validation", "test"]
    rows = (f"input/take_{i}.wav,target/take_{i}.wav,{split},note {i // 2}" for i, split in enumerate(splits))
    (folder / "manifest.csv").write_text("\n".join(["input,target,split,group", *rows]))
    (warning,) = check_folder(str(folder)).warnings
    assert warning.startswith("1 of 5 groups have pairs in several splits")
    assert warning.endswith("note 4 in test and validation")


def test_all_faults_that_training_refuses_are_listed_and_the_status_is_1(make, capsys):
    folder = make()
    (folder / "input" / "take_0.wav").write_bytes(b"not audio")
    soundfile.write(folder / "target" / "take_1.wav", np.zeros(100), RATE)
    soundfile.write(folder / "target" / "take_2.wav", np.zeros(2 * RATE), RATE)
    (folder / "target" / "take_3.wav").unlink()
    with pytest.raises(SystemExit) as ended:
        main([str(folder), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert ended.value.code == 1 and len(report["pairs"]) == 6
    for name, fault in enumerate(["is not an audio file", "different lengths", "is silent", "has no partner"]):
        assert any(f"take_{name}" in found and fault in found for found in report["faults"]), report["faults"]


def test_the_config_says_how_the_data_are_read(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("model: {init_args: {sample_rate: 48000, channels: 2, treatment: {highpass_hz: 20}}}\n")
    second.write_text("data: {rows: {speaker: anna}, seed: 3}\n")
    expected = Options(sample_rate=48000, channels=2, highpass_hz=20, rows={"speaker": "anna"}, seed=3)
    assert read_options([str(first), str(second)]) == expected


def test_pairs_are_split_as_the_run_of_a_config_would(make, tmp_path):
    folder, config = make(), tmp_path / "config.yaml"
    config.write_text("run: {seed: 3}\ndata: {seed: 1}")
    looks = check_folder(str(folder), read_options([str(config)])).pairs
    splits = {split: {look.name for look in looks if look.split == split} for split in SPLITS}
    assert splits == {split: {pair.name for pair in pairs} for split, pairs in find_pairs(str(folder), 3).items()}

    rows = (f"input/take_{i}.wav,target/take_{i}.wav,note {i // 2}" for i in range(10))
    (folder / "manifest.csv").write_text("\n".join(["input,target,group", *rows]))
    with pytest.raises(DataError, match=r"no column split: add it, or train with --run\.folds K"):
        check_folder(str(folder))
    config.write_text("run: {folds: 5}")
    report = check_folder(str(folder), read_options([str(config)]))
    assert report.splits == {f"fold_{number}": {"pairs": 2, "seconds": 4.0} for number in range(1, 6)}
    assert not report.faults and not report.warnings
    config.write_text("data: {fold: [2, 5]}")
    assert check_folder(str(folder), read_options([str(config)])).splits["test"] == {"pairs": 2, "seconds": 4.0}
    config.write_text("run: {folds: 6}")
    assert "no fold 1 of 6" in check_folder(str(folder), read_options([str(config)])).faults[0]


@pytest.mark.parametrize(
    "text",
    [
        "- a",
        "a: [",
        "words",
        "model: 1",
        "data: {rows: 1}",
        "data: {seed: many}",
        "data: {fold: 2}",
        "run: {folds: 1}",
        "run: 1",
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError):
        read_options([str(tmp_path / "config.yaml")])


def test_of_a_task_that_takes_a_reference_the_targets_are_checked_as_in_training(make, tmp_path):
    folder, config = make(lambda target, index: music(index)), tmp_path / "style.yaml"
    config.write_text("model: {class_path: StyleTransfer, init_args: {context_samples: 20000}}")
    soundfile.write(folder / "input" / "take_0.wav", np.zeros(2 * RATE), RATE)
    report = check_folder(str(folder), read_options([str(config)]))
    assert not report.faults and not report.warnings and "only these are checked" in report.notes[0]
    report = check_folder(str(folder), read_options([str(config), str(ROOT / "configs" / "style.yaml")]))
    assert len(report.faults) == len(report.pairs) == 10 and not any("padded" in note for note in report.notes)
    assert all("lasts 2.00 s, too short to be cut in halves" in fault for fault in report.faults)


@pytest.mark.parametrize("rows", ["take: 1", "1: a"])
def test_rows_that_are_no_text_are_refused(make, tmp_path, rows):
    (tmp_path / "config.yaml").write_text(f"data: {{rows: {{{rows}}}}}")
    with pytest.raises(DataError, match="must be text: put numbers in quotes"):
        check_folder(str(make()), read_options([str(tmp_path / "config.yaml")]))


def test_a_folder_without_pairs_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError):
            check_folder(str(folder))


def test_training_takes_a_glance_before_it_starts(make, capsys):
    folder = make(lambda target, index: -target, channels=2)
    PairedAudio(str(folder), 11025, 1, Window(4096, 1024)).setup("fit")
    printed = capsys.readouterr().err
    assert "warning: 8 of 8 pairs: the target has the opposite polarity" in printed
    assert "20 of 20 files are resampled from 22050 to 11025 Hz" in printed and "dfx.check" in printed
