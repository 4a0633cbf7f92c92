"""Checkpoints: what dfx saves in addition to the weights, and what it checks before it loads one."""

import dataclasses
import io
import zipfile
from pathlib import Path
from typing import Any, TypedDict

import torch

from dfx.effects import ChainSpec, EffectError, EffectSpec
from dfx.errors import UserError


class CheckpointError(UserError):
    """A checkpoint cannot be used; the message says why."""


class SavedTask(TypedDict):
    """The entry ``dfx`` of a checkpoint."""

    task: str  # name of the class
    arguments: dict[str, Any]  # of the task, as plain types
    data: dict[str, Any]  # root, order and pairs of the data: see dfx.datasets.splits
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


_KINDS = {"task": str, "arguments": dict, "data": dict, "streaming": dict, "stage": int}
"""The types of the entries of a :class:`SavedTask` that every version has written."""


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint without running code from it, and verify the checksum of each of its records.

    Raises:
        CheckpointError: if the file is missing, damaged, holds more than tensors and plain data, or is no checkpoint of
            dfx.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        content = _verified(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:
        fault = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path} cannot be read as a checkpoint, it may be damaged: {fault}") from None
    try:
        checkpoint = torch.load(content, map_location="cpu", weights_only=True)
    except Exception:
        # Without torch's message, which advises to load the file with the code that it holds.
        fault = "it holds more than tensors and plain data, which dfx neither writes nor loads"
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {fault}") from None
    saved = checkpoint.get("dfx") if isinstance(checkpoint, dict) else None
    if not isinstance(saved, dict):
        raise CheckpointError(f"{path} is not a checkpoint that dfx has written")
    wrong = [name for name, kind in _KINDS.items() if not isinstance(saved.get(name), kind)]
    wrong += [] if isinstance(checkpoint.get("state_dict"), dict) else ["state_dict"]
    if wrong:
        raise CheckpointError(f"{path} is not complete: its {' and '.join(wrong)} cannot be used")
    return checkpoint


def _verified(path: str) -> io.BytesIO:
    """Return a copy of a checkpoint, a zip, of records whose CRC-32 is right.

    torch writes these checksums but does not verify them. It gets a copy, since its reader of zips and Python's may
    disagree on a damaged directory.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(content, "w") as copy:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:
                raise zipfile.BadZipFile(f"{record.filename} is compressed")  # and may fill the memory
            copy.writestr(record.filename, archive.read(record))
    content.seek(0)
    return content


def read_effects(arguments: dict[str, Any]) -> list[EffectSpec]:
    """Return the effects among the arguments of a task; raises :class:`~dfx.effects.EffectError` if they are none."""
    effects = arguments.get("effects")
    if not isinstance(effects, list):
        raise EffectError(f"the effects of a task are a list, not {effects!r}")
    return [EffectSpec.of(effect) for effect in effects]


def fixed_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a task that must not change when it resumes.

    Ranges and fixed values of effects may change, for instance after an effect has failed at the end of a range:
    ``effects`` are the names of the trained parameters here.
    """
    names = ChainSpec(read_effects(arguments), arguments["sample_rate"], arguments["channels"]).space.names
    free = ("loss", "gradient", "optimizer")
    return {name: value for name, value in arguments.items() if name not in free} | {"effects": names}
