"""Excerpts, steps and lanes: the samples and the order of the batches.

A file is cut into excerpts, and an excerpt into steps of one frame or several. Each example of a batch is a lane:
example ``i`` of the next batch continues example ``i`` of this one, until its excerpt ends and another one begins.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dfx.datasets.degradation import Change, Degrader
from dfx.datasets.pairs import Pair
from dfx.datasets.treatment import Augmentation, TreatedPairs


@dataclass(frozen=True)
class Window:
    """The samples of one step: its frames, the encoder's context around them, and the delayed target before them.

    Args:
        context_samples: length of the context of one frame, centred on the frame (the paper: 40 960).
        frame_samples: length of the audio that is rendered with one set of parameters (the paper: 1 024).
        latency_samples: delay of the chain's output relative to its input.
        frames: number of consecutive frames in a step (the paper: 1).
    """

    context_samples: int
    frame_samples: int
    latency_samples: int = 0
    frames: int = 1

    @property
    def step_samples(self) -> int:
        """Length of the frames of a step, in samples."""
        return self.frames * self.frame_samples

    @property
    def _lead(self) -> int:
        """Samples from the start of a context to that of its frame; negative for a frame longer than its context."""
        return (self.context_samples - self.frame_samples) // 2

    @property
    def before(self) -> int:
        """Samples before the first frame."""
        return max(self._lead, self.latency_samples)

    @property
    def samples(self) -> int:
        """Length of the whole window, in samples."""
        after = max(0, self.context_samples - self.frame_samples - self._lead)
        return self.before + self.step_samples + after

    def context(self, audio: Tensor) -> Tensor:
        """Cut the contexts: ``(..., samples)`` to ``(..., context_samples + (frames - 1) * frame_samples)``."""
        start = self.before - self._lead
        return audio[..., start : start + self.context_samples + self.step_samples - self.frame_samples]

    def step(self, audio: Tensor) -> Tensor:
        """Cut the frames: ``(..., samples)`` to ``(..., step_samples)``."""
        return audio[..., self.before : self.before + self.step_samples]

    def delayed_step(self, audio: Tensor) -> Tensor:
        """Cut the frames with the delay of the chain's output, as the target of :meth:`step`."""
        start = self.before - self.latency_samples
        return audio[..., start : start + self.step_samples]


class Excerpt(NamedTuple):
    """A part of the pair with an index, from sample ``start`` at the rate of the data; effects restart with it."""

    pair: int
    start: int
    steps: int
    seed: int


class Step(NamedTuple):
    """One step of an excerpt, numbered from 0."""

    excerpt: Excerpt
    number: int


class Steps(Dataset):
    """Audio of the steps of pairs, indexed by :class:`Step`; the augmentation changes every excerpt.

    A ``degrader`` makes the inputs of some excerpts from their targets, with the context around them. The reference of
    an excerpt is as long as a context, from a random place. ``cached_excerpts`` decoded excerpts are kept in memory; a
    batch uses one for each lane.
    """

    def __init__(
        self,
        pairs: TreatedPairs,
        window: Window,
        augmentation: Augmentation,
        cached_excerpts: int,
        degrader: Degrader | None = None,
    ) -> None:
        self.pairs, self.window, self.augmentation, self.degrader = pairs, window, augmentation, degrader
        self._excerpt = functools.lru_cache(maxsize=cached_excerpts)(self._read_excerpt)

    def __getitem__(self, step: Step) -> dict[str, Any]:
        """Return ``input`` and ``target``, each ``(channels, window.samples)``, and the flag ``restart``, ``()``.

        Pairs with a reference also have ``reference``, ``(channels, window.context_samples)``.
        """
        start = step.number * self.window.step_samples
        *sides, reference = self._excerpt(step.excerpt)
        input, target = (side[..., start : start + self.window.samples] for side in sides)
        batch = {"input": input, "target": target, "restart": torch.tensor(step.number == 0)}
        return batch if reference is None else {**batch, "reference": reference}

    def _read_excerpt(self, excerpt: Excerpt) -> tuple[Tensor, Tensor, Tensor | None]:
        start = excerpt.start - self.window.before
        samples = (excerpt.steps - 1) * self.window.step_samples + self.window.samples
        pair = self.pairs.pairs[excerpt.pair]
        change = self.degrader.draw(pair, excerpt.seed) if self.degrader else None
        style = self.degrader.draw_style(excerpt.seed) if self.degrader and change else None
        input, target = self.pairs.read(excerpt.pair, start, samples, change, style)
        rendered = slice(self.window.before, self.window.before + excerpt.steps * self.window.step_samples)
        sides = self.augmentation(input, target, self.pairs.sample_rate, excerpt.seed, rendered)
        return *sides, self._read_reference(pair, excerpt, style)

    def _read_reference(self, pair: Pair, excerpt: Excerpt, style: Change | None) -> Tensor | None:
        if pair.reference is None:
            return None
        samples = self.window.context_samples
        spare = max(0, pair.reference.samples_at(self.pairs.sample_rate) - samples)
        # Neither the generator of the augmentation nor that of the degradation.
        start = int(np.random.default_rng([excerpt.seed, 2]).integers(spare + 1))
        return self.pairs.read_reference(excerpt.pair, start, samples, style)


class Excerpts(Sampler[Excerpt]):
    """The excerpts of all pairs, in an order that depends on seed and epoch only.

    Args:
        lengths: of the pairs, in samples at the sample rate of the data.
        step_samples: length of a step; excerpts are whole numbers of steps, and shorter pairs are padded to one.
        excerpt_samples: length of an excerpt, rounded down to steps; by default a pair is one excerpt.
        shuffle: draw the order, the places of the cuts and the seeds of the augmentation again in each epoch.
        seed: of the order.
    """

    def __init__(
        self, lengths: Sequence[int], step_samples: int, excerpt_samples: int | None, shuffle: bool, seed: int
    ) -> None:
        self._lengths, self._step_samples = lengths, step_samples
        self._shuffle, self._seed, self._epoch = shuffle, seed, 0
        self._steps = [max(1, min(length, excerpt_samples or length) // step_samples) for length in lengths]
        self._counts = [
            max(1, length // (steps * step_samples)) if excerpt_samples else 1
            for length, steps in zip(lengths, self._steps)
        ]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, as Lightning does when it begins; has no effect without shuffling."""
        if self._shuffle:
            self._epoch = epoch

    def __len__(self) -> int:
        return sum(self._counts)

    @property
    def total_steps(self) -> int:
        """Number of steps in an epoch."""
        return sum(count * steps for count, steps in zip(self._counts, self._steps))

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)

    def __iter__(self) -> Iterator[Excerpt]:
        generator = self._generator()
        places = []
        for pair, (length, count, steps) in enumerate(zip(self._lengths, self._counts, self._steps)):
            samples = steps * self._step_samples
            spare = max(0, length - count * samples)
            offset = int(torch.randint(spare + 1, (), generator=generator)) if self._shuffle else 0
            places += [(pair, offset + i * samples, steps) for i in range(count)]
        if self._shuffle:
            places = [places[i] for i in torch.randperm(len(places), generator=generator).tolist()]
        seeds = torch.randint(2**62, (len(places),), generator=generator).tolist()
        return iter([Excerpt(*place, seed) for place, seed in zip(places, seeds)])

    def draw(self) -> Iterator[Excerpt]:
        """Draw excerpts with replacement, without end: all pairs, and all places in one, are equally likely."""
        generator = self._generator()

        def integer(below: int) -> int:
            return int(torch.randint(below, (), generator=generator))

        while True:
            pair = integer(len(self._lengths))
            steps = self._steps[pair]
            start = integer(max(0, self._lengths[pair] - steps * self._step_samples) + 1)
            yield Excerpt(pair, start, steps, integer(2**62))

    def first(self, steps: int) -> list[Excerpt]:
        """Return the first excerpts, with ``steps`` steps or a few more together; all of them if they have fewer."""
        ends = itertools.accumulate(excerpt.steps for excerpt in self)
        return [excerpt for excerpt, end in zip(self, ends) if end - excerpt.steps < steps]


class TrainingLanes(Sampler[list[Step]]):
    """Batches whose lanes are always full: a lane whose excerpt has ended takes the next one.

    All lanes restart with an epoch.

    Args:
        sampler: of the excerpts.
        batch_size: number of lanes.
        rank_lanes: those that are loaded, by default all.
        batches: of an epoch, with excerpts drawn with replacement; by default as many as all steps of the sampler fill.

    Attributes:
        first_batch: number of batches that are skipped, in the next epoch only.
    """

    def __init__(
        self, sampler: Excerpts, batch_size: int, rank_lanes: slice = slice(None), batches: int | None = None
    ) -> None:
        self.sampler = sampler  # Lightning calls `set_epoch` of the attribute with this name.
        self.first_batch = 0
        self._batch_size, self._rank_lanes, self._batches = batch_size, rank_lanes, batches

    def __len__(self) -> int:
        return self._batches or max(1, self.sampler.total_steps // self._batch_size)

    def __iter__(self) -> Iterator[list[Step]]:
        first, self.first_batch = self.first_batch, 0
        # All lanes take from one iterator, each when its excerpt has ended.
        repeated = itertools.chain.from_iterable(itertools.repeat(self.sampler))
        excerpts = self.sampler.draw() if self._batches else repeated
        lanes = [_steps_of(excerpts) for _ in range(self._batch_size)]
        for batch in range(len(self)):
            steps = [next(lane) for lane in lanes]
            if batch >= first:
                yield steps[self._rank_lanes]


def _steps_of(excerpts: Iterable[Excerpt]) -> Iterator[Step]:
    return (Step(excerpt, number) for excerpt in excerpts for number in range(excerpt.steps))


class EvaluationLanes(Sampler[list[Step]]):
    """Batches that contain every step of some excerpts once.

    At most ``batch_size`` excerpts run in parallel, the longer ones in the first lanes. When all have ended, the next
    ones begin.
    """

    def __init__(self, excerpts: Iterable[Excerpt], batch_size: int) -> None:
        # Long ones first, so that a batch only loses lanes at its end.
        self._excerpts = sorted(excerpts, key=lambda excerpt: -excerpt.steps)
        self._batch_size = batch_size

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[list[Step]]:
        for first in range(0, len(self._excerpts), self._batch_size):
            group = self._excerpts[first : first + self._batch_size]
            for number in range(group[0].steps):
                yield [Step(excerpt, number) for excerpt in group if number < excerpt.steps]


class TrainingLoader(DataLoader):
    """Loads :class:`TrainingLanes` and counts the batches of the epoch, with those that are skipped."""

    batches_loaded = 0

    # DataLoader declares its private iterator class, of which callers use `next` only.
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        assert isinstance(self.batch_sampler, TrainingLanes)
        self.batches_loaded = self.batch_sampler.first_batch
        for batch in super().__iter__():
            self.batches_loaded += 1
            yield batch
