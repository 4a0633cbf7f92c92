"""The command line of training: Lightning's, with a folder for every run and Weights & Biases."""

from __future__ import annotations

import contextlib
import copy
import errno
import glob
import os
import re
import sys
import warnings
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import get_loader, set_loader
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from dfx import distributed
from dfx.callbacks import (
    AtomicCheckpointIO,
    Excerpts,
    Health,
    LoggingOptions,
    MidEpochCheckpoint,
    Progress,
    RunFolder,
    StopOnSignal,
    Stopped,
    last_checkpoint,
    versions,
)
from dfx.datasets import PairedAudio
from dfx.errors import DataError, UserError, refuse_renamed
from dfx.evaluation.evaluate import evaluate, find_removed
from dfx.evaluation.results import Results, as_table, where_it_lies
from dfx.loggers.history import History, best_row, read_history
from dfx.loggers.wandb import WandbRun
from dfx.tasks import Task, load_task, read_checkpoint
from dfx.writing import write_text

RESOLVED_CONFIG = "resolved_config.yaml"
SLURM_JOB = "slurm_job"


@dataclass
class WandbOptions:
    """Where a run is logged.

    Args:
        mode: ``offline`` keeps everything in the run's folder (``wandb sync`` uploads it), ``online`` needs a
            login and is recorded as ``offline`` without, ``disabled`` logs nothing.
        project: in Weights & Biases.
        group: runs that belong together.
        tags: to find runs by.
    """

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "dfx"
    group: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class RunOptions:
    """What a run is called, and whether it goes on.

    Args:
        name: of the folder in ``folder``, and in Weights & Biases. A name that is taken gets a number.
        folder: where runs are kept.
        resume: continue the run of this name from its last checkpoint, in the stage that it was in. A job that
            SLURM has put in the queue again continues its run in any case.
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
    seed: int | None = None


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

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        given = sys.argv[1:] if args is None else args
        for argument, following in zip(given, [*given[1:], ""]):
            name, equals, value = argument.removeprefix("--").partition("=")
            # Not all values are YAML, and none has to be.
            with contextlib.suppress(yaml.YAMLError):
                refuse_renamed(_load_yaml(value if equals else following), name)
        super().parse_arguments(parser, args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(RunOptions, "run")
        parser.add_class_arguments(WandbOptions, "wandb")
        parser.add_class_arguments(LoggingOptions, "logging")
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
        requeued = _run_of_slurm_job(Path(config.run.folder), config.run.name)
        resumes = config.run.resume or requeued is not None
        self.run_folder = requeued or _run_folder(RunOptions(**vars(config.run)))
        # One for all stages.
        self.progress = Progress()
        if resumes and config.ckpt_path is None:
            last = last_checkpoint(self.run_folder / "checkpoints")
            config.ckpt_path = last and str(last)

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
        self.logger = self._logger()
        # Checks the options of the trainer before anything runs; every stage then makes its own.
        trainer = self._trainer_of_stage()
        if trainer.is_global_zero:
            self._begin_folder()
        return trainer

    def _begin_folder(self) -> None:
        (self.run_folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        config = self._parser("fit").dump(self.config.fit, skip_none=False)
        write_text(self.run_folder / RESOLVED_CONFIG, config)
        if "SLURM_JOB_ID" in os.environ:
            write_text(self.run_folder / SLURM_JOB, os.environ["SLURM_JOB_ID"])

    def fit(self, model: Task, datamodule: PairedAudio, ckpt_path: str | None = None, **options: Any) -> None:
        """Every stage of the task, from the first or that of a checkpoint, each with a trainer of its own."""
        first = 0
        if ckpt_path is not None:
            saved = model.check_checkpoint(read_checkpoint(ckpt_path))
            first, model.first_step = saved["stage"], saved.get("first_step", 0)
        for stage in range(first, len(model.stages)):
            model.enter_stage(stage, datamodule)
            self.trainer = self._trainer_of_stage()
            if self.logger:
                self.logger.first_step = model.first_step
            self.trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, **options)
            # Processes that were started side by side may each have found another name free.
            self.run_folder = self.trainer.strategy.broadcast(self.run_folder)
            model.first_step += self.trainer.global_step
            ckpt_path = None
            best = self._best_of_stage()
            # Without validation there is none, and the last weights go on.
            if stage + 1 < len(model.stages) and best.exists():
                model.load_state_dict(read_checkpoint(str(best))["state_dict"])

    def _trainer_of_stage(self) -> Trainer:
        minutes = timedelta(minutes=self.config.fit.run.checkpoint_minutes)
        checkpoints = self.run_folder / "checkpoints"
        best = self._best_of_stage()
        logging = LoggingOptions(**vars(self.config.fit.logging))
        self.trainer_defaults["callbacks"] = [
            ModelCheckpoint(best.parent, best.stem, monitor="validation/loss", enable_version_counter=False),
            ModelCheckpoint(
                checkpoints, "last", every_n_epochs=1, save_on_train_epoch_end=True, enable_version_counter=False
            ),
            MidEpochCheckpoint(checkpoints, "last", train_time_interval=minutes, enable_version_counter=False),
            StopOnSignal(checkpoints / "last.ckpt"),
            RunFolder(self.run_folder),
            self.progress,
            LearningRateMonitor(),
            Health(logging.health_every_n_steps),
            Excerpts(self.run_folder, logging),
        ]
        loggers = [History(self.run_folder, self.model.stages.index(self.model.stage))]
        options = {} if self.model.stage.renders else {"max_epochs": self.model.stage_options.pretraining_epochs}
        # Copies, since callbacks remember the stage that they have been through.
        given = copy.deepcopy(self._get(self.config_init, "trainer").get("callbacks"))
        plugins = self._get(self.config_init, "trainer").get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        return super().instantiate_trainer(
            default_root_dir=str(self.run_folder),
            logger=loggers + ([self.logger] if self.logger else []),
            callbacks=given,
            plugins=[*plugins, AtomicCheckpointIO()],
            **options,
        )

    def _best_of_stage(self) -> Path:
        """Of the last stage in ``checkpoints`` itself, of those before in a folder of the stage's name."""
        stage, checkpoints = self.model.stage, self.run_folder / "checkpoints"
        return (checkpoints if stage == self.model.stages[-1] else checkpoints / stage.name) / "best.ckpt"

    def after_fit(self) -> None:
        best = self.run_folder / "checkpoints" / "best.ckpt"
        if not distributed.is_rank_zero() or self.trainer.interrupted or not best.exists():
            return
        results = self._evaluate(best) if self.config.fit.run.evaluate else {}
        tested = {f"test/{method}/{name}": float(mean) for method, of in results.items() for name, mean in of.items()}
        if tested:
            for logger in self.trainer.loggers:
                logger.log_metrics(tested, step=self.trainer.global_step)
        if self.logger:
            self.logger.log_best(best, {**(best_row(read_history(self.run_folder)) or {}), **tested})

    def _evaluate(self, best: Path) -> Results:
        folder = self.run_folder / "evaluation"
        data = self.datamodule
        removed = find_removed(data.splits["test"])
        results = evaluate(load_task(str(best)), data.whole_pairs("test"), folder, removed=removed)
        print(f"\nHeld-out pairs of {self.datamodule.root}, means:\n\n{as_table(results)}\n")
        print(f"checkpoints  {self.run_folder / 'checkpoints'}\n{where_it_lies(folder)}")
        return results

    def _logger(self) -> Any:
        options = self.config.fit.wandb
        if options.mode == "disabled":
            return False
        return WandbRun(
            self.run_folder,
            offline=options.mode == "offline",
            project=options.project,
            group=options.group,
            job_type="fit",
            tags=[type(self.model).__name__, *options.tags],
            config={**self.config.fit.as_dict(), "versions": versions()},
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


def _run_of_slurm_job(folder: Path, name: str) -> Path | None:
    """The run that a job of SLURM had begun before it was put in the queue again."""
    if not int(os.environ.get("SLURM_RESTART_COUNT", 0)):
        return None
    written = folder.glob(f"{glob.escape(name)}*/{SLURM_JOB}")
    return next((file.parent for file in written if file.read_text() == os.environ["SLURM_JOB_ID"]), None)


def _load_yaml(text: str) -> Any:
    # jsonargparse hands a null for an option inside an option on in Python's spelling.
    options = None if text == "None" else _LOAD_YAML(text)
    refuse_renamed(options)
    return options


_LOAD_YAML = get_loader("yaml")
set_loader("yaml", _load_yaml, exceptions=(yaml.YAMLError,))


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
    except Stopped as stopped:
        # The others end well: Lightning's launcher kills the first process where one of its own has failed.
        if distributed.is_rank_zero():
            print(stopped, file=sys.stderr)
            sys.exit(128 + stopped.signum)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        sys.exit(f"error: {error}: make room, and go on with --run.resume true; the checkpoints are whole")
