"""Published data sets made into folders of pairs: what the prepare scripts of ``data/`` share."""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import math
import re
import shutil
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile
from torch import Tensor
from tqdm import tqdm

from dfx.audio.reading import AudioFile
from dfx.datasets.pairs import SILENCE, SPLITS, find_pairs
from dfx.datasets.preparation.download import download, require_space, zenodo_file
from dfx.errors import DataError, UserError
from dfx.writing import replacing, write_csv

SAMPLE_RATE = 22_050
"""The paper's, in Hz."""

MAX_TRIM_SECONDS = 1.0
"""How much may be cut off the end of a file to make it as long as its partner."""

_FULL_SCALE = 1 - 2**-23  # the largest sample of a 24-bit file


class Member(NamedTuple):
    """A file in an archive; ``open`` is valid until the next one is asked for."""

    path: PurePosixPath
    size: int
    open: Callable[[], BinaryIO]


class Prepared(NamedTuple):
    """An audio file that was written, and what it was made of."""

    path: Path
    source: str


@dataclass(frozen=True)
class ZenodoPairs:
    """Pairs in two folders of an archive of Zenodo.

    Args:
        record: the record's address in Zenodo's API.
        archive: the name of the archive, a zip or a tar.gz.
        input, target: folders in the archive.
        split: gives a split to every name, from their sorted list.
        name: makes the name that an input and its target share of a file's, without its ending.
    """

    record: str
    archive: str
    input: str
    target: str
    split: Callable[[Sequence[str]], Mapping[str, str]]
    name: Callable[[str], str] = str

    def main(self, manual: str, output: str, arguments: Sequence[str] | None = None) -> None:
        """The command line of a script.

        Args:
            manual: what ``--help`` says.
            output: the default of ``--output``.
            arguments: by default those of the process.
        """
        parser = argument_parser(manual, output)
        parser.add_argument("--url", default=self.record, help="the record in Zenodo's API (default: %(default)s)")
        parser.add_argument(
            "--archive", type=Path, help=f"a copy of {self.archive} that you have; nothing is downloaded then"
        )
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
        """Writes the pairs of an archive, and their manifest; files that are there already are kept.

        Raises:
            UserError: if the archive is damaged or laid out otherwise, or the disk is too small.
        """
        report = Report(output)
        sides = self._unpack(archive, output, sample_rate, report)
        pairs = {}
        for name, pair in _couple(sides, report).items():
            try:
                pairs[name] = _cut_to_one_length(*pair)
            except DataError as error:
                report.leave_out(name, str(error))
        split = self.split(list(pairs))
        for name, (input, target) in pairs.items():
            source = {"input_source": input.source, "target_source": target.source}
            report.add(name, split[name], input.path, target.path, **source)
        report.write()
        report.show()

    def _unpack(self, archive: Path, output: Path, sample_rate: int, report: Report) -> dict[str, dict[str, Prepared]]:
        folders = {PurePosixPath(self.input): "input", PurePosixPath(self.target): "target"}
        sides: dict[str, dict[str, Prepared]] = {side: {} for side in folders.values()}
        output.mkdir(parents=True, exist_ok=True)
        unpacked = output / "unpacked.partial"
        elsewhere = set()
        with _readable(archive), tqdm(desc="Preparing", unit=" files") as bar:
            for member in members(archive):
                side = folders.get(member.path.parent)
                hidden = member.path.name.startswith(".")  # of macOS, beside every file
                if side is None or hidden or member.path.suffix.lower() != ".wav":
                    elsewhere.add(str(member.path.parent))
                    continue
                name = safe_name(self.name(member.path.stem))
                stem = output / side / name
                path = existing(stem, sample_rate)
                if path is None:
                    require_space(output, member.size)
                    try:
                        with member.open() as content, unpacked.open("wb") as file:
                            shutil.copyfileobj(content, file)
                        path = write_audio(read_whole(unpacked, sample_rate), stem, sample_rate)
                    except DataError as error:
                        report.leave_out(name, str(error).replace(str(unpacked), str(member.path)))
                    finally:
                        unpacked.unlink(missing_ok=True)
                if path is not None:
                    sides[side][name] = Prepared(path, str(member.path))
                bar.update()
        for folder, side in folders.items():
            if not sides[side]:
                found = ", ".join(sorted(elsewhere)[:20]) or "nothing"
                raise UserError(f"{archive} has no audio in {folder}, but in: {found}")
        return sides


@dataclass
class Report:
    """The manifest of a folder of pairs, and the list of what was left out of it.

    Args:
        folder: of the pairs.
    """

    folder: Path
    rows: list[dict[str, str]] = field(default_factory=list)
    doubtful: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, split: str, input: Path, target: Path, **source: object) -> None:
        """A pair, and where it is from."""
        row = {"name": name, "split": split}
        for side, path in (("input", input), ("target", target)):
            row[side] = path.relative_to(self.folder).as_posix()
        self.rows.append({**row, **{key: str(value) for key, value in source.items()}})

    def leave_out(self, name: str, reason: str) -> None:
        """A pair that is not in the manifest; the first reason stays."""
        self.doubtful.setdefault(name, reason)

    def write(self) -> None:
        """Writes ``manifest.csv`` and, if anything was left out, ``doubtful.csv``."""
        doubtful = [{"name": name, "reason": reason} for name, reason in self.doubtful.items()]
        for file, rows in (("manifest.csv", self.rows), ("doubtful.csv", doubtful)):
            path = self.folder / file
            if not rows:
                path.unlink(missing_ok=True)
                continue
            write_csv(path, rows)

    def show(self) -> None:
        """Prints what was left out and what came of it.

        Raises:
            DataError: if the pairs cannot be trained on; the message says why.
        """
        for name, reason in self.doubtful.items():
            print(f"left out: {name}: {reason}")
        if self.doubtful:
            print(f"{len(self.doubtful)} pairs were left out: {self.folder / 'doubtful.csv'}")
        if not self.rows:
            raise DataError(f"{self.folder}: no pair could be prepared")
        loud = sum(row[side].endswith(".wav") for row in self.rows for side in ("input", "target"))
        if loud:
            print(f"{loud} files exceed full scale: they are WAV files of 32-bit float, so that nothing is clipped")
        splits = find_pairs(str(self.folder))
        counts = ", ".join(f"{len(splits[split])} for {split}" for split in SPLITS)
        print(f"{len(self.rows)} pairs in {self.folder}: {counts}")


def argument_parser(manual: str, output: str) -> argparse.ArgumentParser:
    """What all scripts can be told.

    Args:
        manual: what ``--help`` says.
        output: the default of ``--output``.
    """
    parser = argparse.ArgumentParser(description=manual, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path(output), help="the folder of the pairs (default: %(default)s)"
    )
    parser.add_argument(
        "--sample-rate", type=_sample_rate, default=SAMPLE_RATE, help="of the pairs, in Hz (default: %(default)s)"
    )
    return parser


def run(main: Callable[[], None]) -> None:
    """Runs a script; what the user can mend ends it with one line."""
    try:
        main()
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted: run this again to go on")


def members(archive: Path) -> Iterator[Member]:
    """The regular files of a zip or a tar.gz, in its order; none is unpacked.

    Raises:
        UserError: if it is neither.
        Exception: of ``zipfile``, ``tarfile``, ``gzip`` or ``zlib``, if it is damaged.
    """
    with archive.open("rb") as file:
        magic = file.read(2)
    if magic == b"PK":
        with zipfile.ZipFile(archive) as files:
            for info in files.infolist():
                if not info.is_dir():
                    yield Member(PurePosixPath(info.filename), info.file_size, partial(files.open, info))
    elif magic == b"\x1f\x8b":
        # Not tarfile's own "r|gz", which takes an archive that breaks off for one that ends.
        with gzip.open(archive) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for info in tar:
                    if info.isfile():
                        yield Member(PurePosixPath(info.name), info.size, partial(tar.extractfile, info))
            while stream.read(1 << 20):  # to its checksum
                pass
    else:
        raise UserError(f"{archive} is neither a zip nor a tar.gz")


def safe_name(name: str) -> str:
    """A name that is a file's on every system, and in no other folder."""
    return re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", name).strip(". ") or "_"


def read_whole(path: Path, sample_rate: int) -> Tensor:
    """A file, ``(channels, samples)``, resampled.

    Raises:
        DataError: if it cannot be read.
    """
    file = AudioFile.open(str(path))
    return file.read(0, file.samples_at(sample_rate), sample_rate, file.channels)


def write_audio(audio: Tensor, stem: Path, sample_rate: int) -> Path:
    """Writes a FLAC file of 24 bits, or a WAV file of 32-bit float where that would clip.

    The file is whole or not there.

    Args:
        audio: ``(channels, samples)``.
        stem: the path without its ending.
        sample_rate: in Hz.

    Returns:
        The path with its ending.

    Raises:
        DataError: if there is nothing to hear, or samples are not finite.
        UserError: if the disk is too small.
    """
    peak = float(audio.abs().max()) if audio.numel() else 0.0
    if not math.isfinite(peak):
        raise DataError(f"{stem.name} holds samples that are not finite")
    if peak < SILENCE:
        raise DataError(f"{stem.name} is silent")
    suffix, subtype = (".flac", "PCM_24") if peak <= _FULL_SCALE else (".wav", "FLOAT")
    stem.parent.mkdir(parents=True, exist_ok=True)
    require_space(stem.parent, 4 * audio.numel())
    path = _with_ending(stem, suffix)
    with replacing(path) as partial:
        soundfile.write(partial, audio.T.numpy(), sample_rate, subtype, format=suffix[1:])
        _with_ending(stem, ".wav" if suffix == ".flac" else ".flac").unlink(missing_ok=True)
    return path


def existing(stem: Path, sample_rate: int) -> Path | None:
    """The file that :func:`write_audio` wrote earlier, if it has this rate."""
    for suffix in (".flac", ".wav"):
        path = _with_ending(stem, suffix)
        try:
            if AudioFile.open(str(path)).sample_rate == sample_rate:
                return path
        except DataError:  # not there, or broken
            continue
    return None


def read_manifest(folder: Path) -> list[dict[str, str]]:
    """The rows of a manifest, none if there is none."""
    path = folder / "manifest.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def is_prepared(folder: Path, sample_rate: int) -> bool:
    """Whether a manifest lists files of this rate, and all of them are there."""
    files = [folder / row.get(side, "") for row in read_manifest(folder) for side in ("input", "target")]
    return bool(files) and all(existing(path.with_suffix(""), sample_rate) == path for path in files)


def split_as_published(names: Sequence[str]) -> dict[str, str]:
    """80, 10 and 10 in a hundred of a sorted list of files, drawn as the paper's code does.

    That is scikit-learn's ``train_test_split`` twice, with ``random_state=0``: a tenth for test, then a ninth
    of the rest (0.1111) for validation.
    """
    splits, rest = {}, sorted(names)
    for split, share in (("test", 0.1), ("validation", 0.1111)):
        order = [rest[i] for i in np.random.RandomState(0).permutation(len(rest))]
        count = math.ceil(share * len(rest))
        splits.update(dict.fromkeys(order[:count], split))
        rest = order[count:]
    return {**splits, **dict.fromkeys(rest, "train")}


def split_by_group(groups: Mapping[str, str]) -> dict[str, str]:
    """About 80, 10 and 10 in a hundred, no group in two splits; few change theirs when names are added.

    Args:
        groups: the group of every name.
    """
    order = sorted(set(groups.values()), key=lambda group: hashlib.sha256(group.encode()).digest())
    split_of, held_out = {}, math.ceil(0.1 * len(groups))
    counts = {"test": 0, "validation": 0}
    for group in order:
        split = next((split for split, count in counts.items() if count < held_out), "train")
        split_of[group] = split
        if split in counts:
            counts[split] += sum(other == group for other in groups.values())
    return {name: split_of[group] for name, group in groups.items()}


@contextmanager
def _readable(archive: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(f"{archive} is damaged or incomplete ({error}): remove it and run this again") from None
    except NotImplementedError as error:  # a zip of another compression
        raise UserError(f"{archive} cannot be unpacked: {error}") from None


def _couple(sides: Mapping[str, Mapping[str, Prepared]], report: Report) -> dict[str, Sequence[Prepared]]:
    inputs, targets = sides["input"], sides["target"]
    if not inputs.keys() & targets.keys() and len(inputs) == len(targets):
        print("input and target files have different names: they are paired in their order, as the paper's code does")
        return {name: (inputs[name], targets[other]) for name, other in zip(sorted(inputs), sorted(targets))}
    for name in sorted(inputs.keys() ^ targets.keys()):
        report.leave_out(name, f"has no {'target' if name in inputs else 'input'}")
    return {name: (inputs[name], targets[name]) for name in sorted(inputs.keys() & targets.keys())}


def _cut_to_one_length(*pair: Prepared) -> list[Prepared]:
    files = [AudioFile.open(str(side.path)) for side in pair]
    samples = min(file.samples for file in files)
    if max(file.seconds for file in files) - samples / files[0].sample_rate > MAX_TRIM_SECONDS:
        lengths = " and ".join(f"{file.seconds:.2f} s" for file in files)
        raise DataError(f"input and target have different lengths, {lengths}")
    return [
        side if file.samples == samples else side._replace(path=_cut(side.path, file, samples))
        for side, file in zip(pair, files)
    ]


def _cut(path: Path, file: AudioFile, samples: int) -> Path:
    audio = file.read(0, samples, file.sample_rate, file.channels)
    return write_audio(audio, path.with_suffix(""), file.sample_rate)


def _with_ending(stem: Path, ending: str) -> Path:
    return stem.with_name(stem.name + ending)


def _sample_rate(text: str) -> int:
    rate = int(text)
    if not 1000 <= rate <= 192_000:
        raise argparse.ArgumentTypeError(f"{text} is not a sample rate between 1000 and 192000 Hz")
    return rate
