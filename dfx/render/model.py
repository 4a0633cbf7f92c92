"""A trained model that renders recordings, from Python."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dfx.audio.metadata import lost_metadata
from dfx.audio.reading import PIPE, readable_path, stream_file
from dfx.audio.writing import AudioWriter, OutputFile
from dfx.errors import UserError
from dfx.render.automation import Automation, Interpolation
from dfx.render.prediction import Predictor
from dfx.render.streaming import Rendering, StreamingOptions, render_array, render_stream


class Model:
    """A trained model that renders recordings.

    Args:
        task: the model; it is set to evaluation mode.
    """

    def __init__(self, task: Predictor) -> None:
        self.task = task.eval()

    def render(
        self,
        audio: np.ndarray,
        sample_rate: int,
        causal: bool = False,
        own_level: bool = False,
        progress: bool = False,
        interpolation: Interpolation = "linear",
        loudness: float | None = None,
    ) -> Rendering:
        """Render a recording in memory.

        Args:
            audio: ``(samples,)`` or ``(channels, samples)``, full scale at 1.
            sample_rate: in Hz, any that the effects run at.
            causal: render without look-ahead of the parameters.
            own_level: undo the gain that brings the input to the task's loudness.
            progress: show a bar on stderr.
            interpolation: how parameters move between frames; see :mod:`dfx.render.interpolation`.
            loudness: the integrated loudness of the output, in LUFS, by one gain after the chain.

        Raises:
            UserError: if the audio is empty, not finite or of another shape, if the chain cannot run at its rate, or
                if options exclude each other.
        """
        audio = np.asarray(audio)
        if not np.issubdtype(audio.dtype, np.floating):
            raise UserError(f"the audio is of {audio.dtype}: give it in floating point, with full scale at 1")
        if audio.ndim not in (1, 2) or audio.size == 0:
            raise UserError(f"the audio has the shape {audio.shape}: it must be (samples,) or (channels, samples)")
        channels = np.atleast_2d(audio)
        if len(channels) > channels.shape[1]:
            raise UserError(f"the audio has the shape {audio.shape}, (channels, samples): transpose it")
        options = StreamingOptions(interpolation, causal, own_level, loudness)
        rendering = render_array(self.task, channels, sample_rate, options, progress)
        return Rendering(rendering.audio.reshape(audio.shape), sample_rate, rendering.automation)

    def render_file(
        self,
        input: str,
        output: str,
        options: StreamingOptions = StreamingOptions(),
        bit_depth: str | None = None,
        overwrite: bool = False,
        progress: bool = False,
    ) -> RenderedFile:
        """Render a file of any length.

        Args:
            input: its path, or ``-`` for standard input.
            output: the path to write, whose suffix decides the format, or ``-`` for WAV on standard output.
            options: how to render.
            bit_depth: of the output, any of :data:`~dfx.audio.writing.BIT_DEPTHS`; by default the input's.
            overwrite: replace an existing output.
            progress: show a bar on stderr.

        Raises:
            UserError: if the input cannot be read, the output cannot be written or exists, or the chain fails.
        """
        check_output(input, output, overwrite)
        name = "standard input" if input == PIPE else input
        with readable_path(input) as path:
            with closing(stream_file(path, name)) as stream:
                file = OutputFile.like(stream, output, bit_depth)
            if output != PIPE:
                Path(output).parent.mkdir(parents=True, exist_ok=True)
            with AudioWriter(file) as writer:
                automation = render_stream(self.task, lambda: stream_file(path, name), writer.write, options, progress)
            lost = lost_metadata(path, file.format)
        warning = f"{output} lacks metadata of {name}: {', '.join(lost)}" if lost else None
        return RenderedFile(file, automation, writer.clipping, warning)


@dataclass(frozen=True)
class RenderedFile:
    """A file that a model has rendered.

    Args:
        output: the written file.
        automation: the parameters over time.
        clipping: a sentence if the output exceeded full scale, or None.
        metadata: a sentence if the output lacks metadata of the input, or None.
    """

    output: OutputFile
    automation: Automation
    clipping: str | None
    metadata: str | None = None


def check_output(input: str, output: str, overwrite: bool) -> None:
    """Check that an output may be written.

    Raises:
        UserError: if it is its own input, or exists and ``overwrite`` is false.
    """
    if output == PIPE or not Path(output).exists():
        return
    if input != PIPE and Path(output).samefile(input):
        raise UserError(f"{output} is the input: write to another file")
    if not overwrite:
        raise UserError(f"{output} exists: give --overwrite to replace it")
