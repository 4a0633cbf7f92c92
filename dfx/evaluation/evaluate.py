"""Evaluation of a trained model and its baselines on a test split, written to a folder:

- ``metrics.json``: means over the files;
- ``means.csv`` and ``means.json``: the same with intervals, which count each group of files once, and their numbers;
- ``differences.csv`` and ``differences.json``: likewise, the model minus each baseline, file by file;
- ``files.csv`` and ``files.json``: every metric of every file, and why a metric is undefined;
- ``settings.json``: the values of the chain, ``{baseline: {parameter: value}}``, or ``{baseline: {file: ...}}``;
- ``automation/NAME.csv``: the model's parameters in their units, over time in seconds;
- ``audio/NAME_{input,output,target}.flac``, one more for every other baseline, and ``NAME_reference.flac`` where there
  is one; if one of them would clip, one gain lowers all of a file;
- ``evaluation.json``: a description of all this, and ``report.html``, a page to listen on: see :mod:`dfx.report`.
"""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

from dfx.audio.metadata import soundfile_path
from dfx.datasets.excerpts import AudioPair, AudioPairs
from dfx.datasets.manifest import find_file
from dfx.datasets.pairs import Pair
from dfx.errors import DataError
from dfx.evaluation.baselines import make_baselines
from dfx.evaluation.meanings import EXPLAINED
from dfx.evaluation.options import BaselineOptions
from dfx.evaluation.results import ERRORS, Results
from dfx.losses import Loss, loss_of_recordings
from dfx.metrics import Span, attenuated, compare, damage, level_change, outside
from dfx.render.automation import Automation, Interpolation
from dfx.report.write import write_report
from dfx.tasks import StyleTransfer, Task
from dfx.writing import file_stem, write_csv, write_text

Row = dict[str, Any]
"""``file``, its ``group``, ``method``, ``left_out`` and the metrics of one output."""


def evaluate(
    task: Task,
    pairs: AudioPairs,
    folder: Path,
    baselines: Sequence[str] = ("input", "defaults"),
    training: AudioPairs = (),
    options: BaselineOptions = BaselineOptions(),
    removed: Mapping[str, Sequence[Span]] | None = None,
    interpolation: Interpolation = "hold",
) -> Results:
    """Render every pair with the model and the baselines, and compare the outputs with the target.

    ``loss`` is the training loss, here of a whole file; :func:`~dfx.metrics.compare` computes the other metrics. A file
    whose target removes something has three more: ``removed_db`` and ``kept_db``, the change of level there and
    elsewhere (see :func:`~dfx.metrics.level_change`), and ``damage_db`` (see :func:`~dfx.metrics.damage`). The removed
    spans come from ``removed`` or, if they can be found, from the target (see :func:`~dfx.metrics.attenuated`). A file
    in which a metric is undefined does not count in its mean.

    Args:
        task: the trained model.
        pairs: ``input`` and ``target``, ``(channels, samples)`` at the task's rate, ``name`` and ``group``; without a
            group, a pair is one by itself. ``reference`` is that of a task which takes one. ``outputs`` are those of
            further methods, by name; see :class:`~dfx.evaluation.clips.PairsWithClips`.
        folder: to write to; created if it does not exist. The module's docstring lists its files.
        baselines: any of :data:`~dfx.evaluation.options.BASELINES`.
        training: the training pairs, for baselines that learn from them.
        options: the budget of the baselines.
        removed: the spans that the target removes, by the name of the file; see :func:`find_removed`.
        interpolation: how the model's parameters move between frames.

    Raises:
        UserError: for an unknown baseline, or one that lacks training pairs.
    """
    loss = copy.deepcopy(task.loss).cpu()
    methods = make_baselines(baselines, task.chain, loss, training, options)
    for part in ("audio", "automation"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    files: list[dict[str, object]] = []
    for index in tqdm(range(len(pairs)), desc="Evaluating", unit="file", disable=None):
        pair = pairs[index]
        if isinstance(task, StyleTransfer):
            task.set_reference(pair["reference"])
        rendering = task.render(pair["input"], interpolation)
        outputs = {name: baseline(pair, rendering.automation) for name, baseline in methods.items()}
        outputs |= pair.get("outputs", {})
        outputs["output"] = torch.from_numpy(rendering.audio)
        rows += _compare(pair, outputs, (removed or {}).get(pair["name"]), loss, task.chain.sample_rate)
        stem = file_stem(str(pair["name"]), [str(file["stem"]) for file in files])
        seconds = pair["input"].shape[-1] / task.chain.sample_rate
        files.append({"name": str(pair["name"]), "stem": stem, "seconds": seconds})
        audio = {"input": pair["input"], **outputs, "target": pair["target"]}
        if "reference" in pair:
            files[-1]["reference"] = pair["reference_title"]
            audio["reference"] = pair["reference"]
        _write_audio(folder / "audio", stem, audio, task.chain.sample_rate)
        _write_automation(folder / "automation" / f"{stem}.csv", rendering.automation)

    about = {
        "task": type(task).__name__,
        "interpolation": interpolation,
        "sample_rate": task.chain.sample_rate,
        "frame_samples": task.window.frame_samples,
        "parameters": [dict(vars(parameter)) for parameter in task.chain.parameters],
        "files": files,
    }
    settings = {name: baseline.settings for name, baseline in methods.items() if baseline.settings}
    return write_evaluation(folder, about, settings, rows)


def write_evaluation(
    folder: Path, about: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]], rows: Sequence[Row]
) -> Results:
    """Write the tables, the description and the page of an evaluation, whose audio and automation are there.

    Args:
        folder: to write to.
        about: the content of ``evaluation.json``, but for methods and metrics.
        settings: the content of ``settings.json``.
        rows: the metrics of all files.
    """
    results, metrics = Results.of(rows, about["interpolation"]), list_metrics(rows)
    described = {
        **about,
        "methods": list(results),
        "metrics": {name: EXPLAINED[name] for name in metrics},
        "less_is_better": [name for name in metrics if name in ERRORS],
    }
    for name, content in {"settings": settings, "evaluation": described}.items():
        write_text(folder / f"{name}.json", _as_json(content))
    _write_tables(folder, results, rows)
    write_report(folder)
    return results


def find_removed(pairs: Sequence[Pair]) -> dict[str, list[Span]]:
    """Find the spans that targets remove, by the name of the pair, for pairs that come with them.

    They are in ``NAME_removed.json`` next to an input file ``NAME`` or ``NAME_x``: a list of ``{"t0": start, "t1":
    end}``, in seconds.

    Raises:
        DataError: if the content of such a file is different.
    """
    removed = {}
    for pair in pairs:
        path = Path(pair.input.path)
        stems = (path.stem, path.stem.removesuffix("_x"))
        files = [find_file(path.parent, f"{stem}_removed.json") for stem in stems]
        file = next(filter(Path.is_file, files), None)
        if file is None:
            continue
        try:
            spans = json.loads(file.read_text(encoding="utf-8-sig"))
            removed[pair.name] = [(float(span["t0"]), float(span["t1"])) for span in spans]
            if not all(0 <= start <= end < math.inf for start, end in removed[pair.name]):
                raise ValueError
        except (ValueError, TypeError, KeyError):
            raise DataError(f'{file} is not a list of {{"t0": seconds, "t1": seconds}}') from None
    return removed


def _compare(
    pair: AudioPair, outputs: Mapping[str, Tensor], removed: Sequence[Span] | None, loss: Loss, sample_rate: int
) -> list[Row]:
    """Return a row for each output."""
    input, target = pair["input"], pair["target"]
    removed = attenuated(input, target, sample_rate) if removed is None else removed
    named = {"file": str(pair["name"]), "group": str(pair.get("group", pair["name"]))}
    rows: list[Row] = []
    for method, output in outputs.items():
        comparison = compare(output, target, sample_rate)
        metrics = {"loss": loss_of_recordings(loss, output[None], target[None]), **comparison.metrics}
        if removed is not None:
            kept = outside(removed, input.shape[-1] / sample_rate)
            metrics["removed_db"] = level_change(input, output, removed, sample_rate)
            metrics["kept_db"] = level_change(input, output, kept, sample_rate)
            metrics["damage_db"] = damage(input, output, kept, sample_rate)
        rows.append({**named, "method": method, **metrics, "left_out": comparison.left_out})
    return rows


def _write_audio(folder: Path, stem: str, audio: dict[str, Tensor], sample_rate: int) -> None:
    peak = max(float(signal.abs().max()) for signal in audio.values())
    gain = min(1.0, 0.99 / peak) if peak > 0 else 1.0
    for side, signal in audio.items():
        path = soundfile_path(str(folder / f"{stem}_{side}.flac"))
        soundfile.write(path, (signal * gain).T.numpy(), sample_rate)


def _write_automation(path: Path, automation: Automation) -> None:
    columns = ["seconds", *automation.names]
    rows = np.column_stack([automation.times, automation.values]).tolist()
    write_csv(path, [dict(zip(columns, row)) for row in rows], columns)


def list_metrics(rows: Sequence[Row]) -> list[str]:
    """Return the metrics that at least one row has."""
    return [name for name in EXPLAINED if any(name in row for row in rows)]


def _write_tables(folder: Path, results: Results, rows: Sequence[Row]) -> None:
    means, differences = (
        {method: {name: mean.as_dict() for name, mean in of.items()} for method, of in averaged.items()}
        for averaged in (results, results.differences)
    )
    tables = {"metrics": results, "means": means, "differences": differences, "files": rows}
    for name, content in tables.items():
        write_text(folder / f"{name}.json", _as_json(content))
    flat: list[Row] = []
    for row in rows:
        reasons = (f"{name}: {reason}" for name, reason in row["left_out"].items())
        flat.append({**row, "left_out": "; ".join(reasons)})
    write_csv(folder / "files.csv", flat, ["file", "group", "method", *list_metrics(rows), "left_out"])
    for name, of_methods in {"means": means, "differences": differences}.items():
        flat = [
            {"method": method, "metric": of, **mean} for method, all in of_methods.items() for of, mean in all.items()
        ]
        write_csv(folder / f"{name}.csv", flat, ["method", "metric", "mean", "low", "high", "files", "groups"])


def _as_json(content: object) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
