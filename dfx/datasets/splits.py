"""The pairs of each split in a checkpoint, so that resuming and evaluation use the same ones."""

import hashlib
import os
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from dfx.datasets.pairs import SPLITS, Listed, Pair, find_pairs, list_pairs
from dfx.errors import DataError

OLDER = "the checkpoint is of an earlier version, which did not store the pairs of each split"
_BLOCK = 1 << 16
_SHOWN = 3


class Record(NamedTuple):
    """A pair in a checkpoint: its name, its paths relative to the root, and a checksum of parts of both files."""

    name: str
    input: str
    target: str
    checksum: str

    @property
    def paths(self) -> tuple[str, str]:
        """The identity of the pair."""
        return self.input, self.target


@dataclass
class Restored:
    """The pairs of a checkpoint's splits that a folder holds, and the names of those that differ.

    Args:
        splits: the pairs of each split.
        new: in the folder only.
        missing: in the checkpoint only.
        changed: other files now, under the same paths.
        moved: in another split of the manifest now.
    """

    splits: dict[str, list[Pair]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    new: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)

    @property
    def differences(self) -> str:
        """A list of what differs, or an empty text."""
        texts = {
            "new and left out": self.new,
            "missing": self.missing,
            "changed": self.changed,
            "in another split of the manifest now": self.moved,
        }
        return "; ".join(f"{text}: {first_of(names)}" for text, names in texts.items() if names)


def record_pairs(pairs: Sequence[Pair], root: str) -> list[Record]:
    """Describe pairs of the folder ``root``."""
    with ThreadPoolExecutor() as executor:
        checksums = executor.map(_checksum, pairs)
        return [
            Record(pair.name, _relative(pair.input.path, root), _relative(pair.target.path, root), checksum)
            for pair, checksum in zip(pairs, checksums)
        ]


def record_splits(splits: Mapping[str, Sequence[Pair]], root: str) -> dict[str, list[list[str]]]:
    """Describe the pairs of each split as plain types, for a checkpoint."""
    return {split: [list(record) for record in record_pairs(pairs, root)] for split, pairs in splits.items()}


def read_records(data: Mapping[str, Any]) -> dict[str, list[Record]] | None:
    """Return the records of :func:`record_splits` in a checkpoint's ``data``; of earlier versions there are none.

    Raises:
        DataError: if they are not as :func:`record_splits` wrote them.
    """
    if "pairs" not in data:
        return None
    try:
        records = {split: [Record(*record) for record in data["pairs"][split]] for split in SPLITS}
        if all(isinstance(value, str) for some in records.values() for record in some for value in record):
            return records
    except (TypeError, KeyError):
        pass
    raise DataError("the checkpoint's list of pairs is damaged: use another checkpoint of the run")


def match_records(
    records: Mapping[str, Sequence[Record]], listed: Sequence[Listed], root: str, is_fold: bool = False
) -> Restored:
    """Find the pairs of a checkpoint among those of a folder, in the order of the checkpoint.

    Folds have other splits than the manifest: with ``is_fold``, no pair has moved.
    """
    present = record_pairs([pair for pair, _ in listed], root)
    found = {record.paths: (record, *pair) for record, pair in zip(present, listed)}
    restored = Restored()
    for split, some in records.items():
        for record in some:
            if record.paths not in found:
                restored.missing.append(record.name)
                continue
            now, pair, listed_split = found[record.paths]
            restored.splits[split].append(replace(pair, name=record.name))
            if now.checksum != record.checksum:
                restored.changed.append(record.name)
            if listed_split not in ("", split) and not is_fold:
                restored.moved.append(record.name)
    known = {record.paths for some in records.values() for record in some}
    restored.new = [record.name for record in present if record.paths not in known]
    return restored


def restore_splits(data: Mapping[str, Any]) -> dict[str, list[Pair]]:
    """Return the pairs of each split of a checkpoint that are left in the folder, and print what differs.

    Args:
        data: the entry ``data`` of the checkpoint.

    Raises:
        DataError: if the folder does not exist, or a pair in it cannot be used.
    """
    root, rows, records = data.get("root"), data.get("rows"), read_records(data)
    if not (isinstance(root, str) and _is_text(rows or {})):
        raise DataError("the checkpoint does not say on which data it was trained: give --data")
    if records is None:
        print(f"{OLDER}: the pairs of {root} are split again", file=sys.stderr)
        return find_pairs(root, data.get("seed", 0), rows)
    restored = match_records(records, list_pairs(root, rows), root, is_fold=bool(data.get("fold")))
    if restored.differences:
        print(f"{root} has changed since training; {restored.differences}", file=sys.stderr)
    return restored.splits


def count_trained(data: Mapping[str, Any], pairs: Sequence[Pair], root: str) -> int:
    """Return how many pairs of a folder are, by their content, training or validation pairs of a checkpoint."""
    records = read_records(data) or {}
    trained = {record.checksum for split in ("train", "validation") for record in records.get(split, [])}
    return sum(record.checksum in trained for record in record_pairs(pairs, root))


def _is_text(options: Any) -> bool:
    return isinstance(options, dict) and all(isinstance(text, str) for pair in options.items() for text in pair)


def first_of(names: Sequence[str]) -> str:
    """List the first three names, and count the others."""
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _relative(path: str, root: str) -> str:
    relative = os.path.relpath(path, root) if os.path.splitdrive(path)[0] == os.path.splitdrive(root)[0] else path
    return unicodedata.normalize("NFC", relative.replace(os.sep, "/"))


def _checksum(pair: Pair) -> str:
    """Return a checksum of the sizes, the first and the middle 64 KiB of both files."""
    digest = hashlib.sha256()
    for path in (pair.input.path, pair.target.path):
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(f"{size} ".encode() + file.read(_BLOCK))
            file.seek(size // 2)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:16]
