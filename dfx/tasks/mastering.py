"""Music mastering (the paper, section 3.3)."""

from __future__ import annotations

from typing import Any

from dfx.datasets import Treatment
from dfx.tasks.task import Task


class Mastering(Task):
    """Makes a mastering chain bring a mix to its released level, balance and density.

    The input is brought to -25 LUFS as a whole, so that a mix may come at any level; the target is left as it is.

    Args:
        treatment: this, as the paper has it.
        args, kwargs: as of :class:`~dfx.tasks.task.Task`.
    """

    def __init__(self, *args: Any, treatment: Treatment = Treatment(input_lufs=-25), **kwargs: Any) -> None:
        super().__init__(*args, treatment=treatment, **kwargs)
