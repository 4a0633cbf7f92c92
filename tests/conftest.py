"""Fixtures that several test files share: small data sets, small chains and a finished run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dfx.effects import ChainSpec
from tests.known_effects import SAMPLE_RATE, known

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def logged_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run of the smoke config, logged offline in a group, with its ``output.txt``."""
    runs = tmp_path_factory.mktemp("logged")
    command = [sys.executable, "train.py", "fit", "--config", "configs/smoke.yaml", "--run.folder", str(runs),
               "--wandb.mode", "offline", "--wandb.group", "an_ablation", "--wandb.tags", "[one_arm]"]  # fmt: skip
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)
    assert ended.returncode == 0, ended.stderr
    (runs / "smoke" / "output.txt").write_text(ended.stdout)
    return runs / "smoke"


@pytest.fixture
def noise() -> np.ndarray:
    """Return one second of noise, ``(1, 22050)``."""
    return (0.1 * np.random.default_rng(0).standard_normal((1, SAMPLE_RATE))).astype(np.float32)


@pytest.fixture
def gain_chain() -> ChainSpec:
    return ChainSpec([known("Gain")], SAMPLE_RATE)


@pytest.fixture
def make_pairs(tmp_path: Path) -> Callable[..., Path]:
    """Write folders of decaying notes and the same notes through a soft clipper."""

    def make(count: int = 10, seconds: float = 0.5, folder: str = "pairs", sample_rate: int = SAMPLE_RATE) -> Path:
        return write_pairs(tmp_path / folder, count, seconds, sample_rate)

    return make


def write_pairs(root: Path, count: int, seconds: float, sample_rate: int = SAMPLE_RATE) -> Path:
    """Write the pairs of :func:`make_pairs` and return their folder."""
    for side in ("input", "target"):
        (root / side).mkdir(parents=True)
    for i in range(count):
        n = np.arange(int(seconds * sample_rate))
        note = 0.5 * np.sin(2 * np.pi * 110 * 2 ** (i / 12) * n / sample_rate) * np.exp(-3 * n / sample_rate)
        soundfile.write(root / "input" / f"note_{i:02}.wav", note, sample_rate)
        soundfile.write(root / "target" / f"note_{i:02}.wav", np.tanh(4 * note) * 0.5, sample_rate)
    return root
