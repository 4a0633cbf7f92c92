"""Runs at a glance: a workspace in Weights & Biases, or one HTML file that needs no network.

    python -m dfx.dashboard workspace --entity ENTITY --project dfx --group GROUP
    python -m dfx.dashboard summary runs/tube_amp
    python -m dfx.dashboard summary runs/ablation --output ablation.html

An offline record can also be read in the terminal, without a network and without a login:

    wandb leet runs/tube_amp/wandb/offline-run-*

shows its curves; `wandb leet inspect --summary` of the same prints its latest metrics and its config. It comes with
wandb 0.31 and downloads nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dfx.dashboard.summary import write_summary
from dfx.dashboard.workspace import make_workspace
from dfx.errors import UserError, errors_in_one_line


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dfx.dashboard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "workspace", help="saves a workspace to Weights & Biases; needs `pip install wandb-workspaces` and a login",
        description="Saves a workspace to Weights & Biases, and prints its address. It needs wandb-workspaces and a "
        "login, and shows what runs have uploaded, online or by `wandb sync`.",
    )  # fmt: skip
    command.add_argument("--entity", required=True, help="the user or team in Weights & Biases")
    command.add_argument("--project", default="dfx", help="where the runs are (default: dfx)")
    command.add_argument("--group", help="only runs of this group, as `wandb.group` of their configs names it")
    command.add_argument(
        "--by", metavar="OPTION",
        help="one line for all runs with the same value of an option, for instance model.init_args.gradient.directions",
    )  # fmt: skip
    command = commands.add_parser(
        "summary", help="writes one HTML file with the curves, health, media and parameters of runs",
        description="Writes one HTML file that holds all it shows: curves, the health of the gradient, audio, figures, "
        "parameters, what differs between the configs, and versions.",
    )  # fmt: skip
    command.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of a run, or of several runs")
    command.add_argument("--output", type=Path, help="by default summary.html in the (first) folder")
    given = parser.parse_args(arguments)
    if given.command == "workspace":
        workspace = make_workspace(given.entity, given.project, given.group, given.by)
        try:
            workspace.save()
        except Exception as error:
            raise UserError(f"W&B has not taken the workspace: {' '.join(str(error).split())}") from error
        print(workspace.url)
    else:
        print(write_summary(given.folders, given.output))


if __name__ == "__main__":
    with errors_in_one_line():
        main()
