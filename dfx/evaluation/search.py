"""The best constant setting of a chain, searched for by CMA-ES (Hansen and Ostermeier 2001)."""

import math
import queue
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import cma
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dfx.effects.chain import ChainSpec
from dfx.effects.effect import RenderError
from dfx.errors import UserError
from dfx.evaluation.options import BaselineOptions
from dfx.losses import Loss, loss_of_recordings

AudioPair = Mapping[str, Any]
"""``input`` and ``target``, each ``(channels, samples)``, ``name`` and, where several pairs share one, ``group``."""


class AudioPairs(Protocol):
    """A list of pairs, or a data set that reads them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> AudioPair: ...


_BATCH = 8
"""Recordings that the loss compares at once: 32 are slower, and with one alone silence outweighs everything."""

_SPREAD = 0.1
"""The standard deviation of the first generation around the start. After 300 settings for the training pairs of
tube_amp, with two seeds, the loss was 0.97 and 0.96; with 0.3 it was 1.38 and 1.09."""

_MAX_WORKERS = 8
"""A generation has 4 + 3 ln(P) settings, about ten."""


class Found(NamedTuple):
    """The best setting of a search: parameters ``(P,)`` in [0, 1], and their loss."""

    parameters: np.ndarray
    loss: float


class Search:
    """Searches the settings of a chain, several of which are rendered in parallel.

    It builds up to eight live chains: create and call it on the main thread.

    Args:
        chain: whose settings to search.
        loss: to minimize: a module ``(output, target) -> scalar``.
        options: budget and seed.
    """

    def __init__(self, chain: ChainSpec, loss: Loss, options: BaselineOptions = BaselineOptions()) -> None:
        self.chain = chain
        self._loss = loss
        self._options = options
        self._workers = min(torch.get_num_threads(), _MAX_WORKERS)
        self._idle: queue.SimpleQueue = queue.SimpleQueue()
        self._idle.put(chain.build())

    def __call__(self, input: Tensor, target: Tensor, start: np.ndarray | None = None) -> Found:
        """Search the best constant setting for recordings of one length; it is never worse than the start.

        The loss is the mean over batches of eight. A setting at which an effect fails counts as the worst.

        Args:
            input, target: ``(batch, channels, samples)``.
            start: ``(P,)`` in [0, 1]; by default the chain's defaults.

        Raises:
            UserError: if every setting fails.
        """
        while self._idle.qsize() < self._workers:
            self._idle.put(self.chain.build())
        start = self.chain.space.defaults if start is None else start
        count = len(start)
        random = np.random.default_rng(self._options.seed)
        options = {"bounds": [0, 1], "maxfevals": self._options.evaluations - 1, "verbose": -9}
        # A separate generator, because cma would seed numpy's global one.
        options |= {"seed": np.nan, "randn": lambda *shape: random.standard_normal(shape)}
        # cma cannot bound a single dimension: a single parameter gets a second one without effect.
        evolution = cma.CMAEvolutionStrategy([*start, 0.5] if count == 1 else start, _SPREAD, options)
        progress = tqdm(total=self._options.evaluations, desc="Searching", unit="setting", leave=False, disable=None)
        with ThreadPoolExecutor(self._workers) as pool, progress:

            def measure_losses(settings: list[np.ndarray]) -> list[float]:
                losses = list(pool.map(lambda setting: self._loss_of(input, target, setting), settings))
                progress.update(len(losses))
                return losses

            best = Found(start, measure_losses([start])[0])
            while not evolution.stop():
                settings = evolution.ask()
                losses = measure_losses([setting[:count] for setting in settings])
                evolution.tell(settings, losses)
                least = int(np.argmin(losses))
                if losses[least] < best.loss:
                    best = Found(settings[least][:count], losses[least])
                progress.set_postfix(loss=f"{best.loss:.4g}")
        if not math.isfinite(best.loss):
            raise UserError("the search found no setting of the chain that can be rendered")
        return best

    def render(self, audio: Tensor, parameters: np.ndarray) -> Tensor:
        """Render a whole recording ``(channels, samples)`` at parameters ``(P,)`` in [0, 1]; latency compensated."""
        chain = self._idle.get()
        try:
            output = chain.render_whole(audio.numpy(), self.chain.space.denormalize(parameters))
        finally:
            self._idle.put(chain)
        return torch.from_numpy(np.ascontiguousarray(output))

    def values_by_name(self, parameters: np.ndarray) -> dict[str, float]:
        """Return the values of parameters ``(P,)`` in [0, 1], in their units."""
        return dict(zip(self.chain.space.names, self.chain.space.denormalize(parameters).tolist()))

    def _loss_of(self, input: Tensor, target: Tensor, parameters: np.ndarray) -> float:
        try:
            output = torch.stack([self.render(audio, parameters) for audio in input])
        except RenderError:
            return math.inf
        batches = zip(output.split(_BATCH), target.split(_BATCH))
        return float(np.mean([loss_of_recordings(self._loss, *batch) for batch in batches]))


def draw_excerpts(pairs: AudioPairs, count: int, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw excerpts at random places, each of another pair as long as there are enough.

    Returns:
        Input and target, each ``(count, channels, samples)``; shorter pairs are padded with silence.
    """
    order = torch.randperm(len(pairs), generator=generator).tolist()
    excerpts = []
    for i in range(count):
        pair = pairs[order[i % len(order)]]
        spare = max(0, pair["input"].shape[-1] - samples)
        start = int(torch.randint(spare + 1, (), generator=generator))
        both = torch.stack([pair[side][:, start : start + samples] for side in ("input", "target")])
        excerpts.append(nn.functional.pad(both, (0, samples - both.shape[-1])))
    input, target = torch.stack(excerpts, dim=1)
    return input, target
