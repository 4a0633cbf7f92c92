"""Files that a run writes besides its checkpoints."""

import contextlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytorch_lightning as pl

from dfx.effects import RenderError
from dfx.writing import write_json, write_text

PACKAGES = [
    *("torch", "torchaudio", "torchvision", "pytorch-lightning", "jsonargparse", "pedalboard"),
    *("auraloss", "pyloudnorm", "soundfile", "numpy", "wandb"),
]


class RunFolder(pl.Callback):
    """Writes to a run's folder ``versions.json`` before the first step, and ``metrics.json`` after every epoch.

    If the start of training was searched, ``start.json`` holds it. If an effect fails, ``failed_values.json`` holds the
    effect, its values and the message.

    Args:
        folder: of the run.
        files: the content of other files by name. They are written before the first step too, when data, effects and
            checkpoint have been checked.
    """

    def __init__(self, folder: Path, files: Mapping[str, str] | None = None) -> None:
        self.folder, self._files = folder, files or {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.folder = trainer.strategy.broadcast(self.folder)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            write_json(self.folder / "versions.json", versions())
            if start := getattr(pl_module, "start", None):
                write_json(self.folder / "start.json", start)
            for name, content in self._files.items():
                write_text(self.folder / name, content)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            progress = {"epoch": trainer.current_epoch, "step": trainer.global_step}
            write_json(self.folder / "metrics.json", {**progress, **metrics})

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # On the rank where the effect failed: no other rank has the exception.
        if isinstance(exception, RenderError):
            failed = {"effect": exception.effect, "values": exception.values, "message": str(exception)}
            write_json(self.folder / "failed_values.json", failed)


def versions() -> dict[str, str]:
    """Return the versions of Python, the platform, and the packages that results depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        found[package] = "not installed"
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
