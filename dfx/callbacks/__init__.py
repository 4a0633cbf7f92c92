"""Callbacks of a training run: checkpoints, health, excerpts, progress and the files of the run's folder."""

from dfx.callbacks.checkpoints import AtomicCheckpointIO, MidEpochCheckpoint, StopOnSignal, Stopped, last_checkpoint
from dfx.callbacks.excerpts import Excerpts, LoggingOptions
from dfx.callbacks.health import Health
from dfx.callbacks.progress import Progress
from dfx.callbacks.run_folder import RunFolder, versions

__all__ = [
    "AtomicCheckpointIO",
    "Excerpts",
    "Health",
    "LoggingOptions",
    "MidEpochCheckpoint",
    "Progress",
    "RunFolder",
    "StopOnSignal",
    "Stopped",
    "last_checkpoint",
    "versions",
]
