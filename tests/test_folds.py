"""Cross-validation: every pair is tested once, by a model that was not trained on it."""

import csv
import json
import re
import signal
import statistics

import numpy as np
import pytest
import soundfile
import yaml

from dfx.callbacks.checkpoints import Stopped
from dfx.cli import main
from dfx.datasets.pairs import find_pairs
from dfx.effects.parameter import Parameter
from dfx.errors import DataError, UserError
from dfx.evaluation.evaluate import write_evaluation
from dfx.evaluation.folds import cross_validate
from dfx.tasks import Task
from tests.staged_run import change, checkpoints, config, fit, same  # noqa: F401

FOLDS = 3


class Runs:
    """Folds of a folder of pairs, whose runs write only what is read of them."""

    def __init__(self, folder, root) -> None:
        self.folder, self.trained = folder / "runs", []
        self.folds = [find_pairs(str(root), fold=(number, FOLDS)) for number in range(1, FOLDS + 1)]

    def train(self, number: int, tested=None) -> None:
        self.trained.append(number)
        evaluation = self.folder / f"fold_{number}" / "evaluation"
        for part in ("audio", "automation"):
            (evaluation / part).mkdir(parents=True)
        names = [pair.name for pair in self.folds[number - 1]["test"]] if tested is None else tested
        rows = [
            {"file": name, "group": name, "method": method, "loss": loss + int(name[5:7]), "left_out": {}}
            for name in names
            for method, loss in {"input": 2.0, "output": 1.0}.items()
        ]
        for name in names:
            for track in ("input", "output", "target", "reference"):
                soundfile.write(evaluation / "audio" / f"{name}_{track}.flac", np.full(100, int(name[5:7]) / 10), 22050)
            (evaluation / "automation" / f"{name}.csv").write_text("seconds,gain.gain_db\n0,10\n")
        files = [{"name": name, "stem": name, "seconds": 0.005, "reference": "a song"} for name in names]
        about = {"task": "TubeAmp", "interpolation": "hold", "sample_rate": 22050, "frame_samples": 100, "files": files}
        about["parameters"] = [vars(Parameter("gain.gain_db", "dB", -10, 10, 0))]
        write_evaluation(evaluation, about, {"fixed": {"gain.gain_db": float(number)}}, rows)

    def run(self, train=None) -> str:
        return cross_validate(self.folder, self.folds, train or self.train)


@pytest.fixture
def runs(make_pairs, tmp_path) -> Runs:
    return Runs(tmp_path, make_pairs(7))


def test_the_table_has_the_means_over_all_pairs(runs):
    text = runs.run()
    assert "Means of 7 files" in text and "upper end of their ranges nearly all the time: gain.gain_db" in text
    means = json.loads((runs.folder / "evaluation" / "means.json").read_text())
    assert means["output"]["loss"]["mean"] == 1 + statistics.mean(range(7))
    files = list(csv.DictReader((runs.folder / "evaluation" / "files.csv").open()))
    assert sorted(row["file"] for row in files if row["method"] == "output") == [f"note_{i:02}" for i in range(7)]
    rows = list(csv.DictReader((runs.folder / "folds.csv").open()))
    assert [(row["fold"], row["method"]) for row in rows] == [
        (str(n), m) for n in (1, 2, 3) for m in ("input", "output")
    ]
    assert sum(int(row["files"]) for row in rows) == 14


def test_the_page_has_the_files_and_settings_of_all_folds(runs):
    runs.run()
    page = (runs.folder / "evaluation" / "report.html").read_text()
    files = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])["files"]
    assert sorted(file["name"] for file in files) == [f"note_{i:02}" for i in range(7)]
    folds = {pair.name: number for number, fold in enumerate(runs.folds, 1) for pair in fold["test"]}
    for file in files:
        assert file["settings"] == {"fixed": {"gain.gain_db": folds[file["name"]]}} and file["reference"] == "a song"
        for track in ("output", "reference"):
            audio, _ = soundfile.read(runs.folder / "evaluation" / "audio" / f"{file['name']}_{track}.flac")
            assert audio == pytest.approx(int(file["name"][-2:]) / 10, abs=1e-3)


def test_finished_folds_are_kept(runs):
    runs.train(2)
    text = runs.run()
    assert runs.trained == [2, 1, 3] and runs.run() == text and runs.trained == [2, 1, 3]


def test_folds_of_a_task_that_takes_a_reference_test_both_halves_of_a_pair(runs):
    halves = [[f"{pair.name}_{half}" for pair in fold["test"] for half in (1, 2)] for fold in runs.folds]
    assert "14 files" in runs.run(lambda number: runs.train(number, halves[number - 1]))


def test_a_finished_fold_that_has_tested_other_pairs_is_refused_before_others_are_trained(runs):
    runs.train(2, tested=["note_00", "note_06"])
    with pytest.raises(DataError, match="fold_2 has tested other pairs than fold 2 has now: restore"):
        runs.run()
    assert runs.trained == [2]


def test_a_fold_that_ends_without_an_evaluation_is_named(runs):
    with pytest.raises(UserError, match="fold_1 ended without an evaluation"):
        runs.run(lambda number: None)


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["13"], "has 12 groups of pairs, and no fold 1 of 13: take 2 to 12 folds"),
        (["1"], "folds is 1; it must be a whole number from 2"),
        (["3", "--run.evaluate", "false"], "does not go with run.evaluate: false"),
        (["3", "--data.fold", "[1, 3]"], "does not go with data.fold"),
        (["3", "--trainer.devices", "2"], "in one process: set trainer.devices to 1"),
    ],
)
def test_folds_that_make_no_sense_are_refused_in_one_line(config, arguments, text):
    change(config, "run", evaluate=True)
    with pytest.raises(SystemExit) as exit:
        main(["fit", "--config", str(config), "--run.folds", *arguments])
    message = str(exit.value)
    assert message.startswith("error: ") and text in message and len(message.splitlines()) == 1
    assert not (config.parent / "runs").exists()


EFFECTS = [{"effect": "pedalboard:Distortion"}, {"effect": "pedalboard:Gain"}]


@pytest.fixture
def fold(config, capsys):
    """Write the options of a fold as if it had been trained with these arguments, and continue the others."""
    change(config, "run", evaluate=True, resume=True)
    change(config, "model.init_args", stages={}, effects=EFFECTS)
    folder = config.parent / "runs" / "run" / "fold_1"
    folder.mkdir(parents=True)

    def resume(*arguments: str) -> None:
        with pytest.raises(SystemExit):
            fit(config, "--data.fold", "[1, 2]", *arguments, "--print_config")
        (folder / "resolved_config.yaml").write_text(capsys.readouterr().out)
        fit(config, "--run.folds", "2")

    return resume


@pytest.mark.parametrize(
    "option, value, differing",
    [
        ("data.batch_size", 2, r"data.batch_size \(2, now 4\)"),
        ("model.init_args.effects", EFFECTS[::-1], r"effects.0.effect \(pedalboard:Gain, now pedalboard:Distortion\)"),
        ("model.init_args.effects", EFFECTS[:1], r"model.init_args.effects.1 \(None, now .*pedalboard:Gain"),
        ("model.init_args.effects", [*EFFECTS, EFFECTS[1]], r"effects.2 \(.*pedalboard:Gain.*, now None\)"),
    ],
)
def test_folds_are_not_continued_with_other_options_and_these_are_named(fold, option, value, differing):
    with pytest.raises(DataError, match=f"fold_1 was trained with other options: .*{differing}.*; resume the folds"):
        fold(f"--{option}", json.dumps(value))


def test_a_fold_may_be_trained_in_several_processes_and_gathered_by_one(fold, monkeypatch):
    gathered = []
    monkeypatch.setattr("dfx.cli.cross_validate", lambda folder, folds, train: gathered.append(folder) or "")
    fold("--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.num_nodes", "2")
    assert len(gathered) == 1


@pytest.mark.slow
def test_a_command_stopped_twice_goes_on_in_its_fold_and_a_fold_is_the_run_with_its_pairs(config, monkeypatch, capsys):
    change(config, "model.init_args", stages={})
    change(config, "run", evaluate=True)
    loss_of = Task.compute_loss
    folds, resume = ("--run.folds", "2"), ("--run.resume", "true")
    for step, arguments in ((1, folds), (4, (*folds, *resume))):

        def stop(self, batch, step=step):
            if self._data.fold == (2, 2) and self.training and self.trainer.global_step == step:
                signal.raise_signal(signal.SIGTERM)
            return loss_of(self, batch)

        with monkeypatch.context() as patch, pytest.raises(Stopped, match="resume with --run.name run --run.resume"):
            patch.setattr(Task, "compute_loss", stop)
            fit(config, *arguments)
    finished = checkpoints(config, "run/fold_1")
    capsys.readouterr()
    fit(config, *folds, *resume)
    out = capsys.readouterr().out
    assert "fold 1 of 2 is finished" in out and out.count("Means of") == 1 and "Means of 12 files" in out
    assert same(finished, checkpoints(config, "run/fold_1"))
    written = yaml.safe_load((config.parent / "runs" / "run" / "fold_2" / "resolved_config.yaml").read_text())
    assert written["ckpt_path"] is None and written["run"]["resume"] is False  # a run of it begins anew
    fit(config, "--data.fold", "[2, 2]", "--run.name", "alone")
    assert same(checkpoints(config, "run/fold_2"), checkpoints(config, "alone"))
