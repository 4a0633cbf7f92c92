#!/usr/bin/env python3
"""Measure the paired audio in `tube_amp/` and, where ZamTube is installed, the tube stage behind it.

Prints the tables of README.md. The exit status is 1 if a file breaks one of the rules in `faults`.
"""

import argparse
import csv
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile
import torch
from prepare_tube_amp import (
    LEAD_IN_SECONDS,
    NUM_SAMPLES,
    RENDER_SAMPLE_RATE,
    SAMPLE_RATE,
    silence_native_code,
    tube_amp,
)
from scipy.signal import correlate, correlation_lags
from torchaudio.functional import loudness

MAX_ONSET_SECONDS = 0.05
MAX_LAG_SAMPLES = 12  # the tone stack shifts the phase of low notes by a few degrees
MAX_PITCH_ERROR_CENTS = 50
MAX_LAST_SAMPLE = 0.002  # of full scale, where a note is cut
MIN_RMS_DB = -50


def decibels(amplitude: float) -> float:
    return 20 * np.log10(amplitude + 1e-12)


def loudness_lufs(audio: np.ndarray) -> float:
    """Loudness by ITU-R BS.1770."""
    return loudness(torch.from_numpy(audio)[None], SAMPLE_RATE).item()


def onset_seconds(audio: np.ndarray) -> float:
    """When the audio first exceeds a twentieth of its peak."""
    return float(np.argmax(np.abs(audio) > 0.05 * np.abs(audio).max())) / SAMPLE_RATE


def lag_samples(input: np.ndarray, target: np.ndarray) -> int:
    """How far the target is behind its input, by the peak of the plain cross-correlation.

    The search stays within 16 samples, less than half a period of the highest note: further out,
    one period of a steady tone is as good as the next.
    """
    lags = correlation_lags(len(target), len(input))
    near = np.abs(lags) <= 16
    return int(lags[near][np.argmax(correlate(target, input)[near])])


def pitch_error_cents(audio: np.ndarray, pitch: int) -> float:
    """Distance of the best period within a semitone and a half of the expected one, by autocorrelation."""
    expected = SAMPLE_RATE / (440 * 2 ** ((pitch - 69) / 12))
    body = audio[round(0.05 * SAMPLE_RATE) : round(0.8 * SAMPLE_RATE)]
    spectrum = np.fft.rfft(body, 2 * len(body))
    fine = 16  # lags a sample
    similarity = np.fft.irfft(np.abs(spectrum) ** 2, 2 * len(body) * fine)
    periods = np.arange(round(expected * fine / 2**0.125), round(expected * fine * 2**0.125))
    return float(1200 * np.log2(expected / (periods[np.argmax(similarity[periods])] / fine)))


def measure(folder: Path, row: dict) -> dict:
    """All numbers of one pair."""
    (input, input_rate), (target, target_rate) = (soundfile.read(folder / row[side]) for side in ("input", "target"))
    if (input_rate, target_rate) != (SAMPLE_RATE,) * 2 or (input.shape, target.shape) != ((NUM_SAMPLES,),) * 2:
        raise ValueError(f"{row['name']}: wrong sample rate or length")
    numbers = {"lag_samples": lag_samples(input, target), "pitch_error_cents": 0.0}
    if "pitch" in row["source"].split():
        numbers["pitch_error_cents"] = pitch_error_cents(input, int(row["name"].split("_")[-2]))
    for side, audio in (("input", input), ("target", target)):
        numbers |= {
            f"{side}_peak_db": decibels(np.abs(audio).max()),
            f"{side}_rms_db": decibels(np.sqrt(np.mean(audio**2))),
            f"{side}_lufs": loudness_lufs(audio),
            f"{side}_onset_seconds": onset_seconds(audio),
            f"{side}_last_sample": abs(audio[-1]),
        }
    return numbers


def faults(numbers: dict) -> list[str]:
    """The rules that one pair breaks."""
    rules = {
        "not finite": all(np.isfinite(value) for value in numbers.values()),
        "clips": max(numbers["input_peak_db"], numbers["target_peak_db"]) < -0.01,
        "silent": min(numbers["input_rms_db"], numbers["target_rms_db"]) > MIN_RMS_DB,
        "starts late": max(numbers["input_onset_seconds"], numbers["target_onset_seconds"]) < MAX_ONSET_SECONDS,
        "starts early": numbers["input_onset_seconds"] > 0.9 * LEAD_IN_SECONDS,
        "ends in a click": max(numbers["input_last_sample"], numbers["target_last_sample"]) < MAX_LAST_SAMPLE,
        "misaligned": abs(numbers["lag_samples"]) <= MAX_LAG_SAMPLES,
        "out of tune": abs(numbers["pitch_error_cents"]) <= MAX_PITCH_ERROR_CENTS,
    }
    return [rule for rule, kept in rules.items() if not kept]


def print_dataset(folder: Path) -> bool:
    """Print counts and statistics; true if no pair breaks a rule."""
    with open(folder / "manifest.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    table = [measure(folder, row) for row in rows]

    print(f"{len(rows)} pairs, {len(rows) * NUM_SAMPLES / SAMPLE_RATE:.0f} s\n")
    splits = ("train", "validation", "test")
    kinds = [row["name"].rstrip("0123456789_") if row["licence"] == "MIT" else "sonic_pi" for row in rows]
    count = Counter(zip(kinds, (row["split"] for row in rows)))
    print("| sounds |", " | ".join(splits), "|\n|---|---|---|---|")
    for kind in dict.fromkeys(kinds):
        print(f"| {kind} |", " | ".join(str(count[kind, split]) for split in splits), "|")
    print("| all |", " | ".join(str(sum(row["split"] == split for row in rows)) for split in splits), "|\n")

    print("| quantity | least | mean | greatest |\n|---|---|---|---|")
    columns = {quantity: np.array([numbers[quantity] for numbers in table]) for quantity in table[0]}
    columns["target_minus_input_lufs"] = columns["target_lufs"] - columns["input_lufs"]
    for quantity, values in columns.items():
        print(f"| {quantity} | {values.min():.4g} | {values.mean():.4g} | {values.max():.4g} |")

    all_kept = True
    for row, numbers in zip(rows, table):
        for fault in faults(numbers):
            print(f"FAULT {row['name']}: {fault}")
            all_kept = False
    print(f"\nrules: {'all kept' if all_kept else 'BROKEN'}")
    return all_kept


def harmonics(frequency_hz: float, level_db: float, zamtube: Path) -> np.ndarray:
    """Amplitudes of the harmonics below 10 kHz of a sine with a peak of `level_db`, the fundamental first."""
    seconds = np.arange(2 * RENDER_SAMPLE_RATE) / RENDER_SAMPLE_RATE
    wet = tube_amp(10 ** (level_db / 20) * np.sin(2 * np.pi * frequency_hz * seconds), zamtube)
    steady = wet[RENDER_SAMPLE_RATE:]  # one second: a bin is one hertz
    spectrum = np.abs(np.fft.rfft(steady)) / (RENDER_SAMPLE_RATE / 2)
    return spectrum[np.arange(frequency_hz, 10_000, frequency_hz, dtype=int)]


def print_tube_stage(zamtube: Path) -> None:
    """Print delay, total harmonic distortion and small-signal response, before the common gain of the targets."""
    impulse = np.zeros(RENDER_SAMPLE_RATE)
    impulse[1000] = 1e-3
    response = tube_amp(impulse, zamtube)
    largest = np.argmax(np.abs(response))
    print(f"\nimpulse: largest {largest - 1000} samples late, gain {response[largest] / 1e-3:+.2f}")
    levels_db = (-36, -24, -18, -12, -6, -3)
    print("\n| sine |", " | ".join(f"{level_db} dBFS" for level_db in levels_db), "|\n|---|" + "---|" * len(levels_db))
    for frequency_hz in (110, 220, 440):
        cells = []
        for level_db in levels_db:
            fundamental, *overtones = harmonics(frequency_hz, level_db, zamtube)
            cells.append(f"{100 * np.linalg.norm(overtones) / fundamental:.1f} %")
        print(f"| {frequency_hz} Hz |", " | ".join(cells), "|")
    frequencies_hz = (30, 60, 125, 250, 500, 1000, 2000, 4000, 8000)
    print("\n| frequency |", " | ".join(f"{frequency_hz} Hz" for frequency_hz in frequencies_hz), "|")
    print("|---|" + "---|" * len(frequencies_hz))
    gains_db = [decibels(harmonics(frequency_hz, -60, zamtube)[0]) + 60 for frequency_hz in frequencies_hz]
    print("| gain |", " | ".join(f"{gain_db:+.1f} dB" for gain_db in gains_db), "|")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure the paired audio of the tube-amplifier task; exit status 1 if a file is faulty.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    here = Path(__file__).resolve().parent
    parser.add_argument("--folder", type=Path, default=here / "tube_amp", help="the data set")
    parser.add_argument(
        "--zamtube", type=Path, default=Path("/usr/lib/vst3/ZamTube.vst3"), help="the plugin, measured if it is there"
    )
    arguments = parser.parse_args()
    silence_native_code()
    all_kept = print_dataset(arguments.folder)
    if arguments.zamtube.exists():
        print_tube_stage(arguments.zamtube)
    sys.exit(0 if all_kept else 1)


if __name__ == "__main__":
    main()
