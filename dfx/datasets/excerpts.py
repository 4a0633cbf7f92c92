"""Pairs of recordings, and excerpts of them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

AudioPair = Mapping[str, Any]
"""``input`` and ``target``, each ``(channels, samples)``, ``name`` and, where several pairs share one, ``group``."""


class AudioPairs(Protocol):
    """A list of pairs, or a data set that reads them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> AudioPair: ...


def draw_excerpts(
    pairs: AudioPairs,
    count: int,
    samples: int,
    generator: torch.Generator,
    sides: Sequence[str] = ("input", "target"),
) -> Tensor:
    """Draw excerpts at random places, each of another pair as long as there are enough.

    Returns:
        The excerpts of each side, ``(sides, count, channels, samples)``; shorter pairs are padded with silence.
    """
    order = torch.randperm(len(pairs), generator=generator).tolist()
    excerpts = []
    for i in range(count):
        pair = pairs[order[i % len(order)]]
        spare = max(0, pair["input"].shape[-1] - samples)
        start = int(torch.randint(spare + 1, (), generator=generator))
        cut = torch.stack([pair[side][:, start : start + samples] for side in sides])
        excerpts.append(nn.functional.pad(cut, (0, samples - cut.shape[-1])))
    return torch.stack(excerpts, dim=1)
