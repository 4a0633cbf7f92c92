"""Checkpoints: what dfx saves in addition to the weights, and what it checks before it loads one."""

import dataclasses
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from dfx.effects import ChainSpec, EffectError, EffectSpec, is_foreign
from dfx.errors import UserError
from dfx.tasks.start import Start


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
    start_from: str | None  # the model with whose weights the run began
    start: Start | None  # the setting at which the encoder began
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


def check_training_state(checkpoint: dict[str, Any], loops: dict[str, Any], parameters: Sequence[Tensor]) -> None:
    """Check the state of training that Lightning restores from a checkpoint without a check.

    Args:
        checkpoint: from :func:`read_checkpoint`.
        loops: the state of the loops before they are restored.
        parameters: of the task, in the order of its optimizer.

    Raises:
        CheckpointError: if the loops hold other types, or the optimizer tensors of other shapes.
    """

    def fits(theirs: Any, ours: Any) -> bool:
        if isinstance(ours, dict):
            return isinstance(theirs, dict) and all(fits(theirs[name], ours[name]) for name in ours if name in theirs)
        return ours is None or theirs is None or isinstance(theirs, type(ours))

    faults = []
    if not fits(checkpoint["loops"]["fit_loop"], loops) or not isinstance(checkpoint["global_step"], int):
        faults.append("loops")
    (optimizer,) = checkpoint["optimizer_states"] or [{}]
    for index, state in optimizer["state"].items():
        if any(isinstance(m, Tensor) and m.dim() and m.shape != parameters[index].shape for m in state.values()):
            faults.append(f"optimizer, parameter {index}")
    if faults:
        raise CheckpointError(f"the checkpoint is damaged: its state of the {faults[0]} does not fit")


def read_effects(arguments: dict[str, Any]) -> list[EffectSpec]:
    """Return the effects among the arguments of a task; raises :class:`~dfx.effects.EffectError` if they are none."""
    effects = arguments.get("effects")
    if not isinstance(effects, list):
        raise EffectError(f"the effects of a task are a list, not {effects!r}")
    return [EffectSpec.of(effect) for effect in effects]


def check_foreign(arguments: dict[str, Any], own: dict[str, Any]) -> None:
    """Check the effects of a checkpoint before their names are looked up, which runs the code of foreign ones.

    Args:
        arguments: of the checkpoint's task.
        own: the arguments of the task of the user's config.

    Raises:
        CheckpointError: if the checkpoint names foreign code that the config does not name.
    """
    known = {spec.effect for spec in read_effects(own)}
    effects = [spec.effect for spec in read_effects(arguments)]
    if any(is_foreign(effect) and effect not in known for effect in effects):
        raise CheckpointError(f"the checkpoint was trained with other effects: {', '.join(effects)}")


def fixed_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a task that must not change when it resumes.

    Ranges and fixed values of effects may change, for instance after an effect has failed at the end of a range:
    ``effects`` are the names of the trained parameters here.
    """
    names = ChainSpec(read_effects(arguments), arguments["sample_rate"], arguments["channels"]).space.names
    free = ("loss", "gradient", "optimizer")
    return {name: value for name, value in arguments.items() if name not in free} | {"effects": names}
