"""Damaged, foreign and misplaced files of every kind end in one clear line, at every entry point."""

# ruff: noqa: E501

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from dfx.cli import main as train
from dfx.tasks import read_checkpoint
from tests.conftest import write_pairs
from tests.known_effects import SAMPLE_RATE
from tests.refusals import refusal  # noqa: F401

CHECKPOINT = "run/checkpoints/best.ckpt"
EVALUATE = f"{CHECKPOINT} --data pairs --output results"
RENDER = f"{CHECKPOINT} song.wav out.wav --quiet"
FIT = "fit --config small.yaml --run.folder runs"
SMALL = {
    "model": {
        "class_path": "TubeAmp",
        "init_args": {
            "context_samples": 4096,
            "frame_samples": 2048,
            "encoder": {"width": 0.1},
            "effects": [{"effect": "pedalboard:Gain", "train": {"gain_db": [-12, 12]}}],
        },
    },
    "data": {"root": "pairs", "batch_size": 2, "excerpt_seconds": 0.2},
    "trainer": {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False},
    "wandb": {"mode": "disabled"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Return a folder with ten pairs, a song, a config, and a finished run of it."""
    folder = tmp_path_factory.mktemp("made")
    write_pairs(folder / "pairs", 10, 0.25)
    shutil.copy(folder / "pairs" / "input" / "note_03.wav", folder / "song.wav")
    (folder / "small.yaml").write_text(json.dumps(SMALL))
    before = Path.cwd()
    os.chdir(folder)
    try:
        train(["fit", "--config", "small.yaml", "--run.folder", ".", "--trainer.limit_train_batches", "1"])
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(made, tmp_path) -> Path:
    """Return a copy of the folder."""
    return shutil.copytree(made, tmp_path / "here")


Change = Callable[[Path], object]
Row = tuple[str, str, Change, str]
"""Entry point, arguments, the change to the folder before it runs, and a part of the line."""


def nothing(folder: Path) -> None:
    pass


def writes(path: str, content: bytes | str) -> Change:
    return lambda folder: (folder / path).write_bytes(content.encode() if isinstance(content, str) else content)


# --- audio -------------------------------------------------------------------------------------------


def sound(samples: object, sample_rate: int = SAMPLE_RATE, subtype: str = "FLOAT", format: str = "WAV") -> bytes:
    """Return the bytes of an audio file, ``(samples,)`` or ``(samples, channels)``."""
    file = io.BytesIO()
    soundfile.write(file, np.asarray(samples, dtype=np.float32), sample_rate, subtype, format=format)
    return file.getvalue()


LENGTH = int(0.25 * SAMPLE_RATE)
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, LENGTH)
GOOD = sound(NOISE)


def with_value(value: float) -> np.ndarray:
    changed = NOISE.copy()
    changed[100] = value
    return changed


UNREADABLE = {
    "empty": b"",
    "one byte": b"R",
    "a part of a header": GOOD[:20],
    "text": "no audio\n",
    "a web page": "<!DOCTYPE html><html>404</html>",
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(200),
    "an archive": b"PK\x03\x04" + bytes(200),
    "zeros": bytes(5000),
    "noise": np.random.default_rng(0).bytes(5000),
    "a pointer of Git LFS": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
    "no samples": sound([]),
}
UNUSABLE = {"NaN": sound(with_value(np.nan)), "infinite": sound(with_value(np.inf))}
UNFIT = {"silence": sound(np.zeros(LENGTH)), "one sample": sound([0.5]), "half": sound(NOISE[: LENGTH // 2])}
UNFIT |= {"another rate": sound(NOISE, 44100), "truncated": GOOD[: len(GOOD) // 2]}


def audio_rows() -> list[Row]:
    rows: list[Row] = []
    for content in [*UNREADABLE.values(), *UNUSABLE.values(), *UNFIT.values()]:
        for path in ("pairs/input/note_05.wav", "pairs/target/note_05.wav"):
            rows.append(("evaluate.py", EVALUATE, writes(path, content), "note_05"))
    # Training reads files with the same function, and its command line takes a second.
    for content in (UNREADABLE["empty"], UNUSABLE["NaN"], UNFIT["silence"], UNFIT["half"]):
        rows.append(("train.py", FIT, writes("pairs/target/note_05.wav", content), "note_05"))
    for content in [*UNREADABLE.values(), *UNUSABLE.values()]:
        rows.append(("dfx.render", RENDER, writes("song.wav", content), "song.wav"))
    return rows


# --- folders and manifests ---------------------------------------------------------------------------

A, B, C = (
    "input/note_00.wav,target/note_00.wav",
    "input/note_01.wav,target/note_01.wav",
    "input/note_02.wav,target/note_02.wav",
)
HEADER = "input,target,split\n"
MANIFESTS = {
    "": "manifest.csv has no column",
    "\n\n": "manifest.csv has no column",
    "\0\1\2": "manifest.csv is not a text file",
    HEADER: "pairs has no pairs",
    "a,b\n1,2\n": "manifest.csv has no column",
    "input,split\n1,test\n": "has no column target",
    "input,target,split,split\n": "two columns split",
    f"{HEADER}{A},train\n{B},validation\n{C},tset\n": "tset",
    f"{HEADER}{A},train\n{B},validation\n{A},test\n": "lines 2 and 4 list the same pair",
    f"{HEADER}{A},train\n{B},validation\ninput/./note_00.wav,target/note_02.wav,test\n": "note_00.wav is in the split",
    f"{HEADER}{A},train\n{B},validation\ninput/note_02.wav,target/note_00.wav,test\n": "note_00.wav",
    f"{HEADER}{A},train\n{B},validation\nnowhere.wav,target/note_02.wav,test\n": "nowhere.wav: no such file",
    f"{HEADER}{A},train\n{B},validation\ninput,target,test\n": "no such file",
    f"{HEADER}{A},train\n{B},validation\n,,test\n": "no such file",
    f"{HEADER}{A},train\n{B},validation\n.,..,test\n": "no such file",
    f"{HEADER}{A},train\n{B},validation\n../song.wav,../small.yaml,test\n": "small.yaml",
    f"{HEADER}{A},train\n{B},validation\n{C},test,x,y\n": "more values",
    f'{HEADER}{A},train\n{B},validation\n"{C},test\n': "line 4",
    f"{HEADER}{A},train\n{B},validation\n{200_000 * 'a'},b,test\n": "line 4",
}
WITHOUT_SPLITS = {
    "input,target\n": "has no column split",
    f"{HEADER}{A},train\n{B},validation\n": "none for test",
    f"{HEADER}{A},train\n{B},validation\n{C},\n": "split '' is none of",
}


def only(count: int) -> Change:
    def remove(folder: Path) -> None:
        for path in sorted((folder / "pairs").rglob("*.wav")):
            if int(path.stem[-2:]) >= count:
                path.unlink()

    return remove


def move(before: str, after: str) -> Change:
    return lambda folder: (folder / before).rename(folder / after)


def remove(path: str) -> Change:
    return lambda folder: shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()


def links(path: str, target: str) -> Change:
    def link(folder: Path) -> None:
        (folder / path).unlink(missing_ok=True)
        (folder / path).symlink_to(target)

    return link


FOLDERS: list[tuple[Change, str]] = [
    (remove("pairs"), "pairs: no such folder"),
    (move("pairs", "others"), "pairs: no such folder"),
    (lambda folder: (remove("pairs")(folder), writes("pairs", "a file")(folder)), "pairs"),
    (remove("pairs/input"), "input"),
    (remove("pairs/target"), "target"),
    (only(0), "pairs"),
    (remove("pairs/target/note_05.wav"), "note_05.wav has no partner"),
    (remove("pairs/input/note_05.wav"), "note_05.wav has no partner"),
    (move("pairs/target/note_05.wav", "pairs/target/other.wav"), "has no partner"),
    (links("pairs/target/note_05.wav", "nowhere.wav"), "note_05.wav has no partner"),
    (lambda folder: shutil.copy(folder / "song.wav", folder / "pairs/input/note_05.flac"), "have one name"),
]


def data_rows() -> list[Row]:
    manifests = [(writes("pairs/manifest.csv", text), part) for text, part in MANIFESTS.items()]
    rows = [("evaluate.py", EVALUATE, change, part) for change, part in [*manifests, *FOLDERS]]
    # Training needs a split for every pair.
    splits = [(writes("pairs/manifest.csv", text), part) for text, part in WITHOUT_SPLITS.items()]
    splits += [manifests[6], manifests[12], FOLDERS[0], FOLDERS[6], (only(2), "pairs has 2 pairs, and none for train")]
    return rows + [("train.py", FIT, change, part) for change, part in splits]


# --- checkpoints -------------------------------------------------------------------------------------


def saved(change: Callable[[dict], object]) -> Change:
    """Write the checkpoint again with a change to its content."""

    def write(folder: Path) -> None:
        content = read_checkpoint(str(folder / CHECKPOINT))
        changed = change(content)
        torch.save(content if changed is None else changed, folder / CHECKPOINT)

    return write


def cut(part: float) -> Change:
    def write(folder: Path) -> None:
        path = folder / CHECKPOINT
        path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])

    return write


def flipped(folder: Path) -> None:
    content = bytearray((folder / CHECKPOINT).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(byte ^ 0xFF for byte in content[middle : middle + 64])
    (folder / CHECKPOINT).write_bytes(content)


def sets(*path: str, value: object) -> Change:
    """Replace an entry of the checkpoint; the value ``...`` removes it."""

    def change(content: dict) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value
        if value is ...:
            del content[path[-1]]

    return saved(change)


def fill(value: float) -> Change:
    return saved(
        lambda content: [w.fill_(value) for w in content["state_dict"].values() if w.is_floating_point()] and None
    )


CHECKPOINTS: dict[str, Change] = {
    "missing": remove(CHECKPOINT),
    "a folder": lambda folder: (remove(CHECKPOINT)(folder), (folder / CHECKPOINT).mkdir()),
    "empty": cut(0),
    "half": cut(0.5),
    "almost whole": cut(0.999),
    "flipped": flipped,
    "text": writes(CHECKPOINT, "no checkpoint"),
    "audio": writes(CHECKPOINT, GOOD),
    "weights only": saved(lambda content: content["state_dict"]),
    "a list": saved(lambda content: [content]),
    "a tensor": saved(lambda content: torch.zeros(3)),
    "of Lightning": saved(lambda content: {key: value for key, value in content.items() if key != "dfx"}),
    "no weights": sets("state_dict", value=...),
    "no task": sets("dfx", "task", value=...),
    "no arguments": sets("dfx", "arguments", value=...),
    "another task": sets("dfx", "task", value="Reverb"),
    "another stage": sets("dfx", "stage", value=9),
    "no effects": sets("dfx", "arguments", "effects", value=[]),
    "a lost effect": sets("dfx", "arguments", "effects", value=[{"effect": "pedalboard:Nothing"}]),
    "a foreign effect": sets("dfx", "arguments", "effects", value=[{"effect": "python:stranger.Effect"}]),
    "a rate of text": sets("dfx", "arguments", "sample_rate", value="fast"),
    "a negative frame": sets("dfx", "arguments", "frame_samples", value=-1),
    "an unknown option": sets("dfx", "arguments", "encoder", value={"nothing": 1}),
    "one weight": sets("state_dict", value={"encoder.weight": torch.zeros(3)}),
    "NaN weights": fill(np.nan),
}
RESUMING: dict[str, Change] = {
    "no loops": sets("loops", value=...),
    "loops of text": sets("loops", value="many"),
    "no fit loop": sets("loops", value={}),
    "a step of text": sets("global_step", value="one"),
    "an optimizer of text": sets("optimizer_states", value="adam"),
    "no optimizer": sets("optimizer_states", value=[]),
    "an empty optimizer": sets("optimizer_states", value=[{}]),
    "callbacks of text": sets("callbacks", value="none"),
    "streaming of text": sets("dfx", "streaming", value={"estimator": "none"}),
    "no directions": sets("dfx", "streaming", value={}),
    "pairs of text": sets("dfx", "data", "pairs", value="none"),
    "schedules of text": sets("lr_schedulers", value="none"),
    "a state of the data of text": sets("PairedAudio", value="none"),
    "an empty state of the data": sets("PairedAudio", value={}),
    "moments of another shape": saved(
        lambda content: (
            [state.update(exp_avg=torch.zeros(1)) for state in content["optimizer_states"][0]["state"].values()]
            and None
        )
    ),
}


def checkpoint_rows() -> list[Row]:
    rows: list[Row] = []
    for change in CHECKPOINTS.values():
        rows += [("evaluate.py", EVALUATE, change, CHECKPOINT), ("dfx.render", RENDER, change, CHECKPOINT)]
    for name in ("missing", "half", "flipped", "text", "no task", "another task", "a foreign effect", "one weight"):
        for command in ("test", "validate") if name in ("half", "another task") else ("test",):
            arguments = f"{command} --config small.yaml --ckpt_path {CHECKPOINT}"
            rows.append(("train.py", arguments, CHECKPOINTS[name], CHECKPOINT))
    resuming = [CHECKPOINTS[name] for name in ("a folder", "flipped", "NaN weights")] + [*RESUMING.values()]
    arguments = f"{FIT} --trainer.max_epochs 2 --ckpt_path {CHECKPOINT}"
    return rows + [("train.py", arguments, change, "checkpoint") for change in resuming]


# --- outputs of rendering ----------------------------------------------------------------------------

OUTPUTS = {
    "song.wav out.xyz": "", "song.wav out": "", "song.wav out.raw": "", "song.wav out.mat": "", "song.wav song.wav": "",
    "song.wav small.yaml": "", "song.wav pairs/input/note_00.wav": "", "song.wav small.yaml/out.wav": "small.yaml",
    "nowhere.wav out.wav": "", "pairs/nowhere out": "", "small.yaml out.wav": "", "pairs song.wav": "", "pairs -": "",
    "song.wav out.wav --bit-depth 12": "", "song.wav out.ogg --bit-depth 32": "",
    "song.wav out.wav --interpolation cubic": "", "song.wav out.wav --interpolation published --causal": "",
    "song.wav out.wav --automation out.txt": "", "song.wav out.wav --automation .xml": "",
    "song.wav out.wav --automation small.yaml": "", "song.wav out.wav --preset .txt": "",
    "song.wav out.wav --preset out.vstpreset": "", "song.wav out.wav --preset out.lv2": "",
    "song.wav out.wav --project out.als": "", "song.wav - --project .rpp": "", "song.wav - --automation .csv": "",
    "pairs out --automation one.csv": "", "song.wav out.wav --automation song.wav": "",
    "song.wav out.wav --preset nowhere/": "", "song.wav": "", "song.wav out.wav more.wav": "",
    "song.wav out.wav --nothing": "", "'' out.wav": "", "song.wav ''": "", "/dev/null out.wav": "",
    "song.wav /dev/full": "", "song.wav /proc/nowhere/out.wav": "",
}  # fmt: skip


def output_rows() -> list[Row]:
    return [("dfx.render", f"{CHECKPOINT} {line} --quiet", nothing, part) for line, part in OUTPUTS.items()]


# --- configs -----------------------------------------------------------------------------------------

EFFECT = {"effect": "pedalboard:Compressor"}
CONFIGS: dict[str, tuple[bytes | str | dict, str]] = {
    "empty": ("", "other.yaml"), "spaces": ("\n\n", "other.yaml"), "comments": ("# nothing\n", "other.yaml"), "a list": ("[1, 2]", "other.yaml"),
    "text": ("only text", "other.yaml"), "a number": ("3", "other.yaml"), "unclosed": ("model: {class_path: ", "other.yaml"),
    "a tab": ("model:\n\tclass_path: TubeAmp\n", "other.yaml"), "Latin-1": ("run: {name: caf\u00e9}".encode("latin-1"), "other.yaml"),
    "UTF-16": ("run: {name: a}".encode("utf-16"), "other.yaml"), "zeros": (bytes(100), "other.yaml"), "audio": (GOOD, "other.yaml"),
    "itself": ("a: &a [*a]", "itself"), "Python": ("run: !!python/object/apply:os.system [ls]", "other.yaml"),
    "two documents": ("run: {name: a}\n---\nrun: {name: b}\n", "other.yaml"), "twice": ("run: {name: a}\nrun: {name: b}\n", "other.yaml"),
    "an unknown part": ({"modell": {"a": 1}}, "modell"), "an unknown option": ({"data": {"roots": "a"}}, "roots"),
    "a lost class": ({"model": {"class_path": "Nothing"}}, "Nothing"),
    "another class": ({"model": {"class_path": "torch.nn.ReLU"}}, "ReLU"),
    "a function": ({"model": {"class_path": "os.getcwd"}}, "getcwd"),
    "no effects": ({"model": {"class_path": "TubeAmp", "init_args": {"effects": None}}}, "effects"),
}  # fmt: skip


EFFECTS: list[tuple[object, str]] = [
    ([], "no effects"), ("pedalboard:Gain", "effect"), ([3], "effect"), ([{}], "effect"), ([{"name": "a"}], "effect"),
    ([{"effect": "Gain"}], "Gain"), ([{"effect": "nowhere:Gain"}], "nowhere"), ([{"effect": 3}], "3"),
    ([{"effect": "pedalboard:Gain", "gain_db": 3}], "gain_db"), ([{"effect": "python:nowhere.Effect"}], "nowhere"),
    ([{"effect": "vst3:nowhere.vst3"}], "nowhere"), ([{"effect": "lv2:http://nowhere"}], "nowhere"),
    ([{**EFFECT, "train": {"ratio": [4, 1]}}], "ratio"), ([{**EFFECT, "train": {"ratio": [1]}}], "ratio"),
    ([{**EFFECT, "train": {"ratio": [1, 2, 3]}}], "ratio"), ([{**EFFECT, "train": {"ratio": "many"}}], "ratio"),
    ([{**EFFECT, "train": {"ratio": ["a", "b"]}}], "ratio"), ([{**EFFECT, "train": {"ratio": [2, 2]}}], "ratio"),
    ([{**EFFECT, "train": {"ratio": [1, float("inf")]}}], "ratio"), ([{**EFFECT, "train": {"nothing": None}}], "nothing"),
    ([{**EFFECT, "train": {"ratio": {"scale": "cubic"}}}], "cubic"),
    ([{**EFFECT, "train": {"ratio": {"default": 99}}}], "ratio"), ([{**EFFECT, "train": ["ratio"]}], "train"),
    ([{**EFFECT, "train": {}}], ""), ([{**EFFECT, "fixed": {"ratio": "many"}}], "ratio"),
    ([{**EFFECT, "fixed": {"nothing": 1}}], "nothing"), ([{**EFFECT, "fixed": {"ratio": [1]}}], "ratio"),
    ([{**EFFECT, "fixed": {"ratio": 0}}], "ratio"), ([{**EFFECT, "fixed": {"ratio": float("nan")}}], "ratio"),
    ([{**EFFECT, "train": {"ratio": None}, "fixed": {"ratio": 2}}], "ratio"), ([{**EFFECT, "scale": "cubic"}], "cubic"),
    ([{**EFFECT, "name": "../x"}], "../x"), ([{**EFFECT, "name": ""}], "name"),
    ([{**EFFECT, "name": "a"}, {**EFFECT, "name": "a"}], "a"),
]  # fmt: skip


def config(content: bytes | str | dict) -> Change:
    return writes("other.yaml", json.dumps(content) if isinstance(content, dict) else content)


def config_rows() -> list[Row]:
    rows = [("train.py", f"{FIT} --config other.yaml", config(content), part) for content, part in CONFIGS.values()]
    content, part = CONFIGS["a tab"]
    rows.append(("train.py", f"{FIT} -c other.yaml", config(content), part))
    for effects, part in EFFECTS:
        chain = yaml.safe_dump({"model": {"init_args": {"effects": effects}}})
        rows.append(("dfx.effects.probe", "chain.yaml --seconds 0.1", writes("chain.yaml", chain), part))
    # Training builds chains with the same functions.
    for index in (0, 5, 12, 24):
        effects, part = EFFECTS[index]
        chain = {"model": {"class_path": "TubeAmp", "init_args": {"effects": effects}}}
        rows.append(("train.py", f"{FIT} --config other.yaml", config(chain), part))
    return rows


# --- runs and evaluations ----------------------------------------------------------------------------

RUN_FILES: list[tuple[str, bytes | str | None]] = [
    ("resolved_config.yaml", b"\x00\xff"), ("resolved_config.yaml", "run: {"), ("resolved_config.yaml", None),
    ("resolved_config.yaml", "text"), ("history.jsonl", b"\xff\xfe\x00"),
    ("parameters.csv", b"\xff\xfe\x00"), ("parameters.csv", None), ("parameters.csv", "name\n" + 200_000 * "a"),
    ("versions.json", "{"), ("versions.json", "[1]"), ("versions.json", None), ("evaluation/metrics.json", "3"),
    ("evaluation/metrics.json", ""), ("evaluation/metrics.json", None),
]  # fmt: skip
EVALUATION_FILES: list[tuple[str, bytes | str | None]] = [
    ("evaluation.json", ""), ("evaluation.json", "[]"), ("evaluation.json", "{}"), ("evaluation.json", None),
    ("evaluation.json", b"\xff\xfe"), ("files.json", "{"), ("files.json", '{"a": 1}'), ("files.json", "[{}]"),
    ("files.json", None), ("means.json", ""), ("means.json", None), ("settings.json", "3"),
    ("settings.json", "{"), ("audio/note_07_output.flac", ""), ("audio/note_07_output.flac", "text"),
    ("audio/note_07_target.flac", None), ("automation/note_07.csv", ""), ("automation/note_07.csv", "a,b\n1,2\n"),
    ("automation/note_07.csv", b"\0"), ("automation/note_07.csv", None),
]  # fmt: skip
SWEEP = {
    "method": "grid", "program": "train.py", "command": ["${interpreter}", "${program}", "fit", "${args}"],
    "parameters": {"config": {"value": "small.yaml"}, "run.seed": {"values": [0]}},
}  # fmt: skip
SWEEPS: list[tuple[bytes | str | dict, str]] = [
    ("", "sweep"), ("[", "YAML"), (b"\xff\xfe\x00", "YAML"), ("text", "sweep"), ({}, "program"),
    ({**SWEEP, "method": "bayes"}, "bayes"), ({**SWEEP, "program": None}, "program"), ({**SWEEP, "program": [1]}, "program"),
    ({**SWEEP, "command": "train.py"}, "command"), ({**SWEEP, "command": ["train.py"]}, "${args}"),
    ({**SWEEP, "command": ["${nothing}", "${args}"]}, "${nothing}"), ({**SWEEP, "parameters": {}}, "parameters"),
    ({**SWEEP, "parameters": [1]}, "parameters"), ({**SWEEP, "parameters": {"run.seed": 3}}, "run.seed"),
    ({**SWEEP, "parameters": {"run.seed": {"values": []}}}, "run.seed"),
    ({**SWEEP, "parameters": {"run.seed": {"values": "0"}}}, "run.seed"),
    ({**SWEEP, "parameters": {"run.seed": {"min": 0, "max": 1}}}, "run.seed"),
    ({**SWEEP, "parameters": {"config": {"values": ["a/x.yaml", "b/x.yaml"]}}}, "x"),
]  # fmt: skip


def replaces(path: str, content: bytes | str | None) -> Change:
    """Write a file; None puts a folder in its place."""

    def replace(folder: Path) -> None:
        (folder / path).unlink(missing_ok=True)
        (folder / path).mkdir() if content is None else writes(path, content)(folder)

    return replace


def run_rows() -> list[Row]:
    rows: list[Row] = [
        ("dfx.dashboard", "summary run", replaces(f"run/{file}", content), "run") for file, content in RUN_FILES
    ]
    for file, content in EVALUATION_FILES:
        rows.append(("dfx.report", "run/evaluation", replaces(f"run/evaluation/{file}", content), "run/evaluation"))
    for content, part in SWEEPS:
        text = json.dumps(content) if isinstance(content, dict) else content
        rows.append(("dfx.sweep", "sweep.yaml --folder sweep --list", writes("sweep.yaml", text), part))
    return rows


# --- preparation -------------------------------------------------------------------------------------

ZENODO = {
    "--archive nowhere.zip --output out": "nowhere.zip", "--archive pairs --output out": "pairs",
    "--archive song.wav --output small.yaml": "small.yaml", "--nothing": "--nothing", "--archive": "--archive",
    "--sample-rate 0": "--sample-rate", "--sample-rate many": "--sample-rate", "--sample-rate -1": "--sample-rate",
}  # fmt: skip
PAGES = {
    "": "--page", "--page nowhere --copy pairs": "nowhere", "--page small.yaml --copy pairs": "the page",
    "--page pairs --copy pairs": "pairs", "--page song.wav --copy pairs --output out": "the page",
    "--page small.yaml --copy pairs --sample-rate 3": "--sample-rate", "--nothing": "required",
}  # fmt: skip
DRAW = {
    "pairs out --group '('": "( is not a regular expression", "pairs out --rows take": "take is not COLUMN=PATTERN",
    "pairs out --tra 5": "--tra", "pairs out --rows take=1": "no manifest.csv",
}  # fmt: skip
SHIPPED = {"--nothing": "--nothing", "--folder": "--folder", "--check --folder nowhere": "nowhere", "more": "more"}
SCRIPTS = {
    **dict.fromkeys(("prepare_audiomdpi", "prepare_daps"), ZENODO),
    "prepare_cambridge_mt": PAGES,
    **dict.fromkeys(("prepare_nonspeech", "prepare_tube_amp"), SHIPPED),
    "draw_pairs": DRAW,
}


def preparation_rows() -> list[Row]:
    return [(f"data/{name}.py", line, nothing, part) for name, lines in SCRIPTS.items() for line, part in lines.items()]


# --- all ---------------------------------------------------------------------------------------------

ROWS = audio_rows() + data_rows() + checkpoint_rows() + output_rows() + config_rows() + run_rows() + preparation_rows()


def test_all_entry_points_have_rows():
    assert len(ROWS) >= 290 and len({entry for entry, *_ in ROWS}) > 10


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry, line, change, part", ROWS)
def test_a_wrong_file_ends_in_one_line_that_names_it_and_writes_nothing(refusal, here, entry, line, change, part):
    change(here)
    assert part in refusal(entry, shlex.split(line), here)
