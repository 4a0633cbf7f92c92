"""A run of train.py in three stages, and its checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from dfx.cli import DfxCLI
from dfx.tasks import read_checkpoint

STEPS_IN_EPOCH = 3


@pytest.fixture
def config(make_pairs, tmp_path) -> Path:
    """A run of three stages of two epochs each, on notes."""
    content = {
        "run": {"name": "run", "folder": str(tmp_path / "runs"), "evaluate": False, "checkpoint_minutes": 1e-6},
        "wandb": {"mode": "disabled"},
        "logging": {"excerpts": 0},
        "model": {
            "class_path": "TubeAmp",
            "init_args": {
                "context_samples": 4096,
                "frame_samples": 1024,
                "frames_per_step": 2,
                "stages": {"pretraining_epochs": 2, "progressive": True},
                "encoder": {"backbone": "conv", "width": 0.1, "start_at_defaults": False},
                "loss": {"fft_sizes": [512, 256]},
                "optimizer": {"learning_rate": 0.003, "schedule": "plateau", "patience": 10},
                "augmentation": {"noise_db": [30, 50]},
                "effects": [
                    {"effect": "pedalboard:Distortion", "train": {"drive_db": [0, 30]}},
                    {"effect": "python:tests.known_effects.Late"},
                ],
            },
        },
        "data": {"root": str(make_pairs(12)), "batch_size": 4, "excerpt_seconds": 0.2, "check_audio": False},
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "limit_train_batches": STEPS_IN_EPOCH,
            "limit_val_batches": 2,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def change(config: Path, where: str, **options: object) -> None:
    """Set options in a config."""
    content = part = yaml.safe_load(config.read_text())
    for name in where.split("."):
        part = part[name]
    part.update(options)
    config.write_text(yaml.safe_dump(content))


def fit(config: Path, *arguments: object) -> DfxCLI:
    return DfxCLI(["fit", "--config", str(config), *map(str, arguments)])


def checkpoints(config: Path, name: str = "run") -> dict:
    folder = config.parent / "runs" / name / "checkpoints"
    return {path.relative_to(folder).as_posix(): read_checkpoint(str(path)) for path in sorted(folder.rglob("*.ckpt"))}


def same(one: dict, other: dict) -> bool:
    """Return true if two sets of checkpoints hold the same weights, bit for bit."""
    return one.keys() == other.keys() and all(
        torch.equal(one[file]["state_dict"][name], other[file]["state_dict"][name])
        for file in one
        for name in one[file]["state_dict"]
    )
