"""The data that ship."""

import hashlib
from pathlib import Path

import pytest

from dfx.datasets.pairs import check_audio, find_pairs

DATA = Path(__file__).parent.parent / "data"


@pytest.mark.parametrize("task", ["tube_amp"])
def test_shipped_pairs_are_whole_matched_and_split(task):
    splits = find_pairs(str(DATA / task))
    check_audio([pair for pairs in splits.values() for pair in pairs])
    assert {split: len(pairs) for split, pairs in splits.items()} == {"train": 111, "validation": 15, "test": 15}
    names = [pair.name for pairs in splits.values() for pair in pairs]
    assert len(set(names)) == len(names)


def test_velocities_of_one_note_are_in_one_split():
    splits = find_pairs(str(DATA / "tube_amp"))
    of_note = {}
    for split, pairs in splits.items():
        for pair in pairs:
            of_note.setdefault(pair.name.rsplit("_", 1)[0] if pair.name[-3:].isdigit() else pair.name, set()).add(split)
    assert all(len(where) == 1 for where in of_note.values())


def test_shipped_files_have_the_sums_that_are_listed_and_fit_in_12_mb():
    folder = DATA / "tube_amp"
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        expected, name = line.split(maxsplit=1)
        assert hashlib.sha256((folder / name.lstrip("*")).read_bytes()).hexdigest() == expected
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 12e6
