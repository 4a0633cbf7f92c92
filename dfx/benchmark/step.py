"""The shares of a training step: effects, estimator, encoder, loss, data, logging, validation and the rest."""

from __future__ import annotations

import contextlib
import csv
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytorch_lightning as pl
import soundfile
import wandb
import yaml
from torch import Tensor, nn

from dfx import cli
from dfx.blackbox.isolation import cpu_seconds
from dfx.errors import DataError
from dfx.loggers.best_effort import best_effort
from dfx.tasks import Task

_IN_STEP = ("effects", "estimator", "encoder", "loss")
_AROUND = ("step", "data", "epoch", "validation")

_WARM_UP_STEPS = 3
"""Steps that are not counted: the first ones load plugins and allocate memory."""


class StepTimer(pl.Callback):
    """Measures the CPU and wall time of each part of training.

    Hooks of modules time the forward passes. The arrival of gradients divides the backward pass: the loss is
    differentiated when the output has its gradient, and the effect layer when the parameters have theirs. The time of
    logging is taken out of all other parts. That of a validation is divided by the steps between two validations.
    """

    latest: ClassVar[StepTimer | None] = None

    def __init__(self) -> None:
        # CPU and wall time, and below them those of logging, which they include.
        self._seconds: dict[str, np.ndarray] = defaultdict(lambda: np.zeros((2, 2)))
        self._begun: dict[str, np.ndarray] = {}
        self._steps = self._validations = 0
        self._is_warm = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        StepTimer.latest = self
        self._time(pl_module.encoder, "encoder")
        self._time(pl_module.effect_layer, "effects", self._follow_gradients)
        self._time(pl_module.loss, "loss")

    def _time(self, module: nn.Module, part: str, then: Callable[..., None] = lambda *_: None) -> None:
        def end(module: nn.Module, arguments: Any, output: Tensor) -> None:
            self._end(part)
            then(arguments, output)

        module.register_forward_pre_hook(lambda *_: self._begin(part))
        module.register_forward_hook(end)

    def _follow_gradients(self, arguments: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda _: self._switch("loss", "estimator"))
            arguments[1].register_hook(lambda _: self._switch("estimator", "encoder"))

    def on_before_backward(self, *_: Any) -> None:
        self._begin("loss")

    def on_after_backward(self, *_: Any) -> None:
        self._end("encoder")

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.steps_per_epoch = int(trainer.num_training_batches)
        self._steps_per_validation = self.steps_per_epoch * (trainer.check_val_every_n_epoch or 1)
        self._switch("epoch", "data")

    def on_train_batch_start(self, *_: Any) -> None:
        self._switch("data", "step")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._switch("step", "data")
        self._steps += self._is_warm
        self._is_warm = trainer.global_step >= _WARM_UP_STEPS

    def on_validation_start(self, *_: Any) -> None:
        self._begun.clear()
        self._begin("validation")

    def on_validation_end(self, *_: Any) -> None:
        self._switch("validation", "epoch")
        self._validations += 1

    def on_train_epoch_end(self, *_: Any) -> None:
        # Checkpoints are written after this.
        self._begun.pop("data", None)
        self._begun.setdefault("epoch", _clocks())

    def _begin(self, part: str) -> None:
        self._begun[part] = _clocks()

    def _end(self, part: str) -> None:
        begun = self._begun.pop(part, None)
        if begun is not None and (part == "validation" or (self._is_warm and "validation" not in self._begun)):
            self._seconds[part] += _clocks() - begun

    def _switch(self, ended: str, begun: str) -> None:
        self._end(ended)
        self._begin(begun)

    def shares(self) -> list[dict[str, Any]]:
        """Return a row for each part: ``part``, ``cpu_ms`` and ``wall_ms`` a step, and ``share`` of the CPU time."""
        seconds = {part: self._seconds[part] / self._steps for part in (*_IN_STEP, *_AROUND)}
        seconds["validation"] = self._seconds["validation"] / max(1, self._validations) / self._steps_per_validation
        times = {part: all_ - logging for part, (all_, logging) in seconds.items()}
        times["logging"] = sum(seconds[part][1] for part in _AROUND)
        times["rest"] = times.pop("step") + times.pop("epoch") - sum(times[part] for part in _IN_STEP)
        total = sum(float(cpu) for cpu, _ in times.values())
        return [
            {"part": part, "cpu_ms": 1000 * float(cpu), "wall_ms": 1000 * float(wall), "share": float(cpu) / total}
            for part, (cpu, wall) in times.items()
        ]


def _clocks() -> np.ndarray:
    clocks = cpu_seconds(), time.perf_counter()
    return np.array([clocks, (best_effort.cpu_seconds, best_effort.seconds)])


def step(configs: Sequence[str], steps: int, options: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Train each config for some steps, in one stage with the whole chain, and yield the parts of a step.

    Noise takes the place of data that are absent; the times of data and validation are then those of the noise.

    Args:
        configs: paths.
        steps: to measure.
        options: of ``train.py``, for every run.

    Yields:
        Rows of :meth:`StepTimer.shares` with their ``config`` and the number of ``steps_per_epoch``.

    Raises:
        DataError: if a config cannot be read.
    """
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")
    for config in configs:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            arguments = [
                *("fit", "--config", config, *_data_options(config, Path(folder)), *options),
                *(f"--run.folder={folder}/runs", "--run.evaluate=false", "--data.check_audio=false"),
                f"--trainer.callbacks+={StepTimer.__module__}.{StepTimer.__qualname__}",
                *(f"--trainer.max_steps={_WARM_UP_STEPS + steps}", "--trainer.max_epochs=-1"),
                *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
                *("--model.stages.pretraining_epochs=0", "--model.stages.progressive=false"),
            ]
            run = cli.DfxCLI(arguments)
            timer = StepTimer.latest
            assert timer is not None
            if not timer._validations:
                run.trainer.validate(run.model, datamodule=run.datamodule, verbose=False)
            # Before the folder goes, and before the next config.
            wandb.finish()
        for row in timer.shares():
            yield {"config": config, **row, "steps_per_epoch": timer.steps_per_epoch}


def _data_options(config: str, folder: Path) -> list[str]:
    """Return options that let noise take the place of the config's data if these are absent."""
    try:
        data = (yaml.safe_load(Path(config).read_text(encoding="utf-8")) or {}).get("data") or {}
        root = Path(data.get("root") or "")
    except (OSError, ValueError, yaml.YAMLError, AttributeError, TypeError) as error:
        raise DataError(f"{config} cannot be read as a config: {error}") from error
    if root.is_dir():
        return []
    generator = np.random.default_rng(0)
    rows = [("train", i) for i in range(data.get("batch_size", 16))] + [("validation", 0), ("test", 0)]
    with open(folder / "manifest.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["input", "target", "split"])
        for split, i in rows:
            names = [f"{side}_{split}_{i}.wav" for side in ("input", "target")]
            for name in names:
                noise = generator.uniform(-0.1, 0.1, int(22050 * (data.get("excerpt_seconds") or 4)))
                soundfile.write(folder / name, noise, 22050)
            table.writerow([*names, split])
    return [f"--data.root={folder}", "--data.rows=null"]
