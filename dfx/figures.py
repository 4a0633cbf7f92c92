"""One picture of a rendering: what went in, what came out, and how the parameters moved meanwhile."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from torch import Tensor

from dfx.effects import Parameter

_FFT_SAMPLES = 512
_RANGE_DB = 80.0
_LEVEL_SECONDS = 0.02


def draw_rendering(
    input: Tensor,
    output: Tensor,
    automation: np.ndarray,
    parameters: Sequence[Parameter],
    sample_rate: int,
    frame_samples: int,
    marked: Sequence[tuple[float, float]] = (),
) -> Figure:
    """Draws levels, spectrograms and parameters over one axis of time, as the paper shows its automation.

    Levels are of 20 ms, in dB below full scale; spectrograms share one scale of 80 dB. Both are of the mean of the
    channels. Every parameter has a panel of its own, in its unit and on its scale, from its lowest to its highest value
    in the recording, or a tenth of its range where it hardly moves.

    Args:
        input, output: ``(channels, samples)``, aligned with each other.
        automation: ``(frames, P)``, the values of the parameters in their units.
        parameters: those of the chain, in the order of ``automation``.
        sample_rate: in Hz.
        frame_samples: how long one set of parameters holds.
        marked: spans, ``(start, end)`` in seconds, that are shaded in the panels of lines.

    Returns:
        The figure, to show or to save.

    Raises:
        ValueError: if ``automation`` has not a column for each parameter.
    """
    if automation.shape[1] != len(parameters):
        raise ValueError(f"automation has {automation.shape[1]} columns for {len(parameters)} parameters")
    seconds = input.shape[1] / sample_rate
    heights = [1.1, 1.2, 1.2, *[0.8] * len(parameters)]
    figure = Figure(figsize=(7.2, sum(heights) + 0.6), dpi=80, layout="constrained")
    axes = figure.subplots(len(heights), sharex=True, height_ratios=heights)
    over_time, spectrograms, lanes = axes[0], axes[1:3], axes[3:]

    for audio, name, style in ((input, "input", {"color": "0.6", "lw": 2}), (output, "output", {"color": "C0"})):
        levels = _levels_db(audio, sample_rate)
        over_time.plot((np.arange(len(levels)) + 0.5) * _LEVEL_SECONDS, levels, label=name, **style)
    over_time.set_ylabel("level [dB]")
    over_time.grid(alpha=0.3)
    over_time.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2, fontsize=8, frameon=False)

    powers = {name: _power_db(audio) for name, audio in {"input": input, "output": output}.items()}
    # Not the loudest of all: next to it everything is dark.
    top = max(float(np.quantile(power, 0.999)) for power in powers.values())
    # Few colours, which keeps the file of the figure small.
    colors = matplotlib.colormaps["magma"].resampled(8)
    for axis, (name, power) in zip(spectrograms, powers.items()):
        image = axis.imshow(
            power - top, origin="lower", aspect="auto", cmap=colors, vmin=-_RANGE_DB, vmax=0,
            extent=(0, seconds, 0, sample_rate / 2000), interpolation="nearest",
        )  # fmt: skip
        axis.set_ylabel(f"{name} [kHz]")
    figure.colorbar(image, ax=list(spectrograms), label="dB", pad=0.01)

    # The last frame may reach beyond the end of the recording.
    borders = np.arange(len(automation) + 1) * frame_samples / sample_rate
    for axis, parameter, values in zip(lanes, parameters, automation.T):
        axis.stairs(values, borders, baseline=None, color="C3", lw=1.2)
        axis.set_title(parameter.name, loc="left", fontsize=9, pad=2)
        axis.set_ylabel(parameter.unit)
        _set_range(axis, parameter, values)
        axis.grid(alpha=0.3)
    for axis in (over_time, *lanes):
        for start, end in marked:
            axis.axvspan(start, end, color="C2", alpha=0.15, lw=0)
    axes[0].set_xlim(0, seconds)
    axes[-1].set_xlabel("time [s]")
    figure.align_ylabels(list(axes))
    return figure


def _levels_db(audio: Tensor, sample_rate: int) -> np.ndarray:
    """The level of every 20 ms, the last of which may be shorter."""
    parts = audio.mean(dim=0).split(max(1, round(_LEVEL_SECONDS * sample_rate)))
    return np.array([20 * math.log10(max(1e-5, float(part.square().mean().sqrt()))) for part in parts])


def _power_db(audio: Tensor) -> np.ndarray:
    """The power of every bin and window, ``(bins, windows)``."""
    mono = torch.nn.functional.pad(audio.mean(dim=0), (0, max(0, _FFT_SAMPLES - audio.shape[1])))
    window = torch.hann_window(_FFT_SAMPLES)
    spectrum = torch.stft(mono, _FFT_SAMPLES, _FFT_SAMPLES // 2, window=window, return_complex=True)
    return (20 * spectrum.abs().clamp(min=1e-5).log10()).numpy()


def _set_range(axis: object, parameter: Parameter, values: np.ndarray) -> None:
    log = parameter.scale == "log"
    warp, unwarp = (np.log, np.exp) if log else (np.asarray, np.asarray)
    low, high, moved_from, moved_to = warp([parameter.low, parameter.high, values.min(), values.max()])
    shown = max(moved_to - moved_from, 0.1 * (high - low))
    middle = (moved_from + moved_to) / 2
    axis.set_yscale("log" if log else "linear")
    axis.set_ylim(*unwarp([middle - 0.6 * shown, middle + 0.6 * shown]))
    if log:
        ticks = unwarp(np.linspace(middle - 0.5 * shown, middle + 0.5 * shown, 3))
        axis.set_yticks([float(f"{tick:.2g}") for tick in ticks])
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.minorticks_off()
