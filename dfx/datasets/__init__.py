"""Paired audio as lanes of consecutive frames."""

from dfx.datasets.audio import AudioFile, DataError
from dfx.datasets.frames import Window
from dfx.datasets.paired_audio import PairedAudio

__all__ = ["AudioFile", "DataError", "PairedAudio", "Window"]
