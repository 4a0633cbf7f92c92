"""dfx trains neural networks to operate real audio effects."""

import os

# Before torch is imported: its threads would otherwise spin for a while after each operation, on the cores
# that effects are to render on. On two cores, that is most of the time of a step.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def load(checkpoint):
    """The trained model of a checkpoint: see :class:`dfx.render.Model`."""
    from dfx.render import load

    return load(checkpoint)
