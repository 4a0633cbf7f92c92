"""What a model makes of a few validation excerpts, and of its parameters, while it trains."""

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

from dfx.callbacks.figures import SIDES, draw_automation, draw_spectrograms
from dfx.errors import UserError
from dfx.loggers.best_effort import aside
from dfx.loggers.wandb import WandbRun
from dfx.tasks import Task
from dfx.writing import write_csv, write_json

PARAMETERS = "parameters.csv"
ABOUT = "about.json"
AUTOMATION = "automation.csv"
SPECTROGRAMS = "spectrograms.png"
AUTOMATION_IMAGE = "automation.png"

AT_BOUNDS = 0.01
"""How close to 0 or 1 a parameter is at its bound: the default length of a step of the estimators."""

_PAUSE_SECONDS = 0.3
_PROBED_SECONDS = 2.0
"""Of every excerpt, for the sensitivity: it is rendered once for each parameter."""


@dataclass
class LoggingOptions:
    """What is logged besides losses and metrics, and how often.

    Args:
        excerpts: how many validation excerpts are to be heard and seen, the same ones throughout; 0 for none.
        excerpt_seconds: how much of each, at most.
        media_every_n_validations: how often they are; the first and the last validation are always among them.
        health_every_n_steps: how often the gradient and the time of a training step are looked at.

    Raises:
        UserError: for an option out of its range.
    """

    excerpts: int = 3
    excerpt_seconds: float = 10.0
    media_every_n_validations: int = 5
    health_every_n_steps: int = 20

    def __post_init__(self) -> None:
        for name, least in (("excerpts", 0), ("media_every_n_validations", 1), ("health_every_n_steps", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not self.excerpt_seconds > 0:
            raise UserError(f"excerpt_seconds is {self.excerpt_seconds:g}; it must be above 0")


class Excerpts(pl.Callback):
    """Keeps and shows the output of fixed validation excerpts, and the parameters over all of the validation.

    Nothing is rendered for it but by :meth:`~dfx.blackbox.EffectLayer.sensitivity`: the excerpts are spread evenly
    over those that are validated.

    Every validation logs ``parameters/share_at_bounds``, the share of parameters, over all frames, that are closer
    than 0.01 to 0 or 1, and rewrites ``parameters.csv``. At the first validation, every so many after it, and at
    the end,

    - ``parameters/dead`` is logged: how many parameters change nothing in the first two seconds of the excerpts when
      they alone move by a twentieth of their range;
    - ``media/step_NUMBER`` is written: ``NAME_{input,output,target}.flac``, all of an excerpt at one gain,
      ``automation.csv``, ``spectrograms.png``, ``automation.png``, ``parameters.csv`` and ``about.json``. The first,
      the best by validation loss and the last of these folders stay. Stages but the last have a folder of their own;
    - W&B gets ``media/audio`` (input, output and target one after the other), ``media/spectrograms``,
      ``media/automation``, ``tables/automation`` and ``tables/parameters``.

    With several ranks, all of this is what the first of them has validated.

    Args:
        folder: of the run.
        options: how much and how often.
    """

    def __init__(self, folder: Path, options: LoggingOptions) -> None:
        self._folder = folder
        self._options = options
        self._validations = 0
        self._validation: _Validation | None = None
        self._shown = True
        self._places: dict[tuple[int, int], str] | None = None

    def state_dict(self) -> dict[str, int]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._validations = state_dict["validations"]

    @aside
    def on_validation_start(self, trainer: pl.Trainer, pl_module: Task) -> None:
        self._validation = None
        if trainer.state.fn == "fit" and trainer.is_global_zero and pl_module.stage.renders:
            if self._places is None:
                self._places = self._choose(trainer)
            self._validation = _Validation(pl_module, self._options.excerpt_seconds, self._places)
            self._hook = pl_module.register_forward_hook(lambda module, inputs, made: self._validation.take(made))

    @aside
    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Task, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._validation:
            self._validation.hear(batch, batch_idx)

    @aside
    def on_validation_end(self, trainer: pl.Trainer, pl_module: Task) -> None:
        if not self._validation:
            return
        self._hook.remove()
        # Lightning logs a validation with the step before it.
        self._validation.end(max(0, trainer.global_step - 1), float(trainer.callback_metrics["validation/loss"]))
        self._shown = False
        self._log(trainer, {"parameters/share_at_bounds": self._validation.share_at_bounds})
        write_csv(self._folder / PARAMETERS, self._validation.parameters)
        if self._validations % self._options.media_every_n_validations == 0:
            self._show(trainer, pl_module)
        self._validations += 1

    @aside
    def on_train_end(self, trainer: pl.Trainer, pl_module: Task) -> None:
        if self._validation and not self._shown:
            self._show(trainer, pl_module)

    def _choose(self, trainer: pl.Trainer) -> dict[tuple[int, int], str]:
        """Which excerpts: their names by the batch and the lane that they begin in."""
        loader, sample_rate = trainer.val_dataloaders, trainer.lightning_module.chain.sample_rate
        batches = itertools.islice(loader.batch_sampler, int(min(trainer.num_val_batches[0], len(loader))))
        begun = {
            (index, lane): step.excerpt
            for index, steps in enumerate(batches)
            for lane, step in enumerate(steps)
            if step.number == 0
        }
        chosen = np.linspace(0, len(begun) - 1, min(self._options.excerpts, len(begun))).round().astype(int)
        names = {}
        for place in (list(begun)[index] for index in chosen):
            excerpt = begun[place]
            start = f"_{excerpt.start / sample_rate:.1f}s" if excerpt.start else ""
            names[place] = loader.dataset.pairs.pairs[excerpt.pair].name.replace("/", "_") + start
        return names

    def _show(self, trainer: pl.Trainer, task: Task) -> None:
        self._shown = True
        validation = self._validation
        excerpts = validation.excerpts()
        if not excerpts:
            return
        validation.measure_sensitivity(excerpts)
        dead = sum(row["sensitivity_db"] == -math.inf for row in validation.parameters)
        self._log(trainer, {"parameters/dead": dead})
        write_csv(self._folder / PARAMETERS, validation.parameters)
        media = self._folder / "media"
        if task.stage != task.stages[-1]:
            media /= task.stage.name
        folder = media / f"step_{validation.step:06}"
        validation.write(folder, excerpts)
        _keep_few(media)
        for logger in trainer.loggers:
            if isinstance(logger, WandbRun):
                audio = [excerpt.in_one_player(task.chain.sample_rate) for excerpt in excerpts]
                images = {"media/spectrograms": folder / SPECTROGRAMS, "media/automation": folder / AUTOMATION_IMAGE}
                tables = {
                    "tables/automation": validation.automation(excerpts),
                    "tables/parameters": validation.parameters,
                }
                logger.log_media(validation.step, {"media/audio": audio}, images, tables)

    def _log(self, trainer: pl.Trainer, metrics: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=self._validation.step)


class _Excerpt(NamedTuple):
    """An excerpt as it was validated.

    Args:
        name: of its pair, and where in it it begins, if not at its start.
        sides: of every side, ``(channels, samples)``, aligned and at one gain, at which none of them clips.
        heard: ``(channels, samples)``, what the effects were given.
        parameters: ``(frames, P)``, in [0, 1].
        values: ``(frames, P)``, the same in their units.
    """

    name: str
    sides: dict[str, np.ndarray]
    heard: Tensor
    parameters: Tensor
    values: np.ndarray

    def in_one_player(self, sample_rate: int) -> dict[str, Any]:
        """The arguments of ``wandb.Audio`` for all sides, one after the other."""
        pause = np.zeros((len(self.sides["input"]), round(_PAUSE_SECONDS * sample_rate)), np.float32)
        parts = [part for side in SIDES for part in (self.sides[side], pause)][:-1]
        audio = np.concatenate(parts, axis=1).T
        return {"data_or_path": audio, "sample_rate": sample_rate, "caption": f"{self.name}: {', '.join(SIDES)}"}


class _Validation:
    """One validation: what it has rendered in a few lanes, and where the parameters were in all of them.

    Attributes:
        step: that it came after.
        share_at_bounds: of the parameters of all frames.
        parameters: a row for each of them, for a table.
    """

    def __init__(self, task: Task, excerpt_seconds: float, places: dict[tuple[int, int], str]) -> None:
        self._task = task
        self._space = task.chain.space
        self._sample_rate = task.chain.sample_rate
        self._most_samples = excerpt_seconds * self._sample_rate
        self._all: list[np.ndarray] = []
        self._places = places
        self._made: tuple[Tensor, Tensor] | None = None
        # What every excerpt has heard so far, and the lanes that go on with one.
        self._parts: dict[str, list[dict[str, Tensor]]] = {}
        self._lanes: dict[int, str] = {}

    def take(self, made: Any) -> None:
        """What the task has made of a batch: the output and the parameters."""
        # With several ranks, Lightning passes whole steps through the task's call as well.
        if isinstance(made, tuple):
            self._made = made

    def hear(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Takes in the batch of which the task has just made something."""
        output, parameters = self._made
        self._all.append(parameters.flatten(0, 1).cpu().numpy())
        self._lanes = {
            lane: name
            for lane, name in self._lanes.items()
            if lane < len(batch["restart"]) and not batch["restart"][lane]
        }
        for (index, lane), name in self._places.items():
            if index == batch_idx:
                self._lanes[lane], self._parts[name] = name, []
        window = self._task.window
        for lane, name in self._lanes.items():
            if len(self._parts[name]) * window.step_samples >= self._most_samples:
                continue
            input, target = batch["input"][lane], batch["target"][lane]
            part = {
                "input": window.delayed_step(input),
                "output": output[lane],
                "target": window.delayed_step(target),
                "heard": window.step(input),
                "parameters": parameters[lane],
            }
            self._parts[name].append({key: tensor.cpu() for key, tensor in part.items()})

    def end(self, step: int, loss: float) -> None:
        self.step = step
        self._loss = loss
        everywhere = np.concatenate(self._all)
        at_bounds = np.minimum(everywhere, 1 - everywhere) < AT_BOUNDS
        self.share_at_bounds = float(at_bounds.mean())
        values = self._space.denormalize(everywhere)
        columns = zip(self._space.parameters, values.mean(0), values.min(0), values.max(0), at_bounds.mean(0))
        self.parameters = [
            {
                "name": parameter.name,
                "value": _rounded(mean),
                "unit": parameter.unit,
                "low": parameter.low,
                "high": parameter.high,
                "default": parameter.default,
                "least": _rounded(least),
                "most": _rounded(most),
                "share_at_bounds": _rounded(share),
                "sensitivity_db": None,
            }
            for parameter, mean, least, most, share in columns
        ]

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
            found.append(_Excerpt(name, sides, joined["heard"], joined["parameters"], values))
        return found

    def measure_sensitivity(self, excerpts: list[_Excerpt]) -> None:
        frame_samples = self._task.window.frame_samples
        frames = max(1, round(_PROBED_SECONDS * self._sample_rate / frame_samples))
        heard = torch.cat([excerpt.heard[:, : frames * frame_samples] for excerpt in excerpts], dim=1)
        parameters = torch.cat([excerpt.parameters[:frames] for excerpt in excerpts])
        for row, level in zip(self.parameters, self._task.effect_layer.sensitivity(heard, parameters)):
            row["sensitivity_db"] = _rounded(level)

    def automation(self, excerpts: list[_Excerpt]) -> list[dict[str, Any]]:
        """A row for every frame of every excerpt: ``excerpt``, ``seconds``, and the parameters in their units."""
        return [
            {
                "excerpt": excerpt.name,
                "seconds": _rounded(frame * self._task.window.frame_samples / self._sample_rate),
                **{name: _rounded(value) for name, value in zip(self._space.names, values)},
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
        draw_spectrograms(sides, self._sample_rate, folder / SPECTROGRAMS)
        values = {excerpt.name: excerpt.values for excerpt in excerpts}
        frame_seconds = self._task.window.frame_samples / self._sample_rate
        draw_automation(values, self._space.parameters, frame_seconds, folder / AUTOMATION_IMAGE)
        # Last: a folder without it is not whole.
        about = {"step": self.step, "validation/loss": self._loss, "excerpts": list(sides)}
        write_json(folder / ABOUT, about)


def _keep_few(media: Path) -> None:
    """Removes all but the first, the best and the last of the folders."""
    folders = {about.parent: json.loads(about.read_text(encoding="utf-8")) for about in media.glob(f"step_*/{ABOUT}")}
    in_order = sorted(folders, key=lambda folder: folders[folder]["step"])
    best = min(in_order, key=lambda folder: folders[folder]["validation/loss"])
    for folder in set(in_order) - {in_order[0], best, in_order[-1]}:
        shutil.rmtree(folder)


def _rounded(value: float) -> float:
    """To six digits, which tables can show."""
    return float(f"{value:.6g}")
