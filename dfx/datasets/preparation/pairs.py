"""Convert published data sets to folders of pairs, for the scripts ``data/prepare_*.py``."""

import argparse
import gzip
import hashlib
import math
import re
import shutil
import tarfile
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

import numpy as np
import soundfile
from torch import Tensor
from tqdm import tqdm

from dfx.audio.levels import SILENCE
from dfx.audio.metadata import soundfile_path
from dfx.audio.reading import AudioFile
from dfx.datasets.manifest import read_manifest
from dfx.datasets.pairs import SPLITS, find_pairs
from dfx.datasets.preparation.download import download, require_space, zenodo_file
from dfx.errors import ArgumentParser, DataError, UserError, errors_in_one_line, printable, reason_of
from dfx.writing import replacing, write_csv

SAMPLE_RATE = 22_050  # the paper's
MAX_TRIM_SECONDS = 1.0  # the most that is cut off the end of a file to make it as long as its partner
_FULL_SCALE = 1 - 2**-23  # the largest sample of a 24-bit file


class Member(NamedTuple):
    """A file in an archive; ``open`` is valid until the next member is requested."""

    path: PurePosixPath
    size: int
    open: Callable[[], IO[bytes]]


class Prepared(NamedTuple):
    """An audio file that was written, and the path of its source in the archive."""

    path: Path
    source: str


@dataclass
class Report:
    """The rows of the manifest of a folder of pairs, and why other pairs were left out, by name."""

    folder: Path
    rows: list[dict[str, str]] = field(default_factory=list)
    doubtful: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, split: str, input: Path, target: Path, **source: object) -> None:
        """Add a pair to the manifest, with columns that describe its source."""
        sides = {"input": input.relative_to(self.folder), "target": target.relative_to(self.folder)}
        paths = {side: path.as_posix() for side, path in sides.items()}
        self.rows.append({"name": name, "split": split, **paths, **{key: str(value) for key, value in source.items()}})

    def leave_out(self, name: str, reason: str) -> None:
        """Record why a pair is not in the manifest; the first reason is kept."""
        self.doubtful.setdefault(name, printable(reason))

    def write(self) -> None:
        """Write ``manifest.csv`` and, if pairs were left out, ``doubtful.csv``; an empty table is removed."""
        doubtful = [{"name": name, "reason": reason} for name, reason in self.doubtful.items()]
        for file, rows in (("manifest.csv", self.rows), ("doubtful.csv", doubtful)):
            path = self.folder / file
            if rows:
                write_csv(path, rows)
            else:
                path.unlink(missing_ok=True)

    def show(self) -> None:
        """Print the pairs that were left out, and the number of pairs in each split.

        Raises:
            DataError: if the pairs cannot be used for training.
        """
        for name, reason in self.doubtful.items():
            print(f"left out: {name}: {reason}")
        if self.doubtful:
            print(f"{len(self.doubtful)} pairs were left out: {self.folder / 'doubtful.csv'}")
        if not self.rows:
            raise DataError(f"{self.folder}: no pair could be prepared")
        loud = sum(row[side].endswith(".wav") for row in self.rows for side in ("input", "target"))
        if loud:
            print(f"{loud} files exceed full scale: they are WAV files of 32-bit float, to avoid clipping")
        splits = find_pairs(str(self.folder))
        counts = ", ".join(f"{len(splits[split])} for {split}" for split in SPLITS)
        print(f"{len(self.rows)} pairs in {self.folder}: {counts}")


@dataclass(frozen=True)
class ZenodoPairs:
    """Pairs in two folders of an archive on Zenodo.

    Args:
        record: the record's address in Zenodo's API.
        archive: the name of the archive, a zip or a tar.gz.
        input, target: folders in the archive.
        split: maps the sorted list of names to the split of each name.
        name: maps a file name without its suffix to the name that input and target share.
        group: maps a name to the column ``group`` of the manifest.
    """

    record: str
    archive: str
    input: str
    target: str
    split: Callable[[Sequence[str]], Mapping[str, str]]
    name: Callable[[str], str] = str
    group: Callable[[str], str] = str

    def main(self, manual: str, output: str, arguments: Sequence[str] | None = None) -> None:
        """Run the command line of a script: ``manual`` is the text of ``--help``, ``output`` the default folder.

        Raises:
            UserError: if the archive cannot be downloaded or used.
        """
        parser = argument_parser(manual, output)
        parser.add_argument("--url", default=self.record, help="the record in Zenodo's API (default: %(default)s)")
        parser.add_argument("--archive", type=Path, help=f"a local copy of {self.archive}, instead of a download")
        options = parser.parse_args(arguments)
        if is_prepared(options.output, options.sample_rate):
            print(f"{options.output} is prepared already")
            return
        archive = options.archive or options.output / self.archive
        if options.archive and not archive.is_file():
            raise UserError(f"{archive}: no such file")
        if not archive.exists():
            download(zenodo_file(options.url, self.archive), archive)
        self.prepare(archive, options.output, options.sample_rate)
        if not options.archive:
            print(f"{archive} is no longer needed")

    def prepare(self, archive: Path, output: Path, sample_rate: int) -> None:
        """Write the pairs of an archive and their manifest; files that exist already are kept.

        Raises:
            UserError: if the archive is damaged or has another layout, or the disk is full.
        """
        report = Report(output)
        try:
            sides = self._unpack(archive, output, sample_rate, report)
        except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise UserError(f"{archive} is damaged or incomplete ({error}): remove it and run this again") from None
        except NotImplementedError as error:  # an unknown method of compression
            raise UserError(f"{archive} cannot be unpacked: {error}") from None
        pairs = {}
        for name, pair in _pair_up(sides, report).items():
            try:
                pairs[name] = _cut_to_equal_length(*pair)
            except DataError as error:
                report.leave_out(name, str(error))
        split = self.split(list(pairs))
        for name, (input, target) in pairs.items():
            source = {"input_source": input.source, "target_source": target.source}
            report.add(name, split[name], input.path, target.path, group=self.group(name), **source)
        report.write()
        report.show()

    def _unpack(self, archive: Path, output: Path, sample_rate: int, report: Report) -> dict[str, dict[str, Prepared]]:
        folders = {PurePosixPath(self.input): "input", PurePosixPath(self.target): "target"}
        sides: dict[str, dict[str, Prepared]] = {side: {} for side in folders.values()}
        output.mkdir(parents=True, exist_ok=True)
        other_folders = set()
        with tqdm(desc="Preparing", unit=" files") as bar:
            for member in members(archive):
                side = folders.get(member.path.parent)
                is_hidden = member.path.name.startswith(".")  # macOS adds a hidden file for each file
                if side is None or is_hidden or member.path.suffix.lower() != ".wav":
                    other_folders.add(str(member.path.parent))
                    continue
                name = safe_name(self.name(member.path.stem))
                if name in sides[side]:
                    print(
                        f"left out: {printable(str(member.path))}: {printable(sides[side][name].source)} has its name"
                    )
                    continue
                try:
                    path = _unpack_member(member, output / side / name, sample_rate, output)
                    sides[side][name] = Prepared(path, printable(str(member.path)))
                except DataError as error:
                    report.leave_out(name, str(error))
                bar.update()
        for folder, side in folders.items():
            if not sides[side]:
                found = ", ".join(sorted(other_folders)[:20]) or "nothing"
                raise UserError(f"{archive} has no audio in {folder}, but in: {found}")
        return sides


def argument_parser(manual: str, output: str) -> ArgumentParser:
    """Return a parser of the options that all scripts share; see :meth:`ZenodoPairs.main`."""
    parser = ArgumentParser(description=manual, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "(default: %(default)s)"
    parser.add_argument("--output", type=Path, default=Path(output), help=f"the folder of the pairs {default}")
    parser.add_argument("--sample-rate", type=_sample_rate, default=SAMPLE_RATE, help=f"of the pairs, in Hz {default}")
    return parser


def run(main: Callable[[], None]) -> None:
    """Run a script, and end it with one line if it fails or is interrupted."""
    with errors_in_one_line():
        try:
            main()
        except OSError as error:
            raise UserError(reason_of(error)) from error
        except KeyboardInterrupt as interrupt:
            interrupt.args = ("run this again to continue",)
            raise


def members(archive: Path) -> Iterator[Member]:
    """Yield the regular files of a zip or tar.gz in its order, without unpacking them.

    Raises:
        UserError: if it is neither.
        Exception: of ``zipfile``, ``tarfile``, ``gzip`` or ``zlib``, if it is damaged.
    """
    with archive.open("rb") as file:
        magic = file.read(2)
    if magic == b"PK":
        with zipfile.ZipFile(archive) as zip:
            for info in zip.infolist():
                if not info.is_dir():
                    yield Member(PurePosixPath(info.filename), info.file_size, partial(zip.open, info))
    elif magic == b"\x1f\x8b":
        # tarfile's own "r|gz" takes a truncated archive for a complete one.
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for entry in tar:
                if entry.isfile():
                    # None is for entries that are no files.
                    extract = cast(Callable[[], IO[bytes]], partial(tar.extractfile, entry))
                    yield Member(PurePosixPath(entry.name), entry.size, extract)
            while stream.read(1 << 20):  # up to its checksum
                pass
    else:
        raise UserError(f"{archive} is neither a zip nor a tar.gz")


def safe_name(name: str) -> str:
    """Return a file name that is valid on every system and does not lead to another folder.

    Accents are composed, and bytes that are not UTF-8 are written as ``%E9``.
    """
    name = re.sub(r"[\udc80-\udcff]", lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", name)
    name = re.sub(r'[\\/:*?"<>|\x00-\x1f\ud800-\udfff]', "_", unicodedata.normalize("NFC", name))
    return name.strip(". ") or "_"


def read_whole(path: Path, sample_rate: int) -> Tensor:
    """Read and resample a whole file, to float32 ``(channels, samples)``; errors as in :meth:`AudioFile.open`."""
    file = AudioFile.open(str(path))
    return file.read(0, file.samples_at(sample_rate), sample_rate, file.channels)


def write_audio(audio: Tensor, stem: Path, sample_rate: int) -> Path:
    """Write ``(channels, samples)`` and return ``stem.flac`` (24 bits) or, beyond full scale, ``stem.wav`` (float).

    Raises:
        DataError: if the audio is silent, or samples are not finite.
        UserError: if the disk is full.
    """
    peak = float(audio.abs().max()) if audio.numel() else 0.0
    if not math.isfinite(peak):
        raise DataError(f"{stem.name} holds samples that are not finite")
    if peak < SILENCE:
        raise DataError(f"{stem.name} is silent")
    suffix, subtype = (".flac", "PCM_24") if peak <= _FULL_SCALE else (".wav", "FLOAT")
    stem.parent.mkdir(parents=True, exist_ok=True)
    require_space(stem.parent, 4 * audio.numel())
    path = Path(f"{stem}{suffix}")
    with replacing(path) as unfinished:
        soundfile.write(soundfile_path(str(unfinished)), audio.T.numpy(), sample_rate, subtype, format=suffix[1:])
        Path(f"{stem}.wav" if suffix == ".flac" else f"{stem}.flac").unlink(missing_ok=True)
    return path


def existing(stem: Path, sample_rate: int) -> Path | None:
    """Return the file that :func:`write_audio` wrote earlier, if it has this sample rate, or None."""
    for path in (Path(f"{stem}.flac"), Path(f"{stem}.wav")):
        with suppress(DataError):  # missing or broken
            if AudioFile.open(str(path)).sample_rate == sample_rate:
                return path
    return None


def read_rows(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a folder's manifest, or none if there is no manifest."""
    path = folder / "manifest.csv"
    return [row.values for row in read_manifest(path)] if path.is_file() else []


def is_prepared(folder: Path, sample_rate: int) -> bool:
    """Return true if the manifest lists files, and all of them exist with this sample rate."""
    files = [folder / row.get(side, "") for row in read_rows(folder) for side in ("input", "target")]
    return bool(files) and all(existing(path.with_suffix(""), sample_rate) == path for path in files)


def split_as_published(names: Sequence[str]) -> dict[str, str]:
    """Split names as the paper's code does: 80 % train, 10 % validation, 10 % test.

    Equals scikit-learn's ``train_test_split(sorted(names), random_state=0)``, applied twice: a tenth for test, then
    0.1111 of the rest for validation.
    """
    splits, rest = {}, sorted(names)
    for split, share in (("test", 0.1), ("validation", 0.1111)):
        order = [rest[i] for i in np.random.RandomState(0).permutation(len(rest))]
        count = math.ceil(share * len(rest))
        splits.update(dict.fromkeys(order[:count], split))
        rest = order[count:]
    return {**splits, **dict.fromkeys(rest, "train")}


def split_by_group(groups: Mapping[str, str]) -> dict[str, str]:
    """Split names, given the group of each: about 80 % train, 10 % validation, 10 % test.

    No group is in two splits, and few groups change theirs when names are added.
    """
    sizes, split_of = Counter(groups.values()), {}
    counts, held_out = {"test": 0, "validation": 0}, math.ceil(0.1 * len(groups))
    for group in sorted(sizes, key=lambda group: hashlib.sha256(group.encode()).digest()):
        split_of[group] = next((split for split, count in counts.items() if count < held_out), "train")
        if split_of[group] in counts:
            counts[split_of[group]] += sizes[group]
    return {name: split_of[group] for name, group in groups.items()}


def _unpack_member(member: Member, stem: Path, sample_rate: int, folder: Path) -> Path:
    """Return the prepared file of a member; unpack it into the folder and convert it unless it exists."""
    path = existing(stem, sample_rate)
    if path is not None:
        return path
    require_space(folder, member.size)
    unpacked = folder / "unpacked.partial"
    try:
        with member.open() as content, unpacked.open("wb") as file:
            shutil.copyfileobj(content, file)
        return write_audio(read_whole(unpacked, sample_rate), stem, sample_rate)
    except DataError as error:
        raise DataError(str(error).replace(str(unpacked), str(member.path))) from None
    finally:
        unpacked.unlink(missing_ok=True)


def _pair_up(sides: Mapping[str, Mapping[str, Prepared]], report: Report) -> dict[str, Sequence[Prepared]]:
    inputs, targets = sides["input"], sides["target"]
    if not inputs.keys() & targets.keys() and len(inputs) == len(targets):
        print("input and target files have different names: they are paired in their order, as in the paper's code")
        return {name: (inputs[name], targets[other]) for name, other in zip(sorted(inputs), sorted(targets))}
    for name in sorted(inputs.keys() ^ targets.keys()):
        report.leave_out(name, f"has no {'target' if name in inputs else 'input'}")
    return {name: (inputs[name], targets[name]) for name in sorted(inputs.keys() & targets.keys())}


def _cut_to_equal_length(*pair: Prepared) -> list[Prepared]:
    files = [AudioFile.open(str(side.path)) for side in pair]
    samples = min(file.samples for file in files)
    if max(file.seconds for file in files) - samples / files[0].sample_rate > MAX_TRIM_SECONDS:
        lengths = " and ".join(f"{file.seconds:.2f} s" for file in files)
        raise DataError(f"input and target have different lengths, {lengths}")
    cut = list(pair)
    for index, (side, file) in enumerate(zip(pair, files)):
        if file.samples > samples:
            audio = file.read(0, samples, file.sample_rate, file.channels)
            cut[index] = side._replace(path=write_audio(audio, side.path.with_suffix(""), file.sample_rate))
    return cut


def _sample_rate(text: str) -> int:
    rate = int(text)
    if not 1000 <= rate <= 192_000:
        raise argparse.ArgumentTypeError(f"{text} is not a sample rate between 1000 and 192000 Hz")
    return rate
