"""Commands of a user: train.py and evaluate.py."""

import contextlib
import csv
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from jsonargparse import capture_parser

from dfx.cli import DfxCLI, main
from dfx.commands import evaluate, run_train
from dfx.errors import UserError
from dfx.metrics import COLUMNS
from dfx.tasks import load_task
from dfx.writing import lock
from tests import help_texts
from tests.wandb_records import records

ROOT = Path(__file__).parent.parent
SMOKE = ["--config", "configs/smoke.yaml"]


def command(script: str, *arguments: object, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, script, *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def run(script: str, *arguments: object, status: int = 0) -> tuple:
    process = command(script, *arguments)
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, out + err
    return out, err


def test_a_run_ends_with_a_table_and_the_paths_of_its_results(logged_run):
    out = (logged_run / "output.txt").read_text()
    for text in [
        "output / input",
        "mrstft",
        "mfcc_cosine",
        "lufs_difference",
        "input",
        "output",
        str(logged_run / "evaluation" / "audio"),
    ]:
        assert text in out


def test_a_run_prints_a_line_for_every_validation_and_no_notices(logged_run):
    head = (logged_run / "output.txt").read_text().split("Held-out pairs")[0].strip().splitlines()
    assert len(head) == 3 and "2 trained parameters" in head[0]
    for epoch, line in enumerate(head[1:], 1):
        assert line.startswith(f"epoch {epoch}, step {5 * epoch} of 10: train/loss ")
        assert re.search(r", validation/loss \d\S*, \d\d:\d\d left$", line)
    assert (logged_run / "errors.txt").read_text() == ""


def test_a_terminal_shows_one_bar_that_weights_and_biases_does_not_record(tmp_path):
    pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")
    fcntl = pytest.importorskip("fcntl", reason="this system has no pseudo-terminals")
    termios = pytest.importorskip("termios", reason="this system has no pseudo-terminals")
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    options = {"env": {**os.environ, "COLUMNS": "120"}, "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    more = ["--run.folder", str(tmp_path), "--run.evaluate", "false", "--wandb.mode", "offline"]
    more += ["--logging.excerpts", "0", "--trainer.limit_val_batches", "1"]
    arguments = [sys.executable, "train.py", "fit", *SMOKE, *more, "--model.init_args.stages.pretraining_epochs", "1"]
    with subprocess.Popen(arguments, cwd=ROOT, stderr=terminal, text=True, **options) as process:
        os.close(terminal)
        shown = bytearray()
        with contextlib.suppress(OSError):  # the end of a terminal
            while piece := os.read(ours, 65536):
                shown += piece
        assert process.wait() == 0
    os.close(ours)
    bars = [part for part in shown.decode().split("\r") if "| step " in part]
    assert any(part.startswith("pretraining") for part in bars) and any(part.startswith("stage_1") for part in bars)
    assert all("/15" in part and "v_num" not in part for part in bars) and "left, train/loss" in bars[-1]
    recorded = [line["output_raw"].get("line", "") for line in records(tmp_path / "smoke") if "output_raw" in line]
    assert "epoch 1, step 5 of 15" in "".join(recorded) and "| step " not in "".join(recorded)


def test_the_run_folder_holds_config_versions_metrics_and_checkpoints(logged_run):
    config = yaml.safe_load((logged_run / "resolved_config.yaml").read_text())
    assert config["model"]["init_args"]["frame_samples"] == 2048
    assert config["model"]["init_args"]["gradient"]["epsilon"] == 0.01
    assert json.loads((logged_run / "versions.json").read_text())["torch"] == version("torch")
    metrics = json.loads((logged_run / "metrics.json").read_text())
    assert metrics["step"] == 10 and {"train/loss", "validation/loss", "validation/loss_of_input"} <= set(metrics)
    for name in ("best", "last"):
        load_task(str(logged_run / "checkpoints" / f"{name}.ckpt"))


def test_the_evaluation_holds_metrics_and_audio_of_every_file(logged_run):
    means = json.loads((logged_run / "evaluation" / "metrics.json").read_text())
    methods = ("input", "defaults", "output")
    assert {method: set(of) for method, of in means.items()} == {m: {"loss", *COLUMNS} for m in methods}
    rows = list(csv.DictReader((logged_run / "evaluation" / "files.csv").open()))
    assert len(rows) == len(methods) * 15
    for name in {row["file"] for row in rows}:
        for side in (*methods, "target"):
            audio, sample_rate = soundfile.read(logged_run / "evaluation" / "audio" / f"{name}_{side}.flac")
            assert sample_rate == 22050 and len(audio) == 44100 and np.abs(audio).max() < 1


def test_the_run_is_logged_offline_without_a_login(logged_run):
    records = list((logged_run / "wandb").glob("offline-run-*/*.wandb"))
    assert len(records) == 1 and records[0].stat().st_size > 0


@pytest.mark.slow
def test_the_resolved_config_reproduces_the_run(logged_run, tmp_path):
    run(
        "train.py",
        "fit",
        "--config",
        logged_run / "resolved_config.yaml",
        "--run.folder",
        tmp_path,
        "--wandb.mode",
        "disabled",
    )
    first, second = (
        json.loads((f / "evaluation" / "metrics.json").read_text()) for f in (logged_run, tmp_path / "smoke")
    )
    assert first == second
    weights = [load_task(str(f / "checkpoints" / "last.ckpt")).state_dict() for f in (logged_run, tmp_path / "smoke")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_evaluate_prints_the_metrics_of_the_run_as_one_json_object(logged_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    checkpoint = str(logged_run / "checkpoints" / "best.ckpt")
    monkeypatch.setattr(sys, "argv", ["evaluate.py", checkpoint, "--json", "--output", str(tmp_path)])
    evaluate.main()
    assert json.loads(capsys.readouterr().out) == json.loads((logged_run / "evaluation" / "metrics.json").read_text())


def test_evaluate_renders_the_beginnings_of_files_as_the_papers_code(logged_run, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    checkpoint = str(logged_run / "checkpoints" / "best.ckpt")
    options = ["--output", str(tmp_path), "--interpolation", "published", "--seconds", "0.2"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", checkpoint, *options])
    evaluate.main()
    about = json.loads((tmp_path / "evaluation.json").read_text())
    assert about["interpolation"] == "published"
    assert {file["seconds"] for file in about["files"]} == {0.2}
    # A new value every 64 samples, of which every fourth is written.
    times = [float(row["seconds"]) for row in csv.DictReader(next((tmp_path / "automation").iterdir()).open())]
    assert np.diff(times) == pytest.approx(4 * 64 / 22050)


def test_validate_and_test_run_from_a_checkpoint(logged_run, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for subcommand in ("validate", "test"):
        main([subcommand, *SMOKE, "--ckpt_path", str(logged_run / "checkpoints" / "best.ckpt")])
    printed = capsys.readouterr().out
    assert "validation/loss" in printed and "test/output/mrstft" in printed


@pytest.mark.slow
def test_a_number_is_appended_to_a_name_that_is_taken(tmp_path):
    (tmp_path / "smoke").mkdir()
    run("train.py", "fit", *SMOKE, "--run.folder", tmp_path, "--run.evaluate", "false", "--trainer.max_steps", 1)
    assert (tmp_path / "smoke-2" / "checkpoints" / "last.ckpt").exists()


def test_a_run_without_validations_prints_why_nothing_was_evaluated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    main(["fit", *SMOKE, "--run.folder", str(tmp_path), "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"])
    best = tmp_path / "smoke" / "checkpoints" / "best.ckpt"
    assert capsys.readouterr().out.endswith(f"\nnothing was evaluated, since no validation has written {best}\n")


def printed_help(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["train.py", *arguments])
    run_train()
    return capsys.readouterr().out


@pytest.mark.parametrize("name", help_texts.ARGUMENTS)
def test_the_help_on_file_is_that_of_the_parser(name, monkeypatch, capsys):
    text = printed_help(monkeypatch, capsys, *help_texts.ARGUMENTS[name])
    assert help_texts.words(text) == help_texts.words(help_texts.write_help(name)), "run python -m tests.help_texts"


def test_help_explains_the_options(monkeypatch, capsys):
    out = printed_help(monkeypatch, capsys, "fit", "--help")
    for option in ("--run.name", "--run.resume", "--wandb.mode", "--data.root", "train.py fit --model.help TASK"):
        assert option in " ".join(out.split())


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"], ["fit", "--model.help", "Mastering"]])
def test_help_imports_nothing_of_training(arguments):
    call = f"import sys, runpy; sys.argv = ['train.py', *{arguments}]; runpy.run_path('train.py', run_name='__main__')"
    out = subprocess.run(
        [sys.executable, "-c", f"{call}; print('numpy' in sys.modules)"],
        cwd=ROOT, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL,
    ).stdout  # fmt: skip
    assert out.count("\n") >= 10 and out.endswith("False\n")


def test_help_begins_with_the_commands_of_a_user(monkeypatch, capsys):
    assert printed_help(monkeypatch, capsys, "--help").count("    python ") == 5


@pytest.mark.parametrize("task", ["TubeAmp", "NonSpeech", "Mastering", "StyleTransfer"])
def test_every_option_of_a_task_is_explained(task, monkeypatch, capsys):
    printed = printed_help(monkeypatch, capsys, "fit", "--model.help", task)
    entries = re.split(r"\n(?=  --model)", printed)[1:]
    option = r"--model\S*( \S+)?(, --\S+ \S+)?"
    texts = [re.match(rf"{option} (.*?)\((required, )?type:", " ".join(entry.split())) for entry in entries]
    assert [entry for entry, text in zip(entries, texts) if text and len(text[3].split()) < 2] == []
    assert sum(text is not None for text in texts) > 30


@pytest.mark.slow
def test_a_null_on_the_command_line_overrides_a_config(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("model: {class_path: TubeAmp, init_args: {optimizer: {patience: 3}}}")
    options = ("--model.init_args.optimizer.patience", "null", "--model.init_args.gradient", "{epsilon_end: null}")
    out, _ = run("train.py", "fit", *SMOKE, "--config", config, *options, "--print_config")
    init_args = yaml.safe_load(out)["model"]["init_args"]
    assert init_args["optimizer"]["patience"] is None and init_args["gradient"]["epsilon_end"] is None


EFFECTS = "--model.init_args.effects"
FAILING = '[{"effect": "python:tests.misbehaving.NotFinite", "train": {"gain": {"range": [0, 1], "default": 0.9}}}]'
FAILS_IN_ITS_FIRST_STEP = [EFFECTS, FAILING, "--model.init_args.keep_dead_parameters", "true"]


@pytest.mark.parametrize(
    "arguments, text",
    [
        (FAILS_IN_ITS_FIRST_STEP, "returned audio that is not finite"),
        ([EFFECTS, '[{"effect": "pedalboard:Compresor"}]'], "did you mean 'Compressor'"),
        ([EFFECTS, '[{"effect": "pedalboard:Gain", "train": {"gain": null}}]'], "did you mean 'gain_db'"),
        ([EFFECTS, '[{"effect": "pedalboard:Gain", "trian": {}}]'], "no option 'trian' (did you mean 'train'?)"),
        ([EFFECTS, '[{"effect": "pedalboard:Compressor", "train": {"ratio": [0.1, 4]}}]'], "goes below 1"),
        (["--run.name", "other", "--run.resume", "true"], "there is no such run to resume"),
        (["--run.name", "../elsewhere"], "run.name is '../elsewhere'; a name has 1 to 100 characters, without slashes"),
        (["--run.name", ""], "run.name is ''; a name has"),
        (["--trainer.max_epochs", "-1"], "optimizer.schedule: cosine needs one"),
        (["--trainer.check_val_every_n_epoch", "0"], "trainer.check_val_every_n_epoch is 0; it must be"),
        (["--trainer.accumulate_grad_batches", "-1"], "trainer.accumulate_grad_batches is -1; it must be"),
        (["--trainer.devices", "-3"], "`devices` selected with"),
        (["--trainer.precision", "bf16-true"], "would round the audio too: set it to bf16-mixed"),
        (["--trainer.max_time", "long"], "not a valid duration"),
        (["--seed_everything", "-1"], "seed_everything is -1; it must be"),
        (["--model.init_args.gradient={draws: 1, draws: 2}"], "'draws' is given twice"),
        (["--model.init_args.gradient={draws, draws}"], "'draws' is given twice"),
        (["--model.init_args.gradient=? draws\n? draws"], "'draws' is given twice"),
        (["--model.init_args.gradient.draws", "many"], "gradient.draws: Expected a int. Got value: many"),
        (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt: no such file"),
        (["--data.root", "nowhere"], "nowhere: no such folder"),
        (["--model.init_args.frame_samples", "512"], "lengthen the frame"),
        (["--model.init_args.gradient.memory", "0.5"], "gradient.memory is now called gradient.forgetting_factor"),
        (["--model.init_args.gradient={deviation: 1}"], "gradient.deviation is now called gradient.residual_weight"),
    ],
)
def test_a_command_that_fails_before_its_first_step_ends_in_one_line_and_leaves_no_folder(
    tmp_path, monkeypatch, arguments, text
):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as exit:
        main(["fit", *SMOKE, "--run.folder", str(tmp_path), *arguments])
    message = str(exit.value)
    assert message.startswith("error: ") and text in message and len(message.splitlines()) == 1
    assert not list(tmp_path.iterdir())


class Parsed(DfxCLI):
    """Reads its options and ends."""

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def test_training_moves_to_a_gpu_of_apple_only_if_told(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for given, expected in [([], "cpu"), (["--trainer.accelerator=mps"], "mps")]:
        parsed = Parsed(["fit", "--config", str(ROOT / SMOKE[1]), "--run.folder", str(tmp_path), *given])
        assert parsed.config.fit.trainer.accelerator == expected


@pytest.mark.parametrize("name, continued", [("seed1", "seed1-2"), ("seed", "seed")])
def test_a_requeued_job_continues_its_run_and_none_whose_name_only_begins_alike(monkeypatch, tmp_path, name, continued):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for folder, job in {"seed1": "16", "seed1-2": "17", "seed11": "17", "seed1-long": "17", "seed1-2-3": "17"}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "slurm_job").write_text(job)
    options = ["--run.folder", str(tmp_path), "--run.name", name]
    assert Parsed(["fit", "--config", str(ROOT / SMOKE[1]), *options]).run_folder == tmp_path / continued


@pytest.fixture(scope="module")
def parser():
    return capture_parser(lambda: DfxCLI([]))


@pytest.mark.parametrize(
    "option, text",
    [
        ("trainer.max_epoch", "trainer.max_epoch: there is no such option (did you mean 'max_epochs'?)"),
        ("run.nam", "run.nam: there is no such option (did you mean 'name'?)"),
        ("trainre.max_epochs", "trainre.max_epochs: there is no such option (did you mean 'trainer'?)"),
        ("batch_size", "batch_size: there is no such option (did you mean 'data.batch_size'?)"),
        ("loss.kind", "loss.kind: there is no such option (did you mean 'model.init_args.loss'?)"),
        ("model.init_args.gradient.draw", "model.gradient.draw: there is no such option (did you mean 'draws'?)"),
        ("model.init_args.encodr.width", "model.encodr.width: there is no such option (did you mean 'encoder'?)"),
        ("model.init_arg.channels", "model.init_arg.channels: there is no such option (did you mean 'init_args'?)"),
    ],
)
def test_an_unknown_or_abbreviated_option_is_named_with_the_nearest_one(parser, tmp_path, option, text):
    config = {}
    for part in reversed(option.split(".")):
        config = {part: config or 1}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(config))
    for arguments in ([f"--{option}", "1"], ["--config", str(tmp_path / "wrong.yaml")]):
        with pytest.raises(UserError) as error:
            parser.parse_args(["fit", "--config", str(ROOT / SMOKE[1]), *arguments])
        assert str(error.value) == text


def test_an_unknown_option_of_a_callback_is_named_with_the_nearest_one(parser):
    callback = "{class_path: EarlyStopping, init_args: {monitr: validation/loss}}"
    with pytest.raises(UserError, match=r"^trainer.callbacks.monitr: there is no .* \(did you mean 'monitor'\?\)$"):
        parser.parse_args(["fit", "--config", str(ROOT / SMOKE[1]), "--trainer.callbacks", f"[{callback}]"])


def resumed(run: Path, *arguments: str) -> str:
    """Resume a run, and return the error."""
    with pytest.raises(SystemExit) as exit:
        main(["fit", *SMOKE, "--run.folder", str(run.parent), "--run.resume", "true", *arguments])
    return str(exit.value)


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--data.batch_size", "2"], "data.batch_size (4, now 2)"),
        (["--data.steps_per_epoch", "5"], "data.steps_per_epoch (None, now 5)"),
        (["--data.seed", "5"], "data.seed is 5, and was 0"),
        (["--run.seed", "5"], "data.seed is 5, and was 0"),
        (["--model.init_args.optimizer.learning_rate", "0.1"], "optimizer.learning_rate (0.001, now 0.1)"),
        (["--model.init_args.loss.kind", "paper"], "loss.kind (mrstft, now paper)"),
        (["--model.init_args.stages.progressive", "true"], "trained with other stages"),
        (["--trainer.max_epochs", "1"], "has reached 2 of trainer.max_epochs"),
        (["--trainer.max_steps", "3"], "has reached 10 of trainer.max_steps"),
        (["--data.root", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_a_run_resumes_with_the_options_it_began_with_or_is_left_as_it_is(
    logged_run, tmp_path, monkeypatch, arguments, text
):
    monkeypatch.chdir(ROOT)
    run = shutil.copytree(logged_run, tmp_path / "smoke")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    message = resumed(run, "--data.check_audio", "false", *arguments)
    assert message.startswith("error: ") and text in message and len(message.splitlines()) == 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_that_another_process_writes_is_not_resumed(logged_run, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    run = shutil.copytree(logged_run, tmp_path / "smoke")
    code = "import sys; from pathlib import Path; from dfx.writing import lock"
    code += "; file = lock(Path(sys.argv[1]), ''); print('locked', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(run / ".lock")]
    assert "batch_size" in resumed(run, "--data.batch_size", "2")  # which releases the lock
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as holder:
        assert holder.stdout.readline() == "locked\n"
        assert "smoke is in use by another process" in resumed(run)
        holder.kill()
    # The lock ends with its process, however that ends.
    lock(run / ".lock", "still locked").close()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", Path("/proc/nowhere")):
        with pytest.raises(SystemExit, match=f"^error: {folder}.*(directory|denied|permitted)$"):
            main(["fit", *SMOKE, "--run.folder", str(folder), "--data.check_audio", "false"])
    assert (tmp_path / "file").read_text() == ""


def test_a_config_with_the_former_name_of_a_value_is_refused_with_its_name_now(tmp_path):
    (tmp_path / "old.yaml").write_text("model: {init_args: {gradient: {control_variate: response}}}")
    with pytest.raises(SystemExit, match="^error: .* is now called gradient.control_variate=regression: rename it$"):
        main(["fit", *SMOKE, "--config", str(tmp_path / "old.yaml")])


def test_evaluate_ends_in_one_line_for_data_that_do_not_exist(logged_run):
    _, err = run("evaluate.py", logged_run / "checkpoints" / "best.ckpt", "--data", logged_run / "nowhere", status=1)
    assert err.startswith("error: ") and "no such folder" in err and len(err.strip().splitlines()) == 1
