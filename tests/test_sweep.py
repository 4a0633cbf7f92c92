"""Sweeps: their points, how they are run to their end, and their summary."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from dfx.cli import WandbOptions
from dfx.figures import draw_sweep
from dfx.loggers.history import read_history
from dfx.sweep.__main__ import main
from dfx.sweep.grid import Point, SweepError, read_sweep
from dfx.sweep.runner import Budget
from dfx.sweep.summary import COLUMNS, as_markdown, marginal_means, read_runs, summarize, summarize_arms

ROOT = Path(__file__).parent.parent

# A fast substitute for train.py with the files that a sweep relies on: a folder of the run's name, a history, a
# checkpoint to resume from, and metrics at the very end. The name of its config selects how it ends.
PROGRAM = """
import json, os, pathlib, sys, time
options = dict(argument[2:].split("=", 1) for argument in sys.argv[2:])
run = pathlib.Path(options["run.folder"], options["run.name"])
resumed = options.get("run.resume") == "true"
assert run.is_dir() == resumed, "begun twice"
run.mkdir(parents=True, exist_ok=True)
state = run / "state.json"
seen = json.loads(state.read_text()) if resumed and state.exists() else {"starts": 0, "steps": 0}
seen["starts"] += 1
behave = options["config"].removesuffix(".yaml")
while seen["steps"] < 3:
    seen["steps"] += 1
    state.write_text(json.dumps(seen))
    if behave == "fail":
        sys.exit("error: the effect has failed")
    if behave == "raise":
        raise RuntimeError("a fault of ours")
    if behave == "wait" and seen["starts"] == 1:
        time.sleep(600)
seed = float(options["run.seed"])
with (run / "history.jsonl").open("w") as file:
    for step in range(1, 4):
        spent = {"progress/renderings": 32 * step, "progress/seconds": 10.0 * step}
        print(json.dumps({"stage": 0, "step": step, "validation/loss": 4 - step + seed, **spent}), file=file)
(run / "threads.txt").write_text(os.environ["OMP_NUM_THREADS"] + " " + options["model.init_args.rendering.workers"])
wandb = {"mode": options.get("wandb.mode", "offline"), "project": "dfx"}
(run / "resolved_config.yaml").write_text(json.dumps({"wandb": wandb}))
(run / "evaluation").mkdir()
(run / "evaluation" / "metrics.json").write_text(json.dumps({"output": {"loss": seed, "mrstft": 2 * seed}}))
(run / "evaluation" / "report.html").touch()
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Return a function that writes a sweep of a fast program, with the ends of its ``arms``."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "program.py").write_text(PROGRAM)

    def make(arms: list[str], seeds=(0, 1), **changes: object) -> str:
        content = {
            "program": str(tmp_path / "program.py"), "name": "made", "method": "grid",
            "parameters": {"config": {"values": [f"{arm}.yaml" for arm in arms]}, "run.seed": {"values": list(seeds)}},
            "command": ["${env}", "${interpreter}", "${program}", "fit", "${args}"], **changes,
        }  # fmt: skip
        path = tmp_path / "sweep.yaml"
        content = {name: value for name, value in content.items() if value is not None}
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return str(path)

    return make


def options_of(command: list[str]) -> dict[str, str]:
    return dict(argument[2:].split("=", 1) for argument in command if argument.startswith("--"))


def starts(folder: Path, point: str) -> int:
    return json.loads((folder / point / "state.json").read_text())["starts"]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- the grid ----------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_arm_by_arm(sweep):
    parameters = {
        "run.seed": {"values": [0, 1]}, "config": {"values": ["a/x.yaml", "a/y.yaml"]},
        "model.init_args.gradient.epsilon": {"values": [0.01, 0.1]}, "data.batch_size": {"value": 8},
    }  # fmt: skip
    points = read_sweep(sweep([], parameters=parameters)).points()
    assert [point.name for point in points] == [
        f"{config}_epsilon_{epsilon}_seed{seed}" for config in "xy" for epsilon in (0.01, 0.1) for seed in (0, 1)
    ]
    assert len({point.arm for point in points}) == 4
    options = options_of(points[-1].command)
    assert options["config"] == "a/y.yaml" and options["model.init_args.gradient.epsilon"] == "0.1"
    assert options["data.batch_size"] == "8" and options["run.seed"] == "1"


def test_a_point_is_run_as_an_agent_of_weights_and_biases_would(sweep):
    # As its agent expands the values that it receives from its server.
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config

    path = str(ROOT / "configs" / "sweeps" / "estimator.yaml")
    config = load_sweep_config(path)
    values = {"config": {"value": "configs/ablations/estimator/written.yaml"}, "run.seed": {"value": 1}}
    macros = create_sweep_command_args({"args": values})
    macros.update(env=[], interpreter=[sys.executable], program=[config["program"]])
    expected = []
    for part in create_sweep_command(config["command"]):
        expected += macros[part[2:-1]] if part.startswith("${") else [part]
    (point,) = [point for point in read_sweep(path).points() if point.name == "written_seed1"]
    assert point.command == expected


def test_seeds_and_options_of_the_command_line_come_last(sweep):
    points = read_sweep(sweep(["end"])).points(seeds=[5], options=["--trainer.max_epochs", "1"])
    assert [point.name for point in points] == ["made_seed5"]
    assert points[0].command[-2:] == ["--trainer.max_epochs", "1"] and "--run.seed=5" in points[0].command


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": "bayes"}, "only `grid` is supported"),
        ({"program": None}, "no `program`"),
        ({"command": ["python", "train.py"]}, "no ${args}"),
        ({"command": ["${interpreter}", "${nothing}", "${args}"]}, "${nothing} is not a supported macro"),
        ({"parameters": {"data.batch_size": {"min": 1, "max": 4}}}, "data.batch_size needs `value`, or a list"),
        ({"parameters": {"config": {"values": ["a/x.yaml", "b/x.yaml"]}}}, "are named x"),
    ],
)
def test_sweeps_that_are_no_grid_are_refused(sweep, changes, message):
    with pytest.raises(SweepError) as error:
        read_sweep(sweep(["end"], **changes)).points()
    assert message in str(error.value)


@pytest.mark.parametrize(
    "arguments, message", [(["nowhere.yaml"], "no such file"), (["--arms", "ends"], "did you mean 'end'")]
)
def test_errors_are_one_line(sweep, tmp_path, arguments, message):
    path = sweep(["end", "fail"])
    command = [sys.executable, "-m", "dfx.sweep", *(arguments if arguments[0].endswith("yaml") else [path, *arguments])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: ") and message in done.stderr


def test_cores_are_divided_among_the_runs(monkeypatch):
    for cores, points, jobs, expected in [
        (2, 18, None, (2, 1)), (64, 18, None, (16, 4)), (64, 4, None, (4, 16)), (2, 18, 1, (1, 2)), (2, 18, 8, (8, 1)),
    ]:  # fmt: skip
        monkeypatch.setattr("dfx.sweep.runner.available_cores", lambda count=cores: count)
        assert (Budget.of(points, jobs).jobs, Budget.of(points, jobs).threads) == expected


# --- running -----------------------------------------------------------------------------------------


def test_a_sweep_runs_missing_points_once_and_ends_with_a_table_and_a_figure(sweep, tmp_path, capsys):
    path, folder = sweep(["end", "also"]), tmp_path / "runs"
    arguments = [path, "--folder", str(folder), "--wandb-mode", "disabled", "--jobs", "2", "--threads", "3"]
    assert main([*arguments, "--seeds", "0"]) == 0
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "2 of 4 runs to do" in printed and "| end   |      2 |" in printed
    for point in ("end_seed0", "end_seed1", "also_seed0", "also_seed1"):
        assert starts(folder, point) == 1
        assert (folder / point / "threads.txt").read_text() == "3 3"
    for name in ("summary.md", "summary.csv", "runs.csv", "summary.png"):
        assert (folder / name).stat().st_size > 0


def test_points_that_fail_are_named_at_the_end_with_their_logs_and_the_others_finish(sweep, tmp_path, capsys):
    path, folder = sweep(["fail", "end", "raise"], seeds=[0]), tmp_path / "runs"
    arguments = [path, "--folder", str(folder), "--wandb-mode", "disabled"]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    log = folder / "logs" / "fail_seed0.log"
    assert f"error: fail_seed0 failed, exit status 1: error: the effect has failed ({log})" in printed.err
    assert "exit status 1: RuntimeError: a fault of ours" in printed.err and "end_seed0 failed" not in printed.err
    assert "not finished: fail_seed0, raise_seed0" in printed.out and "| end " in printed.out
    assert main(arguments) == 1 and starts(folder, "fail_seed0") == 2 and starts(folder, "end_seed0") == 1


@pytest.mark.slow
@pytest.mark.parametrize("killed", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_after_its_runner_is_killed_a_sweep_resumes_and_no_point_runs_twice_at_once(sweep, tmp_path, killed):
    path, folder = sweep(["wait"]), tmp_path / "runs"
    arguments = [path, "--folder", str(folder), "--wandb-mode", "disabled", "--jobs", "2"]
    command = [sys.executable, "-c", "from dfx.commands import run_sweep; run_sweep()", *arguments]
    runner = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    states = [folder / f"made_seed{seed}" / "state.json" for seed in (0, 1)]
    _until(lambda: all(state.exists() and state.stat().st_size for state in states))
    runner.send_signal(killed)
    _, err = runner.communicate(timeout=200)
    if killed == signal.SIGKILL:
        # The points keep running; one ends now, and the new runner waits for the other.
        pids = _pids_of(folder)
        assert len(pids) == 2
        os.kill(pids[0], signal.SIGKILL)
        again = subprocess.Popen(command, cwd=ROOT)
        time.sleep(1)
        assert len(_pids_of(folder)) <= 2
        os.kill(pids[1], signal.SIGKILL)
        assert again.wait(200) == 0
    else:
        assert "the same command resumes from here" in err and not _pids_of(folder)
        assert main(arguments) == 0
    assert [starts(folder, f"made_seed{seed}") for seed in (0, 1)] == [2, 2]


@pytest.mark.slow
def test_a_point_that_is_killed_is_a_failure_and_resumed_by_the_next_command(sweep, tmp_path, capsys):
    path, folder = sweep(["wait", "end"], seeds=[0]), tmp_path / "runs"
    arguments = [path, "--folder", str(folder), "--wandb-mode", "disabled"]
    runner = subprocess.Popen([sys.executable, "-m", "dfx.sweep", *arguments], cwd=ROOT)
    _until(lambda: (folder / "wait_seed0" / "state.json").exists() and _pids_of(folder, "wait_seed0"))
    for pid in _pids_of(folder, "wait_seed0"):
        os.kill(pid, signal.SIGKILL)
    assert runner.wait(200) == 1
    assert main(arguments) == 0 and starts(folder, "wait_seed0") == 2 and starts(folder, "end_seed0") == 1


def test_a_folder_with_other_options_is_refused(sweep, tmp_path):
    folder = tmp_path / "runs"
    arguments = ["--folder", str(folder), "--wandb-mode", "disabled", "--arms", "end"]
    assert main([sweep(["end", "fail"], seeds=[0]), *arguments]) == 0
    changed = sweep(["end", "fail"], seeds=[0], command=["${interpreter}", "${program}", "fit", "--more=1", "${args}"])
    with pytest.raises(SweepError, match="other options"):
        main([changed, *arguments])


def test_list_prints_commands_that_run_anywhere_and_create_the_same_folder(sweep, tmp_path, capsys):
    path, folder = sweep(["end"]), tmp_path / "runs"
    arguments = [path, "--folder", str(folder), "--wandb-mode", "disabled"]
    assert main([*arguments, "--list"]) == 0
    commands = capsys.readouterr().out.splitlines()
    options = options_of(shlex.split(commands[0]))
    assert (options["wandb.group"], options["wandb.tags"], options["wandb.mode"]) == ("made", '["made"]', "disabled")
    (folder / "made_seed1").mkdir()
    assert main([*arguments, "--list"]) == 0
    assert ["--run.resume=true" in line for line in capsys.readouterr().out.splitlines()] == [False, True]
    for command in (commands[0], f"{commands[1]} --run.resume=true"):
        command += " --model.init_args.rendering.workers=1"
        subprocess.run(command, shell=True, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert main([*arguments, "--list"]) == 0 and capsys.readouterr().out == ""
    assert main([*arguments, "--summarize"]) == 0 and "| made  |      2 |" in capsys.readouterr().out


@pytest.mark.slow
def test_ray_runs_the_points_on_two_workers(sweep, tmp_path, capsys):
    path, folder = sweep(["end", "fail"], seeds=[0]), tmp_path / "runs"
    arguments = [path, "--folder", str(folder), "--wandb-mode", "disabled", "--ray", "local", "--threads", "1"]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert "error: fail_seed0 failed, exit status 1: error: the effect has failed" in printed.err
    assert starts(folder, "end_seed0") == 1 and "| end " in printed.out


def test_without_ray_the_error_says_how_to_install_it(sweep, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SweepError, match="pip install ray"):
        main([sweep(["end"]), "--folder", str(tmp_path / "runs"), "--ray", "local"])


@pytest.mark.slow
def test_train_itself_is_killed_resumed_and_summarized(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    content = {
        "program": "train.py", "name": "real", "method": "grid", "parameters": {"run.seed": {"values": [3]}},
        "command": ["${interpreter}", "${program}", "fit", "--config=configs/smoke.yaml", "${args}"],
    }  # fmt: skip
    path, folder = tmp_path / "sweep.yaml", tmp_path / "runs"
    path.write_text(yaml.safe_dump(content))
    arguments = [str(path), "--folder", str(folder), "--wandb-mode", "disabled"]
    runner = subprocess.Popen([sys.executable, "-m", "dfx.sweep", *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    _until(lambda: (folder / "real_seed3" / "checkpoints" / "last.ckpt").exists(), seconds=200)
    for pid in _pids_of(folder):
        os.kill(pid, signal.SIGKILL)
    assert runner.wait(200) == 1
    assert main(arguments[:3] + ["--wandb-mode", "offline"]) == 0
    history = [row for row in read_history(folder / "real_seed3") if "validation/loss" in row]
    assert [(row["epoch"], row["progress/renderings"]) for row in history] == [(0, 40), (1, 80)]
    assert 0 < history[0]["progress/seconds"] < history[1]["progress/seconds"]
    (run,) = rows_of(folder / "runs.csv")
    assert float(run["validation loss at the end"]) == history[-1]["validation/loss"] and float(run["test mrstft"]) > 0
    (record,) = (folder / "wandb").glob("offline-run-*")
    assert list(record.glob("files/media/table/*.json")) and list(record.glob("files/media/images/*.png"))


# --- the summary -------------------------------------------------------------------------------------


def write_run(run: Path, loss: float, history: Sequence[tuple] = ((0, 10, 32, 4, 1.0),)) -> None:
    (run / "evaluation").mkdir(parents=True)
    (run / "evaluation" / "metrics.json").write_text(json.dumps({"output": {"loss": loss, "mrstft": 1.0}}))
    (run / "evaluation" / "report.html").touch()
    (run / "resolved_config.yaml").write_text("wandb: {mode: disabled, project: dfx}")
    columns = ("stage", "step", "progress/renderings", "progress/seconds", "validation/loss")
    (run / "history.jsonl").write_text("\n".join(json.dumps(dict(zip(columns, row))) for row in history))


def test_the_summary_is_means_and_intervals_over_the_seeds_of_an_arm(sweep, tmp_path):
    points = read_sweep(sweep(["a", "b"], seeds=[0, 1, 2])).points()
    for point in points:
        seed = int(point.name[-1])
        if point.name == "b_seed1":
            continue
        history = [(0, 5, 0, 1, 9.0), (1, 10, 32, 2, 0.1), (2, 20, 64, 3, 1.0 + seed), (2, 30, 96, 4, 2.0 + seed)]
        write_run(tmp_path / point.name, 2.0 + seed, history)
    runs = read_runs(tmp_path, points)
    # A stage before the last has fewer effects, and pretraining another loss.
    assert runs[0]["course"] == [(32, 0.1), (64, 1.0), (96, 2.0)]
    a, b = summarize_arms(runs)
    assert [a[column] for column in COLUMNS] == pytest.approx([3, 2, 96, 3, 1, 4])
    half = 4.3027 / 3**0.5  # Student's t for two degrees of freedom
    assert [a[f"{column} interval"] for column in COLUMNS] == pytest.approx([half, half, 0, half, 0, 0], rel=1e-4)
    assert (a["runs"], b["runs"]) == (3, 2) and b["test loss interval"] == pytest.approx(12.7062, rel=1e-4)
    assert summarize_arms(runs[:1])[0]["test loss interval"] is None
    table = as_markdown([a, b]).splitlines()
    assert "3.000 ± 2.484" in table[2] and "|           96 |" in table[2] and len({len(line) for line in table}) == 1
    summarize(tmp_path, "made", points)
    written = rows_of(tmp_path / "summary.csv")
    assert [row["arm"] for row in written] == ["a", "b"] and float(written[0]["test loss"]) == 3


@pytest.fixture
def grid(sweep, tmp_path) -> list[Point]:
    """The points of three rates by two sizes; losses are the sum of a rank of each, and 0.1 more or less by seed."""
    parameters = {
        "model.optimizer.learning_rate": {"values": [0.001, 0.003, 0.01]}, "data.excerpt_seconds": {"values": [1, 2]},
        "run.seed": {"values": [0, 1]}, "data.batch_size": {"value": 4},
    }  # fmt: skip
    points = read_sweep(sweep([], parameters=parameters)).points()
    for point in points:
        rate, seconds = point.values.values()
        rank = [0.001, 0.003, 0.01].index(rate) + 10 * seconds
        write_run(tmp_path / "grid" / point.name, rank + (0.1 if point.seed else -0.1))
    return points


def test_a_cross_validation_counts_as_one_run_with_the_means_of_its_folds(sweep, tmp_path):
    (point,) = read_sweep(sweep(["end"], seeds=[0])).points()
    for fold in (1, 2):
        write_run(tmp_path / point.name / f"fold_{fold}", 7.0, [(0, 10, 32, 4, 1.0 + fold), (0, 20, 64, 8, 2.0 * fold)])
    assert not read_runs(tmp_path, [point])
    write_run(tmp_path / point.name, 5.0)
    (run,) = read_runs(tmp_path, [point])
    assert [run[column] for column in COLUMNS] == [3, 2.5, 64, 5, 1, 8]
    assert run["course"] == [(32, 2.5), (64, 3)]


def test_swept_parameters_are_columns_of_every_table(grid, tmp_path):
    text = summarize(tmp_path / "grid", "made", grid)
    for name in ("runs.csv", "summary.csv"):
        rows = rows_of(tmp_path / "grid" / name)
        assert [row["learning rate"] for row in rows[:: len(rows) // 3]] == ["0.001", "0.003", "0.01"]
        assert {row["excerpt [s]"] for row in rows} == {"1", "2"} and "batch size" not in rows[0]
    assert [row["seed"] for row in rows_of(tmp_path / "grid" / "runs.csv")[:2]] == ["0", "1"]
    assert re.search(r"learning rate +\| +excerpt \[s\]", text)


def test_marginal_means_weigh_all_arms_alike_and_pool_the_variance_of_their_seeds(grid, tmp_path):
    (tmp_path / "grid" / grid[0].name / "evaluation" / "report.html").unlink()
    summarize(tmp_path / "grid", "made", grid)
    rows = rows_of(tmp_path / "grid" / "marginal_means.csv")
    assert [(row["parameter"], row["value"], row["arms"], row["runs"]) for row in rows] == [
        ("learning rate", "0.001", "2", "3"), ("learning rate", "0.003", "2", "4"), ("learning rate", "0.01", "2", "4"),
        ("excerpt [s]", "1", "3", "5"), ("excerpt [s]", "2", "3", "6"),
    ]  # fmt: skip
    # The missing seed moves the mean of its arm by 0.1, and of its value by a half of that.
    assert [float(row["test loss"]) for row in rows] == pytest.approx([15.05, 16, 17, 11 + 0.1 / 3, 21])
    # Four runs in two arms: two degrees of freedom, a variance of 0.02.
    error = (0.02 * (1 / 2 + 1 / 2) / 2**2) ** 0.5
    assert float(rows[1]["test loss interval"]) == pytest.approx(4.3027 * error, rel=1e-4)


def test_the_figure_has_a_panel_for_each_parameter_on_the_scale_of_its_values(grid, tmp_path):
    runs = read_runs(tmp_path / "grid", grid)
    figure = draw_sweep(runs, marginal_means(runs), "made")
    _, rate, seconds = figure.axes
    assert (rate.get_xlabel(), rate.get_xscale()) == ("learning rate", "log")
    assert [label.get_text() for label in rate.get_xticklabels()] == ["0.001", "0.003", "0.01"]
    assert (seconds.get_xlabel(), seconds.get_xscale()) == ("excerpt [s]", "linear")
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "learning rate = 0.001, excerpt [s] = 1"


def test_parameters_of_one_name_keep_their_full_names(sweep):
    two = {name: {"values": [1, 2]} for name in ("model.layer.width", "model.encoder.width", "run.seed", "data.seed")}
    (point, *_) = read_sweep(sweep([], parameters=two)).points()
    assert point.values == {"model.layer.width": 1, "model.encoder.width": 1, "seed": 1} and point.seed == 1


def test_the_mode_of_weights_and_biases_is_that_of_the_config_unless_the_command_names_one(sweep, tmp_path, capsys):
    path = sweep(
        ["end"], seeds=[0], command=["${interpreter}", "${program}", "fit", "--wandb.mode=disabled", "${args}"]
    )
    for given, modes in ((), ["disabled"]), (("--wandb-mode", "offline"), ["disabled", "offline"]):
        assert main([path, "--folder", str(tmp_path / "runs"), "--list", *given]) == 0
        assert re.findall(r"--wandb\.mode=(\w+)", capsys.readouterr().out) == modes
    assert main([path, "--folder", str(tmp_path / "runs")]) == 0 and not (tmp_path / "runs" / "wandb").exists()


def test_a_run_of_an_agent_is_online_unless_its_config_says_otherwise(monkeypatch):
    assert WandbOptions().mode == "offline"
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    assert WandbOptions().mode == "online" and WandbOptions("disabled").mode == "disabled"


def test_without_a_finished_run_there_is_nothing_to_summarize(sweep, tmp_path, capsys):
    assert main([sweep(["end"]), "--folder", str(tmp_path / "runs"), "--summarize"]) == 0
    printed = capsys.readouterr().out
    assert "No run of the sweep is finished" in printed and str(tmp_path) not in printed


def _until(condition, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.05)


def _pids_of(folder: Path, point: str = "") -> list[int]:
    """Return the processes of a sweep's points, found by the folder on their command lines."""
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,stat=,args="], capture_output=True, text=True, check=True)
    processes = [line.split(None, 2) for line in listed.stdout.splitlines()]
    return [
        int(pid) for pid, state, command in processes
        if f"--run.folder={folder} " in command and point in command and not state.startswith("Z")
    ]  # fmt: skip


@pytest.mark.parametrize("changes", [
    {"parameters": [1]}, {"parameters": "seed"}, {"command": "python train.py"}, {"program": ["train.py"]},
])  # fmt: skip
def test_a_sweep_of_other_types_is_refused(sweep, changes):
    with pytest.raises(SweepError, match=f"`{next(iter(changes))}` cannot be"):
        read_sweep(sweep(["end"], **changes))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: [", b"\x00"])
def test_a_file_that_is_no_yaml_is_refused(tmp_path, content):
    (tmp_path / "sweep.yaml").write_bytes(content)
    with pytest.raises(SweepError, match="is not YAML"):
        read_sweep(str(tmp_path / "sweep.yaml"))


@pytest.mark.parametrize("name", ["../../x", "a|b", "a\nb", "<script>", "a/b"])
def test_names_of_a_sweep_are_names_of_folders_and_cells_of_tables(sweep, name):
    made = read_sweep(sweep([name, "end"], name=name))
    for text in (made.name, *(point.name for point in made.points())):
        assert not set(text) & set("/\\|<>\n")


@pytest.mark.parametrize("file, content", [
    ("history.jsonl", ""), ("history.jsonl", "[]\n3\n"), ("evaluation/metrics.json", "3"),
    ("evaluation/metrics.json", '{"output": {}}'), ("evaluation/metrics.json", '{"output": {"loss": "a"}}'),
])  # fmt: skip
def test_a_damaged_run_of_a_sweep_is_named(sweep, tmp_path, file, content):
    path, folder = sweep(["end"], seeds=[0]), tmp_path / "runs"
    assert main([path, "--folder", str(folder), "--wandb-mode", "disabled"]) == 0
    (run,) = folder.glob("*seed0")
    (run / file).write_text(content)
    with pytest.raises(SweepError, match=f"{run.name} is damaged"):
        main([path, "--folder", str(folder), "--wandb-mode", "disabled", "--summarize"])


def test_damaged_options_of_a_sweep_are_refused(sweep, tmp_path):
    (tmp_path / "points.json").write_text("[")
    with pytest.raises(SweepError, match=r"points\.json is damaged"):
        main([sweep(["end"]), "--folder", str(tmp_path), "--list"])
