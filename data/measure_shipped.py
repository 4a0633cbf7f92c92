#!/usr/bin/env python3
"""Measure the pairs in `nonspeech/` and `mastering/`, and print the tables of README.md.

The exit status is 1 if a pair breaks one of the rules in `find_faults`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import soundfile
from measure_tube_amp import loudness_lufs
from prepare_nonspeech import FADE_SECONDS
from shipped import HERE, SAMPLE_RATE, SIDES, amplitude_to_db, read_manifest, report_faults

FADE_SAMPLES = round(FADE_SECONDS * SAMPLE_RATE)


def lag_samples(input: np.ndarray, target: np.ndarray) -> int:
    """Return the delay of the target relative to its input, from the peak of GCC-PHAT (whitened cross-correlation)."""
    size = 2 * len(input)
    cross = np.fft.rfft(target, size) * np.fft.rfft(input, size).conj()
    frequency_hz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    # Recordings at 16 kHz contain only rounding noise above 7 kHz.
    white = np.where((frequency_hz > 50) & (frequency_hz < 7000), cross / (np.abs(cross) + 1e-20), 0)
    correlation = np.fft.irfft(white, size)
    return int((np.argmax(np.abs(correlation)) + size // 2) % size - size // 2)


def rms_db(audio: np.ndarray) -> float:
    return amplitude_to_db(np.sqrt(np.mean(audio**2)))


def measure(folder: Path, row: dict[str, str]) -> dict[str, float]:
    """Return all measurements of a pair."""
    input, target = (soundfile.read(folder / row[side])[0] for side in SIDES)
    numbers = {"seconds": len(input) / SAMPLE_RATE, "lag_samples": lag_samples(input, target)}
    for side, audio in (("input", input), ("target", target)):
        numbers[f"{side}_peak_db"] = amplitude_to_db(np.abs(audio).max())
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


def find_faults(numbers: dict[str, float]) -> list[str]:
    """Return the faults of a pair."""
    rules = {
        "clips": max(numbers["input_peak_db"], numbers["target_peak_db"]) < -0.01,
        "misaligned": numbers["lag_samples"] == 0,
        "changed outside of the spans": numbers.get("changed_outside", 0) == 0,
        "not attenuated in the spans": numbers.get("target_removed_db", -80) < -75,
    }
    return [fault for fault, passed in rules.items() if not passed]


def print_table(rows: list[dict[str, str]], table: list[dict[str, float]], key: str) -> None:
    """Print the means for each value of a manifest column, then the statistics of all pairs."""
    quantities = list(table[0])
    print("|", key, "| pairs |", " | ".join(quantities), "|\n|---|---|" + "---|" * len(quantities))
    for value in dict.fromkeys(row[key] for row in rows):
        of_value = [numbers for row, numbers in zip(rows, table, strict=True) if row[key] == value]
        means = [np.mean([numbers[quantity] for numbers in of_value]) for quantity in quantities]
        print(f"| {value} | {len(of_value)} |", " | ".join(f"{mean:.2f}" for mean in means), "|")
    for name, function in (("minimum", np.min), ("mean", np.mean), ("maximum", np.max), ("sum", np.sum)):
        values = [function([numbers[quantity] for numbers in table]) for quantity in quantities]
        print(f"| {name} | {len(rows)} |", " | ".join(f"{value:.2f}" for value in values), "|")
    print()


def main() -> None:
    passed = True
    for task, keys in (("nonspeech", ("split", "speaker", "pauses")), ("mastering", ("split", "song", "engine"))):
        if not (HERE / task / "manifest.csv").is_file():
            continue
        rows = read_manifest(HERE / task)
        table = [measure(HERE / task, row) for row in rows]
        print(f"# {task}\n")
        for key in keys:
            print_table(rows, table, key)
        faults = {row["name"]: find_faults(numbers) for row, numbers in zip(rows, table, strict=True)}
        passed = report_faults(faults) and passed
    print(f"rules: {'passed' if passed else 'BROKEN'}")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
