"""The command line of training: LightningCLI with stages, a folder for every run, and Weights & Biases."""

import contextlib
import copy
import errno
import glob
import inspect
import itertools
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import yaml
from docstring_parser import DocstringStyle
from jsonargparse import get_loader, set_loader, set_parsing_settings
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, ProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from dfx import distributed
from dfx.callbacks.bar import Bar
from dfx.callbacks.checkpoints import AtomicCheckpointIO, MidEpochCheckpoint, StopOnSignal, Stopped, last_checkpoint
from dfx.callbacks.excerpts import Excerpts, LoggingOptions
from dfx.callbacks.health import Health
from dfx.callbacks.progress import Progress
from dfx.callbacks.run_folder import RunFolder, versions
from dfx.datasets import PairedAudio
from dfx.datasets.pairs import find_pairs
from dfx.datasets.splits import count_trained
from dfx.errors import (
    COUNTS,
    SEEDS,
    DataError,
    UserError,
    check_file_name,
    check_numbers,
    errors_in_one_line,
    in_one_line,
    nearest,
    refuse_renamed,
    refuse_repeated_keys,
)
from dfx.evaluation.evaluate import evaluate, find_removed
from dfx.evaluation.folds import cross_validate
from dfx.evaluation.results import as_table, list_places
from dfx.evaluation.verdict import describe_results
from dfx.loggers.history import best_row, read_history
from dfx.loggers.history_logger import History
from dfx.loggers.wandb import WandbRun
from dfx.render.pretrained import find_checkpoint
from dfx.tasks import CheckpointError, Task, read_checkpoint
from dfx.tasks.finetuning import take_weights
from dfx.tasks.loading import build_task
from dfx.tasks.memory import keep_freed_memory
from dfx.writing import lock

CONFIG = "resolved_config.yaml"
SLURM_JOB = "slurm_job"

_TRAINER = {
    COUNTS: "max_epochs max_steps check_val_every_n_epoch accumulate_grad_batches num_nodes",
    "0..1000000000": "min_epochs min_steps log_every_n_steps reload_dataloaders_every_n_epochs",
    "(0, 1e9]": "limit_train_batches",
    "[0, 1e9]": "limit_val_batches limit_test_batches limit_predict_batches overfit_batches gradient_clip_val",
}
"""Ranges of the trainer's options that Lightning does not check itself."""

_PLACES = ("accelerator", "devices", "num_nodes", "strategy")
"""The trainer's options that say where it trains."""

_NOT_OF_THE_FOLDS = ("run.", "wandb.", "logging.", "data.fold", *(f"trainer.{name}" for name in _PLACES))
"""Beginnings of the differences that folds of one cross-validation may have."""

_NOTICES = (
    # The data module restores the position of the loader, see PairedAudio.state_dict.
    ".*your dataloader is not resumable",
    # All stages of a run write to one folder.
    "Checkpoint directory .* exists and is not empty",
    # Steps are logged across epochs.
    "The number of training batches .* is smaller than the logging interval",
    # `data.num_workers` is an option, and its default is right for short files.
    ".* does not have many workers",
    # Each fold has the arguments of the command, and others.
    "LightningCLI's args parameter is intended",
    # Of Lightning to its own developers.
    ".*LeafSpec.*is deprecated",
)


@dataclass
class WandbOptions:
    """Logging to Weights & Biases.

    Args:
        mode: ``offline`` keeps everything in the run's folder (``wandb sync`` uploads it); ``online`` needs a login,
            and falls back to ``offline`` without one; ``disabled`` logs nothing. The default is ``online`` for a run of
            ``wandb agent``, else ``offline``.
        project: in Weights & Biases.
        group: of related runs.
        tags: of the run.
    """

    mode: Literal["offline", "online", "disabled"] = field(
        default_factory=lambda: "online" if "WANDB_SWEEP_ID" in os.environ else "offline"
    )
    project: str = "dfx"
    group: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class RunOptions:
    """Name, folder and resumption of a run.

    Args:
        name: of the run's folder, and in Weights & Biases; a number is appended if the folder exists.
        folder: of all runs.
        resume: continue the run of this name from its last checkpoint, in its stage. A job that SLURM has requeued
            always continues its run.
        start_from: begin with the weights of a trained model, a name of ``python -m dfx.render --list`` or the path of
            a checkpoint. Parameters that it does not have in the same range begin untrained.
        folds: cross-validation: divide the pairs into so many folds, train a run for each, ``NAME/fold_1`` and so on,
            which is tested on this fold, and evaluate all pairs together. With ``resume``, finished folds are kept.
        evaluate: after training, compare the best checkpoint with the unprocessed input on the test split.
        checkpoint_minutes: interval at which ``last.ckpt`` is written, in addition to the end of every epoch.
        seed: sets ``seed_everything`` (weights), ``data.seed`` (order, and split where the data have none) and
            ``gradient.seed`` (directions).

    Raises:
        UserError: if the name is no name of a folder, or a number out of its range.
    """

    name: str = "run"
    folder: str = "runs"
    resume: bool = False
    start_from: str | None = None
    folds: int | None = None
    evaluate: bool = True
    checkpoint_minutes: float = 5.0
    seed: int | None = None

    def __post_init__(self) -> None:
        check_numbers(vars(self), checkpoint_minutes="(0, 525600]", seed=SEEDS, folds="2..1000000")
        check_file_name("run.name", self.name)
        if not self.folder.strip() or not self.folder.isprintable():
            raise UserError(f"run.folder is {self.folder!r}; it must be the path of a folder")


class _Parser(LightningArgumentParser):
    """A parser that accepts no abbreviated options, and reports an error in one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if unknown := _UNKNOWN.match(message):
            name = ".".join(filter(None, unknown.groups()))
            message = f'Parser key "{name}": {_NO_OPTION}{_nearest_option(name, self)}'
        if not self.exit_on_error:  # the parser of a class, whose error becomes a part of that of the whole parser
            super().error(message, ex)
        raise UserError(_shorten(message)) from ex


class DfxCLI(LightningCLI):
    """``fit | validate | test`` for a :class:`~dfx.tasks.Task` on :class:`~dfx.datasets.PairedAudio`."""

    def __init__(self, args: Any = None) -> None:
        defaults = {"default_root_dir": "runs", "num_sanity_val_steps": 0, "log_every_n_steps": 10}
        # By default, a config trains alike on machines with any number of GPUs.
        defaults["devices"] = 1
        # The order of a batch is that of its lanes: Lightning must not replace the sampler.
        defaults["use_distributed_sampler"] = False
        super().__init__(
            Task,
            PairedAudio,
            subclass_mode_model=True,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults=defaults,
            parser_class=_Parser,
            args=args,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self._given = given = sys.argv[1:] if args is None else args
        for argument in given:
            if re.search("[\ud800-\udfff]", argument):  # which a config cannot hold
                raise UserError(f"{argument} is not in UTF-8: rename it, or link to it from a path that is")
        for argument, following in zip(given, [*given[1:], ""]):
            name, equals, value = argument.removeprefix("--").partition("=")
            if name in ("config", "-c"):
                _check_config(Path(value if equals else following))
            # Not all values are YAML, and none has to be.
            with contextlib.suppress(yaml.YAMLError, ValueError):
                refuse_renamed(_load_yaml(value if equals else following), name)
        try:
            super().parse_arguments(parser, args)
        except RecursionError:
            raise UserError("an option is nested too deeply, or contains itself") from None
        self._check_options()
        trainer = self.config[self.config.subcommand].trainer
        if trainer.accelerator == "auto" and torch.backends.mps.is_available():
            trainer.accelerator = "cpu"  # Apple's GPUs lack float64

    def _check_options(self) -> None:
        """Check what can be checked without building anything."""
        config = self.config[self.config.subcommand]
        RunOptions(**vars(config.run))
        LoggingOptions(**vars(config.logging))
        if not isinstance(config.seed_everything, bool):
            check_numbers(vars(config), seed_everything=SEEDS)
        trainer, task = vars(config.trainer), config.model.init_args
        endless = {name: None for name in ("max_epochs", "max_steps") if trainer[name] == -1}
        given = {f"trainer.{name}": value for name, value in {**trainer, **endless}.items()}
        for range, names in _TRAINER.items():
            check_numbers(given, **{f"trainer.{name}": range for name in names.split()})
        if (precision := str(config.trainer.precision)) in ("16-true", "bf16-true"):
            mixed = precision.replace("true", "mixed")
            raise UserError(f"trainer.precision is {precision}, which would round the audio too: set it to {mixed}")
        if len(endless) == 2:
            needing = {"optimizer.schedule: cosine": task.optimizer.schedule == "cosine"}
            needing["gradient.epsilon_end"] = task.gradient.epsilon_end is not None
            for option in (option for option, is_given in needing.items() if is_given):
                raise UserError(
                    f"trainer.max_epochs is -1, no end, and {option} needs one: set max_epochs or max_steps"
                )
        if config.run.start_from and task.stages.pretraining_epochs:
            fault = "pretraining fits the encoder to the defaults, which would undo run.start_from"
            raise UserError(f"{fault}: set model.init_args.stages.pretraining_epochs to 0")

        if self.config.subcommand == "fit" and config.run.folds:
            self._check_folds(config)

    @staticmethod
    def _check_folds(config: Any) -> None:
        """Check that folds can be trained, each as a run of its own, one after the other."""
        faults = {
            "run.evaluate: false": not config.run.evaluate,
            "ckpt_path": config.ckpt_path is not None,
            "data.fold": config.data.fold is not None,
        }
        for option in (option for option, is_given in faults.items() if is_given):
            raise UserError(f"run.folds trains and tests every fold, and does not go with {option}: remove one of both")
        places = {name: config.trainer[name] for name in _PLACES}
        if Trainer(**places, logger=False, enable_checkpointing=False).world_size > 1:
            raise UserError("run.folds trains in one process: set trainer.devices to 1, or train each data.fold alone")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return Lightning's subcommands without ``predict``: ``python -m dfx.render`` writes its outputs."""
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name != "predict"}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.usage = "train.py {fit,validate,test} --config CONFIG [--OPTION VALUE ...]"
        parser.epilog = (
            "The options of a task and of its encoder, loss, gradient and optimizer: train.py fit --model.help TASK, "
            "for the tasks TubeAmp, NonSpeech, Mastering and StyleTransfer."
        )
        parser.add_class_arguments(RunOptions, "run")
        parser.add_class_arguments(WandbOptions, "wandb")
        parser.add_class_arguments(LoggingOptions, "logging")
        for source in ("chain.sample_rate", "chain.channels", "window", "treatment", "augmentation", "takes_reference"):
            target = f"data.{source.split('.')[-1]}"
            parser.link_arguments("model", target, compute_fn=attrgetter(source), apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        # Lightning imports the class that the hyperparameters of a checkpoint name. Ours have none.
        pass

    def _add_instantiators(self) -> None:
        # Lightning would dump the whole config for `save_hyperparameters`, which no class of ours calls.
        pass

    def before_instantiate_classes(self) -> None:
        if self.subcommand != "fit":
            return
        config, run = self.config.fit, self.config.fit.run
        if run.seed is not None:
            config.seed_everything = config.data.seed = config.model.init_args.gradient.seed = run.seed
            seed_everything(run.seed, workers=True)
            run.seed = None
        if run.folds:
            return
        requeued = _find_requeued(Path(run.folder), run.name)
        self.run_folder = requeued or _choose_folder(Path(run.folder), run.name, run.resume)
        self.progress, self.bar = Progress(), Bar(config.trainer.max_epochs)  # of all stages
        # A run of its config begins anew. Private, since Lightning has no public access to the parser of a subcommand.
        resumes, run.resume = run.resume or requeued, False
        self._files = {CONFIG: self._parser("fit").dump(config, skip_none=False, skip_validation=True)}
        if "SLURM_JOB_ID" in os.environ:
            self._files[SLURM_JOB] = os.environ["SLURM_JOB_ID"]
        if resumes and config.ckpt_path is None:
            last = last_checkpoint(self.run_folder / "checkpoints")
            config.ckpt_path = last and str(last)

    def instantiate_classes(self) -> None:
        if self.subcommand == "fit" and self.config.fit.run.folds:
            return  # each fold is a run with classes of its own
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, MisconfigurationException) as error:
            # The error of a constructor is the last in jsonargparse's list of types that did not fit.
            raised = re.findall(r"^  - (.*)$", str(error), flags=re.MULTILINE)
            raise UserError(raised[-1] if raised else in_one_line(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        if self.subcommand != "fit":
            given = self.config_init[str(self.subcommand)].trainer
            kwargs["enable_progress_bar"] = given.enable_progress_bar is not False and sys.stdout.isatty()
            plugins = [*_as_list(given.plugins), AtomicCheckpointIO()]
            return super().instantiate_trainer(logger=False, plugins=plugins, **kwargs)
        self.logger = self._make_logger()
        # Validates the trainer's options before anything runs; every stage has a trainer of its own.
        return self._make_trainer()

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand == "fit" and self.config.fit.run.folds:
            return self._train_folds()
        try:
            with contextlib.ExitStack() as self._held:  # the lock of the run's folder, until its evaluation has ended
                super()._run_subcommand(subcommand)
        except (UserError, LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            # Lightning checks none of the states that it restores. Private, since it does not say when it restores.
            path = self.config[subcommand].ckpt_path
            if path is None or str(path) in str(error) or not self.trainer._checkpoint_connector._loaded_checkpoint:
                raise
            fault = error if isinstance(error, UserError) else f"it is damaged ({type(error).__name__}: {error})"
            raise CheckpointError(f"{path} cannot be used: {fault}") from error

    def fit(self, model: Task, datamodule: PairedAudio, ckpt_path: str | None = None, **options: Any) -> None:
        """Train every stage of the task, in a locked folder, which is removed if the command fails before a step."""
        if not self.trainer.is_global_zero:
            return self._fit_stages(model, datamodule, ckpt_path, **options)
        folder = self.run_folder
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        self._held.enter_context(lock(folder / ".lock", f"{folder} is in use by another process: wait for its end"))
        try:
            self._fit_stages(model, datamodule, ckpt_path, **options)
        except BaseException:
            # The steps of a checkpoint that is still being restored are not those of this command.
            restores = self.trainer._checkpoint_connector._loaded_checkpoint
            if new and (restores or not model.first_step + self.trainer.global_step):
                shutil.rmtree(folder, ignore_errors=True)
                for parent in new[1:]:
                    with contextlib.suppress(OSError):  # another run may have begun there
                        parent.rmdir()
            raise

    def _fit_stages(self, model: Task, datamodule: PairedAudio, ckpt_path: str | None, **options: Any) -> None:
        """Train from the first stage, or from that of a checkpoint, with one trainer each."""
        keep_freed_memory()
        first, model.start_from = 0, self.config_init.fit.run.start_from
        if ckpt_path is not None:
            saved = model.check_checkpoint(read_checkpoint(ckpt_path))
            first, model.first_step = saved["stage"], saved.get("first_step", 0)
            datamodule.restore(saved["data"], resumes=True)
        elif model.start_from:
            self._start_from(find_checkpoint(model.start_from), model, datamodule)
        for stage in range(first, len(model.stages)):
            model.enter_stage(stage, datamodule)
            self.trainer = self._make_trainer()
            if self.logger:
                self.logger.first_step = model.first_step
            self.trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, **options)
            # Processes that were started at the same time may have chosen different names.
            self.run_folder = self.trainer.strategy.broadcast(self.run_folder)
            model.first_step += self.trainer.global_step
            ckpt_path = None
            best = self._best_checkpoint()
            # Without validation there is none: the next stage then starts from the last weights.
            if stage + 1 < len(model.stages) and best.exists():
                model.load_state_dict(read_checkpoint(str(best))["state_dict"])

    def _train_folds(self) -> None:
        """Train a run for each fold, in this process, and print the means over all pairs."""
        config, run, data = self.config.fit, self.config.fit.run, self.config.fit.data
        folds = [find_pairs(data.root, data.seed, data.rows, (number + 1, run.folds)) for number in range(run.folds)]
        if run.start_from:
            pairs = [pair for splits in folds for pair in splits["test"]]
            trained_on = read_checkpoint(find_checkpoint(run.start_from))["dfx"]["data"]
            if known := count_trained(trained_on, pairs, data.root):
                fault = f"was trained on {known} of the {len(pairs)} pairs, which the folds are to test"
                raise DataError(f"run.start_from: {run.start_from} {fault}: begin with another model")
        requeued = _find_requeued(Path(run.folder), run.name, "fold_1")
        folder = requeued.parent if requeued else _choose_folder(Path(run.folder), run.name, run.resume)
        for file in folder.glob(f"fold_*/{CONFIG}"):
            self._check_same_options(file)

        def train(number: int) -> None:
            name = f"fold_{number}"
            changes = {"run.folds": "null", "run.folder": folder, "run.name": name, "data.fold": [number, run.folds]}
            changes |= {"run.resume": (folder / name).is_dir(), "wandb.group": config.wandb.group or folder.name}
            try:
                trained = DfxCLI([*self._given, *(f"--{option}={value}" for option, value in changes.items())])
            except Stopped as stopped:
                how = f"resume with --run.name {folder.name} --run.resume true"
                raise Stopped(stopped.signum, f"{stopped.args[0].split(';')[0]}; {how}") from None
            if trained.logger:
                trained.logger.experiment.finish()

        text = cross_validate(folder, folds, train)
        print(f"\nAll pairs of {data.root}, each rendered by a model that was not trained on it, means:\n\n{text}\n")
        print(f"{'folds':<11}  {folder}\n{list_places(folder / 'evaluation')}")

    def _check_same_options(self, file: Path) -> None:
        """Check that a fold was trained with the options that the others will be trained with."""
        _check_config(file)
        texts = (self._parser("fit").dump(self.config.fit, skip_none=False), file.read_text(encoding="utf-8"))
        differing = _list_differences(*map(yaml.safe_load, texts))
        if differing := [difference for difference in differing if not difference.startswith(_NOT_OF_THE_FOLDS)]:
            fault = f"{file.parent} was trained with other options: {', '.join(differing[:5])}"
            raise DataError(f"{fault}; resume the folds with the same, or give another run.name")

    def _start_from(self, path: str, model: Task, datamodule: PairedAudio) -> None:
        """Begin with the weights of a checkpoint, and print what was taken over."""
        sentences = take_weights(model, path)
        datamodule.setup("fit")
        tested = datamodule.splits["test"]
        if known := count_trained(read_checkpoint(path)["dfx"]["data"], tested, datamodule.root):
            sentences.append(
                f"the model was trained on {known} of the {len(tested)} test pairs, whose metrics are then too good"
            )
        if distributed.is_rank_zero():
            print("".join(f"run.start_from: {sentence}\n" for sentence in sentences), end="")

    def _make_trainer(self) -> Trainer:
        """Build the trainer of the current stage."""
        given, stage = self.config_init.fit.trainer, self.model.stage
        options = {
            **vars(given),
            "default_root_dir": str(self.run_folder),
            "logger": [History(self.run_folder, self.model.stages.index(stage)), *_as_list(self.logger)],
            # Copies, since callbacks have state.
            "callbacks": [*copy.deepcopy(_as_list(given.callbacks)), *self._make_callbacks()],
            "plugins": [*_as_list(given.plugins), AtomicCheckpointIO()],
            "enable_model_summary": bool(given.enable_model_summary),
        }
        if given.enable_progress_bar is not False and not _has_bar(options["callbacks"]):
            options["callbacks"].append(self.bar)
        if not stage.renders:
            options["max_epochs"] = self.model.stage_options.pretraining_epochs
        return Trainer(**options)

    def _make_callbacks(self) -> list[Callback]:
        config, folder, best = self.config_init.fit, self.run_folder / "checkpoints", self._best_checkpoint()
        minutes = timedelta(minutes=config.run.checkpoint_minutes)
        save = partial(ModelCheckpoint, enable_version_counter=False)
        return [
            save(best.parent, best.stem, monitor="validation/loss"),
            save(folder, "last", every_n_epochs=1, save_on_train_epoch_end=True),
            MidEpochCheckpoint(folder, "last", train_time_interval=minutes, enable_version_counter=False),
            StopOnSignal(folder / "last.ckpt"),
            RunFolder(self.run_folder, self._files),
            self.progress,
            LearningRateMonitor(),
            Health(config.logging.health_every_n_steps),
            Excerpts(self.run_folder, config.logging),
        ]

    def _best_checkpoint(self) -> Path:
        """Return the path of the stage's best checkpoint: stages but the last have a folder of their own."""
        stage, checkpoints = self.model.stage, self.run_folder / "checkpoints"
        return (checkpoints if stage == self.model.stages[-1] else checkpoints / stage.name) / "best.ckpt"

    def after_fit(self) -> None:
        best = self.run_folder / "checkpoints" / "best.ckpt"
        if not distributed.is_rank_zero() or self.trainer.interrupted:
            return
        if not best.exists():
            if self.config.fit.run.evaluate:
                print(f"nothing was evaluated, since no validation has written {best}")
            return
        tested = {}
        if self.config.fit.run.evaluate:
            folder, data = self.run_folder / "evaluation", self.datamodule
            removed = find_removed(data.splits["test"])
            checkpoint = read_checkpoint(str(best))
            self.model.check_checkpoint(checkpoint)  # with no other code than that of this run
            task = build_task(checkpoint, str(best), trust=True).to(self.trainer.strategy.root_device)
            results = evaluate(task, data.whole_pairs("test"), folder, removed=removed)
            if data.fold:
                losses = ", ".join(f"{method} {of['loss']:.3f}" for method, of in results.items())
                print(f"held-out pairs of the fold, loss: {losses}; {folder / 'report.html'}")
            else:
                automation = (folder / "automation").glob("*.csv")
                print(f"\nHeld-out pairs of {data.root}, means:\n\n{as_table(results)}\n")
                print("".join(f"{text}\n" for text in describe_results(results, automation, task.chain.space)))
                print(f"checkpoints  {best.parent}\n{list_places(folder)}")
            tested = {f"test/{method}/{name}": float(of[name]) for method, of in results.items() for name in of}
            for logger in self.trainer.loggers:
                logger.log_metrics(tested, step=self.trainer.global_step)
        if self.logger:
            self.logger.log_best(best, {**(best_row(read_history(self.run_folder)) or {}), **tested})

    def _make_logger(self) -> WandbRun | None:
        options = self.config.fit.wandb
        if options.mode == "disabled":
            return None
        place = {"project": options.project, "group": options.group, "job_type": "fit"}
        tags = [type(self.model).__name__, *options.tags]
        config = {**self.config.fit.as_dict(), "versions": versions()}
        # W&B cannot search lists: effects by name.
        effects = config["model"]["init_args"]["effects"]
        names = [recipe.name for recipe in self.model.chain.recipes]
        config["model"]["init_args"]["effects"] = dict(zip(names, effects))
        return WandbRun(self.run_folder, options.mode == "offline", tags=tags, config=config, **place)


_UNINFORMATIVE = re.compile(
    r"Does not validate|Subtypes:|Errors:|Given value type:|Given value:|Expected a <class 'NoneType'>"
    "|Problem with given class_path|Expected a path but"
)


_UNKNOWN = re.compile(
    r"(?:unrecognized arguments: -+|Option '|Subcommand '\w+' does not accept option '"
    r"|Group '(.+?)' does not accept option ')([^'=\s]+)"
)
"""Errors of jsonargparse about an unknown option, with its group and its name."""
_NO_OPTION = "there is no such option"


def _nearest_option(name: str, parser: LightningArgumentParser) -> str:
    """Return the end of an error about an unknown option, see :func:`nearest`, for the first part that is unknown."""
    subcommands = parser._subcommands_action
    parsers = [parser, *(subcommands.choices.values() if subcommands else ())]
    known = {action.dest for each in parsers for action in each._actions if action.option_strings}
    # The options of a class have a parser of their own.
    of_task = {f"model.init_args.{option}" for option in inspect.signature(Task).parameters}
    known |= of_task if parser.exit_on_error else {"class_path", "init_args"}
    place = ""
    for part in name.split("."):
        options = {other.removeprefix(place).split(".")[0] for other in known if other.startswith(place)}
        if part not in options:
            break
        place += f"{part}."
    elsewhere = [other for other in known if other.endswith(f".{part}")]
    return nearest(part, elsewhere or options)


def _shorten(message: str) -> str:
    """Return an error of jsonargparse in one line, with the whole name of the option."""
    keys = dict.fromkeys(re.findall(r'Parser key "(.+?)":', message))
    lines = [line.strip().removeprefix("- ") for line in re.sub(r'Parser key ".+?": *', "", message).splitlines()]
    facts = [line for line in lines if line and not _UNINFORMATIVE.match(line)]
    # The class that has no such option is one of the types that do not fit: the others say nothing.
    facts = [line for line in facts if line.startswith(_NO_OPTION)][:1] or facts
    text = re.sub(r"<class '([\w.]+)'>|typing\.", r"\1", "; ".join(facts))
    return f"{'.'.join(keys)}: {text}" if keys else text


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _list_differences(ours: Any, theirs: Any, name: str = "") -> list[str]:
    """Return the dotted names of options that differ in nested mappings and lists, each with both values."""
    if isinstance(ours, list) and isinstance(theirs, list):
        ours, theirs = dict(enumerate(ours)), dict(enumerate(theirs))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        pairs = {key: (ours.get(key), theirs.get(key)) for key in {**ours, **theirs}}
        return [text for key, pair in pairs.items() for text in _list_differences(*pair, f"{name}.{key}")]
    return [] if ours == theirs else [f"{name[1:]} ({theirs}, now {ours})"]


def _has_bar(callbacks: list[Callback]) -> bool:
    return any(isinstance(callback, ProgressBar) for callback in callbacks)


def _choose_folder(runs: Path, name: str, resume: bool) -> Path:
    """Return the folder of a run: that of the run to resume, or one that does not exist yet."""
    folder = runs / name
    if resume and not folder.is_dir():
        raise DataError(f"{folder}: there is no such run to resume")
    numbered = (runs / f"{name}-{number}" for number in itertools.count(2))
    return folder if resume or not folder.exists() else next(path for path in numbered if not path.exists())


def _find_requeued(runs: Path, name: str, fold: str = "") -> Path | None:
    """Return the folder of the run, or of its fold, that this SLURM job began before it was requeued."""
    if not int(os.environ.get("SLURM_RESTART_COUNT", 0)):
        return None
    for file in runs.glob(f"{glob.escape(name)}*/{Path(fold, SLURM_JOB)}"):
        is_own = re.fullmatch(rf"{re.escape(name)}(-\d+)?", file.relative_to(runs).parts[0])
        if is_own and file.read_text() == os.environ["SLURM_JOB_ID"]:
            return file.parent
    return None


def _load_yaml(text: str) -> Any:
    # jsonargparse passes a null of a nested option as None in Python's spelling.
    if set(":{?") & set(text):  # most texts are single values, and a mapping begins with one of these
        refuse_repeated_keys(text)
    options = None if text == "None" else _LOAD_YAML(text)
    refuse_renamed(options)
    return options


def _check_config(path: Path) -> None:
    """Raise a :class:`UserError` with the path of a config that is no YAML mapping: the parser does not name it."""
    if not path.is_file():
        return
    try:
        options = _load_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is not YAML in UTF-8: {error}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply, or contains itself") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(options, dict):
        raise UserError(f"{path} is not a mapping of options: compare it with configs/smoke.yaml")


_LOAD_YAML = get_loader("yaml")
set_loader("yaml", _load_yaml, exceptions=(yaml.YAMLError, ValueError))
# Lightning's and ours; otherwise each docstring is parsed in all styles that there are.
set_parsing_settings(docstring_parse_style=DocstringStyle.GOOGLE)


def main(args: Any = None) -> None:
    """Run the command line; an error that the user can fix ends it with one line."""
    _silence_notices()
    try:
        with errors_in_one_line(), _explained_full_disk():
            DfxCLI(args)
    except Stopped as stopped:
        # Other ranks exit with 0: Lightning's launcher kills rank 0 as soon as one of them fails.
        if distributed.is_rank_zero():
            print(stopped, file=sys.stderr)
            sys.exit(128 + stopped.signum)


def _silence_notices() -> None:
    """Leave out what Lightning reports of itself, and warnings about what is right here."""
    for package in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)
    # Printed on demand only.
    logging.getLogger("pytorch_lightning.callbacks.model_summary").setLevel(logging.INFO)
    for message in _NOTICES:
        warnings.filterwarnings("ignore", message)


@contextlib.contextmanager
def _explained_full_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(f"{error}: free disk space, then add --run.resume true; the checkpoints are intact") from error
