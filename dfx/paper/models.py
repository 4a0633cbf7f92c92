"""The models of the comparison, and the figures that the paper reports for them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dfx.errors import UserError, in_one_line
from dfx.render.automation import Interpolation
from dfx.sweep.grid import Point

TASKS = ("tube_amp", "nonspeech", "mastering")

SCALES = ("published", "small")
"""``published``: the paper's data, steps and batches, for a machine with a GPU. ``small``: the data that ship, and as
many steps as our default configs take time on one core."""

OURS = "dfx"
"""Name of the models that the configs of this repository train."""

EVALUATION = "paper"
"""Folder of a run's evaluation for the table."""

PREPARED_BY = {
    "tube_amp": "python data/prepare_audiomdpi.py",
    "nonspeech": "python data/prepare_daps.py",
    "mastering": "python data/prepare_cambridge_mt.py --page PAGE",
}
"""The commands that prepare the data of the paper; data/README.md describes them."""


@dataclass(frozen=True)
class Model:
    """A model to train and to evaluate."""

    task: str
    name: str
    configs: tuple[str, ...]  # the first is of the task, the others are overlays
    root: str | None = None  # of data, instead of that of the configs
    interpolation: Interpolation = "hold"

    @property
    def options(self) -> list[str]:
        """Return the options of ``train.py``, but for the first config."""
        data = [f"--data.root={self.root}"] if self.root else []
        return [*(f"--config={config}" for config in self.configs[1:]), *data]

    @property
    def arm(self) -> str:
        """Return the name of the model's runs, without the seed."""
        return f"{self.task}_{self.name.lower()}"

    def point(self, seed: int) -> Point:
        """Return the run of a seed."""
        command = [sys.executable, "train.py", "fit", f"--config={self.configs[0]}", *self.options]
        command.append(f"--run.seed={seed}")
        return Point(f"{self.arm}_seed{seed}", self.arm, command, seed)

    def read_config(self) -> dict[str, Any]:
        """Return the options of the configs, of which the last one counts.

        Raises:
            UserError: if one cannot be read.
        """
        merged: dict[str, Any] = {}
        for config in self.configs:
            try:
                merged = _merge(merged, yaml.safe_load(Path(config).read_text(encoding="utf-8")))
            except (OSError, ValueError, yaml.YAMLError) as error:
                raise UserError(f"{config} cannot be read, from the folder of train.py: {in_one_line(error)}") from None
        if self.root:
            merged["data"]["root"] = self.root
        return merged


PUBLISHED = {
    ("tube_amp", "Inception"): 0.2596,
    ("tube_amp", "MobileNetV2"): 0.3186,
    ("tube_amp", "CAFx"): 0.0826,
    ("nonspeech", "Inception"): 0.0186,
    ("nonspeech", "MobileNetV2"): 0.0231,
    ("mastering", "Inception"): 0.0282,
    ("mastering", "MobileNetV2"): 0.0542,
    ("mastering", "online mastering service"): 0.0157,
}
"""Mean MFCC distances of the paper's table, of its models and of the other methods that it lists.

The table itself was not at hand to compare them with. The clips on the paper's web page agree with two: 0.270 for
``tube_amp`` with Inception, and 0.083 for CAFx.
"""


def list_models(scale: str, tasks: Sequence[str]) -> list[Model]:
    """Return the models of some tasks: those of the paper, and ours."""
    return [model for task in tasks for model in (_small(task) if scale == "small" else _published(task))]


def _published(task: str) -> list[Model]:
    config = f"configs/paper/{task}.yaml"
    default, other = ("MobileNetV2", "Inception") if task == "nonspeech" else ("Inception", "MobileNetV2")
    overlay = {"Inception": "inception", "MobileNetV2": "mobilenet_v2"}[other]
    models = [
        Model(task, default, (config,), interpolation="published"),
        Model(task, other, (config, f"configs/paper/{task}_{overlay}.yaml"), interpolation="published"),
    ]
    if task == "tube_amp":
        limiter = (config, "configs/paper/tube_amp_limiter.yaml")
        models.append(Model(task, "Inception_limiter", limiter, interpolation="published"))
    root = models[0].read_config()["data"]["root"]
    return [*models, Model(task, OURS, (f"configs/{task}.yaml",), root)]


def _small(task: str) -> list[Model]:
    name = "MobileNetV2" if task == "nonspeech" else "Inception"
    published = (f"configs/paper/{task}.yaml", f"configs/paper/small/{task}.yaml")
    return [Model(task, name, published, interpolation="published"), Model(task, OURS, (f"configs/{task}.yaml",))]


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(name), dict)
        merged[name] = _merge(below[name], value) if both else value
    return merged
