"""Benchmark of fidelity: estimated gradients against exact ones, and their cost in renderings."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dfx.benchmark import SAMPLE_RATE
from dfx.benchmark.chains import BenchmarkChain, notes
from dfx.blackbox import EffectLayer, GradientOptions
from dfx.encoder import Encoder, EncoderOptions
from dfx.losses import LossOptions, make_loss

ESTIMATORS: dict[str, GradientOptions] = {
    "shared": GradientOptions(directions="shared", sides=2, redraw="frame"),
    "rademacher": GradientOptions(directions="rademacher", sides=2, redraw="frame"),
    "rademacher, one-sided": GradientOptions(directions="rademacher"),
    "hadamard": GradientOptions(sides=2),
    "hadamard, one-sided": GradientOptions(),
    "hadamard, one-sided, 2 draws": GradientOptions(draws=2),
    "hadamard, one-sided, regression": GradientOptions(control_variate="regression"),
    "hadamard, one-sided, regression, biased": GradientOptions(control_variate="regression", residual_weight=0.1),
    "hadamard, one-sided, regression, 2 draws": GradientOptions(draws=2, control_variate="regression"),
    "hadamard, one-sided, regression, 2 draws, least norm": GradientOptions(
        draws=2, control_variate="regression", residual="least_norm"
    ),
    "finite differences, one-sided": GradientOptions("finite_difference"),
}
EXACT = GradientOptions("finite_difference", sides=2, epsilon=1e-3)

Gradients = tuple[Tensor, Tensor]
"""Gradients of the parameters and of the encoder's weights, flat."""


class _Setup:
    """A chain, an encoder, and batches of notes to compute gradients on."""

    def __init__(self, chain: BenchmarkChain, batch: int, batches: int, samples: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.spec, self.batch, self._batches, self._seed = chain.spec, batch, batches, seed
        self.input, self.target = notes(max(batch, 111), samples)
        self._loss = make_loss(LossOptions())
        defaults, options = chain.spec.space.defaults.tolist(), EncoderOptions(width=0.35)
        self.encoder = Encoder(defaults, SAMPLE_RATE, options, samples, samples)

    def train(self, steps: int) -> None:
        """Train the encoder."""
        layer = EffectLayer(self.spec, GradientOptions(seed=self._seed))
        optimizer = torch.optim.Adam(self.encoder.parameters(), lr=1e-3)
        for chosen in tqdm(list(self._choose(steps)), desc="Training", leave=False):
            optimizer.zero_grad()
            self._loss_of(self.encoder(self.input[chosen]), layer, chosen).backward()
            optimizer.step()

    def gradients(self, options: GradientOptions) -> list[Gradients]:
        """Return the gradients of every batch, after some steps that train a control variate."""
        layer = EffectLayer(self.spec, options)
        warmup = 0 if options.control_variate == "none" else round(2 / (1 - options.forgetting_factor))
        for chosen in self._choose(warmup, seed=1):
            self._gradients(layer, chosen)
        return [self._gradients(layer, chosen) for chosen in self._choose(self._batches)]

    def _gradients(self, layer: EffectLayer, chosen: Tensor) -> Gradients:
        parameters = self.encoder(self.input[chosen])
        loss = self._loss_of(parameters, layer, chosen)
        grad, *weights = torch.autograd.grad(loss, [parameters, *self.encoder.parameters()])
        return grad.flatten(), torch.cat([weight.flatten() for weight in weights])

    def _choose(self, batches: int, seed: int = 0) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(batches):
            yield torch.randperm(len(self.input), generator=generator)[: self.batch]

    def _loss_of(self, parameters: Tensor, layer: EffectLayer, chosen: Tensor) -> Tensor:
        output = layer(self.input[chosen], parameters, torch.ones(len(chosen), dtype=torch.bool))
        return self._loss(output, self.target[chosen])


def fidelity(
    chains: Sequence[BenchmarkChain],
    batch_sizes: Sequence[int],
    batches: int,
    seconds: float,
    late_steps: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Compare every estimator with exact gradients (central differences) on the same batches.

    Args:
        chains: to differentiate through.
        batch_sizes: numbers of examples in a batch, each a different note.
        batches: number of batches that the figures average over.
        seconds: of every note that are rendered.
        late_steps: training steps before the rows "late"; 0 leaves them out.
        seed: of the encoder.

    Yields:
        A row for each chain, batch size, time and estimator, of the parameters and of the encoder's weights:
        ``cosine_*`` between the estimated and the exact gradient, and ``error_*``, the norm of their difference
        relative to that of the exact one.
    """
    for chain, batch in itertools.product(chains, batch_sizes):
        count, host = len(chain.spec.parameters), chain.spec.recipes[0].host
        setup = _Setup(chain, batch, batches, int(seconds * SAMPLE_RATE), seed)
        for when in ("start", "late") if late_steps else ("start",):
            if when == "late":
                setup.train(late_steps)
            exact = setup.gradients(EXACT)
            row = {"chain": chain.name, "host": host, "batch": batch, "parameters": count, "when": when}
            for name, options in tqdm(ESTIMATORS.items(), desc=f"{chain.name}, batch {batch}, {when}", leave=False):
                compared = [_compare(*pair) for pair in zip(setup.gradients(options), exact)]
                means = {key: sum(c[key] for c in compared) / len(compared) for key in compared[0]}
                yield {**row, "name": name, **asdict(options), "renderings": options.renderings(count), **means}


def _compare(estimated: Gradients, exact: Gradients) -> dict[str, float]:
    result = {}
    for name, ours, true in zip(("parameters", "encoder"), estimated, exact):
        result[f"cosine_{name}"] = float(torch.nn.functional.cosine_similarity(ours, true, dim=0))
        result[f"error_{name}"] = float((ours - true).norm() / true.norm())
    return result
