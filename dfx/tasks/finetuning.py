"""Fine-tuning: a task begins with the weights of a trained model."""

from typing import Any

import torch

from dfx.effects.parameter import Parameter
from dfx.tasks.checkpoint import CheckpointError, check_foreign, read_checkpoint
from dfx.tasks.loading import build_task
from dfx.tasks.task import Task

_NOT_OF_THE_SHAPES = ("start_at_defaults", "dropout")
_OF_THE_AUDIO = ("sample_rate", "channels", "context_samples", "frame_samples", "treatment")


def take_weights(task: Task, path: str) -> list[str]:
    """Copy the weights of a trained model into a task before its training.

    The input normalization and the backbone of the encoder are taken over whole; of its head, the rows of parameters
    that both chains have with the same name, scale and range. The others are left as they are.

    Args:
        task: is changed.
        path: of the model's checkpoint.

    Returns:
        Sentences: what was taken over, what not, and what differs between the audio of both.

    Raises:
        CheckpointError: if the checkpoint cannot be used, names foreign code that the task does not have, or has
            another backbone, or if only one of both takes a reference.
    """
    checkpoint = read_checkpoint(path)
    check_foreign(checkpoint["dfx"]["arguments"], task.arguments)
    model = build_task(checkpoint, path, trust=True)
    if task.takes_reference != model.takes_reference:
        fault = f"{path} is of {type(model).__name__}, and only one of it and {type(task).__name__} takes a reference"
        raise CheckpointError(f"{fault}: begin with a model of the same task, or without one")
    try:
        for part in ("input_norm", "backbone"):
            task.encoder.get_submodule(part).load_state_dict(model.encoder.get_submodule(part).state_dict())
    except RuntimeError:  # other names or shapes
        fault = f"{path} has another encoder ({_describe_differences(_shaping(task), _shaping(model))})"
        raise CheckpointError(f"{fault}: give the run the model's, or begin without its weights") from None

    parameters = task.whole_chain.parameters
    rows = {_identity(parameter): row for row, parameter in enumerate(model.whole_chain.parameters)}
    taken = {row: rows[_identity(p)] for row, p in enumerate(parameters) if _identity(p) in rows}
    with torch.no_grad():
        for ours, theirs in zip(task.encoder.head.parameters(), model.encoder.head.parameters()):
            ours[list(taken)] = theirs[list(taken.values())]
    return _describe(task, model, path, [p.name for row, p in enumerate(parameters) if row not in taken])


def _identity(parameter: Parameter) -> tuple[object, ...]:
    """Return what two parameters share if one prediction in [0, 1] is the same value of both."""
    return parameter.name, parameter.scale, parameter.low, parameter.high


def _shaping(task: Task) -> dict[str, Any]:
    """Return the options that decide on the shapes of the weights."""
    encoder = {name: value for name, value in task.arguments["encoder"].items() if name not in _NOT_OF_THE_SHAPES}
    return {**encoder, **{name: task.arguments[name] for name in ("context_samples", "frame_samples")}}


def _describe_differences(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    return ", ".join(f"{name} {theirs[name]}, here {ours[name]}" for name in ours if theirs[name] != ours[name])


def _describe(task: Task, model: Task, path: str, left: list[str]) -> list[str]:
    count = len(task.whole_chain.parameters)
    taken = f"its output layer for {count - len(left)} of {count} parameters"
    sentences = [f"training begins with the encoder of {path}, and with {taken}"]
    if left:
        sentences.append(f"untrained, since the model has none of this name, scale and range: {', '.join(left)}")
    audio = ({name: each.arguments[name] for name in _OF_THE_AUDIO} for each in (task, model))
    if differences := _describe_differences(*audio):
        sentences.append(f"the model was trained on other audio: {differences}")
    return sentences
