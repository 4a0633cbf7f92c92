"""Writes the history of a run."""

import json
import time
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from dfx.loggers.best_effort import best_effort
from dfx.loggers.history import HISTORY


class History(Logger):
    """Appends all metrics to ``history.jsonl`` in a run's folder as they are logged, so that a killed run keeps them.

    Each line is a JSON object of ``stage`` (its index), ``step``, ``time`` (seconds since 1970) and metrics by name.
    Steps count from 0 in every stage. A resumed run appends, and may repeat steps: see
    :func:`~dfx.loggers.history.read_history`.
    """

    name = version = None

    def __init__(self, folder: Path, stage: int = 0) -> None:
        super().__init__()
        self._path, self._stage = folder / HISTORY, stage

    @rank_zero_only
    @best_effort
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        place = {"stage": self._stage, "step": step, "time": time.time()}
        line = {**place, **{name: float(value) for name, value in metrics.items() if name != "stage"}}
        with self._path.open("ab+") as file:
            file.seek(max(file.tell() - 1, 0))
            # A run that was killed, or a full disk, leaves a part of a line.
            end = b"" if file.read() in (b"", b"\n") else b"\n"
            file.write(end + json.dumps(line).encode() + b"\n")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: ``resolved_config.yaml`` holds the hyperparameters."""
