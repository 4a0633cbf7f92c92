"""The base of all tasks: an encoder that predicts the parameters of a chain of effects, trained in stages."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from dfx import distributed
from dfx.blackbox import EffectLayer, GradientOptions, RenderingOptions
from dfx.blackbox.workers import cores_per_rank
from dfx.datasets import PairedAudio
from dfx.datasets.frames import Window
from dfx.datasets.treatment import Augmentation, Treatment
from dfx.effects import ChainSpec, EffectError, EffectSpec
from dfx.effects.parameter import Scale
from dfx.encoder import Encoder, EncoderOptions, Summary
from dfx.errors import CHANNELS, SAMPLE_RATES, UserError, check_numbers
from dfx.losses import LossOptions, make_loss
from dfx.metrics import compare
from dfx.render.automation import Interpolation
from dfx.render.streaming import Rendering, StreamingOptions, render_array
from dfx.tasks.balance import Line, find_balance
from dfx.tasks.checkpoint import (
    CheckpointError,
    SavedTask,
    check_foreign,
    check_training_state,
    fixed_arguments,
    to_plain,
)
from dfx.tasks.optimizer import OptimizerOptions, make_optimizer
from dfx.tasks.stages import StageOptions, first_effects, make_stages
from dfx.tasks.start import Start, describe_start, search_start

_NOT_SAVED = ("self", "__class__", "scale", "rendering", "keep_dead_parameters")
"""Arguments that a checkpoint does not hold: ``scale`` is part of the effects, the others belong to a run."""


_OF_THE_RUN = {
    "data": [
        "batch_size",
        "excerpt_seconds",
        "steps_per_epoch",
        "validation_steps",
        "seed",
        "rows",
        "fold",
        "degradation",
    ]
}


class Task(pl.LightningModule):
    """An encoder, a chain of effects and a loss: the method of the paper.

    A batch, from a data module of :mod:`dfx.datasets`, holds ``input`` and ``target``, each ``(batch, channels,
    window.samples)``, and ``restart``, bool ``(batch,)``. ``chain``, ``window`` and ``effect_layer`` are those of the
    current ``stage``, at first the last; ``first_step`` is the number of steps of the stages before, and ``start_from``
    the name or path of the model with whose weights the run began. ``start`` is the setting at which the encoder began,
    if it was searched.

    Args:
        effects: the chain, in signal order: for each effect an :class:`~dfx.effects.EffectSpec` or a mapping of its
            arguments.
        sample_rate: of all audio, in Hz.
        channels: of all audio, 1 or 2.
        scale: ``linear`` or ``log``, for trained parameters without a scale in ``effects``; by default the host's.
        context_samples: length of the context from which the encoder predicts the parameters of a frame.
        frame_samples: length of a frame, which is rendered with constant parameters.
        frames_per_step: consecutive frames that a step renders, and the loss compares as one signal.
        treatment: preprocessing of all audio.
        augmentation: random changes to excerpts in training and validation.
        stages: the stages of training.
        encoder, loss, gradient, optimizer: options of the parts.
        rendering: the workers of the effects; a run may change them when it loads a checkpoint.
        keep_dead_parameters: train even if some parameters have no effect on the output.

    Raises:
        EffectError: if the chain cannot be built.
        UserError: if a number is out of its range, a step too short for the loss, or a frame does not fit the encoder.
    """

    takes_reference: ClassVar[bool] = False
    """True if ``encode`` needs a reference recording besides the context, as in :class:`~dfx.tasks.StyleTransfer`."""

    defaults: Tensor

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
        given = dict(locals())  # before there are others
        super().__init__()
        check_numbers(given, sample_rate=SAMPLE_RATES, channels=CHANNELS)
        check_numbers(given, **dict.fromkeys(("context_samples", "frame_samples"), "1..100000000"))
        check_numbers(given, frames_per_step="1..65536")
        # Mappings and not EffectSpecs in the signature: for an effect on the command line, jsonargparse would fill in
        # missing options from the effect at the same position of the config.
        specs = [EffectSpec.of(effect) for effect in effects]
        specs = [dataclasses.replace(spec, scale=spec.scale or scale) for spec in specs]
        given["effects"] = specs
        self.arguments = {name: to_plain(value) for name, value in given.items() if name not in _NOT_SAVED}
        self.whole_chain = ChainSpec(specs, sample_rate, channels)
        self.treatment = treatment
        self.augmentation = augmentation
        self.optimizer_options = optimizer
        self.stage_options = stages
        self.keep_dead_parameters = keep_dead_parameters
        self._gradient = gradient
        self._rendering = rendering
        self._window = Window(context_samples, frame_samples, frames=frames_per_step)
        self.stages = make_stages(self.whole_chain, stages)
        self.first_step = 0
        self.start_from: str | None = None
        self.start: Start | None = None
        # The last stage has the whole chain: if it cannot be built, this fails before the data are read.
        self.enter_stage(len(self.stages) - 1)
        defaults = self.whole_chain.space.defaults.tolist()
        lengths = context_samples, frame_samples
        rand_rows, takes_reference = distributed.rand_rows, self.takes_reference
        self.encoder = Encoder(defaults, sample_rate, encoder, *lengths, rand_rows, takes_reference)
        self.register_buffer("defaults", torch.as_tensor(defaults, dtype=torch.float32), persistent=False)
        self.loss = make_loss(loss)
        # Fails if a step is too short for the loss.
        silence = torch.zeros(1, channels, self.window.step_samples)
        self.loss(silence, silence)

    def enter_stage(self, index: int, data: PairedAudio | None = None) -> None:
        """Switch to a stage: its chain, its window, and an effect layer without state.

        Args:
            index: of the stage in ``stages``.
            data: takes the window of the stage, and its augmentation: in pretraining none, as in the paper's code.
        """
        self.stage = self.stages[index]
        self.chain, latency_samples = first_effects(self.whole_chain, self.stage.effects)
        self.window = dataclasses.replace(self._window, latency_samples=latency_samples)
        self.effect_layer = self._make_effect_layer(self.chain)
        if data is not None:
            data.window = self.window
            data.augmentation = self.augmentation if self.stage.renders else Augmentation()

    def _make_effect_layer(self, chain: ChainSpec) -> EffectLayer:
        later = set(self.whole_chain.space.names) - set(chain.space.names)
        epsilon_of = {name: epsilon for name, epsilon in self._gradient.epsilon_of.items() if name not in later}
        return EffectLayer(chain, dataclasses.replace(self._gradient, epsilon_of=epsilon_of), self._rendering)

    def forward(self, input: Tensor, restart: Tensor) -> tuple[Tensor, Tensor]:
        """Render the next step of every lane.

        Args:
            input: ``(batch, channels, window.samples)``.
            restart: bool ``(batch,)``, true for lanes that begin a new excerpt.

        Returns:
            The output, ``(batch, channels, window.step_samples)``, and the parameters of its frames, ``(batch,
            frames, P)`` in (0, 1), for the ``P`` parameters of the stage's chain.
        """
        parameters = self.encode(self.window.context(input))
        return self.effect_layer(self.window.step(input), parameters, restart), parameters

    def encode(self, context: Tensor) -> Tensor:
        """Predict the parameters of the stage's chain for consecutive frames, as :class:`~dfx.encoder.Encoder`."""
        return self._encode_all(context)[..., : len(self.chain.parameters)]

    def _encode_all(self, context: Tensor) -> Tensor:
        """Predict the parameters of the whole chain."""
        return self.encoder(context)

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of a batch; in pretraining, the mean square distance of the parameters to the defaults."""
        # In training every rank has a part of the batch; in validation, every rank has all of it.
        gather = distributed.gather_rows if self.training else lambda rows: rows
        if not self.stage.renders:
            parameters = self._encode_all(self.window.context(batch["input"]))
            return (gather(parameters) - self.defaults).square().mean()
        output, _ = self(batch["input"], batch["restart"])
        return self.loss(gather(output), gather(self.window.delayed_step(batch["target"])))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.compute_loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["input"]))
        self.log("stage", float(self.stages.index(self.stage)), batch_size=1)
        return loss

    def setup(self, stage: str) -> None:
        """Divide the cores among ranks, and check before training that every parameter has an effect on the output.

        Raises:
            EffectError: with the names of those that have none.
        """
        distributed.synchronize_batch_norm(self.encoder)
        distributed.count_ranks_on_cores()
        if distributed.ranks_on_cores() > 1:
            torch.set_num_threads(min(torch.get_num_threads(), cores_per_rank()))
        self._losses_of_input: dict[int, Tensor] = {}  # of the batches of validation, which are always the same
        if stage != "fit" or self.keep_dead_parameters:
            return
        # Of the whole chain in any stage: it should not fail after days of training the first effects.
        dead = self._make_effect_layer(self.whole_chain).dead_parameters()
        if dead:
            raise EffectError(
                f"{', '.join(dead)} would be trained but do nothing to the output (see python -m dfx.effects.probe): "
                "leave them out of `train`, or set `keep_dead_parameters: true`"
            )

    def _find_start(self) -> None:
        """Search where training starts on the training pairs, and make the encoder start there."""
        evaluations, follows_summary = self.stage_options.search_evaluations, self._follows_summary
        if self.start is not None or not (evaluations or follows_summary):
            return  # a resumed run, or a later stage, has its start
        if self._data is None:
            option = "stages.search_evaluations" if evaluations else "encoder.backbone summary"
            raise UserError(f"{option} needs the training pairs of a PairedAudio data module")
        pairs, seed = self._data.whole_pairs("train"), self._data.seed
        progress = None if self.trainer.progress_bar_callback else False
        found: list[tuple[Start, Line | None]] = []
        if distributed.is_rank_zero():
            setting = self.defaults.cpu()
            if evaluations:
                start = search_start(self.whole_chain, self.loss, pairs, evaluations, seed, progress)
                found, setting = [(start, None)], torch.tensor(start["parameters"])
            if follows_summary:
                found = [find_balance(self.whole_chain, self.encoder, self.loss, pairs, setting, seed, progress)]
        ((start, line),) = distributed.gather_list(found)
        self._start_at(start)
        if line is None:
            self.encoder.start_at(self.defaults)
        else:
            self.encoder.start_at_line(*line)
        if distributed.is_rank_zero():
            where = describe_start(start, self.takes_reference)
            print(f"training starts at {where} for the {len(pairs)} training pairs")

    @property
    def _follows_summary(self) -> bool:
        return isinstance(self.encoder.backbone, Summary) and self.start_from is None

    def _start_at(self, start: Start | None) -> None:
        self.start = start
        if start:
            self.defaults.copy_(torch.tensor(start["parameters"]))

    @property
    def _optimizer_of_stage(self) -> OptimizerOptions:
        if self.stage.renders:
            return self.optimizer_options
        rate, patience = self.stage_options.pretraining_learning_rate, self.stage_options.pretraining_patience
        return dataclasses.replace(self.optimizer_options, learning_rate=rate, schedule="constant", patience=patience)

    def configure_callbacks(self) -> list[pl.Callback]:
        patience = self._optimizer_of_stage.patience
        # Not strict: a run without validation has no such metric.
        return [] if patience is None else [EarlyStopping("validation/loss", patience=patience, strict=False)]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        self._total_steps = max(1.0, float(self.trainer.estimated_stepping_batches))
        return make_optimizer(self.parameters(), self._optimizer_of_stage, self._total_steps)

    def on_fit_start(self) -> None:
        self._find_start()
        per_frame = self.effect_layer.renderings if self.stage.renders else 0
        if distributed.is_rank_zero():
            prefix = f"{self.stage.name}: " if len(self.stages) > 1 else ""
            trained = len(self.chain.parameters)
            print(f"{prefix}{trained} trained parameters; {per_frame} renderings an example and frame")
        for logger in self.loggers:
            logger.log_hyperparams({"renderings_per_example": per_frame})

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.effect_layer.progress = min(1.0, self.global_step / self._total_steps)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.is_last_batch:
            self.effect_layer.end_excerpts()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        size = len(batch["input"])
        # Ranks differ by rounding at most, but must agree on the best weights and the end of a stage.
        self.log("validation/loss", self.compute_loss(batch), prog_bar=True, batch_size=size, sync_dist=True)
        if self.stage.renders:
            if batch_idx not in self._losses_of_input:
                input, target = (self.window.delayed_step(batch[side]) for side in ("input", "target"))
                self._losses_of_input[batch_idx] = self.loss(input, target)
            loss_of_input = self._losses_of_input[batch_idx]
            self.log("validation/loss_of_input", loss_of_input, batch_size=size, sync_dist=True)

    def on_validation_end(self) -> None:
        # Lightning would step after the epoch's checkpoint, which would then lack the step.
        scheduler = self.lr_schedulers()
        if self.trainer.state.fn == "fit" and isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(self.trainer.callback_metrics["validation/loss"])

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        output = torch.from_numpy(self.render(batch["input"]).audio)
        for method, audio in {"input": batch["input"], "output": output}.items():
            compared = compare(audio.cpu(), batch["target"].cpu(), self.chain.sample_rate)
            for metric, value in compared.metrics.items():
                self.log(f"test/{method}/{metric}", value, batch_size=1)
            for reason in dict.fromkeys(compared.left_out.values()):
                print(f"pair {batch_idx}, {method}: metrics are undefined: {reason}")

    def treat(self, audio: Tensor) -> Tensor:
        """Apply the task's treatment to a whole recording, ``(channels, samples)`` at the task's sample rate."""
        return self.treatment(audio.cpu(), self.chain.sample_rate)

    def render(self, audio: Tensor, interpolation: Interpolation = "hold") -> Rendering:
        """Render a whole recording from a fresh start.

        Args:
            audio: treated, ``(channels, samples)`` at the task's sample rate: from :meth:`treat` or a data module.
            interpolation: how parameters move between frames; by default as in training.
        """
        was_training = self.training
        self.eval()
        try:
            options = StreamingOptions(interpolation, treated=True)
            return render_array(self, audio.cpu().numpy(), self.chain.sample_rate, options)
        finally:
            self.train(was_training)

    @property
    def _data(self) -> PairedAudio | None:
        data = getattr(self.trainer, "datamodule", None)
        return data if isinstance(data, PairedAudio) else None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["dfx"] = SavedTask(
            task=type(self).__name__,
            arguments=self.arguments,
            data=getattr(self._data, "arguments", {}),
            streaming=self.effect_layer.streaming_state(),
            ranks=distributed.world_size(),
            stage=self.stages.index(self.stage),
            first_step=self.first_step,
            start_from=self.start_from,
            start=self.start,
            stage_has_ended=self.trainer.should_stop,
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = self.check_checkpoint(checkpoint)
        self.enter_stage(saved["stage"], self._data)
        resumes = self.trainer.state.fn == "fit"
        if self._data and saved["data"]:
            self._data.restore(saved["data"], resumes)
        if not resumes:
            return
        theirs, ours = saved.get("ranks", 1), distributed.world_size()
        if theirs != ours:
            fault = f"the run was trained in {theirs} processes and cannot go on in {ours} with the same result"
            raise CheckpointError(f"{fault}: resume it in {theirs}")
        self._check_resumption(checkpoint, saved)
        self._start_at(saved.get("start"))
        self.effect_layer.load_streaming_state(saved["streaming"])
        # Lightning does not save that a run was stopped early, and would train for another epoch.
        self.trainer.should_stop = saved["stage_has_ended"]

    def _check_resumption(self, checkpoint: dict[str, Any], saved: SavedTask) -> None:
        """Check that a run resumes with the options that it began with: the state of most would replace other ones."""
        data = self._data.arguments if self._data else {}
        ours = {**self.arguments, "data": data, "run": {"start_from": self.start_from}}
        begun = {"start_from": saved.get("start_from")}
        theirs: dict[str, Any] = {**saved["arguments"], "data": saved["data"], "run": begun}
        differing = [
            f"{part}.{name} ({theirs[part][name]}, now {value})"
            for part in ("loss", "gradient", "optimizer", "data", "run")
            for name, value in ours[part].items()
            if name in _OF_THE_RUN.get(part, ours[part]) and theirs[part].get(name, value) != value
        ]
        if differing:
            raise CheckpointError(f"the run began with other options: {', '.join(differing)}; resume it with the same")
        check_training_state(checkpoint, self.trainer.fit_loop.state_dict(), list(self.parameters()))
        begun = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["started"]
        for name, done in {"max_epochs": begun, "max_steps": checkpoint["global_step"]}.items():
            limit = getattr(self.trainer, name)
            if limit is not None and 0 <= limit < done:
                raise CheckpointError(f"the run has reached {done} of trainer.{name}: resume it with no less than that")

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> SavedTask:
        """Return the entry ``dfx`` of a checkpoint from which this task can resume.

        Raises:
            CheckpointError: if it is of another task, or was trained with other arguments.
        """
        saved, task = checkpoint.get("dfx"), type(self).__name__
        if saved is None:
            raise CheckpointError("the checkpoint was not written by dfx")
        if saved["task"] != task:
            raise CheckpointError(f"the checkpoint is of the task {saved['task']}, not of {task}")
        check_foreign(saved["arguments"], self.arguments)
        theirs, ours = _with_defaults(fixed_arguments(saved["arguments"])), fixed_arguments(self.arguments)
        differing = sorted(name for name in ours if theirs.get(name) != ours[name])
        if differing:
            raise CheckpointError(f"the checkpoint was trained with other {' and '.join(differing)}")
        if not 0 <= saved["stage"] < len(self.stages):
            raise CheckpointError(f"the checkpoint is of the stage {saved['stage']}, and there are {len(self.stages)}")
        return saved

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        """Load the weights; raises :class:`~dfx.tasks.CheckpointError` if they are not those of this task."""
        for name, weights in state_dict.items():
            if isinstance(weights, Tensor) and not weights.isfinite().all():
                raise CheckpointError(f"the weights {name} of the checkpoint are not finite: use an earlier one")
        try:
            return super().load_state_dict(state_dict, *args, **options)
        except (RuntimeError, TypeError, AttributeError) as error:
            fault = " ".join(str(error).split())
            raise CheckpointError(f"the weights of the checkpoint do not fit the task: {fault}") from None

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **options: Any) -> NoReturn:
        """Raise an error: Lightning would import the class that a checkpoint names."""
        raise CheckpointError("load a checkpoint with dfx.tasks.load_task, which runs no code from it")


def _with_defaults(saved: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of a checkpoint with the options that it lacks because they were added later."""
    parameters = inspect.signature(Task.__init__).parameters
    completed = dict(saved)
    for name in saved.keys() & parameters.keys():
        default = to_plain(parameters[name].default)
        if isinstance(default, dict) and isinstance(saved[name], dict):
            completed[name] = {**default, **saved[name]}
    return completed
