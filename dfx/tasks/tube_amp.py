"""Tube amplifier emulation (the paper, section 3.1)."""

from __future__ import annotations

from dfx.tasks.task import Task


class TubeAmp(Task):
    """Makes effects sound as a driven tube amplifier does: notes in, the same notes amplified out.

    The audio is taken as it is: levels matter to an amplifier, so nothing is normalized.
    """
