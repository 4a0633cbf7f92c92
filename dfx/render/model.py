"""A trained model that renders recordings, from Python."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dfx.audio.metadata import lost_metadata
from dfx.audio.reading import PIPE, Stream, readable_path, stream_array, stream_file
from dfx.audio.writing import AudioWriter, OutputFile
from dfx.errors import SAMPLE_RATES, UserError, check_numbers
from dfx.render.automation import Automation, Interpolation
from dfx.render.prediction import Predictor, TakesReference
from dfx.render.reference import Reference, read_reference
from dfx.render.streaming import Rendering, StreamingOptions, render_array, render_stream

if TYPE_CHECKING:
    from dfx.render.refinement import Refinement, TrainedPredictor


class Model:
    """A trained model that renders recordings.

    Args:
        task: the model; it is set to evaluation mode.
    """

    def __init__(self, task: TrainedPredictor) -> None:
        task.eval()
        self.task = task

    @property
    def takes_reference(self) -> bool:
        """Return whether the output is made to sound like a reference."""
        return isinstance(self.task, TakesReference)

    def render(
        self,
        audio: np.ndarray,
        sample_rate: int,
        causal: bool = False,
        own_level: bool = False,
        progress: bool = False,
        interpolation: Interpolation = "linear",
        loudness: float | None = None,
        refine: int | None = None,
        target: np.ndarray | None = None,
        reference: np.ndarray | None = None,
        reference_sample_rate: int | None = None,
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
            refine: shift the parameters towards the target, or without one the reference, by a search with so many
                renderings; see :mod:`dfx.render.refinement`.
            target: of the shape of the audio.
            reference: a recording that the output is to sound like, for a model that takes one, or to refine towards:
                of any length and number of channels, ``(samples,)`` or ``(channels, samples)``.
            reference_sample_rate: in Hz; by default that of the audio.

        Raises:
            UserError: if the audio is empty, not finite or of another shape, if a number is out of its range, if the
                chain cannot run at the sample rate, if the reference is missing, silent or shorter than a second, or if
                options exclude each other.
        """
        rates = {"sample_rate": sample_rate, "reference_sample_rate": reference_sample_rate}
        check_numbers(rates, **dict.fromkeys(rates, SAMPLE_RATES))
        channels = _channels_of(audio, "audio")
        options = StreamingOptions(interpolation, causal, own_level, loudness)
        self.check_guidance(options, refine, target is not None, reference is not None)
        open_input = functools.partial(stream_array, channels, sample_rate)
        given, open_target = None, None
        if reference is not None:
            rate = sample_rate if reference_sample_rate is None else reference_sample_rate
            form = _channels_of(reference, "reference"), rate, "the reference"
            given = self._read_reference(functools.partial(stream_array, *form))
        if target is not None:
            form = _channels_of(target, "target"), sample_rate, "the target"
            open_target = functools.partial(stream_array, *form)
        model, refinement = self._guided(open_input, open_target, given, refine, progress)
        rendering = render_array(model, channels, sample_rate, options, progress)
        return Rendering(rendering.audio.reshape(np.shape(audio)), sample_rate, rendering.automation, refinement)

    def render_file(
        self,
        input: str,
        output: str,
        options: StreamingOptions = StreamingOptions(),
        bit_depth: str | None = None,
        overwrite: bool = False,
        progress: bool = False,
        refine: int | None = None,
        target: str | None = None,
        reference: str | Reference | None = None,
    ) -> RenderedFile:
        """Render a file of any length.

        Args:
            input: its path, or ``-`` for standard input.
            output: the path to write, whose suffix decides the format, or ``-`` for WAV on standard output.
            options: how to render.
            bit_depth: of the output, any of :data:`~dfx.audio.writing.BIT_DEPTHS`; by default the input's.
            overwrite: replace an existing output.
            progress: show a bar on stderr.
            refine: as of :meth:`render`.
            target: the path of a recording of the input's length, sample rate and channels.
            reference: as of :meth:`render`: its path, or what :meth:`read_reference` has read.

        Raises:
            UserError: if the input cannot be read, the output cannot be written or exists, the chain fails, or options
                exclude each other.
        """
        reference_path = reference.name if isinstance(reference, Reference) else reference
        for path in filter(None, (input, target, reference_path)):
            check_output(path, output, overwrite)
        self.check_guidance(options, refine, target is not None, reference is not None)
        if isinstance(reference, str):
            reference = self.read_reference(reference)
        name = "standard input" if input == PIPE else input
        with readable_path(input) as path:
            with closing(stream_file(path, name)) as stream:
                file = OutputFile.like(stream, output, bit_depth)
            open_input = functools.partial(stream_file, path, name)
            open_target = None if target is None else functools.partial(stream_file, target)
            model, refinement = self._guided(open_input, open_target, reference, refine, progress)
            if output != PIPE:
                Path(output).parent.mkdir(parents=True, exist_ok=True)
            with AudioWriter(file) as writer:
                automation = render_stream(model, open_input, writer.write, options, progress)
            lost = lost_metadata(path, file.format)
        warning = f"{output} lacks metadata of {name}: {', '.join(lost)}" if lost else None
        return RenderedFile(file, automation, writer.clipping, warning, refinement, reference_path)

    def read_reference(self, path: str) -> Reference:
        """Read a reference once, for several files.

        Raises:
            DataError: if it cannot be decoded, is shorter than a second, or is silent.
        """
        return self._read_reference(functools.partial(stream_file, path))

    def _read_reference(self, open_reference: Callable[[], Stream]) -> Reference:
        return read_reference(open_reference, self.task.chain.sample_rate, self.task.chain.channels)

    def check_guidance(
        self, options: StreamingOptions, refine: int | None, has_target: bool, has_reference: bool
    ) -> None:
        """Check reference, target and refinement before any work.

        Raises:
            UserError: if the model takes a reference and there is none, or the reverse; if ``refine`` is out of its
                range, comes without target and reference, causally or at the input's own level; or if a target comes
                without it.
        """
        check_numbers({"refine": refine}, refine="2..1000000")
        if self.takes_reference and not has_reference:
            raise UserError("this model needs a reference (--reference): a recording that the output is to sound like")
        if has_reference and not self.takes_reference and refine is None:
            fault = "this model takes no reference; style and models of configs/style.yaml do"
            raise UserError(f"{fault}: use one, or refine towards the reference with --refine")
        if has_reference and not self.takes_reference and has_target:
            raise UserError("refinement (refine) compares with a target or a reference: give one of them")
        if refine is None and has_target:
            raise UserError("a target needs a number of renderings (refine): give both, or neither")
        if refine is not None and not (has_target or has_reference):
            raise UserError("refinement (refine) needs a target or a reference: give one of them")
        if refine is not None and (options.causal or options.own_level):
            fault = "refinement compares whole recordings at the target's level"
            raise UserError(f"{fault}: not causally, nor at own level")

    def _guided(
        self,
        open_input: Callable[[], Stream],
        open_target: Callable[[], Stream] | None,
        reference: Reference | None,
        renderings: int | None,
        progress: bool,
    ) -> tuple[Predictor, Refinement | None]:
        """Return the model as it renders with a reference, and how it was refined, if it was."""
        if reference is not None and isinstance(self.task, TakesReference):
            self.task.set_reference(reference.audio)
        goal = open_target or reference
        if goal is None or renderings is None:
            return self.task, None
        # Imported here, because cma takes long and most renderings are not refined.
        from dfx.render.refinement import ShiftedPredictor, refine

        refinement = refine(self.task, open_input, goal, renderings, progress)
        return ShiftedPredictor(self.task, refinement.offsets), refinement


@dataclass(frozen=True)
class RenderedFile:
    """A file that a model has rendered.

    Args:
        output: the written file.
        automation: the parameters over time.
        clipping: a sentence if the output exceeded full scale, or None.
        metadata: a sentence if the output lacks metadata of the input, or None.
        refinement: what a search for the target or the reference has brought, or None.
        reference: the path of the recording that the output was made to sound like, or None.
    """

    output: OutputFile
    automation: Automation
    clipping: str | None
    metadata: str | None = None
    refinement: Refinement | None = None
    reference: str | None = None


def _channels_of(audio: np.ndarray, name: str) -> np.ndarray:
    """Return audio as ``(channels, samples)``; its name is for errors."""
    audio = np.asarray(audio)
    if not np.issubdtype(audio.dtype, np.floating):
        raise UserError(f"the {name} is of {audio.dtype}: give it in floating point, with full scale at 1")
    if audio.ndim not in (1, 2) or audio.size == 0:
        raise UserError(f"the {name} has the shape {audio.shape}: it must be (samples,) or (channels, samples)")
    channels = np.atleast_2d(audio)
    if len(channels) > channels.shape[1]:
        raise UserError(f"the {name} has the shape {audio.shape}, (channels, samples): transpose it")
    return channels


def check_output(input: str, output: str, overwrite: bool) -> None:
    """Check that an output may be written.

    Raises:
        UserError: if it is the input, or exists and ``overwrite`` is false.
    """
    if output == PIPE or not Path(output).exists():
        return
    if input != PIPE and Path(output).samefile(input):
        raise UserError(f"{output} is the input, its target or the reference: write to another file")
    if not overwrite:
        raise UserError(f"{output} exists: give --overwrite to replace it")
