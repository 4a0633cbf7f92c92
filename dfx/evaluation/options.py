"""Names and budget of the baselines, which the command line describes without importing torch."""

from dataclasses import dataclass

from dfx.errors import COUNTS, SEEDS, check_numbers

BASELINES = (
    *("input", "defaults", "levelled", "fixed", "per_file", "per_file_warm", "refined"),
    *("per_reference", "matched", "matchering", "network"),
)
ALL = tuple(name for name in BASELINES if name != "matchering")
"""The baselines that need no other package."""
LEARNED = ("levelled", "fixed", "network")
"""The baselines that need training pairs."""


@dataclass(frozen=True)
class BaselineOptions:
    """The budget of the baselines.

    Args:
        evaluations: settings that a search tries, rounded up to a whole generation; fewer if it converges.
        excerpts: of training pairs, on which ``fixed`` tries every setting.
        excerpt_seconds: their length.
        network_steps: training steps of ``network``, of four excerpts of 16 384 samples each.
        seed: of excerpts, searches and the network.

    Raises:
        UserError: if a number is out of its range.
    """

    evaluations: int = 700
    excerpts: int = 32
    excerpt_seconds: float = 2.0
    network_steps: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(
            vars(self),
            evaluations=COUNTS,
            excerpts=COUNTS,
            excerpt_seconds="(0, 3600]",
            network_steps=COUNTS,
        )
        check_numbers(vars(self), seed=SEEDS)
