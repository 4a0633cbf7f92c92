"""What makes black boxes differentiable: directions, estimators, lanes of live effects, the layer."""

from dfx.blackbox.gradient import GradientOptions
from dfx.blackbox.lanes import RenderingOptions
from dfx.blackbox.layer import EffectLayer

__all__ = ["EffectLayer", "GradientOptions", "RenderingOptions"]
