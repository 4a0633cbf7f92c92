"""A trained model on a test split, beside what it has to beat: metrics, a table, and a page to listen on."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence

import numpy as np
import scipy.stats
import soundfile
from torch import Tensor
from tqdm import tqdm

from dfx.baselines import BaselineOptions, make_baselines
from dfx.datasets import DataError
from dfx.datasets.pairs import Pair
from dfx.losses import loss_of_recordings
from dfx.metrics import METRICS, Span, attenuated, compare, damage, level_change, outside
from dfx.report import write_report
from dfx.tasks import Task
from dfx.writing import write_csv


class Mean(float):
    """A mean over files: a number, with the interval that holds the mean of all such files.

    Attributes:
        low, high: the 95 % interval by Student's t, which takes files for independent: those of one song or speaker
            are not quite. None for a single file.
        count: of the files that have a value.
    """

    low: Optional[float] = None
    high: Optional[float] = None
    count: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """The mean of the values of some files, of one at least."""
        mean = cls(math.fsum(values) / len(values))
        mean.count = len(values)
        if len(values) > 1:
            half = scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)
            mean.low, mean.high = float(mean - half), float(mean + half)
        return mean


Results = Dict[str, Dict[str, Mean]]
"""``{method: {metric: mean over the files}}``; see :func:`evaluate`."""

ERRORS = ("loss", *METRICS, "damage_db")
"""The metrics of which less is better."""

EXPLAINED = {
    "loss": "what was trained on, here of whole files",
    "mrstft": "multi-resolution STFT error",
    "mrstft_level_matched": "the same, both brought to one level",
    "mfcc_cosine": "cosine distance between MFCCs, along time, as the paper's code has it",
    "mfcc_cosine_per_frame": "cosine distance between MFCCs, frame by frame",
    "esr": "error-to-signal ratio of the waveform",
    "lufs_difference": "difference of integrated loudness, in LU",
    "crest_factor_difference_db": "difference of crest factors, in dB",
    "centroid_difference_hz": "difference of spectral centroids, in Hz",
    "latency_samples": "how late the output still is",
    "polarity": "-1 where the output is inverted",
    "removed_db": "change of level where the target removes something",
    "kept_db": "change of level elsewhere: at best 0",
    "damage_db": "mean distance from the input's level elsewhere",
}
"""Every metric that a file may have, and what it says."""


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
        baselines: what to compare with, any of :data:`~dfx.baselines.BASELINES`.
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
    rows: List[Dict[str, object]] = []
    files: List[Dict[str, object]] = []
    for pair in tqdm([pairs[i] for i in range(len(pairs))], desc="Evaluating", unit="file"):
        name, input, target = str(pair["name"]), pair["input"], pair["target"]
        rendering = task.render(input)
        audio = {method: baseline(pair, rendering.automation) for method, baseline in rivals.items()}
        audio["output"] = rendering.output
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
        _write_automation(folder / "automation" / f"{stem}.csv", rendering.automation, task)

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


def read_means(folder: Path) -> Results:
    """What :func:`evaluate` has returned, from the folder that it wrote."""
    results: Results = {}
    for method, metrics in json.loads((folder / "means.json").read_text(encoding="utf-8")).items():
        for name, row in metrics.items():
            mean = results.setdefault(method, {})[name] = Mean(row["mean"])
            mean.low, mean.high, mean.count = row["low"], row["high"], row["files"]
    return results


def as_table(results: Results, columns: int = 120) -> str:
    """The results as text, no wider than so many columns: a line for each method, and the ratio to the input.

    Of the metrics there are as many as find room, those first that say most. Beside a mean stands half of its
    interval.
    """
    everything = [name for name in EXPLAINED if any(name in of for of in results.values())]
    lines = {
        method: {name: _cell(of[name]) if name in of else "-" for name in everything} for method, of in results.items()
    }
    if results.get("input") and results.get("output"):
        lines["output / input"] = {name: _ratio(results["output"], results["input"], name) for name in everything}
    widths = {name: max(len(name), *(len(line[name]) for line in lines.values())) for name in everything}
    first = max(len(name) for name in ("method", *lines))
    left, shown = columns - first, []
    for name in [*_FIRST, *everything]:
        if name in widths and name not in shown and widths[name] + 2 <= left:
            left -= widths[name] + 2
            shown.append(name)
    shown.sort(key=everything.index)
    table = [{name: name for name in shown}, *lines.values()]
    named = zip(["method", *lines], table)
    text = ["  ".join([name.ljust(first), *(line[n].rjust(widths[n]) for n in shown)]).rstrip() for name, line in named]
    counts = {mean.count for of in results.values() for mean in of.values()}
    most = max(counts, default=0)
    text.append("\nValues of one file." if most == 1 else f"\nMeans of {most} files, ± half of their 95 % intervals.")
    fewer = {name: min(of[name].count for of in results.values() if name in of) for name in shown}
    some = ", ".join(f"{name} {count}" for name, count in fewer.items() if count < most)
    if some:
        text.append(f"Of fewer files: {some}; files.csv says why.")
    if len(shown) < len(everything):
        text.append(f"{len(everything) - len(shown)} more metrics are in means.csv.")
    return "\n".join(text)


def where_it_lies(folder: Path) -> str:
    """Where to find what :func:`evaluate` has written, for the end of a command."""
    places = {"metrics": folder, "audio": folder / "audio", "page": folder / "report.html"}
    return "\n".join(f"{name:<11}  {place}" for name, place in places.items())


_FIRST = (
    "loss", "removed_db", "kept_db", "mrstft_level_matched", "mfcc_cosine", "lufs_difference", "mrstft", "esr"
)  # fmt: skip


def _cell(mean: Mean) -> str:
    def rounded(value: float) -> str:
        # Four digits, of a small number three behind the point.
        return f"{value:.{min(3, max(0, 3 - int(math.log10(max(1.0, abs(value))))))}f}"

    return rounded(mean) if mean.low is None else f"{rounded(mean)} ±{rounded(mean - mean.low)}"


def _as_dict(mean: Mean) -> Dict[str, object]:
    return {"mean": mean, "low": mean.low, "high": mean.high, "files": mean.count}


def _ratio(output: Mapping[str, float], input: Mapping[str, float], name: str) -> str:
    if name not in ERRORS or name not in output or name not in input:
        return "-"
    if not input[name]:
        return "1.00" if not output[name] else "-"
    return f"{output[name] / input[name]:.2f}"


def _means(rows: Sequence[Mapping[str, object]]) -> Results:
    results: Results = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = [row for row in rows if row["method"] == method]
        values = {name: [row[name] for row in of_method if name in row] for name in EXPLAINED}
        results[method] = {name: Mean.of(some) for name, some in values.items() if some}
    return results


def _level_changes(input: Tensor, output: Tensor, removed: Sequence[Span], sample_rate: int) -> Dict[str, float]:
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


def _write_audio(folder: Path, stem: str, audio: Dict[str, Tensor], task: Task) -> None:
    peak = max(float(heard.abs().max()) for heard in audio.values())
    gain = min(1.0, 0.99 / peak) if peak > 0 else 1.0
    for side, heard in audio.items():
        soundfile.write(folder / f"{stem}_{side}.flac", (heard * gain).T.numpy(), task.chain.sample_rate)


def _write_automation(path: Path, automation: np.ndarray, task: Task) -> None:
    seconds = np.arange(len(automation)) * task.window.frame_samples / task.chain.sample_rate
    rows = np.column_stack([seconds, automation]).tolist()
    names = ["seconds", *task.chain.space.names]
    write_csv(path, [dict(zip(names, row)) for row in rows], names)
