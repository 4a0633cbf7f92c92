"""Effects as recipes and as live instances.

An :class:`EffectSpec` is plain data, as it stands in a config. A :class:`ChainSpec` resolves a list of
them against what the hosts say of their effects, and so knows every trained parameter without
having rendered a sample. ``ChainSpec.build`` makes a live :class:`Chain`.

A host is a module with two functions::

    controls(name, sample_rate, channels) -> dict[str, Control]
    build(recipes, sample_rate, channels) -> list[(Effect, how many of the parameters it takes)]

``build`` gets consecutive effects of one chain, so that a host may render several in one call.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dfx.effects.parameter import Parameter, Scale
from dfx.errors import UserError

NYQUIST_MARGIN = 0.49
"""Frequencies stay below this share of the sample rate: first-order filters explode above Nyquist."""


class EffectError(UserError):
    """A recipe that no effect can be built from; the message names what is wrong and the way out."""


class RenderError(UserError):
    """An effect that failed while rendering; the message names the effect and its values.

    Args:
        effect: its name, or the names of those that share a call; none where no effect is to blame.
        values: of its trained parameters, in their units, by name.
    """

    def __init__(self, message: str, effect: str | None = None, values: dict[str, float] | None = None) -> None:
        super().__init__(message)
        self.effect = effect
        self.values = values or {}

    @classmethod
    def at(cls, parameters: Sequence[Parameter], values: np.ndarray, fault: str) -> RenderError:
        """The fault of the effects that share a call, with their values, shape ``(P,)``."""
        names = dict.fromkeys(parameter.name.split(".")[0] for parameter in parameters)
        effect = " + ".join(names) or "an effect without parameters"
        named = {parameter.name: float(value) for parameter, value in zip(parameters, values)}
        told = ", ".join(f"{name}={value:.6g}" for name, value in named.items())
        return cls(f"{effect} at ({told}) {fault}", effect, named)


@dataclass(frozen=True)
class Control:
    """What a host says of one control of one effect.

    Args:
        low, high: the range that training uses unless the config says otherwise; ignored for
            controls that are not trainable.
        default: what the control is set to when it is neither trained nor fixed.
        minimum, maximum: what the effect accepts; a config must stay inside.
        smoothing_ms: how long the effect itself glides to a new value.
        trainable: false for switches, modes, and what cannot change while audio streams.
        choices: the names that a mode can take, for controls that are not numbers.
    """

    name: str
    default: Any
    low: float = 0.0
    high: float = 1.0
    unit: str = ""
    scale: Scale = "linear"
    minimum: float = -math.inf
    maximum: float = math.inf
    smoothing_ms: float = 0.0
    trainable: bool = True
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """An :class:`EffectSpec` checked against its host: all that ``host.build`` needs."""

    host: str
    effect: str
    name: str
    parameters: tuple[Parameter, ...]
    fixed: dict[str, Any]


class Effect(ABC):
    """One live instance of one effect (or of several that their host renders in one call)."""

    latency_samples: int = 0
    """How much later than its input the output comes, in samples."""

    @abstractmethod
    def render(self, audio: np.ndarray, values: np.ndarray) -> np.ndarray:
        """The next block of a stream.

        Args:
            audio: float32, shape ``(channels, samples)``, at least one sample.
            values: float64, shape ``(P,)``, the trained parameters in their units.

        Returns:
            float32 of the shape of ``audio``, delayed by ``latency_samples``.
        """

    @abstractmethod
    def restart(self) -> None:
        """Forgets everything heard: the next block is the first of a new stream."""
