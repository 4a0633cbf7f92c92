"""What the scripts that make the shipped data share: the manifest, checksums and the command line."""

from __future__ import annotations

import argparse
import csv
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
from prepare_tube_amp import SAMPLE_RATE, compare


def require(packages: Mapping[str, Sequence[Path]]) -> None:
    """Stop with the names of the Debian packages whose files are missing."""
    missing = {package: [path for path in paths if not path.exists()] for package, paths in packages.items()}
    missing = {package: paths for package, paths in missing.items() if paths}
    if missing:
        lines = [f"  {paths[0]} (Debian package {package})" for package, paths in missing.items()]
        remedy = f"try: apt-get install {' '.join(missing)}"
        sys.exit("\n".join(["error: not found or incomplete:", *lines, remedy]))


def empty_folder(folder: Path) -> None:
    """Clear the folder of the inputs and that of the targets, or make them."""
    for side in ("input", "target"):
        shutil.rmtree(folder / side, ignore_errors=True)
        (folder / side).mkdir(parents=True)


def write_pair(folder: Path, name: str, input: np.ndarray, target: np.ndarray) -> dict[str, str]:
    """Write both files and give the columns of the manifest that point to them."""
    paths = {}
    for side, audio in (("input", input), ("target", target)):
        paths[side] = f"{side}/{name}.flac"
        soundfile.write(folder / paths[side], audio, SAMPLE_RATE, subtype="PCM_16")
    return paths


def write_manifest(folder: Path, rows: Sequence[Mapping]) -> None:
    """Write manifest.csv, and SHA256SUMS of every file, in the format of `sha256sum --check`."""
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    sums = [(hashlib.sha256(path.read_bytes()).hexdigest(), path.relative_to(folder).as_posix()) for path in files]
    (folder / "SHA256SUMS").write_text("".join(f"{digest}  {path}\n" for digest, path in sums))


def run(description: str, name: str, write_dataset: Callable[[Path], None]) -> None:
    """The command line of a script: write the data set, or compare it with one that is made afresh."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    here = Path(__file__).resolve().parent
    parser.add_argument("--folder", type=Path, default=here / name, help="the data set")
    parser.add_argument(
        "--check",
        action="store_true",
        help="leave the data set alone, make it again elsewhere and compare; exit status 1 on a mismatch",
    )
    arguments = parser.parse_args()
    if not arguments.check:
        write_dataset(arguments.folder)
        return
    if not (arguments.folder / "manifest.csv").is_file():
        sys.exit(f"error: no data set in {arguments.folder}")
    with tempfile.TemporaryDirectory() as fresh:
        write_dataset(Path(fresh))
        sys.exit(0 if compare(arguments.folder, Path(fresh)) else 1)
