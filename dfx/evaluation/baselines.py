"""What a trained model has to beat.

- ``input``: no processing
- ``defaults``: the chain as its effects come
- ``fixed``: the chain at the one setting that is best for the training pairs
- ``per_file``: the chain at the setting that is best for a file, found on that very file and its target
- ``per_file_warm``: the same, begun where the model's automation lies on average
- ``network``: a convolutional network in place of the chain, trained on the training pairs

A best setting is the one of least training loss that CMA-ES finds (Hansen and Ostermeier 2001), in the
parameters' [0, 1]. ``per_file`` hears the target, which a model does not: it is no rival, it says what the chain
can do while it stands still.
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
from dfx.evaluation.search import BaselineOptions, Pair, Search, draw_excerpts
from dfx.evaluation.tcn import train_network

BASELINES = ("input", "defaults", "fixed", "per_file", "per_file_warm", "network")
LEARNED = ("fixed", "network")
"""Those that need the training pairs."""


class Baseline(ABC):
    """One way to make outputs of inputs."""

    settings: dict[str, Any] = {}
    """Of the chain, in their units: ``{parameter: value}``, or that for each file; empty where no chain is heard."""

    @abstractmethod
    def __call__(self, pair: Pair, automation: np.ndarray) -> Tensor:
        """The output for one pair, aligned with its input.

        Args:
            pair: as it is evaluated.
            automation: ``(frames, P)``, the values that the model has chosen for it.
        """


def make_baselines(
    names: Sequence[str],
    chain: ChainSpec,
    loss: nn.Module,
    training: Sequence[Pair] = (),
    options: BaselineOptions = BaselineOptions(),
) -> dict[str, Baseline]:
    """Baselines by name, searched for and trained as far as that is done before the first file.

    Args:
        names: any of :data:`BASELINES`; they come in the order of that.
        chain: the model's.
        loss: the model's, on the CPU.
        training: the training pairs, for those in :data:`LEARNED`.
        options: what they may cost.

    Raises:
        UserError: for other names, or if there are no training pairs where they are needed.
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
        "fixed": lambda: Constant(search, _fixed(search, training, options)),
        "per_file": lambda: PerFile(search),
        "per_file_warm": lambda: PerFile(search, warm=True),
        "network": lambda: EndToEnd(train_network(training, chain.channels, loss, options)),
    }
    return {name: make[name]() for name in BASELINES if name in names}


class Unprocessed(Baseline):
    """The input as it is."""

    def __call__(self, pair: Pair, automation: np.ndarray) -> Tensor:
        return pair["input"]


class Constant(Baseline):
    """The chain at one setting for all files.

    Args:
        search: renders it.
        parameters: the setting, ``(P,)`` in [0, 1].
    """

    def __init__(self, search: Search, parameters: np.ndarray) -> None:
        self._search = search
        self._parameters = parameters
        self.settings = search.named(parameters)

    def __call__(self, pair: Pair, automation: np.ndarray) -> Tensor:
        return self._search.render(pair["input"], self._parameters)


class PerFile(Baseline):
    """The chain at a setting of each file's own, searched for with the file's target at hand.

    Args:
        search: searches and renders.
        warm: begin at the mean of the model's automation, instead of at the defaults.
    """

    def __init__(self, search: Search, warm: bool = False) -> None:
        self._search = search
        self._warm = warm
        self.settings = {}

    def __call__(self, pair: Pair, automation: np.ndarray) -> Tensor:
        space = self._search.chain.space
        start = space.normalize(automation).mean(axis=0) if self._warm else space.defaults
        found = self._search(pair["input"][None], pair["target"][None], start)
        self.settings[str(pair["name"])] = self._search.named(found.parameters)
        return self._search.render(pair["input"], found.parameters)


class EndToEnd(Baseline):
    """A trained network."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    @torch.no_grad()
    def __call__(self, pair: Pair, automation: np.ndarray) -> Tensor:
        return self._network(pair["input"][None])[0]


def _fixed(search: Search, training: Sequence[Pair], options: BaselineOptions) -> np.ndarray:
    samples = max(1, round(options.excerpt_seconds * search.chain.sample_rate))
    generator = torch.Generator().manual_seed(options.seed)
    return search(*draw_excerpts(training, options.excerpts, samples, generator)).parameters
