"""Benchmark of speed: the effect layer against its bare effects and against the paper's released design."""

import contextlib
import functools
import itertools
import math
import multiprocessing
import statistics
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dfx.benchmark import MODES, SAMPLE_RATE
from dfx.benchmark.chains import BenchmarkChain, notes
from dfx.blackbox import EffectLayer, GradientOptions, RenderingOptions
from dfx.blackbox.workers import Workers, available_cores
from dfx.effects import ChainSpec
from dfx.encoder import Encoder, EncoderOptions
from dfx.losses import LossOptions, make_loss

CONTEXT_SAMPLES = 40960
ORIGINAL_RENDERINGS = 3
_STEPS = 8
_MIN_ROUNDS = 3
_TURN_SECONDS = 0.02
_MAX_DEVIATION = 0.1
"""Largest excess over the CPU time at which the control passes, as a fraction of it."""


_Run = Callable[[Callable[[range], None], int], None]
"""Runs work on rows, as :meth:`dfx.blackbox.workers.Workers.run`."""


def speed(
    chains: Sequence[BenchmarkChain], modes: Sequence[str], batches: Sequence[int], seconds: float
) -> Iterator[dict[str, Any]]:
    """Time the layer against its bare effects, and against the design of the released code.

    Args:
        chains: to render.
        modes: ``frame``, 1024 samples per step; ``frames``, 16 such frames, each with its own parameters; or
            ``excerpt``, two seconds.
        batches: numbers of examples in a step.
        seconds: per chain, mode and batch. The candidates take turns of at least 20 ms or one call, each after an
            untimed call, in at least three rounds. A control runs before and after every round, see :class:`_Control`.

    Yields:
        A row for each chain, mode, batch and number of workers, 1 and all cores: medians over the rounds in which both
        controls found enough cores free, NaN if there are none. The limit is the time of the same renderings in a plain
        loop on one thread, divided by the number of workers. It needs as many cores; the figures from
        ``original_over_layer`` on need all.

        - ``rounds``, ``passed``: all rounds, and those in which as many cores as workers were free;
        - ``layer_over_limit``: forward and backward pass of the layer;
        - ``threads_over_limit``: the plain loop on as many threads, without the layer;
        - ``original_over_layer``: the original design (a process per example, pickled audio, two-sided SPSA);
        - ``isolated_over_layer``: a layer with its effects in separate processes, one per core;
        - ``regression_over_layer``: a layer with a control variate;
        - ``share_of_step``: the layer in a training step with MobileNetV2 (width 0.35) and multi-resolution STFT loss;
        - ``layer_mb``, ``original_mb``: memory in MiB.
    """
    for chain, mode, batch in itertools.product(chains, modes, batches):
        yield from _measure(chain, mode, batch, seconds)


def _measure(chain: BenchmarkChain, mode: str, batch: int, seconds: float) -> Iterator[dict[str, Any]]:
    frames, samples = MODES[mode]
    input, target = notes(batch, frames * samples)
    count = len(chain.spec.parameters)
    steps = _parameters(batch, frames, count)
    parameters = itertools.cycle(steps)
    restart = torch.ones(batch, dtype=torch.bool)
    grad = torch.randn(input.shape, generator=torch.Generator().manual_seed(1))

    def make_layer(workers: int, options: GradientOptions | None = None, isolate: bool = False) -> EffectLayer:
        layer = EffectLayer(chain.spec, options, RenderingOptions(workers=workers, isolate=isolate))
        layer(input, next(parameters), restart).backward(grad)
        return layer

    def run_layer(layer: EffectLayer) -> None:
        layer(input, next(parameters), ~restart).backward(grad)
        # The history would grow with the benchmark.
        layer.end_excerpts()

    # Forked first, because later every page that a fork shares would be copied when it is written to.
    cores = available_cores()
    with (
        contextlib.closing(_OriginalDesign(chain.spec, batch)) as original,
        contextlib.closing(_Control(cores)) as control,
    ):
        before = _memory_mb()
        layers = {cores: make_layer(cores)}
        layer_mb = _memory_mb() - before
        layers = {workers: layers.get(workers) or make_layer(workers) for workers in sorted({1, cores})}
        with_regression = make_layer(cores, GradientOptions(control_variate="regression"))
        plain = _plain_loop(chain.spec, input, steps, with_regression.renderings)
        candidates: dict[str, Callable[[], None]] = {
            "bare": lambda: plain(lambda work, examples: work(range(examples))),
            **{f"threads {workers}": functools.partial(plain, Workers(workers).run) for workers in layers},
            **{f"layer {workers}": functools.partial(run_layer, layer) for workers, layer in layers.items()},
            "isolated": functools.partial(run_layer, make_layer(cores, isolate=True)),
            "regression": lambda: run_layer(with_regression),
            "original": lambda: original.step(input, next(parameters), grad),
            # A separate layer, since the encoder predicts parameters far from those of `steps`.
            "step": _training_step(make_layer(cores), input, target, frames),
        }
        label = f"{chain.name}, {mode}, batch {batch}"
        medians, rounds, passed = _medians(candidates, control.free_cores, sorted(layers), seconds, label)
        original_mb = original.memory_mb()
    row = {"chain": chain.name, "host": chain.spec.recipes[0].host, "mode": mode, "batch": batch, "parameters": count}
    row |= {"renderings": with_regression.renderings, "layer_mb": layer_mb, "original_mb": original_mb}
    on_all = medians[cores]
    row |= {"rounds": rounds, "original_ms": 1e3 * on_all["original"], "step_ms": 1e3 * on_all["step"]}
    for workers, median in medians.items():
        layer, bare = median[f"layer {workers}"], median["bare"]
        yield {
            **row,
            "workers": workers,
            "passed": passed[workers],
            "layer_ms": 1e3 * layer,
            "bare_ms": 1e3 * bare,
            "layer_over_limit": layer / (bare / workers),
            "threads_over_limit": median[f"threads {workers}"] / (bare / workers),
            "original_over_layer": on_all["original"] / on_all[f"layer {workers}"],
            "isolated_over_layer": on_all["isolated"] / on_all[f"layer {cores}"],
            "regression_over_layer": on_all["regression"] / on_all[f"layer {cores}"],
            "share_of_step": on_all[f"layer {cores}"] / on_all["step"],
        }


def _medians(
    candidates: dict[str, Callable[[], None]],
    free_cores: Callable[[], int],
    workers: Sequence[int],
    seconds: float,
    label: str,
) -> tuple[dict[int, dict[str, float]], int, dict[int, int]]:
    """Return the median time of each candidate, the number of rounds, and how many of them count.

    Times and counts are given for each number of workers: of the rounds with as many free cores.
    """
    turns: list[tuple[int, dict[str, list[float]]]] = []
    free = free_cores()
    end = time.perf_counter() + seconds
    with tqdm(desc=label, unit="round", leave=False) as progress:
        while progress.n < _MIN_ROUNDS or time.perf_counter() < end:
            turn = {name: _time_turn(run) for name, run in candidates.items()}
            was_free, free = free, free_cores()
            turns.append((min(was_free, free), turn))
            progress.update()
    medians, passed = {}, {}
    for count in workers:
        counted = [turn for cores, turn in turns if cores >= count]
        calls = {name: [seconds for turn in counted for seconds in turn[name]] for name in candidates}
        medians[count] = {name: statistics.median(of) if of else math.nan for name, of in calls.items()}
        passed[count] = len(counted)
    return medians, len(turns), passed


def _time_turn(run: Callable[[], None]) -> list[float]:
    # Untimed: the caches still hold the memory of another candidate.
    run()
    turn: list[float] = []
    while sum(turn) < _TURN_SECONDS:
        turn.append(timeit.timeit(run, number=1))
    return turn


def _parameters(batch: int, frames: int, count: int) -> list[Tensor]:
    """Return parameters of several steps, ``(batch, frames, count)`` each, that differ slightly as in training."""
    random = torch.Generator().manual_seed(0)
    nominal = torch.rand(batch, frames, count, generator=random) * 0.8 + 0.1
    moves = (0.01 * torch.randn(nominal.shape, generator=random) for _ in range(_STEPS))
    return [(nominal + move).clamp(0, 1).requires_grad_() for move in moves]


def _plain_loop(spec: ChainSpec, input: Tensor, steps: Sequence[Tensor], renderings: int) -> Callable[[_Run], None]:
    """Return a function that makes the layer's renderings of the next of ``steps``, without lanes and gradients."""
    chains = [[spec.build().parts for _ in range(renderings)] for _ in range(len(input))]
    audio = _frame_by_frame(input, steps[0])
    # As in training, values differ between examples, renderings and frames.
    nominal = [parameters.detach().double().numpy() for parameters in steps]
    values = itertools.cycle(
        [[[spec.space.denormalize(p + 0.01 * r) for r in range(renderings)] for p in step] for step in nominal]
    )

    def render(lanes: range, step_values: list[list[np.ndarray]]) -> None:
        for lane in lanes:
            for parts, frame_values in zip(chains[lane], step_values[lane]):
                for frame, value in zip(audio[lane], frame_values):
                    for part in parts:
                        frame = part.effect.render(frame, value[part.place])

    def step(run: _Run) -> None:
        run(functools.partial(render, step_values=next(values)), len(input))

    return step


def _frame_by_frame(input: Tensor, parameters: Tensor) -> list[list[np.ndarray]]:
    """Return the frames of every example, ``(channels, samples)`` each."""
    return [[frame.contiguous().numpy() for frame in row.chunk(parameters.shape[1], dim=-1)] for row in input]


def _training_step(layer: EffectLayer, input: Tensor, target: Tensor, frames: int) -> Callable[[], None]:
    encoder = Encoder(layer.chain.space.defaults.tolist(), SAMPLE_RATE, EncoderOptions(width=0.35))
    optimizer = torch.optim.Adam(encoder.parameters())
    sizes = [1024, 512, 256] if input.shape[-1] < 2048 else [1024, 2048, 512]
    loss = make_loss(LossOptions(fft_sizes=sizes))
    context, _ = notes(len(input), CONTEXT_SAMPLES)
    restart = torch.zeros(len(input), dtype=torch.bool)

    def run() -> None:
        optimizer.zero_grad()
        parameters = encoder(context).expand(-1, frames, -1)
        loss(layer(input, parameters, restart), target).backward()
        optimizer.step()
        layer.end_excerpts()

    return run


class _Processes:
    """Forked processes that answer messages through pipes.

    Args:
        work: called in every process with its pipe and arguments.
        arguments: of each process.
    """

    def __init__(self, work: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> None:
        context = multiprocessing.get_context("fork")
        self.pipes: list[Connection] = []
        self.processes = []
        for of_process in arguments:
            pipe, worker_end = context.Pipe()
            process = context.Process(target=work, args=(worker_end, *of_process), daemon=True)
            process.start()
            worker_end.close()
            self.pipes.append(pipe)
            self.processes.append(process)

    def ask(self, messages: Sequence[Any]) -> list[Any]:
        """Send one message to each of the first processes, and return their answers."""
        for pipe, message in zip(self.pipes, messages):
            pipe.send(message)
        return [pipe.recv() for pipe, _ in zip(self.pipes, messages)]

    def close(self) -> None:
        # Closing the pipes is not enough: processes that were forked later hold their ends too.
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()


class _Control(_Processes):
    """Tests whether the machine leaves its cores to the benchmark.

    A process for each core spins through a loop: first one of them alone, then all together. On free cores, both take
    the CPU time of the first, however fast the cores are at the moment. Compared with each other, they would also agree
    while other work slows both.
    """

    _ITERATIONS = 1_000_000

    def __init__(self, cores: int) -> None:
        super().__init__(_spin, [()] * cores)

    def free_cores(self) -> int:
        """Return the number of all cores if they are free, 1 if that is shown of one core only, or 0."""
        messages = [self._ITERATIONS] * len(self.pipes)
        start = time.perf_counter()
        (cpu_seconds,) = self.ask(messages[:1])
        middle = time.perf_counter()
        self.ask(messages)
        alone, together = middle - start, time.perf_counter() - middle
        longest = (1 + _MAX_DEVIATION) * cpu_seconds
        if alone > longest:
            return 0
        return 1 if together > longest else len(messages)


def _spin(pipe: Connection) -> None:
    """Spin for each number of iterations that is received, and answer with the CPU time in seconds."""
    while True:
        iterations = pipe.recv()
        start = time.process_time()
        for _ in range(iterations):
            pass
        pipe.send(time.process_time() - start)


class _OriginalDesign(_Processes):
    """The design of the paper's released code: a process per example, with a chain for each of three renderings.

    Audio and parameters are pickled through a pipe for the forward pass, and again, with the gradient of the output,
    for the backward pass.
    """

    def __init__(self, spec: ChainSpec, batch: int) -> None:
        super().__init__(_original_worker, [(spec,)] * batch)
        # Each process builds its chains before it answers.
        self.ask([None] * batch)

    def step(self, input: Tensor, parameters: Tensor, grad: Tensor) -> None:
        nominal = parameters.detach().numpy()
        audio, grads = (_frame_by_frame(signal, parameters) for signal in (input, grad))
        for frame in range(nominal.shape[1]):
            messages = [(audio[example][frame], values[frame]) for example, values in enumerate(nominal)]
            self.ask(messages)
            self.ask([(*message, grads[example][frame]) for example, message in enumerate(messages)])

    def memory_mb(self) -> float:
        return sum(_memory_mb(process.pid) for process in self.processes)


def _original_worker(pipe: Connection, spec: ChainSpec) -> None:
    chains = [spec.build() for _ in range(ORIGINAL_RENDERINGS)]
    pipe.recv()
    pipe.send("ready")
    random = np.random.default_rng()
    epsilon = 0.01
    while True:
        audio, nominal, *grad = pipe.recv()
        if not grad:
            pipe.send(chains[0].render(audio, spec.space.denormalize(nominal)))
            continue
        direction = random.choice([-1.0, 1.0], size=nominal.shape)
        plus, minus = (
            chain.render(audio, spec.space.denormalize(nominal + sign * epsilon * direction))
            for chain, sign in zip(chains[1:], (1, -1))
        )
        pipe.send(np.sum(grad[0] * (plus - minus)) / (2 * epsilon * direction))


def _memory_mb(process: Any = "self") -> float:
    """Return the proportional set size of a process in MiB, or NaN where the system does not report it."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
