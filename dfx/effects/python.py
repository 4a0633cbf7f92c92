"""The host of effects written in Python.

``python:package.module.Class`` names a class with

* ``controls``: a sequence of :class:`~dfx.effects.effect.Control`;
* ``__init__(sample_rate, channels)``;
* ``process(audio, **values) -> audio``: render the next block, float32 ``(channels, samples)``;
* ``reset()``: discard all state;
* optionally ``latency_samples``.

Every live effect is an instance, and every block is passed the values of all controls.

The module is imported as by Python, from the repository, ``PYTHONPATH`` or installed packages, but not from the working
directory, which ``python -m`` and an interactive Python search first.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dfx.effects.effect import Control, Effect, EffectError, Recipe


def controls(name: str, sample_rate: int, channels: int) -> dict[str, Control]:
    """Return the controls of the class ``package.module.Class``.

    Raises:
        EffectError: if there is no such class, if its module fails, or if it declares no controls.
    """
    return {control.name: control for control in _load(name).controls}


def build(recipes: Sequence[Recipe], sample_rate: int, channels: int) -> list[tuple[Effect, int]]:
    """Build a live effect for each recipe."""
    return [(PythonEffect(recipe, sample_rate, channels), 1) for recipe in recipes]


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
        loaded = getattr(_import(module), attribute)
    except Exception as error:
        raise EffectError(f"python:{name} cannot be imported: {type(error).__name__}: {error}") from error
    controls = getattr(loaded, "controls", None)
    if not isinstance(controls, Sequence) or not all(isinstance(control, Control) for control in controls):
        raise EffectError(f"python:{name} declares no `controls`, a sequence of dfx.effects.Control")
    return loaded


_REPOSITORY = Path(__file__).parents[2]


def _import(module: str) -> Any:
    chosen = {_REPOSITORY, *map(Path, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))}
    searched, here = sys.path[:], Path.cwd().resolve()
    allowed = here in {path.resolve() for path in chosen}
    sys.path[:] = [entry for entry in searched if allowed or Path(entry).resolve() != here]
    try:
        return importlib.import_module(module)
    finally:
        sys.path[:] = searched
