"""The price of a black box: training with exact gradients, through a differentiable twin, beside estimated ones.

The twin models pedalboard's filters, compressor, distortion and gain in torch. It takes the place of the effect layer
in training only; validation and evaluation render with the real effects. It is the reference of this benchmark, not an
effect layer for users.

Every run is one of ``train.py``, in a process of its own; ``python -m dfx.benchmark.twin fit ...`` is ``train.py
fit ...`` with the gradient of the twin.
"""

import itertools
import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torchaudio
from tabulate import tabulate
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dfx.audio.levels import db_to_amplitude
from dfx.benchmark import GRADIENTS
from dfx.blackbox import EffectLayer
from dfx.effects import ChainSpec
from dfx.errors import UserError, nearest
from dfx.evaluation import is_evaluated
from dfx.evaluation.results import Mean, format_mean
from dfx.loggers.history import read_history
from dfx.sweep.grid import Point
from dfx.sweep.runner import Budget, Runner, register, run_here

Settings = Mapping[str, Any]
"""Every control of one effect: floats, and tensors ``(batch,)`` for trained ones, in their units."""


class Twin(nn.Module):
    """A chain of pedalboard's effects as a differentiable function, from silence at the start of every call.

    Args:
        chain: effects of :data:`TWINS` only.

    Raises:
        UserError: for any other effect.
    """

    def __init__(self, chain: ChainSpec) -> None:
        super().__init__()
        for recipe in chain.recipes:
            if recipe.host != "pedalboard" or recipe.effect not in TWINS:
                raise UserError(f"{recipe.host}:{recipe.effect} has no differentiable twin{nearest('', TWINS)}")
        self.chain = chain

    def forward(self, input: Tensor, parameters: Tensor) -> Tensor:
        """Render at constant parameters.

        Args:
            input: ``(batch, channels, samples)``.
            parameters: ``(batch, P)`` in [0, 1].
        """
        values = {p.name: _denormalize(p, parameters[:, i]) for i, p in enumerate(self.chain.parameters)}
        audio = input
        for recipe, settings in zip(self.chain.recipes, self.chain.settings(values).values()):
            audio = TWINS[recipe.effect](audio, settings, self.chain.sample_rate)
        return audio


class TwinLayer(EffectLayer):
    """An effect layer whose renderings with gradients are those of the :class:`Twin`.

    Steps must be whole excerpts of one frame: the twin keeps no state from one step to the next.
    """

    def __init__(self, chain: ChainSpec, *options: Any) -> None:
        super().__init__(chain, *options)
        self.twin = Twin(chain)
        self.renderings = 0

    def forward(self, input: Tensor, parameters: Tensor, restart: Tensor) -> Tensor:
        """Render as :class:`~dfx.blackbox.layer.EffectLayer`, with the exact gradient."""
        if not (torch.is_grad_enabled() and parameters.requires_grad):
            return super().forward(input, parameters, restart)
        if not restart.all() or (parameters.dim() == 3 and parameters.shape[1] > 1):
            raise UserError("the twin needs steps that are whole excerpts of one frame, as in configs/tube_amp.yaml")
        return self.twin(input, parameters.flatten(1))


def _denormalize(parameter: Any, normalized: Tensor) -> Tensor:
    low, high = parameter.low, parameter.high
    if parameter.scale == "log":
        return low * (high / low) ** normalized
    return low + (high - low) * normalized


def _filter(audio: Tensor, numerator: Sequence[Tensor], denominator: Sequence[Tensor]) -> Tensor:
    """Filter every example with its own coefficients, each ``(batch,)``."""
    b, a = (torch.stack([c.expand(len(audio)) for c in side], dim=-1) for side in (numerator, denominator))
    by_channel = audio.transpose(0, 1)
    filtered = torchaudio.functional.lfilter(by_channel, a / a[:, :1], b / a[:, :1], clamp=False)
    return filtered.transpose(0, 1)


def _shelf(audio: Tensor, settings: Settings, sample_rate: int, side: int) -> Tensor:
    """Second-order shelf (Bristow-Johnson's cookbook); ``side`` is 1 for the low and -1 for the high shelf."""
    root = 10 ** (_tensor(settings["gain_db"]) / 40)
    omega = 2 * math.pi * _tensor(settings["cutoff_frequency_hz"]) / sample_rate
    cosine = side * omega.cos()
    beta = omega.sin() * root.sqrt() / settings["q"]
    plus, minus = root + 1, root - 1
    return _filter(
        audio,
        [root * (plus - minus * cosine + beta), side * 2 * root * (minus - plus * cosine),
         root * (plus - minus * cosine - beta)],
        [plus + minus * cosine + beta, -side * 2 * (minus + plus * cosine), plus + minus * cosine - beta],
    )  # fmt: skip


def _peak(audio: Tensor, settings: Settings, sample_rate: int) -> Tensor:
    """Peak filter (Bristow-Johnson's cookbook)."""
    root = 10 ** (_tensor(settings["gain_db"]) / 40)
    omega = 2 * math.pi * _tensor(settings["cutoff_frequency_hz"]) / sample_rate
    alpha, middle = omega.sin() / (2 * settings["q"]), -2 * omega.cos()
    return _filter(audio, [1 + alpha * root, middle, 1 - alpha * root], [1 + alpha / root, middle, 1 - alpha / root])


def _first_order(audio: Tensor, settings: Settings, sample_rate: int, is_lowpass: bool) -> Tensor:
    """First-order low-pass or high-pass by the bilinear transform."""
    n = (math.pi * _tensor(settings["cutoff_frequency_hz"]) / sample_rate).tan()
    one = torch.ones_like(n)
    return _filter(audio, [n, n] if is_lowpass else [one, -one], [n + 1, n - 1])


def _compress(audio: Tensor, settings: Settings, sample_rate: int) -> Tensor:
    """Attenuate what is above the threshold, by an envelope of each channel with JUCE's time constants."""
    attack, release = (
        torch.exp(-2000 * math.pi / (sample_rate * _by_example(settings[name]))) for name in ("attack_ms", "release_ms")
    )
    envelope = _Envelope.apply(audio.abs(), attack, release)
    threshold = db_to_amplitude(_by_example(settings["threshold_db"]))
    return audio * (envelope / threshold).clamp(min=1) ** (1 / _by_example(settings["ratio"]) - 1)


class _Envelope(torch.autograd.Function):
    """Follow levels ``(batch, channels, samples)`` from 0, sample by sample.

    A sample keeps the share ``attack`` of the difference between state and level where the level is above the state,
    and ``release`` elsewhere, each ``(batch, 1, 1)`` or ``(1, 1, 1)``.
    """

    @staticmethod
    def forward(ctx: Any, levels: Tensor, attack: Tensor, release: Tensor) -> Tensor:
        by_sample = np.ascontiguousarray(levels.movedim(-1, 0).numpy())
        rising, falling = (share[..., 0].numpy() for share in (attack, release))
        states, state = np.empty_like(by_sample), np.zeros_like(by_sample[0])
        for level, place in zip(by_sample, states):
            place[:] = state = level + np.where(level > state, rising, falling) * (state - level)
        envelope = torch.from_numpy(states).movedim(0, -1)
        ctx.save_for_backward(levels, attack, release, envelope)
        return envelope

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        levels, attack, release, envelope = ctx.saved_tensors
        before = nn.functional.pad(envelope, (1, 0))[..., :-1]
        rises = levels > before
        shares = torch.where(rises, attack, release)
        of_state = np.ascontiguousarray(gradient.movedim(-1, 0).numpy())
        by_sample = np.ascontiguousarray(shares.movedim(-1, 0).numpy())
        for sample in range(len(of_state) - 2, -1, -1):
            of_state[sample] += by_sample[sample + 1] * of_state[sample + 1]
        slope = torch.from_numpy(of_state).movedim(0, -1)
        of_shares = slope * (before - levels)
        of_attack, of_release = (
            (of_shares * chosen).sum_to_size(share.shape) for chosen, share in ((rises, attack), (~rises, release))
        )
        return slope * (1 - shares), of_attack, of_release


def _by_example(value: Any) -> Tensor:
    return _tensor(value).reshape(-1, 1, 1)


def _gain(audio: Tensor, decibels: Any) -> Tensor:
    return audio * db_to_amplitude(_by_example(decibels))


def _tensor(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float32)


TWINS: dict[str, Callable[[Tensor, Settings, int], Tensor]] = {
    "LowShelfFilter": lambda audio, settings, rate: _shelf(audio, settings, rate, 1),
    "HighShelfFilter": lambda audio, settings, rate: _shelf(audio, settings, rate, -1),
    "PeakFilter": _peak,
    "LowpassFilter": lambda audio, settings, rate: _first_order(audio, settings, rate, True),
    "HighpassFilter": lambda audio, settings, rate: _first_order(audio, settings, rate, False),
    "Compressor": _compress,
    "Distortion": lambda audio, settings, rate: _gain(audio, settings["drive_db"]).tanh(),
    "Gain": lambda audio, settings, rate: _gain(audio, settings["gain_db"]),
}
"""Pedalboard's effects with a twin: ``(audio (batch, channels, samples), settings, sample_rate) -> audio``."""


def twin(
    config: str,
    gradients: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    options: Sequence[str],
    jobs: int | None,
    folds: int | None = None,
) -> list[dict[str, Any]]:
    """Train a task with exact and with estimated gradients, everything else alike.

    Args:
        config: of the task.
        gradients: any of :data:`GRADIENTS`, or paths of overlays.
        seeds: of the runs of each gradient.
        folder: of the runs; those that are finished there are not repeated.
        options: of ``train.py``, for every run.
        jobs: runs at once, by default one a core.
        folds: runs of each gradient and seed, which leave the groups of pairs out in turn.

    Returns:
        A row for each gradient, seed and fold: ``gradient``, ``seed``, ``test_loss`` of the checkpoint with the lowest
        ``validation_loss``, ``cpu_seconds`` and ``renderings`` of training and validation, and ``course``, the
        renderings, CPU seconds and loss at each validation. With folds also ``fold``, from 1, and ``files``, the
        ``file``, ``group`` and ``loss`` of each test pair.

    Raises:
        UserError: for an unknown gradient, for two whose runs would have the same name, or if a run fails.
    """
    arms = Counter(_arm(gradient) for gradient in dict.fromkeys(gradients))
    for name, count in arms.items():
        if count > 1:
            raise UserError(f"the runs of {count} gradients would be named {name}: rename the overlays")
    each = [None] if folds is None else [(number, folds) for number in range(1, folds + 1)]
    which = itertools.product(gradients, seeds, each)
    points = {(name, seed, fold): _point(config, name, seed, fold, options) for name, seed, fold in which}
    register(folder, list(points.values()))
    missing = [point for point in points.values() if not is_evaluated(folder / point.name)]
    budget = Budget.of(max(1, len(missing)), jobs)
    failures = run_here(Runner(folder, "twin", "disabled", budget.threads), missing, budget.jobs)
    if failures:
        raise UserError(failures[0])
    return [_row(folder / point.name, *of_run) for of_run, point in points.items()]


def _point(config: str, gradient: str, seed: int, fold: tuple[int, int] | None, options: Sequence[str]) -> Point:
    overlay = []
    if gradient.endswith(".yaml"):
        overlay = [f"--config={gradient}"]
    elif gradient not in GRADIENTS:
        raise UserError(f"there is no gradient '{gradient}'{nearest(gradient, GRADIENTS)}")
    elif gradient not in ("exact", "default"):
        overlay = [f"--config=configs/ablations/estimator/{gradient}.yaml"]
    program = ["-m", "dfx.benchmark.twin"] if gradient == "exact" else ["train.py"]
    command = [sys.executable, *program, "fit", f"--config={config}", *overlay, f"--run.seed={seed}", *options]
    arm = _arm(gradient)
    name = f"{arm}_seed{seed}"
    if fold is not None:
        name, command = f"{name}_fold{fold[0]}", [*command, f"--data.fold={list(fold)}"]
    return Point(name, arm, command)


def _arm(gradient: str) -> str:
    return Path(gradient).stem


def _row(run: Path, gradient: str, seed: int, fold: tuple[int, int] | None) -> dict[str, Any]:
    history = [row for row in read_history(run) if "validation/loss" in row]
    test = json.loads((run / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    columns = ("progress/renderings", "progress/cpu_seconds", "validation/loss")
    of_fold = {}
    if fold is not None:
        files = json.loads((run / "evaluation" / "files.json").read_text(encoding="utf-8"))
        outputs = [{key: row[key] for key in ("file", "group", "loss")} for row in files if row["method"] == "output"]
        of_fold = {"fold": fold[0], "files": outputs}
    return {
        "gradient": _arm(gradient),
        "seed": seed,
        **of_fold,
        "test_loss": test["output"]["loss"],
        "validation_loss": min(row["validation/loss"] for row in history),
        "cpu_seconds": history[-1]["progress/cpu_seconds"],
        "renderings": int(history[-1]["progress/renderings"]),
        "course": [[row[column] for column in columns] for row in history],
    }


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return means ± half of their 95 % intervals, and test losses minus those of ``exact``, seed by seed.

    Intervals are over seeds. With folds, those of test losses are over the groups of the files, and differences are
    taken file by file.
    """
    exact = _test_losses([row for row in rows if row["gradient"] == "exact"])
    lines = []
    for gradient in dict.fromkeys(row["gradient"] for row in rows):
        own = [row for row in rows if row["gradient"] == gradient]
        losses = _test_losses(own)
        differences = {key: loss - exact[key] for key, loss in losses.items() if key in exact}
        columns = ("validation_loss", "test_loss", "cpu_seconds", "renderings")
        means = {column: Mean.of([row[column] for row in own]) for column in columns}
        means["test_loss"] = _mean(losses)
        if differences:
            means["test_loss - exact"] = _mean(differences)
        cells = {column: format_mean(mean) for column, mean in means.items()}
        lines.append({"gradient": gradient, "runs": len(own), **cells})
    return tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True)


def _test_losses(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[Hashable, str], float]:
    """Return the test losses by group and file, as means over seeds, or by seed if there are no folds."""
    losses = defaultdict(list)
    for row in rows:
        for each in row.get("files", [{"group": row["seed"], "file": "", "loss": row["test_loss"]}]):
            losses[each["group"], each["file"]].append(each["loss"])
    return {key: sum(values) / len(values) for key, values in losses.items()}


def _mean(losses: Mapping[tuple[Hashable, str], float]) -> Mean:
    """Return the mean over groups and files, with its interval over the groups."""
    return Mean.of(list(losses.values()), [group for group, _ in losses])


def main() -> None:
    """Run the command line of training with a :class:`TwinLayer` for the effect layer."""
    from dfx import cli

    with mock.patch("dfx.tasks.task.EffectLayer", TwinLayer):
        cli.main()


if __name__ == "__main__":
    main()
