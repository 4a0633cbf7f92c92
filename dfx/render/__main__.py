"""Render recordings with a trained model.

    python -m dfx.render runs/tube_amp/checkpoints/best.ckpt input.wav output.wav
    python -m dfx.render best.ckpt folder/of/inputs folder/of/outputs
    python -m dfx.render best.ckpt input.wav output.flac --automation .csv --preset .py --project .rpp
    sox input.wav -t wav - | python -m dfx.render best.ckpt - - > output.wav

The output has the length, sample rate, channels and bit depth of the input, and is aligned with it (except by the
interpolation "published"). Recordings may have any length and any format that soundfile or pedalboard reads. One chain
renders mono and stereo; of more channels, each is rendered by a separate chain, all with the same automation. The
treatment of the task (a high-pass, a loudness) is applied here too. An existing output is kept unless --overwrite is
given, and an error leaves no partial output. Standard input is copied to a temporary file, because it is read more than
once.

--automation writes all parameters over time, in their units, as .csv or .json. --preset writes their medians as one
setting of the chain: .py or .json with pedalboard's effects, .vstpreset, or a folder .lv2. --project writes a REAPER
project, .rpp, with the plugins that REAPER can run and their envelopes. Each takes a path, or a suffix for a file with
the name of the output.
"""

import re
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import dfx
from dfx.audio.reading import PIPE, stream_file
from dfx.audio.writing import BIT_DEPTHS, OutputFile, input_output_pairs
from dfx.effects.chain import ChainSpec
from dfx.errors import UserError, errors_in_one_line
from dfx.render.automation import INTERPOLATIONS, automation_files
from dfx.render.model import Model, check_output
from dfx.render.presets import preset_files, write_preset
from dfx.render.reaper import Take, project_files, write_project
from dfx.render.streaming import StreamingOptions, chain_at_rate


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        UserError: if a file cannot be rendered; of several files, the others are rendered first.
    """
    options = _parser().parse_args(arguments)
    pairs = input_output_pairs(options.input, options.output)
    model = dfx.load(options.checkpoint, options.trust)
    extras = [_check_extras(model, *pair, options, len(pairs) > 1) for pair in pairs]
    for path, count in Counter(path for paths in extras for path in paths.values()).items():
        if count > 1:
            raise UserError(f"{path} would be written more than once: render the inputs with this name one by one")
    failed: dict[str, str] = {}
    for (input, output), paths in zip(pairs, extras):
        try:
            streaming = StreamingOptions(options.interpolation, options.causal, options.own_level)
            rendering = model.render_file(
                input, output, streaming, options.bit_depth, options.overwrite, not options.quiet
            )
            file = rendering.output
            chain = chain_at_rate(model.task, file.sample_rate, file.channels)
            take = Take(input, output, file.samples / file.sample_rate, chain, rendering.automation)
            for name, path in paths.items():
                _EXTRAS[name].write(path, take)
        except (UserError, OSError) as error:
            if len(pairs) == 1:
                raise UserError(error) from error
            failed[input] = str(error)
            continue
        for warning in filter(None, (rendering.clipping, rendering.metadata)):
            print(f"warning: {warning}", file=sys.stderr)
    if failed:
        first = next(iter(failed.values()))
        raise UserError(f"{len(failed)} of {len(pairs)} files could not be rendered: {', '.join(failed)}; {first}")


class _Extra(NamedTuple):
    """A kind of file that can be written next to the output: a check that lists its files, and the writer."""

    files: Callable[[str, ChainSpec], list[str]]
    write: Callable[[str, Take], None]


_EXTRAS = {
    "automation": _Extra(lambda path, chain: automation_files(path), lambda path, take: take.automation.write(path)),
    "preset": _Extra(preset_files, lambda path, take: write_preset(path, take.chain, take.automation.median())),
    "project": _Extra(project_files, write_project),
}


def _check_extras(model: Model, input: str, output: str, options: Namespace, is_one_of_many: bool) -> dict[str, str]:
    """Check a file before any work is done, and return the paths of its extras by the name of the option."""
    sample_rate, channels = model.task.chain.sample_rate, model.task.chain.channels
    if input != PIPE:
        with closing(stream_file(input)) as stream:
            sample_rate, channels = stream.sample_rate, stream.channels
            OutputFile.like(stream, output, options.bit_depth)
    chain = chain_at_rate(model.task, sample_rate, channels, input)
    check_output(input, output, options.overwrite)
    extras = {name: path for name in _EXTRAS if (path := getattr(options, name))}
    for name, path in extras.items():
        if re.fullmatch(r"\.[^./\\]*", path):
            if output == PIPE:
                raise UserError(f"--{name} {path}: standard output has no name; give a path instead of a suffix")
            extras[name] = path = str(Path(output).with_suffix(path))
        elif is_one_of_many:
            raise UserError(f"--{name} {path}: several files cannot share one path; give a suffix, such as .json")
        if name == "project" and PIPE in (input, output):
            raise UserError(f"--project {path}: a project needs files instead of standard input or output")
        for file in _EXTRAS[name].files(path, chain):
            check_output(input, file, options.overwrite)
    return extras


def _parser() -> ArgumentParser:
    parser = ArgumentParser("python -m dfx.render", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    moves = "; ".join(f"{name}, {text}" for name, text in INTERPOLATIONS.items())
    moves = f"how parameters move between frames: {moves} (default: linear)"
    automation = "write all parameters over time, as .csv or .json; a suffix alone takes the name of the output"
    add("checkpoint", help="a checkpoint that train.py wrote")
    add("input", help="a file, a folder, or - for standard input")
    add("output", help="a file, a folder, or - for standard output (WAV)")
    add("--interpolation", choices=INTERPOLATIONS, default="linear", help=moves)
    add("--causal", action="store_true", help="render without look-ahead of the parameters")
    add("--own-level", action="store_true", help="undo the gain that brings the input to the task's loudness")
    add("--bit-depth", choices=BIT_DEPTHS, help="of the output (default: as the input)")
    add("--automation", metavar="FILE", help=automation)
    add("--preset", metavar="FILE", help=".py, .json, .vstpreset or .lv2; a suffix as above")
    add("--project", metavar="FILE", help="a REAPER project, .rpp; a suffix as above")
    add(
        "--trust",
        action="store_true",
        help="run effects of the checkpoint that are Python classes, or plugins by path",
    )
    add("--overwrite", action="store_true", help="replace existing files")
    add("--quiet", action="store_true", help="show no progress")
    return parser


if __name__ == "__main__":
    with errors_in_one_line():
        main()
