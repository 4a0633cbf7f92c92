"""Chains and audio of the benchmarks."""

import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dfx.benchmark import SAMPLE_RATE
from dfx.datasets.pairs import find_pairs
from dfx.effects import ChainSpec, EffectError, EffectSpec
from dfx.effects.chain import load_chain

_ROOT = Path(__file__).parents[2]
_CONFIGS = _ROOT / "configs"

_GATE = [EffectSpec("pedalboard:MultibandGate")]
_MASTERING = [
    EffectSpec(
        "pedalboard:MultibandCompressor",
        fixed={f"band_{band}_{time}_ms": ms for band in range(1, 5) for time, ms in (("attack", 10), ("release", 100))},
    ),
    EffectSpec("pedalboard:GraphicEqualizer"),
    EffectSpec("pedalboard:BrickwallLimiter", train={"ceiling_db": None}),
]


class BenchmarkChain(NamedTuple):
    """A chain and its name."""

    name: str
    spec: ChainSpec


def chains() -> list[BenchmarkChain]:
    """Return the chains of the three tasks on pedalboard and, where they are installed, on plugins."""
    found = [
        BenchmarkChain("tube_amp", load_chain(str(_CONFIGS / "tube_amp.yaml"), SAMPLE_RATE)),
        BenchmarkChain("nonspeech", ChainSpec(_GATE, SAMPLE_RATE)),
        BenchmarkChain("mastering", ChainSpec(_MASTERING, SAMPLE_RATE)),
    ]
    for config in [path for folder in ("paper", "vst3") for path in sorted((_CONFIGS / folder).glob("*.yaml"))]:
        if "effects:" not in config.read_text(encoding="utf-8"):  # an overlay
            continue
        name = f"{config.parent.name}/{config.stem}"
        try:
            found.append(BenchmarkChain(name, load_chain(str(config), SAMPLE_RATE)))
        except EffectError as error:
            print(f"left out {name}: {error}", file=sys.stderr)
    return found


def notes(count: int, samples: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of the shipped notes, ``(count, 1, samples)`` each; more than there are repeat."""
    pairs = find_pairs(str(_ROOT / "data" / "tube_amp"))["train"]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = [pairs[order[i % len(order)]] for i in range(count)]
    sides = ([getattr(pair, side).read(0, samples, SAMPLE_RATE, 1) for pair in chosen] for side in ("input", "target"))
    input, target = (torch.stack(side) for side in sides)
    return input, target
