"""A trained model that renders recordings, from Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dfx.audio.reading import PIPE, readable_path, stream_array, stream_file
from dfx.audio.writing import AudioWriter, OutputFile
from dfx.errors import UserError
from dfx.render.automation import Automation
from dfx.render.streaming import StreamingOptions, render_stream
from dfx.tasks import Task, load_task


@dataclass(frozen=True)
class Rendering:
    """What a model makes of a recording.

    Args:
        audio: float32, of the input's shape, aligned with it.
        sample_rate: in Hz.
        automation: the parameters over time.
    """

    audio: np.ndarray
    sample_rate: int
    automation: Automation


class Model:
    """A trained model that renders recordings.

    Args:
        task: the model; it is set to evaluation.
    """

    def __init__(self, task: Task) -> None:
        self.task = task.eval()

    def render(
        self, audio: np.ndarray, sample_rate: int, causal: bool = False, own_level: bool = False, progress: bool = False
    ) -> Rendering:
        """Renders a recording in memory.

        Args:
            audio: ``(samples,)`` or ``(channels, samples)``, full scale at 1.
            sample_rate: in Hz, any that the effects run at.
            causal: parameters do not look ahead.
            own_level: where the task brings its input to a loudness, undo that gain in the output.
            progress: show a bar on stderr.

        Raises:
            UserError: if the audio is empty, not finite or of another shape, or if the chain cannot run at its rate.
        """
        audio = np.asarray(audio)
        if not np.issubdtype(audio.dtype, np.floating):
            raise UserError(f"the audio is of {audio.dtype}: give it in floating point, with full scale at 1")
        if audio.ndim not in (1, 2) or audio.size == 0:
            raise UserError(f"the audio has the shape {audio.shape}: it must be (samples,) or (channels, samples)")
        channels = np.atleast_2d(audio)
        if len(channels) > channels.shape[1]:
            raise UserError(f"the audio has the shape {audio.shape}, (channels, samples): transpose it")
        parts: list[np.ndarray] = []
        options = StreamingOptions(causal, own_level)
        automation = render_stream(
            self.task, lambda: stream_array(channels, sample_rate), parts.append, options, progress
        )
        return Rendering(np.concatenate(parts, axis=1).reshape(audio.shape), sample_rate, automation)

    def render_file(
        self,
        input: str,
        output: str,
        options: StreamingOptions = StreamingOptions(),
        bit_depth: str | None = None,
        overwrite: bool = False,
        progress: bool = False,
    ) -> FileRendering:
        """Renders a file of any length.

        Args:
            input: its path, or ``-`` for standard input.
            output: where to write, or ``-`` for standard output, as WAV; its suffix says the format.
            options: how to render.
            bit_depth: of the output, any of :data:`~dfx.audio.writing.BIT_DEPTHS`; by default the input's.
            overwrite: replace an output that exists.
            progress: show a bar on stderr.

        Raises:
            UserError: if the input cannot be read, the output cannot be written or exists, or the chain fails.
        """
        check_output(input, output, overwrite)
        name = "standard input" if input == PIPE else input
        with readable_path(input) as path:
            stream = stream_file(path, name)
            stream.close()
            file = OutputFile.like(stream, output, bit_depth)
            if output != PIPE:
                Path(output).parent.mkdir(parents=True, exist_ok=True)
            with AudioWriter(file) as writer:
                automation = render_stream(self.task, lambda: stream_file(path, name), writer.write, options, progress)
        return FileRendering(file, automation, writer.clipping)


@dataclass(frozen=True)
class FileRendering:
    """What was made of a file.

    Args:
        output: the file that was written.
        automation: the parameters over time.
        clipping: a sentence, where the output was louder than full scale.
    """

    output: OutputFile
    automation: Automation
    clipping: str | None


def load(checkpoint: str) -> Model:
    """The model of a checkpoint that ``train.py`` wrote.

    Raises:
        CheckpointError: if it cannot be used.
    """
    return Model(load_task(str(checkpoint)))


def check_output(input: str, output: str, overwrite: bool) -> None:
    """Raises a ``UserError`` where an output is its own input, or exists and is to be kept."""
    if output == PIPE or not Path(output).exists():
        return
    if input != PIPE and Path(output).samefile(input):
        raise UserError(f"{output} is the input: write to another file")
    if not overwrite:
        raise UserError(f"{output} exists: give --overwrite to replace it")
