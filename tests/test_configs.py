"""Every committed config resolves as pinned and trains."""

import contextlib
import functools
import io
from pathlib import Path

import pytest
import torch
import yaml

from dfx.cli import DfxCLI
from dfx.effects import EffectError
from dfx.effects.chain import load_chain
from dfx.sweep.grid import read_sweep
from dfx.tasks import Task
from tests.resolved_configs import CONFIGS, PINNED, ROOT, base_of, config_options, flatten, options_to_pin, resolve

ABLATIONS = [config for config in CONFIGS if config.parent.parent.name == "ablations"]
BASES = [config for config in CONFIGS if base_of(config) is None]
WITH_MEDIA = [ROOT / "configs" / f"{name}.yaml" for name in ("tube_amp", "nonspeech", "mastering", "style", "mine")]
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
IDS = {"ids": lambda path: path.relative_to(ROOT / "configs").with_suffix("").as_posix()}


def installed(config: Path) -> bool:
    """Return whether the plugins of a config, or of its base, are installed; the tests of hosts name the packages."""
    chain = config if "effects:" in config.read_text() else base_of(config)
    try:
        load_chain(str(chain))
    except EffectError:
        return False
    return True


RESOLVED = {}


@functools.lru_cache
def pinned() -> dict:
    return yaml.safe_load(PINNED.read_text())


class SmallCLI(DfxCLI):
    """Record the options that a config resolves to, then train it with a few small steps."""

    SMALL = {
        "run.evaluate": False,
        "wandb.mode": "disabled",
        "data.batch_size": 2,
        "data.check_audio": False,
        "data.root": "data/tube_amp",
        "data.rows": None,
        "trainer.enable_progress_bar": False,
        "trainer.enable_model_summary": False,
    }

    def __init__(self, config: Path, **options: object) -> None:
        self.file = config
        self.options = {**self.SMALL, **{name.replace("__", "."): value for name, value in options.items()}}
        super().__init__(["fit", *config_options(config)])

    def before_instantiate_classes(self) -> None:
        dumped = self._parser("fit").dump(self.config.fit, skip_none=False)
        RESOLVED[self.file] = flatten(yaml.safe_load(dumped))
        for name, value in self.options.items():
            self.config.fit[name] = value
        super().before_instantiate_classes()


def assert_pinned(config: Path) -> None:
    """Compare the options that a config has resolved to with the pinned ones."""
    base = base_of(config)
    if base and base not in RESOLVED:
        RESOLVED[base] = resolve(base)
    name = config.relative_to(ROOT).as_posix()
    options = options_to_pin(config, RESOLVED)
    assert options == pinned().get(name), "differs from its pin; if intended, run python -m tests.resolved_configs"


@pytest.mark.parametrize("config", BASES, **IDS)
def test_a_config_that_stands_alone_resolves_as_pinned(config):
    RESOLVED[config] = resolve(config)
    assert_pinned(config)


@pytest.mark.slow
@pytest.mark.parametrize("config", [config for config in CONFIGS if config not in ABLATIONS], **IDS)
def test_a_config_resolves_as_pinned_and_takes_two_steps_in_each_of_its_stages(config, tmp_path, monkeypatch):
    is_published = "paper" in config.parts
    if (is_published or config.parent.name == "vst3" or config.stem == "mine") and not installed(config):
        pytest.skip("apt-get install calf-plugins lsp-plugins-lv2 liblilv-0-0 zam-plugins")
    monkeypatch.chdir(ROOT)
    trained = []
    monkeypatch.setattr(Task, "on_train_end", lambda self: trained.append(self.stage.name), raising=False)
    # Media take longer than all the rest.
    quick: dict[str, object] = {} if config in WITH_MEDIA else {"logging__excerpts": 0}
    if config.stem == "style":  # which cuts recordings in halves that are as long as a context
        quick |= {"data__root": "data/mastering", "model__init_args__context_samples": 65536}
    if config.stem == "few_shot":
        quick["model__init_args__stages__search_evaluations"] = 2
    cli = SmallCLI(
        config,
        **quick,
        run__folder=str(tmp_path),
        trainer__max_steps=2,
        trainer__limit_train_batches=2,
        trainer__limit_val_batches=2,
        trainer__check_val_every_n_epoch=1,
    )
    assert cli.trainer.global_step == 2
    effects = len(cli.config.fit.model.init_args.effects) if is_published else 1
    stages = [f"stage_{i + 1}" for i in range(effects)]
    pretraining = ["pretraining"] if cli.model.stage_options.pretraining_epochs else []
    assert trained == [*pretraining, *stages]
    assert all(parameter.isfinite().all() for parameter in cli.model.parameters())
    assert torch.isfinite(cli.trainer.callback_metrics["train/loss"])
    folder = tmp_path / cli.config.fit.run.name / "checkpoints"
    assert all((folder / stage / "best.ckpt").exists() for stage in trained[:-1])
    assert (folder / "best.ckpt").exists()
    assert_pinned(config)


@pytest.mark.slow
@pytest.mark.parametrize("config", ABLATIONS, **IDS)
def test_an_arm_of_an_ablation_resolves_as_pinned_and_takes_a_step(config, tmp_path, monkeypatch):
    if config.parent.name == "chain" and not installed(config):
        pytest.skip("apt-get install calf-plugins liblilv-0-0 zam-plugins")
    monkeypatch.chdir(ROOT)
    cli = SmallCLI(
        config,
        run__folder=str(tmp_path),
        trainer__max_steps=1,
        trainer__limit_train_batches=1,
        trainer__limit_val_batches=0,
        trainer__enable_checkpointing=True,
    )
    assert cli.trainer.global_step == 1
    assert all(parameter.isfinite().all() for parameter in cli.model.parameters())
    assert_pinned(config)


def test_the_template_for_own_plugins_is_stereo_at_48_khz_with_a_vst3_and_an_lv2():
    options = pinned()["configs/mine.yaml"]
    effects = [effect["effect"].partition(":")[0] for effect in options["model.init_args.effects"]]
    read = [options[f"model.init_args.{name}"] for name in ("sample_rate", "channels")]
    assert (effects, read, options["data.root"]) == (["vst3", "lv2"], [48000, 2], "mine")


def test_an_arm_changes_values_of_options_and_names_its_question():
    for config in ABLATIONS:
        text, content = config.read_text(), yaml.safe_load(config.read_text())
        assert "class_path" not in text, f"{config}: init_args leak where a class is swapped"
        assert text.startswith("# ") and "?" in text.split("#   python")[0]
        assert content["run"] == {"name": f"{config.parent.name}_{config.stem}"}
        assert content["wandb"] == {"group": config.parent.name, "tags": [config.stem]}


def test_every_config_is_pinned_and_nothing_else():
    assert set(pinned()) == {config.relative_to(ROOT).as_posix() for config in CONFIGS}


def test_every_arm_is_in_the_sweep_of_its_question_with_the_same_base():
    for question in {config.parent.name for config in ABLATIONS}:
        arms = {c.relative_to(ROOT).as_posix() for c in ABLATIONS if c.parent.name == question}
        sweep = read_sweep(str(ROOT / "configs" / "sweeps" / f"{question}.yaml"))
        assert set(sweep.parameters["config"]) == arms
        (base,) = {base_of(ROOT / arm).relative_to(ROOT).as_posix() for arm in arms}
        assert f"--config={base}" in sweep.command


@pytest.mark.parametrize("sweep", SWEEPS, **IDS)
def test_every_point_of_a_committed_sweep_is_a_valid_command_of_train(sweep, monkeypatch):
    monkeypatch.chdir(ROOT)
    points = read_sweep(str(sweep)).points()
    assert len({point.name for point in points}) == len(points)
    # One point is enough: the overlays are tested above.
    command = points[-1].command
    assert command[1] == "train.py"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as exit:
        DfxCLI([*command[2:], "--print_config"])
    assert exit.value.code == 0 and yaml.safe_load(printed.getvalue())["run"]["seed"] == 2


def one_step_of_smoke(folder: Path, *options: str) -> list[str]:
    """Return arguments of train.py for one step of configs/smoke.yaml."""
    command = "fit --config configs/smoke.yaml --run.evaluate false --trainer.max_steps 1 --logging.excerpts 0"
    return [*command.split(), "--run.folder", str(folder), *options]


def test_run_seed_sets_the_seeds_of_weights_order_and_directions(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    cli = DfxCLI(one_step_of_smoke(tmp_path, "--run.seed", "7"))
    config = cli.config.fit
    assert (config.seed_everything, config.data.seed, config.model.init_args.gradient.seed) == (7, 7, 7)
    assert cli.datamodule.seed == 7 and torch.initial_seed() == 7
    resolved = yaml.safe_load((tmp_path / "smoke" / "resolved_config.yaml").read_text())
    assert resolved["seed_everything"] == 7 and resolved["run"]["seed"] is None


def test_parameters_without_effect_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    dead = '[{"effect": "pedalboard:Gain"}, {"effect": "pedalboard:Chorus", "fixed": {"mix": 0}}]'
    arguments = one_step_of_smoke(tmp_path, "--model.init_args.effects", dead)
    with pytest.raises(EffectError, match="chorus.rate_hz, chorus.depth.*keep_dead_parameters"):
        DfxCLI(arguments)
    DfxCLI([*arguments, "--model.init_args.keep_dead_parameters", "true"])


def test_effects_on_the_command_line_inherit_nothing_from_the_config(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    effects = '[{"effect": "pedalboard:Distortion"}, {"effect": "pedalboard:Gain"}]'
    cli = DfxCLI(one_step_of_smoke(tmp_path, "--model.init_args.effects", effects))
    assert [p.high for p in cli.model.chain.parameters] == [40, 36]


def test_numbers_in_configs_are_numbers():
    # PyYAML reads 1e-4 as a string, other readers as a number.
    for config in [*CONFIGS, *SWEEPS]:
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
