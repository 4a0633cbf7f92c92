"""What makes black boxes differentiable: directions, estimators, lanes of live effects, the layer."""

from importlib import import_module

_HOMES = {"EffectLayer": "layer", "GradientOptions": "gradient", "RenderingOptions": "lanes"}

__all__ = ["EffectLayer", "GradientOptions", "RenderingOptions"]


def __getattr__(name: str) -> object:
    # On demand: worker processes import this package too, and need no torch, which takes seconds.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
