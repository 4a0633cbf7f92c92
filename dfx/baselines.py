"""What a trained model has to beat.

- ``input``: no processing
- ``defaults``: the chain as its effects come
- ``fixed``: the chain at the one setting that is best for the training pairs
- ``per_file``: the chain at the setting that is best for a file, found on that very file and its target
- ``per_file_warm``: the same, begun where the model's automation lies on average
- ``network``: a convolutional network in place of the chain, trained on the training pairs

A best setting is the one of least training loss that CMA-ES finds (Hansen and Ostermeier 2001), in the
parameters' [0, 1]. ``per_file`` hears the target, which a model does not: it is no rival, it says what the chain
can do while it stands still.
"""

from __future__ import annotations

import math
import queue
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import cma
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dfx.effects import ChainSpec, RenderError
from dfx.effects.effect import nearest
from dfx.errors import UserError
from dfx.losses import loss_of_recordings

BASELINES = ("input", "defaults", "fixed", "per_file", "per_file_warm", "network")
LEARNED = ("fixed", "network")
"""Those that need the training pairs."""

Pair = Mapping[str, Any]
"""``input`` and ``target``, each ``(channels, samples)``, and ``name``."""

_BATCH = 8
"""Recordings that the loss compares at once; 32 are slower, and in one alone silence outweighs everything."""

_SPREAD = 0.1
"""The standard deviation of a search's first generation around its start. After 300 settings for tube_amp's
training pairs, with two seeds, the loss was 0.97 and 0.96; with 0.3 it was 1.38 and 1.09."""

_MOST_WORKERS = 8
"""A generation has 4 + 3 ln(P) settings, some ten."""


@dataclass(frozen=True)
class BaselineOptions:
    """What the baselines may cost.

    Args:
        evaluations: how many settings a search tries, to the end of a generation; fewer where it converges.
        excerpts: of training pairs, that every setting is tried on for ``fixed``.
        excerpt_seconds: the length of these.
        network_steps: training steps of ``network``, of four excerpts of 16 384 samples each.
        seed: of excerpts, searches and the network.

    Raises:
        UserError: for what is not positive.
    """

    evaluations: int = 700
    excerpts: int = 32
    excerpt_seconds: float = 2.0
    network_steps: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("evaluations", "excerpts", "excerpt_seconds", "network_steps"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0")


class Baseline(ABC):
    """One way to make outputs of inputs."""

    settings: Dict[str, Any] = {}
    """Of the chain, in their units: ``{parameter: value}``, or that for each file; empty where no chain is heard."""

    @abstractmethod
    def __call__(self, pair: Pair, automation: np.ndarray) -> Tensor:
        """The output for one pair, aligned with its input.

        Args:
            pair: as it is evaluated.
            automation: ``(frames, P)``, the values that the model has chosen for it.
        """


def make_baselines(
    names: Sequence[str],
    chain: ChainSpec,
    loss: nn.Module,
    training: Sequence[Pair] = (),
    options: BaselineOptions = BaselineOptions(),
) -> Dict[str, Baseline]:
    """Baselines by name, searched for and trained as far as that is done before the first file.

    Args:
        names: any of :data:`BASELINES`; they come in the order of that.
        chain: the model's.
        loss: the model's, on the CPU.
        training: the training pairs, for those in :data:`LEARNED`.
        options: what they may cost.

    Raises:
        UserError: for other names, or if there are no training pairs where they are needed.
    """
    for name in names:
        if name not in BASELINES:
            raise UserError(f"there is no baseline '{name}'{nearest(name, BASELINES)}")
        if name in LEARNED and not len(training):
            raise UserError(f"the baseline '{name}' needs training pairs")
    search = Search(chain, loss, options)
    make: Dict[str, Callable[[], Baseline]] = {
        "input": Unprocessed,
        "defaults": lambda: Constant(search, chain.space.defaults),
        "fixed": lambda: Constant(search, _fixed(search, training, options)),
        "per_file": lambda: PerFile(search),
        "per_file_warm": lambda: PerFile(search, warm=True),
        "network": lambda: EndToEnd(train_network(training, chain.channels, loss, options)),
    }
    return {name: make[name]() for name in BASELINES if name in names}


class Unprocessed(Baseline):
    """The input as it is."""

    def __call__(self, pair: Pair, automation: np.ndarray) -> Tensor:
        return pair["input"]


class Constant(Baseline):
    """The chain at one setting for all files.

    Args:
        search: renders it.
        parameters: the setting, ``(P,)`` in [0, 1].
    """

    def __init__(self, search: Search, parameters: np.ndarray) -> None:
        self._search = search
        self._parameters = parameters
        self.settings = search.named(parameters)

    def __call__(self, pair: Pair, automation: np.ndarray) -> Tensor:
        return self._search.render(pair["input"], self._parameters)


class PerFile(Baseline):
    """The chain at a setting of each file's own, searched for with the file's target at hand.

    Args:
        search: searches and renders.
        warm: begin at the mean of the model's automation, instead of at the defaults.
    """

    def __init__(self, search: Search, warm: bool = False) -> None:
        self._search = search
        self._warm = warm
        self.settings = {}

    def __call__(self, pair: Pair, automation: np.ndarray) -> Tensor:
        space = self._search.chain.space
        start = space.normalize(automation).mean(axis=0) if self._warm else space.defaults
        found = self._search(pair["input"][None], pair["target"][None], start)
        self.settings[str(pair["name"])] = self._search.named(found.parameters)
        return self._search.render(pair["input"], found.parameters)


class EndToEnd(Baseline):
    """A trained network."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    @torch.no_grad()
    def __call__(self, pair: Pair, automation: np.ndarray) -> Tensor:
        return self._network(pair["input"][None])[0]


class Found(NamedTuple):
    """What a search has found: parameters ``(P,)`` in [0, 1], and their loss."""

    parameters: np.ndarray
    loss: float


class Search:
    """CMA-ES over the settings of a chain, several of which are rendered at once.

    Live chains are built here, and more when it searches, up to eight; so call it on the main thread.

    Args:
        chain: what is set.
        loss: what is to be small: a module ``(output, target) -> scalar``.
        options: budget and seed.
    """

    def __init__(self, chain: ChainSpec, loss: nn.Module, options: BaselineOptions = BaselineOptions()) -> None:
        self.chain = chain
        self._loss = loss
        self._options = options
        self._workers = min(torch.get_num_threads(), _MOST_WORKERS)
        self._idle: queue.SimpleQueue = queue.SimpleQueue()
        self._idle.put(chain.build())

    def __call__(self, input: Tensor, target: Tensor, start: Optional[np.ndarray] = None) -> Found:
        """The best constant setting for some recordings of one length, never worse than the start.

        Its loss is the mean over batches of eight. A setting at which an effect fails counts as the worst.

        Args:
            input, target: ``(batch, channels, samples)``.
            start: ``(P,)`` in [0, 1]; by default the chain's defaults.

        Raises:
            UserError: if no setting could be rendered.
        """
        while self._idle.qsize() < self._workers:
            self._idle.put(self.chain.build())
        start = self.chain.space.defaults if start is None else start
        count = len(start)
        random = np.random.default_rng(self._options.seed)
        evolution = cma.CMAEvolutionStrategy(
            # cma cannot bound a single dimension: beside a lone parameter goes one that does nothing.
            [*start, 0.5] if count == 1 else start,
            _SPREAD,
            {
                "bounds": [0, 1],
                "maxfevals": self._options.evaluations - 1,
                "verbose": -9,
                # A generator of its own: by its seed cma would set numpy's global one.
                "seed": np.nan,
                "randn": lambda *shape: random.standard_normal(shape),
            },
        )
        with (
            ThreadPoolExecutor(self._workers) as pool,
            tqdm(total=self._options.evaluations, desc="Searching", unit="setting", leave=False) as progress,
        ):

            def losses_of(settings: List[np.ndarray]) -> List[float]:
                losses = list(pool.map(lambda setting: self._loss_of(input, target, setting), settings))
                progress.update(len(losses))
                return losses

            best = Found(start, losses_of([start])[0])
            while not evolution.stop():
                settings = evolution.ask()
                losses = losses_of([setting[:count] for setting in settings])
                evolution.tell(settings, losses)
                least = int(np.argmin(losses))
                if losses[least] < best.loss:
                    best = Found(settings[least][:count], losses[least])
                progress.set_postfix(loss=f"{best.loss:.4g}")
        if not math.isfinite(best.loss):
            raise UserError("the search found no setting of the chain that can be rendered")
        return best

    def render(self, audio: Tensor, parameters: np.ndarray) -> Tensor:
        """A whole recording ``(channels, samples)`` at constant parameters ``(P,)`` in [0, 1]; latency is out."""
        chain = self._idle.get()
        try:
            output = chain.render_whole(audio.numpy(), self.chain.space.denormalize(parameters))
        finally:
            self._idle.put(chain)
        return torch.from_numpy(np.ascontiguousarray(output))

    def named(self, parameters: np.ndarray) -> Dict[str, float]:
        """The values of parameters ``(P,)``, in their units, by name."""
        values = self.chain.space.denormalize(parameters)
        return {name: float(value) for name, value in zip(self.chain.space.names, values)}

    def _loss_of(self, input: Tensor, target: Tensor, parameters: np.ndarray) -> float:
        try:
            output = torch.stack([self.render(audio, parameters) for audio in input])
        except RenderError:
            return math.inf
        batches = zip(output.split(_BATCH), target.split(_BATCH))
        return float(np.mean([loss_of_recordings(self._loss, *batch) for batch in batches]))


def _fixed(search: Search, training: Sequence[Pair], options: BaselineOptions) -> np.ndarray:
    samples = max(1, round(options.excerpt_seconds * search.chain.sample_rate))
    generator = torch.Generator().manual_seed(options.seed)
    return search(*draw_excerpts(training, options.excerpts, samples, generator)).parameters


def draw_excerpts(
    pairs: Sequence[Pair], count: int, samples: int, generator: torch.Generator
) -> Tuple[Tensor, Tensor]:
    """Excerpts at random places, of as many different pairs as there are.

    Returns:
        Input and target, each ``(count, channels, samples)``; what is shorter is followed by silence.
    """
    order = torch.randperm(len(pairs), generator=generator).tolist()
    sides: Tuple[List[Tensor], List[Tensor]] = ([], [])
    for i in range(count):
        pair = pairs[order[i % len(order)]]
        spare = max(0, pair["input"].shape[-1] - samples)
        start = int(torch.randint(spare + 1, (), generator=generator))
        for side, excerpts in zip(("input", "target"), sides):
            excerpt = pair[side][:, start : start + samples]
            excerpts.append(nn.functional.pad(excerpt, (0, samples - excerpt.shape[-1])))
    return torch.stack(sides[0]), torch.stack(sides[1])


class Network(nn.Module):
    """A temporal convolutional network, audio in and audio out (after Steinmetz and Reiss 2022).

    The input is added to what four dilated convolutions make of it, at first nothing. It has 28 000 parameters,
    and hears 4 681 samples for each one that it says, 0.21 s at 22.05 kHz.

    Args:
        channels: of the audio.
    """

    _WIDTH = 32
    _KERNEL = 9
    _DILATIONS = (1, 8, 64, 512)

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [channels, *[self._WIDTH] * len(self._DILATIONS)]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, self._KERNEL, dilation=dilation, padding=(self._KERNEL // 2) * dilation)
            for before, after, dilation in zip(widths, widths[1:], self._DILATIONS)
        )
        self.activations = nn.ModuleList(nn.PReLU(self._WIDTH) for _ in self._DILATIONS)
        self.mix = nn.Conv1d(self._WIDTH, channels, 1)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)

    def forward(self, audio: Tensor) -> Tensor:
        """``(batch, channels, samples)`` to the same."""
        features = audio
        for convolution, activation in zip(self.convolutions, self.activations):
            deeper = activation(convolution(features))
            features = deeper if features is audio else features + deeper
        return audio + self.mix(features)


def train_network(
    pairs: Sequence[Pair], channels: int, loss: nn.Module, options: BaselineOptions = BaselineOptions()
) -> Network:
    """A network that makes targets of inputs with little loss; torch's global seed is left alone."""
    generator = torch.Generator().manual_seed(options.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = Network(channels)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.network_steps)
    progress = tqdm(range(options.network_steps), desc="Training the network", unit="step", leave=False)
    for _ in progress:
        input, target = draw_excerpts(pairs, 4, 16384, generator)
        error = loss(network(input), target)
        optimizer.zero_grad()
        error.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{error.item():.4g}")
    return network.eval()
