"""Helpers shared by the scripts that prepare and measure the shipped data: audio, plugins, manifests, command line."""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pedalboard
import soundfile
from scipy.signal import firwin, resample_poly

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # dfx need not be installed

from dfx.errors import ArgumentParser, errors_in_one_line  # noqa: E402

SIDES = ("input", "target")

SAMPLE_RATE = 22_050  # of the files written
RENDER_SAMPLE_RATE = 44_100  # of synthesis, plugins and most sources

# Low pass just below the Nyquist frequency of SAMPLE_RATE, for conversion from and to RENDER_SAMPLE_RATE.
HALF_BAND_FILTER = firwin(255, 0.97 * SAMPLE_RATE / RENDER_SAMPLE_RATE, window=("kaiser", 9.0))

# Largest deviations that `--check` accepts, relative to full scale: inputs may differ in the last bit. Targets may
# differ more, because ZamTube's output varies slightly from run to run.
TOLERANCES = {"input": 1.5 / 32_768, "target": 1e-3}


def amplitude_to_db(amplitude: float) -> float:
    return 20 * np.log10(amplitude + 1e-12)


def read_mono(path: Path, expected_rate: int | None = None) -> tuple[np.ndarray, int]:
    """Read a file as mono; return it with its sample rate in Hz.

    Raises:
        ValueError: if the sample rate differs from `expected_rate`.
    """
    audio, sample_rate = soundfile.read(path, always_2d=True)
    if expected_rate not in (None, sample_rate):
        raise ValueError(f"{path}: sample rate is {sample_rate} Hz, expected {expected_rate} Hz")
    return audio.mean(axis=1), sample_rate


def downsample(audio: np.ndarray) -> np.ndarray:
    """Convert from RENDER_SAMPLE_RATE to SAMPLE_RATE."""
    return resample_poly(audio, 1, 2, window=HALF_BAND_FILTER)


def round_to_16_bit(audio: np.ndarray) -> np.ndarray:
    """Round to the steps of a 16-bit file.

    Raises:
        ValueError: if the audio clips or contains NaN.
    """
    if not np.abs(audio).max() < 1:
        raise ValueError("audio clips or contains NaN")
    return np.round(audio * 32_768).clip(-32_768, 32_767) / 32_768


def run_plugin(path: Path, settings: Mapping[str, object], audio: np.ndarray, channels: int = 1) -> np.ndarray:
    """Process mono audio at RENDER_SAMPLE_RATE in a new plugin instance, so that no state is carried over.

    The audio is copied to `channels` channels; the first output channel is returned.
    """
    plugin = pedalboard.load_plugin(str(path))
    # With the detected reload type, a reset reloads the plugin and invalidates its parameter objects.
    plugin._reload_type = pedalboard.ExternalPluginReloadType.ClearsAudioOnReset
    for name, value in settings.items():
        setattr(plugin, name, value)
    dry = np.repeat(audio[None].astype(np.float32), channels, axis=0)
    return plugin.process(dry, RENDER_SAMPLE_RATE, reset=False)[0].astype(np.float64)


def silence_native_code() -> None:
    """Reserve stderr for Python: the framework of the Zam plugins prints harmless warnings, some of them at exit."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def require(packages: Mapping[str, Sequence[Path]]) -> None:
    """Exit with the names of the Debian packages whose files are missing."""
    missing = {package: [path for path in paths if not path.exists()] for package, paths in packages.items()}
    missing = {package: paths for package, paths in missing.items() if paths}
    if missing:
        files = ", ".join(str(paths[0]) for paths in missing.values())
        sys.exit(f"error: {files} are missing; on Debian, install them: apt-get install {' '.join(missing)}")


def clear_sides(folder: Path) -> None:
    """Create the folders of inputs and targets, or delete their contents."""
    for side in SIDES:
        shutil.rmtree(folder / side, ignore_errors=True)
        (folder / side).mkdir(parents=True)


def write_pair(folder: Path, name: str, input: np.ndarray, target: np.ndarray) -> dict[str, str]:
    """Write both files and return their paths as columns of the manifest."""
    paths = {side: f"{side}/{name}.flac" for side in SIDES}
    for side, audio in zip(SIDES, (input, target), strict=True):
        soundfile.write(folder / paths[side], audio, SAMPLE_RATE, subtype="PCM_16")
    return paths


def read_manifest(folder: Path) -> list[dict[str, str]]:
    """Return the rows of manifest.csv."""
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_checksums(folder: Path, paths: Iterable[Path] | None = None) -> None:
    """Write SHA256SUMS, in the format of `sha256sum --check`, of the paths (default: all files in the folder)."""
    if paths is None:
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    sums = [(hashlib.sha256(path.read_bytes()).hexdigest(), path.relative_to(folder).as_posix()) for path in paths]
    (folder / "SHA256SUMS").write_text("".join(f"{digest}  {path}\n" for digest, path in sums))


def report_faults(faults: Mapping[str, Sequence[str]]) -> bool:
    """Print the faults of each pair, by name; return True if there are none."""
    for name, found in faults.items():
        for fault in found:
            print(f"FAULT {name}: {fault}")
    return not any(faults.values())


def compare(shipped: Path, fresh: Path) -> bool:
    """Print the differences between a new rendering and the shipped files; return True if within TOLERANCES."""
    same = (shipped / "manifest.csv").read_bytes() == (fresh / "manifest.csv").read_bytes()
    print(f"manifest: {'identical' if same else 'DIFFERENT'}")
    for side, tolerance in TOLERANCES.items():
        errors = {
            path.name: largest_difference(shipped / side / path.name, path)
            for path in sorted((fresh / side).glob("*.flac"))
        }
        identical = sum(error == 0 for error in errors.values())
        print(
            f"{side}: {identical} of {len(errors)} identical, "
            f"largest difference {max(errors.values()):.1e} of full scale (tolerance {tolerance:.1e})"
        )
        mismatches = [name for name, error in errors.items() if not error <= tolerance]
        for name in mismatches:
            print(f"  MISMATCH {side}/{name}")
        same = same and not mismatches
    return same


def largest_difference(shipped: Path, fresh: Path) -> float:
    """Return the largest absolute difference between two files, or infinity if they cannot be compared."""
    if not shipped.is_file():
        return np.inf
    (first, first_rate), (second, second_rate) = soundfile.read(shipped), soundfile.read(fresh)
    if first_rate != second_rate or first.shape != second.shape:
        return np.inf
    return float(np.abs(first - second).max())


def argument_parser(description: str, name: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all scripts share; `name` is the default folder, next to the script."""
    parser = ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--folder", type=Path, default=HERE / name, help="folder of the data set")
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare the data set with a new rendering in a temporary folder; exit with status 1 on a mismatch",
    )
    return parser


def run(arguments: argparse.Namespace, write_dataset: Callable[[Path], None]) -> None:
    """Write the data set, or compare it with a new rendering if `--check` is given."""
    if not arguments.check:
        with errors_in_one_line():
            write_dataset(arguments.folder)
        return
    if not (arguments.folder / "manifest.csv").is_file():
        sys.exit(f"error: {arguments.folder} contains no data set; run without --check to write one")
    with errors_in_one_line(), tempfile.TemporaryDirectory() as fresh:
        write_dataset(Path(fresh))
        sys.exit(0 if compare(arguments.folder, Path(fresh)) else 1)
