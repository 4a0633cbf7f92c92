#!/usr/bin/env python3
"""Prepare the mastering pairs of the paper: songs, and the same songs mastered.

Cambridge Music Technology's "Mixing Secrets" library lists, for many of its songs, previews of the mix before and
after mastering. The site blocks automated access, and its list changes with time, so save both with a browser:

1. Open https://multitracksearch.cambridge-mt.com/ms-mtk-search.htm and save it ("Save page as", HTML only).
2. Save the previews into one folder, under the names that the site gives them. If the folder is empty, the script
   lists the names of the files that it needs. `--download` tries to download them from the addresses in the page,
   one at a time, with a pause after each.

    python data/prepare_cambridge_mt.py --page ms-mtk-search.htm --copy previews
    python train.py fit --config configs/paper/mastering.yaml    # train on data/external/mastering

The page contains its list as JavaScript, between `var projects = [` and `];`. Four strings of each entry are read,
all others are ignored:

    {"a": "ARTIST", "p": "'TITLE'", "pt": "Full", "pv": "https://previews.cambridge-mt.com/NAME.mp3"}

(The keys `artist`, `project` and `type` are accepted as well.) A song is used if it has an entry of type `Mstr`, the
unmastered mix and our input, and one of type `Full`, our target, both with a preview.

The two previews of a song seldom begin at the same sample. The delay of the target is estimated above 2 kHz, within
10 s either way, and both are cut to the part that they share; nothing is padded. An inverted target is inverted
back. manifest.csv lists the delay (positive if the target is later), drift, polarity and correlation of every pair.
A pair is left out if its delay drifts by more than 0.5 ms, its correlation is below 0.3, its lengths differ too
much, or a file is silent or unreadable; doubtful.csv lists the reasons.

No artist is in two splits; the paper's split is by song. Songs that are already prepared are kept, also if the page no
longer lists them: run the script again after saving more of them, and remove the output folder after replacing some.
"""

from __future__ import annotations

import html
import re
import sys
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urljoin, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # dfx need not be installed

from tqdm import tqdm

from dfx.datasets.preparation.download import DownloadError, RemoteFile, download
from dfx.datasets.preparation.matching import cut_to_match, match
from dfx.datasets.preparation.pairs import (
    Report,
    argument_parser,
    existing,
    read_rows,
    read_whole,
    run,
    safe_name,
    split_by_group,
    write_audio,
)
from dfx.errors import DataError, UserError

SITE = "https://multitracksearch.cambridge-mt.com/"
PAUSE_SECONDS = 1.0

FIELDS = {"artist": ("a", "artist"), "project": ("p", "project"), "type": ("pt", "type"), "preview": ("pv",)}
PREVIEW_TYPES = {"input": "Mstr", "target": "Full"}
COLUMNS = ("artist", "project", "delay_samples", "drift_samples", "polarity", "correlation")

TOKEN = re.compile(
    r""" "(?P<double>(?:[^"\\]|\\.)*)" | '(?P<single>(?:[^'\\]|\\.)*)' | (?P<word>[A-Za-z_$][\w$]*)
    | (?P<mark>[{}\[\]:,]) | //[^\n]* | /\*.*?\*/ """,
    re.VERBOSE | re.DOTALL,
)


class Song(NamedTuple):
    """A song with the URLs of its two previews."""

    artist: str
    project: str
    input: str
    target: str

    @property
    def name(self) -> str:
        return safe_name(f"{self.artist} - {self.project}")


class Pair(NamedTuple):
    """The files of a song (input, target) and its values of the columns :data:`COLUMNS` of the manifest."""

    paths: Sequence[Path]
    columns: dict[str, Any]


def parse_page(page: str) -> list[Song]:
    """Return the songs of the site's page that have both previews, in the order of the page.

    Raises:
        UserError: if the page contains no list, or its layout is not as expected.
    """
    entries = parse_list(page)
    songs: dict[tuple[str, str], dict[str, str]] = {}
    num_used = 0
    for entry in entries:
        values = {field: next((entry[key] for key in keys if entry.get(key)), "") for field, keys in FIELDS.items()}
        if not all(values.values()):
            continue
        num_used += 1
        artist = html.unescape(values["artist"]).strip()
        project = html.unescape(values["project"]).strip(" '\u2018\u2019")
        previews = songs.setdefault((artist, project), {})
        previews.setdefault(values["type"], absolute_url(values["preview"]))
    if not num_used:
        found = ", ".join(sorted({key for entry in entries for key in entry})) or "none"
        raise UserError(
            f"no entry in the list of the page has artist, project, type and preview; its fields are: {found}"
        )
    return [
        Song(artist, project, *(previews[type] for type in PREVIEW_TYPES.values()))
        for (artist, project), previews in songs.items()
        if set(PREVIEW_TYPES.values()) <= previews.keys()
    ]


def parse_list(page: str) -> list[dict[str, str]]:
    """Return the string fields of the objects between ``var projects = [`` and ``]``; other fields are skipped."""
    begin = re.search(r"\bprojects\s*=\s*\[", page)
    if not begin:
        raise UserError("the page has no list `var projects = [`: save the page itself as HTML")
    entries: list[dict[str, str]] = []
    depth, text, key = 0, "", None
    for token in TOKEN.finditer(page, begin.end()):
        mark = token["mark"]
        if mark in ("{", "["):
            if depth == 0:
                entries.append({})
            depth += 1
        elif mark in ("}", "]"):
            if depth == 0:
                return entries
            depth -= 1
        elif mark == ":":
            key = text
        elif mark == ",":
            key = None
        elif token.lastgroup:
            text = unescape(token[token.lastgroup])
            if depth == 1 and key is not None:
                entries[-1][key] = text
    raise UserError("the page ends in the middle of its list: save it again")


def unescape(text: str) -> str:
    """Return the value of a JavaScript string literal, given without quotes."""

    def value(escape: re.Match) -> str:
        code = escape[1]
        return chr(int(code[1:], 16)) if len(code) > 1 else {"n": "\n", "t": "\t", "r": "\r"}.get(code, code)

    return re.sub(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", value, text, flags=re.DOTALL)


def absolute_url(link: str) -> str:
    """Return the absolute, percent-encoded URL of a link in the page."""
    return quote(urljoin(SITE, html.unescape(link).strip()), safe="%:/?#[]@!$&'()*+,;=~")


def file_name(url: str) -> str:
    """Return the name under which a browser saves a URL."""
    return safe_name(unquote(PurePosixPath(urlsplit(url).path).name))


def find_by_name(folder: Path) -> dict[str, Path]:
    """Return all files below a folder, by their names in lower case and with composed accents."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {unicodedata.normalize("NFC", path.name).lower(): path for path in files}


def download_missing(songs: Sequence[Song], copy: Path) -> None:
    """Download the previews that are missing in the folder `copy`; skip those that the site does not have.

    Raises:
        UserError: if the site cannot be reached or refuses the download.
    """
    present = find_by_name(copy)
    urls = [url for song in songs for url in (song.input, song.target) if file_name(url).lower() not in present]
    for url in urls:
        try:
            download(RemoteFile(url), copy / file_name(url))
        except DownloadError as error:
            if error.status not in (404, 410):
                raise UserError(f"{error}; save the missing previews with a browser into {copy}") from None
            print(error)
        time.sleep(PAUSE_SECONDS)


def prepare(songs: Sequence[Song], copy: Path, output: Path, sample_rate: int) -> None:
    """Align and write the pairs whose previews are in the folder `copy`, and update the manifest after each."""
    files = find_by_name(copy)
    pairs = load_pairs(output, sample_rate)
    left_out: dict[str, str] = {}
    output.mkdir(parents=True, exist_ok=True)
    for song in tqdm([song for song in songs if song.name not in pairs], desc="Preparing", unit=" songs"):
        names = [file_name(song.input), file_name(song.target)]
        missing = [name for name in names if name.lower() not in files]
        if missing:
            left_out[song.name] = f"{' and '.join(missing)} not in {copy}"
            continue
        try:
            input, target = (read_whole(files[name.lower()], sample_rate) for name in names)
            found = match(input, target, sample_rate)
            if found.doubt:
                raise DataError(found.doubt)
            cut = cut_to_match(input, found.polarity * target, found.delay_samples)
            paths = [
                write_audio(audio, output / side / song.name, sample_rate)
                for side, audio in zip(PREVIEW_TYPES, cut, strict=True)
            ]
        except DataError as error:
            left_out[song.name] = str(error)
            continue
        values = (song.artist, song.project, *found[:3], f"{found.confidence:.3f}")
        pairs[song.name] = Pair(paths, dict(zip(COLUMNS, values, strict=True)))
        build_report(pairs, left_out, output).write()
    report = build_report(pairs, left_out, output)
    report.write()
    report.show()


def load_pairs(output: Path, sample_rate: int) -> dict[str, Pair]:
    """Return the pairs of earlier runs, by name, also of songs that the page no longer lists."""
    pairs = {}
    for row in read_rows(output):
        name = safe_name(row.get("name", ""))
        paths = [path for side in PREVIEW_TYPES if (path := existing(output / side / name, sample_rate))]
        if len(paths) == len(PREVIEW_TYPES):
            pairs[name] = Pair(paths, {key: row.get(key, "") for key in COLUMNS})
    return pairs


def build_report(pairs: dict[str, Pair], left_out: dict[str, str], output: Path) -> Report:
    """Return a report on the pairs prepared so far, with their splits."""
    report = Report(output, doubtful=left_out)
    groups = {name: pair.columns["artist"].lower() for name, pair in pairs.items()}
    split = split_by_group(groups)
    for name, pair in sorted(pairs.items()):
        report.add(name, split[name], *pair.paths, group=groups[name], **pair.columns)
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__, "data/external/mastering")
    parser.add_argument("--page", type=Path, required=True, help="the saved page of the site")
    parser.add_argument("--copy", type=Path, required=True, help="folder of the saved previews")
    parser.add_argument(
        "--download", action="store_true", help="try to download previews that are missing in the folder"
    )
    options = parser.parse_args(arguments)
    if not options.page.is_file():
        raise UserError(f"{options.page}: no such file; save {SITE}ms-mtk-search.htm with a browser")
    songs = parse_page(options.page.read_text(encoding="utf-8", errors="replace"))
    print(f"{len(songs)} songs of the page have an unmastered and a mastered preview")
    if options.download:
        options.copy.mkdir(parents=True, exist_ok=True)
        download_missing(songs, options.copy)
    if not options.copy.is_dir():
        raise UserError(f"{options.copy}: no such folder; create it and save the previews there")
    prepare(songs, options.copy, options.output, options.sample_rate)


if __name__ == "__main__":
    run(main)
