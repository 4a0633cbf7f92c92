"""Music mastering, one of the tasks of the paper."""

from typing import Any

from dfx.datasets import Treatment
from dfx.tasks.task import Task


class Mastering(Task):
    """Makes a mastering chain bring a mix to the level, balance and density of its release.

    The whole input is normalized to -25 LUFS, so that a mix may have any level; the target is unchanged.

    Args:
        effects: the chain, in signal order: for each effect a mapping of ``effect`` and, as needed, ``train``,
            ``fixed``, ``name`` and ``scale``.
        treatment: preprocessing of all audio; by default the input is brought to -25 LUFS.
        kwargs: as of :class:`~dfx.tasks.task.Task`.
    """

    def __init__(
        self, effects: list[dict[str, Any]], treatment: Treatment = Treatment(input_lufs=-25), **kwargs: Any
    ) -> None:
        super().__init__(effects, treatment=treatment, **kwargs)
