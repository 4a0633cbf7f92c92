"""What all tasks share: an encoder that moves the controls of a chain of effects, trained in stages."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from dfx import distributed
from dfx.blackbox import EffectLayer, GradientOptions, RenderingOptions
from dfx.datasets.frames import Window
from dfx.datasets.treatment import Augmentation, Treatment
from dfx.effects import ChainSpec, EffectError, EffectSpec
from dfx.effects.parameter import Scale
from dfx.encoder import Encoder, EncoderOptions
from dfx.errors import UserError
from dfx.losses import LossOptions, make_loss
from dfx.metrics import compare
from dfx.tasks.framewise import Rendering, render


@dataclasses.dataclass
class OptimizerOptions:
    """How the encoder is trained, in every stage but pretraining.

    Args:
        learning_rate: of Adam; the paper's is 1e-4.
        schedule: ``cosine`` rises to the learning rate over the first twentieth of the stage and falls to zero
            by its end, along half a cosine (Loshchilov and Hutter 2017); ``plateau`` is the paper's, which
            takes a fifth after 20 validations that did not improve, down to 1.6e-6; ``constant`` stays.
        patience: after how many validations that did not improve a stage ends (the paper: 25); by default it
            lasts for all of the trainer's epochs.
    """

    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "plateau"] = "cosine"
    patience: int | None = None


@dataclasses.dataclass
class StageOptions:
    """In which stages a task is trained (the paper, section 2.5); by default in one, with the whole chain.

    Every stage has an optimizer, a schedule and epochs of its own, and begins with the best weights of the one
    before, by validation loss.

    Args:
        pretraining_epochs: the first stage fits the encoder to the effects' defaults, in the mean square and
            without rendering, for so many epochs at most (the paper: 100); 0 leaves it out.
        pretraining_learning_rate: of Adam, in that stage.
        pretraining_patience: after how many validations that did not improve it ends.
        progressive: render the first effect of the chain only, and in each stage one more. The encoder
            predicts the parameters of all from the beginning; those of later effects get no gradient.
    """

    pretraining_epochs: int = 0
    pretraining_learning_rate: float = 1e-3
    pretraining_patience: int = 4
    progressive: bool = False


class Stage(NamedTuple):
    """One stage: its name, how many effects of the chain it has, and whether they are rendered."""

    name: str
    effects: int
    renders: bool


class Task(pl.LightningModule):
    """An encoder, the effects that it operates, and a loss (the paper, section 2).

    A batch, from a data module of :mod:`dfx.datasets`, holds ``input`` and ``target``, each ``(batch, channels,
    window.samples)``, and ``restart``, bool ``(batch,)``. A task is in one of its stages, the last to begin
    with: ``chain`` and ``window`` are that stage's, and ``first_step`` is the number of steps before it.

    Args:
        effects: the chain, in the order of the signal: for each effect the arguments of
            :class:`~dfx.effects.EffectSpec`, or one.
        sample_rate: in Hz, of all audio.
        channels: of all audio.
        scale: ``linear`` or ``log``, of every trained parameter for which ``effects`` say nothing; by default the
            host's.
        context_samples: what the encoder hears around a frame.
        frame_samples: what is rendered with one set of parameters.
        frames_per_step: how many consecutive frames a step renders and the loss compares as one.
        treatment: what is done to all audio before anything hears it.
        augmentation: what is done to excerpts in training and validation.
        stages: in which stages to train.
        encoder, loss, gradient, optimizer: options of the parts.
        rendering: who renders; it may differ between a checkpoint and the run that loads it.
        keep_dead_parameters: train although some parameters do nothing to the sound.

    Raises:
        EffectError: if the chain cannot be built.
        UserError: if a step has no frame or is too short for the loss, or if frames do not fit the encoder.
    """

    def __init__(
        self,
        effects: list[dict[str, Any]],
        sample_rate: int = 22050,
        channels: int = 1,
        scale: Scale | None = None,
        context_samples: int = 40960,
        frame_samples: int = 1024,
        frames_per_step: int = 1,
        treatment: Treatment = Treatment(),
        augmentation: Augmentation = Augmentation(),
        stages: StageOptions = StageOptions(),
        encoder: EncoderOptions = EncoderOptions(),
        loss: LossOptions = LossOptions(),
        gradient: GradientOptions = GradientOptions(),
        optimizer: OptimizerOptions = OptimizerOptions(),
        rendering: RenderingOptions = RenderingOptions(),
        keep_dead_parameters: bool = False,
    ) -> None:
        super().__init__()
        if frames_per_step < 1:
            raise UserError(f"frames_per_step is {frames_per_step}; a step has at least one")
        # Mappings and not EffectSpecs in the signature: jsonargparse would fill what an effect on the command
        # line leaves out with what stands at its place in the config.
        specs = [EffectSpec.of(effect) for effect in effects]
        specs = [dataclasses.replace(spec, scale=spec.scale or scale) for spec in specs]
        self.whole_chain = ChainSpec(specs, sample_rate, channels)
        self.treatment = treatment
        self.augmentation = augmentation
        self.options = optimizer
        self.stage_options = stages
        self.keep_dead_parameters = keep_dead_parameters
        self._gradient = gradient
        self._rendering = rendering
        self._window = Window(context_samples, frame_samples, frames=frames_per_step)
        self.stages = self._make_stages()
        self.first_step = 0
        # Here first, with the whole chain: one that cannot be built fails before the data are read.
        self.enter_stage(len(self.stages) - 1)
        self.encoder = Encoder(
            self.whole_chain.space.defaults.tolist(),
            sample_rate,
            encoder,
            context_samples,
            frame_samples,
            rand=distributed.rand_rows,
        )
        defaults = torch.as_tensor(self.whole_chain.space.defaults, dtype=torch.float32)
        self.register_buffer("defaults", defaults, persistent=False)
        self.loss = make_loss(loss)
        # A step that is too short for the loss fails here as well.
        silence = torch.zeros(1, channels, self.window.step_samples)
        self.loss(silence, silence)
        # Plain types only, so that checkpoints load without running code from them.
        self.arguments = {
            "effects": [dataclasses.asdict(spec) for spec in specs],
            "sample_rate": sample_rate,
            "channels": channels,
            "context_samples": context_samples,
            "frame_samples": frame_samples,
            "frames_per_step": frames_per_step,
            "treatment": dataclasses.asdict(treatment),
            "augmentation": dataclasses.asdict(augmentation),
            "stages": dataclasses.asdict(stages),
            "encoder": dataclasses.asdict(encoder),
            "loss": dataclasses.asdict(loss),
            "gradient": dataclasses.asdict(gradient),
            "optimizer": dataclasses.asdict(optimizer),
        }

    # --- stages --------------------------------------------------------------------------------------

    def _make_stages(self) -> list[Stage]:
        """The stages, in order; an effect that trains nothing joins the stage of the next that does."""
        recipes = self.whole_chain.recipes
        training = [i + 1 for i, recipe in enumerate(recipes) if recipe.parameters]
        lengths = [*training[:-1], len(recipes)] if self.stage_options.progressive else [len(recipes)]
        stages = [Stage(f"stage_{i + 1}", length, True) for i, length in enumerate(lengths)]
        if self.stage_options.pretraining_epochs:
            stages.insert(0, Stage("pretraining", len(recipes), False))
        return stages

    def enter_stage(self, index: int) -> None:
        """Goes on with another stage: its chain, its latency, and an effect layer that has heard nothing.

        Args:
            index: of the stage in ``stages``.
        """
        self.stage = self.stages[index]
        # With the names that they have in the whole chain.
        effects = [
            dataclasses.replace(spec, name=recipe.name)
            for spec, recipe in zip(self.whole_chain.effects, self.whole_chain.recipes)
        ]
        self.chain = ChainSpec(effects[: self.stage.effects], self.whole_chain.sample_rate, self.whole_chain.channels)
        self.window = dataclasses.replace(self._window, latency_samples=self.chain.build().latency_samples)
        self.effect_layer = self._make_effect_layer(self.chain)

    def _make_effect_layer(self, chain: ChainSpec) -> EffectLayer:
        later = set(self.whole_chain.space.names) - set(chain.space.names)
        epsilon_of = {name: epsilon for name, epsilon in self._gradient.epsilon_of.items() if name not in later}
        return EffectLayer(chain, dataclasses.replace(self._gradient, epsilon_of=epsilon_of), self._rendering)

    # --- a step --------------------------------------------------------------------------------------

    def forward(self, input: Tensor, restart: Tensor) -> tuple[Tensor, Tensor]:
        """The next step of every lane.

        Args:
            input: ``(batch, channels, window.samples)``.
            restart: bool ``(batch,)``, the lanes that begin a new excerpt.

        Returns:
            The output, ``(batch, channels, window.step_samples)``, and the parameters of its frames, ``(batch,
            frames, P)`` in (0, 1), ``P`` those of the stage's chain.
        """
        parameters = self.encode(self.window.context(input))
        return self.effect_layer(self.window.step(input), parameters, restart), parameters

    def encode(self, context: Tensor) -> Tensor:
        """The parameters of the stage's chain for consecutive frames, as :class:`~dfx.encoder.Encoder`."""
        return self.encoder(context)[..., : len(self.chain.parameters)]

    def _loss_of(self, batch: dict[str, Tensor]) -> Tensor:
        # In training, each of several processes has a part of the batch; in validation, all have all of it.
        whole = distributed.gather_rows if self.training else lambda rows: rows
        if not self.stage.renders:
            parameters = self.encoder(self.window.context(batch["input"]))
            return (whole(parameters) - self.defaults).square().mean()
        output, _ = self(batch["input"], batch["restart"])
        return self.loss(whole(output), whole(self.window.delayed_step(batch["target"])))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self._loss_of(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["input"]))
        self.log("stage", float(self.stages.index(self.stage)), batch_size=1)
        return loss

    def setup(self, stage: str) -> None:
        """Before training, looks for parameters that do nothing.

        Raises:
            EffectError: if there are any, by name.
        """
        distributed.synchronize_batch_norm(self.encoder)
        if stage != "fit" or self.keep_dead_parameters:
            return
        # All of them, whatever the stage: not after days of training the first.
        dead = self._make_effect_layer(self.whole_chain).dead_parameters()
        if dead:
            raise EffectError(
                f"{', '.join(dead)} would be trained but do nothing to the sound (see python -m dfx.effects.probe): "
                "leave them out of `train`, or set `keep_dead_parameters: true`"
            )

    def configure_callbacks(self) -> list[pl.Callback]:
        patience = self.options.patience if self.stage.renders else self.stage_options.pretraining_patience
        if patience is None:
            return []
        # Not strict: without validation there is nothing to wait for.
        return [EarlyStopping("validation/loss", patience=patience, strict=False)]

    def on_fit_start(self) -> None:
        per_frame = self.effect_layer.renderings if self.stage.renders else 0
        where = f"{self.stage.name}: " if len(self.stages) > 1 else ""
        if distributed.is_rank_zero():
            trained = len(self.chain.parameters)
            print(f"{where}{trained} trained parameters; {per_frame} renderings an example and frame")
        for logger in self.loggers:
            logger.log_hyperparams({"renderings_per_example": per_frame})

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.effect_layer.progress = min(1.0, self.global_step / self._total_steps)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.is_last_batch:
            self.effect_layer.end_excerpts()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        size = len(batch["input"])
        # The same on all ranks but for their machines' rounding, and yet they must decide alike.
        self.log("validation/loss", self._loss_of(batch), prog_bar=True, batch_size=size, sync_dist=True)
        if self.stage.renders:
            input, target = (self.window.delayed_step(batch[side]) for side in ("input", "target"))
            self.log("validation/loss_of_input", self.loss(input, target), batch_size=size, sync_dist=True)

    def on_validation_end(self) -> None:
        # Not left to Lightning, which steps after the checkpoint of the epoch: it would resume without.
        if self.trainer.state.fn == "fit" and isinstance(self.lr_schedulers(), ReduceLROnPlateau):
            self.lr_schedulers().step(self.trainer.callback_metrics["validation/loss"])

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        for method, audio in {"input": batch["input"], "output": self.render(batch["input"]).output}.items():
            compared = compare(audio.cpu(), batch["target"].cpu(), self.chain.sample_rate)
            for metric, value in compared.metrics.items():
                self.log(f"test/{method}/{metric}", value, batch_size=1)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Rendering:
        return self.render(batch["input"])

    def treat(self, audio: Tensor) -> Tensor:
        """A whole recording from outside, ``(channels, samples)`` at the task's sample rate, as the task hears it."""
        return self.treatment(audio.cpu(), self.chain.sample_rate)

    def render(self, audio: Tensor) -> Rendering:
        """A whole recording that is treated already; see :mod:`dfx.tasks.framewise`.

        Args:
            audio: ``(channels, samples)`` at the task's sample rate, from :meth:`treat` or a data module.
        """
        return render(self, audio.cpu())

    def configure_optimizers(self) -> Any:
        self._total_steps = max(1.0, float(self.trainer.estimated_stepping_batches))
        if not self.stage.renders:
            return torch.optim.Adam(self.parameters(), lr=self.stage_options.pretraining_learning_rate)
        optimizer = torch.optim.Adam(self.parameters(), lr=self.options.learning_rate)
        if self.options.schedule == "constant":
            return optimizer
        if self.options.schedule == "plateau":
            plateau = ReduceLROnPlateau(optimizer, factor=0.2, patience=20, cooldown=1, min_lr=1.6e-6)
            monitored = {"scheduler": plateau, "monitor": "validation/loss", "strict": False}
            return {"optimizer": optimizer, "lr_scheduler": monitored}

        def factor(step: int) -> float:
            rise = min(1.0, 20 * (step + 1) / self._total_steps)
            return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self._total_steps)))

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        data = getattr(self.trainer, "datamodule", None)
        checkpoint["dfx"] = {
            "task": type(self).__name__,
            "arguments": self.arguments,
            "data": getattr(data, "arguments", {}),
            "streaming": self.effect_layer.streaming_state(),
            "ranks": distributed.world_size(),
            "stage": self.stages.index(self.stage),
            "first_step": self.first_step,
            "stage_has_ended": self.trainer.should_stop,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = self.check_checkpoint(checkpoint)
        self.enter_stage(saved["stage"])
        if self.trainer.datamodule is not None:
            self.trainer.datamodule.window = self.window
        if self.trainer.state.fn == "fit":
            theirs = saved.get("ranks", 1)
            ours = distributed.world_size()
            if theirs != ours:
                raise CheckpointError(
                    f"the run was trained in {theirs} processes and cannot go on in {ours}, to the bit: "
                    f"resume it in {theirs}"
                )
            self.effect_layer.load_streaming_state(saved["streaming"])
            # Lightning forgets that a run was stopped early, and would train for another epoch.
            self.trainer.should_stop = saved["stage_has_ended"]

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """What dfx has saved in a checkpoint of this task.

        Raises:
            CheckpointError: if it is not of this task, or was trained with other options.
        """
        saved = checkpoint.get("dfx")
        if saved is None:
            raise CheckpointError("the checkpoint was not written by dfx")
        if saved["task"] != type(self).__name__:
            raise CheckpointError(f"the checkpoint is of the task {saved['task']}, not of {type(self).__name__}")
        # Ranges and fixed values may change, for instance after an effect has failed at the end of a range.
        theirs = dict(saved["arguments"], effects=self._parameter_names(saved["arguments"]))
        ours = dict(self.arguments, effects=self.whole_chain.space.names)
        free = {"loss", "gradient", "optimizer"}
        other = [name for name in ours.keys() - free if theirs.get(name) != ours[name]]
        if other:
            raise CheckpointError(f"the checkpoint was trained with other {' and '.join(sorted(other))}")
        return saved

    @staticmethod
    def _parameter_names(arguments: dict[str, Any]) -> list[str]:
        specs = [EffectSpec.of(effect) for effect in arguments["effects"]]
        return ChainSpec(specs, arguments["sample_rate"], arguments["channels"]).space.names


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message says why."""
