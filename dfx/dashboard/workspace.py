"""The dashboard in Weights & Biases, as code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from dfx.errors import UserError

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

STEP = "trainer/global_step"
"""The metric that counts steps in Lightning's logger for W&B."""


class Curves(NamedTuple):
    """A panel of metrics over steps, on a linear or logarithmic scale; the range of their values, where it is known."""

    title: str
    metrics: tuple[str, ...]
    log: bool = False
    range: tuple[float | None, float | None] = (None, None)


CURVES: dict[str, list[Curves]] = {
    "Loss": [
        Curves("Training loss", ("train/loss",)),
        Curves("Validation loss, of output and unprocessed input", ("validation/loss", "validation/loss_of_input")),
        Curves("Learning rate", ("lr-Adam",)),
    ],
    "Gradient": [
        Curves("Signal-to-noise ratio of the encoder's gradient", ("gradient/signal_to_noise",)),
        Curves("Norm of the gradient", ("gradient/norm",), log=True),
    ],
    "Parameters": [
        Curves("Share of parameters at their bounds", ("parameters/share_at_bounds",), range=(0, 1)),
        Curves("Dead parameters", ("parameters/dead",), range=(0, None)),
    ],
    "Speed": [
        Curves(
            "Shares of a training step",
            ("speed/share_effects", "speed/share_encoder", "speed/share_loss", "speed/share_logging"),
            range=(0, 1),
        ),
        Curves("Renderings per second", ("speed/renderings_per_second",)),
    ],
}
"""The panels of curves by section, for the workspace and the summary."""

TESTED = ("loss", "mrstft", "mrstft_level_matched", "mfcc_cosine", "lufs_difference", "bark_spectral_distortion")
"""Metrics of the evaluation after training, logged as ``test/METHOD/METRIC``."""

METHODS = ("input", "defaults", "fixed", "output")
"""Methods beside each other in the workspace: baselines, and the model's output. A run logs those it is tested with."""

MEDIA = ("media/audio", "media/spectrograms", "media/automation")
TABLES = ("tables/parameters", "tables/automation")


def make_workspace(entity: str, project: str, group: str | None = None, by: str | None = None) -> Workspace:
    """Return the workspace; nothing is sent until it is saved.

    Args:
        entity: the user or team.
        project: project of the runs.
        group: only runs of this group, for instance an ablation.
        by: dotted name of an option; runs with the same value of it are shown as one line, their mean.

    Raises:
        UserError: if wandb-workspaces is not installed.
    """
    try:
        from wandb_workspaces import workspaces as ws
        from wandb_workspaces.reports import v2 as wr
    except ImportError:
        raise UserError("the workspace needs wandb-workspaces: pip install wandb-workspaces") from None

    sections = []
    for name, panels in CURVES.items():
        plots: list[Any] = [
            wr.LinePlot(title=title, x=STEP, y=list(metrics), range_y=range, log_y=log or None)
            for title, metrics, log, range in panels
        ]
        sections.append(ws.Section(name=name, panels=plots, is_open=True))
    values: list[Any] = [
        wr.LinePlot(title=f"Values of the parameters: {of}", x=STEP, metric_regex=f"^values/.*/{of}$")
        for of in ("mean", "deviation")
    ]
    tested: list[Any] = [
        wr.BarPlot(title=f"{metric} of held-out pairs", metrics=[f"test/{method}/{metric}" for method in METHODS])
        for metric in TESTED
    ]
    media: list[Any] = [wr.MediaBrowser(title=name.split("/")[1], media_keys=[name], num_columns=1) for name in MEDIA]
    sections[1:1] = [
        ws.Section(name="Held-out pairs", panels=tested, is_open=True),
        ws.Section(name="Excerpts", panels=media, is_open=True),
    ]
    sections += [
        ws.Section(name="Values", panels=values, is_open=True),
        ws.Section(name="Tables", panels=[wr.WeavePanelSummaryTable(table_name=name) for name in TABLES]),
        ws.Section(name="Differences between runs", panels=[wr.RunComparer(diff_only="split")], is_open=True),
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"dfx: {group}" if group else "dfx",
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=50),
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Metric("Group") == group) if group else "", groupby=[ws.Config(by)] if by else []
        ),
    )
