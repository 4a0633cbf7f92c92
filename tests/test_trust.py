"""A checkpoint from a stranger, or a damaged one, runs no code and is refused in one line."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import dfx
from dfx.callbacks.checkpoints import AtomicCheckpointIO, last_checkpoint
from dfx.cli import main as train
from dfx.commands import evaluate
from dfx.effects import EffectSpec, is_foreign
from dfx.errors import UserError
from dfx.render.__main__ import main as render
from dfx.tasks import CheckpointError, Task, TubeAmp, load_task, read_checkpoint
from tests.known_effects import SAMPLE_RATE, known
from tests.small_training import data, task, trainer

ROOT = Path(__file__).parent.parent
EFFECTS = [EffectSpec("pedalboard:Gain", train={"gain_db": (-12, 12)})]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Return the folder of ten short pairs."""
    root = tmp_path_factory.mktemp("pairs")
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 4000)
    for side, gain in {"input": 1.0, "target": 0.5}.items():
        (root / side).mkdir()
        for number in range(10):
            soundfile.write(root / side / f"{number}.wav", gain * noise, SAMPLE_RATE)
    return root


def fitted(pairs: Path, folder: Path, effects: list[EffectSpec]) -> dict:
    """Return what the checkpoint of a task holds after a step of training."""
    model = task(effects)
    fit = trainer(folder, max_steps=1)
    fit.fit(model, datamodule=data(pairs, model))
    fit.save_checkpoint(folder / "model.ckpt")
    return read_checkpoint(str(folder / "model.ckpt"))


@pytest.fixture(scope="module")
def content(pairs, tmp_path_factory) -> dict:
    return fitted(pairs, tmp_path_factory.mktemp("fitted"), EFFECTS)


@pytest.fixture
def stranger(tmp_path, monkeypatch) -> Path:
    """Return the folder of a module that leaves a file when it is imported, which is on the import path."""
    (tmp_path / "strange.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\nfrom tests.known_effects import Gain\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def write(path: Path, content: object, **options: object) -> str:
    torch.save(content, path, **options)
    return str(path)


def with_effect(content: dict, effect: str) -> dict:
    arguments = {**content["dfx"]["arguments"], "effects": [{"effect": effect}]}
    return {**content, "dfx": {**content["dfx"], "arguments": arguments}}


# --- code --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "effect, foreign",
    [
        ("pedalboard:Compressor", False),
        ("lv2:http://calf.sourceforge.net/plugins/Compressor", False),
        ("vst3:ZamTube", False),
        ("vst3:Several#One/Two", False),
        ("au:AUDelay", False),
        ("python:package.Class", True),
        ("python:dfx.effects.expander.Expander", False),
        ("python:dfx.effects.expander.Other", True),
        ("vst3:/home/me/Downloads/X.vst3", True),
        ("vst3:X.vst3", True),
        ("vst3:here/X", True),
        ("vst3:\\\\server\\share\\X.vst3#One", True),
        ("au:X.component", True),
        ("au:C:X", True),
        ("of_tomorrow:X", True),
    ],
)
def test_python_classes_and_plugins_by_path_are_foreign(effect, foreign):
    assert is_foreign(effect) == foreign


def ways_to_open(path: str, folder: Path) -> list:
    """Return the commands that build a model from a checkpoint."""
    commands = {
        "load": lambda: dfx.load(path),
        "load_task": lambda: load_task(path),
        "render": lambda: render([path, "in.wav", str(folder / "out.wav")]),
    }
    return list(commands.values())


@pytest.mark.parametrize(
    "effect", ["python:strange.Gain", "vst3:strange.vst3", "vst3:./strange", "of_tomorrow:strange"]
)
def test_effects_of_a_checkpoint_run_no_code_unless_it_is_trusted(stranger, content, monkeypatch, effect):
    path = write(stranger / "model.ckpt", with_effect(content, effect))
    for way in ways_to_open(path, stranger):
        with pytest.raises(CheckpointError, match=f"names code to run, {effect}: if you trust its author, add --trust"):
            way()
    monkeypatch.setattr("sys.argv", ["evaluate.py", path])
    with pytest.raises(CheckpointError, match="add --trust"):
        evaluate.main()
    assert not (stranger / "ran").exists()


def test_a_trusted_checkpoint_runs_its_effects(pairs, tmp_path):
    path = write(tmp_path / "model.ckpt", fitted(pairs, tmp_path, [known("Gain")]))
    assert dfx.load(path, trust=True).task.chain.space.names == ["gain.gain"]


@pytest.fixture
def config(pairs, tmp_path) -> Path:
    arguments = task(EFFECTS).arguments
    written = tmp_path / "config.yaml"
    made = {
        "model": {"class_path": "TubeAmp", "init_args": arguments},
        "data": {"root": str(pairs), "batch_size": 4, "excerpt_seconds": 0.2, "check_audio": False},
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False, "logger": False},
    }
    written.write_text(json.dumps(made))
    return written


def strange(content: dict, kind: str) -> object:
    """Return a checkpoint that names or holds code in some place."""
    names = {"_class_path": "strange.Gain", "_instantiator": "strange.Gain"}
    return {
        "hyper_parameters": {**content, "hyper_parameters": names},
        "datamodule_hyper_parameters": {**content, "datamodule_hyper_parameters": names},
        "effects": with_effect(content, "python:strange.Gain"),
        "optimizer_states": {**content, "optimizer_states": [Importing()]},
        "callbacks": {**content, "callbacks": {"Importing": Importing()}},
        "all": Importing(),
    }[kind]


class Importing:
    """Imports a module when it is unpickled."""

    def __reduce__(self) -> tuple:
        return __import__, ("strange",)


KINDS = ["hyper_parameters", "datamodule_hyper_parameters", "effects", "optimizer_states", "callbacks", "all"]


@pytest.mark.parametrize(
    "command, kind",
    [*(("test", kind) for kind in KINDS), *((name, KINDS[0]) for name in ("fit", "validate"))],
)
def test_no_command_of_training_runs_code_that_a_checkpoint_names(stranger, content, config, capfd, kind, command):
    path = write(stranger / "model.ckpt", strange(content, kind))
    options = ["--run.folder", str(stranger / "runs"), "--wandb.mode", "disabled", "--run.evaluate", "false"]
    with pytest.raises(SystemExit) as end:
        train([command, "--config", str(config), "--ckpt_path", path, *(options if command == "fit" else [])])
        raise SystemExit(0)
    assert not (stranger / "ran").exists()
    # Unknown hyperparameters are ignored, the others refused.
    if not kind.endswith("hyper_parameters"):
        assert len(str(end.value).splitlines()) == 1 and str(end.value).startswith("error: ")


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_that_are_no_checkpoints_run_no_code(stranger, protocol):
    path = stranger / "model.ckpt"
    path.write_bytes(pickle.dumps(Importing(), protocol))
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_task(str(path))
    write(path, Importing(), _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_task(str(path))
    write(path, Importing())
    with pytest.raises(CheckpointError, match="more than tensors and plain data") as refused:
        load_task(str(path))
    assert "weights_only" not in str(refused.value) and not (stranger / "ran").exists()


def test_lightnings_own_loading_is_refused(content, tmp_path):
    with pytest.raises(CheckpointError, match="dfx.tasks.load_task"):
        TubeAmp.load_from_checkpoint(write(tmp_path / "model.ckpt", content))


def test_a_path_in_a_checkpoint_removes_no_file_outside_of_its_folder(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "old.ckpt").write_text("old")
    for path in ("checkpoints/../mine", "checkpoints/..", "checkpoints"):
        AtomicCheckpointIO().remove_checkpoint(str(tmp_path / path))
    assert (tmp_path / "mine").exists()
    AtomicCheckpointIO().remove_checkpoint(str(tmp_path / "checkpoints" / "old.ckpt"))
    assert not (tmp_path / "checkpoints" / "old.ckpt").exists()


# --- damage ------------------------------------------------------------------------------------------


def equal(one: object, other: object) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_flipped_byte_is_detected_or_does_no_harm(tmp_path):
    plain = {"task": "TubeAmp", "arguments": {}, "data": {}, "streaming": {}, "stage": 0}
    content = {"dfx": plain, "state_dict": {"weight": torch.randn(100)}}
    path = tmp_path / "model.ckpt"
    intact, refused = Path(write(path, content)).read_bytes(), 0
    places = range(0, len(intact), 9)
    for place in places:
        flipped = bytearray(intact)
        flipped[place] ^= 0xFF
        path.write_bytes(flipped)
        try:
            read = read_checkpoint(str(path))
        except CheckpointError:
            refused += 1
        else:
            assert equal(read, content), f"byte {place}"
    assert refused > len(places) / 2


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    ends = {"empty": 0, "one byte": 1, "half": middle, "all but one byte": len(content) - 1}
    if kind in ends:
        path.write_bytes(content[: ends[kind]])
    else:
        start = {"64 bytes of weights": middle, "64 bytes of the header": 0, "64 bytes of the directory": -300}[kind]
        start %= len(content)
        flipped = bytes(byte ^ 0xFF for byte in content[start : start + 64])
        path.write_bytes(content[:start] + flipped + content[start + 64 :])


DAMAGES = ["empty", "one byte", "half", "all but one byte"]
DAMAGES += ["64 bytes of weights", "64 bytes of the header", "64 bytes of the directory"]


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_run_resumes_from_the_previous_checkpoint_if_the_last_is_damaged(content, tmp_path, capfd, kind):
    last, previous = tmp_path / "last.ckpt", tmp_path / "last.previous.ckpt"
    write(last, content)
    write(previous, content)
    assert last_checkpoint(tmp_path) == last
    damage(last, kind)
    assert last_checkpoint(tmp_path) == previous
    (line,) = capfd.readouterr().out.splitlines()
    assert line.startswith(f"{last} is missing or broken") and line.endswith(str(previous))
    damage(previous, kind)
    with pytest.raises(CheckpointError, match=r"last\.ckpt cannot be read .*last\.previous\.ckpt cannot be read"):
        last_checkpoint(tmp_path)


def test_a_compressed_record_is_refused(content, tmp_path):
    path = Path(write(tmp_path / "model.ckpt", content))
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    with pytest.raises(CheckpointError, match="is compressed"):
        read_checkpoint(str(path))


def without(mapping: dict, name: str) -> dict:
    return {key: value for key, value in mapping.items() if key != name}


def wrong(content: dict) -> dict[str, object]:
    """Return checkpoints that lack something, or have something else in its place."""
    ours, weights = content["dfx"], content["state_dict"]
    name = next(name for name, value in weights.items() if value.dim() > 1)
    made: dict[str, object] = {
        "no dictionary": [content],
        "no weights": without(content, "state_dict"),
        "weights that are a list": {**content, "state_dict": list(weights.values())},
        "one weight less": {**content, "state_dict": without(weights, name)},
        "one weight more": {**content, "state_dict": {**weights, "other": torch.zeros(1)}},
        "a weight of another shape": {**content, "state_dict": {**weights, name: weights[name][..., :-1]}},
        "a weight that is a string": {**content, "state_dict": {**weights, name: "weight"}},
        "dfx that is None": {**content, "dfx": None},
    }
    for key in ("task", "arguments", "data", "stage"):
        made[f"no {key}"] = {**content, "dfx": without(ours, key)}
    for key, value in {"task": "Other", "stage": 7, "arguments": [], "data": "pairs"}.items():
        made[f"{key} {value!r}"] = {**content, "dfx": {**ours, key: value}}
    for key, value in {
        "effects": None,
        "sample_rate": "fast",
        "context_samples": -1,
        "encoder": {"width": "x"},
    }.items():
        changed = {**ours["arguments"], key: value}
        made[f"{key} {value!r}"] = {**content, "dfx": {**ours, "arguments": changed}}
    return made


def test_checkpoints_of_wrong_shapes_or_missing_keys_are_refused_in_one_line(content, tmp_path):
    for name, made in wrong(content).items():
        path = write(tmp_path / "model.ckpt", made)
        with pytest.raises(UserError) as refused:
            load_task(path)
            pytest.fail(f"{name} was loaded")
        assert len(str(refused.value).splitlines()) == 1, name


def test_training_refuses_them_too(content, pairs, tmp_path):
    model = task(EFFECTS)
    module = data(pairs, model)
    lacking = {name: without(content, name) for name in ("loops", "optimizer_states", "pytorch-lightning_version")}
    others = {name: made for name, made in wrong(content).items() if "weight" in name or name.startswith("no ")}
    for name, made in {**others, **lacking}.items():
        path = write(tmp_path / "model.ckpt", made)
        fit = trainer(tmp_path, plugins=[AtomicCheckpointIO()])
        with pytest.raises(UserError) as refused:
            fit.fit(model, datamodule=module, ckpt_path=path)
            pytest.fail(f"{name} was loaded")
        assert len(str(refused.value).splitlines()) == 1, name


def test_a_task_is_chosen_from_our_own_table_only(content, tmp_path):
    for name in ("Task", "dfx.tasks.TubeAmp", "strange.Gain", Task.__module__):
        made = {**content, "dfx": {**content["dfx"], "task": name}}
        with pytest.raises(CheckpointError, match="is of the task"):
            load_task(write(tmp_path / "model.ckpt", made))


# --- standard streams ----------------------------------------------------------------------------------

HELP = f"{sys.executable} -m dfx.sweep --help"
PRINTING = f"{sys.executable} -c 'from dfx.errors import *\nwith errors_in_one_line(): print(100000 * \"line \")'"


@pytest.mark.skipif(os.name != "posix", reason="the shell is that of POSIX")
@pytest.mark.parametrize("command", [HELP, PRINTING])
@pytest.mark.parametrize("closed", ["| true", "| head -c 1", ">&-", "2>&-", "<&-", ">&- 2>&- <&-", ">/dev/full"])
def test_a_closed_standard_stream_ends_in_one_line_at_most(tmp_path, command, closed):
    errors = tmp_path / "errors"
    redirected = "" if "2>&-" in closed else f"2>{errors}"
    done = subprocess.run(["bash", "-c", f"{command} {redirected} {closed}"], cwd=ROOT, capture_output=True, text=True)
    said = (errors.read_text() if errors.exists() else "").splitlines()
    assert not done.stderr and len(said) <= 1
    assert all(line.startswith("error: ") for line in said)
    if command == PRINTING and ("|" in closed or "full" in closed):
        assert said
