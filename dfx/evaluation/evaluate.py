"""A trained model on a test split, beside what it has to beat: metrics, a table, and a page to listen on."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

from dfx.datasets.pairs import Pair
from dfx.errors import DataError
from dfx.evaluation.baselines import make_baselines
from dfx.evaluation.results import ERRORS, EXPLAINED, Results, _as_dict, _means
from dfx.evaluation.search import BaselineOptions
from dfx.losses import loss_of_recordings
from dfx.metrics import Span, attenuated, compare, damage, level_change, outside
from dfx.render.automation import Automation
from dfx.report import write_report
from dfx.tasks import Task
from dfx.writing import write_csv


def evaluate(
    task: Task,
    pairs: Sequence[Mapping[str, object]],
    folder: Path,
    baselines: Sequence[str] = ("input", "defaults"),
    training: Sequence[Mapping[str, object]] = (),
    options: BaselineOptions = BaselineOptions(),
    removed: Mapping[str, Sequence[Span]] | None = None,
) -> Results:
    """Renders every pair by the model and by the baselines, and compares with the target.

    ``loss`` is what the task trains on, here of a whole file; the other metrics are those of
    :func:`~dfx.metrics.compare`. Files whose target removes something have three more: ``removed_db`` and
    ``kept_db``, the level of the output above that of the input there and elsewhere (see
    :func:`~dfx.metrics.level_change`), and ``damage_db`` (see :func:`~dfx.metrics.damage`). What it removes is read
    from ``removed``, and else from the target itself, where that can be told (see
    :func:`~dfx.metrics.attenuated`). A metric without a value for a file is not in its mean.

    Writes

    - ``metrics.json``: what is returned;
    - ``means.csv`` and ``means.json``: the same with intervals and the number of files;
    - ``files.csv`` and ``files.json``: every metric of every file, and why one has none;
    - ``settings.json``: the values of the chain, ``{baseline: {parameter: value}}``, where they differ ``{baseline:
      {file: ...}}``;
    - ``automation/NAME.csv``: what the model did, the values of its parameters in their units, by second;
    - ``audio/NAME_{input,output,target}.flac``, with one more for every other baseline, all of a file lowered by
      one gain where one of them would clip;
    - ``evaluation.json``: what these files are of; and ``report.html``, the page: see :mod:`dfx.report`.

    Args:
        task: the trained model.
        pairs: of ``input`` and ``target``, ``(channels, samples)`` at the task's rate, and ``name``.
        folder: where to write; made if it is not there.
        baselines: what to compare with, any of :data:`~dfx.evaluation.baselines.BASELINES`.
        training: the training pairs, for those that learn from them.
        options: what the baselines may cost.
        removed: by the name of a file, what its target removes; see :func:`find_removed`.

    Raises:
        UserError: for a baseline that is not known, or lacks training pairs.
    """
    loss = copy.deepcopy(task.loss).cpu()
    rivals = make_baselines(baselines, task.chain, loss, training, options)
    for part in ("audio", "automation"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    files: list[dict[str, object]] = []
    for pair in tqdm([pairs[i] for i in range(len(pairs))], desc="Evaluating", unit="file"):
        name, input, target = str(pair["name"]), pair["input"], pair["target"]
        rendering = task.render(input)
        audio = {method: baseline(pair, rendering.automation.values) for method, baseline in rivals.items()}
        audio["output"] = torch.from_numpy(rendering.audio)
        spans = (removed or {}).get(name)
        if spans is None:
            spans = attenuated(input, target, task.chain.sample_rate)
        for method, heard in audio.items():
            comparison = compare(heard, target, task.chain.sample_rate)
            metrics = {"loss": loss_of_recordings(loss, heard[None], target[None]), **comparison.metrics}
            if spans is not None:
                metrics.update(_level_changes(input, heard, spans, task.chain.sample_rate))
            rows.append({"file": name, "method": method, **metrics, "left_out": comparison.left_out})
        stem = _stem(name, [file["stem"] for file in files])
        files.append({"name": name, "stem": stem, "seconds": input.shape[-1] / task.chain.sample_rate})
        _write_audio(folder / "audio", stem, {"input": input, **audio, "target": target}, task)
        _write_automation(folder / "automation" / f"{stem}.csv", rendering.automation)

    results = _means(rows)
    settings = {name: baseline.settings for name, baseline in rivals.items() if baseline.settings}
    means = {method: {name: _as_dict(mean) for name, mean in of.items()} for method, of in results.items()}
    columns = [name for name in EXPLAINED if any(name in row for row in rows)]
    about = {
        "task": type(task).__name__,
        "sample_rate": task.chain.sample_rate,
        "frame_samples": task.window.frame_samples,
        "methods": list(results),
        "files": files,
        "parameters": [dict(vars(parameter)) for parameter in task.chain.parameters],
        "metrics": {name: EXPLAINED[name] for name in columns},
        "less_is_better": [name for name in columns if name in ERRORS],
    }
    for name, content in {
        "metrics": results, "means": means, "files": rows, "settings": settings, "evaluation": about
    }.items():  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    reasons = ["; ".join(f"{name}: {reason}" for name, reason in row["left_out"].items()) for row in rows]
    flat = [{**row, "left_out": reason} for row, reason in zip(rows, reasons)]
    write_csv(folder / "files.csv", flat, ["file", "method", *columns, "left_out"])
    flat = [{"method": method, "metric": name, **mean} for method, of in means.items() for name, mean in of.items()]
    write_csv(folder / "means.csv", flat, ["method", "metric", "mean", "low", "high", "files"])
    write_report(folder)
    return results


def find_removed(pairs: Sequence[Pair]) -> dict[str, list[Span]]:
    """What the targets remove, by the name of the pair, as far as it is known.

    It is known where ``NAME_removed.json`` lies beside an input file ``NAME`` or ``NAME_x``: a list of
    ``{"t0": start, "t1": end}``, in seconds.

    Raises:
        DataError: if such a file holds something else.
    """
    removed = {}
    for pair in pairs:
        path = Path(pair.input.path)
        file = path.with_name(f"{path.stem.removesuffix('_x')}_removed.json")
        if not file.is_file():
            continue
        try:
            spans = json.loads(file.read_text(encoding="utf-8"))
            removed[pair.name] = [(float(span["t0"]), float(span["t1"])) for span in spans]
        except (ValueError, TypeError, KeyError):
            raise DataError(f'{file} is not a list of {{"t0": seconds, "t1": seconds}}') from None
    return removed


def _level_changes(input: Tensor, output: Tensor, removed: Sequence[Span], sample_rate: int) -> dict[str, float]:
    kept = outside(removed, input.shape[-1] / sample_rate)
    return {
        "removed_db": level_change(input, output, removed, sample_rate),
        "kept_db": level_change(input, output, kept, sample_rate),
        "damage_db": damage(input, output, kept, sample_rate),
    }


def _stem(name: str, taken: Sequence[object]) -> str:
    """A file name for a pair that no other has."""
    stem = first = name.replace("/", "_").replace("\\", "_")
    number = 2
    while stem in taken:
        stem, number = f"{first}-{number}", number + 1
    return stem


def _write_audio(folder: Path, stem: str, audio: dict[str, Tensor], task: Task) -> None:
    peak = max(float(heard.abs().max()) for heard in audio.values())
    gain = min(1.0, 0.99 / peak) if peak > 0 else 1.0
    for side, heard in audio.items():
        soundfile.write(folder / f"{stem}_{side}.flac", (heard * gain).T.numpy(), task.chain.sample_rate)


def _write_automation(path: Path, automation: Automation) -> None:
    rows = np.column_stack([automation.times, automation.values]).tolist()
    names = ["seconds", *automation.names]
    write_csv(path, [dict(zip(names, row)) for row in rows], names)
