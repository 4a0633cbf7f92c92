#!/usr/bin/env python3
"""Measure the pairs in `tube_amp/` and, if ZamTube is installed, the tube stage that made the targets.

Prints the tables of README.md. The exit status is 1 if a pair breaks one of the rules in `find_faults`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import shipped
import soundfile
import torch
from prepare_tube_amp import LEAD_IN_SECONDS, NUM_SAMPLES, TUBE_SETTING, ZAMTUBE
from scipy.signal import correlate, correlation_lags
from shipped import HERE, RENDER_SAMPLE_RATE, SAMPLE_RATE
from torchaudio.functional import loudness

from dfx.audio.levels import db_to_amplitude

MAX_ONSET_SECONDS = 0.05
MAX_LAG_SAMPLES = 12  # from the phase of the tone stack on low notes
MAX_PITCH_ERROR_CENTS = 50
MAX_LAST_SAMPLE = 0.002  # relative to full scale
MIN_RMS_DB = -50


def loudness_lufs(audio: np.ndarray) -> float:
    """Return the loudness by ITU-R BS.1770."""
    return loudness(torch.from_numpy(audio)[None], SAMPLE_RATE).item()


def onset_seconds(audio: np.ndarray) -> float:
    """Return the time at which the audio first exceeds 5 % of its peak."""
    return float(np.argmax(np.abs(audio) > 0.05 * np.abs(audio).max())) / SAMPLE_RATE


def lag_samples(input: np.ndarray, target: np.ndarray) -> int:
    """Return the delay of the target relative to its input, from the peak of the cross-correlation.

    The search is limited to 16 samples, less than half a period of the highest note, because the
    cross-correlation of a steady tone has a peak at every period.
    """
    lags = correlation_lags(len(target), len(input))
    near = np.abs(lags) <= 16
    return int(lags[near][np.argmax(correlate(target, input)[near])])


def pitch_error_cents(audio: np.ndarray, pitch: int) -> float:
    """Return the deviation from a MIDI pitch, by the peak of the autocorrelation within 1.5 semitones of it."""
    expected = SAMPLE_RATE / (440 * 2 ** ((pitch - 69) / 12))
    body = audio[round(0.05 * SAMPLE_RATE) : round(0.8 * SAMPLE_RATE)]
    spectrum = np.fft.rfft(body, 2 * len(body))
    oversampling = 16  # of the lags
    similarity = np.fft.irfft(np.abs(spectrum) ** 2, 2 * len(body) * oversampling)
    periods = np.arange(round(expected * oversampling / 2**0.125), round(expected * oversampling * 2**0.125))
    return float(1200 * np.log2(expected / (periods[np.argmax(similarity[periods])] / oversampling)))


def measure(folder: Path, row: dict[str, str]) -> dict[str, float]:
    """Return all measurements of a pair.

    Raises:
        ValueError: if a file has the wrong sample rate or length.
    """
    (input, input_rate), (target, target_rate) = (soundfile.read(folder / row[side]) for side in ("input", "target"))
    if (input_rate, target_rate) != (SAMPLE_RATE,) * 2 or (input.shape, target.shape) != ((NUM_SAMPLES,),) * 2:
        raise ValueError(f"{row['name']}: expected mono files of {NUM_SAMPLES} samples at {SAMPLE_RATE} Hz")
    numbers = {"lag_samples": lag_samples(input, target), "pitch_error_cents": 0.0}
    if "pitch" in row["source"].split():
        numbers["pitch_error_cents"] = pitch_error_cents(input, int(row["name"].split("_")[-2]))
    for side, audio in (("input", input), ("target", target)):
        numbers |= {
            f"{side}_peak_db": shipped.amplitude_to_db(np.abs(audio).max()),
            f"{side}_rms_db": shipped.amplitude_to_db(np.sqrt(np.mean(audio**2))),
            f"{side}_lufs": loudness_lufs(audio),
            f"{side}_onset_seconds": onset_seconds(audio),
            f"{side}_last_sample": abs(audio[-1]),
        }
    return numbers


def find_faults(numbers: dict[str, float]) -> list[str]:
    """Return the faults of a pair."""
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
    return [fault for fault, passed in rules.items() if not passed]


def print_dataset(folder: Path) -> bool:
    """Print counts and statistics; return True if no pair breaks a rule."""
    rows = shipped.read_manifest(folder)
    table = [measure(folder, row) for row in rows]

    print(f"{len(rows)} pairs, {len(rows) * NUM_SAMPLES / SAMPLE_RATE:.0f} s\n")
    splits = ("train", "validation", "test")
    kinds = [row["name"].rstrip("0123456789_") if row["licence"] == "MIT" else "sonic_pi" for row in rows]
    count = Counter(zip(kinds, (row["split"] for row in rows), strict=True))
    print("| sounds |", " | ".join(splits), "|\n|---|---|---|---|")
    for kind in dict.fromkeys(kinds):
        print(f"| {kind} |", " | ".join(str(count[kind, split]) for split in splits), "|")
    print("| all |", " | ".join(str(sum(row["split"] == split for row in rows)) for split in splits), "|\n")

    print("| quantity | minimum | mean | maximum |\n|---|---|---|---|")
    columns = {quantity: np.array([numbers[quantity] for numbers in table]) for quantity in table[0]}
    columns["target_minus_input_lufs"] = columns["target_lufs"] - columns["input_lufs"]
    for quantity, values in columns.items():
        print(f"| {quantity} | {values.min():.4g} | {values.mean():.4g} | {values.max():.4g} |")

    faults = {row["name"]: find_faults(numbers) for row, numbers in zip(rows, table, strict=True)}
    passed = shipped.report_faults(faults)
    print(f"\nrules: {'passed' if passed else 'BROKEN'}")
    return passed


def harmonics(frequency_hz: float, level_db: float, zamtube: Path) -> np.ndarray:
    """Return the amplitudes of the harmonics below 10 kHz, fundamental first, for a sine with a peak of `level_db`."""
    seconds = np.arange(2 * RENDER_SAMPLE_RATE) / RENDER_SAMPLE_RATE
    sine = db_to_amplitude(level_db) * np.sin(2 * np.pi * frequency_hz * seconds)
    wet = shipped.run_plugin(zamtube, TUBE_SETTING, sine)
    steady = wet[RENDER_SAMPLE_RATE:]  # one second: bins of 1 Hz
    spectrum = np.abs(np.fft.rfft(steady)) / (RENDER_SAMPLE_RATE / 2)
    return spectrum[np.arange(frequency_hz, 10_000, frequency_hz, dtype=int)]


def print_tube_stage(zamtube: Path) -> None:
    """Print delay, total harmonic distortion and small-signal gain, without the common gain of the targets."""
    impulse = np.zeros(RENDER_SAMPLE_RATE)
    impulse[1000] = 1e-3
    response = shipped.run_plugin(zamtube, TUBE_SETTING, impulse)
    largest = np.argmax(np.abs(response))
    print(f"\nimpulse response: peak after {largest - 1000} samples, gain {response[largest] / 1e-3:+.2f}")
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
    gains_db = [
        shipped.amplitude_to_db(harmonics(frequency_hz, -60, zamtube)[0]) + 60 for frequency_hz in frequencies_hz
    ]
    print("| gain |", " | ".join(f"{gain_db:+.1f} dB" for gain_db in gains_db), "|")


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Measure the pairs of the tube-amplifier task; exit with status 1 if a pair is faulty.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=HERE / "tube_amp", help="folder of the data set")
    parser.add_argument("--zamtube", type=Path, default=ZAMTUBE, help="the plugin, measured if it is installed")
    arguments = parser.parse_args()
    shipped.silence_native_code()
    passed = print_dataset(arguments.folder)
    if arguments.zamtube.exists():
        print_tube_stage(arguments.zamtube)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
