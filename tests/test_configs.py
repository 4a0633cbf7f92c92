"""Every config that is committed."""

from pathlib import Path

import pytest
import torch

from dfx.cli import DfxCLI

CONFIGS = sorted((Path(__file__).parent.parent / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_config_resolves_and_takes_a_step(config, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    cli = DfxCLI(
        ["fit", "--config", str(config), "--run.folder", str(tmp_path), "--run.evaluate", "false",
         "--wandb.mode", "disabled", "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0",
         "--trainer.enable_progress_bar", "false", "--data.batch_size", "2", "--data.check_audio", "false"]
    )  # fmt: skip
    assert cli.trainer.global_step == 1
    assert all(parameter.isfinite().all() for parameter in cli.model.parameters())
    assert torch.isfinite(cli.trainer.callback_metrics["train/loss"])


def test_numbers_in_configs_are_numbers():
    # PyYAML reads 1e-4 as a string; a config must not depend on who reads it.
    import yaml

    for config in CONFIGS:
        assert "e-" not in str([v for v in _values(yaml.safe_load(config.read_text())) if isinstance(v, str)])


def _values(node):
    if isinstance(node, dict):
        for value in node.values():
            yield from _values(value)
    elif isinstance(node, list):
        for value in node:
            yield from _values(value)
    else:
        yield node
