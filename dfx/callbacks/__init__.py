"""What a run shows in Weights & Biases, and on disk."""

from dfx.callbacks.run_folder import RunFolder

__all__ = ["RunFolder"]
