"""All figures that are drawn with matplotlib. Every function returns a figure, to show or to save."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from dfx.audio.levels import amplitude_to_db, frame_levels_db, level_frame_samples
from dfx.audio.spectrogram import magnitude_spectrogram
from dfx.effects import Parameter, ParameterSpace
from dfx.effects.parameter import with_unit

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's colours, which the colour-blind can tell."""

_RANGE_DB = 80.0
_LOWEST_HZ = 40.0
_ROWS, _COLUMNS = 160, 400
"""Size of an excerpt's spectrogram: about as many rows and columns as its panel has pixels."""
_MARKERS = "osD^vP*Xh<>dp"


def draw_rendering(
    input: Tensor,
    output: Tensor,
    automation: np.ndarray,
    parameters: Sequence[Parameter],
    sample_rate: int,
    frame_samples: int,
    marked: Sequence[tuple[float, float]] = (),
) -> Figure:
    """Draw levels, spectrograms and parameters over one time axis, as the paper shows its automation.

    Levels are those of every 20 ms, in dBFS; spectrograms, of the mean of the channels, share one scale of 80 dB. Every
    parameter has its own panel, in its unit and on its scale, which spans its values in the recording, or a tenth of
    its range if it moves less.

    Args:
        input, output: ``(channels, samples)``, aligned with each other.
        automation: ``(frames, P)``, values of the parameters in their units.
        parameters: parameters of the chain, in the order of ``automation``.
        sample_rate: in Hz.
        frame_samples: length of a frame, during which the parameters are constant.
        marked: spans, ``(start, end)`` in seconds, that are shaded in the panels of levels and parameters.

    Raises:
        ValueError: if ``automation`` does not have one column for each parameter.
    """
    if automation.shape[1] != len(parameters):
        raise ValueError(f"automation has {automation.shape[1]} columns for {len(parameters)} parameters")
    heights = [1.1, 1.2, 1.2, *[0.8] * len(parameters)]
    figure = Figure(figsize=(7.2, sum(heights) + 0.6), dpi=80, layout="constrained")
    axes = figure.subplots(len(heights), sharex=True, height_ratios=heights)
    _plot_levels(axes[0], input, output, sample_rate)
    images = {axis: _levels_db(audio, 512, 256) for axis, audio in zip(axes[1:3], (input, output))}
    # The maximum would leave most of the picture dark.
    top = max(float(np.quantile(levels, 0.999)) for levels in images.values())
    seconds = input.shape[1] / sample_rate
    # Few colours keep the file of the figure small.
    colours = matplotlib.colormaps["magma"].resampled(8)
    for (axis, levels), name in zip(images.items(), ("input", "output")):
        image = _show_levels(axis, levels - top, seconds, sample_rate / 2000, colours)
        axis.set_ylabel(f"{name} [kHz]")
    figure.colorbar(image, ax=list(images), label="dB", pad=0.01)
    # The last frame may extend beyond the end of the recording.
    borders = np.arange(len(automation) + 1) * frame_samples / sample_rate
    for axis, parameter, values in zip(axes[3:], parameters, automation.T):
        _plot_parameter(axis, parameter, values, borders)
    for axis in (axes[0], *axes[3:]):
        axis.grid(alpha=0.3)
        for start, end in marked:
            axis.axvspan(start, end, color=COLOURS[2], alpha=0.15, lw=0)
    axes[0].set_xlim(0, seconds)
    axes[-1].set_xlabel("time [s]")
    figure.align_ylabels(list(axes))
    return figure


def _plot_levels(axis: Axes, input: Tensor, output: Tensor, sample_rate: int) -> None:
    frame_seconds = level_frame_samples(sample_rate) / sample_rate
    for audio, name, style in ((input, "input", {"color": "0.6", "lw": 2}), (output, "output", {"color": COLOURS[0]})):
        levels = frame_levels_db(audio, sample_rate)
        axis.plot((np.arange(len(levels)) + 0.5) * frame_seconds, levels, label=name, **style)
    axis.set_ylabel("level [dB]")
    axis.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2, fontsize=8, frameon=False)


def _plot_parameter(axis: Axes, parameter: Parameter, values: np.ndarray, borders: np.ndarray) -> None:
    axis.stairs(values, borders, baseline=None, color=COLOURS[1], lw=1.2)
    axis.set_title(parameter.name, loc="left", fontsize=9, pad=2)
    axis.set_ylabel(parameter.unit)
    log = parameter.scale == "log"
    warp, unwarp = (np.log, np.exp) if log else (np.asarray, np.asarray)
    low, high, moved_from, moved_to = warp([parameter.low, parameter.high, values.min(), values.max()])
    span = max(moved_to - moved_from, 0.1 * (high - low))
    middle = (moved_from + moved_to) / 2
    axis.set_yscale("log" if log else "linear")
    axis.set_ylim(*unwarp([middle - 0.6 * span, middle + 0.6 * span]))
    if log:
        ticks = unwarp(np.linspace(middle - 0.5 * span, middle + 0.5 * span, 3))
        _set_plain_ticks(axis.yaxis, [float(f"{tick:.2g}") for tick in ticks])


def draw_excerpt_spectrograms(excerpts: Mapping[str, Mapping[str, np.ndarray]], sample_rate: int) -> Figure:
    """Draw the spectrograms of an excerpt's sides (input, output, target) next to each other, a row for each excerpt.

    Levels are in dB below the maximum of the row; frequencies are on a logarithmic scale from 40 Hz to Nyquist.

    Args:
        excerpts: for each name the sides, ``(channels, samples)`` each.
        sample_rate: in Hz.
    """
    names = list(next(iter(excerpts.values())))
    figure = Figure(figsize=(9, 0.7 + 1.7 * len(excerpts)), dpi=90)
    all_axes = figure.subplots(len(excerpts), len(names), squeeze=False, sharex="row", sharey=True)
    _set_margins(figure, left=0.62, right=0.75, top=0.5, bottom=0.5)
    figure.subplots_adjust(wspace=0.06, hspace=0.42)
    edges = np.geomspace(_LOWEST_HZ, sample_rate / 2, _ROWS + 1)
    ticks = [hertz for hertz in (100, 1000, 10000) if hertz < sample_rate / 2]
    labels = [with_unit(hertz, "Hz") for hertz in ticks]
    for axes, (name, sides) in zip(all_axes, excerpts.items()):
        levels = {side: _band_levels_db(audio, sample_rate, edges) for side, audio in sides.items()}
        maximum = max(float(level.max()) for level in levels.values())
        for axis, side in zip(axes, names):
            image = _show_levels(axis, levels[side] - maximum, sides[side].shape[-1] / sample_rate, _ROWS)
            axis.tick_params(labelsize=7)
            axis.xaxis.set_major_locator(MaxNLocator(5, prune="upper"))
            axis.xaxis.set_major_formatter("{x:g}")
        axes[0].set_yticks(np.interp(np.log(ticks), np.log(edges), np.arange(_ROWS + 1)), labels)
        axes[0].annotate(name, (0, 1), (0, 4), "axes fraction", "offset points", fontsize=8, color="0.3")
    for axis, side in zip(all_axes[0], names):
        axis.set_title(side, fontsize=9, pad=16)
    for axis in all_axes[-1]:
        axis.set_xlabel("seconds", fontsize=8)
    width, height = figure.get_size_inches()
    bar = figure.add_axes((1 - 0.62 / width, 0.5 / height, 0.12 / width, 1 - 1.0 / height))
    figure.colorbar(image, cax=bar).ax.tick_params(labelsize=7)
    bar.set_title("dB", fontsize=8, pad=5)
    return figure


def draw_excerpt_automation(
    automation: Mapping[str, np.ndarray], parameters: Sequence[Parameter], frame_seconds: float
) -> Figure:
    """Draw values of parameters over time: a lane for each parameter, and in it a line for each excerpt.

    A lane spans the parameter's range, on its scale; the dotted line is the default.

    Args:
        automation: for each excerpt ``(frames, P)``, in the parameters' units.
        parameters: in the order of ``automation``.
        frame_seconds: length of a frame.
    """
    space, count = ParameterSpace(parameters), len(parameters)
    figure = Figure(figsize=(9, 0.95 + 0.42 * count), dpi=90)
    axis = figure.subplots()
    _set_margins(figure, left=2.6, right=0.9, top=0.45, bottom=0.5)
    height, longest = 0.76, max(len(values) for values in automation.values()) * frame_seconds
    bottoms = count - 1 - np.arange(count) + (1 - height) / 2
    for bottom, default, parameter in zip(bottoms, space.defaults, parameters):
        axis.axhspan(bottom, bottom + height, color="0.955", lw=0)
        axis.hlines(bottom + height * default, 0, longest, color="0.55", lw=0.8, ls=":")
        for end, y, align in ((parameter.low, bottom, "bottom"), (parameter.high, bottom + height, "top")):
            text, coordinates = with_unit(end, parameter.unit), ("axes fraction", "data")
            axis.annotate(text, (1, y), (4, 0), coordinates, "offset points", fontsize=6.5, color="0.35", va=align)
    for index, (name, values) in enumerate(automation.items()):
        lanes = bottoms + height * space.normalize(values)
        times = np.arange(len(lanes) + 1) * frame_seconds
        # Each line is thinner than the previous one, so that lines on top of each other all remain visible.
        width = 1.2 + 1.3 * (len(automation) - 1 - index)
        lines = axis.step(times, np.concatenate([lanes, lanes[-1:]]), where="post", color=_colour(index), lw=width)
        lines[0].set_label(name)
    axis.set(xlim=(0, longest), ylim=(0, count))
    axis.set_xlabel("seconds", fontsize=8)
    axis.set_yticks(bottoms + height / 2, [parameter.name for parameter in parameters])
    axis.tick_params(labelsize=7.5)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="upper center", ncols=len(automation), fontsize=7.5, frameon=False)
    return figure


def draw_paper(rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, str]) -> Figure:
    """Draw means of every method with their 95 % intervals, a row of panels for each task, a column for each metric.

    Args:
        rows: of :func:`dfx.paper.table.read_rows`; methods without any of the metrics are left out.
        metrics: columns of the rows, and their names.
    """
    measured = [row for row in rows if any(row[metric] is not None for metric in metrics)]
    tasks = list(dict.fromkeys(row["task"] for row in measured))
    counts = [sum(row["task"] == task for row in measured) for task in tasks]
    figure = Figure(figsize=(10, 1.2 + 0.32 * sum(counts) + 0.5 * len(tasks)), dpi=120, layout="constrained")
    panels = figure.subplots(len(tasks), len(metrics), squeeze=False, sharey="row", height_ratios=counts)
    for axes, task in zip(panels, tasks):
        of_task = [row for row in measured if row["task"] == task]
        for axis, metric in zip(axes, metrics):
            for place, row in enumerate(of_task):
                mean = row[metric]
                if mean is not None:
                    half = 0.0 if mean.low is None else mean - mean.low
                    trained = row["seeds"] is not None
                    axis.errorbar(mean, place, xerr=half, fmt="o", capsize=3, color=COLOURS[1 if trained else 0])
            axis.set_xlim(left=0)
            axis.grid(alpha=0.3, axis="x")
        axes[0].set_yticks(range(len(of_task)), [row["method"] for row in of_task])
        axes[0].invert_yaxis()
        axes[0].set_ylabel(task.replace("_", " "))
    for axis, name in zip(panels[-1], metrics.values()):
        axis.set_xlabel(name, fontsize=8)
    return figure


def draw_sweep(runs: Sequence[Mapping[str, Any]], means: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draw validation loss over renderings, and below it the lowest validation and the test loss over each parameter.

    A line is the mean of an arm, in a band of one standard deviation over its runs. The panels of the parameters show
    means with their 95 % intervals; geometric values are on a logarithmic axis, those that are no numbers side by side.

    Args:
        runs: of :func:`dfx.sweep.summary.read_runs`.
        means: of :func:`dfx.sweep.summary.marginal_means`.
        title: of the figure.
    """
    parameters = list(dict.fromkeys(row["parameter"] for row in means))
    figure = Figure(figsize=(8, 8.2 if parameters else 4.8), dpi=120, layout="constrained")
    figure.suptitle(title)
    above, *below = figure.subfigures(
        1 + bool(parameters), squeeze=False, height_ratios=[4.6, 3.2][: 1 + bool(parameters)]
    ).flat
    _plot_courses(above.subplots(), runs)
    if below:
        panels = below[0].subplots(1, len(parameters), squeeze=False, sharey=True)[0]
        for axis, parameter in zip(panels, parameters):
            _plot_marginal_means(axis, parameter, [row for row in means if row["parameter"] == parameter])
        panels[0].set_ylabel("mean loss, 95 % interval")
        panels[0].legend(fontsize=8)
    return figure


def _plot_courses(axis: Axes, runs: Sequence[Mapping[str, Any]]) -> None:
    for index, arm in enumerate(dict.fromkeys(run["arm"] for run in runs)):
        of_arm = [run for run in runs if run["arm"] == arm]
        losses: dict[float, list[float]] = {}
        for renderings, loss in (point for run in of_arm for point in run["course"]):
            losses.setdefault(renderings, []).append(loss)
        x = np.array(sorted(losses))
        mean = np.array([statistics.fmean(losses[renderings]) for renderings in x])
        deviation = np.array([statistics.stdev(losses[r]) if len(losses[r]) > 1 else 0.0 for r in x])
        values = of_arm[0]["values"].items()
        label = ", ".join(value if name == "config" else f"{name} = {value}" for name, value in values) or arm
        color, marker = _colour(index), _MARKERS[index % len(_MARKERS)]
        axis.plot(x, mean, f"{marker}-", color=color, markersize=4, label=label)
        axis.fill_between(x, mean - deviation, mean + deviation, color=color, alpha=0.15, linewidth=0)
    axis.set_ylabel("validation loss, ± one standard deviation")
    _show_renderings(axis)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _plot_marginal_means(axis: Axes, parameter: str, rows: Sequence[Mapping[str, Any]]) -> None:
    names = [row["value"] for row in rows]
    values = _as_numbers(names)
    for index, (name, label) in enumerate({"validation loss at best": "best validation", "test loss": "test"}.items()):
        # Side by side, where there is no axis of numbers.
        x = np.arange(len(names)) + 0.1 * (2 * index - 1) if values is None else values
        order = np.argsort(x)
        mean, half = np.array([[row[name], row[f"{name} interval"] or 0.0] for row in rows])[order].T
        marker = f"{_MARKERS[index]}{'' if values is None else '-'}"
        axis.errorbar(x[order], mean, half, fmt=marker, color=_colour(index), ms=4, lw=1.2, capsize=3, label=label)
    axis.set_xlabel(parameter)
    axis.grid(alpha=0.3)
    if values is None:
        axis.set_xticks(range(len(names)), names, rotation=20 if len(names) > 3 else 0)
        axis.margins(x=0.5 / len(names))
    else:
        axis.set_xscale("log" if _is_geometric(values) else "linear")
        axis.margins(x=0.1)
        _set_plain_ticks(axis.xaxis, values.tolist())


def _as_numbers(texts: Sequence[str]) -> np.ndarray | None:
    try:
        return np.array([float(text) for text in texts])
    except ValueError:
        return None


def _is_geometric(values: np.ndarray) -> bool:
    """Return whether the ratios of positive values are more alike than their differences."""
    if len(values) < 3 or values.min() <= 0:
        return False
    ratios, differences = (np.diff(np.sort(warped)) for warped in (np.log(values), values))
    return bool(ratios.std() / ratios.mean() < differences.std() / differences.mean())


def draw_twin(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw validation loss over renderings and over CPU time: means over seeds, in bands of one standard deviation.

    Exact gradients take no renderings; in the left panel, a dashed line is their lowest mean loss.

    Args:
        rows: of :func:`dfx.benchmark.twin.twin`.
    """
    figure = Figure(figsize=(9, 4), dpi=120, layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for index, gradient in enumerate(dict.fromkeys(row["gradient"] for row in rows)):
        # (runs, validations, 3), all runs with one schedule
        courses = np.array([row["course"] for row in rows if row["gradient"] == gradient])
        *costs, mean = courses.mean(axis=0).T
        deviation = courses[..., 2].std(axis=0, ddof=1) if len(courses) > 1 else np.zeros_like(mean)
        color, marker = _colour(index), _MARKERS[index % len(_MARKERS)]
        for axis, cost in zip(axes, costs):
            if not cost.any():
                axis.axhline(mean.min(), color=color, ls="--")
                continue
            axis.plot(cost, mean, f"{marker}-", color=color, markersize=4, label=gradient)
            axis.fill_between(cost, mean - deviation, mean + deviation, color=color, alpha=0.15, linewidth=0)
    axes[0].set_ylabel("validation loss, ± one standard deviation")
    _show_renderings(axes[0])
    axes[1].set_xlabel("CPU time in training and validation [s]")
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=8)
    return figure


def draw_fidelity(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the cosine of the encoder's gradient over the renderings it costs, a panel for each chain, time and batch.

    The rows are those of :func:`dfx.benchmark.fidelity.fidelity`.
    """
    panels = list(dict.fromkeys((row["chain"], row["when"], row["batch"]) for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    lowest = min(0.0, *(row["cosine_encoder"] for row in rows))
    columns = min(len(panels), 4)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns + 3, 2.8 * lines), dpi=110, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True).flatten()
    for axis, panel in zip(axes, panels):
        of_panel = [row for row in rows if (row["chain"], row["when"], row["batch"]) == panel]
        for row in of_panel:
            index = names.index(row["name"])
            axis.plot(
                row["renderings"], row["cosine_encoder"], _MARKERS[index], color=_colour(index), label=row["name"]
            )
        axis.set(xscale="log", ylim=(lowest - 0.05, 1.05), xlabel="renderings per example")
        _set_plain_ticks(axis.xaxis, sorted({row["renderings"] for row in of_panel}))
        axis.set_title("{}, {}, batch {}".format(*panel), fontsize=9)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("cosine with the exact gradient")
    for axis in axes[len(panels) :]:
        axis.remove()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    return figure


def draw_ratings(ratings: Sequence[Any], averages: Sequence[Any]) -> Figure:
    """Draw the ratings of each condition as a box plot, with its mean and 95 % interval beside it.

    Args:
        ratings: a sequence of :class:`dfx.listening.ratings.Rating`.
        averages: of :func:`dfx.listening.ratings.average`.
    """
    scores = {of.condition: [one.score for one in ratings if one.condition == of.condition] for of in averages}
    shown = [of for of in averages if scores[of.condition]]  # without the differences
    figure = Figure(figsize=(1.5 + 1.1 * len(shown), 4), dpi=120, layout="constrained")
    axis = figure.subplots()
    axis.boxplot([scores[of.condition] for of in shown], widths=0.4, medianprops={"color": "0.3"})
    for place, (_, mean) in enumerate(shown, 1):
        half = 0.0 if mean.low is None else mean - mean.low
        axis.errorbar(place + 0.3, mean, half, fmt="o", color=COLOURS[0], markersize=5, capsize=3)
    axis.set_xticks(range(1, len(shown) + 1), [of.condition.replace("_", "\n") for of in shown])
    axis.set(ylim=(-3, 103), ylabel="similarity to the reference")
    axis.grid(axis="y", alpha=0.3)
    return figure


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _levels_db(audio: Tensor, fft_samples: int, hop_samples: int) -> np.ndarray:
    """Return the levels of the mean of the channels, ``(bins, windows)``."""
    return amplitude_to_db(magnitude_spectrogram(audio.mean(dim=0).numpy(), fft_samples, hop_samples))


def _band_levels_db(audio: np.ndarray, sample_rate: int, edges: np.ndarray) -> np.ndarray:
    """Return the levels at the middle of the bands between ``edges`` (in Hz), ``(bands, windows)``."""
    fft_samples = 1024
    hop = max(fft_samples // 4, -(-audio.shape[1] // _COLUMNS))
    levels = _levels_db(torch.from_numpy(audio), fft_samples, hop)
    bins = np.sqrt(edges[1:] * edges[:-1]) * fft_samples / sample_rate
    # Interpolated, since low bands are narrower than a bin.
    below = np.minimum(bins.astype(int), len(levels) - 2)
    share = (bins - below)[:, None]
    return levels[below] * (1 - share) + levels[below + 1] * share


def _show_levels(axis: Axes, levels: np.ndarray, seconds: float, height: float, colours: Any = "magma") -> AxesImage:
    extent = (0, seconds, 0, height)
    return axis.imshow(
        levels, colours, aspect="auto", interpolation="nearest", vmin=-_RANGE_DB, vmax=0, origin="lower", extent=extent
    )


def _show_renderings(axis: Axes) -> None:
    axis.set(xscale="log", xlabel="renderings in training")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    _set_plain_ticks(axis.xaxis)


def _set_plain_ticks(axis: Axis, ticks: Sequence[float] | None = None) -> None:
    """Label a logarithmic axis with plain numbers, at the given ticks only."""
    if ticks is not None:
        axis.set_ticks(ticks)
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def _set_margins(figure: Figure, left: float, right: float, top: float, bottom: float) -> None:
    """Set margins in inches, independent of the size of the figure."""
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
