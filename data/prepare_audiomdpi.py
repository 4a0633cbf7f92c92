#!/usr/bin/env python3
"""Prepare the tube-amplifier pairs of the paper: notes, and the same notes through a tube preamplifier.

The recordings are single notes of electric guitars and basses, two seconds each, and the same notes through the
tube preamplifier (610-B) of a Universal Audio 6176 channel strip. They are in two folders of one archive:

    https://zenodo.org/record/3562442   AudioMDPI.zip
        AudioMDPI/6176ChannelStrip/dry/*.wav      -> input/
        AudioMDPI/6176ChannelStrip/preamp/*.wav   -> target/

    python data/prepare_audiomdpi.py                             # download, check, prepare
    python data/prepare_audiomdpi.py --archive AudioMDPI.zip     # use an archive that is already downloaded
    python train.py fit --config configs/paper/tube_amp.yaml     # train on data/external/6176

The archive is downloaded into the output folder; size and checksum are compared with those that Zenodo reports.
After an interruption or an error, run the script again: it resumes the download and keeps the files that are
already prepared.

The split is the paper's, 80/10/10 of the sorted files, by note: the same pitch of another guitar, or plucked in
another way, can be in two splits, so the test split does not measure generalization to new pitches.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # dfx need not be installed

from dfx.datasets.preparation.pairs import ZenodoPairs, run, split_as_published

AUDIOMDPI = ZenodoPairs(
    record="https://zenodo.org/api/records/3562442",
    archive="AudioMDPI.zip",
    input="AudioMDPI/6176ChannelStrip/dry",
    target="AudioMDPI/6176ChannelStrip/preamp",
    split=split_as_published,
)

if __name__ == "__main__":
    run(lambda: AUDIOMDPI.main(__doc__, "data/external/6176"))
