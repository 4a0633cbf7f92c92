"""Find, pair, split and check the input and target files of a data set."""

import csv
import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tqdm import tqdm

from dfx.audio.reading import AudioFile, audio_files
from dfx.errors import DataError

SPLITS = ("train", "validation", "test")
SILENCE = 1e-5  # peak of -100 dBFS, below which a file counts as silent
_CHECK_SECONDS = 30


@dataclass(frozen=True)
class Pair:
    """An input and its target: files of equal length and sample rate."""

    name: str
    input: AudioFile
    target: AudioFile


def find_pairs(root: str, seed: int = 0, rows: Mapping[str, str] | None = None) -> dict[str, list[Pair]]:
    """Return the pairs of a folder, by split.

    The folder holds either ``manifest.csv``, with the columns ``input``, ``target`` (relative paths) and ``split``
    (``train``, ``validation`` or ``val``, or ``test``), or the folders ``input`` and ``target`` with files of the
    same names. Pairs without a split are divided at random, by ``seed``: 80 % train, 10 % validation, 10 % test.
    ``rows`` selects those of the manifest whose columns match all of its patterns, which may contain ``*`` and ``?``.

    Raises:
        DataError: if the folder or a file is missing, no row matches, a file has no partner or differs from it in
            length or sample rate, or a split is empty.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"{root}: no such folder; see data/README.md for how to get or make the data")
    if (folder / "manifest.csv").is_file():
        splits = _from_manifest(folder / "manifest.csv", rows or {})
    elif rows:
        raise DataError(f"{root} has no manifest.csv whose rows could match {dict(rows)}: set rows to null")
    else:
        splits = _split_at_random(_from_folders(folder), seed)
    for split in SPLITS:
        if not splits[split]:
            count = sum(map(len, splits.values()))
            raise DataError(f"{root} has {count} pairs, and none for {split}: every split needs at least one")
    return splits


def check_audio(pairs: list[Pair]) -> None:
    """Decode every file once.

    Raises:
        DataError: for the first file that cannot be decoded, has samples that are not finite, or is silent; the
            message counts the others.
    """
    files = [file for pair in pairs for file in (pair.input, pair.target)]
    with ThreadPoolExecutor() as executor:
        checked = tqdm(executor.map(_fault, files), total=len(files), desc="Checking audio", leave=False)
        faults = [fault for fault in checked if fault]
    if faults:
        more = f" ({len(faults) - 1} more files have faults)" if len(faults) > 1 else ""
        raise DataError(f"{faults[0]}; repair it or remove the pair{more}")


def _fault(file: AudioFile) -> str:
    peak = 0.0
    block = _CHECK_SECONDS * file.sample_rate
    for start in range(0, file.samples, block):
        try:
            audio = file.read(start, min(block, file.samples - start), file.sample_rate, file.channels)
        except DataError as error:
            return str(error)
        if not audio.isfinite().all():
            return f"{file.path} holds samples that are not finite"
        peak = max(peak, float(audio.abs().max()))
    return f"{file.path} is silent" if peak < SILENCE else ""


def _pair(name: str, input: Path, target: Path) -> Pair:
    pair = Pair(name, AudioFile.open(str(input)), AudioFile.open(str(target)))
    descriptions = {"sample_rate": "sample rates, {} and {} Hz", "samples": "lengths, {} and {} samples"}
    for attribute, described in descriptions.items():
        values = getattr(pair.input, attribute), getattr(pair.target, attribute)
        if values[0] != values[1]:
            raise DataError(f"{input} and {target} have different {described.format(*values)}")
    return pair


def _from_manifest(manifest: Path, rows: Mapping[str, str]) -> dict[str, list[Pair]]:
    splits: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    with manifest.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = {"input", "target", "split", *rows} - set(reader.fieldnames or [])
        if missing:
            raise DataError(f"{manifest} has no column {', '.join(sorted(missing))}")
        for row in reader:
            if not all(fnmatchcase(row[column], pattern) for column, pattern in rows.items()):
                continue
            split = "validation" if row["split"] == "val" else row["split"]
            if split not in splits:
                raise DataError(f"{manifest}, line {reader.line_num}: split '{split}' is none of {', '.join(SPLITS)}")
            input, target = manifest.parent / row["input"], manifest.parent / row["target"]
            splits[split].append(_pair(row.get("name") or input.stem, input, target))
    if rows and not any(splits.values()):
        raise DataError(f"{manifest} has no row that is {dict(rows)}")
    return splits


def _from_folders(folder: Path) -> list[Pair]:
    sides = {}
    for side in ("input", "target"):
        if not (folder / side).is_dir():
            raise DataError(f"{folder} has neither manifest.csv nor a folder {side}")
        files = audio_files(folder / side)
        sides[side] = {f.relative_to(folder / side).with_suffix("").as_posix(): f for f in files}
        if len(sides[side]) < len(files):
            raise DataError(f"{folder / side} has two files whose names differ in their suffix only")
    alone = sorted(set(sides["input"]) ^ set(sides["target"]))
    if alone:
        present, absent = ("input", "target") if alone[0] in sides["input"] else ("target", "input")
        more = f" ({len(alone) - 1} more have none)" if len(alone) > 1 else ""
        raise DataError(f"{sides[present][alone[0]]} has no partner in {folder / absent}{more}")
    return [_pair(name, input, sides["target"][name]) for name, input in sides["input"].items()]


def _split_at_random(pairs: list[Pair], seed: int) -> dict[str, list[Pair]]:
    order = list(pairs)
    random.Random(seed).shuffle(order)
    held_out = max(1, round(0.1 * len(order)))
    test, validation, train = order[:held_out], order[held_out : 2 * held_out], order[2 * held_out :]
    return {"test": test, "validation": validation, "train": train}
