"""The comparison with the paper: its models, its plan and its table."""

import csv
import json
from pathlib import Path

import pytest

from dfx.errors import UserError
from dfx.paper import __main__ as command
from dfx.paper.models import EVALUATION, OURS, PUBLISHED, SCALES, TASKS, Model, list_models
from dfx.paper.plan import Estimate, count_epochs, describe, estimate
from dfx.paper.table import as_markdown, read_rows, write_table
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("scale", SCALES)
def test_every_task_has_models_of_the_paper_and_one_of_ours(scale):
    for task in TASKS:
        models = list_models(scale, [task])
        assert OURS in [model.name for model in models] and len(models) >= 2
        roots = {model.read_config()["data"]["root"] for model in models}
        assert len(roots) == 1, "models of one table are trained on the same data"
        assert all(Path(config).is_file() for model in models for config in model.configs)
    published = {(model.task, model.name) for model in list_models("published", TASKS)}
    assert {key for key in PUBLISHED if key[1] in ("Inception", "MobileNetV2")} < published


def test_the_plan_counts_pretraining_and_every_stage():
    inception, ours = list_models("small", ["mastering"])
    assert count_epochs(inception.read_config()) == 3 * 2
    assert count_epochs(ours.read_config()) == 16
    published = list_models("published", ["mastering"])[0].read_config()
    assert count_epochs(published) == 100 + 3 * published["trainer"]["max_epochs"]


def test_absent_data_are_named_with_the_command_that_prepares_them():
    model = Model("nonspeech", "MobileNetV2", ("configs/paper/nonspeech.yaml",), "no/such/folder")
    absent = estimate(model, threads=1)
    assert absent.absent == "no data in no/such/folder: python data/prepare_daps.py"
    text = describe([absent, Estimate(list_models("small", ["nonspeech"])[1], 600.0)], seeds=3, jobs=2, threads=1)
    assert "prepare_daps" in text and "3 runs, 2 at once, 1 thread each: at most 15 min of training" in text


def write_run(folder: Path, name: str, outputs: dict[str, list[float]]) -> None:
    """Write the files of a run that the table reads: three files of two groups."""
    rows = [
        {"file": f"file_{i}", "group": "ab"[i // 2], "method": method, "mrstft": error, "mfcc_cosine": error / 10}
        for method, errors in outputs.items()
        for i, error in enumerate(errors)
    ]
    (folder / name / EVALUATION).mkdir(parents=True)
    (folder / name / EVALUATION / "files.json").write_text(json.dumps(rows))
    (folder / name / "history.jsonl").write_text(
        json.dumps({"stage": 0, "step": 1, "progress/cpu_seconds": 120.0}) + "\n"
    )


def test_the_table_holds_means_over_seeds_and_paired_differences_to_ours(tmp_path):
    paper, ours = list_models("small", ["tube_amp"])
    for model, outputs in {paper: [[2.0, 3.0, 4.0], [4.0, 5.0, 6.0]], ours: [[1.0, 2.0, 3.0]]}.items():
        for seed, errors in enumerate(outputs):
            write_run(tmp_path, model.point(seed).name, {"input": [5.0, 5.0, 5.0], "output": errors})
    rows = read_rows(tmp_path, {paper: [paper.point(0), paper.point(1)], ours: [ours.point(0)]})
    by_method = {row["method"]: row for row in rows}
    inception = by_method["Inception"]
    assert inception["mrstft"] == 4.0 and inception["range"] == (3.0, 5.0) and inception["published"] == 0.2596
    assert inception["mfcc_cosine"] == pytest.approx(0.4) and inception["cpu_minutes"] == 2.0
    assert inception["difference"] == -2.0 and inception["difference"].excludes_zero, "every file differs by as much"
    assert inception["mrstft"].groups == 2
    assert by_method["input"]["difference"] == -3.0 and by_method[OURS]["difference"] is None
    assert by_method["CAFx"]["mrstft"] is None and by_method["CAFx"]["published"] == 0.0826
    line = next(line for line in as_markdown(rows).splitlines() if "| Inception " in line)
    assert all(cell in line for cell in ("0.2596", "4.000", "3.000 to 5.000", "-2.000 ±0.000", "2.0"))


def test_the_table_is_a_summary_in_weights_and_biases(tmp_path):
    ours = list_models("small", ["nonspeech"])[1].point(0)
    write_run(tmp_path, ours.name, {"input": [5.0, 5.0], "output": [1.0, 2.0]})
    (tmp_path / ours.name / "resolved_config.yaml").write_text("wandb: {mode: offline, project: dfx}")
    rows = read_rows(tmp_path, {list_models("small", ["nonspeech"])[1]: [ours]})
    assert "0.0186" in write_table(tmp_path, rows, tmp_path / ours.name)
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert (tmp_path / "table.csv").is_file() and (tmp_path / "table.png").is_file()


@pytest.mark.parametrize("rival", ["LANDR=clips", "mastering:LANDR", "vocals:LANDR=clips"])
def test_a_rival_without_a_task_or_a_folder_is_refused(rival):
    with pytest.raises(UserError, match="TASK:NAME=FOLDER"):
        command.main(["--scale", "small", "--rival", rival])


@pytest.mark.slow
def test_one_command_trains_evaluates_and_writes_the_table_and_again_runs_nothing(
    tmp_path, monkeypatch, capsys, make_pairs
):
    models = [Model("tube_amp", OURS, ("configs/smoke.yaml",), str(make_pairs(6)))]
    monkeypatch.setattr(command, "list_models", lambda *_: models)
    folder = tmp_path / "runs"
    arguments = ["--scale", "small", "--seeds", "0", "--folder", str(folder), "--evaluations", "5"]
    arguments += ["--network-steps", "3"]
    assert command.main(arguments) == 0
    assert "tube_amp_dfx" in (printed := capsys.readouterr().out) and "1 run, 1 at once" in printed
    with (folder / "table.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert {"input", "defaults (dfx)", "fixed (dfx)", "network", "dfx", "CAFx"} <= set(rows)
    assert "configs/smoke.yaml" in rows["dfx"]["command"] and (folder / "table.png").stat().st_size > 10_000
    monkeypatch.setattr(command, "run_here", None)
    assert command.main(arguments) == 0
    assert "dfx minus this" in capsys.readouterr().out
