"""Whether training is well: its gradient, and where its time goes."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from dfx.loggers.best_effort import aside
from dfx.tasks import Task


class Health(pl.Callback):
    """Logs, at the second step of a stage and every so many after it:

    - ``gradient/norm``: of the gradient of all weights, before it is clipped.
    - ``gradient/signal_to_noise``: of the encoder's gradient, from two estimates of it: see :func:`signal_to_noise`.
    - ``speed/renderings_per_second``: how many frames are rendered, nominal and perturbed ones of all examples, in
      a second of a training step.
    - ``speed/share_effects``, ``speed/share_encoder``, ``speed/share_loss``: the shares of a training step that are
      spent, forwards and backwards, in the effect layer (rendering and the estimator), the encoder, and the loss.
      What is left is the optimizer's and Lightning's. Reading the data comes between the steps and is not in it.
    - ``speed/share_logging``: what all logging has taken so far of the time of this fit.

    Args:
        every_n_steps: how often.
    """

    def __init__(self, every_n_steps: int) -> None:
        self._every_n_steps = every_n_steps
        self._step: _Step | None = None

    @aside
    def on_fit_start(self, trainer: pl.Trainer, pl_module: Task) -> None:
        self._start = time.perf_counter(), aside.seconds

    @aside
    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Task, batch: Any, batch_idx: int) -> None:
        # Not the first step: threads and live effects only come up with it.
        # Nor on one rank alone: passes backwards through batch normalization are those of all.
        if trainer.global_step % self._every_n_steps == min(1, self._every_n_steps - 1):
            self._step = _Step(pl_module)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Task, loss: Tensor) -> None:
        if self._step:
            self._step.begin_backward()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Task) -> None:
        if self._step:
            self._step.end_backward()

    @aside
    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Task, optimizer: Any) -> None:
        if self._step:
            gradients = [weights.grad for weights in pl_module.parameters() if weights.grad is not None]
            self._step.metrics["gradient/norm"] = float(torch.nn.utils.get_total_norm(gradients))

    @aside
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._step:
            self._log(trainer, self._step.end())
            self._step = None

    @aside
    def on_train_end(self, trainer: pl.Trainer, pl_module: Task) -> None:
        self._log(trainer, {})

    def _log(self, trainer: pl.Trainer, metrics: dict[str, float]) -> None:
        start, before = self._start
        share = (aside.seconds - before) / (time.perf_counter() - start)
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.log_metrics({**metrics, "speed/share_logging": share}, step=max(0, trainer.global_step - 1))


def signal_to_noise(one: list[Tensor], other: list[Tensor]) -> float:
    """The signal-to-noise ratio of the sum of two estimates of one gradient, as a ratio of powers.

    With ``a`` and ``b`` independent and of one mean, ``4 a.b`` is on average the power of their sum's mean, and
    ``|a - b|^2`` that of its error. About 0 says that there is nothing but noise; the sign is then chance.

    Here they are the gradients of the examples of a batch with even and with odd indices, at the cost of two more
    passes backwards through the encoder and of no rendering. So the noise is all that makes the steps of training
    differ: that of the examples, and that of the directions. Where directions are spread over a batch so
    that their errors cancel (``hadamard``), less of them is left in the whole batch than its halves tell, and the ratio
    is too small; an error that both halves share, such as that of a control variate, counts as signal.

    Args:
        one, other: the gradients of all weights.
    """
    product, difference = (
        float(torch.stack(parts).sum())
        for parts in (
            [torch.dot(a.flatten(), b.flatten()) for a, b in zip(one, other)],
            [(a - b).square().sum() for a, b in zip(one, other)],
        )
    )
    return 4 * product / difference if difference > 0 else float("nan")


class _Step:
    """Looks at one training step, through hooks that are there for that step only."""

    def __init__(self, task: Task) -> None:
        self.metrics: dict[str, float] = {}
        self._task = task
        self._seconds = {"effects": 0.0, "encoder": 0.0, "loss": 0.0}
        self._renderings = 0
        self._begun: dict[str, float] = {}
        self._turns: list[tuple[str, float]] = []
        # What the looking itself takes, and is no part of the step.
        self._beside = 0.0
        self._hooks = []
        for name, part in {"effects": task.effect_layer, "encoder": task.encoder, "loss": task.loss}.items():
            self._hooks += [
                part.register_forward_pre_hook(lambda module, inputs, name=name: self._begin(name)),
                part.register_forward_hook(lambda module, inputs, output, name=name: self._end(name, inputs, output)),
            ]
        self._start = self._now()

    def _now(self) -> float:
        # A GPU works on while Python is elsewhere already.
        if self._task.device.type == "cuda":
            torch.cuda.synchronize(self._task.device)
        return time.perf_counter()

    def _begin(self, part: str) -> None:
        self._begun[part] = self._now()

    def _end(self, part: str, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._seconds[part] += self._now() - self._begun[part]
        if part == "effects":
            batch, frames = (*inputs[1].shape[:-1], 1)[:2]
            self._renderings = batch * frames * self._task.effect_layer.renderings
            output.register_hook(lambda gradient: self._turn("effects"))
        if part == "encoder":
            self._hooks.append(output.register_hook(lambda gradient: self._compare_halves(output, gradient)))

    def begin_backward(self) -> None:
        self._turn("loss")

    def end_backward(self) -> None:
        self._turn("")
        for (part, start), (_, end) in zip(self._turns, self._turns[1:]):
            self._seconds[part] += end - start

    def _turn(self, part: str) -> None:
        """The pass backwards comes to a part."""
        self._turns.append((part, self._now()))

    @aside
    def _compare_halves(self, parameters: Tensor, gradient: Tensor) -> None:
        start = self._now()
        # The last hook is the one that calls this: the passes below would call it again.
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
        beside = self._now() - start
        self._beside += beside
        # As if the time had not passed: the parts before began later.
        self._turns = [(part, begun + beside) for part, begun in self._turns]
        self._turn("encoder")

    def end(self) -> dict[str, float]:
        """The metrics of the step."""
        for hook in self._hooks:
            hook.remove()
        seconds = self._now() - self._start - self._beside
        if self._renderings:
            self.metrics["speed/renderings_per_second"] = self._renderings / seconds
        self.metrics.update((f"speed/share_{part}", spent / seconds) for part, spent in self._seconds.items())
        return self.metrics
