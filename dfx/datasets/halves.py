"""Recordings in two halves, each of which is the reference for the other, for tasks that take a reference."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dfx.audio.reading import AudioPart, AudioSource
from dfx.datasets.degradation import Degradation, Degrader
from dfx.datasets.pairs import Pair
from dfx.errors import DataError

_DEGRADED_AT_ONCE = 16  # halves that are kept in memory: 10 MB for two minutes of mono at 22050 Hz


def halve(pairs: Sequence[Pair], degradation: Degradation, shortest_seconds: float) -> list[Pair]:
    """Return two pairs for the target of each pair, whose own input is not used.

    The target is one half of the recording and the reference the other; neither is changed. The input is the target,
    degraded with values that depend on the name of the pair only, so that it is the same in every run.

    Args:
        pairs: with the recordings as targets.
        degradation: the effects and the distributions of their values.
        shortest_seconds: length that a half must have.

    Raises:
        DataError: if a half is shorter.
        UserError: as :class:`~dfx.datasets.degradation.Degrader`.
    """
    degrader_at = functools.cache(functools.partial(Degrader, degradation))
    halved = []
    for pair in pairs:
        recording = pair.target
        halves = cut_in_halves(recording, shortest_seconds)
        for number, (target, reference) in enumerate((halves, halves[::-1]), start=1):
            name = name_half(pair, number)
            seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
            degrader = degrader_at(recording.sample_rate, recording.channels)
            halved.append(Pair(name, DegradedAudio.of(target, degrader, seed), target, pair.group, reference))
    return halved


def cut_in_halves(recording: AudioSource, shortest_seconds: float) -> list[AudioPart]:
    """Return both halves of a recording; arguments and errors as of :func:`halve`."""
    samples = recording.samples // 2
    if samples < shortest_seconds * recording.sample_rate:
        fault = f"{recording.path} lasts {recording.seconds:.2f} s, too short to be cut in halves"
        least = f"a half must last as long as the encoder's context, {shortest_seconds:.2f} s"
        raise DataError(f"{fault}: {least}; leave it out, or lower model.init_args.context_samples")
    return [AudioPart.of(recording, first, samples) for first in (0, recording.samples - samples)]


def name_half(pair: Pair, number: int) -> str:
    """Return the name of a pair's first or second half, ``number`` 1 or 2."""
    return f"{pair.name}_{number}"


@dataclass(frozen=True)
class DegradedAudio(AudioSource):
    """A source after a degradation whose values are drawn with a seed."""

    path: str
    sample_rate: int
    channels: int
    samples: int
    source: AudioSource
    degrader: Degrader
    seed: int

    @classmethod
    def of(cls, source: AudioSource, degrader: Degrader, seed: int) -> "DegradedAudio":
        return cls(source.path, source.sample_rate, source.channels, source.samples, source, degrader, seed)

    def _read_inside(self, first: int, last: int) -> np.ndarray:
        return _degrade_whole(self)[:, first:last]


@functools.lru_cache(maxsize=_DEGRADED_AT_ONCE)
def _degrade_whole(audio: DegradedAudio) -> np.ndarray:
    values = audio.degrader.draw_values(np.random.default_rng(audio.seed))
    whole = audio.source.read(0, audio.samples, audio.sample_rate, audio.channels)
    return audio.degrader.degrade(whole, values).numpy()
