"""Paired audio as lanes of consecutive steps."""

from dfx.audio.reading import AudioFile
from dfx.datasets.frames import Window
from dfx.datasets.paired_audio import PairedAudio
from dfx.datasets.treatment import Augmentation, Treatment
from dfx.errors import DataError

__all__ = ["AudioFile", "Augmentation", "DataError", "PairedAudio", "Treatment", "Window"]
