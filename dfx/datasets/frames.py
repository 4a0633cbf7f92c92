"""Excerpts, steps and lanes: which samples make which batch, and in which order.

A file is cut into excerpts, an excerpt into steps of one frame or several. A batch is a row of lanes: example
``i`` of the next batch is the next step of example ``i`` of this one, until its excerpt ends and another
begins.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dfx.datasets.treatment import Augmentation, TreatedPairs


@dataclass(frozen=True)
class Window:
    """What is read for one step: its frames, and enough around them for the encoder and the target.

    Args:
        context_samples: what the encoder hears for one frame, centred on it (the paper: 40 960).
        frame_samples: what the effects render with one set of parameters (the paper: 1 024).
        latency_samples: how much later than its input the chain's output comes.
        frames: how many consecutive frames a step has (the paper: 1).
    """

    context_samples: int
    frame_samples: int
    latency_samples: int = 0
    frames: int = 1

    @property
    def step_samples(self) -> int:
        """Samples of a step's frames."""
        return self.frames * self.frame_samples

    @property
    def _lead(self) -> int:
        """How far before its frame a context begins; negative where the frame is the longer of the two."""
        return (self.context_samples - self.frame_samples) // 2

    @property
    def before(self) -> int:
        """Samples before the first frame."""
        return max(self._lead, self.latency_samples)

    @property
    def samples(self) -> int:
        """Samples in all."""
        after = max(0, self.context_samples - self.frame_samples - self._lead)
        return self.before + self.step_samples + after

    def context(self, audio: Tensor) -> Tensor:
        """``(..., samples)`` to the contexts of all frames, ``(..., context_samples + (frames - 1) frame_samples)``."""
        start = self.before - self._lead
        return audio[..., start : start + self.context_samples + self.step_samples - self.frame_samples]

    def step(self, audio: Tensor) -> Tensor:
        """``(..., samples)`` to the frames, ``(..., step_samples)``."""
        return audio[..., self.before : self.before + self.step_samples]

    def delayed_step(self, audio: Tensor) -> Tensor:
        """The frames as late as the chain's output: the target of :meth:`step`."""
        start = self.before - self.latency_samples
        return audio[..., start : start + self.step_samples]


class Excerpt(NamedTuple):
    """A part of one pair, in samples at the data's rate; the effects begin anew with it.

    ``seed`` is that of its augmentation.
    """

    pair: int
    start: int
    steps: int
    seed: int


class Step(NamedTuple):
    """One step of an excerpt."""

    excerpt: Excerpt
    index: int


class Steps(Dataset):
    """Steps of pairs, by :class:`Step`.

    Args:
        pairs: the files, as they are heard.
        window: what is read for one step.
        augmentation: what is done to an excerpt.
        cached_excerpts: how many excerpts stay decoded in memory; a step touches one for each lane.
    """

    def __init__(self, pairs: TreatedPairs, window: Window, augmentation: Augmentation, cached_excerpts: int) -> None:
        self.pairs = pairs
        self.window = window
        self.augmentation = augmentation
        self._excerpt = functools.lru_cache(maxsize=cached_excerpts)(self._read_excerpt)

    def __getitem__(self, step: Step) -> dict[str, Any]:
        """``input`` and ``target``, each ``(channels, window samples)``, and ``restart``."""
        start = step.index * self.window.step_samples
        input, target = (side[..., start : start + self.window.samples] for side in self._excerpt(step.excerpt))
        return {"input": input, "target": target, "restart": torch.tensor(step.index == 0)}

    def _read_excerpt(self, excerpt: Excerpt) -> tuple[Tensor, Tensor]:
        start = excerpt.start - self.window.before
        samples = (excerpt.steps - 1) * self.window.step_samples + self.window.samples
        input, target = self.pairs.read(excerpt.pair, start, samples)
        return self.augmentation(input, target, self.pairs.sample_rate, excerpt.seed)


class Excerpts(Sampler[Excerpt]):
    """The excerpts of all pairs, in an order that depends on seed and epoch alone.

    Args:
        lengths: of the pairs, in samples at the data's rate.
        step_samples: an excerpt is a whole number of steps; what is shorter than one is padded.
        excerpt_samples: the length of an excerpt; by default a pair is one excerpt.
        shuffle: in another order each epoch, cut at other places and augmented anew.
        seed: of the order.
    """

    def __init__(
        self, lengths: Sequence[int], step_samples: int, excerpt_samples: int | None, shuffle: bool, seed: int
    ) -> None:
        self._lengths = lengths
        self._step_samples = step_samples
        self._steps = [max(1, min(length, excerpt_samples or length) // step_samples) for length in lengths]
        self._counts = [
            max(1, length // (steps * step_samples)) if excerpt_samples else 1
            for length, steps in zip(lengths, self._steps)
        ]
        self._shuffle = shuffle
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning says here which epoch begins; without shuffling, all are alike."""
        if self._shuffle:
            self._epoch = epoch

    def __len__(self) -> int:
        return sum(self._counts)

    @property
    def total_steps(self) -> int:
        """In one epoch, whatever its order."""
        return sum(count * steps for count, steps in zip(self._counts, self._steps))

    def __iter__(self) -> Iterator[Excerpt]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
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


class TrainingLanes(Sampler[list[Step]]):
    """Batches in which every lane is always busy: one that has ended its excerpt takes the next.

    An epoch has as many batches as all of its steps fill; all lanes begin anew with it.

    Args:
        sampler: the excerpts. Lightning finds ``set_epoch`` by this name.
        batch_size: how many lanes, of all ranks together.
        own: which of the lanes to load; by default all.

    ``first_batch`` leaves out what comes before it, in the next epoch only.
    """

    def __init__(self, sampler: Excerpts, batch_size: int, own: slice = slice(None)) -> None:
        self.sampler = sampler
        self.first_batch = 0
        self._batch_size = batch_size
        self._own = own

    def __len__(self) -> int:
        return max(1, self.sampler.total_steps // self._batch_size)

    def __iter__(self) -> Iterator[list[Step]]:
        first, self.first_batch = self.first_batch, 0
        excerpts = self._endless()
        lanes: list[list[Step]] = [[] for _ in range(self._batch_size)]
        for batch in range(len(self)):
            for lane in lanes:
                if not lane:
                    excerpt = next(excerpts)
                    lane.extend(Step(excerpt, index) for index in reversed(range(excerpt.steps)))
            steps = [lane.pop() for lane in lanes]
            if batch >= first:
                yield steps[self._own]

    def _endless(self) -> Iterator[Excerpt]:
        while True:
            yield from self.sampler


class EvaluationLanes(Sampler[list[Step]]):
    """Batches in which every step comes once.

    Excerpts run side by side, the longer ones in the first lanes, so that a batch only ever loses lanes at
    its end; when all have ended, the next ones begin.

    Args:
        sampler: the excerpts.
        batch_size: how many lanes at most.
    """

    def __init__(self, sampler: Excerpts, batch_size: int) -> None:
        self.sampler = sampler
        self._batch_size = batch_size

    def _groups(self) -> list[list[Excerpt]]:
        excerpts = sorted(self.sampler, key=lambda excerpt: -excerpt.steps)
        return [excerpts[i : i + self._batch_size] for i in range(0, len(excerpts), self._batch_size)]

    def __len__(self) -> int:
        return sum(group[0].steps for group in self._groups())

    def __iter__(self) -> Iterator[list[Step]]:
        for group in self._groups():
            for index in range(group[0].steps):
                yield [Step(excerpt, index) for excerpt in group if index < excerpt.steps]


class TrainingLoader(DataLoader):
    """Loads :class:`TrainingLanes`, and counts the batches of the epoch that it has given."""

    given = 0

    def __iter__(self) -> Iterator[Any]:
        self.given = self.batch_sampler.first_batch
        for batch in super().__iter__():
            self.given += 1
            yield batch
