"""dfx trains neural networks to operate real audio effects."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dfx.render.model import Model

# Before torch is imported: its threads would otherwise spin for a while after each operation, on the cores
# that effects are to render on. On two cores, that is most of the time of a step.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def load(checkpoint: str, trust: bool = False, device: str = "auto") -> Model:
    """Load a trained model.

    Args:
        checkpoint: the path of a checkpoint that ``train.py`` wrote, or the name of a model that ships: ``mastering``,
            ``nonspeech``, ``style`` or ``tube_amp``. A file of such a name comes first.
        trust: run the code of effects that are Python classes, or plugins given by path.
        device: of the encoder: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``, a GPU if there is one.

    Raises:
        UserError: if there is neither a file nor a model of this name, if the checkpoint cannot be used
            (:class:`dfx.tasks.CheckpointError`), or if there is no such device.
    """
    # Imported here because most of dfx runs without torch.
    from dfx.render.model import Model
    from dfx.render.pretrained import find_checkpoint
    from dfx.tasks import load_task
    from dfx.tasks.loading import find_device

    place = find_device(device)
    return Model(load_task(find_checkpoint(str(checkpoint)), trust).to(place))
