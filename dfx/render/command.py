"""The command ``python -m dfx.render``: one file or a folder, and the files beside each output."""

import re
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import dfx
from dfx.audio.reading import PIPE, stream_file
from dfx.audio.writing import OutputFile, input_output_pairs
from dfx.effects.chain import ChainSpec
from dfx.errors import DataError, UserError, reason_of
from dfx.render.automation import automation_files
from dfx.render.model import Model, RenderedFile, check_output
from dfx.render.presets import preset_files, write_preset
from dfx.render.reaper import Take, project_files, write_project
from dfx.render.streaming import StreamingOptions, chain_at_rate


def render(options: Namespace) -> None:
    """Render the input of the command line; of a folder, every file that can be rendered.

    Raises:
        UserError: if a file cannot be rendered; of several files, the others are rendered first.
    """
    streaming = StreamingOptions(options.interpolation, options.causal, options.own_level, options.loudness)
    pairs = input_output_pairs(options.input, options.output)
    model = dfx.load(options.checkpoint, options.trust, options.device)
    model.check_guidance(streaming, options.refine, options.target is not None, options.reference is not None)
    reference = None if options.reference is None else model.read_reference(options.reference)
    failed: dict[str, str] = {}
    extras: dict[tuple[str, str], dict[str, str]] = {}
    for pair in pairs:
        try:
            extras[pair] = _check_extras(model, *pair, options, len(pairs) > 1)
        except DataError as error:
            if len(pairs) == 1:
                raise
            failed[pair[0]] = str(error)
    for path, count in Counter(path for paths in extras.values() for path in paths.values()).items():
        if count > 1:
            raise UserError(f"{path} would be written more than once: render the inputs with this name one by one")
    for (input, output), paths in extras.items():
        try:
            for path in paths.values():
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            common = streaming, options.bit_depth, options.overwrite, not options.quiet, options.refine
            rendering = model.render_file(input, output, *common, _target_of(input, options), reference)
            write_extras(model, input, rendering, paths.items())
        except (UserError, OSError) as error:
            if len(pairs) == 1:
                raise UserError(reason_of(error)) from error
            failed[input] = reason_of(error)
            continue
        for note in _notes(rendering, options.loudness, paths):
            print(note, file=sys.stderr)
    if failed:
        reasons = "; ".join(reason if input in reason else f"{input}: {reason}" for input, reason in failed.items())
        raise UserError(f"{len(failed)} of {len(pairs)} files could not be rendered: {reasons}")


def write_extras(model: Model, input: str, rendering: RenderedFile, extras: Iterable[tuple[str, str]]) -> None:
    """Write files beside a rendered one; each has a kind (automation, preset, project or page) and a path."""
    file = rendering.output
    chain = chain_at_rate(model.task, file.sample_rate, file.channels)
    take = Take(input, file.path, file.samples / file.sample_rate, chain, rendering.automation, rendering.reference)
    for kind, path in extras:
        _EXTRAS[kind].write(path, take)


def _target_of(input: str, options: Namespace) -> str | None:
    """Return the target of an input; of a folder, that of the same path below the folder of targets."""
    if options.target is None or input == options.input:
        return options.target
    return str(Path(options.target) / Path(input).relative_to(options.input))


def _notes(rendering: RenderedFile, loudness_lufs: float | None, extras: Iterable[str]) -> Iterator[str]:
    """Yield a line about the refinement, the gain after the chain, which some extras lack, and every warning."""
    if rendering.refinement:
        yield f"{rendering.output.path}: {rendering.refinement}"
    if loudness_lufs is not None:
        gain_db = rendering.automation.output_gain_db
        lacking = [f"--{kind}" for kind in extras if kind in ("automation", "preset")]
        missing = f", not part of {' and '.join(lacking)}" if lacking else ""
        gain = f"{gain_db:+.1f} dB after the chain for {loudness_lufs:g} LUFS{missing}"
        yield f"{rendering.output.path}: {gain if gain_db else 'the output is silent, and left as it is'}"
    yield from (f"warning: {text}" for text in (rendering.clipping, rendering.metadata) if text)


class _Extra(NamedTuple):
    """A kind of file that can be written next to the output: a check that lists its files, and the writer."""

    files: Callable[[str, ChainSpec], list[str]]
    write: Callable[[str, Take], None]


def _page_files(path: str, chain: ChainSpec) -> list[str]:
    if Path(path).suffix.lower() != ".html":
        raise UserError(f"{path}: a page is written as .html")
    return [path]


def _write_page(path: str, take: Take) -> None:
    # Imported here, because matplotlib takes long and most renderings write no page.
    from dfx.report.rendering import write_rendering

    write_rendering(Path(path), take.input, take.output, take.automation, take.reference)


_EXTRAS = {
    "automation": _Extra(lambda path, chain: automation_files(path), lambda path, take: take.automation.write(path)),
    "preset": _Extra(preset_files, lambda path, take: write_preset(path, take.chain, take.automation.median())),
    "project": _Extra(project_files, write_project),
    "page": _Extra(_page_files, _write_page),
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
        if name in ("project", "page") and PIPE in (input, output):
            raise UserError(f"--{name} {path}: a {name} needs files instead of standard input or output")
        if twin := next((other for other in extras if other != name and extras[other] == path), None):
            raise UserError(f"--{name} and --{twin} would both write {path}: give one of them another path")
        for file in _EXTRAS[name].files(path, chain):
            check_output(input, file, options.overwrite)
    return extras
