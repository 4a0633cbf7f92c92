"""What a run shows in Weights & Biases, and on disk."""

from dfx.callbacks.checkpoints import MidEpochCheckpoint, StopOnSignal, Stopped, WholeCheckpoints, last_checkpoint
from dfx.callbacks.excerpts import Excerpts, LoggingOptions
from dfx.callbacks.health import Health
from dfx.callbacks.progress import Progress
from dfx.callbacks.run_folder import RunFolder, versions
from dfx.loggers.history import History, best_row, read_history
from dfx.loggers.wandb import WandbRun

__all__ = [
    "Excerpts", "Health", "History", "LoggingOptions", "MidEpochCheckpoint", "Progress", "RunFolder", "Stopped",
    "StopOnSignal", "WandbRun", "WholeCheckpoints", "best_row", "last_checkpoint", "read_history", "versions",
]  # fmt: skip
