"""The contract between chains, hosts and live effects.

A host is a module with the two functions of :class:`Host`. It describes the controls of its effects, so that a chain
can be resolved and checked before any effect exists, and builds live effects (:class:`Effect`) from recipes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dfx.effects.parameter import Parameter, Scale
from dfx.errors import UserError

NYQUIST_MARGIN = 0.49
"""Largest frequency as a share of the sample rate: first-order filters are unstable above Nyquist."""


class EffectError(UserError):
    """An effect cannot be built from its spec; the message says why and how to fix it."""


class RenderError(UserError):
    """An effect failed while rendering; the message names the effect and its values.

    Args:
        effect: its name, or the names of the effects that share one call; None if the fault is not an effect's.
        values: its trained parameters in their units, by name.
    """

    def __init__(self, message: str, effect: str | None = None, values: dict[str, float] | None = None) -> None:
        super().__init__(message)
        self.effect = effect
        self.values = values or {}

    @classmethod
    def at(cls, recipes: Sequence[Recipe], values: np.ndarray, fault: str) -> RenderError:
        """Return the error for a fault of effects that share one call, at their trained ``values``, shape ``(P,)``."""
        effect = " + ".join(recipe.name for recipe in recipes)
        names = [f"{recipe.name}.{parameter.name}" for recipe in recipes for parameter in recipe.parameters]
        by_name = dict(zip(names, values.tolist()))
        listed = ", ".join(f"{name}={value:.6g}" for name, value in by_name.items())
        return cls(f"{effect}{f' at ({listed})' if listed else ''} {fault}", effect, by_name)


@dataclass(frozen=True)
class Control:
    """The description of one control of one effect by its host.

    Args:
        low, high: the range for training unless the config gives another; ignored if not trainable.
        default: the value of a control that is neither trained nor fixed.
        minimum, maximum: the limits of the effect; a config must stay within them.
        smoothing_ms: time over which the effect itself smooths a new value.
        trainable: false for switches, modes, and controls that cannot change while audio streams.
        choices: the names of the settings of a mode, for controls that are not numbers.
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
    """An :class:`~dfx.effects.chain.EffectSpec` checked against its host: everything that ``Host.build`` needs."""

    host: str
    effect: str
    name: str
    parameters: tuple[Parameter, ...]
    fixed: dict[str, Any]


class Effect(ABC):
    """One live instance of one effect, or of several that their host renders in one call."""

    latency_samples: int = 0
    """Delay of the output relative to the input, in samples."""

    @abstractmethod
    def render(self, audio: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Render the next block of a stream.

        Args:
            audio: float32, shape ``(channels, samples)``, at least one sample.
            values: float64, shape ``(P,)``, the trained parameters in their units.

        Returns:
            float32 of the shape of ``audio``, delayed by ``latency_samples``.
        """

    @abstractmethod
    def restart(self) -> None:
        """Discard all state: the next block is the first of a new stream."""

    def read_values(self) -> np.ndarray | None:
        """Return the trained parameters in their units as the live effect reports them.

        Returns:
            float64, shape ``(P,)``, NaN where a parameter cannot be read back; None if the host cannot read values.
        """
        return None


class Host(Protocol):
    """The functions that the module of a host provides."""

    def controls(self, name: str, sample_rate: int, channels: int) -> dict[str, Control]:
        """Return the controls of an effect by name; raise :class:`EffectError` if it cannot be used."""

    def build(self, recipes: Sequence[Recipe], sample_rate: int, channels: int) -> list[tuple[Effect, int]]:
        """Build live effects, and return each with the number of consecutive recipes that it renders."""
