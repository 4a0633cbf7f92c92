"""dfx trains neural networks to operate real audio effects."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dfx.render.model import Model

# Before torch is imported: its threads would otherwise spin for a while after each operation, on the cores
# that effects are to render on. On two cores, that is most of the time of a step.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def load(checkpoint: str, trust: bool = False) -> Model:
    """Load the trained model of a checkpoint that ``train.py`` wrote.

    Args:
        checkpoint: its path.
        trust: run the code of effects that are Python classes, or plugins given by path.

    Raises:
        dfx.tasks.CheckpointError: if the checkpoint cannot be used.
    """
    # Imported here because most of dfx runs without torch.
    from dfx.render.model import Model
    from dfx.tasks import load_task

    return Model(load_task(str(checkpoint), trust))
