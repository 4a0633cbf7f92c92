"""Find, pair, split and check the input and target files of a data set."""

import os
import random
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from torch import Tensor
from tqdm import tqdm

from dfx.audio.levels import SILENCE
from dfx.audio.reading import AudioFile, AudioSource, audio_files, describe_cancellation
from dfx.datasets.manifest import Row, find_child, find_file, read_manifest
from dfx.errors import DataError, printable

SPLITS = ("train", "validation", "test")
_CHECK_SECONDS = 30


@dataclass(frozen=True)
class Pair:
    """An input and its target: files of equal length and sample rate.

    Args:
        name: no two pairs have one name.
        input, target: the files.
        group: what several pairs share, such as a note, speaker or song, so that they are not independent; by default
            the name.
        reference: a recording that sounds as the target does, for tasks that take one.
    """

    name: str
    input: AudioSource
    target: AudioSource
    group: str
    reference: AudioSource | None = None


Listed = tuple[Pair, str]
"""A pair and its split."""
Fold = tuple[int, int]
"""The number of a fold, from 1, and the number of folds."""


def find_pairs(
    root: str, seed: int = 0, rows: Mapping[str, str] | None = None, fold: Fold | None = None
) -> dict[str, list[Pair]]:
    """Return the pairs of a folder, by split.

    The folder holds either ``manifest.csv``, with the columns ``input``, ``target`` (relative paths) and ``split``
    (``train``, ``validation`` or ``val``, or ``test``), or the folders ``input`` and ``target`` with files of the
    same names. Pairs without a split are divided at random, by ``seed``: 80 % train, 10 % validation, 10 % test.
    ``rows`` selects those of the manifest whose columns match all of its patterns, which may contain ``*`` and ``?``.
    No two pairs have one name: it is that of the manifest, or else a path relative to the folder. The optional column
    ``group`` of the manifest names what several pairs share; it affects only the division into folds.

    With ``fold``, for which a manifest needs no ``split``, all pairs are divided into folds by ``seed``, and the groups
    are kept together: one fold is the test split, and the tenth of the groups that follows it, at least one, is the
    validation split.

    Raises:
        DataError: if the folder or a file is missing, no row matches, a file has no partner or differs from it in
            length or sample rate, a pair is listed twice, a file is in two splits, a split is empty, there are more
            folds than groups, or the manifest of pairs to divide into folds gives their splits but not their groups.
    """
    return split_pairs(list_pairs(root, rows, needs_split=fold is None), root, seed, fold)


def split_pairs(listed: Sequence[Listed], root: str, seed: int = 0, fold: Fold | None = None) -> dict[str, list[Pair]]:
    """Return listed pairs by split, divided at random where they have none; errors as :func:`find_pairs`."""
    splits = _by_split(listed)
    if fold:
        splits = _split_fold(listed, root, seed, *fold)
    elif not any(splits.values()):
        splits = _split_at_random([pair for pair, _ in listed], seed)
    for split in SPLITS:
        if not splits[split]:
            raise DataError(f"{root} has {len(listed)} pairs, and none for {split}: every split needs at least one")
    refuse_shared_files(splits)
    return splits


def find_test_pairs(root: str) -> list[Pair]:
    """Return the pairs of a folder to evaluate on: the test split of its manifest if there is one, or else all.

    Raises:
        DataError: as :func:`find_pairs`, or if there are none.
    """
    listed = list_pairs(root)
    splits = _by_split(listed)
    refuse_shared_files(splits)
    chosen = splits["test"] or [pair for pair, _ in listed]
    if not chosen:
        raise DataError(f"{root} has no pairs")
    return chosen


def _refuse(error: DataError) -> None:
    raise error


def list_pairs(
    root: str,
    rows: Mapping[str, str] | None = None,
    needs_split: bool = False,
    on_fault: Callable[[DataError], None] = _refuse,
) -> list[Listed]:
    """Return the pairs of a folder, each with the split that the manifest gives, or an empty text.

    Arguments and errors as for :func:`find_pairs`; with ``needs_split``, a manifest must give the split of every pair.
    ``on_fault`` is called for a pair that cannot be used, and may raise the error, or leave out the pair.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"{root}: no such folder; see data/README.md for how to get or make the data")
    if not all(isinstance(text, str) for row in (rows or {}).items() for text in row):
        raise DataError(f"data.rows is {rows}; columns and patterns must be text: put numbers in quotes")
    manifest = find_child(folder, "manifest.csv")
    if manifest.is_file():
        return _from_manifest(manifest, rows or {}, needs_split, on_fault)
    if rows:
        raise DataError(f"{root} has no manifest.csv whose rows could match {dict(rows)}: set rows to null")
    return [(pair, "") for pair in _from_folders(folder, on_fault)]


def find_recordings(root: str) -> list[Pair]:
    """Return the audio files in and below a folder, each as a pair of which it is input and target.

    Raises:
        DataError: if there is no such folder, it holds no audio, or a file is not audio.
    """
    files = audio_files(Path(root))
    if not files:
        raise DataError(f"{root}: there is no such folder, or no audio in it")
    recordings = [(printable(path.relative_to(root).as_posix()), AudioFile.open(str(path))) for path in files]
    return [Pair(name, file, file, name) for name, file in recordings]


def as_recording(pair: Pair) -> Pair:
    """Return a pair whose input is its target too, for tasks that make their inputs and read no others."""
    return replace(pair, input=pair.target)


def files_of(pairs: Iterable[Pair]) -> list[AudioSource]:
    """Return the inputs and targets of pairs, each file once."""
    return list(dict.fromkeys(file for pair in pairs for file in (pair.input, pair.target)))


def _by_split(listed: Sequence[Listed]) -> dict[str, list[Pair]]:
    return {split: [pair for pair, given in listed if given == split] for split in SPLITS}


def refuse_shared_files(splits: Mapping[str, Sequence[Pair]]) -> None:
    """Raise a :class:`DataError` if one file, perhaps under several paths, is in two splits."""
    found: dict[tuple[int, int], tuple[str, str]] = {}
    for split in SPLITS:
        for path in [file.path for pair in splits[split] for file in (pair.input, pair.target)]:
            status = os.stat(path)
            first, other = found.setdefault((status.st_dev, status.st_ino), (path, split))
            if other != split:
                same = "" if first == path else f" as {first}, which is the same file"
                raise DataError(f"{path} is in the split {split}, and in {other}{same}: list a file in one split only")


Read = Callable[[AudioSource, int, int, int, int], Tensor]
"""Reads a window of a source: from which sample, how many, sample rate and channels as for :meth:`AudioSource.read`."""


def check_audio(
    pairs: list[Pair], sample_rate: int | None = None, channels: int | None = None, read: Read = AudioSource.read
) -> list[str]:
    """Read every file once, as training does.

    Args:
        pairs: to check.
        sample_rate, channels: of training; by default those of each file.
        read: the way in which training reads.

    Returns:
        A sentence for every file whose channels nearly cancel in their mean, if that is what training reads.

    Raises:
        DataError: for the first file that cannot be decoded, has samples that are not finite, or is silent; the
            message counts the others.
    """
    files = files_of(pairs)

    def check(file: AudioSource) -> Check:
        return check_file(file, sample_rate or file.sample_rate, channels or file.channels, read)

    with ThreadPoolExecutor() as executor:
        checked = list(
            tqdm(executor.map(check, files), total=len(files), desc="Checking audio", leave=False, disable=None)
        )
    faults = [check.fault for check in checked if check.fault]
    if faults:
        more = f" ({len(faults) - 1} more files have faults)" if len(faults) > 1 else ""
        raise DataError(f"{faults[0]}; repair it or remove the pair{more}")
    return [check.warning for check in checked if check.warning]


class Check(NamedTuple):
    """Why training refuses a file, or an empty text; and a sentence if its channels nearly cancel in their mean."""

    fault: str = ""
    warning: str | None = None


def check_file(file: AudioSource, sample_rate: int, channels: int, read: Read = AudioSource.read) -> Check:
    """Read a file once, as training at a rate and with a number of channels does."""
    peak = peak_of_all = energy = energy_of_all = 0.0
    samples, block = file.samples_at(sample_rate), _CHECK_SECONDS * sample_rate
    for start in range(0, samples, block):
        try:
            count = min(block, samples - start)
            everything = read(file, start, count, sample_rate, file.channels if channels == 1 else channels)
        except DataError as error:
            return Check(str(error))
        if not everything.isfinite().all():
            return Check(f"{file.path} holds samples that are not finite")
        audio = everything.mean(dim=0, keepdim=True) if channels == 1 else everything
        peak = max(peak, float(audio.abs().max()))
        peak_of_all = max(peak_of_all, float(everything.abs().max()))
        energy += float(audio.square().mean(dim=0).sum())
        energy_of_all += float(everything.square().mean(dim=0).sum())
    if peak >= SILENCE:
        return Check(warning=describe_cancellation(file.path, energy_of_all, energy))
    if peak_of_all >= SILENCE:
        return Check(f"{file.path} is silent in training, which reads the mean of its channels: they cancel")
    return Check(f"{file.path} is silent")


def _pair(name: str, input: Path, target: Path, group: str = "") -> Pair:
    pair = Pair(name, AudioFile.open(str(input)), AudioFile.open(str(target)), group or name)
    descriptions = {"sample_rate": "sample rates, {} and {} Hz", "samples": "lengths, {} and {} samples"}
    for attribute, described in descriptions.items():
        values = getattr(pair.input, attribute), getattr(pair.target, attribute)
        if values[0] != values[1]:
            raise DataError(f"{input} and {target} have different {described.format(*values)}")
    return pair


def _from_manifest(
    manifest: Path, rows: Mapping[str, str], needs_split: bool, on_fault: Callable[[DataError], None]
) -> list[Listed]:
    patterns = {column.lower(): pattern for column, pattern in rows.items()}
    chosen = [
        row
        for row in read_manifest(manifest, {"input", "target", *patterns, *(["split"] if needs_split else [])})
        if all(fnmatchcase(row.values[column], pattern) for column, pattern in patterns.items())
    ]
    if rows and not chosen:
        raise DataError(f"{manifest} has no row that is {dict(rows)}")
    listed: list[Listed] = []
    lines: dict[tuple[str, str], int] = {}
    for row, name in zip(chosen, _names(chosen)):
        given = row.values.get("split", "")
        split = "validation" if given.lower() == "val" else given.lower()
        if split not in SPLITS and (split or needs_split):
            raise DataError(f"{manifest}, line {row.line}: split '{given}' is none of {', '.join(SPLITS)}")
        try:
            input, target = (_find_listed(manifest, row, side) for side in ("input", "target"))
            first = lines.setdefault((os.path.realpath(input), os.path.realpath(target)), row.line)
            if first != row.line:
                raise DataError(f"{manifest}, lines {first} and {row.line} list the same pair: remove one")
            listed.append((_pair(name, input, target, row.values.get("group", "")), split))
        except DataError as error:
            on_fault(error)
    return listed


def _find_listed(manifest: Path, row: Row, side: str) -> Path:
    path = find_file(manifest.parent, row.values[side])
    if not path.is_file():
        is_utf8 = printable(row.values[side]) == row.values[side]
        encoding = "" if is_utf8 else "; the manifest is not in UTF-8: save it in UTF-8"
        raise DataError(f"{manifest}, line {row.line}: {path}: no such file{encoding}")
    return path


def _names(rows: Sequence[Row]) -> list[str]:
    """Return a name for each row, which no other pair of files has: of the column ``name``, or of the files."""
    candidates = {}
    for row in rows:
        files = input, target = row.values["input"], row.values["target"]
        without_suffix = str(PurePosixPath(input).with_suffix("")) if PurePosixPath(input).name else ""
        candidates[files] = [row.values.get("name", ""), without_suffix, input, f"{input} and {target}"]
    counts = Counter(name for names in candidates.values() for name in set(names))
    chosen = {
        files: printable(next((name for name in names if name and counts[name] == 1), names[-1]))
        for files, names in candidates.items()
    }
    return [chosen[row.values["input"], row.values["target"]] for row in rows]


def _from_folders(folder: Path, on_fault: Callable[[DataError], None]) -> list[Pair]:
    sides: dict[str, dict[str, Path]] = {}
    for side in ("input", "target"):
        files = find_child(folder, side)
        if not files.is_dir():
            raise DataError(f"{folder} has neither manifest.csv nor a folder {side}")
        sides[side] = {}
        for file in audio_files(files):
            name = unicodedata.normalize("NFC", file.relative_to(files).with_suffix("").as_posix())
            if name in sides[side]:
                raise DataError(f"{sides[side][name]} and {file} have one name, but for their suffix: rename one")
            sides[side][name] = file
    alone = sorted(set(sides["input"]) ^ set(sides["target"]))
    if alone:
        present, absent = ("input", "target") if alone[0] in sides["input"] else ("target", "input")
        more = f" ({len(alone) - 1} more have none)" if len(alone) > 1 else ""
        on_fault(DataError(f"{sides[present][alone[0]]} has no partner in {folder / absent}{more}"))
    pairs = []
    for name in sides["input"]:
        if name in sides["target"]:
            try:
                pairs.append(_pair(printable(name), sides["input"][name], sides["target"][name]))
            except DataError as error:
                on_fault(error)
    return pairs


def _split_at_random(pairs: list[Pair], seed: int) -> dict[str, list[Pair]]:
    order = list(pairs)
    random.Random(seed).shuffle(order)
    held_out = max(1, round(0.1 * len(order)))
    test, validation, train = order[:held_out], order[held_out : 2 * held_out], order[2 * held_out :]
    return {"test": test, "validation": validation, "train": train}


def _split_fold(listed: Sequence[Listed], root: str, seed: int, number: int, count: int) -> dict[str, list[Pair]]:
    order = sorted({pair.group for pair, _ in listed})
    if not (2 <= count <= len(order) and 1 <= number <= count):
        raise DataError(
            f"{root} has {len(order)} groups of pairs, and no fold {number} of {count}: take 2 to {len(order)} folds"
        )
    if any(split for _, split in listed) and all(pair.group == pair.name for pair, _ in listed):
        fault = f"the manifest of {root} gives splits and no groups, and folds divide all pairs again"
        raise DataError(f"{fault}: add a column group (the note, speaker or song), or remove the column split")
    random.Random(seed).shuffle(order)
    start, end = (edge * len(order) // count for edge in (number - 1, number))
    order = [*order[start:], *order[:start]]
    tested, held_out = end - start, end - start + max(1, round(0.1 * len(order)))
    groups = {"train": order[held_out:], "validation": order[tested:held_out], "test": order[:tested]}
    return {split: [pair for pair, _ in listed if pair.group in groups[split]] for split in SPLITS}
