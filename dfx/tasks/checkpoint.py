"""Checkpoints: what dfx saves in addition to the weights, and what it checks before it loads one."""

import dataclasses
from pathlib import Path
from typing import Any, TypedDict

import torch

from dfx.effects import ChainSpec, EffectSpec
from dfx.errors import UserError


class CheckpointError(UserError):
    """A checkpoint cannot be used; the message says why."""


class SavedTask(TypedDict):
    """The entry ``dfx`` of a checkpoint."""

    task: str  # name of the class
    arguments: dict[str, Any]  # of the task, as plain types
    data: dict[str, Any]  # arguments with which evaluation finds the same pairs
    streaming: dict[str, Any]  # state of the effect layer
    ranks: int  # number of processes
    stage: int
    first_step: int  # number of steps of the stages before
    stage_has_ended: bool


def to_plain(value: Any) -> Any:
    """Return options as plain types, so that a checkpoint loads without running code from it."""
    if isinstance(value, list):
        return [to_plain(entry) for entry in value]
    return dataclasses.asdict(value) if hasattr(value, "__dataclass_fields__") else value


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    Raises:
        CheckpointError: if the file is missing, truncated, or no checkpoint of dfx.
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


def fixed_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a task that must not change when it resumes.

    Ranges and fixed values of effects may change, for instance after an effect has failed at the end of a range:
    ``effects`` are the names of the trained parameters here.
    """
    specs = [EffectSpec.of(effect) for effect in arguments["effects"]]
    names = ChainSpec(specs, arguments["sample_rate"], arguments["channels"]).space.names
    free = ("loss", "gradient", "optimizer")
    return {name: value for name, value in arguments.items() if name not in free} | {"effects": names}
