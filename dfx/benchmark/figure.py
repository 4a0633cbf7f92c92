"""The figure of the fidelity benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def draw_fidelity(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws the cosine of the encoder's gradient over the renderings it costs, a panel for each chain and time.

    Args:
        rows: of :func:`dfx.benchmark.fidelity.fidelity`.
        path: of the PNG.
    """
    panels = list(dict.fromkeys((row["chain"], row["when"], row["batch"]) for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    lowest = min(0.0, *(row["cosine_encoder"] for row in rows))
    columns = min(len(panels), 4)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns + 3, 2.8 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True).flatten()
    for axis, panel in zip(axes, panels):
        shown = [row for row in rows if (row["chain"], row["when"], row["batch"]) == panel]
        for row in shown:
            index = names.index(row["name"])
            marker, color = "osD^vP*Xh<>dp"[index], f"C{index}"
            axis.plot(row["renderings"], row["cosine_encoder"], marker, color=color, label=row["name"])
        axis.set(xscale="log", ylim=(lowest - 0.05, 1.05), xlabel="renderings an example")
        axis.set_xticks(sorted({row["renderings"] for row in shown}))
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.minorticks_off()
        axis.set_title("{}, {}, batch {}".format(*panel), fontsize=9)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("cosine with the exact gradient")
    for axis in axes[len(panels) :]:
        axis.remove()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=110)
