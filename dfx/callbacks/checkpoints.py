"""Checkpoints that are there when they are needed, and a run that writes one before it stops."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.plugins import TorchCheckpointIO
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities import rank_zero_only

from dfx import distributed
from dfx.tasks import CheckpointError, read_checkpoint

LAST = "last"


class WholeCheckpoints(TorchCheckpointIO):
    """Writes every checkpoint beside the one that it replaces, and puts it in its place when it is on the disk.

    A run that is killed, and a disk that is full, leave the old one or the new one. The one that ``last.ckpt``
    replaces is kept as ``last.previous.ckpt``, for disks that break what they had written.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Raises :class:`~dfx.tasks.CheckpointError` if it cannot be written."""
        path = Path(path)
        partial = path.with_suffix(".partial")
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            if path.stem == LAST and path.exists():
                _keep(path)
            partial.replace(path)
            _sync_folder(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            whole = "; the one before is whole" if path.exists() else ""
            raise CheckpointError(
                f"{path} could not be written ({error.strerror}){whole}: mend that, and go on with --run.resume true"
            ) from error


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that a run goes on from: the last, or the one before where the last is broken.

    Args:
        folder: of the run's checkpoints.

    Returns:
        Its path; none for a run that was ended before it wrote one.

    Raises:
        CheckpointError: if none of those that are there can be read.
    """
    last = folder / f"{LAST}.ckpt"
    written = [path for path in (last, _previous(last)) if path.exists()]
    faults = []
    for path in written:
        try:
            read_checkpoint(str(path))
        except CheckpointError as error:
            faults.append(str(error))
        else:
            if path != last and rank_zero_only.rank == 0:
                print(f"{last} is missing or broken: the run goes on from the checkpoint before, {path}")
            return path
    if faults:
        raise CheckpointError("; ".join(faults))
    return None


def _previous(last: Path) -> Path:
    return last.with_suffix(".previous.ckpt")


def _keep(last: Path) -> None:
    previous, link = _previous(last), last.with_suffix(".link")
    try:
        # A second name for it, so that it keeps its own until the new one takes it.
        link.unlink(missing_ok=True)
        os.link(last, link)
        link.replace(previous)
    except OSError:
        # Not every file system has second names.
        last.replace(previous)


def _sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk as well, where folders can be opened."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class MidEpochCheckpoint(ModelCheckpoint):
    """Leaves the last batch of an epoch to the checkpoint at its end.

    From one between that batch and the epoch's validation Lightning resumes with the next epoch: the validation
    would be missing from what decides on the best weights and on the end of a stage.
    """

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, *args)


class Stopped(Exception):
    """A run has been asked to stop, and has written a checkpoint.

    Args:
        signum: of the signal that asked for it.
        message: where the checkpoint is, and how to go on.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


class StopOnSignal(Checkpoint):
    """Ends a run that is asked to, with a checkpoint: after the step that it is in, or after its validation.

    It listens to SIGTERM, to Ctrl-C (a second one ends the run at once) and, under SLURM, to the signal that announces
    the end of a job's time (``sbatch --signal=SIGUSR1@90``): the job is then put in the queue again. With several
    processes, one that is asked is enough. It must come after the callbacks that write checkpoints.

    Args:
        path: of the last checkpoint.

    Raises:
        Stopped: when all is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._signum = 0
        self._has_saved = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Only the main thread may. In place of Lightning's, which do their work in the middle of a step; when
        # training ends it brings back those from before.
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT, *_slurm_signals()):
                signal.signal(signum, self._hear)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if not trainer.is_last_batch and self._is_asked(trainer):
            trainer.save_checkpoint(self.path)
            self._has_saved = True

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        # Not at the end of the step before: its metrics had not been logged.
        if self._has_saved:
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_asked(trainer):
            self._stop(trainer)

    def _hear(self, signum: int, frame: Any) -> None:
        if not self._signum and distributed.is_rank_zero():
            # print() may have been interrupted by the signal, and would not have itself called again.
            os.write(2, f"\n{_name(signum)}: the run stops after this step, with a checkpoint\n".encode())
        self._signum = self._signum or signum
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _is_asked(self, trainer: Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self._signum != 0, all=False)

    def _stop(self, trainer: Trainer) -> None:
        # Of a rank that was not asked itself, it is the one that batch systems send.
        signum = self._signum or signal.SIGTERM
        if signum in _slurm_signals() and distributed.is_rank_zero():
            _requeue()
        raise Stopped(
            signum,
            f"{_name(signum)}: stopped after step {trainer.global_step}, and wrote {self.path}; "
            f"go on with --run.name {self.path.parent.parent.name} --run.resume true",
        )


def _name(signum: int) -> str:
    return "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name


def _slurm_signals() -> tuple:
    return (signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") and SLURMEnvironment.detect() else ()


def _requeue() -> None:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    subprocess.run(["scontrol", "requeue", job], check=True)
