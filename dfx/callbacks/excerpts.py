"""Audio, automation and parameter statistics of a model on a few validation excerpts while it trains."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import soundfile
import torch
from torch import Tensor

from dfx.callbacks.media import ABOUT, AUTOMATION, AUTOMATION_IMAGE, PARAMETERS, SIDES, SPECTROGRAMS
from dfx.errors import COUNTS, check_numbers
from dfx.figures import draw_excerpt_automation, draw_excerpt_spectrograms
from dfx.loggers.best_effort import best_effort
from dfx.loggers.wandb import WandbRun
from dfx.tasks import Task
from dfx.writing import file_stem, write_csv, write_json

AT_BOUNDS = 0.01
"""A parameter closer than this to 0 or 1 counts as at its bound: the default epsilon of the estimators."""

_PAUSE_SECONDS = 0.3
_PROBED_SECONDS = 2.0
"""Length of each excerpt for the sensitivity, which takes one rendering per parameter."""


@dataclass
class LoggingOptions:
    """Options of the logging besides losses and metrics.

    Args:
        excerpts: number of validation excerpts that are logged as audio and figures, always the same; 0 for none.
        excerpt_seconds: maximum length of each.
        media_every_n_validations: interval of these media; the first and the last validation always have them.
        health_every_n_steps: interval at which the gradient and the time of a training step are measured.

    Raises:
        UserError: if an option is out of its range.
    """

    excerpts: int = 3
    excerpt_seconds: float = 10.0
    media_every_n_validations: int = 5
    health_every_n_steps: int = 20

    def __post_init__(self) -> None:
        check_numbers(vars(self), excerpts="0..1000", excerpt_seconds="(0, 3600]")
        check_numbers(vars(self), media_every_n_validations=COUNTS, health_every_n_steps=COUNTS)


class Excerpts(pl.Callback):
    """Saves and logs the output of fixed validation excerpts, and statistics of the parameters over all of validation.

    Files are in the run's ``folder``. The excerpts are spread evenly over the validation set; their audio comes from
    the validation itself. Only :meth:`~dfx.blackbox.EffectLayer.sensitivity` renders more.

    Every validation logs ``parameters/share_at_bounds``, the share of parameters, over all frames, that are closer
    than 0.01 to 0 or 1, and ``values/EFFECT.PARAMETER/mean`` and ``/deviation``, over all frames and in the parameter's
    unit, and rewrites ``parameters.csv``. The first validation, every
    ``media_every_n_validations``-th after it, and the end of the stage

    - log ``parameters/dead``: the number of parameters without effect on the first two seconds of the excerpts when
      one of them alone moves by a twentieth of its range;
    - write ``media/step_NUMBER``: ``NAME_{input,output,target}.flac``, all of one excerpt at the same gain,
      ``automation.csv``, ``spectrograms.png``, ``automation.png``, ``parameters.csv`` and ``about.json``. The folders
      of the first, the best (by validation loss) and the last step are kept. Stages but the last have their own folder;
    - log to W&B ``media/audio`` (input, output and target one after the other), ``media/spectrograms``,
      ``media/automation``, ``tables/automation`` and ``tables/parameters``.

    With several ranks, all of this covers the validation examples of rank 0.
    """

    def __init__(self, folder: Path, options: LoggingOptions) -> None:
        self._folder, self._options = folder, options
        self._validations = 0
        self._validation: _Validation | None = None
        self._has_media = True
        self._starts: dict[tuple[int, int], str] | None = None

    def state_dict(self) -> dict[str, int]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._validations = state_dict["validations"]

    @best_effort
    def on_validation_start(self, trainer: pl.Trainer, pl_module: Task) -> None:
        self._validation = None
        if trainer.state.fn == "fit" and trainer.is_global_zero and pl_module.stage.renders:
            if self._starts is None:
                self._starts = self._choose_excerpts(trainer, pl_module.chain.sample_rate)
            self._validation = _Validation(pl_module, self._options.excerpt_seconds, self._starts)

    @best_effort
    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Task, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._validation:
            self._validation.add_batch(batch, batch_idx)

    @best_effort
    def on_validation_end(self, trainer: pl.Trainer, pl_module: Task) -> None:
        if not self._validation:
            return
        self._validation.finish(trainer)
        self._has_media = False
        at_bounds = {"parameters/share_at_bounds": self._validation.share_at_bounds}
        self._log(trainer, self._validation, {**at_bounds, **self._validation.spread})
        write_csv(self._folder / PARAMETERS, self._validation.parameters)
        if self._validations % self._options.media_every_n_validations == 0:
            self._save_media(trainer, pl_module, self._validation)
        self._validations += 1

    @best_effort
    def on_train_end(self, trainer: pl.Trainer, pl_module: Task) -> None:
        if self._validation and not self._has_media:
            self._save_media(trainer, pl_module, self._validation)

    def _choose_excerpts(self, trainer: pl.Trainer, sample_rate: int) -> dict[tuple[int, int], str]:
        """Return the names of the excerpts by the batch and the lane in which they begin."""
        loader: Any = trainer.val_dataloaders
        batches = itertools.islice(loader.batch_sampler, int(min(trainer.num_val_batches[0], len(loader))))
        first_steps = {
            (index, lane): step.excerpt
            for index, steps in enumerate(batches)
            for lane, step in enumerate(steps)
            if step.number == 0
        }
        chosen = np.linspace(0, len(first_steps) - 1, min(self._options.excerpts, len(first_steps))).round().astype(int)
        names: dict[tuple[int, int], str] = {}
        for place, excerpt in (list(first_steps.items())[index] for index in chosen):
            start = f"_{excerpt.start / sample_rate:.1f}s" if excerpt.start else ""
            names[place] = file_stem(loader.dataset.pairs.pairs[excerpt.pair].name + start, names.values())
        return names

    def _save_media(self, trainer: pl.Trainer, task: Task, validation: _Validation) -> None:
        self._has_media = True
        excerpts = validation.excerpts()
        if not excerpts:
            return
        validation.measure_sensitivity(excerpts)
        dead = sum(row["sensitivity_db"] == -math.inf for row in validation.parameters)
        self._log(trainer, validation, {"parameters/dead": dead})
        write_csv(self._folder / PARAMETERS, validation.parameters)
        media = self._folder / "media"
        if task.stage != task.stages[-1]:
            media /= task.stage.name
        folder = media / f"step_{validation.step:06}"
        validation.write(folder, excerpts)
        _prune(media)
        for logger in trainer.loggers:
            if isinstance(logger, WandbRun):
                audio = [excerpt.in_one_player(task.chain.sample_rate) for excerpt in excerpts]
                images = {"media/spectrograms": folder / SPECTROGRAMS, "media/automation": folder / AUTOMATION_IMAGE}
                automation = validation.automation(excerpts)
                tables = {"tables/automation": automation, "tables/parameters": validation.parameters}
                logger.log_media(validation.step, {"media/audio": audio}, images, tables)

    @staticmethod
    def _log(trainer: pl.Trainer, validation: _Validation, metrics: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=validation.step)


class _Excerpt(NamedTuple):
    """An excerpt as it was validated, with all sides aligned and at one gain, at which none of them clips."""

    name: str
    sides: dict[str, np.ndarray]  # (channels, samples) each
    effect_input: Tensor  # (channels, samples)
    parameters: Tensor  # (frames, P), in [0, 1]
    values: np.ndarray  # (frames, P), in the parameters' units

    def in_one_player(self, sample_rate: int) -> dict[str, Any]:
        """Return the arguments of ``wandb.Audio`` for all sides, one after the other."""
        pause = np.zeros((len(self.sides["input"]), round(_PAUSE_SECONDS * sample_rate)), np.float32)
        parts = [part for side in SIDES for part in (self.sides[side], pause)][:-1]
        audio = np.concatenate(parts, axis=1).T
        return {"data_or_path": audio, "sample_rate": sample_rate, "caption": f"{self.name}: {', '.join(SIDES)}"}


class _Validation:
    """Records one validation through a hook: the audio of the excerpts, and the parameters of all examples."""

    def __init__(self, task: Task, excerpt_seconds: float, starts: dict[tuple[int, int], str]) -> None:
        self._task = task
        self._space, self._sample_rate = task.chain.space, task.chain.sample_rate
        self._max_samples = excerpt_seconds * self._sample_rate
        self._all: list[np.ndarray] = []
        self._starts = starts
        # The recorded frames of each excerpt, and the lanes that currently hold one.
        self._parts: dict[str, list[dict[str, Tensor]]] = {}
        self._lanes: dict[int, str] = {}
        self._hook = task.register_forward_hook(self._keep)

    def _keep(self, module: Any, inputs: Any, result: Any) -> None:
        # Output and parameters. With several ranks, Lightning also calls the task with whole steps, for their loss.
        if isinstance(result, tuple):
            self._result = result

    def add_batch(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Record the batch of the last forward pass."""
        output, parameters = self._result
        self._all.append(parameters.flatten(0, 1).cpu().numpy())
        continued = {lane for lane, restart in enumerate(batch["restart"].tolist()) if not restart}
        self._lanes = {lane: name for lane, name in self._lanes.items() if lane in continued}
        for (index, lane), name in self._starts.items():
            if index == batch_idx:
                self._lanes[lane], self._parts[name] = name, []
        window = self._task.window
        for lane, name in self._lanes.items():
            if len(self._parts[name]) * window.step_samples >= self._max_samples:
                continue
            part = {side: window.delayed_step(batch[side][lane]) for side in ("input", "target")}
            part["effect_input"] = window.step(batch["input"][lane])
            part.update(output=output[lane], parameters=parameters[lane])
            self._parts[name].append({key: tensor.cpu() for key, tensor in part.items()})

    def finish(self, trainer: pl.Trainer) -> None:
        """Summarize the parameters after the last batch."""
        self._hook.remove()
        # Lightning logs a validation at the step before it.
        self.step = max(0, trainer.global_step - 1)
        self._loss = float(trainer.callback_metrics["validation/loss"])
        everywhere = np.concatenate(self._all)
        at_bounds = np.minimum(everywhere, 1 - everywhere) < AT_BOUNDS
        self.share_at_bounds = float(at_bounds.mean())
        values = self._space.denormalize(everywhere)
        self.spread = {f"values/{name}/mean": float(mean) for name, mean in zip(self._space.names, values.mean(0))}
        for name, deviation in zip(self._space.names, values.std(0)):
            self.spread[f"values/{name}/deviation"] = float(deviation)
        columns = zip(self._space.parameters, values.mean(0), values.min(0), values.max(0), at_bounds.mean(0))
        self.parameters = []
        for parameter, mean, least, most, share in columns:
            row: dict[str, Any] = {"name": parameter.name, "value": _round(mean), "unit": parameter.unit}
            row.update(low=parameter.low, high=parameter.high, default=parameter.default)
            row.update(least=_round(least), most=_round(most), share_at_bounds=_round(share), sensitivity_db=None)
            self.parameters.append(row)

    def excerpts(self) -> list[_Excerpt]:
        found = []
        for name, parts in self._parts.items():
            joined = {
                key: torch.cat([part[key] for part in parts], dim=0 if key == "parameters" else 1) for key in parts[0]
            }
            peak = max(float(joined[side].abs().max()) for side in SIDES)
            gain = min(1.0, 0.99 / peak) if peak > 0 else 1.0
            sides = {side: (joined[side] * gain).numpy() for side in SIDES}
            values = self._space.denormalize(joined["parameters"].numpy())
            found.append(_Excerpt(name, sides, joined["effect_input"], joined["parameters"], values))
        return found

    def measure_sensitivity(self, excerpts: list[_Excerpt]) -> None:
        frame_samples = self._task.window.frame_samples
        frames = max(1, round(_PROBED_SECONDS * self._sample_rate / frame_samples))
        input = torch.cat([excerpt.effect_input[:, : frames * frame_samples] for excerpt in excerpts], dim=1)
        parameters = torch.cat([excerpt.parameters[:frames] for excerpt in excerpts])
        for row, level in zip(self.parameters, self._task.effect_layer.sensitivity(input, parameters)):
            row["sensitivity_db"] = _round(level)

    def automation(self, excerpts: list[_Excerpt]) -> list[dict[str, Any]]:
        """Return a row for every frame of every excerpt: ``excerpt``, ``seconds``, and the values in their units."""
        return [
            {
                "excerpt": excerpt.name,
                "seconds": _round(frame * self._task.window.frame_samples / self._sample_rate),
                **{name: _round(value) for name, value in zip(self._space.names, values)},
            }
            for excerpt in excerpts
            for frame, values in enumerate(excerpt.values)
        ]

    def write(self, folder: Path, excerpts: list[_Excerpt]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for excerpt in excerpts:
            for side, audio in excerpt.sides.items():
                soundfile.write(folder / f"{excerpt.name}_{side}.flac", audio.T, self._sample_rate)
        write_csv(folder / PARAMETERS, self.parameters)
        write_csv(folder / AUTOMATION, self.automation(excerpts))
        sides = {excerpt.name: excerpt.sides for excerpt in excerpts}
        draw_excerpt_spectrograms(sides, self._sample_rate).savefig(folder / SPECTROGRAMS)
        values = {excerpt.name: excerpt.values for excerpt in excerpts}
        frame_seconds = self._task.window.frame_samples / self._sample_rate
        draw_excerpt_automation(values, self._space.parameters, frame_seconds).savefig(folder / AUTOMATION_IMAGE)
        # Written last: a folder without it is incomplete.
        write_json(folder / ABOUT, {"step": self.step, "validation/loss": self._loss, "excerpts": list(sides)})


def _prune(media: Path) -> None:
    """Remove all folders but those of the first, the best and the last step."""
    folders = {about.parent: json.loads(about.read_text(encoding="utf-8")) for about in media.glob(f"step_*/{ABOUT}")}
    in_order = sorted(folders, key=lambda folder: folders[folder]["step"])
    best = min(in_order, key=lambda folder: folders[folder]["validation/loss"])
    for folder in set(in_order) - {in_order[0], best, in_order[-1]}:
        shutil.rmtree(folder)


def _round(value: float) -> float:
    """Round to six significant digits, for tables."""
    return float(f"{value:.6g}")
