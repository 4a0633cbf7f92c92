"""Baselines: a trained model should beat these, which need little or no training.

- ``input``: no processing
- ``defaults``: the chain at the defaults of its effects
- ``levelled``: the input at the mean loudness of the training targets
- ``fixed``: the chain at the best single setting for the training pairs
- ``per_file``: the chain at the best setting for each file, searched for with its target
- ``per_file_warm``: the same, with a search that starts at and near the mean of the model's automation
- ``refined``: the chain at the model's automation, held over each frame and shifted by the best offsets for each file
- ``per_reference``: the chain at the setting for each file whose output is the least distance from the reference
- ``matched``: the input with the average third-octave spectrum and the loudness of the reference
- ``matchering``: the same by the package matchering, which also limits; see :mod:`dfx.evaluation.matching`
- ``network``: a convolutional network instead of the chain, trained on the training pairs

The best setting has the smallest training loss that CMA-ES finds (see :mod:`dfx.render.search`). ``per_file`` uses
the target, which a model cannot: it is a bound on constant settings rather than a competitor. ``refined`` is what
``python -m dfx.render --refine`` does with a target (see :mod:`dfx.render.refinement`), here with the whole file.
The reference is that of the pair, for tasks that take one. In other tasks the target stands in for it, which a model
cannot use: ``matched`` is then a bound on constant equalizers. :mod:`dfx.render.reference` defines the distance.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dfx.audio.loudness import lufs
from dfx.datasets.excerpts import AudioPair, AudioPairs, draw_excerpts
from dfx.effects import ChainSpec
from dfx.errors import UserError, nearest
from dfx.evaluation.matching import bring_to, match_recording, match_with_matchering, require_matchering
from dfx.evaluation.options import BASELINES, LEARNED, BaselineOptions
from dfx.evaluation.tcn import train_network
from dfx.losses import Loss
from dfx.render.automation import Automation
from dfx.render.reference import distance_from
from dfx.render.refinement import make_search
from dfx.render.search import Search


@dataclass(frozen=True)
class Baseline:
    """Maps inputs to outputs.

    Args:
        render: see :meth:`__call__`.
        settings: values of the chain in their units: ``{parameter: value}``, ``{file: {...}}``, or none.
    """

    render: Callable[[AudioPair, Automation], Tensor]
    settings: dict[str, Any] = field(default_factory=dict)

    def __call__(self, pair: AudioPair, automation: Automation) -> Tensor:
        """Return the output for a pair, aligned with its input.

        Args:
            pair: input, target and name.
            automation: of the model.
        """
        return self.render(pair, automation)


def make_baselines(
    names: Sequence[str],
    chain: ChainSpec,
    loss: Loss,
    training: AudioPairs = (),
    options: BaselineOptions = BaselineOptions(),
) -> dict[str, Baseline]:
    """Build baselines by name; those in :data:`LEARNED` are searched for or trained here.

    Args:
        names: any of :data:`BASELINES`, which also gives the order of the result.
        chain: the model's.
        loss: the model's, on the CPU.
        training: the training pairs, for those in :data:`LEARNED`.
        options: their budget.

    Raises:
        UserError: for an unknown name, or if training pairs or a package are needed and missing.
    """
    for name in names:
        if name not in BASELINES:
            raise UserError(f"there is no baseline '{name}'{nearest(name, BASELINES)}")
        if name in LEARNED and not len(training):
            raise UserError(f"the baseline '{name}' needs training pairs")
        if name == "matchering":
            require_matchering()
    search = Search(chain, loss, options.evaluations, options.seed)
    make: dict[str, Callable[[], Baseline]] = {
        "input": lambda: Baseline(lambda pair, automation: pair["input"]),
        "defaults": lambda: _constant(search, chain.space.defaults),
        "levelled": lambda: _levelled(training, chain.sample_rate),
        "fixed": lambda: _constant(search, _search_fixed(search, training, options)),
        "per_file": lambda: _per_file(search),
        "per_file_warm": lambda: _per_file(make_search(chain, loss, options.evaluations, options.seed), is_warm=True),
        "refined": lambda: _refined(make_search(chain, loss, options.evaluations, options.seed)),
        "per_reference": lambda: _per_reference(search),
        "matched": lambda: _matched(match_recording, chain.sample_rate),
        "matchering": lambda: _matched(match_with_matchering, chain.sample_rate),
        "network": lambda: _network(train_network(training, chain.channels, loss, options)),
    }
    return {name: make[name]() for name in BASELINES if name in names}


def _constant(search: Search, parameters: np.ndarray) -> Baseline:
    """The chain at one setting for all files."""

    def render(pair: AudioPair, automation: Automation) -> Tensor:
        return search.render(pair["input"], parameters)

    return Baseline(render, search.chain.space.values_by_name(parameters))


def _levelled(training: AudioPairs, sample_rate: int) -> Baseline:
    loudness = float(np.mean([lufs(training[index]["target"], sample_rate) for index in range(len(training))]))
    return Baseline(lambda pair, automation: bring_to(loudness, pair["input"], sample_rate))


def _per_file(search: Search, is_warm: bool = False) -> Baseline:
    """The chain at a separate setting for each file."""
    settings: dict[str, Any] = {}

    def render(pair: AudioPair, automation: Automation) -> Tensor:
        start = automation.parameters.mean(axis=0) if is_warm else None
        found = search(pair["input"][None], pair["target"][None], start)
        settings[str(pair["name"])] = search.chain.space.values_by_name(found.parameters)
        return search.render(pair["input"], found.parameters)

    return Baseline(render, settings)


def _per_reference(search: Search) -> Baseline:
    """The chain at a separate setting for each file, which is searched for with its reference."""
    settings: dict[str, Any] = {}

    def render(pair: AudioPair, automation: Automation) -> Tensor:
        found = search.minimize(distance_from(_reference_of(pair), search.chain.sample_rate), pair["input"][None])
        settings[str(pair["name"])] = search.chain.space.values_by_name(found.parameters)
        return search.render(pair["input"], found.parameters)

    return Baseline(render, settings)


def _matched(match: Callable[[Tensor, Tensor, int], Tensor], sample_rate: int) -> Baseline:
    return Baseline(lambda pair, automation: match(pair["input"], _reference_of(pair), sample_rate))


def _reference_of(pair: AudioPair) -> Tensor:
    """Return the reference of a pair; without one, the target."""
    return pair.get("reference", pair["target"])


def _refined(search: Search) -> Baseline:
    """The chain at the model's automation with separate offsets for each file."""

    def render(pair: AudioPair, automation: Automation) -> Tensor:
        mean = automation.parameters.mean(axis=0)
        deviations = automation.parameters - mean
        step = np.diff(automation.times[:2]).sum()  # 0 of a single point, which is constant
        frame_samples = round(step * search.chain.sample_rate)
        found = search(pair["input"][None], pair["target"][None], mean, deviations[None], frame_samples)
        return search.render(pair["input"], np.clip(found.parameters + deviations, 0, 1), frame_samples)

    return Baseline(render)


def _network(network: nn.Module) -> Baseline:
    @torch.no_grad()
    def render(pair: AudioPair, automation: Automation) -> Tensor:
        return network(pair["input"][None])[0]

    return Baseline(render)


def _search_fixed(search: Search, training: AudioPairs, options: BaselineOptions) -> np.ndarray:
    samples = max(1, round(options.excerpt_seconds * search.chain.sample_rate))
    generator = torch.Generator().manual_seed(options.seed)
    return search(*draw_excerpts(training, options.excerpts, samples, generator)).parameters
