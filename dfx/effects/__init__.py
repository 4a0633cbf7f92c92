"""The black boxes: audio effects as recipes and as live instances."""

from dfx.effects.effect import Chain, ChainSpec, Control, Effect, EffectError, EffectSpec, RenderError, Trained
from dfx.effects.parameter import Parameter, ParameterSpace

__all__ = [
    "Chain",
    "ChainSpec",
    "Control",
    "Effect",
    "EffectError",
    "EffectSpec",
    "Parameter",
    "ParameterSpace",
    "RenderError",
    "Trained",
]
