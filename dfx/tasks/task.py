"""What all tasks share: an encoder that moves the controls of a chain of effects."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Dict, List, Literal, Tuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from dfx.blackbox import EffectLayer, GradientOptions, RenderingOptions
from dfx.datasets.frames import Window
from dfx.effects import ChainSpec, EffectError, EffectSpec
from dfx.encoder import Encoder, EncoderOptions
from dfx.errors import UserError
from dfx.losses import LossOptions, make_loss
from dfx.metrics import compare
from dfx.render import Rendering, render


@dataclasses.dataclass
class OptimizerOptions:
    """How the encoder is trained.

    Args:
        learning_rate: of Adam; the paper's is 1e-4.
        schedule: ``cosine`` rises to the learning rate over the first twentieth of the run and falls to zero
            by its end, along half a cosine (Loshchilov and Hutter 2017); ``constant`` stays.
    """

    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine"] = "cosine"


class Task(pl.LightningModule):
    """An encoder, the effects that it operates, and a loss (the paper, section 2).

    A batch, from a data module of :mod:`dfx.datasets`, holds ``input`` and ``target``, each ``(batch, channels,
    window.samples)``, and ``restart``, bool ``(batch,)``.

    Args:
        effects: the chain, in the order of the signal: for each effect the arguments of
            :class:`~dfx.effects.EffectSpec`, or one.
        sample_rate: in Hz, of all audio.
        channels: of all audio.
        context_samples: what the encoder hears around a frame.
        frame_samples: what is rendered with one set of parameters, and what the loss compares.
        encoder, loss, gradient, optimizer: options of the parts.
        rendering: who renders; it may differ between a checkpoint and the run that loads it.
        keep_dead_parameters: train although some parameters do nothing to the sound.

    Raises:
        EffectError: if the chain cannot be built.
    """

    def __init__(
        self,
        effects: List[Dict[str, Any]],
        sample_rate: int = 22050,
        channels: int = 1,
        context_samples: int = 40960,
        frame_samples: int = 1024,
        encoder: EncoderOptions = EncoderOptions(),
        loss: LossOptions = LossOptions(),
        gradient: GradientOptions = GradientOptions(),
        optimizer: OptimizerOptions = OptimizerOptions(),
        rendering: RenderingOptions = RenderingOptions(),
        keep_dead_parameters: bool = False,
    ) -> None:
        super().__init__()
        self.options = optimizer
        self.keep_dead_parameters = keep_dead_parameters
        # Mappings and not EffectSpecs in the signature: jsonargparse would fill what an effect on the command
        # line leaves out with what stands at its place in the config.
        specs = [EffectSpec.of(effect) for effect in effects]
        self.chain = ChainSpec(specs, sample_rate, channels)
        # Built once here: a chain that cannot be built fails before the data are read.
        self.window = Window(context_samples, frame_samples, self.chain.build().latency_samples)
        self.encoder = Encoder(self.chain.space.defaults, sample_rate, encoder)
        self.effect_layer = EffectLayer(self.chain, gradient, rendering)
        self.loss = make_loss(loss)
        # A frame that is too short for the loss fails here as well.
        silence = torch.zeros(1, channels, frame_samples)
        self.loss(silence, silence)
        # Plain types only, so that checkpoints load without running code from them.
        self.arguments = {
            "effects": [dataclasses.asdict(spec) for spec in specs],
            "sample_rate": sample_rate,
            "channels": channels,
            "context_samples": context_samples,
            "frame_samples": frame_samples,
            "encoder": dataclasses.asdict(encoder),
            "loss": dataclasses.asdict(loss),
            "gradient": dataclasses.asdict(gradient),
            "optimizer": dataclasses.asdict(optimizer),
        }

    def forward(self, input: Tensor, restart: Tensor) -> Tuple[Tensor, Tensor]:
        """The next frame of every lane.

        Args:
            input: ``(batch, channels, window.samples)``.
            restart: bool ``(batch,)``, the lanes that begin a new excerpt.

        Returns:
            The output, ``(batch, channels, frame_samples)``, and the parameters, ``(batch, P)`` in (0, 1).
        """
        parameters = self.encoder(self.window.context(input))
        return self.effect_layer(self.window.frame(input), parameters, restart), parameters

    def training_step(self, batch: Dict[str, Tensor], batch_idx: int) -> Tensor:
        output, _ = self(batch["input"], batch["restart"])
        loss = self.loss(output, self.window.delayed_frame(batch["target"]))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(output))
        return loss

    def setup(self, stage: str) -> None:
        """Before training, looks for parameters that do nothing.

        Raises:
            EffectError: if there are any, by name.
        """
        if stage != "fit" or self.keep_dead_parameters:
            return
        dead = self.effect_layer.dead_parameters()
        if dead:
            raise EffectError(
                f"{', '.join(dead)} would be trained but do nothing to the sound (see python -m dfx.effects.probe): "
                "leave them out of `train`, or set `keep_dead_parameters: true`"
            )

    def on_fit_start(self) -> None:
        per_step = self.effect_layer.renderings
        print(f"{len(self.chain.parameters)} trained parameters; {per_step} renderings an example and step")
        for logger in self.loggers:
            logger.log_hyperparams({"renderings_per_example": per_step})

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.effect_layer.progress = min(1.0, self.global_step / self._total_steps)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.is_last_batch:
            self.effect_layer.end_excerpts()

    def validation_step(self, batch: Dict[str, Tensor], batch_idx: int) -> None:
        output, _ = self(batch["input"], batch["restart"])
        target = self.window.delayed_frame(batch["target"])
        size = len(output)
        self.log("validation/loss", self.loss(output, target), prog_bar=True, batch_size=size)
        untouched = self.loss(self.window.delayed_frame(batch["input"]), target)
        self.log("validation/loss_of_input", untouched, batch_size=size)

    def test_step(self, batch: Dict[str, Any], batch_idx: int) -> None:
        for method, audio in {"input": batch["input"], "output": self.render(batch["input"]).output}.items():
            for metric, value in compare(audio.cpu(), batch["target"].cpu(), self.chain.sample_rate).items():
                self.log(f"test/{method}/{metric}", value, batch_size=1)

    def predict_step(self, batch: Dict[str, Any], batch_idx: int) -> Rendering:
        return self.render(batch["input"])

    def render(self, audio: Tensor) -> Rendering:
        """A whole recording, ``(channels, samples)`` at the task's sample rate; see :mod:`dfx.render`."""
        return render(self, audio.cpu())

    def configure_optimizers(self) -> Any:
        self._total_steps = max(1.0, float(self.trainer.estimated_stepping_batches))
        optimizer = torch.optim.Adam(self.parameters(), lr=self.options.learning_rate)
        if self.options.schedule == "constant":
            return optimizer

        def factor(step: int) -> float:
            rise = min(1.0, 20 * (step + 1) / self._total_steps)
            return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self._total_steps)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: Dict[str, Any]) -> None:
        data = getattr(self.trainer, "datamodule", None)
        checkpoint["dfx"] = {
            "task": type(self).__name__,
            "arguments": self.arguments,
            "data": getattr(data, "arguments", {}),
            "streaming": self.effect_layer.streaming_state(),
        }

    def on_load_checkpoint(self, checkpoint: Dict[str, Any]) -> None:
        self._check_checkpoint(checkpoint)
        if self.trainer.state.fn == "fit":
            self.effect_layer.load_streaming_state(checkpoint["dfx"]["streaming"])

    def _check_checkpoint(self, checkpoint: Dict[str, Any]) -> None:
        saved = checkpoint.get("dfx")
        if saved is None:
            raise CheckpointError("the checkpoint was not written by dfx")
        if saved["task"] != type(self).__name__:
            raise CheckpointError(f"the checkpoint is of the task {saved['task']}, not of {type(self).__name__}")
        # Ranges and fixed values may change, for instance after an effect has failed at the end of a range.
        theirs = dict(saved["arguments"], effects=self._parameter_names(saved["arguments"]))
        ours = dict(self.arguments, effects=self.chain.space.names)
        free = {"loss", "gradient", "optimizer"}
        other = [name for name in ours.keys() - free if theirs[name] != ours[name]]
        if other:
            raise CheckpointError(f"the checkpoint was trained with other {' and '.join(sorted(other))}")


    @staticmethod
    def _parameter_names(arguments: Dict[str, Any]) -> List[str]:
        specs = [EffectSpec.of(effect) for effect in arguments["effects"]]
        return ChainSpec(specs, arguments["sample_rate"], arguments["channels"]).space.names


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message says why."""
