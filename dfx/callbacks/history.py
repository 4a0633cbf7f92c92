"""The course of a run as a table, for whatever compares runs."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any, Dict, List

import pytorch_lightning as pl


class History(pl.Callback):
    """Writes ``history.csv``: a row for each validation of the run, through all of its stages.

    Its columns are ``stage``, ``epoch``, ``step`` (over all stages), ``renderings`` (of one example's step, all that
    were made in training, those of perturbed parameters included), ``seconds`` (of training and validation, without
    what a resumed run did again) and ``validation/loss``. The rows are kept in checkpoints, so that a resumed run
    goes on with those that it had.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "history.csv"
        self._progress: Dict[str, Any] = {"step": 0, "renderings": 0, "seconds": 0.0}
        self._rows: List[Dict[str, Any]] = []
        self._since = 0.0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._progress["step"] += 1
        if pl_module.stage.renders:
            of_step = len(batch["input"]) * pl_module.effect_layer.renderings
            self._progress["renderings"] += of_step * trainer.world_size

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        loss = float(trainer.callback_metrics["validation/loss"])
        where = {"stage": pl_module.stage.name, "epoch": trainer.current_epoch}
        self._rows.append({**where, **self._now(), "validation/loss": loss})
        if trainer.is_global_zero:
            partial = self.path.with_suffix(".partial")
            with partial.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self._rows[0])
                writer.writeheader()
                writer.writerows(self._rows)
            partial.replace(self.path)

    def state_dict(self) -> Dict[str, Any]:
        return {"progress": self._now(), "rows": [dict(row) for row in self._rows]}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self._progress = dict(state_dict["progress"])
        self._rows = list(state_dict["rows"])

    def _now(self) -> Dict[str, Any]:
        now = time.monotonic()
        self._progress["seconds"] += now - self._since
        self._since = now
        return dict(self._progress)
