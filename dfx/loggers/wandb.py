"""A run in Weights & Biases that cannot end the training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import DummyExperiment, rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from dfx.loggers.best_effort import aside, in_one_line

_FINISH_SECONDS = 600.0
"""How long the end of a run waits for uploads; what is left lies in the record, for `wandb sync`."""


class WandbRun(WandbLogger):
    """Lightning's logger for W&B, of which no failure ends a run.

    A run that cannot go online, for want of a network or a login, is recorded offline instead, in the run's folder.
    When W&B fails in the midst of a run, the run goes on without it. Both warn once. All that is logged lies in the
    run's folder as well.

    Steps are counted over all stages of a run; Lightning's trainers count those of their own.

    Args:
        folder: of the run; its name is the run's, and the record lies in ``wandb/`` in it.
        offline: record in the folder only.
        options: of ``wandb.init``: ``project``, ``group``, ``tags``, ``config``, ``job_type``.

    Attributes:
        first_step: how many steps the stages before have taken.
    """

    first_step = 0

    def __init__(self, folder: Path, offline: bool, **options: Any) -> None:
        # A run that goes on is one run there too; what was recorded offline is uploaded record by record.
        begun = sorted((folder / "wandb").glob("run-*"))
        super().__init__(
            name=folder.name,
            save_dir=folder,
            offline=offline,
            # Lightning says it in the environment only, which W&B reads once.
            mode="offline" if offline else "online",
            id=begun[-1].name.rsplit("-", 1)[1] if begun and not offline else None,
            settings={"finish_timeout": _FINISH_SECONDS},
            **options,
        )
        self._lost = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._lost:
            return DummyExperiment()
        if self._experiment is not None:
            return self._experiment
        try:
            return super().experiment
        except Exception as error:
            if self._offline:
                return self._lose(error) or DummyExperiment()
            warnings.warn(
                f"W&B cannot be reached ({in_one_line(error)}): the run is recorded offline; `wandb sync` uploads it",
                stacklevel=2,
            )
            self._offline = True
            self._wandb_init["mode"] = "offline"
            return self.experiment

    @rank_zero_only
    @aside
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._try(super().log_metrics, metrics, None if step is None else self.first_step + step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any]) -> None:
        self._try(super().log_hyperparams, params)

    @rank_zero_only
    @aside
    def log_media(
        self,
        step: int,
        audio: Mapping[str, list[dict[str, Any]]],
        images: Mapping[str, Path],
        tables: Mapping[str, list[dict[str, Any]]],
    ) -> None:
        """Shows what can be heard and seen.

        Args:
            step: the step that it belongs to.
            audio: by name, a list of the arguments of ``wandb.Audio``.
            images: by name, PNG files.
            tables: by name, rows as dictionaries with the same keys, at least one.
        """

        def log() -> None:
            import wandb

            shown: dict[str, Any] = {name: [wandb.Audio(**sound) for sound in of] for name, of in audio.items()}
            shown.update((name, wandb.Image(str(path))) for name, path in images.items())
            for name, rows in tables.items():
                shown[name] = wandb.Table(list(rows[0]), [list(row.values()) for row in rows])
            self.experiment.log({**shown, "trainer/global_step": self.first_step + step})

        self._try(log)

    @rank_zero_only
    @aside
    def log_best(self, path: Path, metrics: Mapping[str, float]) -> None:
        """Keeps a checkpoint as an artifact of the type ``model``, called as the run, with its metrics.

        The record points to the file, which is not copied: leave it where it is until it is uploaded.
        """

        def log() -> None:
            import wandb

            artifact = wandb.Artifact(self._wandb_init["name"], type="model", metadata=dict(metrics))
            artifact.add_file(str(path), policy="immutable", skip_cache=True)
            self.experiment.log_artifact(artifact, aliases=["best"])

        self._try(log)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._try(super().finalize, status)

    def _try(self, function: Callable[..., Any], *args: Any) -> None:
        if self._lost:
            return
        try:
            function(*args)
        except Exception as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        self._lost = True
        warnings.warn(
            f"W&B has failed ({in_one_line(error)}): the run goes on without it, and its folder holds everything",
            stacklevel=3,
        )
