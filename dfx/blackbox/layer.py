"""The effect layer: audio and parameters in, audio out, with a gradient for the parameters."""

import contextlib
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dfx import distributed
from dfx.blackbox.adaptive import make_lanes
from dfx.blackbox.gradient import Estimator, GradientOptions, Points
from dfx.blackbox.isolation import call_in_process
from dfx.blackbox.lanes import Lanes, RenderingOptions
from dfx.blackbox.perturbation import Perturbation
from dfx.blackbox.workers import Workers
from dfx.effects import ChainSpec, RenderError
from dfx.effects.probe import ROUNDING, dead_parameters

_PROBE_SECONDS = 300.0
"""Longest time of a probe in a separate process; the largest chains take a few seconds."""


class EffectLayer(nn.Module):
    """A chain of black-box effects as a layer of a network, the idea of the paper.

    The forward pass renders every example at its parameters and, if a gradient is needed, at perturbed ones: all of
    them together, since none depends on the loss. The backward pass combines their differences with the gradient of
    the loss. Renderings without gradients use separate lanes, so that validation does not change the state of training.

    Args:
        chain: of effects.
        gradient: options of the gradient estimator.
        rendering: options of the rendering.

    Attributes:
        renderings: renderings per example in a step with gradients.
        progress: fraction of the run that is complete, in [0, 1], for the schedule of epsilon; set it from outside.
    """

    def __init__(
        self, chain: ChainSpec, gradient: GradientOptions | None = None, rendering: RenderingOptions | None = None
    ) -> None:
        super().__init__()
        self.chain = chain
        self.gradient = gradient or GradientOptions()
        smoothed = [p.name for p in chain.parameters if p.smoothing_ms > 0]
        if smoothed and self.gradient.redraw == "frame":
            warnings.warn(
                f"the effects smooth {', '.join(smoothed)}: with new directions every frame, differences lag behind "
                "the parameters and their gradient is biased; set `redraw: excerpt`",
                stacklevel=2,
            )
        self.renderings = self.gradient.renderings(len(chain.parameters))
        self.progress = 0.0
        self._rendering = rendering or RenderingOptions()
        workers = Workers(self._rendering.workers)
        self._estimator = Estimator(self.gradient, chain.space.names, chain.sample_rate, workers)
        directions = "coordinate" if self.gradient.estimator == "finite_difference" else self.gradient.directions
        self._perturbation = Perturbation(directions, self.gradient.redraw, self.gradient.draws, self.gradient.seed)
        training = {"keep_history": True, "restart_chains": self.gradient.restart == "excerpt"}
        self._training_lanes = make_lanes(chain, self.renderings, self._rendering, **training)
        self._evaluation_lanes = make_lanes(chain, 1, self._rendering)

    def forward(self, input: Tensor, parameters: Tensor, restart: Tensor) -> Tensor:
        """Render the next frame of every example, or several consecutive frames.

        Args:
            input: ``(batch, samples)`` or ``(batch, channels, samples)``, nominally in [-1, 1].
            parameters: ``(batch, P)`` in [0, 1], constant over all samples; or ``(batch, frames, P)``, each frame
                for an equal part of the samples. The gradient of a frame is that of its own samples.
            restart: bool ``(batch,)``, true for examples that do not continue those of the last call.

        Returns:
            The output, with shape, type and device of ``input``, delayed by the chain's latency.

        Raises:
            ValueError: for wrong shapes, or an input that requires a gradient, for which there is no estimate.
            RenderError: if parameters are not in [0, 1], or if an effect fails; the message names it and its values.
        """
        if parameters.dim() == 2:
            parameters = parameters[:, None]
        audio = input.detach().to("cpu", torch.float32).contiguous().numpy()
        audio = audio if input.dim() == 3 else audio[:, None]
        nominal = parameters.detach().to("cpu", torch.float64).numpy()
        restarts = restart.to("cpu", torch.bool).numpy()
        self._check(input, audio, nominal, restarts)
        if not (torch.is_grad_enabled() and parameters.requires_grad):
            rendered = self._render(self._evaluation_lanes, audio, nominal[:, None], restarts)
            return torch.from_numpy(rendered[:, 0].reshape(input.shape)).to(input)

        # Draw for the examples of all ranks, since the variance depends on the directions of the whole batch.
        all_restarts = distributed.gather_array(restarts)
        directions = self._perturbation.next(all_restarts, *nominal.shape[1:])[distributed.rank_rows(len(all_restarts))]
        points = self._estimator.points(nominal, directions, self.progress)
        rendered = self._render(self._training_lanes, audio, points.parameters, restarts)
        output = torch.from_numpy(rendered[:, 0].reshape(input.shape)).to(input)
        return _BlackBox.apply(parameters, output, rendered, points, self._estimator)

    def end_excerpts(self) -> None:
        """Discard the history of the training lanes; every lane must restart with its next frame."""
        self._training_lanes.end_excerpts()

    def streaming_state(self) -> dict[str, Any]:
        """Return the state of directions, estimator and the training lanes of all ranks, for a checkpoint."""
        return {
            "perturbation": self._perturbation.state_dict(),
            "estimator": self._estimator.state_dict(),
            "lanes": {"history": distributed.gather_list(self._training_lanes.state_dict()["history"])},
        }

    def load_streaming_state(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`streaming_state`."""
        self._perturbation.load_state_dict(state["perturbation"])
        self._estimator.load_state_dict(state["estimator"])
        history = state["lanes"]["history"]
        self._training_lanes.load_state_dict({"history": history[distributed.rank_rows(len(history))]})

    def dead_parameters(self) -> list[str]:
        """Return the names of the parameters without effect on the sound; see :mod:`dfx.effects.probe`.

        Raises:
            RenderError: if the effects crash or hang, which this process survives if they are isolated.
        """
        if self._rendering.isolate:
            return call_in_process(dead_parameters, self.chain, seconds=_PROBE_SECONDS)
        return dead_parameters(self.chain)

    @torch.no_grad()
    def sensitivity(self, input: Tensor, parameters: Tensor, step: float = 0.05) -> np.ndarray:
        """Return the level by which the output changes when each parameter moves by a step.

        New chains render, so that the state of training and validation does not change.

        Args:
            input: ``(channels, samples)``, rendered from a restart.
            parameters: ``(frames, P)`` in [0, 1], each frame for an equal part of the samples.
            step: by which each parameter moves in turn, in units of its range.

        Returns:
            ``(P,)``: the level of the change relative to the output, in dB; minus infinity for rounding errors.

        Raises:
            RenderError: if an effect fails.
        """
        nominal = parameters.to("cpu", torch.float64).numpy()
        count = nominal.shape[1]
        # A row for the nominal parameters and one for each that moves: inwards, where no bound is in the way.
        moved = nominal + np.where(nominal > 0.5, -step, step) * np.eye(count + 1, count, -1)[:, None]
        audio = np.broadcast_to(input.to("cpu", torch.float32).numpy(), (count + 1, *input.shape))
        with contextlib.closing(make_lanes(self.chain, 1, self._rendering)) as lanes:
            rendered = self._render(lanes, audio, moved[:, None], np.ones(count + 1, dtype=bool))[:, 0]
        change = np.sqrt(np.square(rendered[1:] - rendered[0], dtype=np.float64).mean(axis=(1, 2)))
        level = np.sqrt(np.square(rendered[0], dtype=np.float64).mean())
        change[change <= ROUNDING * level] = 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(change > 0, 20 * np.log10(change / level), -np.inf)

    def _render(self, lanes: Lanes, audio: np.ndarray, parameters: np.ndarray, restart: np.ndarray) -> np.ndarray:
        return lanes.render(audio, self.chain.space.denormalize(parameters), restart)

    def _check(self, input: Tensor, audio: np.ndarray, parameters: np.ndarray, restart: np.ndarray) -> None:
        expected = len(self.chain.parameters)
        batch, channels, samples = audio.shape if audio.ndim == 3 else (0, 0, 0)
        if input.dim() not in (2, 3) or samples == 0:
            raise ValueError(f"input is {tuple(input.shape)}; expected (batch, samples) or (batch, channels, samples)")
        if channels != self.chain.channels:
            raise ValueError(f"input has {channels} channels; the effects were built for {self.chain.channels}")
        if parameters.ndim != 3 or parameters.shape[::2] != (batch, expected):
            raise ValueError(f"parameters are {parameters.shape}; expected {(batch, expected)} or (batch, frames, P)")
        if samples % parameters.shape[1]:
            raise ValueError(f"{samples} samples cannot be split into {parameters.shape[1]} equal frames")
        if restart.shape != (batch,):
            raise ValueError(f"restart is {restart.shape}; expected {(batch,)}")
        if input.requires_grad:
            raise ValueError("the effect layer has no gradient with respect to its input: detach it")
        # Written so that NaN fails as well.
        if not (parameters.min() >= 0.0 and parameters.max() <= 1.0):
            cause = "the weights of the network that predicts them have diverged; lower the learning rate"
            if not np.isfinite(audio).all():
                cause = "the audio has samples that are not finite; set data.check_audio to find the file"
            elif np.isfinite(parameters).all():
                cause = "only values in [0, 1] can be rendered"
            raise RenderError(f"parameters are not finite or not in [0, 1]: {cause}")


class _BlackBox(torch.autograd.Function):
    """Returns rendered audio; its backward pass estimates the gradient of the parameters."""

    @staticmethod
    def forward(
        ctx: Any, parameters: Tensor, output: Tensor, rendered: np.ndarray, points: Points, estimator: Estimator
    ) -> Tensor:
        ctx.dtype, ctx.device = parameters.dtype, parameters.device
        ctx.rendered, ctx.points, ctx.estimator = rendered, points, estimator
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad_output.to("cpu", torch.float32).contiguous().numpy().reshape(ctx.rendered[:, 0].shape)
        estimate = ctx.estimator.estimate(grad, ctx.rendered, ctx.points)
        return torch.from_numpy(estimate).to(ctx.device, ctx.dtype), None, None, None, None
