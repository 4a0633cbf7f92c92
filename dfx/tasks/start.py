"""Where training starts: the best single setting of the chain for the training pairs."""

import copy
import math
from typing import TypedDict

import torch

from dfx.datasets.excerpts import draw_excerpts
from dfx.datasets.treatment import TreatedPairs
from dfx.effects import ChainSpec
from dfx.losses import Loss

_MOST_EXCERPTS, _EXCERPT_SECONDS = 32, 2.0

_SEARCHES = 2
"""CMA-ES ends in different minima with different random numbers. The setting with the lower training loss is mostly the
better one on test pairs, too."""


class Start(TypedDict):
    """A setting, and how it was found, as plain data for checkpoints and ``start.json``."""

    parameters: list[float]  # in [0, 1]
    values: dict[str, float]  # in their units
    loss: float
    loss_of_defaults: float
    evaluations: int  # settings that were tried
    share: float | None  # of the way to the wanted spectrum, see dfx.tasks.balance; None for a single setting


def search_start(
    chain: ChainSpec, loss: Loss, pairs: TreatedPairs, evaluations: int, seed: int, progress: bool | None = None
) -> Start:
    """Search the setting with the least loss on the training pairs by CMA-ES. Call it on the main thread.

    Two searches with different random numbers share the evaluations, and the better result is kept. The loss is that of
    excerpts of at most 2 s, of all of the audio or, if that is more than a minute, of 32 excerpts.

    Args:
        chain: whose setting to search, from its defaults on.
        loss: to minimize.
        pairs: for training.
        evaluations: settings to try, half in each search, rounded up to a whole generation; fewer if it converges.
        seed: of excerpts and searches.
        progress: show a bar on stderr; by default if that is a terminal.

    Raises:
        UserError: if no setting can be rendered.
    """
    # Imported here, because cma takes long and most tasks search nothing.
    from dfx.render.search import Search

    lengths = [pair.input.samples_at(chain.sample_rate) for pair in pairs.pairs]
    samples = min(round(_EXCERPT_SECONDS * chain.sample_rate), max(lengths))
    count = min(_MOST_EXCERPTS, sum(math.ceil(length / samples) for length in lengths))
    excerpts = draw_excerpts(pairs, count, samples, torch.Generator().manual_seed(seed))
    loss, each = copy.deepcopy(loss).cpu(), math.ceil(evaluations / _SEARCHES)
    # No two seeds share a search.
    seeds = range(_SEARCHES * seed, _SEARCHES * (seed + 1))
    results = [Search(chain, loss, each, number, progress=progress)(*excerpts) for number in seeds]
    best = min(results, key=lambda found: found.loss)
    return Start(
        parameters=best.parameters.tolist(),
        values=chain.space.values_by_name(best.parameters),
        loss=best.loss,
        loss_of_defaults=best.first_loss,
        evaluations=sum(found.evaluations for found in results),
        share=None,
    )


def describe_start(start: Start, takes_reference: bool = False) -> str:
    """Return in words how good the start is, of a task that takes a reference or not."""
    if start["share"] is not None:
        losses = f"loss {start['loss']:.4g}, without it {start['loss_of_defaults']:.4g}"
        wanted = "spectrum of the reference" if takes_reference else "mean spectrum of the targets"
        return f"{start['share']:.0%} of the way to the {wanted} ({losses})"
    losses = f"loss {start['loss']:.4g}, at the defaults {start['loss_of_defaults']:.4g}"
    return f"the best of {start['evaluations']} settings ({losses})"
