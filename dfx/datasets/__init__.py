"""Paired audio as lanes of consecutive steps."""

from dfx.datasets.frames import Window
from dfx.datasets.paired_audio import PairedAudio
from dfx.datasets.treatment import Augmentation, Treatment

__all__ = ["Augmentation", "PairedAudio", "Treatment", "Window"]
