"""What can be seen of excerpts: their spectrograms, and the automation of the parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dfx.effects.parameter import Parameter, ParameterSpace

SIDES = ("input", "output", "target")

_FFT_SAMPLES = 1024
_ROWS = 160
_WINDOWS = 400
"""More rows and columns than a panel has pixels would be drawn for nothing."""
_RANGE_DB = 80.0
_LOWEST_HZ = 40.0


def draw_spectrograms(excerpts: Mapping[str, Mapping[str, np.ndarray]], sample_rate: int, path: Path) -> None:
    """Draws the spectrograms of input, output and target side by side, a row for each excerpt.

    Levels are in dB below the loudest of the row; frequencies lie on a logarithmic scale from 40 Hz to Nyquist.

    Args:
        excerpts: by name, for every side ``(channels, samples)``.
        sample_rate: in Hz.
        path: of the PNG.
    """
    figure = Figure(figsize=(9, 0.7 + 1.7 * len(excerpts)), dpi=90)
    all_axes = figure.subplots(len(excerpts), len(SIDES), squeeze=False, sharex="row", sharey=True)
    _margins(figure, left=0.62, right=0.75, top=0.5, bottom=0.5)
    figure.subplots_adjust(wspace=0.06, hspace=0.42)
    edges = np.geomspace(_LOWEST_HZ, sample_rate / 2, _ROWS + 1)
    shown = None
    for row, (axes, (name, sides)) in enumerate(zip(all_axes, excerpts.items())):
        levels = {side: _levels(sides[side], sample_rate, edges) for side in SIDES}
        loudest = max(float(level.max()) for level in levels.values())
        for axis, side in zip(axes, SIDES):
            seconds = sides[side].shape[-1] / sample_rate
            shown = axis.imshow(
                levels[side] - loudest, origin="lower", aspect="auto", cmap="magma", vmin=-_RANGE_DB, vmax=0,
                extent=(0, seconds, 0, _ROWS), interpolation="nearest",
            )  # fmt: skip
            axis.tick_params(labelsize=7)
            axis.xaxis.set_major_locator(MaxNLocator(5, prune="upper"))
            axis.xaxis.set_major_formatter("{x:g}")
            if row == 0:
                axis.set_title(side, fontsize=9, pad=16)
        ticks = [hertz for hertz in (100, 1000, 10000) if hertz < sample_rate / 2]
        axes[0].set_yticks(np.interp(np.log(ticks), np.log(edges), np.arange(_ROWS + 1)), [_hertz(f) for f in ticks])
        axes[0].annotate(name, (0, 1), (0, 4), "axes fraction", "offset points", fontsize=8, color="0.3")
    for axis in all_axes[-1]:
        axis.set_xlabel("seconds", fontsize=8)
    # Beside the panels, and not out of them.
    width, height = figure.get_size_inches()
    bar = figure.add_axes((1 - 0.62 / width, 0.5 / height, 0.12 / width, 1 - 1.0 / height))
    figure.colorbar(shown, cax=bar).ax.tick_params(labelsize=7)
    bar.set_title("dB", fontsize=8, pad=5)
    figure.savefig(path)


def _levels(audio: np.ndarray, sample_rate: int, edges: np.ndarray) -> np.ndarray:
    """The level in dB of every band between the edges, in every window: ``(rows, windows)``."""
    audio = audio.mean(axis=0)
    audio = np.pad(audio, (0, max(0, _FFT_SAMPLES - len(audio))))
    hop = max(_FFT_SAMPLES // 4, -(-(len(audio) - _FFT_SAMPLES) // _WINDOWS))
    windows = np.lib.stride_tricks.sliding_window_view(audio, _FFT_SAMPLES)[::hop]
    power = np.square(np.abs(np.fft.rfft(windows * np.hanning(_FFT_SAMPLES).astype(np.float32))))
    # At the middle of each band, between bins where it is narrower than they lie.
    bins = np.sqrt(edges[1:] * edges[:-1]) * _FFT_SAMPLES / sample_rate
    below = np.minimum(bins.astype(int), power.shape[1] - 2)
    share = bins - below
    return 10 * np.log10(power[:, below] * (1 - share) + power[:, below + 1] * share + 1e-10).T


def _hertz(frequency: float) -> str:
    return f"{frequency / 1000:g} kHz" if frequency >= 1000 else f"{frequency:g} Hz"


def draw_automation(
    automation: Mapping[str, np.ndarray], parameters: Sequence[Parameter], frame_seconds: float, path: Path
) -> None:
    """Draws the values of the parameters over time, a lane for each parameter and a line for each excerpt.

    A lane spans the parameter's range, on its own scale; the dotted line is the default.

    Args:
        automation: by the excerpt's name, ``(frames, P)`` in the parameters' units.
        parameters: in their order.
        frame_seconds: how long a frame is.
        path: of the PNG.
    """
    space = ParameterSpace(parameters)
    count = len(parameters)
    figure = Figure(figsize=(9, 0.95 + 0.42 * count), dpi=90)
    axis = figure.subplots()
    _margins(figure, left=2.6, right=0.9, top=0.45, bottom=0.5)
    height, longest = 0.76, max(len(values) for values in automation.values()) * frame_seconds
    for row, (default, parameter) in enumerate(zip(space.defaults, parameters)):
        bottom = count - 1 - row + (1 - height) / 2
        axis.axhspan(bottom, bottom + height, color="0.955", lw=0)
        axis.hlines(bottom + height * default, 0, longest, color="0.55", lw=0.8, ls=":")
        for end, place in ((parameter.low, bottom), (parameter.high, bottom + height)):
            axis.annotate(
                f"{end:g} {parameter.unit}".strip(), (1, place), (4, 0), ("axes fraction", "data"), "offset points",
                fontsize=6.5, color="0.35", va="bottom" if end == parameter.low else "top",
            )  # fmt: skip
    bottoms = count - 1 - np.arange(count) + (1 - height) / 2
    for index, (name, values) in enumerate(automation.items()):
        lanes = bottoms + height * space.normalize(values)
        times = np.arange(len(lanes) + 1) * frame_seconds
        # Each thinner than the last: of lines that lie on each other, all can be seen.
        width = 1.2 + 1.3 * (len(automation) - 1 - index)
        lines = axis.step(times, np.concatenate([lanes, lanes[-1:]]), where="post", color=f"C{index}", lw=width)
        lines[0].set_label(name)
    axis.set(xlim=(0, longest), ylim=(0, count), xlabel="seconds")
    axis.xaxis.label.set_fontsize(8)
    axis.set_yticks(np.arange(count)[::-1] + 0.5, [parameter.name for parameter in parameters])
    axis.tick_params(labelsize=7.5)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="upper center", ncols=len(automation), fontsize=7.5, frameon=False)
    figure.savefig(path)


def _margins(figure: Figure, left: float, right: float, top: float, bottom: float) -> None:
    """In inches, which stay the same however large the figure is."""
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
