"""One rendering of the page: the output and all files beside it, in a folder of their own."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from dfx.audio.reading import stream_file
from dfx.errors import DataError, UserError, reason_of
from dfx.render.command import write_extras
from dfx.render.model import Model
from dfx.render.presets import preset_suffixes
from dfx.render.streaming import chain_at_rate


@dataclass(frozen=True)
class Limits:
    """The longest recording, in minutes, and the largest file, in megabytes, that the page takes."""

    minutes: float
    megabytes: int


@dataclass(frozen=True)
class Result:
    """A rendering: its listening page (HTML), the paths of the files to download, and warnings."""

    page: str
    files: list[str]
    warnings: list[str]


def render_upload(
    upload: str, model: Model, name: str, folder: str, limits: Limits, reference: str | None = None
) -> Result:
    """Render an uploaded file with the model ``name``. Call it on the main thread: some hosts load plugins there only.

    Args:
        upload: the path of the file.
        model, name: the model, and what to call it in file names.
        folder: gets a new folder with a copy of the file, the output, its automation, presets and project.
        limits: of the file's length.
        reference: the path of an uploaded reference, which is copied too; None for a model that takes none.

    Raises:
        UserError: if the file cannot be rendered.
    """
    folder = tempfile.mkdtemp(dir=folder)
    try:
        if reference is not None:
            beside = Path(folder, "reference")
            beside.mkdir()
            reference = str(shutil.copy(reference, beside))
        return _render(Path(shutil.copy(upload, folder)), model, name, limits, reference)
    except (UserError, OSError) as error:
        raise UserError(reason_of(error).replace(f"{folder}{os.sep}", "")) from error


def _render(input: Path, model: Model, name: str, limits: Limits, reference: str | None) -> Result:
    with closing(stream_file(str(input))) as stream:
        minutes = stream.samples / stream.sample_rate / 60
        if minutes > limits.minutes:
            fault = f"{input.name} lasts {minutes:.2f} minutes, more than {limits.minutes:g}"
            raise DataError(f"{fault}: cut it, or start the demo with a larger --minutes")
        chain = chain_at_rate(model.task, stream.sample_rate, stream.channels, str(input))
    output = input.with_name(f"{input.stem}_{name}.wav")
    rendering = model.render_file(str(input), str(output), progress=True, reference=reference)
    beside = [("preset", suffix) for suffix in preset_suffixes(chain)]
    beside += [("automation", ".csv"), ("project", ".rpp"), ("page", ".html")]
    write_extras(model, str(input), rendering, [(kind, str(output.with_suffix(suffix))) for kind, suffix in beside])
    page = output.with_suffix(".html")
    files = sorted(str(path) for path in input.parent.iterdir() if path.is_file() and path not in (input, output, page))
    # A project finds input and output beside it.
    archive = shutil.make_archive(
        str(input.parent.with_name(f"{input.parent.name}_all") / output.stem), "zip", input.parent
    )
    warnings = [warning for warning in (rendering.clipping, rendering.metadata) if warning]
    return Result(page.read_text(encoding="utf-8"), [str(output), *files, archive], warnings)
