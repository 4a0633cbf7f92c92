"""What a run shows in Weights & Biases, and on disk."""

from dfx.callbacks.checkpoints import MidEpochCheckpoint, Stopped, StopOnSignal, WholeCheckpoints, last_checkpoint
from dfx.callbacks.run_folder import RunFolder

__all__ = ["MidEpochCheckpoint", "RunFolder", "StopOnSignal", "Stopped", "WholeCheckpoints", "last_checkpoint"]
