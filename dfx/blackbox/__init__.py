"""Gradients for black-box effects: directions, estimators, lanes of live effects, and the layer."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dfx.blackbox.gradient import GradientOptions
    from dfx.blackbox.lanes import RenderingOptions
    from dfx.blackbox.layer import EffectLayer

_MODULES = {"EffectLayer": "layer", "GradientOptions": "gradient", "RenderingOptions": "lanes"}

__all__ = ["EffectLayer", "GradientOptions", "RenderingOptions"]


def __getattr__(name: str) -> object:
    # Imported on demand: worker processes import this package, and importing torch takes seconds.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
