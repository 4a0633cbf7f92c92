"""Training inputs made from finished recordings: each is degraded by a chain of effects with random values."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dfx.datasets.pairs import Pair
from dfx.effects import Chain, ChainSpec, EffectError, EffectSpec
from dfx.errors import DataError, UserError, check_numbers

Change = Callable[[Tensor], Tensor]
"""Maps audio, ``(channels, samples)``, to the same shape."""

_HOSTS = ("pedalboard", "python")
"""Hosts whose effects can be built and rendered in the processes that read ahead."""


@dataclass(frozen=True)
class Degradation:
    """Training pairs without pairs: the target is a finished recording, and the input is the same recording, degraded.

    Values are drawn for each excerpt from the seed, the epoch and its place in the epoch. Validation and test pairs
    stay as they are, except for tasks that take a reference, see :func:`dfx.datasets.halves.halve`.

    Args:
        effects: the chain that degrades, as ``model.effects``, with ``draw`` in place of ``train``. A value is drawn
            from its range, uniformly on its scale. With ``deviation``, it is drawn from a normal distribution around
            its ``default`` with this standard deviation, and clipped to the range.
        share: share of the excerpts of training pairs whose input is made from their target; 1 uses no real input.
        root: a folder of further finished recordings to train on. They have no input, so it is always made.
        style_share: share of the excerpts with a made input whose target is degraded too, before the input is made
            from it, and whose reference, if they have one, is degraded alike: so there are more styles than recordings.

    Raises:
        UserError: if a share is out of its range.
    """

    effects: list[dict[str, Any]]
    share: float = 1.0
    root: str | None = None
    style_share: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(vars(self), share="[0, 1]", style_share="[0, 1]")


class Degrader:
    """Draws the changes that make the inputs of excerpts, with one live chain in each process.

    Args:
        degradation: the effects and the distributions of their values.
        sample_rate, channels: of the audio.
        num_workers: processes that read ahead.

    Raises:
        UserError: if the chain cannot be built or a deviation is no number that is at least 0, or for a plugin with
            ``num_workers``.
    """

    def __init__(self, degradation: Degradation, sample_rate: int, channels: int, num_workers: int = 0) -> None:
        self._share, self._style_share = degradation.share, degradation.style_share
        given = [_without_deviations(effect) for effect in degradation.effects]
        plugins = [spec.effect for spec, _ in given if spec.effect.partition(":")[0] not in _HOSTS]
        if plugins and num_workers:
            fault = f"{plugins[0]} is a plugin, which is loaded and rendered in the main process only"
            raise DataError(f"data.degradation: {fault}: set data.num_workers to 0")
        try:
            self._spec = ChainSpec([spec for spec, _ in given], sample_rate, channels)
        except EffectError as error:
            raise EffectError(f"data.degradation: {error}") from None
        deviations = [
            of_effect.get(parameter.name, np.nan)
            for recipe, (_, of_effect) in zip(self._spec.recipes, given)
            for parameter in recipe.parameters
        ]
        self._deviations = np.array(deviations, dtype=np.float64)

    def draw(self, pair: Pair, seed: int) -> Change | None:
        """Return the change that makes an input from a target, or None for an excerpt that keeps its real input."""
        # Not the generator of the augmentation, which has the same seed.
        random = np.random.default_rng([seed, 1])
        is_real = random.random() >= self._share and pair.input != pair.target
        return None if is_real else functools.partial(self.degrade, values=self.draw_values(random))

    def draw_style(self, seed: int) -> Change | None:
        """Return the change of target and reference, or None for an excerpt that keeps them."""
        random = np.random.default_rng([seed, 3])
        keeps = random.random() >= self._style_share
        return None if keeps else functools.partial(self.degrade, values=self.draw_values(random))

    def draw_values(self, random: np.random.Generator) -> np.ndarray:
        """Draw the values of one change, in their units."""
        space = self._spec.space
        uniform = space.denormalize(random.random(len(space)))
        low, high, mean = np.array([(p.low, p.high, p.default) for p in space.parameters]).T
        normal = np.clip(random.normal(mean, np.nan_to_num(self._deviations)), low, high)
        return np.where(np.isnan(self._deviations), uniform, normal)

    def degrade(self, audio: Tensor, values: np.ndarray) -> Tensor:
        """Map ``(channels, samples)`` to the same shape, without the chain's latency."""
        return torch.from_numpy(self._chain.render_whole(audio.numpy(), values))

    @functools.cached_property
    def _chain(self) -> Chain:
        # Built by the process that renders with it.
        return self._spec.build()


def _without_deviations(effect: Mapping[str, Any]) -> tuple[EffectSpec, dict[str, float]]:
    """Split an effect of a degradation into its spec and the deviations of normally distributed parameters."""
    given = dict(effect)
    if "train" in given:
        raise UserError("data.degradation: its effects draw values and train none: rename `train` to `draw`")
    deviations = {}
    train = given.pop("draw", None)
    if isinstance(train, Mapping):
        given["train"] = dict(train)
        for name, options in train.items():
            if isinstance(options, Mapping) and "deviation" in options:
                deviations[name] = options["deviation"]
                given["train"][name] = {key: value for key, value in options.items() if key != "deviation"}
    else:
        given["train"] = train
    try:
        check_numbers({"deviation": deviations}, deviation="[0, 1000000]")
        return EffectSpec.of(given), deviations
    except UserError as error:
        raise type(error)(f"data.degradation: {error}") from None
