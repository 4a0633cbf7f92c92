"""Recordings through a trained model, from the command line.

    python -m dfx.render runs/tube_amp/checkpoints/best.ckpt input.wav output.wav
    python -m dfx.render best.ckpt folder/of/inputs folder/of/outputs
    python -m dfx.render best.ckpt input.wav output.flac --automation .csv --preset .py --project .rpp
    sox input.wav -t wav - | python -m dfx.render best.ckpt - - > output.wav

The output has the length, sample rate, channels and bit depth of the input, and is aligned with it. Recordings may be
of any length, in any format that soundfile or pedalboard reads. Mono and stereo are rendered by one chain; of more
channels, each by a chain of its own, all with the same automation. What the task does to its audio (a high-pass, a
loudness) is done here too. An output that exists is kept unless `--overwrite` is given, and one that would be
incomplete is not left behind. Standard input is kept in a temporary file: it is heard more than once.

`--automation` writes all parameters over time, in their units, as .csv or .json; `--preset` their medians over time as
one setting of the chain, as .py or .json of pedalboard's effects, as .vstpreset, or as a folder .lv2; `--project` a
REAPER project, .rpp, with the plugins and their envelopes, as far as REAPER has them. Each takes a path or, to lie
beside the output under its name, a suffix alone.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import dfx
from dfx.audio.reading import PIPE, stream_file
from dfx.audio.writing import BIT_DEPTHS, OutputFile, input_output_pairs
from dfx.effects.chain import ChainSpec
from dfx.errors import UserError, errors_in_one_line
from dfx.render.automation import INTERPOLATIONS, automation_files
from dfx.render.model import Model, RenderedFile, check_output
from dfx.render.presets import preset_files, write_preset
from dfx.render.reaper import Take, project_files, write_project
from dfx.render.streaming import StreamingOptions, chain_at_rate

# --- the command line --------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line.

    Raises:
        UserError: for what cannot be rendered; with several files, after the others are.
    """
    options = _parser().parse_args(arguments)
    pairs = input_output_pairs(options.input, options.output)
    model = dfx.load(options.checkpoint)
    jobs = [_job(model, input, output, options, len(pairs) > 1) for input, output in pairs]
    written = Counter(path for job in jobs for path in job.extras.values())
    twice = [path for path, count in written.items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]} would be written more than once: render the inputs of one name one by one")
    failed: dict[str, str] = {}
    for job in jobs:
        try:
            rendering = model.render_file(
                job.input,
                job.output,
                StreamingOptions(options.interpolation, options.causal, options.own_level),
                options.bit_depth,
                options.overwrite,
                not options.quiet,
            )
            for name, path in job.extras.items():
                _EXTRAS[name].write(path, _take(model, rendering, job))
        except (UserError, OSError) as error:
            if len(jobs) == 1:
                raise UserError(error) from error
            failed[job.input] = str(error)
            continue
        if rendering.clipping:
            print(f"warning: {rendering.clipping}", file=sys.stderr)
    if failed:
        first = next(iter(failed.values()))
        raise UserError(f"{len(failed)} of {len(jobs)} files could not be rendered: {', '.join(failed)}; {first}")


class _Job(NamedTuple):
    """A file to render, and what else to write, by the name of the option."""

    input: str
    output: str
    extras: dict[str, str]


def _job(model: Model, input: str, output: str, options: argparse.Namespace, is_one_of_many: bool) -> _Job:
    """Checks all that can be before long work."""
    sample_rate, channels = model.task.chain.sample_rate, model.task.chain.channels
    if input != PIPE:
        stream = stream_file(input)
        stream.close()
        OutputFile.like(stream, output, options.bit_depth)
        sample_rate, channels = stream.sample_rate, stream.channels
    chain = chain_at_rate(model.task, sample_rate, channels, input)
    check_output(input, output, options.overwrite)
    extras = {}
    for name, extra in _EXTRAS.items():
        path = getattr(options, name)
        if not path:
            continue
        if _is_suffix(path):
            if output == PIPE:
                raise UserError(f"--{name} {path}: there is no output that it could lie beside; name a file")
            path = str(Path(output).with_suffix(path))
        elif is_one_of_many:
            raise UserError(f"--{name} {path}: of several files, each has its own; give a suffix, such as .json")
        if name == "project" and PIPE in (input, output):
            raise UserError(f"--project {path}: a project is of files, and not of standard input or output")
        for file in extra.files(path, chain):
            check_output(input, file, options.overwrite)
        extras[name] = path
    return _Job(input, output, extras)


def _take(model: Model, rendering: RenderedFile, job: _Job) -> Take:
    output = rendering.output
    chain = chain_at_rate(model.task, output.sample_rate, output.channels)
    return Take(job.input, job.output, output.samples / output.sample_rate, chain, rendering.automation)


class _Extra(NamedTuple):
    """What can be written beside the output: which files at a path, or an error; and how."""

    files: Callable[[str, ChainSpec], list[str]]
    write: Callable[[str, Take], None]


_EXTRAS = {
    "automation": _Extra(lambda path, chain: automation_files(path), lambda path, take: take.automation.write(path)),
    "preset": _Extra(preset_files, lambda path, take: write_preset(path, take.chain, take.automation.median())),
    "project": _Extra(project_files, write_project),
}


def _is_suffix(path: str) -> bool:
    return path.startswith(".") and "." not in path[1:] and "/" not in path and "\\" not in path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m dfx.render", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="a checkpoint that train.py wrote")
    parser.add_argument("input", help="a file, a folder, or - for standard input")
    parser.add_argument("output", help="a file, a folder, or - for standard output (WAV)")
    parser.add_argument(
        "--interpolation", choices=INTERPOLATIONS, default="linear",
        help="how parameters move between frames: "
        f"{'; '.join(f'{name}, {text}' for name, text in INTERPOLATIONS.items())} (default: linear)",
    )  # fmt: skip
    parser.add_argument("--causal", action="store_true", help="render without look-ahead of the parameters")
    parser.add_argument(
        "--own-level", action="store_true",
        help="where the task brings its input to a loudness, undo that gain in the output",
    )  # fmt: skip
    parser.add_argument("--bit-depth", choices=BIT_DEPTHS, help="of the output; by default the input's")
    parser.add_argument(
        "--automation", metavar="FILE",
        help="write all parameters over time, as .csv or .json; a bare suffix: beside the output, under its name",
    )  # fmt: skip
    parser.add_argument("--preset", metavar="FILE", help=".py, .json, .vstpreset or .lv2; a suffix as above")
    parser.add_argument("--project", metavar="FILE", help="a REAPER project, .rpp; a suffix as above")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser


if __name__ == "__main__":
    with errors_in_one_line():
        main()
