"""The cost of a run so far."""

import time
from typing import Any

import pytorch_lightning as pl

from dfx.blackbox.isolation import cpu_seconds
from dfx.tasks import Task


class Progress(pl.Callback):
    """Logs with every validation the cost of training so far, summed over all stages:

    - ``progress/renderings``: renderings of one example in one step, with perturbed parameters included.
    - ``progress/seconds``: time of training and validation. Work that a resumed run repeats is counted once.
    - ``progress/cpu_seconds``: the same as CPU time of all threads, and of the processes that render.
    """

    def __init__(self) -> None:
        self._renderings = 0
        self._seconds = self._cpu_seconds = 0.0
        self._since = (0.0, 0.0)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = _clocks()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Task)
        if pl_module.stage.renders:
            self._renderings += len(batch["input"]) * pl_module.effect_layer.renderings * trainer.world_size

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            spent = {f"progress/{name}": float(value) for name, value in self.state_dict().items()}
            pl_module.log_dict(spent, rank_zero_only=True)

    def state_dict(self) -> dict[str, Any]:
        before, self._since = self._since, _clocks()
        self._seconds += self._since[0] - before[0]
        self._cpu_seconds += self._since[1] - before[1]
        return {"renderings": self._renderings, "seconds": self._seconds, "cpu_seconds": self._cpu_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._renderings, self._seconds = state_dict["renderings"], state_dict["seconds"]
        self._cpu_seconds = state_dict.get("cpu_seconds", 0.0)


def _clocks() -> tuple[float, float]:
    return time.monotonic(), cpu_seconds()
