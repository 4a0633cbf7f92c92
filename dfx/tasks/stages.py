"""Training in stages, as in the paper: pretraining on the defaults, then one effect more at a time."""

import dataclasses
import functools
from typing import NamedTuple

from dfx.effects import ChainSpec
from dfx.effects.latency import warn_of_latency
from dfx.errors import COUNTS, check_numbers


@dataclasses.dataclass
class StageOptions:
    """The stages in which a task is trained; by default there is one, with the whole chain.

    Every stage has a separate optimizer, schedule and number of epochs, and starts from the weights with the lowest
    validation loss of the stage before.

    Args:
        search_evaluations: settings of the chain that CMA-ES tries before the first stage, to find the best single
            one for the training pairs. The encoder starts there, instead of at the effects' defaults. 0 leaves it out.
        pretraining_epochs: most epochs of a first stage that fits the encoder to the effects' defaults, or to what was
            found, in the mean square, without rendering and without augmentation (the paper's code: 100); 0 leaves it
            out.
        pretraining_learning_rate: of Adam, in that stage.
        pretraining_patience: validations without improvement after which that stage ends.
        progressive: render only the first effect of the chain, and in each stage one more. The encoder predicts the
            parameters of all effects from the start; those of later effects get no gradient.

    Raises:
        UserError: if a number is out of its range.
    """

    search_evaluations: int = 0
    pretraining_epochs: int = 0
    pretraining_learning_rate: float = 1e-3
    pretraining_patience: int = 4
    progressive: bool = False

    def __post_init__(self) -> None:
        check_numbers(
            vars(self),
            search_evaluations="0..1000000",
            pretraining_epochs="0..1000000000",
            pretraining_learning_rate="(0, 1]",
            pretraining_patience=COUNTS,
        )


class Stage(NamedTuple):
    """One stage of training."""

    name: str
    effects: int  # how many of the chain are active
    renders: bool  # false in pretraining


def make_stages(chain: ChainSpec, options: StageOptions) -> list[Stage]:
    """Return the stages in order; an effect without trained parameters joins the stage of the next one with some."""
    recipes = chain.recipes
    ends = [i + 1 for i, recipe in enumerate(recipes) if recipe.parameters]
    lengths = [*ends[:-1], len(recipes)] if options.progressive else [len(recipes)]
    stages = [Stage(f"stage_{i + 1}", length, True) for i, length in enumerate(lengths)]
    if options.pretraining_epochs:
        stages.insert(0, Stage("pretraining", len(recipes), False))
    return stages


@functools.lru_cache(maxsize=32)
def first_effects(chain: ChainSpec, count: int) -> tuple[ChainSpec, int]:
    """Return the first effects of a chain, with the names that they have there, and their latency in samples.

    They are built to read the latency, once for each ``count``; a warning says if it is measured to be another.

    Raises:
        EffectError: if they cannot be built.
    """
    effects = [dataclasses.replace(spec, name=recipe.name) for spec, recipe in zip(chain.effects, chain.recipes)]
    first = ChainSpec(effects[:count], chain.sample_rate, chain.channels)
    live = first.build()
    warn_of_latency(first, live)
    return first, live.latency_samples
