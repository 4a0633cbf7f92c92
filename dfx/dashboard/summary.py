"""The summary of a run, or of all runs of an ablation, as one self-contained HTML file."""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from tqdm import tqdm

from dfx.callbacks.media import ABOUT, AUTOMATION, PARAMETERS, SIDES, SPECTROGRAMS
from dfx.dashboard.charts import COLOURS, Chart, chart_automation, chart_curves, still_values
from dfx.dashboard.workspace import CURVES
from dfx.effects.parameter import with_unit
from dfx.errors import UserError, in_one_line
from dfx.evaluation.meanings import EXPLAINED, TITLES
from dfx.loggers.history import best_row, read_history
from dfx.sweep.summary import NOTE, read_tables
from dfx.writing import write_text

CONFIG = "resolved_config.yaml"

_HERE = Path(__file__).parent

_COLUMNS = (
    *("name", "unit", "value", "low", "high", "default", "least", "most", "share_at_bounds"),
    "sensitivity_db",
)
"""The columns of ``parameters.csv``; all but the first two are numbers, of which the last may be missing."""

_NOT_OF_THE_EXPERIMENT = ("run.", "wandb.", "logging.", "config")
"""Prefixes of options that may differ between equal experiments."""


class Run:
    """The contents of a run's folder; files that do not exist yet leave their attributes empty.

    Args:
        folder: the run's folder.
        color: color of the run, for CSS.

    Attributes:
        config: all options by their dotted names.
        history: rows of :func:`~dfx.loggers.history.read_history`.
        versions, tested: ``versions.json`` and ``evaluation/metrics.json``.
        parameters: rows of ``parameters.csv``.
        steps: training steps in all stages.
        minutes: time of training, without interruptions.
        best_loss: see :func:`~dfx.loggers.history.best_row`; None if there was no validation.

    Raises:
        UserError: if one of its files cannot be read.
    """

    def __init__(self, folder: Path, color: str) -> None:
        self.folder, self.name, self.color = folder, folder.resolve().name, color
        with _reading(folder):
            config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")) or {}
            _require(isinstance(config, dict), folder / CONFIG)
            self.config = _flatten(config)
            self.history = read_history(folder)
            self.versions = _read_json(folder / "versions.json")
            self.tested = _read_tested(folder / "evaluation" / "metrics.json")
            self.parameters = _read_parameters(folder / PARAMETERS)
        training = [row for row in self.history if not any(name.startswith("test/") for name in row)]
        self.steps = max((row["total_step"] + 1 for row in training), default=0)
        times = [row["time"] for row in training if "time" in row]
        intervals = sorted(later - earlier for earlier, later in zip(times, times[1:]))
        longest = max(600.0, 100 * intervals[len(intervals) // 2]) if intervals else 0.0
        self.minutes = sum(interval for interval in intervals if 0 <= interval < longest) / 60
        self.best_loss = (best_row(self.history) or {}).get("validation/loss")

    def option(self, name: str) -> str:
        value = self.config.get(name, "-")
        return value if isinstance(value, str) else json.dumps(value, default=str)

    def media(self, only_last: bool) -> Iterator[dict[str, Any]]:
        """Yield the media of the validations, the last first, with audio and images as data URIs, and charts."""
        folders = sorted(about.parent for about in (self.folder / "media").glob(f"step_*/{ABOUT}"))
        for folder in reversed(folders[-1:] if only_last else folders):
            with _reading(self.folder):
                yield self._media_of(folder)

    def _media_of(self, folder: Path) -> dict[str, Any]:
        about = _read_json(folder / ABOUT)
        names, loss = about["excerpts"], about["validation/loss"]
        # Names of files in this folder, which may come from a stranger.
        _require(isinstance(names, list) and all(Path(name).name == name for name in names), folder / ABOUT)
        _require(_is_number(about["step"]) and _is_number(loss), folder / ABOUT)
        sounds: dict[str, dict[str, str]] = {}
        for name, side in itertools.product(names, SIDES):
            audio = (folder / f"{name}_{side}.flac").read_bytes()
            sounds.setdefault(name, {})[side] = _data_uri(audio, "audio/flac")
        lines = _read_automation(folder / AUTOMATION)
        charts = chart_automation(lines, self.parameters)
        return {
            "step": about["step"],
            "loss": loss,
            "sounds": sounds,
            "spectrograms": _data_uri((folder / SPECTROGRAMS).read_bytes(), "image/png"),
            "charts": charts,
            "excerpts": list(lines),
            "still": still_values(lines, self.parameters, charts),
        }


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Raise a :class:`UserError` in place of the errors of files that are missing, damaged, or of another program."""
    broken = (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, csv.Error, yaml.YAMLError)
    try:
        yield
    except broken as error:
        raise UserError(f"{folder} cannot be read as a run: {in_one_line(error)}") from error


def _require(is_right: bool, path: Path) -> None:
    if not is_right:
        raise ValueError(f"{path} does not have the content that dfx writes")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Find and read all runs in folders, each of which is a run's folder or contains such folders.

    Raises:
        UserError: if a folder does not exist, or is not a run and contains none.
    """
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
        inside = [folder] if (folder / CONFIG).is_file() else sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
        if not inside:
            raise UserError(f"{folder} is not a run and contains none: there is no {CONFIG}")
        found += inside
    return [Run(folder, f"var(--line-{index % COLOURS})") for index, folder in enumerate(dict.fromkeys(found))]


def write_summary(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Write the summary of all runs in some folders, and return the path of the file.

    Args:
        folders: see :func:`find_runs`.
        output: path of the HTML file; by default ``summary.html`` in the first folder.

    Raises:
        UserError: if there are no runs, or the file cannot be written.
    """
    runs = find_runs(folders)
    several = len(runs) > 1
    output = output or folders[0] / "summary.html"
    loader = FileSystemLoader(_HERE)
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, autoescape=True, loader=loader
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["number"] = _number
    environment.filters["with_unit"] = with_unit
    environment.filters["range"] = _range
    environment.filters["breakable"] = breakable
    environment.filters["sha256"] = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    environment.filters["numbers"] = lambda means, metrics: [_number(means.get(metric)) for metric in metrics]
    methods = {method: [run.tested[method] for run in runs if method in run.tested] for method in ("defaults", "input")}
    metrics = list(dict.fromkeys(name for run in runs for name in run.tested.get("output", {})))
    page = environment.get_template("summary.html").render(
        title=f"{len(runs)} runs in {runs[0].folder.resolve().parent.name}" if several else runs[0].name,
        several=several,
        runs=runs,
        metrics=metrics,
        titles={metric: TITLES.get(metric, metric.replace("_", " ")) for metric in metrics},
        meanings=EXPLAINED,
        colours=COLOURS,
        style=(_HERE / "summary.css").read_text(encoding="utf-8"),
        script=(_HERE / "charts.js").read_text(encoding="utf-8"),
        references={method: means[0] for method, means in methods.items() if means},
        sweeps={folder.resolve().name: _read_sweep(folder) for folder in folders},
        about_sweeps=NOTE,
        differing=_differing_options(runs),
        curves=_curves(runs),
        versions=list(dict.fromkeys(name for run in runs for name in run.versions)),
        is_same_versions=all(run.versions == runs[0].versions for run in runs),
        sections=tqdm(runs, desc="Writing the summary", unit="run", disable=not several),
    )
    try:
        write_text(output, page)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}") from error
    return output


def _read_sweep(folder: Path) -> dict[str, tuple[list[str], list[list[str]]]]:
    with _reading(folder):
        return read_tables(folder)


def _differing_options(runs: Sequence[Run]) -> list[str]:
    options = dict.fromkeys(name for run in runs for name in run.config if not name.startswith(_NOT_OF_THE_EXPERIMENT))
    return [name for name in options if len({json.dumps(run.config.get(name, "-"), default=str) for run in runs}) > 1]


def _curves(runs: Sequence[Run]) -> dict[str, list[Chart]]:
    """Return the charts of the histories by section."""
    names, histories = [run.name for run in runs], [run.history for run in runs]
    sections = {name: [chart_curves(names, histories, panel) for panel in panels] for name, panels in CURVES.items()}
    drawn = {name: [chart for chart in charts if chart] for name, charts in sections.items()}
    return {name: charts for name, charts in drawn.items() if charts}


def _range(low: float, high: float, unit: str) -> str:
    """Return ``300 Hz to 3 kHz``, or ``-12 to 12 dB`` where both have the same unit."""
    first, last = with_unit(low, unit), with_unit(high, unit)
    shared = last.partition(" ")[2]
    return f"{first.removesuffix(f' {shared}') if shared else first} to {last}"


def breakable(name: str) -> Markup:
    """Return a name whose lines may end after an underscore, or a dot that is not a decimal point."""
    return Markup(re.sub(r"_|\.(?!\d)", r"\g<0><wbr>", str(escape(name))))


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if 0 < abs(value) < 0.01:
        return f"{value:.4f}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings and lists to one mapping by dotted names."""
    if isinstance(tree, (dict, list)) and tree:
        flat: dict[str, Any] = {}
        for name, branch in tree.items() if isinstance(tree, dict) else enumerate(tree):
            flat.update(_flatten(branch, f"{prefix}.{name}" if prefix else str(name)))
        return flat
    return {prefix: tree}


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    _require(isinstance(content, dict), path)
    return content


def _read_tested(path: Path) -> dict[str, dict[str, float]]:
    tested = _read_json(path)
    _require(all(isinstance(of, dict) and all(map(_is_number, of.values())) for of in tested.values()), path)
    return tested


def _read_parameters(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines() if path.exists() else []):
        _require(row.keys() == set(_COLUMNS), path)
        numbers = {name: float(row[name]) for name in _COLUMNS[2:-1]}
        _require(numbers["low"] < numbers["high"], path)
        sensitivity = row["sensitivity_db"] and float(row["sensitivity_db"])
        rows.append({"name": row["name"], "unit": row["unit"], **numbers, "sensitivity_db": sensitivity})
    return rows


def _read_automation(path: Path) -> dict[str, dict[str, list[float]]]:
    """Return the columns of each excerpt."""
    lines: dict[str, dict[str, list[float]]] = {}
    for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
        of = lines.setdefault(row.pop("excerpt"), {})
        for name, value in row.items():
            _require(math.isfinite(float(value)), path)
            of.setdefault(name, []).append(float(value))
    _require(all("seconds" in of for of in lines.values()), path)
    return lines
