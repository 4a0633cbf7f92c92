#!/usr/bin/env python3
"""Prepare the speech pairs of the paper: raw studio recordings, and the same without breaths and lip smacks.

DAPS (device and produced speech) contains 20 speakers who read 5 scripts each. Two of its folders are used: the
studio recordings, and the versions that a sound engineer produced from them.

    https://zenodo.org/record/4660670   daps.tar.gz
        daps/cleanraw/SPEAKER_SCRIPT_cleanraw.wav   -> input/SPEAKER_SCRIPT.flac
        daps/clean/SPEAKER_SCRIPT_clean.wav         -> target/SPEAKER_SCRIPT.flac

    python data/prepare_daps.py                                 # download, check, prepare
    python data/prepare_daps.py --archive daps.tar.gz           # use an archive that is already downloaded
    python train.py fit --config configs/paper/nonspeech.yaml   # train on data/external/daps

The archive is downloaded into the output folder; size and checksum are compared with those that Zenodo reports.
It is read once, from beginning to end, and only the two folders are unpacked, one file at a time. After an
interruption or an error, run the script again: it resumes the download and keeps the files that are already
prepared.

The split is the paper's, by speaker: f10 and m10 for validation, f9 and m9 for test, the other 16 for training.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # dfx need not be installed

from dfx.datasets.preparation.pairs import ZenodoPairs, run

HELD_OUT = {"f10": "validation", "m10": "validation", "f9": "test", "m9": "test"}


def strip_condition(name: str) -> str:
    """Return ``f1_script1`` for both ``f1_script1_cleanraw`` and ``f1_script1_clean``."""
    return re.sub(r"_clean(raw)?$", "", name)


def speaker_of(name: str) -> str:
    return name.split("_")[0]


def split_by_speaker(names: Sequence[str]) -> dict[str, str]:
    """Return the split of the paper for every name."""
    return {name: HELD_OUT.get(speaker_of(name), "train") for name in names}


DAPS = ZenodoPairs(
    record="https://zenodo.org/api/records/4660670",
    archive="daps.tar.gz",
    input="daps/cleanraw",
    target="daps/clean",
    split=split_by_speaker,
    name=strip_condition,
    group=speaker_of,
)

if __name__ == "__main__":
    run(lambda: DAPS.main(__doc__, "data/external/daps"))
