"""Building a trained task from a checkpoint."""

import dataclasses
from collections.abc import Sequence
from typing import Any, get_type_hints

import torch

from dfx.datasets import Degradation
from dfx.effects import is_foreign
from dfx.errors import UserError, refuse_renamed
from dfx.tasks.checkpoint import CheckpointError, read_checkpoint, read_effects
from dfx.tasks.mastering import Mastering
from dfx.tasks.nonspeech import NonSpeech
from dfx.tasks.style_transfer import StyleTransfer
from dfx.tasks.task import Task
from dfx.tasks.tube_amp import TubeAmp

TASKS: dict[str, type[Task]] = {task.__name__: task for task in (TubeAmp, NonSpeech, Mastering, StyleTransfer)}

_HINTS = get_type_hints(Task.__init__)


def find_device(name: str) -> torch.device:
    """Return the device ``cpu``, ``cuda`` or ``cuda:N``; for ``auto`` the first GPU, or the CPU if there is none.

    Raises:
        UserError: if PyTorch finds no such device.
    """
    count = torch.cuda.device_count()
    there = ["cpu", *(["cuda"] if count else []), *(f"cuda:{number}" for number in range(count))]
    if name == "auto":
        name = there[min(1, count)]
    if name not in there:
        raise UserError(f"device {name}: PyTorch finds no such device here; choose auto, {', '.join(there)}")
    return torch.device(name)


def load_task(path: str, trust: bool = False) -> Task:
    """Build the task of a checkpoint in evaluation mode, with the chain of the stage that it was in.

    Args:
        path: of the checkpoint.
        trust: run the code of effects that are Python classes, or plugins given by path.

    Raises:
        CheckpointError: if the file is no checkpoint of dfx, if this version lacks its task or its options, or if it
            names foreign code and ``trust`` is false.
    """
    return build_task(read_checkpoint(path), path, trust)


def build_task(checkpoint: dict[str, Any], path: str, trust: bool = False) -> Task:
    """Build a task as :func:`load_task`, from what :func:`read_checkpoint` has read from ``path``."""
    saved = checkpoint["dfx"]
    if saved["task"] not in TASKS:
        raise CheckpointError(f"{path} is of the task {saved['task']}; this version has {', '.join(TASKS)}")
    try:
        refuse_renamed(saved["arguments"])
    except UserError as error:
        raise CheckpointError(f"{path}: {error} in the checkpoint's arguments, or train again") from None
    try:
        _check_trust([spec.effect for spec in read_effects(saved["arguments"])], path, trust)
        arguments = {
            name: _HINTS[name](**value) if dataclasses.is_dataclass(_HINTS.get(name)) else value
            for name, value in saved["arguments"].items()
        }
        task = TASKS[saved["task"]](**arguments)
        if saved["stage"] not in range(len(task.stages)):
            raise LookupError(f"there is no stage {saved['stage']}")
        task.enter_stage(saved["stage"])
        task.load_state_dict(checkpoint["state_dict"])
    except CheckpointError as error:
        raise CheckpointError(str(error) if path in str(error) else f"{path}: {error}") from None
    except UserError as error:
        raise type(error)(f"{path} cannot be used: {error}") from None
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
        fault = f"{path} is damaged, or was trained by a version of dfx with other options ({error})"
        raise CheckpointError(f"{fault}: use that version, or train again") from None
    return task.eval()


def restore_degradation(checkpoint: dict[str, Any], path: str, trust: bool = False) -> Degradation:
    """Return the degradation that the inputs of a checkpoint's training were made by.

    Arguments and errors are those of :func:`build_task`.
    """
    try:
        degradation = Degradation(**checkpoint["dfx"]["data"]["degradation"])
        _check_trust([effect["effect"] for effect in degradation.effects], path, trust)
    except (TypeError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{path} does not say how its inputs were degraded ({error}): train again") from None
    return degradation


def _check_trust(effects: Sequence[str], path: str, trust: bool) -> None:
    foreign = [effect for effect in effects if is_foreign(effect)]
    if foreign and not trust:
        fault = f"{path} names code to run, {', '.join(foreign)}"
        raise CheckpointError(f"{fault}: if you trust its author, add --trust (in Python, trust=True)")
