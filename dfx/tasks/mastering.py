"""Music mastering (the paper, section 3.3)."""

from __future__ import annotations

from dfx.tasks.task import Task


class Mastering(Task):
    """Makes a mastering chain bring a mix to its released level, balance and density."""
