"""Tube amplifier emulation (the paper, section 3.1)."""

from dfx.tasks.task import Task


class TubeAmp(Task):
    """Makes effects sound like an overdriven tube amplifier: inputs are notes, targets the same notes amplified.

    The audio is not normalized: the distortion of an amplifier depends on the level.
    """
