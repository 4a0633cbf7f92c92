"""The best setting of a chain, constant or around an automation, found by CMA-ES (Hansen and Ostermeier 2001)."""

import math
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cma
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dfx.effects.chain import ChainSpec
from dfx.effects.effect import RenderError
from dfx.errors import UserError
from dfx.losses import Loss, loss_against

_BATCH = 8
"""Recordings that the loss compares at once: 32 are slower, and with one alone silence outweighs everything."""

SPREAD = 0.1
"""The standard deviation of the first generation around a start far from the best. After 300 settings for the training
pairs of tube_amp, with two seeds, the loss was 0.97 and 0.96; with 0.3 it was 1.38 and 1.09."""

_LEAST_GAIN = 1e-3
"""A smaller decrease of the loss, relative to it, counts as none."""

_MAX_WORKERS = 8
"""A generation has 4 + 3 ln(P) settings, about ten."""


class Found(NamedTuple):
    """The best setting of a search.

    Args:
        parameters: ``(P,)`` in [0, 1].
        loss: of these, or the measure.
        first_loss: of the start.
        evaluations: the settings that were tried.
    """

    parameters: np.ndarray
    loss: float
    first_loss: float
    evaluations: int


class Search:
    """Searches the settings of a chain, several of which are rendered in parallel.

    It builds up to eight live chains: create and call it on the main thread.

    Args:
        chain: whose settings to search.
        loss: to minimize: a module ``(output, target) -> scalar``.
        evaluations: settings to try, rounded up to a whole generation; fewer if it converges.
        seed: of the search.
        patience: generations without a decrease of the loss by 0.1 % after which it ends; by default any number.
        spread: the standard deviation of the first generation around the start.
        progress: show a bar on stderr; by default if that is a terminal.
    """

    def __init__(
        self,
        chain: ChainSpec,
        loss: Loss,
        evaluations: int = 700,
        seed: int = 0,
        patience: float = math.inf,
        spread: float = SPREAD,
        progress: bool | None = None,
    ) -> None:
        self.chain = chain
        self._loss = loss
        self._evaluations, self._seed, self._patience = evaluations, seed, patience
        self._spread = spread
        self._hides_progress = None if progress is None else not progress
        self._workers = min(torch.get_num_threads(), _MAX_WORKERS)
        self._idle: queue.SimpleQueue = queue.SimpleQueue()
        self._idle.put(chain.build())

    def __call__(
        self,
        input: Tensor,
        target: Tensor,
        start: np.ndarray | None = None,
        deviations: np.ndarray | None = None,
        frame_samples: int = 0,
    ) -> Found:
        """Search the best setting for recordings of one length, by the mean of the loss over batches of eight.

        Args:
            input, target: ``(batch, channels, samples)``.
            start, deviations, frame_samples: as of :meth:`minimize`.

        Raises:
            UserError: if every setting fails.
        """
        losses = [loss_against(self._loss, batch) for batch in target.split(_BATCH)]

        def compare(output: Tensor) -> float:
            return float(np.mean([loss(batch) for loss, batch in zip(losses, output.split(_BATCH))]))

        return self.minimize(compare, input, start, deviations, frame_samples)

    def minimize(
        self,
        measure: Callable[[Tensor], float],
        input: Tensor,
        start: np.ndarray | None = None,
        deviations: np.ndarray | None = None,
        frame_samples: int = 0,
    ) -> Found:
        """Search the setting whose output has the least value of a measure; it is never worse than the start.

        A setting at which an effect fails counts as the worst.

        Args:
            measure: of the output, which has the shape of the input; called in several threads.
            input: ``(batch, channels, samples)``.
            start: ``(P,)`` in [0, 1]; by default the chain's defaults.
            deviations: of an automation from the setting, ``(batch, frames, P)``; parameters are clipped to [0, 1]. By
                default none: the setting is constant.
            frame_samples: length of their frames.

        Raises:
            UserError: if every setting fails.
        """
        while self._idle.qsize() < self._workers:
            self._idle.put(self.chain.build())
        start = self.chain.space.defaults if start is None else start
        if deviations is None:
            deviations = np.zeros((len(input), 1, len(start)))
        count, evolution = len(start), self._evolution(start)
        progress = tqdm(
            total=self._evaluations, desc="Searching", unit="setting", leave=False, disable=self._hides_progress
        )
        with ThreadPoolExecutor(self._workers) as pool, progress:

            def loss_of(setting: np.ndarray) -> float:
                return self._measure(measure, input, np.clip(setting + deviations, 0, 1), frame_samples)

            def measure_losses(settings: list[np.ndarray]) -> list[float]:
                losses = list(pool.map(loss_of, settings))
                progress.update(len(losses))
                return losses

            first = measure_losses([start])[0]
            best, reference, waited = Found(start, first, first, 1), first, 0
            while not evolution.stop() and waited < self._patience:
                settings = evolution.ask()
                losses = measure_losses([setting[:count] for setting in settings])
                evolution.tell(settings, losses)
                least = int(np.argmin(losses))
                best, waited = best._replace(evaluations=best.evaluations + len(losses)), waited + 1
                if losses[least] < best.loss:
                    best = best._replace(parameters=settings[least][:count], loss=losses[least])
                if best.loss < (1 - _LEAST_GAIN) * reference:
                    reference, waited = best.loss, 0
                progress.set_postfix(loss=f"{best.loss:.4g}")
        if not math.isfinite(best.loss):
            raise UserError("the search found no setting of the chain that can be rendered")
        return best

    def render(self, audio: Tensor, parameters: np.ndarray, frame_samples: int = 0) -> Tensor:
        """Render a whole recording ``(channels, samples)`` at parameters in [0, 1]; latency compensated.

        The parameters are ``(P,)`` or ``(frames, P)``, held over frames of ``frame_samples``.
        """
        chain = self._idle.get()
        try:
            output = chain.render_whole(audio.numpy(), self.chain.space.denormalize(parameters), frame_samples)
        finally:
            self._idle.put(chain)
        return torch.from_numpy(np.ascontiguousarray(output))

    def _evolution(self, start: np.ndarray) -> cma.CMAEvolutionStrategy:
        random = np.random.default_rng(self._seed)
        # cma ends after more settings than maxfevals, and does not count the start.
        options = {"bounds": [0, 1], "maxfevals": self._evaluations - 2, "verbose": -9}
        # A separate generator, because cma would seed numpy's global one.
        options |= {"seed": np.nan, "randn": lambda *shape: random.standard_normal(shape)}
        # cma cannot bound a single dimension: a single parameter gets a second one without effect.
        return cma.CMAEvolutionStrategy([*start, 0.5] if len(start) == 1 else start, self._spread, options)

    def _measure(
        self, measure: Callable[[Tensor], float], input: Tensor, parameters: np.ndarray, frame_samples: int
    ) -> float:
        """Return the measure of the output at parameters ``(batch, frames, P)``."""
        try:
            return measure(torch.stack([self.render(*each, frame_samples) for each in zip(input, parameters)]))
        except RenderError:
            return math.inf
