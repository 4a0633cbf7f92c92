"""The health of training: the quality of its gradient, and how its time is spent."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from dfx.loggers.best_effort import best_effort
from dfx.tasks import Task


class Health(pl.Callback):
    """Logs, at the second step of a stage and every ``every_n_steps`` after it:

    - ``gradient/norm``: norm of the gradient of all weights, before clipping.
    - ``gradient/signal_to_noise``: that of the encoder's gradient, from two estimates: see :func:`signal_to_noise`.
    - ``speed/renderings_per_second``: frames rendered per second of a training step, over nominal and perturbed
      parameters of all examples.
    - ``speed/share_effects``, ``speed/share_encoder``, ``speed/share_loss``: shares of a training step's time spent in
      the forward and backward passes of the effect layer (rendering and estimator), the encoder, and the loss. The
      remainder is the optimizer and Lightning. Reading the data happens between steps and is not included.
    - ``speed/share_logging``: share of all logging in the time of this fit so far.
    """

    def __init__(self, every_n_steps: int) -> None:
        self._every_n_steps = every_n_steps
        self._step: _Step | None = None

    @best_effort
    def on_fit_start(self, trainer: pl.Trainer, pl_module: Task) -> None:
        self._start = time.perf_counter(), best_effort.seconds

    @best_effort
    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Task, batch: Any, batch_idx: int) -> None:
        # Not the first step, which starts threads and live effects. On all ranks, since the backward pass through
        # batch normalization involves all of them.
        if trainer.global_step % self._every_n_steps == min(1, self._every_n_steps - 1):
            self._step = _Step(pl_module)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        if self._step:
            self._step.begin_backward()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._step:
            self._step.end_backward()

    @best_effort
    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Task, optimizer: Any) -> None:
        if self._step:
            gradients = [weights.grad for weights in pl_module.parameters() if weights.grad is not None]
            self._step.metrics["gradient/norm"] = float(torch.nn.utils.get_total_norm(gradients))

    @best_effort
    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if self._step:
            self._log(trainer, self._step.end())
            self._step = None

    @best_effort
    def on_train_end(self, trainer: pl.Trainer, pl_module: Task) -> None:
        self._log(trainer, {})

    def _log(self, trainer: pl.Trainer, metrics: dict[str, float]) -> None:
        start, before = self._start
        share = (best_effort.seconds - before) / (time.perf_counter() - start)
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.log_metrics({**metrics, "speed/share_logging": share}, step=max(0, trainer.global_step - 1))


def signal_to_noise(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Return the signal-to-noise ratio of the sum of two estimates of one gradient, as a ratio of powers.

    Both estimates hold the gradients of all weights, in the same order.
    For independent ``a`` and ``b`` with the same mean, the expectation of ``4 a.b`` is the power of the mean of their
    sum, and that of ``|a - b|^2`` the variance of their sum. A value near 0, of either sign, means noise only.

    :class:`Health` compares the gradients of a batch's examples with even and with odd indices, which costs two more
    backward passes through the encoder and no rendering. The noise then includes all variance between training steps:
    that of the examples and that of the directions. The ratio is too small for directions whose errors cancel over a
    batch (``hadamard``), since they cancel less within its halves. An error common to both halves, such as the bias
    of a control variate, counts as signal.
    """
    product = float(torch.stack([torch.dot(a.flatten(), b.flatten()) for a, b in zip(one, other)]).sum())
    difference = float(torch.stack([(a - b).square().sum() for a, b in zip(one, other)]).sum())
    return 4 * product / difference if difference > 0 else float("nan")


class _Step:
    """Measures one training step through hooks, which are removed at its end."""

    def __init__(self, task: Task) -> None:
        self.metrics: dict[str, float] = {}
        self._task = task
        self._seconds = {"effects": 0.0, "encoder": 0.0, "loss": 0.0}
        self._renderings = 0
        self._started: dict[str, float] = {}
        # The parts of the backward pass, in order, each with its beginning.
        self._backward: list[tuple[str, float]] = []
        # Time of the measurement itself, which is not part of the step.
        self._overhead = 0.0
        self._hooks = []
        for name, part in {"effects": task.effect_layer, "encoder": task.encoder, "loss": task.loss}.items():
            self._hooks.append(part.register_forward_pre_hook(partial(self._begin, name)))
            self._hooks.append(part.register_forward_hook(partial(self._end, name)))
        self._start = self._now()

    def _now(self) -> float:
        # CUDA runs asynchronously: synchronize before reading the clock.
        if self._task.device.type == "cuda":
            torch.cuda.synchronize(self._task.device)
        return time.perf_counter()

    def _begin(self, part: str, module: Any, inputs: Any) -> None:
        self._started[part] = self._now()

    def _end(self, part: str, module: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._seconds[part] += self._now() - self._started[part]
        if part == "effects":
            batch, frames = (*inputs[1].shape[:-1], 1)[:2]
            self._renderings = batch * frames * self._task.effect_layer.renderings
            output.register_hook(lambda gradient: self.begin_backward("effects"))
        if part == "encoder":
            self._hooks.append(output.register_hook(lambda gradient: self._compare_halves(output, gradient)))

    def begin_backward(self, part: str = "loss") -> None:
        self._backward.append((part, self._now()))

    def end_backward(self) -> None:
        self.begin_backward("")
        for (part, start), (_, end) in zip(self._backward, self._backward[1:]):
            self._seconds[part] += end - start

    @best_effort
    def _compare_halves(self, parameters: Tensor, gradient: Tensor) -> None:
        start = self._now()
        # The last hook calls this method: the backward passes below would call it again.
        self._hooks.pop().remove()
        pairs = len(gradient) // 2
        if pairs:
            weights = [weight for weight in self._task.encoder.parameters() if weight.requires_grad]
            halves = []
            for first in (0, 1):
                half = torch.zeros_like(gradient)
                half[first : 2 * pairs : 2] = gradient[first : 2 * pairs : 2]
                halves.append(torch.autograd.grad(parameters, weights, half, retain_graph=True))
            self.metrics["gradient/signal_to_noise"] = signal_to_noise(*halves)
        overhead = self._now() - start
        self._overhead += overhead
        # Exclude this time from the part that is being measured.
        self._backward = [(part, begin + overhead) for part, begin in self._backward]
        self.begin_backward("encoder")

    def end(self) -> dict[str, float]:
        """Remove the hooks, and return the metrics of the step."""
        for hook in self._hooks:
            hook.remove()
        seconds = self._now() - self._start - self._overhead
        if self._renderings:
            self.metrics["speed/renderings_per_second"] = self._renderings / seconds
        self.metrics.update((f"speed/share_{part}", spent / seconds) for part, spent in self._seconds.items())
        return self.metrics
