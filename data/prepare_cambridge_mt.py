#!/usr/bin/env python3
"""Prepare the mastering pairs of the paper: songs, and the same songs mastered.

Cambridge Music Technology's "Mixing Secrets" library lists, for many of its songs, a preview of the mix and one
of the mix before mastering. The site lets browsers in and turns programs away, and the list changes with time;
so save both yourself:

1. Open https://multitracksearch.cambridge-mt.com/ms-mtk-search.htm in a browser and save it ("Save page as",
   HTML only).
2. Save the previews into one folder, under the names that the site gives them. Run on an empty folder, the
   script lists the names that it wants. `--download` tries to get them from the addresses in the page, one
   after the other, with a pause after each.

    python data/prepare_cambridge_mt.py --page ms-mtk-search.htm --copy previews
    python train.py fit --config configs/paper/mastering.yaml    # trains on data/external/mastering

The page holds its list as JavaScript, between `var projects = [` and `];`. Of each entry four texts are read,
and all others are ignored:

    {"a": "ARTIST", "p": "'TITLE'", "pt": "Full", "pv": "https://previews.cambridge-mt.com/NAME.mp3"}

(`artist`, `project` and `type` in full are read as well.) A song is used if it has an entry of type `Mstr`, the
unmastered mix and our input, and one of type `Full`, our target, both with a preview.

The two previews of a song seldom begin at the same sample. The delay of the target is found above 2 kHz, looked
for up to 10 s either way, and both are cut to the part that they share; nothing is padded. An inverted target is
turned over. manifest.csv names the delay (positive: the target came later), the drift, the polarity and the
correlation of every pair. A pair whose delay drifts by more than half a millisecond, whose correlation is under
0.3, whose lengths are too different, or which is silent or cannot be read, is left out; doubtful.csv says why.

No artist is in two splits; the paper's split is by song. Songs that were prepared already are kept: run the
script again when you have saved more of them, and remove the output folder if you replaced some.
"""

import html
import re
import sys
import time
from pathlib import Path, PurePosixPath
from typing import Dict, List, NamedTuple, Optional, Sequence
from urllib.parse import quote, unquote, urljoin, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # dfx is used from where it lies

from tqdm import tqdm

from dfx.errors import DataError
from dfx.datasets.preparation.download import DownloadError, RemoteFile, download
from dfx.datasets.preparation.matching import cut_to_match, match
from dfx.datasets.preparation.pairs import Report, argument_parser, existing, read_manifest, read_whole, run, safe_name, split_by_group, write_audio
from dfx.errors import UserError

SITE = "https://multitracksearch.cambridge-mt.com/"
PAUSE_SECONDS = 1.0

FIELDS = {"artist": ("a", "artist"), "project": ("p", "project"), "type": ("pt", "type"), "preview": ("pv",)}
SIDES = {"input": "Mstr", "target": "Full"}
SOURCE = ("artist", "project", "delay_samples", "drift_samples", "polarity", "correlation")

TOKEN = re.compile(
    r""" "(?P<double>(?:[^"\\]|\\.)*)" | '(?P<single>(?:[^'\\]|\\.)*)' | (?P<word>[A-Za-z_$][\w$]*)
    | (?P<mark>[{}\[\]:,]) | //[^\n]* | /\*.*?\*/ """,
    re.VERBOSE | re.DOTALL,
)


class Song(NamedTuple):
    """A song with the addresses of its two previews."""

    artist: str
    project: str
    input: str
    target: str

    @property
    def name(self) -> str:
        return safe_name(f"{self.artist} - {self.project}")


class Pair(NamedTuple):
    """The files that were written of a song, and what the manifest says of it, by :data:`SOURCE`."""

    paths: Sequence[Path]
    source: Dict[str, object]


def parse_page(page: str) -> List[Song]:
    """The songs of the site's page that have both previews, in its order.

    Raises:
        UserError: if the page holds no list, or one of another layout.
    """
    entries = parse_list(page)
    songs: Dict[tuple, Dict[str, str]] = {}
    used = 0
    for entry in entries:
        values = {
            field: next((entry[key] for key in keys if entry.get(key)), "") for field, keys in FIELDS.items()
        }
        if not all(values.values()):
            continue
        used += 1
        artist = html.unescape(values["artist"]).strip()
        project = html.unescape(values["project"]).strip(" '\u2018\u2019")
        previews = songs.setdefault((artist, project), {})
        previews.setdefault(values["type"], address(values["preview"]))
    if not used:
        found = ", ".join(sorted({key for entry in entries for key in entry})) or "none"
        raise UserError(f"no entry of the page's list has artist, project, type and preview; its fields are: {found}")
    return [
        Song(artist, project, *(previews[type] for type in SIDES.values()))
        for (artist, project), previews in songs.items()
        if set(SIDES.values()) <= previews.keys()
    ]


def parse_list(page: str) -> List[Dict[str, str]]:
    """The objects between ``var projects = [`` and ``]``, each with its texts; whatever else they hold is skipped."""
    begin = re.search(r"\bprojects\s*=\s*\[", page)
    if not begin:
        raise UserError("the page has no list `var projects = [`: save the page itself, as HTML")
    entries: List[Dict[str, str]] = []
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
    """The value of a JavaScript string."""

    def value(escape: re.Match) -> str:
        code = escape[1]
        return chr(int(code[1:], 16)) if len(code) > 1 else {"n": "\n", "t": "\t", "r": "\r"}.get(code, code)

    return re.sub(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", value, text, flags=re.DOTALL)


def address(text: str) -> str:
    """What a browser makes of a link in the page."""
    return quote(urljoin(SITE, html.unescape(text).strip()), safe="%:/?#[]@!$&'()*+,;=~")


def file_name(url: str) -> str:
    """What a browser calls the file at an address."""
    return safe_name(unquote(PurePosixPath(urlsplit(url).path).name))


def files_of(folder: Path) -> Dict[str, Path]:
    """The files in a folder and under it, by their names in lower case."""
    return {path.name.lower(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def download_missing(songs: Sequence[Song], copy: Path) -> None:
    """Downloads the previews that the copy lacks; what the site does not have (any more) is passed over.

    Raises:
        UserError: if the site cannot be reached, or turns us away.
    """
    there = files_of(copy)
    urls = [url for song in songs for url in (song.input, song.target) if file_name(url).lower() not in there]
    for url in urls:
        try:
            download(RemoteFile(url), copy / file_name(url))
        except DownloadError as error:
            if error.status not in (404, 410):
                raise UserError(f"{error}; save the missing previews with a browser into {copy}") from None
            print(error)
        time.sleep(PAUSE_SECONDS)


def prepare(songs: Sequence[Song], copy: Path, output: Path, sample_rate: int) -> None:
    """Aligns the pairs that the copy holds and writes them, and a manifest after each."""
    files = files_of(copy)
    pairs = known_pairs(songs, output, sample_rate)
    left_out: Dict[str, str] = {}
    output.mkdir(parents=True, exist_ok=True)
    for song in tqdm([song for song in songs if song.name not in pairs], desc="Preparing", unit=" songs"):
        wanted = [file_name(song.input), file_name(song.target)]
        missing = [name for name in wanted if name.lower() not in files]
        if missing:
            left_out[song.name] = f"{' and '.join(missing)} not in {copy}"
            continue
        try:
            input, target = (read_whole(files[name.lower()], sample_rate) for name in wanted)
            found = match(input, target, sample_rate)
            if found.doubt:
                raise DataError(found.doubt)
            cut = cut_to_match(input, found.polarity * target, found.delay_samples)
            paths = [write_audio(audio, output / side / song.name, sample_rate) for side, audio in zip(SIDES, cut)]
        except DataError as error:
            left_out[song.name] = str(error)
            continue
        values = (song.artist, song.project, *found[:3], f"{found.confidence:.3f}")
        pairs[song.name] = Pair(paths, dict(zip(SOURCE, values)))
        report_of(pairs, left_out, output).write()
    report = report_of(pairs, left_out, output)
    report.write()
    report.show()


def known_pairs(songs: Sequence[Song], output: Path, sample_rate: int) -> Dict[str, Pair]:
    """The pairs of an earlier run, by their names."""
    rows = {row.get("name"): row for row in read_manifest(output)}
    pairs = {}
    for song in songs:
        paths = [existing(output / side / song.name, sample_rate) for side in SIDES]
        if song.name in rows and all(paths):
            pairs[song.name] = Pair(paths, {key: rows[song.name].get(key, "") for key in SOURCE})
    return pairs


def report_of(pairs: Dict[str, Pair], left_out: Dict[str, str], output: Path) -> Report:
    """The manifest of the pairs so far."""
    report = Report(output, doubtful=left_out)
    split = split_by_group({name: pair.source["artist"].lower() for name, pair in pairs.items()})
    for name, pair in sorted(pairs.items()):
        report.add(name, split[name], *pair.paths, **pair.source)
    return report


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argument_parser(__doc__, "data/external/mastering")
    parser.add_argument("--page", type=Path, required=True, help="the site's page, saved")
    parser.add_argument("--copy", type=Path, required=True, help="the folder of your saved previews")
    parser.add_argument("--download", action="store_true", help="try to download what the folder lacks")
    options = parser.parse_args(arguments)
    if not options.page.is_file():
        raise UserError(f"{options.page}: no such file; save {SITE}ms-mtk-search.htm with a browser")
    songs = parse_page(options.page.read_text(encoding="utf-8", errors="replace"))
    print(f"{len(songs)} songs of the page have an unmastered and a mastered preview")
    if options.download:
        options.copy.mkdir(parents=True, exist_ok=True)
        download_missing(songs, options.copy)
    if not options.copy.is_dir():
        raise UserError(f"{options.copy}: no such folder; it is where your saved previews are")
    prepare(songs, options.copy, options.output, options.sample_rate)


if __name__ == "__main__":
    run(main)
