"""A trained model on a test split, beside doing nothing: metrics, a table, and audio to listen to."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Dict, List, Mapping, Sequence

import soundfile
from torch import Tensor
from tqdm import tqdm

from dfx.metrics import METRICS, compare
from dfx.tasks import Task

Results = Dict[str, Dict[str, float]]
"""``{method: {metric: mean over the files}}``."""


def evaluate(task: Task, pairs: Sequence[Mapping[str, object]], folder: Path) -> Results:
    """Renders every pair and compares input and output with the target.

    Writes ``metrics.json`` (what is returned), ``files.csv`` (every metric of every file), and
    ``audio/NAME_{input,output,target}.flac``, the three of a file lowered by one gain where one of them
    would clip.

    Args:
        task: the trained model.
        pairs: of ``input`` and ``target``, ``(channels, samples)`` at the task's rate, and ``name``.
        folder: where to write; made if it is not there.
    """
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    rows: List[Dict[str, object]] = []
    for pair in tqdm([pairs[i] for i in range(len(pairs))], desc="Evaluating", unit="file"):
        audio = {"input": pair["input"], "output": task.render(pair["input"]).output}
        for method, heard in audio.items():
            metrics = compare(heard, pair["target"], task.chain.sample_rate)
            rows.append({"file": pair["name"], "method": method, **metrics})
        _write_audio(folder / "audio", str(pair["name"]), {**audio, "target": pair["target"]}, task)

    with (folder / "files.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    results: Results = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = [row for row in rows if row["method"] == method]
        results[method] = {name: sum(row[name] for row in of_method) / len(of_method) for name in METRICS}
    (folder / "metrics.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def as_table(results: Results) -> str:
    """The results as text: a line for each method, a column for each metric, and the ratio to the input."""
    names = list(next(iter(results.values())))
    lines = [["method", *names], *([method, *(f"{m[name]:.4f}" for name in names)] for method, m in results.items())]
    if results.get("input") and results.get("output"):
        ratio = [results["output"][n] / results["input"][n] if results["input"][n] else 1.0 for n in names]
        lines.append(["output / input", *(f"{r:.2f}" for r in ratio)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(names) + 1)]
    return "\n".join(
        "  ".join(cell.ljust(w) if not i else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
        for line in lines
    )


def _write_audio(folder: Path, name: str, audio: Dict[str, Tensor], task: Task) -> None:
    peak = max(float(heard.abs().max()) for heard in audio.values())
    gain = min(1.0, 0.99 / peak) if peak > 0 else 1.0
    for side, heard in audio.items():
        samples = (heard * gain).T.numpy()
        soundfile.write(folder / f"{name.replace('/', '_')}_{side}.flac", samples, task.chain.sample_rate)
