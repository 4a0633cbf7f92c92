"""How much time the effect layer adds to the effects' own, and what the original's design would take."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dfx.benchmark.chains import SAMPLE_RATE, BenchmarkChain, notes
from dfx.blackbox import EffectLayer, GradientOptions, RenderingOptions
from dfx.blackbox.workers import Workers, available_cores
from dfx.effects import ChainSpec, Effect
from dfx.encoder import Encoder, EncoderOptions
from dfx.losses import LossOptions, make_loss

MODES = {"frame": (1, 1024), "frames": (16, 1024), "excerpt": (1, 2 * SAMPLE_RATE)}
"""How many frames a step has, and of how many samples."""

CONTEXT_SAMPLES = 40960
ORIGINAL_RENDERINGS = 3
_STEPS = 8
_LEAST_ROUNDS = 3
_TURN_SECONDS = 0.02

_Run = Callable[[Callable[[range], None], int], None]
"""Runs work on rows, as :meth:`dfx.blackbox.workers.Workers.run`."""


def speed(
    chains: Sequence[BenchmarkChain], modes: Sequence[str], batches: Sequence[int], seconds: float
) -> Iterator[dict[str, Any]]:
    """Times the layer against the effects alone and against the original's design, in one run.

    Args:
        chains: to render.
        modes: ``frame``, 1024 samples a step; ``frames``, 16 such frames, each with parameters of its own; or
            ``excerpt``, two seconds.
        batches: examples in a step.
        seconds: that go into each chain, mode and batch. The contenders take turns, at least three of 20 ms or
            one call, after one that is not timed, and their medians count.

    Yields:
        A row for each chain, mode, batch and number of workers. ``layer_over_limit`` is the time of forward
        and backward over that of the same renderings in a plain loop on one thread, divided by the workers;
        ``threads_over_limit`` the same of that loop, shared among as many threads and without any layer, which is as
        near as threads come here;
        ``original_over_layer`` the time of the original's design (a process for each example, pickled through
        pipes, two-sided) over the layer's; ``regression_over_layer`` that of a layer with a control
        variate; ``share_of_step`` the layer's part of a training step with
        MobileNetV2 at width 0.35 and the multi-resolution STFT loss; ``*_mb`` the memory of both designs.
    """
    for chain in chains:
        for mode in modes:
            for batch in batches:
                yield from _measure(chain, mode, batch, seconds)


def _measure(chain: BenchmarkChain, mode: str, batch: int, seconds: float) -> list[dict[str, Any]]:
    frames, samples = MODES[mode]
    input, target = notes(batch, frames * samples)
    count = len(chain.spec.parameters)
    steps = _parameters(batch, frames, count)
    parameters = itertools.cycle(steps)
    restart = torch.ones(batch, dtype=torch.bool)
    grad = torch.randn(input.shape, generator=torch.Generator().manual_seed(1))

    def layer_of(workers: int, control_variate: str = "none") -> EffectLayer:
        options = GradientOptions(control_variate=control_variate)
        layer = EffectLayer(chain.spec, options, RenderingOptions(workers=workers))
        layer(input, next(parameters), restart).backward(grad)
        return layer

    def through(layer: EffectLayer) -> None:
        layer(input, next(parameters), ~restart).backward(grad)
        # What it remembers for checkpoints would grow with the benchmark.
        layer.end_excerpts()

    # First: what a process holds when it forks is copied page by page as it is written to.
    original = _Original(chain.spec, batch)
    before = _memory_mb()
    layers = {available_cores(): layer_of(available_cores())}
    layer_mb = _memory_mb() - before
    layers = {workers: layers.get(workers) or layer_of(workers) for workers in sorted({1, available_cores()})}
    learning = layer_of(available_cores(), "regression")
    renderings = learning.renderings
    plain = _plain_loop(chain.spec, input, steps, renderings)
    contenders: dict[str, Callable[[], None]] = {
        "bare": lambda: plain(lambda work, examples: work(range(examples))),
        **{f"threads {workers}": functools.partial(plain, Workers(workers).run) for workers in layers},
        **{f"layer {workers}": functools.partial(through, layer) for workers, layer in layers.items()},
        "regression": lambda: through(learning),
        "original": lambda: original.step(input, next(parameters), grad),
        # With a layer of its own: the others' effects would have a long way to go from its encoder's parameters.
        "step": _training_step(chain.spec, layer_of(available_cores()), input, target, frames),
    }
    try:
        median = _medians(contenders, seconds, f"{chain.name}, {mode}, batch {batch}")
        original_mb = original.memory_mb()
    finally:
        original.close()
    return [
        {
            "chain": chain.name,
            "host": chain.host,
            "mode": mode,
            "batch": batch,
            "parameters": count,
            "renderings": renderings,
            "workers": workers,
            "layer_ms": 1e3 * median[f"layer {workers}"],
            **{f"{name}_ms": 1e3 * median[name] for name in ("bare", "original", "step")},
            "layer_over_limit": median[f"layer {workers}"] / (median["bare"] / workers),
            "threads_over_limit": median[f"threads {workers}"] / (median["bare"] / workers),
            "original_over_layer": median["original"] / median[f"layer {workers}"],
            "regression_over_layer": median["regression"] / median[f"layer {available_cores()}"],
            "share_of_step": median[f"layer {available_cores()}"] / median["step"],
            "layer_mb": layer_mb,
            "original_mb": original_mb,
        }
        for workers in layers
    ]


def _medians(contenders: dict[str, Callable[[], None]], seconds: float, described: str) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + seconds
    with tqdm(desc=described, unit="round", leave=False) as progress:
        while progress.n < _LEAST_ROUNDS or time.perf_counter() < end:
            for name, run in contenders.items():
                # Untimed: another's memory fills the caches, and some contenders share theirs.
                run()
                turn_ends = time.perf_counter() + _TURN_SECONDS
                times[name].append(_timed(run))
                while time.perf_counter() < turn_ends:
                    times[name].append(_timed(run))
            progress.update()
    return {name: statistics.median(of) for name, of in times.items()}


def _parameters(batch: int, frames: int, count: int) -> list[Tensor]:
    """Those of some steps, ``(batch, frames, count)``: as in training, they move a little from one to the next."""
    random = torch.Generator().manual_seed(0)
    where = torch.rand(batch, frames, count, generator=random) * 0.8 + 0.1
    moves = (0.01 * torch.randn(where.shape, generator=random) for _ in range(_STEPS))
    return [(where + move).clamp(0, 1).requires_grad_() for move in moves]


def _plain_loop(spec: ChainSpec, input: Tensor, steps: Sequence[Tensor], renderings: int) -> Callable[[_Run], None]:
    """The layer's renderings, effect by effect, without lanes, checks and gradients.

    Args:
        steps: the parameters of some steps, which are taken in turn.

    Returns:
        What renders a step, and is given who shares out its examples, as :meth:`Workers.run` does.
    """
    chains = [[_parts(spec) for _ in range(renderings)] for _ in range(len(input))]
    audio = _frame_by_frame(input, steps[0])
    # Values as they come in training: other ones for every example, rendering and frame.
    nominal = [parameters.detach().double().numpy() for parameters in steps]
    values = itertools.cycle(
        [[[spec.space.denormalize(p + 0.01 * r) for r in range(renderings)] for p in of_step] for of_step in nominal]
    )

    def render(lanes: range, of_lanes: list[list[np.ndarray]]) -> None:
        for lane in lanes:
            for chain, of_frames in zip(chains[lane], of_lanes[lane]):
                for heard, value in zip(audio[lane], of_frames):
                    for effect, part in chain:
                        heard = effect.render(heard, value[part])

    def step(run: _Run) -> None:
        run(functools.partial(render, of_lanes=next(values)), len(input))

    return step


def _frame_by_frame(input: Tensor, parameters: Tensor) -> list[list[np.ndarray]]:
    """The frames of every example, ``(channels, samples)`` each."""
    return [[frame.contiguous().numpy() for frame in one.chunk(parameters.shape[1], dim=-1)] for one in input]


def _parts(spec: ChainSpec) -> list[tuple[Effect, slice]]:
    return [(part.effect, part.place) for part in spec.build().parts]


def _training_step(
    spec: ChainSpec, layer: EffectLayer, input: Tensor, target: Tensor, frames: int
) -> Callable[[], None]:
    encoder = Encoder(spec.space.defaults, SAMPLE_RATE, EncoderOptions(width=0.35))
    optimizer = torch.optim.Adam(encoder.parameters())
    sizes = [1024, 512, 256] if input.shape[-1] < 2048 else [1024, 2048, 512]
    loss = make_loss(LossOptions(fft_sizes=sizes))
    context, _ = notes(len(input), CONTEXT_SAMPLES)
    going_on = torch.zeros(len(input), dtype=torch.bool)

    def run() -> None:
        optimizer.zero_grad()
        parameters = encoder(context).expand(-1, frames, -1)
        loss(layer(input, parameters, going_on), target).backward()
        optimizer.step()
        layer.end_excerpts()

    return run


class _Original:
    """The original's design: every example has a process, which has a chain for each of three renderings.

    Audio and parameters are pickled through a pipe for the forward pass, and again, with the gradient of the
    output, for the backward pass.
    """

    def __init__(self, spec: ChainSpec, batch: int) -> None:
        context = multiprocessing.get_context("fork")
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(batch):
            ours, theirs = context.Pipe()
            process = context.Process(target=_original_worker, args=(spec, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()

    def step(self, input: Tensor, parameters: Tensor, grad: Tensor) -> None:
        where = parameters.detach().numpy()
        audio, grads = (_frame_by_frame(of, parameters) for of in (input, grad))
        for frame in range(where.shape[1]):
            for i, pipe in enumerate(self._pipes):
                pipe.send((audio[i][frame], where[i, frame]))
            for pipe in self._pipes:
                pipe.recv()
            for i, pipe in enumerate(self._pipes):
                pipe.send((grads[i][frame], audio[i][frame], where[i, frame]))
            for pipe in self._pipes:
                pipe.recv()

    def memory_mb(self) -> float:
        return sum(_memory_mb(process.pid) for process in self._processes)

    def close(self) -> None:
        # Not by closing the pipes: processes that were forked later hold their ends too.
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()


def _original_worker(spec: ChainSpec, pipe: Connection) -> None:
    chains = [spec.build() for _ in range(ORIGINAL_RENDERINGS)]
    random = np.random.default_rng()
    epsilon = 0.01
    pipe.send("ready")
    while True:
        message: tuple[np.ndarray, ...] = pipe.recv()
        if len(message) == 2:
            audio, where = message
            pipe.send(chains[0].render(audio, spec.space.denormalize(where)))
        else:
            grad, audio, where = message
            direction = random.choice([-1.0, 1.0], size=where.shape)
            plus, minus = (
                chain.render(audio, spec.space.denormalize(where + sign * epsilon * direction))
                for chain, sign in zip(chains[1:], (1, -1))
            )
            pipe.send(np.sum(grad * (plus - minus)) / (2 * epsilon * direction))


def _timed(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _memory_mb(process: Any = "self") -> float:
    """The memory of a process in MiB, what it shares with others counted in parts; NaN where unknown."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
