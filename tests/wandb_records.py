"""The offline records of Weights & Biases, as read by itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def records(run: Path) -> list:
    """Return the records of a run's offline log, read by W&B itself."""
    (log,) = (run / "wandb").glob("offline-run-*/*.wandb")
    reader = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    printed = subprocess.run(reader, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout
    return [json.loads(line) for line in printed.splitlines()]


def merged(record: list) -> dict:
    """Return the last value of each metric in the history."""
    rows = [line["history"]["item"] for line in record if line["type"] == "history"]
    return {name: value for row in rows for name, value in row.items()}
