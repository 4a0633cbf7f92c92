"""What a run shows in Weights & Biases, and on disk."""

from dfx.callbacks.history import History
from dfx.callbacks.run_folder import RunFolder

__all__ = ["History", "RunFolder"]
