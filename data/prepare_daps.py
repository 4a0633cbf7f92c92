#!/usr/bin/env python3
"""Prepare the speech pairs of the paper: raw studio recordings, and the same without breaths and lip smacks.

DAPS (device and produced speech) holds 20 speakers who read 5 scripts each. Two of its folders are used: what
was recorded in the studio, and what an engineer made of it.

    https://zenodo.org/record/4660670   daps.tar.gz
        daps/cleanraw/SPEAKER_SCRIPT_cleanraw.wav   -> input/SPEAKER_SCRIPT.flac
        daps/clean/SPEAKER_SCRIPT_clean.wav         -> target/SPEAKER_SCRIPT.flac

    python data/prepare_daps.py                              # download, check, prepare
    python data/prepare_daps.py --archive daps.tar.gz        # from a copy that you have
    python train.py fit --config configs/paper/nonspeech.yaml   # trains on data/external/daps

The archive is downloaded into the output folder; a download that broke off goes on where it was, and size and
checksum are compared with what Zenodo says. It is read from front to end, and only the two folders are
unpacked, one file at a time. Files that were prepared already are kept: after whatever went wrong, run the
script again.

The split is the paper's, by speaker: f10 and m10 for validation, f9 and m9 for test, the other 16 for training.
"""

import re
import sys
from pathlib import Path
from typing import Dict, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # dfx is used from where it lies

from dfx.datasets.preparation.pairs import ZenodoPairs, run

HELD_OUT = {"f10": "validation", "m10": "validation", "f9": "test", "m9": "test"}


def without_condition(name: str) -> str:
    """``f1_script1_cleanraw`` and ``f1_script1_clean`` are both ``f1_script1``."""
    return re.sub(r"_clean(raw)?$", "", name)


def split_by_speaker(names: Sequence[str]) -> Dict[str, str]:
    """The paper's split."""
    return {name: HELD_OUT.get(name.split("_")[0], "train") for name in names}


DAPS = ZenodoPairs(
    record="https://zenodo.org/api/records/4660670",
    archive="daps.tar.gz",
    input="daps/cleanraw",
    target="daps/clean",
    split=split_by_speaker,
    name=without_condition,
)

if __name__ == "__main__":
    run(lambda: DAPS.main(__doc__, "data/external/daps"))
