"""Manifests: the pairs of a folder as CSV, in the forms that spreadsheets and other systems write."""

import codecs
import csv
import io
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from dfx.errors import DataError

_ENCODINGS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_SEPARATORS = ",;\t|"


class Row(NamedTuple):
    """A row of a manifest: the number of its line, and its values by column."""

    line: int
    values: dict[str, str]


def read_manifest(path: Path, columns: Iterable[str] = ()) -> list[Row]:
    """Read the rows of a manifest, without empty ones.

    It is UTF-8 or, with a byte-order mark, UTF-16. The separator is that of ``, ; | tab`` which occurs most often in
    the header, or is given by a line ``sep=;`` above it. Columns are in any order and case; spaces around their names
    and around values are removed.

    Raises:
        DataError: if it is not such a table, lacks one of ``columns``, or a row has more values than there are columns.
    """
    text = _decode(path)
    has_separator = text.lower().startswith("sep=") and text[4:5] in tuple(_SEPARATORS)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=text[4] if has_separator else _separator_of(text))
    try:
        lines = [(reader.line_num, [value.strip() for value in values]) for values in reader]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is not CSV: {error}") from None
    lines = [(number, values) for number, values in lines[has_separator:] if any(values)]
    header = [name.lower() for name in lines[0][1]] if lines else []
    missing = {name.lower() for name in columns} - set(header)
    if missing:
        way_out = ": add it, or train with --run.folds K" if missing == {"split"} else ""
        raise DataError(f"{path} has no column {', '.join(sorted(missing))}{way_out}")
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise DataError(f"{path} has two columns {twice[0]}: rename or remove one")
    for number, values in lines[1:]:
        if any(values[len(header) :]):
            fault = f"{path}, line {number} has more values than there are columns"
            raise DataError(f"{fault}: put values that contain the separator in quotes")
    padding = [""] * len(header)
    return [Row(number, dict(zip(header, values + padding))) for number, values in lines[1:]]


def find_child(folder: Path, name: str) -> Path:
    """Return the path of a name in lower case in a folder, where it may be in upper case."""
    path = folder / name
    if path.exists() or not folder.is_dir():
        return path
    return next((child for child in sorted(folder.iterdir()) if child.name.lower() == name), path)


def find_file(folder: Path, name: str) -> Path:
    """Return the path of a file in or below a folder, where its name may be in another Unicode normalization form.

    Systems differ in the form of accented letters: macOS decomposes ``é`` into ``e`` and an accent. Backslashes, as
    Windows writes them, separate folders if there is no file with backslashes in its name.
    """
    for spelling in (name, name.replace("\\", "/")):
        path = folder
        for part in Path(spelling).parts:
            forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
            path = next((path / form for form in forms if (path / form).exists()), path / part)
        if path.exists():
            return path
    return folder / name


def _decode(path: Path) -> str:
    content = path.read_bytes()
    encoding = next((encoding for mark, encoding in _ENCODINGS.items() if content.startswith(mark)), "utf-8")
    try:
        # Names of files are bytes: those that are not UTF-8 are kept as they are, and found.
        text = content.decode(encoding, "surrogateescape")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise DataError(f"{path} is not a text file: save it as CSV in UTF-8")
    return text


def _separator_of(text: str) -> str:
    header = next((line for line in io.StringIO(text, newline="") if line.strip()), "")
    return max(_SEPARATORS, key=header.count)
