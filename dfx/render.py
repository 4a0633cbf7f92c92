"""A whole recording through a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from dfx.tasks.task import Task

_BATCH = 16


class Rendering(NamedTuple):
    """What a model makes of a recording.

    Args:
        output: ``(channels, samples)``, aligned with the input.
        automation: float64 ``(frames, P)``, the values of the parameters in their units.
    """

    output: Tensor
    automation: np.ndarray


@torch.no_grad()
def render(task: Task, audio: Tensor) -> Rendering:
    """Renders ``audio`` frame by frame, as in training, from a fresh start; the latency is taken out.

    Args:
        task: the model; it is set to evaluation for the while.
        audio: float32 ``(channels, samples)`` at the task's sample rate, with its channels.
    """
    was_training = task.training
    task.eval()
    try:
        return _render(task, audio)
    finally:
        task.train(was_training)


def _render(task: Task, audio: Tensor) -> Rendering:
    window, latency = task.window, task.window.latency_samples
    frame = window.frame_samples
    frames = max(1, -(-(audio.shape[1] + latency) // frame))
    after = frames * frame + window.samples - window.before - frame - audio.shape[1]
    padded = torch.nn.functional.pad(audio, (window.before, after))
    windows = padded.unfold(1, window.samples, frame).transpose(0, 1)

    parameters: List[Tensor] = [
        task.encoder(window.context(some).to(task.device)).cpu() for some in windows.split(_BATCH)
    ]
    automation = task.chain.space.denormalize(torch.cat(parameters).numpy())
    chain = task.chain.build()
    outputs = [
        chain.render(window.frame(one).contiguous().numpy(), values) for one, values in zip(windows, automation)
    ]
    output = torch.from_numpy(np.concatenate(outputs, axis=1))
    return Rendering(output[:, latency : latency + audio.shape[1]], automation)
