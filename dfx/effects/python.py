"""The host of effects written in Python.

``python:package.module.Class`` names a class with

* ``controls``: a sequence of :class:`~dfx.effects.effect.Control`;
* ``__init__(sample_rate, channels)``;
* ``process(audio, **values) -> audio``: render the next block, float32 ``(channels, samples)``;
* ``reset()``: discard all state;
* optionally ``latency_samples``.

Every live effect is an instance, and every block is passed the values of all controls.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dfx.effects.effect import Control, Effect, EffectError, Recipe


def controls(name: str, sample_rate: int, channels: int) -> dict[str, Control]:
    """Return the controls of the class ``package.module.Class``.

    Raises:
        EffectError: if there is no such class, or if it declares no controls.
    """
    return {control.name: control for control in _load(name).controls}


def build(recipes: Sequence[Recipe], sample_rate: int, channels: int) -> list[tuple[Effect, int]]:
    """Build a live effect for each recipe, with its number of trained parameters."""
    return [(PythonEffect(recipe, sample_rate, channels), len(recipe.parameters)) for recipe in recipes]


class PythonEffect(Effect):
    """One instance of a user's class."""

    def __init__(self, recipe: Recipe, sample_rate: int, channels: int) -> None:
        effect = _load(recipe.effect)
        self._instance = effect(sample_rate, channels)
        self._names = [parameter.name for parameter in recipe.parameters]
        self._values = {control.name: control.default for control in effect.controls} | recipe.fixed
        self.latency_samples = getattr(self._instance, "latency_samples", 0)

    def render(self, audio: np.ndarray, values: np.ndarray) -> np.ndarray:
        trained = dict(zip(self._names, values.tolist()))
        return self._instance.process(audio, **(self._values | trained))

    def restart(self) -> None:
        self._instance.reset()


def _load(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        loaded = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise EffectError(f"python:{name} cannot be imported: {error}") from None
    if not hasattr(loaded, "controls"):
        raise EffectError(f"python:{name} declares no `controls`")
    return loaded
