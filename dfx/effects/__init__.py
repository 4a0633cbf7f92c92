"""The black boxes: audio effects as specs and as live instances."""

from dfx.effects.chain import Chain, ChainSpec, EffectSpec, Trained, is_foreign, load_chain
from dfx.effects.effect import Control, Effect, EffectError, RenderError
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
    "is_foreign",
    "load_chain",
]
