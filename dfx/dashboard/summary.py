"""A run, or all runs of an ablation, as one HTML file that holds all it shows."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import yaml
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from tqdm import tqdm

from dfx.callbacks.excerpts import ABOUT, AUTOMATION_IMAGE, PARAMETERS, SPECTROGRAMS
from dfx.callbacks.figures import SIDES
from dfx.dashboard.workspace import CURVES, Curves
from dfx.errors import UserError
from dfx.loggers.history import best_row, read_history

CONFIG = "resolved_config.yaml"

_NOT_OF_THE_EXPERIMENT = ("run.", "wandb.", "logging.", "config")
"""Options that differ between runs without making them different."""

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto; padding: 0 1.5em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ddd; padding-bottom: .2em; }
h3 { font-size: 1em; margin: 1.5em 0 .4em; }
table { border-collapse: collapse; font-size: .85em; }
th, td { text-align: right; padding: .25em .7em; border-bottom: 1px solid #eee; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; color: #555; border-bottom: 1px solid #bbb; white-space: normal; vertical-align: bottom; }
.scroll { overflow-x: auto; }
img { max-width: 100%; display: block; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(360px, 1fr)); gap: .6em; }
.sounds { display: flex; gap: 1em; flex-wrap: wrap; margin-bottom: .8em; }
.sound { font-size: .85em; color: #555; } .sound audio { display: block; width: 280px; height: 36px; margin-top: .2em; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .45em; }
.bar { display: inline-block; position: relative; width: 120px; height: 8px; background: #eee; border-radius: 2px; }
.bar i { position: absolute; top: 0; height: 8px; background: #bcd4ea; }
.bar b { position: absolute; top: -2px; width: 2px; height: 12px; background: #1f77b4; }
.note { color: #777; font-size: .85em; }
.alarm { color: #b00020; font-weight: 600; }
"""

_SCRIPT = """
// One player at a time.
document.addEventListener("play", event => {
  for (const other of document.querySelectorAll("audio")) if (other !== event.target) other.pause();
}, true);
"""


@dataclass
class Run:
    """What a run's folder tells.

    Args:
        folder: of the run.
        config: every option, by its place in dots.
        history: see :func:`~dfx.callbacks.read_history`.
        versions, tested: ``versions.json`` and ``evaluation/metrics.json``; empty where there is none.
        parameters: the rows of ``parameters.csv``.
        media: the folders of ``media``, in the order of their steps.
    """

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    tested: dict[str, dict[str, float]] = field(default_factory=dict)
    parameters: list[dict[str, str]] = field(default_factory=list)
    media: list[Path] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def steps(self) -> int:
        """Of training, in all stages."""
        return max((int(row["total_step"]) + 1 for row in self.history if not _is_tested(row)), default=0)

    @classmethod
    def read(cls, folder: Path) -> Run:
        """The run of a folder; what it has not written yet is empty.

        Raises:
            UserError: if a file of it cannot be read.
        """
        try:
            return cls(
                folder,
                _flat(yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")) or {}),
                read_history(folder),
                _json(folder / "versions.json"),
                _json(folder / "evaluation" / "metrics.json"),
                _rows(folder / PARAMETERS),
                sorted(about.parent for about in (folder / "media").glob(f"step_*/{ABOUT}")),
            )
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{folder} cannot be read as a run: {' '.join(str(error).split())}") from error


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in folders, each of which is a run's or has runs' in it.

    Raises:
        UserError: if a folder is not there, or neither is a run nor has any.
    """
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
        inside = [folder] if (folder / CONFIG).is_file() else sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
        if not inside:
            raise UserError(f"{folder} is not a run, and has none in it: no {CONFIG}")
        found += inside
    return [Run.read(folder) for folder in dict.fromkeys(found)]


def write_summary(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Writes the summary of all runs in some folders.

    Args:
        folders: see :func:`find_runs`.
        output: the HTML file; by default ``summary.html`` in the first folder.

    Returns:
        The file.

    Raises:
        UserError: if there are no runs, or the file cannot be written.
    """
    runs = find_runs(folders)
    output = output or folders[0] / "summary.html"
    page = "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{escape(_title(runs))}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(_title(runs))}</h1>",
            _overview(runs),
            _differences(runs),
            _curves(runs),
            *(_of_run(run, runs) for run in tqdm(runs, desc="Summing up", unit="run", disable=len(runs) == 1)),
            _versions(runs),
            f"<script>{_SCRIPT}</script></body></html>",
        ]
    )
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}") from error
    return output


# --- what runs have in common ---------------------------------------------------------------------------


def _title(runs: Sequence[Run]) -> str:
    return runs[0].name if len(runs) == 1 else f"{len(runs)} runs in {runs[0].folder.resolve().parent.name}"


def _overview(runs: Sequence[Run]) -> str:
    metrics = list(dict.fromkeys(name for run in runs for name in run.tested.get("output", {})))
    head = ["run", "steps", "minutes", "best validation loss", *(f"held-out {metric}" for metric in metrics)]
    lines = []
    for index, run in enumerate(runs):
        best = best_row(run.history) if run.history else None
        tested = run.tested.get("output", {})
        lines.append(
            [
                _key(index, runs) + escape(run.name),
                str(run.steps),
                f"{_seconds(run) / 60:.1f}",
                _number(best and best["validation/loss"]),
                *(_number(tested.get(metric)) for metric in metrics),
            ]
        )
    for method in ("defaults", "input"):
        means = next((run.tested[method] for run in runs if method in run.tested), None)
        if means:
            lines.append([f"<em>{method}</em>", "", "", "", *(_number(means.get(metric)) for metric in metrics)])
    held_out = "" if metrics else '<p class="note">Held-out pairs have not been measured.</p>'
    return _table(head, lines) + held_out


def _seconds(run: Run) -> float:
    """How long it trained, without what lies between its end and its resumption."""
    times = [row["time"] for row in run.history if not _is_tested(row)]
    steps = sorted(later - earlier for earlier, later in zip(times, times[1:]))
    longest = max(600.0, 100 * steps[len(steps) // 2]) if steps else 0.0
    return sum(step for step in steps if 0 <= step < longest)


def _is_tested(row: Mapping[str, float]) -> bool:
    """Whether a row of the history is what was measured after training."""
    return any(name.startswith("test/") for name in row)


def _differences(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return ""
    options = dict.fromkeys(name for run in runs for name in run.config if not name.startswith(_NOT_OF_THE_EXPERIMENT))
    missing = "-"
    differing = [n for n in options if len({json.dumps(run.config.get(n, missing), default=str) for run in runs}) > 1]
    if not differing:
        return "<h2>What differs</h2><p>Nothing in their configs.</p>"
    lines = [
        [_key(index, runs) + escape(run.name), *(escape(_value(run.config.get(name, missing))) for name in differing)]
        for index, run in enumerate(runs)
    ]
    return "<h2>What differs</h2>" + _table(["run", *map(escape, differing)], lines)


def _curves(runs: Sequence[Run]) -> str:
    parts = []
    for section, panels in CURVES.items():
        drawn = [figure for figure in (_draw(panel, runs) for panel in panels) if figure]
        if drawn:
            parts.append(f'<h2>{escape(section)}</h2><div class="curves">{"".join(drawn)}</div>')
    return "\n".join(parts) or '<p class="note">Nothing has been logged yet.</p>'


def _draw(panel: Curves, runs: Sequence[Run]) -> str:
    figure = Figure(figsize=(4.6, 2.7), layout="constrained")
    axis = figure.subplots()
    for index, run in enumerate(runs):
        for style, metric in zip(("-", "--", ":", "-."), panel.metrics):
            points = [(row["total_step"], row[metric]) for row in run.history if metric in row]
            if points:
                # One run has a colour for each metric, several have one for each run.
                color = _color(panel.metrics.index(metric) if len(runs) == 1 else index)
                marker = "." if len(points) < 30 else ""
                axis.plot(*zip(*points), style if len(runs) > 1 else "-", marker=marker, color=color, lw=1.1, ms=4)
    if not axis.lines:
        return ""
    axis.set_title(panel.title, fontsize=9, loc="left")
    axis.set_xlabel("step", fontsize=8)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.tick_params(labelsize=7.5)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if panel.log:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
    elif panel.range[0] is not None:
        # A little below, where a line at the end of the range can be seen.
        low, high = panel.range
        top = high or max(axis.get_ylim()[1], low + 1)
        axis.set_ylim(low - 0.04 * (top - low), top)
    if len(panel.metrics) > 1:
        for number, (style, metric) in enumerate(zip(("-", "--", ":", "-."), panel.metrics)):
            one = len(runs) == 1
            axis.plot([], [], "-" if one else style, color=_color(number) if one else "0.4", label=metric.split("/")[1])
        axis.legend(fontsize=7, frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return f'<img alt="{escape(panel.title)}" src="{_data_uri(file.getvalue(), "image/svg+xml")}">'


# --- a run -----------------------------------------------------------------------------------------------


def _of_run(run: Run, runs: Sequence[Run]) -> str:
    # Of several runs, what they have come to; of one, also where it came from.
    media = run.media[-1:] if len(runs) > 1 else run.media
    parts = [f"<h2>{escape(run.name)}</h2>" if len(runs) > 1 else ""]
    if run.parameters:
        parts += ["<h3>Parameters</h3>", _parameters(run.parameters)]
    parts += [_media(folder) for folder in reversed(media)]
    if not media:
        parts.append('<p class="note">There are no media.</p>')
    return "\n".join(parts)


def _parameters(rows: Sequence[Mapping[str, str]]) -> str:
    head = ["parameter", "mean", "unit", "range", "", "default", "least", "most", "at bounds", "sensitivity"]
    lines = []
    for row in rows:
        low, high = float(row["low"]), float(row["high"])
        at_bounds, sensitivity = float(row["share_at_bounds"]), row["sensitivity_db"]
        dead = sensitivity == "-inf"
        lines.append(
            [
                escape(row["name"]),
                f"<strong>{_number(float(row['value']))}</strong>",
                escape(row["unit"]),
                f"{low:g} to {high:g}",
                _bar(*((float(row[name]) - low) / (high - low) for name in ("value", "least", "most"))),
                _number(float(row["default"])),
                _number(float(row["least"])),
                _number(float(row["most"])),
                f'<span class="{"alarm" if at_bounds > 0.5 else ""}">{100 * at_bounds:.0f} %</span>',
                '<span class="alarm">dead</span>' if dead else (f"{float(sensitivity):.0f} dB" if sensitivity else "-"),
            ]
        )
    note = (
        '<p class="note">Over all frames of the last validation. Sensitivity: the level of what changes in the '
        "excerpts when the parameter alone moves by a twentieth of its range, relative to the output.</p>"
    )
    return _table(head, lines) + note


def _bar(value: float, least: float, most: float) -> str:
    """Where in its range a parameter is: its mean as a line, least to most as a band."""
    return (
        f'<span class="bar"><i style="left:{100 * least:.1f}%;width:{max(0.5, 100 * (most - least)):.1f}%"></i>'
        f'<b style="left:calc({100 * value:.1f}% - 1px)"></b></span>'
    )


def _media(folder: Path) -> str:
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    parts = [f"<h3>After step {about['step']}: validation loss {_number(about['validation/loss'])}</h3>"]
    for name in about["excerpts"]:
        sounds = "".join(
            f'<div class="sound">{side}<audio controls preload="none" src="'
            f'{_data_uri((folder / f"{name}_{side}.flac").read_bytes(), "audio/flac")}"></audio></div>'
            for side in SIDES
        )
        parts.append(f'<div class="note">{escape(name)}, all at one gain</div><div class="sounds">{sounds}</div>')
    for image in (SPECTROGRAMS, AUTOMATION_IMAGE):
        parts.append(f'<img alt="{image}" src="{_data_uri((folder / image).read_bytes(), "image/png")}">')
    return "\n".join(parts)


def _versions(runs: Sequence[Run]) -> str:
    names = list(dict.fromkeys(name for run in runs for name in run.versions))
    if not names:
        return ""
    alike = all(run.versions == runs[0].versions for run in runs)
    shown = runs[:1] if alike else runs
    head = ["", "all runs" if alike and len(runs) > 1 else escape(shown[0].name), *(escape(r.name) for r in shown[1:])]
    lines = [[escape(name), *(escape(run.versions.get(name, "-")) for run in shown)] for name in names]
    return "<h2>Versions</h2>" + _table(head, lines)


# --- pieces of HTML --------------------------------------------------------------------------------------


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Of cells that are HTML already."""
    rows = [f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"]
    rows += [f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines]
    return f'<div class="scroll"><table>{"".join(rows)}</table></div>'


def _key(index: int, runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return ""
    return f'<span class="key" style="background:{_color(index)}"></span>'


def _color(index: int) -> str:
    return to_hex(f"C{index % 10}")


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


# --- files -----------------------------------------------------------------------------------------------


def _flat(tree: Any, place: str = "") -> dict[str, Any]:
    """A tree of mappings and lists as one mapping, by places in dots."""
    if isinstance(tree, (dict, list)) and tree:
        flat: dict[str, Any] = {}
        for name, branch in tree.items() if isinstance(tree, dict) else enumerate(tree):
            flat.update(_flat(branch, f"{place}.{name}" if place else str(name)))
        return flat
    return {place: tree}


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
