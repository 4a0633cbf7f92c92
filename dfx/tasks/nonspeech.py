"""Removal of breaths, clicks and pops from speech, one of the tasks of the paper."""

from typing import Any

from dfx.datasets import Augmentation, Treatment
from dfx.tasks.task import Task


class NonSpeech(Task):
    """Makes a gate attenuate non-speech: inputs are raw takes, targets the same takes with silent pauses.

    A high-pass at 100 Hz removes thumps against the microphone from input and target. In training the input gets
    white noise, 30 to 50 dB below it, and both get one gain between 0.1 and 1.

    Args:
        effects: the chain, in signal order: for each effect a mapping of ``effect`` and, as needed, ``train``,
            ``fixed``, ``name`` and ``scale``.
        treatment: preprocessing of all audio; by default a high-pass at 100 Hz, as in the paper.
        augmentation: random changes to excerpts; by default the paper's noise and gain.
        kwargs: as of :class:`~dfx.tasks.task.Task`.
    """

    def __init__(
        self,
        effects: list[dict[str, Any]],
        treatment: Treatment = Treatment(highpass_hz=100),
        augmentation: Augmentation = Augmentation(noise_db=(30, 50), gain=(0.1, 1)),
        **kwargs: Any,
    ) -> None:
        super().__init__(effects, treatment=treatment, augmentation=augmentation, **kwargs)
