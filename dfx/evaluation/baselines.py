"""Baselines: a trained model should beat these, which need little or no training.

- ``input``: no processing
- ``defaults``: the chain at the defaults of its effects
- ``fixed``: the chain at the best single setting for the training pairs
- ``per_file``: the chain at the best setting for each file, searched for with its target
- ``per_file_warm``: the same, with a search that starts at the mean of the model's automation
- ``network``: a convolutional network instead of the chain, trained on the training pairs

The best setting has the smallest training loss that CMA-ES finds (see :mod:`dfx.evaluation.search`). ``per_file`` uses
the target, which a model cannot: it is a bound on constant settings rather than a competitor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dfx.effects import ChainSpec
from dfx.errors import UserError, nearest
from dfx.evaluation.search import AudioPair, AudioPairs, BaselineOptions, Search, draw_excerpts
from dfx.evaluation.tcn import train_network
from dfx.losses import Loss

BASELINES = ("input", "defaults", "fixed", "per_file", "per_file_warm", "network")
LEARNED = ("fixed", "network")
"""The baselines that need training pairs."""


class Baseline(ABC):
    """Maps inputs to outputs."""

    settings: dict[str, Any] = {}
    """Values of the chain in their units, ``{parameter: value}`` or ``{file: {...}}``; empty without a chain."""

    @abstractmethod
    def __call__(self, pair: AudioPair, automation: np.ndarray) -> Tensor:
        """Return the output for a pair, aligned with its input.

        Args:
            pair: input, target and name.
            automation: the values of the model's parameters in their units, ``(points, P)``.
        """


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
        UserError: for an unknown name, or if training pairs are needed and missing.
    """
    for name in names:
        if name not in BASELINES:
            raise UserError(f"there is no baseline '{name}'{nearest(name, BASELINES)}")
        if name in LEARNED and not len(training):
            raise UserError(f"the baseline '{name}' needs training pairs")
    search = Search(chain, loss, options)
    make: dict[str, Callable[[], Baseline]] = {
        "input": Unprocessed,
        "defaults": lambda: Constant(search, chain.space.defaults),
        "fixed": lambda: Constant(search, _search_fixed(search, training, options)),
        "per_file": lambda: PerFile(search),
        "per_file_warm": lambda: PerFile(search, warm=True),
        "network": lambda: EndToEnd(train_network(training, chain.channels, loss, options)),
    }
    return {name: make[name]() for name in BASELINES if name in names}


class Unprocessed(Baseline):
    """The unprocessed input."""

    def __call__(self, pair: AudioPair, automation: np.ndarray) -> Tensor:
        return pair["input"]


class Constant(Baseline):
    """The chain at one setting for all files.

    Args:
        search: renders the chain.
        parameters: the setting, ``(P,)`` in [0, 1].
    """

    def __init__(self, search: Search, parameters: np.ndarray) -> None:
        self._search = search
        self._parameters = parameters
        self.settings = search.values_by_name(parameters)

    def __call__(self, pair: AudioPair, automation: np.ndarray) -> Tensor:
        return self._search.render(pair["input"], self._parameters)


class PerFile(Baseline):
    """The chain at a separate setting for each file, searched for with the file's target.

    Args:
        search: searches and renders.
        warm: start at the mean of the model's automation instead of the defaults.
    """

    def __init__(self, search: Search, warm: bool = False) -> None:
        self._search = search
        self._warm = warm
        self.settings = {}

    def __call__(self, pair: AudioPair, automation: np.ndarray) -> Tensor:
        space = self._search.chain.space
        start = space.normalize(automation).mean(axis=0) if self._warm else space.defaults
        found = self._search(pair["input"][None], pair["target"][None], start)
        self.settings[str(pair["name"])] = self._search.values_by_name(found.parameters)
        return self._search.render(pair["input"], found.parameters)


class EndToEnd(Baseline):
    """A trained network."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    @torch.no_grad()
    def __call__(self, pair: AudioPair, automation: np.ndarray) -> Tensor:
        return self._network(pair["input"][None])[0]


def _search_fixed(search: Search, training: AudioPairs, options: BaselineOptions) -> np.ndarray:
    samples = max(1, round(options.excerpt_seconds * search.chain.sample_rate))
    generator = torch.Generator().manual_seed(options.seed)
    return search(*draw_excerpts(training, options.excerpts, samples, generator)).parameters
