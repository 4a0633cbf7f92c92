"""What a run leaves on disk besides its checkpoints."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytorch_lightning as pl

from dfx.effects import RenderError
from dfx.writing import write_json

PACKAGES = (
    "torch", "torchaudio", "torchvision", "pytorch-lightning", "jsonargparse", "pedalboard", "auraloss",
    "pyloudnorm", "soundfile", "numpy", "wandb",
)  # fmt: skip


class RunFolder(pl.Callback):
    """Writes ``versions.json`` when a run begins, and ``metrics.json`` whenever there are new metrics.

    A run that an effect ends leaves ``failed_values.json``: the effect, its values and what it did.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.folder = trainer.strategy.broadcast(self.folder)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            write_json(self.folder / "versions.json", versions())

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            progress = {"epoch": trainer.current_epoch, "step": trainer.global_step}
            write_json(self.folder / "metrics.json", {**progress, **metrics})

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # On whatever rank: the others do not know.
        if isinstance(exception, RenderError):
            failed = {"effect": exception.effect, "values": exception.values, "message": str(exception)}
            write_json(self.folder / "failed_values.json", failed)


def versions() -> dict[str, str]:
    """Python's version, the platform, and the versions of the packages that results depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
