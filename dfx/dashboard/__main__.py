"""Write dashboards of runs: a workspace in Weights & Biases, or one self-contained HTML file.

    python -m dfx.dashboard workspace --entity ENTITY --project dfx --group GROUP
    python -m dfx.dashboard summary runs/tube_amp
    python -m dfx.dashboard summary runs/ablation --output ablation.html

An offline record can also be read in the terminal, without a network or a login:

    wandb leet runs/tube_amp/wandb/offline-run-*

shows its curves, and `wandb leet inspect --summary` prints its latest metrics and its config.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dfx.errors import ArgumentParser, UserError, errors_in_one_line


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(
        prog="python -m dfx.dashboard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "workspace",
        help="save a workspace to Weights & Biases; needs `pip install wandb-workspaces` and a login",
        description="Save a workspace to Weights & Biases, and print its address. It needs wandb-workspaces and a "
        "login, and shows runs that were uploaded, online or by `wandb sync`.",
    )
    command.add_argument("--entity", required=True, help="the user or team in Weights & Biases")
    command.add_argument("--project", default="dfx", help="project of the runs (default: dfx)")
    command.add_argument("--group", help="only runs of this group (`wandb.group` in their configs)")
    by = "one line for all runs with the same value of an option, for instance model.init_args.gradient.directions"
    command.add_argument("--by", metavar="OPTION", help=by)
    command = commands.add_parser(
        "summary",
        help="write one HTML file with the curves, health, media and parameters of runs",
        description="Write one self-contained HTML file: curves, the health of the gradient, audio, figures, "
        "parameters, differences between the configs, and versions.",
    )
    command.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="folder of a run, or of several runs")
    command.add_argument("--output", type=Path, help="the HTML file; by default summary.html in the (first) folder")
    given = parser.parse_args(arguments)
    # Imported here because --help and wrong options need neither.
    from dfx.dashboard.summary import write_summary
    from dfx.dashboard.workspace import make_workspace

    if given.command == "workspace":
        workspace = make_workspace(given.entity, given.project, given.group, given.by)
        try:
            workspace.save()
        except Exception as error:
            raise UserError(f"W&B did not save the workspace: {' '.join(str(error).split())}") from error
        print(workspace.url)
    else:
        print(write_summary(given.folders, given.output))


if __name__ == "__main__":
    with errors_in_one_line():
        main()
