"""Weights & Biases (W&B) as a logger that cannot end the training."""

from __future__ import annotations

import functools
import shutil
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import DummyExperiment, rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from dfx.loggers.best_effort import best_effort, in_one_line
from dfx.loggers.history import HISTORY

_FINISH_SECONDS = 600.0
"""How long the end of a run waits for uploads. The rest stays in the local record, for `wandb sync`."""


def _unless_failed(method: Callable[..., None]) -> Callable[..., None]:
    """Decorator for methods of :class:`WandbRun` on rank 0: a failure ends the use of W&B instead of the run."""

    @rank_zero_only
    @functools.wraps(method)
    def wrapper(run: WandbRun, *args: Any, **kwargs: Any) -> None:
        if not run._has_failed:
            try:
                method(run, *args, **kwargs)
            except Exception as error:
                run._give_up(error)

    return wrapper


def _find_records(folder: Path) -> list[Path]:
    """Return the folders of W&B's records in a run's folder, online and offline, the last one last."""
    return sorted((folder / "wandb").glob("*run-*-*"), key=_split_name)


def _split_name(record: Path) -> list[str]:
    """Return the time and the id in the name of a record, ``run-TIME-ID`` or ``offline-run-TIME-ID``."""
    return record.name.split("run-", 1)[1].split("-", 1)


class WandbRun(WandbLogger):
    """Lightning's logger for W&B, made robust: its failures never end a run.

    A run that cannot go online, without a network or a login, is recorded offline in the run's folder instead. If W&B
    fails during a run, the run continues without it. Both warn once. Everything that is logged is also written to the
    run's folder.

    Steps are counted over all stages of a run, whereas each of Lightning's trainers counts its own.

    Args:
        folder: the run's folder. Its name becomes the run's name, and the record is written to ``wandb/`` in it.
        offline: whether to record in the folder only.
        options: options of ``wandb.init``: ``project``, ``group``, ``tags``, ``config``, ``job_type``.

    Attributes:
        first_step: number of steps taken in the previous stages.
    """

    first_step = 0

    def __init__(self, folder: Path, offline: bool, **options: Any) -> None:
        # A resumed run continues the same W&B run: `wandb sync` makes one run of all records with one id.
        records = _find_records(folder)
        super().__init__(
            name=folder.name,
            save_dir=folder,
            offline=offline,
            # Lightning sets the mode in the environment only, which W&B reads once.
            mode="offline" if offline else "online",
            id=_split_name(records[-1])[1] if records else None,
            # Offline, its notices say nothing new; online, they show the address of the run.
            settings={"finish_timeout": _FINISH_SECONDS, "silent": offline},
            **options,
        )
        # Lightning always passes it, and W&B warns of it.
        self._wandb_init.pop("anonymous", None)
        self._folder = folder
        self._has_failed = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._has_failed:
            return DummyExperiment()
        if self._experiment is not None:
            return self._experiment
        before = _find_records(self._folder)
        try:
            return self._begin(super().experiment, resumed=bool(before))
        except Exception as error:
            for record in set(_find_records(self._folder)) - set(before):
                shutil.rmtree(record, ignore_errors=True)  # which holds nothing yet
            if self._offline:
                self._give_up(error)
            else:
                reason = f"W&B cannot be reached ({in_one_line(error)})"
                warnings.warn(f"{reason}: the run is recorded offline; `wandb sync` uploads it", stacklevel=2)
                # Private attributes of Lightning's logger, which has no public way to change the mode after __init__.
                self._offline = True
                self._wandb_init["mode"] = "offline"
            return self.experiment

    def _begin(self, run: Any, resumed: bool) -> Any:
        """Set up a run that W&B has just created, or resumed."""
        run.define_metric("validation/loss", step_metric="trainer/global_step", summary="min")
        if self._offline and resumed:
            # W&B counts its rows from 0 in every offline record, but its server needs them in order. At most one row
            # of media comes with each line of the history.
            history = self._folder / HISTORY
            lines = history.read_bytes().count(b"\n") if history.exists() else 0
            run.log({}, step=2 * lines, commit=False)
        return run

    @best_effort
    @_unless_failed
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, None if step is None else self.first_step + step)

    @_unless_failed
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        super().log_hyperparams(params)

    @best_effort
    @_unless_failed
    def log_media(
        self,
        step: int,
        audio: Mapping[str, list[dict[str, Any]]],
        images: Mapping[str, Path],
        tables: Mapping[str, list[dict[str, Any]]],
    ) -> None:
        """Log audio, images and tables.

        Args:
            step: step of the current stage.
            audio: for each name, a list of arguments of ``wandb.Audio``.
            images: for each name, a PNG file.
            tables: for each name, at least one row; rows are dictionaries with the same keys.
        """
        import wandb

        media: dict[str, Any] = {name: [wandb.Audio(**sound) for sound in of] for name, of in audio.items()}
        media.update((name, wandb.Image(str(path))) for name, path in images.items())
        for name, rows in tables.items():
            media[name] = wandb.Table(list(rows[0]), [list(row.values()) for row in rows])
        self.experiment.log({**media, "trainer/global_step": self.first_step + step})

    @best_effort
    @_unless_failed
    def log_best(self, path: Path, metrics: Mapping[str, float]) -> None:
        """Log a checkpoint as an artifact of the type ``model`` that has the run's name and carries its metrics.

        The record refers to the file without a copy: leave the file in place until it is uploaded.
        """
        import wandb

        artifact = wandb.Artifact(self._folder.name, type="model", metadata=dict(metrics))
        artifact.add_file(str(path), policy="immutable", skip_cache=True)
        self.experiment.log_artifact(artifact, aliases=["best"])
        if "validation/loss" in metrics:  # that of the last stage, over all resumptions
            self.experiment.summary["best/validation/loss"] = metrics["validation/loss"]

    @_unless_failed
    def finalize(self, status: str) -> None:
        super().finalize(status)

    def _give_up(self, error: Exception) -> None:
        self._has_failed = True
        reason = f"W&B has failed ({in_one_line(error)})"
        warnings.warn(f"{reason}: the run continues without it, and its folder holds all metrics", stacklevel=3)
