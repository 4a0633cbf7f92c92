"""Checkpoints that survive crashes, and signals that stop a run with a checkpoint."""

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
from dfx.errors import signal_name
from dfx.tasks import CheckpointError, read_checkpoint
from dfx.writing import replacing, sync_to_disk

LAST = "last"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replaces a checkpoint only after the new one has been written to the disk completely.

    A run that is killed, or a full disk, leaves either the old checkpoint or the new one. The checkpoint that
    ``last.ckpt`` replaces is kept as ``last.previous.ckpt``, in case the disk damages the new one.

    Lightning's own atomic save is not enough: it writes to the system's temporary folder, and moving the file from
    there to another file system is a copy that can be interrupted. Nor does it wait until the disk has the data.

    A checkpoint may come from a stranger, or be damaged: loading runs no code from it, verifies checksums, and reads
    local files only.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save a checkpoint; raises :class:`~dfx.tasks.CheckpointError` if it cannot be written."""
        path = Path(path)
        # Not directly to the file: torch turns a full disk into a RuntimeError without its cause.
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, sync=True) as partial:
                partial.write_bytes(content.getbuffer())
                # Before the previous checkpoint is given up: a disk may report only here that it is full.
                sync_to_disk(partial)
                if path.stem == LAST and path.exists():
                    _keep_previous(path)
        except OSError as error:
            intact = "; the previous checkpoint is intact" if path.exists() else ""
            raise CheckpointError(
                f"{path} could not be written ({error.strerror}){intact}: fix the cause, then continue with "
                "--run.resume true"
            ) from error

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        """Load a checkpoint for Lightning; raises :class:`~dfx.tasks.CheckpointError` as :func:`read_checkpoint`."""
        checkpoint = read_checkpoint(str(path))
        lacking = [name for name in _OF_LIGHTNING if name not in checkpoint]
        if lacking:
            raise CheckpointError(f"{path} is not complete: it has no {', '.join(lacking)}")
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint that a callback no longer keeps."""
        # The callback checks that its folder is a parent; but a resumed callback takes the path from the checkpoint.
        if ".." not in Path(path).parts and Path(path).is_file():
            super().remove_checkpoint(path)


_OF_LIGHTNING = (
    *("pytorch-lightning_version", "epoch", "global_step", "loops", "callbacks"),
    *("optimizer_states", "lr_schedulers"),
)
"""Entries that Lightning reads."""


def last_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint in a folder from which a run resumes: the last, or the previous one if that is broken.

    It is None if the run ended before it wrote a checkpoint.

    Raises:
        CheckpointError: if there are checkpoints but none can be read.
    """
    last = folder / f"{LAST}.ckpt"
    errors = []
    for path in filter(Path.exists, (last, _previous(last))):
        try:
            read_checkpoint(str(path))
        except CheckpointError as error:
            errors.append(str(error))
            continue
        if path != last:
            rank_zero_only(print)(f"{last} is missing or broken: the run resumes from the previous checkpoint, {path}")
        return path
    if errors:
        raise CheckpointError("; ".join(errors))
    return None


def _previous(last: Path) -> Path:
    return last.with_suffix(".previous.ckpt")


def _keep_previous(last: Path) -> None:
    previous, link = _previous(last), last.with_suffix(".link")
    try:
        # A hard link, so that last.ckpt exists until the new checkpoint replaces it.
        link.unlink(missing_ok=True)
        os.link(last, link)
        link.replace(previous)
    except OSError:
        # Not every file system has hard links.
        last.replace(previous)


class MidEpochCheckpoint(ModelCheckpoint):
    """Saves checkpoints within an epoch, but not after its last batch.

    From a checkpoint between that batch and the epoch's validation, Lightning would resume with the next epoch. The
    validation, which decides on the best weights and on the end of a stage, would be skipped.
    """

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, *args)


class Stopped(Exception):
    """A run was stopped by the signal ``signum``; the message says where its checkpoint is, and how to resume."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


class StopOnSignal(Checkpoint):
    """Stops a run on a signal, with a checkpoint at ``path``: after the current step, or the current validation.

    The signals are SIGTERM, Ctrl-C (a second one ends the run at once) and, under SLURM, SIGUSR1, which announces the
    end of a job's time (``sbatch --signal=SIGUSR1@90``) and requeues the job. With several processes, a signal to one
    of them stops all. This callback must come after those that write checkpoints.

    Raises:
        Stopped: after everything is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._signum = 0
        self._has_saved = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Replaces Lightning's handlers, which act in the middle of a step; Lightning restores the original ones when
        # training ends. Only the main thread may set handlers.
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT, *_slurm_signals()):
                signal.signal(signum, self._on_signal)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if not trainer.is_last_batch and self._should_stop(trainer):
            trainer.save_checkpoint(self.path)
            self._has_saved = True

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        # Not at the end of the previous step, whose metrics had not been logged yet.
        if self._has_saved:
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._should_stop(trainer):
            self._stop(trainer)

    def _on_signal(self, signum: int, frame: Any) -> None:
        if not self._signum and distributed.is_rank_zero():
            # Not print(): it is not reentrant, and the signal may have interrupted one.
            os.write(2, f"\n{signal_name(signum)}: the run stops after this step, with a checkpoint\n".encode())
        self._signum = self._signum or signum
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _should_stop(self, trainer: Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self._signum != 0, all=False)

    def _stop(self, trainer: Trainer) -> None:
        # A rank that received no signal itself reports SIGTERM, the signal of batch systems.
        signum = self._signum or signal.SIGTERM
        if signum in _slurm_signals() and distributed.is_rank_zero():
            _requeue()
        raise Stopped(
            signum,
            f"{signal_name(signum)}: stopped after step {trainer.global_step}, and wrote {self.path}; "
            f"resume with --run.name {self.path.parent.parent.name} --run.resume true",
        )


def _slurm_signals() -> tuple[signal.Signals, ...]:
    return (signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") and SLURMEnvironment.detect() else ()


def _requeue() -> None:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    subprocess.run(["scontrol", "requeue", job], check=True)
