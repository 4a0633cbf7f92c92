"""Paired audio as lanes of consecutive steps."""

from typing import TYPE_CHECKING, Any

from dfx.datasets.degradation import Degradation
from dfx.datasets.frames import Window
from dfx.datasets.treatment import Augmentation, Treatment

if TYPE_CHECKING:
    from dfx.datasets.paired_audio import PairedAudio

__all__ = ["Augmentation", "Degradation", "PairedAudio", "Treatment", "Window"]


def __getattr__(name: str) -> Any:
    # Imported on first use, because rendering does not need Lightning.
    if name != "PairedAudio":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from dfx.datasets.paired_audio import PairedAudio

    return PairedAudio
