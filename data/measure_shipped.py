#!/usr/bin/env python3
"""Measure the paired audio in `nonspeech/` and `mastering/` and print the tables of README.md.

The exit status is 1 if a file breaks one of the rules in `faults`.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import soundfile
from measure_tube_amp import decibels, loudness_lufs
from prepare_nonspeech import FADE_SECONDS
from prepare_tube_amp import SAMPLE_RATE

FADE_SAMPLES = round(FADE_SECONDS * SAMPLE_RATE)
HERE = Path(__file__).resolve().parent


def lag_samples(input: np.ndarray, target: np.ndarray) -> int:
    """How far the target is behind its input, by the peak of the whitened cross-correlation (GCC-PHAT)."""
    size = 2 * len(input)
    cross = np.fft.rfft(target, size) * np.fft.rfft(input, size).conj()
    frequency_hz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    # Files of 16 kHz hold nothing but rounding noise above 7 kHz.
    white = np.where((frequency_hz > 50) & (frequency_hz < 7000), cross / (np.abs(cross) + 1e-20), 0)
    correlation = np.fft.irfft(white, size)
    return int((np.argmax(np.abs(correlation)) + size // 2) % size - size // 2)


def rms_db(audio: np.ndarray) -> float:
    return decibels(np.sqrt(np.mean(audio**2)))


def measure(folder: Path, row: dict) -> dict:
    """All numbers of one pair."""
    input, target = (soundfile.read(folder / row[side])[0] for side in ("input", "target"))
    numbers = {"seconds": len(input) / SAMPLE_RATE, "lag_samples": lag_samples(input, target)}
    for side, audio in (("input", input), ("target", target)):
        numbers[f"{side}_peak_db"] = decibels(np.abs(audio).max())
        numbers[f"{side}_lufs"] = loudness_lufs(audio)
        numbers[f"{side}_crest_db"] = numbers[f"{side}_peak_db"] - rms_db(audio)
    numbers["target_minus_input_lufs"] = numbers["target_lufs"] - numbers["input_lufs"]
    removed = (folder / row["input"]).with_name(f"{row['name']}_removed.json")
    if removed.is_file():
        inside, faded = np.zeros((2, len(input)), dtype=bool)
        for span in json.loads(removed.read_text()):
            start, end = round(span["t0"] * SAMPLE_RATE), round(span["t1"] * SAMPLE_RATE)
            inside[start:end] = True
            faded[start + FADE_SAMPLES : end - FADE_SAMPLES] = True
        numbers |= {
            "removed_share": inside.mean(),
            "input_speech_db": rms_db(input[~inside]),
            "input_removed_db": rms_db(input[inside]),
            "target_removed_db": rms_db(target[faded]),  # past the fades
            "changed_outside": float(np.abs(input - target)[~inside].max()),
        }
    return numbers


def faults(numbers: dict) -> list[str]:
    """The rules that one pair breaks."""
    rules = {
        "clips": max(numbers["input_peak_db"], numbers["target_peak_db"]) < -0.01,
        "misaligned": numbers["lag_samples"] == 0,
        "changed outside of the spans": numbers.get("changed_outside", 0) == 0,
        "no quieter in the spans": numbers.get("target_removed_db", -80) < -75,
    }
    return [rule for rule, kept in rules.items() if not kept]


def print_table(rows: list[dict], table: list[dict], key: str) -> None:
    """Means by the values of one column of the manifest, then the extremes of all."""
    quantities = list(table[0])
    print("|", key, "| pairs |", " | ".join(quantities), "|\n|---|---|" + "---|" * len(quantities))
    for value in dict.fromkeys(row[key] for row in rows):
        of_value = [numbers for row, numbers in zip(rows, table) if row[key] == value]
        means = [np.mean([numbers[quantity] for numbers in of_value]) for quantity in quantities]
        print(f"| {value} | {len(of_value)} |", " | ".join(f"{mean:.2f}" for mean in means), "|")
    for name, function in (("least", np.min), ("mean", np.mean), ("greatest", np.max), ("sum", np.sum)):
        values = [function([numbers[quantity] for numbers in table]) for quantity in quantities]
        print(f"| {name} | {len(rows)} |", " | ".join(f"{value:.2f}" for value in values), "|")
    print()


def main() -> None:
    all_kept = True
    for task, keys in (("nonspeech", ("split", "speaker", "pauses")), ("mastering", ("split", "song", "engine"))):
        if not (HERE / task / "manifest.csv").is_file():
            continue
        with open(HERE / task / "manifest.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        table = [measure(HERE / task, row) for row in rows]
        print(f"# {task}\n")
        for key in keys:
            print_table(rows, table, key)
        for row, numbers in zip(rows, table):
            for fault in faults(numbers):
                print(f"FAULT {row['name']}: {fault}")
                all_kept = False
    print(f"rules: {'all kept' if all_kept else 'BROKEN'}")
    sys.exit(0 if all_kept else 1)


if __name__ == "__main__":
    main()
