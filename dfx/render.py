"""Recordings through a trained model, from the command line and from Python.

    python -m dfx.render runs/tube_amp/checkpoints/best.ckpt input.wav output.wav
    python -m dfx.render best.ckpt folder/of/inputs folder/of/outputs
    python -m dfx.render best.ckpt input.wav output.flac --automation .csv --preset .py
    sox input.wav -t wav - | python -m dfx.render best.ckpt - - > output.wav

The output has the length, sample rate, channels and bit depth of the input, and is aligned with it. Recordings may be
of any length, in any format that soundfile or pedalboard reads. Mono and stereo are rendered by one chain; of more
channels, each by a chain of its own, all with the same automation. What the task does to its audio (a high-pass, a
loudness) is done here too. An output that exists is kept unless `--overwrite` is given, and one that would be
incomplete is not left behind. Standard input is kept in a temporary file: it is heard more than once.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np

from dfx.automation import Automation, check_suffix
from dfx.errors import UserError
from dfx.files import BIT_DEPTHS, PIPE, AudioWriter, Target, local, pairs_of, stream_array, stream_file
from dfx.streaming import StreamingOptions, render_stream
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
        parts: List[np.ndarray] = []
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
        bit_depth: Optional[str] = None,
        overwrite: bool = False,
        progress: bool = False,
    ) -> FileRendering:
        """Renders a file of any length.

        Args:
            input: its path, or ``-`` for standard input.
            output: where to write, or ``-`` for standard output, as WAV; its suffix says the format.
            options: how to render.
            bit_depth: of the output, any of :data:`~dfx.files.BIT_DEPTHS`; by default the input's.
            overwrite: replace an output that exists.
            progress: show a bar on stderr.

        Raises:
            UserError: if the input cannot be read, the output cannot be written or exists, or the chain fails.
        """
        check_output(input, output, overwrite)
        name = "standard input" if input == PIPE else input
        with local(input) as path:
            stream = stream_file(path, name)
            stream.close()
            target = Target.like(stream, output, bit_depth)
            if output != PIPE:
                Path(output).parent.mkdir(parents=True, exist_ok=True)
            with AudioWriter(target) as writer:
                automation = render_stream(
                    self.task, lambda: stream_file(path, name), writer.write, options, progress
                )
        return FileRendering(target, automation, writer.clipping)


@dataclass(frozen=True)
class FileRendering:
    """What was made of a file.

    Args:
        target: what was written.
        automation: the parameters over time.
        clipping: a sentence, where the output was louder than full scale.
    """

    target: Target
    automation: Automation
    clipping: Optional[str]


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


# --- the command line --------------------------------------------------------------------------------


def main(arguments: Optional[List[str]] = None) -> None:
    """Runs the command line.

    Raises:
        UserError: for what cannot be rendered; with several files, after the others are.
    """
    options = _parser().parse_args(arguments)
    extras = {name: getattr(options, name) for name in _EXTRAS if getattr(options, name)}
    pairs = pairs_of(options.input, options.output)
    for name, path in extras.items():
        _check_extra(name, path, pairs)
    files = [{name: _beside(path, output) for name, path in extras.items()} for _, output in pairs]
    for (input, output), others in zip(pairs, files):
        for path in [output, *others.values()]:
            check_output(input, path, options.overwrite)
        if input != PIPE:
            stream = stream_file(input)
            stream.close()
            Target.like(stream, output, options.bit_depth)
    model = load(options.checkpoint)
    streaming = StreamingOptions(options.causal, options.own_level)
    failed: Dict[str, str] = {}
    for (input, output), others in zip(pairs, files):
        try:
            rendering = model.render_file(
                input, output, streaming, options.bit_depth, options.overwrite, not options.quiet
            )
            for name, path in others.items():
                _EXTRAS[name](model, rendering, input, path)
        except UserError as error:
            if len(pairs) == 1:
                raise
            failed[input] = str(error)
            continue
        if rendering.clipping:
            print(f"warning: {rendering.clipping}", file=sys.stderr)
    if failed:
        first = next(iter(failed.values()))
        raise UserError(f"{len(failed)} of {len(pairs)} files could not be rendered: {', '.join(failed)}; {first}")


def _write_automation(model: Model, rendering: FileRendering, input: str, path: str) -> None:
    rendering.automation.write(path)


_EXTRAS: Dict[str, Any] = {"automation": _write_automation}


def _beside(path: str, output: str) -> str:
    """A bare suffix names a file beside the output."""
    return str(Path(output).with_suffix(path)) if _is_suffix(path) else path


def _is_suffix(path: str) -> bool:
    return path.startswith(".") and "." not in path[1:] and "/" not in path and "\\" not in path


def _check_extra(name: str, path: str, pairs: List[Any]) -> None:
    check_suffix("any" + path if _is_suffix(path) else path)
    if len(pairs) > 1 and not _is_suffix(path):
        raise UserError(f"--{name} {path}: of several files, each has its own; give a suffix, such as .json")
    if _is_suffix(path) and pairs[0][1] == PIPE:
        raise UserError(f"--{name} {path}: there is no output file that it could lie beside; name a file")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m dfx.render", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="a checkpoint that train.py wrote")
    parser.add_argument("input", help="a file, a folder, or - for standard input")
    parser.add_argument("output", help="a file, a folder, or - for standard output (WAV)")
    parser.add_argument("--causal", action="store_true", help="parameters do not look ahead")
    parser.add_argument(
        "--own-level", action="store_true",
        help="where the task brings its input to a loudness, undo that gain in the output",
    )  # fmt: skip
    parser.add_argument("--bit-depth", choices=BIT_DEPTHS, help="of the output; by default the input's")
    parser.add_argument(
        "--automation", metavar="FILE",
        help="write all parameters over time, as .csv or .json; a bare suffix: beside the output, under its name",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
