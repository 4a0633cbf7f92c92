"""What makes black boxes differentiable: directions, estimators, lanes of live effects, the layer."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dfx.blackbox.gradient import GradientOptions
    from dfx.blackbox.lanes import RenderingOptions
    from dfx.blackbox.layer import EffectLayer

_HOMES = {"EffectLayer": "layer", "GradientOptions": "gradient", "RenderingOptions": "lanes"}

__all__ = ["EffectLayer", "GradientOptions", "RenderingOptions"]


def __getattr__(name: str) -> object:
    # On demand: worker processes import this package too, and need no torch, which takes seconds to import.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
