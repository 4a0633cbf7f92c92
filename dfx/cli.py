"""The command line of training: Lightning's, with a folder for every run and Weights & Biases."""

from __future__ import annotations

import copy
import re
import sys
import warnings
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, List, Literal, Optional

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import WandbLogger

from dfx.callbacks import History, RunFolder
from dfx.datasets import DataError, PairedAudio
from dfx.errors import UserError
from dfx.evaluation import as_table, evaluate, find_removed
from dfx.tasks import Task, load_task, read_checkpoint

RESOLVED_CONFIG = "resolved_config.yaml"


@dataclass
class WandbOptions:
    """Where a run is logged.

    Args:
        mode: ``offline`` keeps everything in the run's folder (``wandb sync`` uploads it), ``online`` needs a
            login, ``disabled`` logs nothing.
        project: in Weights & Biases.
        group: runs that belong together.
        tags: to find runs by.
    """

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "dfx"
    group: Optional[str] = None
    tags: List[str] = field(default_factory=list)


@dataclass
class RunOptions:
    """What a run is called, and whether it goes on.

    Args:
        name: of the folder in ``folder``, and in Weights & Biases. A name that is taken gets a number.
        folder: where runs are kept.
        resume: continue the run of this name from its last checkpoint, in the stage that it was in.
        evaluate: after training, compare the best checkpoint with the unprocessed input on the test split.
        checkpoint_minutes: how often ``last.ckpt`` is written, besides after every epoch.
        seed: of all that is random, in place of ``seed_everything`` (weights), ``data.seed`` (order, and split
            where the data have none) and ``gradient.seed`` (directions).
    """

    name: str = "run"
    folder: str = "runs"
    resume: bool = False
    evaluate: bool = True
    checkpoint_minutes: float = 5.0
    seed: Optional[int] = None


class MidEpochCheckpoint(ModelCheckpoint):
    """Leaves the last batch of an epoch to the checkpoint at its end.

    From one between that batch and the epoch's validation Lightning resumes with the next epoch: the validation
    would be missing from what decides on the best weights and on the end of a stage.
    """

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, *args)


class DfxCLI(LightningCLI):
    """``fit | validate | test | predict`` for a :class:`~dfx.tasks.Task` on :class:`~dfx.datasets.PairedAudio`."""

    def __init__(self, args: Any = None) -> None:
        super().__init__(
            Task,
            PairedAudio,
            subclass_mode_model=True,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults={
                "default_root_dir": "runs",
                # A batch is a row of lanes, in an order of its own: Lightning must not replace its sampler.
                "use_distributed_sampler": False,
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 10,
            },
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(RunOptions, "run")
        parser.add_class_arguments(WandbOptions, "wandb")
        for argument, of in {
            "sample_rate": lambda model: model.chain.sample_rate,
            "channels": lambda model: model.chain.channels,
            "window": lambda model: model.window,
            "treatment": lambda model: model.treatment,
            "augmentation": lambda model: model.augmentation,
        }.items():
            parser.link_arguments("model", f"data.{argument}", compute_fn=of, apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        if self.subcommand != "fit":
            return
        config = self.config.fit
        if config.run.seed is not None:
            config.seed_everything = config.data.seed = config.model.init_args.gradient.seed = config.run.seed
            config.run.seed = None
            self._set_seed()
        self.run_folder = _run_folder(RunOptions(**vars(config.run)))
        # One for all stages.
        self.history = History(self.run_folder)
        last = self.run_folder / "checkpoints" / "last.ckpt"
        if config.run.resume and config.ckpt_path is None and last.exists():
            config.ckpt_path = str(last)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            # jsonargparse lists what a constructor raised among the types that did not fit, the last of them.
            raised = re.findall(r"^  - (.*)$", str(error), flags=re.MULTILINE)
            raise UserError(raised[-1] if raised else error) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        if self.subcommand != "fit":
            return super().instantiate_trainer(logger=False, **kwargs)
        folder = self.run_folder
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        config = self._parser("fit").dump(self.config.fit, skip_none=False)
        (folder / RESOLVED_CONFIG).write_text(config, encoding="utf-8")
        self.logger = self._logger()
        # Checks the options of the trainer before anything runs; every stage then makes its own.
        return self._trainer_of_stage()

    def fit(self, model: Task, datamodule: PairedAudio, ckpt_path: Optional[str] = None, **options: Any) -> None:
        """Every stage of the task, from the first or that of a checkpoint, each with a trainer of its own."""
        first = 0
        if ckpt_path is not None:
            first = model.check_checkpoint(read_checkpoint(ckpt_path))["stage"]
        for stage in range(first, len(model.stages)):
            model.enter_stage(stage)
            datamodule.window = model.window
            self.trainer = self._trainer_of_stage()
            self.trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, **options)
            ckpt_path = None
            best = self._best_of_stage()
            # Without validation there is none, and the last weights go on.
            if stage + 1 < len(model.stages) and best.exists():
                model.load_state_dict(read_checkpoint(str(best))["state_dict"])

    def _trainer_of_stage(self) -> Trainer:
        minutes = timedelta(minutes=self.config.fit.run.checkpoint_minutes)
        checkpoints = self.run_folder / "checkpoints"
        best = self._best_of_stage()
        self.trainer_defaults["callbacks"] = [
            ModelCheckpoint(best.parent, best.stem, monitor="validation/loss", enable_version_counter=False),
            ModelCheckpoint(
                checkpoints, "last", every_n_epochs=1, save_on_train_epoch_end=True, enable_version_counter=False
            ),
            MidEpochCheckpoint(checkpoints, "last", train_time_interval=minutes, enable_version_counter=False),
            RunFolder(self.run_folder),
            self.history,
            *([LearningRateMonitor()] if self.logger else []),
        ]
        options = {} if self.model.stage.renders else {"max_epochs": self.model.stage_options.pretraining_epochs}
        # Copies, since callbacks remember the stage that they have been through.
        given = copy.deepcopy(self._get(self.config_init, "trainer").get("callbacks"))
        return super().instantiate_trainer(
            default_root_dir=str(self.run_folder), logger=self.logger, callbacks=given, **options
        )

    def _best_of_stage(self) -> Path:
        """Of the last stage in ``checkpoints`` itself, of those before in a folder of the stage's name."""
        stage, checkpoints = self.model.stage, self.run_folder / "checkpoints"
        return (checkpoints if stage == self.model.stages[-1] else checkpoints / stage.name) / "best.ckpt"

    def after_fit(self) -> None:
        best = self.run_folder / "checkpoints" / "best.ckpt"
        if self.trainer.interrupted or not self.config.fit.run.evaluate or not best.exists():
            return
        folder = self.run_folder / "evaluation"
        data = self.datamodule
        removed = find_removed(data.splits["test"])
        results = evaluate(load_task(str(best)), data.whole_pairs("test"), folder, removed=removed)
        print(f"\nHeld-out pairs of {self.datamodule.root}, means:\n\n{as_table(results)}\n")
        print(f"checkpoints  {self.run_folder / 'checkpoints'}\nmetrics      {folder}\naudio        {folder / 'audio'}")

    def _logger(self) -> Any:
        options = self.config.fit.wandb
        if options.mode == "disabled":
            return False
        return WandbLogger(
            name=self.run_folder.name,
            save_dir=self.run_folder,
            project=options.project,
            offline=options.mode == "offline",
            group=options.group,
            tags=list(options.tags),
            config=self.config.fit.as_dict(),
        )


def _run_folder(options: RunOptions) -> Path:
    folder = Path(options.folder) / options.name
    if options.resume:
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such run to resume")
        return folder
    number = 2
    while folder.exists():
        folder = Path(options.folder) / f"{options.name}-{number}"
        number += 1
    return folder


def main(args: Any = None) -> None:
    """Runs the command line; an error in what the user gave ends it with one line."""
    # The data module resumes the loader: see PairedAudio.state_dict.
    warnings.filterwarnings("ignore", ".*your dataloader is not resumable")
    # All stages of a run write to one folder.
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    try:
        DfxCLI(args)
    except UserError as error:
        sys.exit(f"error: {error}")
