"""Tube amplifier emulation, one of the tasks of the paper."""

from typing import Any

from dfx.tasks.task import Task


class TubeAmp(Task):
    """Makes effects sound like an overdriven tube amplifier: inputs are notes, targets the same notes amplified.

    The audio is not normalized: the distortion of an amplifier depends on the level.

    Args:
        effects: the chain, in signal order: for each effect a mapping of ``effect`` and, as needed, ``train``,
            ``fixed``, ``name`` and ``scale``.
        kwargs: as of :class:`~dfx.tasks.task.Task`.
    """

    # Its signature lets the command line find the descriptions of the other options.
    def __init__(self, effects: list[dict[str, Any]], **kwargs: Any) -> None:
        super().__init__(effects, **kwargs)
