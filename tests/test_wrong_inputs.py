"""Wrong inputs of every kind end in one clear line, at every entry point."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import pkgutil
import re
import runpy
import shlex
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest

import dfx
from dfx.datasets import Augmentation, PairedAudio, Treatment, Window
from dfx.errors import ArgumentParser, UserError, check_file_name
from dfx.tasks import Task, TubeAmp
from tests.conftest import ROOT

# --- numbers in the options --------------------------------------------------------------------------

NUMBERS = {"zero": 0, "negative": -1, "nan": math.nan, "infinite": math.inf, "huge": 10**400, "text": "two\nlines"}
"""Numbers for every option; the last four are outside of all ranges."""


def option_classes() -> list[type]:
    """Return the dataclasses that configs hold, and the data module."""
    found = {Augmentation, PairedAudio, Treatment}
    for _, module, _ in pkgutil.walk_packages(dfx.__path__, "dfx."):
        if not module.endswith("__main__"):
            kinds = filter(dataclasses.is_dataclass, vars(importlib.import_module(module)).values())
            found.update(kind for kind in kinds if isinstance(kind, type) and kind.__name__.endswith("Options"))
    return sorted(found, key=lambda kind: kind.__name__)


def numeric_options() -> list[tuple[Callable[..., Any], str, str]]:
    """Return every class with options, the names of its numeric options, and their types."""
    hints = [(kind, get_type_hints(kind)) for kind in option_classes()]
    hints.append((Task, get_type_hints(Task.__init__)))
    return [
        (kind, name, str(hint))
        for kind, of_kind in hints
        for name, hint in of_kind.items()
        if name in inspect.signature(kind).parameters and re.search(r"\b(int|float)\b", str(hint))
    ]


def construct(kind: Callable[..., Any], **options: Any) -> Any:
    if kind is Task:
        return TubeAmp([{"effect": "pedalboard:Gain"}], **options)
    if kind is PairedAudio:
        return PairedAudio(**{"root": "", "sample_rate": 22050, "channels": 1, "window": Window(4096, 1024), **options})
    return kind(**options)


def wrapped(hint: str, number: Any) -> Any:
    """Return a number in the container that a type asks for."""
    containers = {"dict": {"an effect.a parameter": number}, "tuple": (number, number), "list": [number]}
    return next((value for container, value in containers.items() if container in hint), number)


OPTIONS = numeric_options()


def test_the_options_of_all_parts_are_found():
    assert len({kind for kind, _, _ in OPTIONS}) >= 13 and len(OPTIONS) >= 45


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("kind, name, hint", OPTIONS, ids=lambda value: getattr(value, "__name__", value))
def test_a_number_out_of_range_is_refused_with_the_name_of_its_option(kind, name, hint, number):
    is_refused = number not in ("zero", "negative")
    try:
        construct(kind, **{name: wrapped(hint, NUMBERS[number])})
    except UserError as error:
        assert name in str(error) and "must be" in str(error) and len(str(error).splitlines()) == 1
        is_refused = False
    assert not is_refused


# --- names -------------------------------------------------------------------------------------------

RULES = {
    "a/b": "slashes", "a\\b": "backslashes", "a:b": "colons", "a\tb": "unprintable", "": "1 to", "a" * 101: "to 100",
    " a": "begin with a space", ".a": "dot", "-a": "hyphen", "a ": "end with a space",
}  # fmt: skip
"""Names that no file may have, and the rule that each breaks."""


@pytest.mark.parametrize("name, rule", RULES.items())
def test_a_name_that_is_refused_breaks_a_rule_that_the_message_names(name, rule):
    with pytest.raises(UserError, match=rf"^run.name is .*; a name has .*{rule}"):
        check_file_name("run.name", name)


# --- command lines -----------------------------------------------------------------------------------

NOT_NUMBERS = ("0", "-1", "nan", "inf", "1e999", "many", "", "0x10")
SMOKE = ("fit", "--config", "configs/smoke.yaml", "--run.folder", "runs_of_test")
BENCHMARK = "dfx.benchmark"
NUMERIC = {
    ("dfx.effects.probe", "--sample-rate"): ["pedalboard:Gain"],
    ("dfx.effects.probe", "--channels"): ["pedalboard:Gain"],
    ("dfx.effects.probe", "--seconds"): ["pedalboard:Gain"],
    ("dfx.report", "--seconds"): ["nowhere"],
    ("dfx.report", "--megabytes"): ["nowhere"],
    ("dfx.listening", "--seconds"): ["export", "nowhere", "out"],
    **{("dfx.paper", option): ["--scale", "small", "--plan"] for option in ("--jobs", "--evaluations")},
    ("dfx.sweep", "--jobs"): ["configs/sweeps/epsilon.yaml"],
    ("dfx.sweep", "--threads"): ["configs/sweeps/epsilon.yaml"],
    (BENCHMARK, "--means-of"): ["fidelity"],
    (BENCHMARK, "--batches"): ["speed"],
    (BENCHMARK, "--seconds"): ["speed"],
    (BENCHMARK, "--seeds"): ["twin"],
    (BENCHMARK, "--jobs"): ["twin"],
}
NAMES = {
    "dfx.effects.probe": ["pedalboard:Nothing", "nowhere:Gain", "Gain", "nowhere.yaml", "", "two\nlines", "--json"],
    "dfx.check": ["nowhere", "README.md", "configs", "", "data/tube_amp --config nowhere.yaml", "two\nlines"],
    "dfx.report": ["nowhere", "README.md", "", "configs", "two\nlines"],
    "dfx.listening": ["", "nothing", "export nowhere out", "export configs out", "pool nowhere.csv", "pool README.md"],
    "dfx.paper": ["", "--scale tiny", "--scale small --tasks vocals", "--scale small --rival mastering:LANDR"],
    "dfx.sweep": ["nowhere.yaml", "README.md", "configs", "", "configs/smoke.yaml", "two\nlines"],
    "dfx.benchmark": ["nothing", "", "fidelity --chains nothing", "speed --modes nothing", "twin --gradients nothing"],
    "dfx.dashboard": ["nothing", "summary nowhere", "summary README.md", "summary configs", "summary", "workspace"],
    "dfx.render": ["nowhere.ckpt in.wav out.wav", "README.md README.md o.wav", "configs a.wav b.wav", "a.ckpt", ""],
    "evaluate.py": [
        "nowhere.ckpt",
        "README.md",
        "configs",
        "",
        "a.ckpt --baselines nothing",
        "a.ckpt --compare a",
        "a.ckpt --seed many",
    ],
    "train.py": ["", "nothing", "fit --config nowhere.yaml", "fit --config configs", "fit --nothing 1", "fit"],
}
TRAINING = {
    "--data.batch_size": "many", "--data.nothing": "1", "--run.resume": "maybe", "--wandb.mode": "nothing",
    "--trainer.precision": "5", "--trainer.max_epochs": "0", "--trainer.max_steps": "-2",
    "--trainer.check_val_every_n_epoch": "0", "--trainer.accumulate_grad_batches": "0",
    "--trainer.gradient_clip_val": "nan", "--trainer.limit_train_batches": "0", "--seed_everything": "-1",
    "--logging.excerpts": "-1", "--run.checkpoint_minutes": "0", "--run.name": "a/b", "--run.folder": "",
    "--model": "Nothing", "--model.init_args.nothing": "1", "--model.init_args.encoder.backbone": "nothing",
    "--model.init_args.gradient": "{draws: 1, draws: 2}", "--model.init_args.loss.fft_sizes": "[a]",
}  # fmt: skip

COMMANDS = [
    *((entry, [*before, option, number]) for (entry, option), before in NUMERIC.items() for number in NOT_NUMBERS),
    *((entry, shlex.split(line) or []) for entry, lines in NAMES.items() for line in lines if "\n" not in line),
    *((entry, [line]) for entry, lines in NAMES.items() for line in lines if "\n" in line),
    *(("train.py", [*SMOKE, option, value]) for option, value in TRAINING.items()),
]


def test_the_table_covers_all_entry_points():
    assert {entry for entry, _ in COMMANDS} == {*NAMES}
    assert len(COMMANDS) + len(OPTIONS) * (len(NUMBERS) - 2) >= 350


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("entry, arguments", COMMANDS, ids=lambda value: value if isinstance(value, str) else None)
def test_a_wrong_command_ends_in_one_line_and_writes_nothing(entry, arguments, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", [entry, *arguments])
    before = set(ROOT.iterdir())
    with pytest.raises(SystemExit) as exit:
        if entry.endswith(".py"):
            runpy.run_path(entry, run_name="__main__")
        else:
            runpy.run_module(entry, run_name="__main__")
    code = exit.value.code
    lines = [*capsys.readouterr().err.splitlines(), *([code] if isinstance(code, str) else [])]
    assert code not in (0, None) and len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) > 20
    assert set(ROOT.iterdir()) == before


def test_an_abbreviated_option_is_refused(capsys):
    parser = ArgumentParser()
    parser.add_argument("--seconds")
    with pytest.raises(SystemExit):
        parser.parse_args(["--sec", "1"])
    assert capsys.readouterr().err == "error: unrecognized arguments: --sec 1; --help lists the options\n"
