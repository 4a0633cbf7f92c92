#!/usr/bin/env python3
"""Cut the middle of every song below a folder, to test style transfer on songs that no model was trained on.

    python data/cut_songs.py SONGS FOLDER
    python evaluate.py data/models/style/model.ckpt --data FOLDER --baselines input matched

FOLDER/manifest.csv lists the cuts, mono at 22050 Hz, as pairs of the test split whose input is their target. A cut is
named after its file and, of a file in a folder of SONGS, after this folder. FOLDER/doubtful.csv lists the songs that
were left out, since they could not be read or are silent.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # dfx need not be installed

from dfx.audio.reading import AudioFile, audio_files
from dfx.datasets.preparation.pairs import SAMPLE_RATE, Report, run, safe_name, write_audio
from dfx.errors import ArgumentParser, DataError, UserError, check_numbers


def cut(songs: Path, folder: Path, seconds: float, shortest: float) -> int:
    """Write the middle of the songs that last long enough, and return how many these are.

    Raises:
        UserError: if there is no such folder, or two of them have the same name.
        DataError: if there are none.
    """
    if not songs.is_dir():
        raise UserError(f"{songs}: no such folder")
    report, sources = Report(folder), dict[str, Path]()
    cuts = (folder / "audio").resolve()  # which an earlier run may have written below the songs
    for path in tqdm([path for path in audio_files(songs) if cuts not in path.resolve().parents], unit="song"):
        name = safe_name("_".join([*path.relative_to(songs).parts[:-1][:1], path.stem]))
        try:
            song = AudioFile.open(str(path))
            if song.seconds < shortest:
                continue
            if name in sources:
                raise UserError(f"{sources[name]} and {path} would both be named {name}: rename one of them")
            sources[name] = path
            samples = round(seconds * SAMPLE_RATE)
            start = (song.samples_at(SAMPLE_RATE) - samples) // 2
            written = write_audio(song.read(start, samples, SAMPLE_RATE, 1), folder / "audio" / name, SAMPLE_RATE)
            report.add(name, "test", written, written)
        except DataError as error:
            report.leave_out(name, str(error))
    folder.mkdir(parents=True, exist_ok=True)
    report.write()
    if not report.rows:
        raise DataError(f"{songs} has no song of {shortest:g} s or more that can be read")
    return len(report.rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("songs", metavar="SONGS", type=Path, help="a folder of audio files, also in folders")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the folder to write")
    parser.add_argument("--seconds", type=float, default=40, help="length of a cut (default: %(default)s)")
    parser.add_argument("--shortest", type=float, default=80, help="songs of fewer seconds are left out (default: 80)")
    options = parser.parse_args(arguments)
    check_numbers(vars(options), seconds="[1, 3600]", shortest="[1, 36000]")
    if options.shortest < options.seconds:
        raise UserError(f"--shortest {options.shortest:g} is less than the {options.seconds:g} s of a cut")
    count = cut(options.songs, options.folder, options.seconds, options.shortest)
    print(f"{count} song{'s' * (count > 1)}, listed in {options.folder / 'manifest.csv'}")


if __name__ == "__main__":
    run(main)
