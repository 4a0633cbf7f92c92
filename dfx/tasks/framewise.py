"""A whole recording through a task, frame by frame as in training: what evaluation compares."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from dfx.tasks.task import Task

_CHUNK = 64
"""How many frames the encoder hears at once."""


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
        audio: float32 ``(channels, samples)`` at the task's sample rate, with its channels, treated.
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
    after = dataclasses.replace(window, frames=frames).samples - window.before - audio.shape[1]
    padded = torch.nn.functional.pad(audio, (window.before, after))

    parameters: list[Tensor] = []
    for first in range(0, frames, _CHUNK):
        chunk = dataclasses.replace(window, frames=min(_CHUNK, frames - first))
        context = chunk.context(padded[:, first * frame :])
        parameters.append(task.encode(context[None].to(task.device))[0].cpu())
    automation = task.chain.space.denormalize(torch.cat(parameters).numpy())
    chain = task.chain.build()
    heard = padded[:, window.before :].numpy()
    outputs = [
        chain.render(np.ascontiguousarray(heard[:, i * frame : (i + 1) * frame]), values)
        for i, values in enumerate(automation)
    ]
    output = torch.from_numpy(np.concatenate(outputs, axis=1))
    return Rendering(output[:, latency : latency + audio.shape[1]], automation)
