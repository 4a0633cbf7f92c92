"""Trained models that ship with dfx, in ``data/models``, by name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dfx.errors import UserError, nearest

_PACKAGE = Path(__file__).parent.parent
FOLDER = next(filter(Path.is_dir, (_PACKAGE / "models", _PACKAGE.parent / "data" / "models")), _PACKAGE / "models")
"""Has a folder for each model. It lies within an installed package, and beside the package in a checkout."""

CHECKPOINT, CARD = "model.ckpt", "card.json"


def list_models() -> list[str]:
    """Return the names of the models that ship."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{CARD}"))


def read_card(name: str) -> dict[str, Any]:
    """Return the card of a model that ships: its data, config, commit, metrics and checksum."""
    return json.loads((FOLDER / name / CARD).read_text(encoding="utf-8"))


def find_checkpoint(name: str) -> str:
    """Return the path of a checkpoint: ``name`` if it is a file, else that of the model with this name.

    Raises:
        UserError: if it is neither, or if the file of the model is not the one of its card.
    """
    if Path(name).is_file():
        return name
    if name not in (known := list_models()):
        raise UserError(f"{name}: no such file, and no model of this name ships with dfx{nearest(name, known)}")
    path = FOLDER / name / CHECKPOINT
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != read_card(name)["sha256"]:
        raise UserError(f"{path} is missing or damaged, its SHA-256 is not that of {CARD}: install dfx again")
    return str(path)


def as_text() -> str:
    """Return a line for each model that ships: its name and what it does."""
    return "\n".join(f"{name:12}{read_card(name)['summary']}" for name in list_models())
