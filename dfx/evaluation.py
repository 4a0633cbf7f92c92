"""A trained model on a test split, beside what it has to beat: metrics, a table, and audio to listen to."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence

import soundfile
from torch import Tensor
from tqdm import tqdm

from dfx.baselines import BaselineOptions, make_baselines
from dfx.datasets import DataError
from dfx.datasets.pairs import Pair
from dfx.losses import loss_of_recordings
from dfx.metrics import METRICS, Span, compare, level_change, outside
from dfx.tasks import Task

Results = Dict[str, Dict[str, float]]
"""``{method: {metric: mean over the files}}``; see :func:`evaluate`."""

_ERRORS = ("loss", *METRICS)
"""The columns in which less is better."""


def evaluate(
    task: Task,
    pairs: Sequence[Mapping[str, object]],
    folder: Path,
    baselines: Sequence[str] = ("input", "defaults"),
    training: Sequence[Mapping[str, object]] = (),
    options: BaselineOptions = BaselineOptions(),
    removed: Optional[Mapping[str, Sequence[Span]]] = None,
) -> Results:
    """Renders every pair by the model and by the baselines, and compares with the target.

    ``loss`` is what the task trains on, here of a whole file; the other metrics are those of
    :data:`~dfx.metrics.METRICS`. Files of which is known what the target removes have two more: ``removed_db``
    and ``kept_db``, the level of the output above that of the input there and elsewhere (see
    :func:`~dfx.metrics.level_change`).

    Writes ``metrics.json`` (what is returned), ``files.csv`` (every metric of every file), ``settings.json`` (the
    values of the chain, ``{baseline: {parameter: value}}``, where they differ ``{baseline: {file: ...}}``), and
    ``audio/NAME_{input,output,target}.flac`` with one more for every other baseline, all of a file lowered by
    one gain where one of them would clip.

    Args:
        task: the trained model.
        pairs: of ``input`` and ``target``, ``(channels, samples)`` at the task's rate, and ``name``.
        folder: where to write; made if it is not there.
        baselines: what to compare with, any of :data:`~dfx.baselines.BASELINES`.
        training: the training pairs, for those that learn from them.
        options: what the baselines may cost.
        removed: by the name of a file, what its target removes; see :func:`find_removed`.

    Raises:
        UserError: for a baseline that is not known, or lacks training pairs.
    """
    loss = copy.deepcopy(task.loss).cpu()
    rivals = make_baselines(baselines, task.chain, loss, training, options)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    rows: List[Dict[str, object]] = []
    for pair in tqdm([pairs[i] for i in range(len(pairs))], desc="Evaluating", unit="file"):
        rendering = task.render(pair["input"])
        audio = {name: baseline(pair, rendering.automation) for name, baseline in rivals.items()}
        audio["output"] = rendering.output
        for method, heard in audio.items():
            metrics = {"loss": loss_of_recordings(loss, heard[None], pair["target"][None])}
            metrics.update(compare(heard, pair["target"], task.chain.sample_rate))
            if removed and pair["name"] in removed:
                metrics.update(_level_changes(pair["input"], heard, removed[pair["name"]], task.chain.sample_rate))
            rows.append({"file": pair["name"], "method": method, **metrics})
        sides = {"input": pair["input"], **audio, "target": pair["target"]}
        _write_audio(folder / "audio", str(pair["name"]), sides, task)

    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "files.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    results: Results = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = [row for row in rows if row["method"] == method]
        for name in columns[2:]:
            values = [row[name] for row in of_method if name in row]
            results.setdefault(method, {})[name] = sum(values) / len(values)
    settings = {name: baseline.settings for name, baseline in rivals.items() if baseline.settings}
    for name, content in {"metrics.json": results, "settings.json": settings}.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return results


def find_removed(pairs: Sequence[Pair]) -> Dict[str, List[Span]]:
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


def as_table(results: Results) -> str:
    """The results as text: a line for each method, a column for each metric, and the ratio to the input."""
    names = list(next(iter(results.values())))
    lines = [["method", *names], *([method, *(f"{m[name]:.4f}" for name in names)] for method, m in results.items())]
    if results.get("input") and results.get("output"):
        lines.append(["output / input", *(_ratio(results["output"][n], results["input"][n], n) for n in names)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(names) + 1)]
    return "\n".join(
        "  ".join(cell.ljust(w) if not i else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
        for line in lines
    )


def _ratio(output: float, input: float, name: str) -> str:
    if name not in _ERRORS:
        return "-"
    return f"{output / input if input else 1.0:.2f}"


def _level_changes(input: Tensor, output: Tensor, removed: Sequence[Span], sample_rate: int) -> Dict[str, float]:
    kept = outside(removed, input.shape[-1] / sample_rate)
    return {
        "removed_db": level_change(input, output, removed, sample_rate),
        "kept_db": level_change(input, output, kept, sample_rate),
    }


def _write_audio(folder: Path, name: str, audio: Dict[str, Tensor], task: Task) -> None:
    peak = max(float(heard.abs().max()) for heard in audio.values())
    gain = min(1.0, 0.99 / peak) if peak > 0 else 1.0
    for side, heard in audio.items():
        samples = (heard * gain).T.numpy()
        soundfile.write(folder / f"{name.replace('/', '_')}_{side}.flac", samples, task.chain.sample_rate)
