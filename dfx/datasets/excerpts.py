"""Pairs of recordings, and excerpts of them."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

AudioPair = Mapping[str, Any]
"""``input`` and ``target``, each ``(channels, samples)``, ``name`` and, where several pairs share one, ``group``."""


class AudioPairs(Protocol):
    """A list of pairs, or a data set that reads them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> AudioPair: ...


def draw_excerpts(pairs: AudioPairs, count: int, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw excerpts at random places, each of another pair as long as there are enough.

    Returns:
        Input and target, each ``(count, channels, samples)``; shorter pairs are padded with silence.
    """
    order = torch.randperm(len(pairs), generator=generator).tolist()
    excerpts = []
    for i in range(count):
        pair = pairs[order[i % len(order)]]
        spare = max(0, pair["input"].shape[-1] - samples)
        start = int(torch.randint(spare + 1, (), generator=generator))
        both = torch.stack([pair[side][:, start : start + samples] for side in ("input", "target")])
        excerpts.append(nn.functional.pad(both, (0, samples - both.shape[-1])))
    input, target = torch.stack(excerpts, dim=1)
    return input, target
