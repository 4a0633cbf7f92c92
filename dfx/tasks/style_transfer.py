"""Style transfer: a recording is made to sound like a reference."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from dfx.audio.levels import SILENCE
from dfx.datasets import Treatment
from dfx.errors import UserError
from dfx.tasks.task import Task


class StyleTransfer(Task):
    """Makes effects bring a recording to the balance, density and level of a reference recording.

    It is trained without pairs, as DeepAFx-ST (Steinmetz, Bryan, Reiss 2022): a finished recording is cut in halves.
    One half is the target and, degraded, the input; the other is the reference. Batches have the key ``reference``,
    ``(batch, channels, samples)``.

    The whole input is normalized to -25 LUFS, so that it may have any level. The reference keeps its level, as the
    target does.

    Args:
        effects: the chain, in signal order: for each effect a mapping of ``effect`` and, as needed, ``train``,
            ``fixed``, ``name`` and ``scale``.
        treatment: preprocessing of all audio; by default the input is brought to -25 LUFS.
        kwargs: as of :class:`~dfx.tasks.task.Task`.
    """

    takes_reference: ClassVar[bool] = True

    def __init__(
        self, effects: list[dict[str, Any]], treatment: Treatment = Treatment(input_lufs=-25), **kwargs: Any
    ) -> None:
        super().__init__(effects, treatment=treatment, **kwargs)
        self._reference: Tensor | None = None

    def set_reference(self, audio: Tensor) -> None:
        """Use a reference for all contexts that follow.

        Args:
            audio: a whole recording, ``(channels, samples)`` at the task's sample rate, of a second or more. It is
                treated here, as a target: its level is left as it is. The encoder takes the mean of its channels.

        Raises:
            UserError: if it is shorter, or silent.
        """
        if audio.shape[-1] < self.chain.sample_rate:
            seconds = audio.shape[-1] / self.chain.sample_rate
            raise UserError(f"the reference lasts {seconds:.2f} s: give one of a second or more")
        if audio.mean(dim=0).abs().max() < SILENCE:
            raise UserError("the reference is silent: give one that sounds as the output is to sound")
        treated = self.treatment(audio.cpu(), self.chain.sample_rate, "target")
        self._reference = self._summarize(treated[None])

    def _summarize(self, references: Tensor) -> Tensor:
        with torch.no_grad():
            return self.encoder.summarize(references.to(self.device))

    def _encode_all(self, context: Tensor) -> Tensor:
        if self._reference is None:
            raise UserError(f"{type(self).__name__} needs a reference, which the output is to sound like: give one")
        return self.encoder(context, self._reference.to(context.device))

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of a batch, each example with its own reference."""
        given, self._reference = self._reference, self._summarize(batch["reference"])
        try:
            return super().compute_loss(batch)
        finally:
            self._reference = given

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.set_reference(batch["reference"])
        super().test_step(batch, batch_idx)
