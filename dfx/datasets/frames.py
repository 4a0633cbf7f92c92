"""Excerpts, frames and lanes: which samples make which batch, and in which order.

A file is cut into excerpts, an excerpt into frames. A batch is a row of lanes: example ``i`` of the next
batch is the next frame of example ``i`` of this one, until its excerpt ends and another begins.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dfx.datasets.pairs import Pair


@dataclass(frozen=True)
class Window:
    """What is read for one frame: the frame itself, and enough around it for the encoder and the target.

    Args:
        context_samples: what the encoder hears, centred on the frame (the paper: 40 960).
        frame_samples: what the effects render with one set of parameters (the paper: 1 024).
        latency_samples: how much later than its input the chain's output comes.
    """

    context_samples: int
    frame_samples: int
    latency_samples: int = 0

    @property
    def _lead(self) -> int:
        """How far before the frame the context begins; negative where the frame is the longer of the two."""
        return (self.context_samples - self.frame_samples) // 2

    @property
    def before(self) -> int:
        """Samples before the frame."""
        return max(self._lead, self.latency_samples)

    @property
    def samples(self) -> int:
        """Samples in all."""
        after = max(0, self.context_samples - self.frame_samples - self._lead)
        return self.before + self.frame_samples + after

    def context(self, audio: Tensor) -> Tensor:
        """``(..., samples)`` to ``(..., context_samples)``."""
        start = self.before - self._lead
        return audio[..., start : start + self.context_samples]

    def frame(self, audio: Tensor) -> Tensor:
        """``(..., samples)`` to ``(..., frame_samples)``."""
        return audio[..., self.before : self.before + self.frame_samples]

    def delayed_frame(self, audio: Tensor) -> Tensor:
        """The frame as late as the chain's output: the target of :meth:`frame`."""
        start = self.before - self.latency_samples
        return audio[..., start : start + self.frame_samples]


class Excerpt(NamedTuple):
    """A part of one pair, in samples at the data's rate; the effects begin anew with it."""

    pair: int
    start: int
    frames: int


class Frame(NamedTuple):
    """One frame of an excerpt."""

    excerpt: Excerpt
    index: int


class Frames(Dataset):
    """Frames of pairs, by :class:`Frame`.

    Args:
        pairs: the files.
        window: what is read for one frame.
        sample_rate, channels: of what is returned.
        cached_excerpts: how many excerpts stay decoded in memory; a step touches one for each lane.
    """

    def __init__(
        self, pairs: Sequence[Pair], window: Window, sample_rate: int, channels: int, cached_excerpts: int
    ) -> None:
        self.pairs = pairs
        self.window = window
        self.sample_rate = sample_rate
        self.channels = channels
        self._excerpt = functools.lru_cache(maxsize=cached_excerpts)(self._read_excerpt)

    def __getitem__(self, frame: Frame) -> Dict[str, Any]:
        """``input`` and ``target``, each ``(channels, window samples)``, and ``restart``."""
        start = frame.index * self.window.frame_samples
        input, target = self._excerpt(frame.excerpt)[..., start : start + self.window.samples]
        return {"input": input, "target": target, "restart": torch.tensor(frame.index == 0)}

    def _read_excerpt(self, excerpt: Excerpt) -> Tensor:
        pair = self.pairs[excerpt.pair]
        start = excerpt.start - self.window.before
        samples = (excerpt.frames - 1) * self.window.frame_samples + self.window.samples
        return torch.stack(
            [side.read(start, samples, self.sample_rate, self.channels) for side in (pair.input, pair.target)]
        )


class Excerpts(Sampler[Excerpt]):
    """The excerpts of all pairs, in an order that depends on seed and epoch alone.

    Args:
        lengths: of the pairs, in samples at the data's rate.
        frame_samples: an excerpt is a whole number of frames; what is shorter than one is padded.
        excerpt_samples: the length of an excerpt; by default a pair is one excerpt.
        shuffle: in another order each epoch, and cut at other places.
        seed: of the order.
    """

    def __init__(
        self, lengths: Sequence[int], frame_samples: int, excerpt_samples: Optional[int], shuffle: bool, seed: int
    ) -> None:
        self._lengths = lengths
        self._frame_samples = frame_samples
        self._frames = [
            max(1, min(length, excerpt_samples or length) // frame_samples) for length in lengths
        ]
        self._counts = [
            max(1, length // (frames * frame_samples)) if excerpt_samples else 1
            for length, frames in zip(lengths, self._frames)
        ]
        self._shuffle = shuffle
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning says here which epoch begins."""
        self._epoch = epoch

    def __len__(self) -> int:
        return sum(self._counts)

    @property
    def total_frames(self) -> int:
        """In one epoch, whatever its order."""
        return sum(count * frames for count, frames in zip(self._counts, self._frames))

    def __iter__(self) -> Iterator[Excerpt]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        excerpts = []
        for pair, (length, count, frames) in enumerate(zip(self._lengths, self._counts, self._frames)):
            samples = frames * self._frame_samples
            spare = max(0, length - count * samples)
            offset = int(torch.randint(spare + 1, (), generator=generator)) if self._shuffle else 0
            excerpts += [Excerpt(pair, offset + i * samples, frames) for i in range(count)]
        if self._shuffle:
            excerpts = [excerpts[i] for i in torch.randperm(len(excerpts), generator=generator).tolist()]
        return iter(excerpts)


class TrainingLanes(Sampler[List[Frame]]):
    """Batches in which every lane is always busy: one that has ended its excerpt takes the next.

    An epoch has as many batches as all of its frames fill; all lanes begin anew with it.

    Args:
        sampler: the excerpts. Lightning finds ``set_epoch`` by this name.
        batch_size: how many lanes.

    ``first_batch`` leaves out what comes before it, in the next epoch only.
    """

    def __init__(self, sampler: Excerpts, batch_size: int) -> None:
        self.sampler = sampler
        self.first_batch = 0
        self._batch_size = batch_size

    def __len__(self) -> int:
        return max(1, self.sampler.total_frames // self._batch_size)

    def __iter__(self) -> Iterator[List[Frame]]:
        first, self.first_batch = self.first_batch, 0
        excerpts = self._endless()
        lanes: List[List[Frame]] = [[] for _ in range(self._batch_size)]
        for batch in range(len(self)):
            for lane in lanes:
                if not lane:
                    excerpt = next(excerpts)
                    lane.extend(Frame(excerpt, index) for index in reversed(range(excerpt.frames)))
            frames = [lane.pop() for lane in lanes]
            if batch >= first:
                yield frames

    def _endless(self) -> Iterator[Excerpt]:
        while True:
            yield from self.sampler


class EvaluationLanes(Sampler[List[Frame]]):
    """Batches in which every frame comes once.

    Excerpts run side by side, the longer ones in the first lanes, so that a batch only ever loses lanes at
    its end; when all have ended, the next ones begin.

    Args:
        sampler: the excerpts.
        batch_size: how many lanes at most.
    """

    def __init__(self, sampler: Excerpts, batch_size: int) -> None:
        self.sampler = sampler
        self._batch_size = batch_size

    def _groups(self) -> List[List[Excerpt]]:
        excerpts = sorted(self.sampler, key=lambda excerpt: -excerpt.frames)
        return [excerpts[i : i + self._batch_size] for i in range(0, len(excerpts), self._batch_size)]

    def __len__(self) -> int:
        return sum(group[0].frames for group in self._groups())

    def __iter__(self) -> Iterator[List[Frame]]:
        for group in self._groups():
            for index in range(group[0].frames):
                yield [Frame(excerpt, index) for excerpt in group if index < excerpt.frames]


class TrainingLoader(DataLoader):
    """Loads :class:`TrainingLanes`, and counts the batches of the epoch that it has given."""

    given = 0

    def __iter__(self) -> Iterator[Any]:
        self.given = self.batch_sampler.first_batch
        for batch in super().__iter__():
            self.given += 1
            yield batch
