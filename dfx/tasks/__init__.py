"""One LightningModule for each task, over what they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dfx.blackbox import GradientOptions
from dfx.datasets import Augmentation, Treatment
from dfx.encoder import EncoderOptions
from dfx.errors import UserError, refuse_renamed
from dfx.losses import LossOptions
from dfx.tasks.mastering import Mastering
from dfx.tasks.nonspeech import NonSpeech
from dfx.tasks.task import CheckpointError, OptimizerOptions, StageOptions, Task
from dfx.tasks.tube_amp import TubeAmp

TASKS = {task.__name__: task for task in (TubeAmp, NonSpeech, Mastering)}

_OPTIONS = {
    "treatment": Treatment,
    "augmentation": Augmentation,
    "stages": StageOptions,
    "encoder": EncoderOptions,
    "loss": LossOptions,
    "gradient": GradientOptions,
    "optimizer": OptimizerOptions,
}

__all__ = ["TASKS", "CheckpointError", "Mastering", "NonSpeech", "Task", "TubeAmp", "load_task", "read_checkpoint"]


def load_task(path: str) -> Task:
    """The trained task of a checkpoint, set to evaluation, with the chain of the stage that it was in.

    Raises:
        CheckpointError: if the file is not a checkpoint of dfx, or of a task that this version lacks.
    """
    return task_of(read_checkpoint(path), path)


def task_of(checkpoint: dict[str, Any], path: str) -> Task:
    """The trained task of a checkpoint that :func:`read_checkpoint` has read.

    Raises:
        CheckpointError: if it is of a task, or has options, that this version lacks.
    """
    saved = checkpoint["dfx"]
    if saved["task"] not in TASKS:
        raise CheckpointError(f"{path} is of the task {saved['task']}; this version has {', '.join(TASKS)}")
    try:
        refuse_renamed(saved["arguments"])
    except UserError as error:
        raise CheckpointError(f"{path}: {error} in the checkpoint's arguments, or train again") from None
    try:
        arguments = {
            name: _OPTIONS[name](**value) if name in _OPTIONS else value for name, value in saved["arguments"].items()
        }
        task = TASKS[saved["task"]](**arguments)
    except TypeError as error:
        raise CheckpointError(
            f"{path} was trained by a version of dfx with other options ({error}): use that one, or train anew"
        ) from None
    task.enter_stage(saved["stage"])
    task.load_state_dict(checkpoint["state_dict"])
    return task.eval()


def read_checkpoint(path: str) -> dict[str, Any]:
    """The content of a checkpoint, read without running code from it.

    Raises:
        CheckpointError: if the file is missing, cut short, or not a checkpoint of dfx.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        fault = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {fault}") from None
    if not isinstance(checkpoint, dict) or "dfx" not in checkpoint:
        raise CheckpointError(f"{path} is not a checkpoint that dfx has written")
    return checkpoint
