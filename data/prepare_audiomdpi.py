#!/usr/bin/env python3
"""Prepare the tube-amplifier pairs of the paper: notes, and the same notes through a tube preamplifier.

The recordings are single notes of electric guitars and basses, two seconds each, and what the tube preamplifier
(610-B) of a Universal Audio 6176 channel strip makes of them. They are two folders of one archive:

    https://zenodo.org/record/3562442   AudioMDPI.zip
        AudioMDPI/6176ChannelStrip/dry/*.wav      -> input/
        AudioMDPI/6176ChannelStrip/preamp/*.wav   -> target/

    python data/prepare_audiomdpi.py                             # download, check, prepare
    python data/prepare_audiomdpi.py --archive AudioMDPI.zip     # from a copy that you have
    python train.py fit --config configs/paper/tube_amp.yaml     # trains on data/external/6176

The archive is downloaded into the output folder; a download that broke off goes on where it was, and size and
checksum are compared with what Zenodo says. Files that were prepared already are kept: after whatever went
wrong, run the script again.

The split is the paper's, 80/10/10 of the sorted files. It is one of single notes: the same pitch of another
guitar, or plucked in another way, can be on both sides, so a test on it says nothing of new pitches.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # dfx is used from where it lies

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
