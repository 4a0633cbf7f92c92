"""The dashboard in Weights & Biases, as code."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dfx.errors import UserError

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

STEP = "trainer/global_step"
"""What Lightning's logger for W&B counts steps by."""


class Curves(NamedTuple):
    """A panel of curves.

    Args:
        title: what it answers.
        metrics: by the names that they are logged under.
        log: whether its values are drawn on a logarithmic scale.
        range: of the values, where it is known.
    """

    title: str
    metrics: tuple[str, ...]
    log: bool = False
    range: tuple[float | None, float | None] = (None, None)


CURVES: dict[str, list[Curves]] = {
    "Does it learn?": [
        Curves("Training loss", ("train/loss",)),
        Curves("Validation loss, and that of the unprocessed input", ("validation/loss", "validation/loss_of_input")),
        Curves("Learning rate", ("lr-Adam",)),
    ],
    "Is the gradient well?": [
        Curves("Signal-to-noise ratio of the encoder's gradient", ("gradient/signal_to_noise",)),
        Curves("Norm of the gradient", ("gradient/norm",), log=True),
    ],
    "Are the parameters well?": [
        Curves("Share of parameters at their bounds", ("parameters/share_at_bounds",), range=(0, 1)),
        Curves("Dead parameters", ("parameters/dead",), range=(0, None)),
    ],
    "Where does the time go?": [
        Curves(
            "Shares of a training step",
            ("speed/share_effects", "speed/share_encoder", "speed/share_loss", "speed/share_logging"),
            range=(0, 1),
        ),
        Curves("Renderings a second", ("speed/renderings_per_second",)),
    ],
}
"""The panels of curves by section, which the summary shows as well."""

TESTED = ("loss", "mrstft", "mrstft_level_matched", "mfcc_cosine", "lufs_difference")
"""What is measured after training, as ``test/METHOD/METRIC``."""

METHODS = ("input", "output")

MEDIA = ("media/audio", "media/spectrograms", "media/automation")
TABLES = ("tables/parameters", "tables/automation")


def make_workspace(entity: str, project: str, group: str | None = None, by: str | None = None) -> Workspace:
    """The workspace; nothing is sent before it is saved.

    Args:
        entity: the user or team.
        project: where the runs are.
        group: only runs of this group, an ablation for instance.
        by: an option of the config, its place in dots; runs with the same value of it become one line, their mean.

    Raises:
        UserError: if wandb-workspaces is not installed.
    """
    try:
        from wandb_workspaces import workspaces as ws
        from wandb_workspaces.reports import v2 as wr
    except ImportError:
        raise UserError("the workspace needs wandb-workspaces: pip install wandb-workspaces") from None

    def curves(panel: Curves) -> wr.LinePlot:
        return wr.LinePlot(
            title=panel.title, x=STEP, y=list(panel.metrics), range_y=panel.range, log_y=panel.log or None
        )

    sections = [
        ws.Section(name=name, panels=[curves(panel) for panel in panels], is_open=True)
        for name, panels in CURVES.items()
    ]
    tested = [
        wr.BarPlot(title=f"{metric} of held-out pairs", metrics=[f"test/{method}/{metric}" for method in METHODS])
        for metric in TESTED
    ]
    seen = [wr.MediaBrowser(title=name.split("/")[1], media_keys=[name], num_columns=1) for name in MEDIA]
    sections[1:1] = [
        ws.Section(name="What does it reach?", panels=tested, is_open=True),
        ws.Section(name="What does it sound like?", panels=seen, is_open=True),
    ]
    sections += [
        ws.Section(name="Tables", panels=[wr.WeavePanelSummaryTable(table_name=name) for name in TABLES]),
        ws.Section(name="What differs between the runs?", panels=[wr.RunComparer(diff_only="split")], is_open=True),
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"dfx: {group}" if group else "dfx",
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=50),
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Metric("Group") == group) if group else "",
            groupby=[ws.Config(by)] if by else [],
        ),
    )
