"""Progress of a run: a line for every validation, and a bar on a terminal."""

import math
import os
import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm

from dfx.tasks import Task
from dfx.tasks.stages import Stage

_FORMAT = "{desc} {percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}{postfix}"


class Bar(ProgressBar):
    """Prints a line with the losses for every validation; a terminal also shows one bar for all stages.

    The time left is that of the remaining steps at the mean speed of the current stage, validations included. A stage
    that ends early shortens it.

    Args:
        max_epochs: of each stage that renders; None or -1 if they have no such end.
    """

    def __init__(self, max_epochs: int | None) -> None:
        super().__init__()
        self._max_epochs = math.inf if max_epochs is None or max_epochs < 0 else max_epochs
        self._enabled = True
        self._bar: tqdm | None = None
        # W&B records what is written to sys.stderr, and would record every change of the bar.
        self._terminal = open(os.dup(2), "w", encoding="utf-8") if sys.stderr.isatty() else None  # noqa: SIM115
        self._first_step, self._start = 0, 0.0

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first_step, self._start = trainer.global_step, time.monotonic()
        if self._enabled and self._terminal:
            assert isinstance(pl_module, Task)
            total, step = self._total_steps(pl_module), pl_module.first_step + trainer.global_step
            name = pl_module.stage.name if len(pl_module.stages) > 1 else "Training"
            known = {"total": int(total), "bar_format": _FORMAT} if math.isfinite(total) else {}
            self._bar = tqdm(desc=name, initial=step, leave=False, file=self._terminal, dynamic_ncols=True, **known)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is not None:
            assert isinstance(pl_module, Task)
            self._bar.set_postfix_str(f"{self._time_left(pl_module)}, {_losses(trainer)}", refresh=False)
            self._bar.update(pl_module.first_step + trainer.global_step - self._bar.n)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._enabled or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        assert isinstance(pl_module, Task)
        stage = f"{pl_module.stage.name}, " if len(pl_module.stages) > 1 else ""
        total = self._total_steps(pl_module)
        of = f" of {total:.0f}" if math.isfinite(total) else ""
        step = pl_module.first_step + trainer.global_step
        place = f"{stage}epoch {trainer.current_epoch + 1}, step {step}{of}"
        if self._bar is not None:
            self._bar.clear()
        print(f"{place}: {_losses(trainer)}, {self._time_left(pl_module)}", flush=True)
        if self._bar is not None:
            self._bar.refresh()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _total_steps(self, task: Task) -> float:
        """Return the steps of all stages: those of earlier ones, the planned ones of the others."""
        later = task.stages[task.stages.index(task.stage) + 1 :]
        planned = [self._planned_steps(task, stage) for stage in later]
        return task.first_step + float(task.trainer.estimated_stepping_batches) + sum(planned)

    def _planned_steps(self, task: Task, stage: Stage) -> float:
        trainer = task.trainer
        epochs = self._max_epochs if stage.renders else task.stage_options.pretraining_epochs
        steps = epochs * math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        return min(steps, trainer.max_steps) if trainer.max_steps >= 0 else steps

    def _time_left(self, task: Task) -> str:
        step = task.trainer.global_step
        left = self._total_steps(task) - task.first_step - step
        seconds = (time.monotonic() - self._start) * left / max(1, step - self._first_step)
        return f"{tqdm.format_interval(seconds)} left" if math.isfinite(seconds) else "no end set"


def _losses(trainer: pl.Trainer) -> str:
    losses = {name: value for name, value in trainer.callback_metrics.items() if name.endswith("/loss")}
    return ", ".join(f"{name} {float(value):.4g}" for name, value in losses.items())
