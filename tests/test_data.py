"""The data that ship."""

import csv
import hashlib
import json
from pathlib import Path

import pytest
import torch

from dfx.datasets.pairs import check_audio, find_pairs

DATA = Path(__file__).parent.parent / "data"
COUNTS = {
    "tube_amp": {"train": 111, "validation": 15, "test": 15},
    "nonspeech": {"train": 20, "validation": 8, "test": 10},
    "mastering": {"train": 16, "validation": 4, "test": 4},
}
FADE_SAMPLES = 331  # 15 ms


def pairs_of(task):
    return [pair for pairs in find_pairs(str(DATA / task)).values() for pair in pairs]


def manifest_of(task):
    with open(DATA / task / "manifest.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def samples_of(file):
    return file.read(0, file.samples, file.sample_rate, file.channels)[0]


@pytest.mark.parametrize("task", COUNTS)
def test_shipped_pairs_are_complete_matched_and_split(task):
    splits = find_pairs(str(DATA / task))
    check_audio([pair for pairs in splits.values() for pair in pairs])
    assert {split: len(pairs) for split, pairs in splits.items()} == COUNTS[task]
    names = [pair.name for pairs in splits.values() for pair in pairs]
    assert len(set(names)) == len(names)


def test_a_group_is_one_note_of_any_velocity_or_a_one_shot():
    for pair in pairs_of("tube_amp"):
        assert pair.group == (pair.name if pair.name.startswith("sonic_pi_") else pair.name.rsplit("_", 1)[0])


@pytest.mark.parametrize(("task", "column"), [("nonspeech", "speaker"), ("mastering", "song")])
def test_a_group_is_a_speaker_or_a_song(task, column):
    rows = manifest_of(task)
    assert len({row["group"] for row in rows}) == len({row[column] for row in rows}) == 8
    assert len({(row["group"], row[column]) for row in rows}) == 8


@pytest.mark.parametrize("task", COUNTS)
def test_a_group_is_in_one_split(task):
    splits = {}
    for row in manifest_of(task):
        splits.setdefault(row["group"], set()).add(row["split"])
    assert all(len(where) == 1 for where in splits.values())


@pytest.mark.parametrize("task", COUNTS)
def test_shipped_files_have_the_listed_checksums_and_fit_in_12_mb(task):
    folder = DATA / task
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        expected, name = line.split(maxsplit=1)
        assert hashlib.sha256((folder / name.lstrip("*")).read_bytes()).hexdigest() == expected
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 12e6


@pytest.mark.parametrize("task", ["nonspeech", "mastering"])
def test_every_licence_in_a_manifest_has_its_text_next_to_the_audio(task):
    texts = " ".join(file.read_text(encoding="utf-8") for file in (DATA / task).glob("LICENCE-*.txt"))
    words = {
        "CC-BY-3.0": "License: CC-BY-3.0",
        "CC-BY-SA-3.0": "ShareAlike 3.0",
        "CC-BY-SA-3.0-IT": "Condividi allo stesso modo 3.0 Italia",
        "GPL-2.0-only": "GNU GENERAL PUBLIC LICENSE",
        "MIT": "Permission is hereby granted, free of charge",
        "public domain": "Redistribution and use in source and binary forms",  # of the package that carries it
    }
    assert all(words[row["licence"]] in texts for row in manifest_of(task))


@pytest.mark.parametrize("task", ["nonspeech", "mastering"])
def test_targets_are_aligned_with_their_inputs_and_nothing_clips(task):
    for pair in pairs_of(task):
        assert (pair.input.sample_rate, pair.input.channels) == (22_050, 1)
        input, target = samples_of(pair.input).double(), samples_of(pair.target).double()
        assert max(input.abs().max(), target.abs().max()) < 0.99
        size = 2 * len(input)
        cross = torch.fft.rfft(target, size) * torch.fft.rfft(input, size).conj()
        hz = torch.fft.rfftfreq(size, 1 / 22_050)
        # Above 7 kHz, speech recorded at 16 kHz holds rounding noise only.
        white = torch.where((hz > 50) & (hz < 7000), cross / (cross.abs() + 1e-20), 0)
        assert torch.fft.irfft(white, size).argmax() == 0, pair.name


def test_mastered_targets_are_louder_than_their_inputs():
    for pair in pairs_of("mastering"):
        gain = samples_of(pair.target).square().mean() / samples_of(pair.input).square().mean()
        assert 10 * torch.log10(gain) > 6


def test_nonspeech_differs_in_the_removed_spans_only_and_is_at_the_floor_there():
    for pair in pairs_of("nonspeech"):
        input, target = samples_of(pair.input), samples_of(pair.target)
        inside, past_fades = torch.zeros(2, len(input), dtype=torch.bool)
        path = Path(pair.input.path)
        spans = json.loads(path.with_name(f"{path.stem}_removed.json").read_text())
        assert spans
        for span in spans:
            start, end = round(span["t0"] * 22_050), round(span["t1"] * 22_050)
            assert 0 <= start < end <= len(input)
            inside[start:end] = True
            past_fades[start + FADE_SAMPLES : end - FADE_SAMPLES] = True
        assert torch.equal(input[~inside], target[~inside])
        level_db = 10 * torch.log10(target[past_fades].square().mean())
        assert -82 < level_db < -78
        assert 10 * torch.log10(input[past_fades].square().mean()) > level_db + 10
