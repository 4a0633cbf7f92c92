"""Every config that is committed."""

from pathlib import Path
from typing import List

import pytest
import torch

from dfx.cli import DfxCLI
from dfx.effects import EffectError
from dfx.effects.probe import load_chain
from dfx.tasks import Task

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
TASKS = ("tube_amp", "nonspeech", "mastering")


def given(config: Path) -> List[str]:
    """The configs of a run: those in ``corpus/`` say only what differs from their task's."""
    task = next((task for task in TASKS if config.stem.startswith(task)), None)
    of_task = ["--config", str(ROOT / "configs" / f"{task}.yaml")] if config.parent.name == "corpus" else []
    return [*of_task, "--config", str(config)]


def installed(config: Path) -> bool:
    """Whether the plugins of a config are; the tests of their hosts say what to install."""
    try:
        load_chain(str(config))
    except EffectError:
        return False
    return True


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_config_resolves_and_takes_two_steps_in_each_of_its_stages(config, tmp_path, monkeypatch):
    if config.parent.name in ("paper", "vst3") and not installed(config):
        pytest.skip("apt-get install calf-plugins lsp-plugins-lv2 liblilv-0-0 zam-plugins")
    monkeypatch.chdir(Path(__file__).parent.parent)
    trained = []
    monkeypatch.setattr(Task, "on_train_end", lambda self: trained.append(self.stage.name), raising=False)
    cli = DfxCLI(
        ["fit", *given(config), "--run.folder", str(tmp_path), "--run.evaluate", "false",
         "--wandb.mode", "disabled", "--trainer.max_steps", "2", "--trainer.limit_train_batches", "2",
         "--trainer.limit_val_batches", "2", "--trainer.check_val_every_n_epoch", "1",
         "--trainer.enable_progress_bar", "false", "--data.batch_size", "2", "--data.check_audio", "false",
         "--data.root", "data/tube_amp", "--data.rows", "null"]
    )  # fmt: skip
    assert cli.trainer.global_step == 2
    effects = {"paper/mastering": 3}.get(f"{config.parent.name}/{config.stem}", 1)
    stages = [f"stage_{i + 1}" for i in range(effects)]
    assert trained == (["pretraining", *stages] if config.parent.name == "paper" else stages)
    assert all(parameter.isfinite().all() for parameter in cli.model.parameters())
    assert torch.isfinite(cli.trainer.callback_metrics["train/loss"])
    folder = tmp_path / cli.config.fit.run.name / "checkpoints"
    assert all((folder / stage / "best.ckpt").exists() for stage in trained[:-1])
    assert (folder / "best.ckpt").exists()


def test_parameters_that_do_nothing_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    asleep = '[{"effect": "pedalboard:Gain"}, {"effect": "pedalboard:Chorus", "fixed": {"mix": 0}}]'
    arguments = ["fit", "--config", "configs/smoke.yaml", "--run.folder", str(tmp_path), "--run.evaluate", "false",
                 "--trainer.max_steps", "1", "--model.init_args.effects", asleep]  # fmt: skip
    with pytest.raises(EffectError, match="chorus.rate_hz, chorus.depth.*keep_dead_parameters"):
        DfxCLI(arguments)
    DfxCLI([*arguments, "--model.init_args.keep_dead_parameters", "true"])


def test_effects_on_the_command_line_take_nothing_from_those_they_replace(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    effects = '[{"effect": "pedalboard:Distortion"}, {"effect": "pedalboard:Gain"}]'
    cli = DfxCLI(
        ["fit", "--config", "configs/smoke.yaml", "--run.folder", str(tmp_path), "--run.evaluate", "false",
         "--trainer.max_steps", "1", "--model.init_args.effects", effects]
    )  # fmt: skip
    assert [p.high for p in cli.model.chain.parameters] == [40, 36]


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
