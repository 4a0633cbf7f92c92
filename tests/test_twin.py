"""The differentiable twin renders what pedalboard renders, and its gradient is that of the real effects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dfx.benchmark.chains import notes
from dfx.benchmark.twin import TWINS, Twin, TwinLayer, as_table, twin
from dfx.blackbox import EffectLayer, GradientOptions
from dfx.effects import ChainSpec, EffectSpec, load_chain
from dfx.errors import UserError
from dfx.figures import draw_twin

SAMPLE_RATE = 22050
CHECK_EACH_EPOCH = "--trainer.check_val_every_n_epoch=1"


def relative_errors(output: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return (output - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)


def restart(batch: int) -> torch.Tensor:
    return torch.ones(batch, dtype=torch.bool)


def from_200_hz(chain: ChainSpec, parameters: torch.Tensor) -> torch.Tensor:
    """Move cutoffs to 200 Hz and above: below, float32 rounds pedalboard's own coefficients by more than is allowed."""
    lowest = [p.normalize(max(200.0, p.low)) if p.unit == "Hz" else 0.0 for p in chain.parameters]
    return parameters.maximum(torch.tensor(lowest, dtype=torch.float32))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("effect", TWINS)
def test_each_twin_renders_what_its_effect_renders(effect, channels):
    chain = ChainSpec([EffectSpec(f"pedalboard:{effect}")], SAMPLE_RATE, channels)
    generator = torch.Generator().manual_seed(0)
    audio = 0.3 * torch.randn(32, channels, 8192, generator=generator)
    parameters = from_200_hz(chain, torch.rand(32, len(chain.parameters), generator=generator))
    with torch.no_grad():
        expected = EffectLayer(chain)(audio, parameters, restart(32))
    errors = relative_errors(Twin(chain)(audio, parameters), expected)
    assert errors.max() < 5e-4 and errors.median() < 1e-4


def test_the_twin_of_the_default_chain_renders_notes_as_the_chain_does():
    chain = load_chain("configs/tube_amp.yaml")
    audio, _ = notes(64, 44032)
    parameters = torch.rand(64, len(chain.parameters), generator=torch.Generator().manual_seed(0))
    parameters = from_200_hz(chain, parameters)
    layer = TwinLayer(chain)
    with torch.no_grad():
        expected = layer(audio, parameters, restart(64))
    errors = relative_errors(layer(audio, parameters.requires_grad_(), restart(64)), expected)
    assert errors.max() < 5e-4 and errors.median() < 1e-4


@pytest.mark.parametrize("config", ["configs/tube_amp.yaml", "configs/corpus/tube_amp_wide.yaml"])
def test_the_gradient_of_the_twin_is_that_of_central_differences(config):
    chain = load_chain(config)
    audio, target = notes(16, 22050)
    parameters = 0.1 + 0.8 * torch.rand(16, len(chain.parameters), generator=torch.Generator().manual_seed(0))
    gradients = []
    for layer in (TwinLayer(chain), EffectLayer(chain, GradientOptions("finite_difference", sides=2, epsilon=1e-3))):
        at = parameters.clone().requires_grad_()
        (layer(audio, at, restart(16)) - target).square().mean().backward()
        gradients.append(at.grad.flatten())
    exact, differences = gradients
    assert torch.nn.functional.cosine_similarity(exact, differences, dim=0) > 0.999
    assert (exact - differences).norm() < 0.02 * differences.norm()


def test_the_twin_counts_no_renderings_and_validates_with_the_real_effects():
    chain = load_chain("configs/tube_amp.yaml")
    audio, _ = notes(2, 4096)
    parameters = torch.tensor(np.tile(chain.space.defaults, (2, 1)), dtype=torch.float32)
    layer = TwinLayer(chain)
    assert layer.renderings == 0
    with torch.no_grad():
        assert torch.equal(layer(audio, parameters, restart(2)), EffectLayer(chain)(audio, parameters, restart(2)))


def test_an_effect_without_a_twin_is_an_error_that_names_it():
    with pytest.raises(UserError, match="pedalboard:NoiseGate has no differentiable twin"):
        Twin(ChainSpec([EffectSpec("pedalboard:NoiseGate")], SAMPLE_RATE))


def test_steps_that_continue_an_excerpt_are_an_error():
    chain = ChainSpec([EffectSpec("pedalboard:Gain")], SAMPLE_RATE)
    parameters = torch.full((2, 1), 0.5, requires_grad=True)
    with pytest.raises(UserError, match="whole excerpts of one frame"):
        TwinLayer(chain)(torch.zeros(2, 1, 64), parameters, torch.tensor([True, False]))


@pytest.mark.slow
def test_both_gradients_train_by_the_same_command_and_finished_runs_are_kept(make_pairs, tmp_path, monkeypatch):
    root = make_pairs(8, seconds=2.5)
    monkeypatch.chdir(Path(__file__).parent.parent)
    options = [f"--trainer.{name}=2" for name in ("max_epochs", "limit_train_batches", "limit_val_batches")]
    options += [CHECK_EACH_EPOCH, f"--data.root={root}", "--data.batch_size=2"]
    given = "configs/tube_amp.yaml", ["exact", "default"], [0], tmp_path / "runs", options, 1
    rows = twin(*given)
    assert [(row["gradient"], row["seed"]) for row in rows] == [("exact", 0), ("default", 0)]
    # 4 steps of 2 examples, each rendered three times
    assert [row["renderings"] for row in rows] == [0, 24]
    assert all(row["cpu_seconds"] > 0 and 0 < row["test_loss"] < 10 and len(row["course"]) == 2 for row in rows)
    assert twin(*given) == rows
    assert as_table(rows).count("\n") == 3
    draw_twin(rows).savefig(tmp_path / "twin.png")


@pytest.mark.slow
def test_with_folds_each_pair_is_tested_once_and_losses_are_compared_pair_by_pair(make_pairs, tmp_path, monkeypatch):
    root = make_pairs(6, seconds=2.5)
    monkeypatch.chdir(Path(__file__).parent.parent)
    options = [f"--trainer.{name}=1" for name in ("max_epochs", "limit_train_batches", "limit_val_batches")]
    options += [CHECK_EACH_EPOCH, f"--data.root={root}", "--data.batch_size=2"]
    rows = twin("configs/tube_amp.yaml", ["default"], [0], tmp_path / "runs", options, 2, folds=2)
    assert [row["fold"] for row in rows] == [1, 2]
    assert sorted(file["file"] for row in rows for file in row["files"]) == [f"note_{i:02}" for i in range(6)]

    lower = [{**file, "loss": file["loss"] - 0.25} for row in rows for file in row["files"]]
    exact = {**rows[0], "gradient": "exact", "files": lower}
    assert "0.250 ±0.000" in as_table([*rows, exact])


def test_an_unknown_gradient_is_an_error_that_lists_them(tmp_path):
    with pytest.raises(UserError, match="no gradient 'exakt'.*did you mean 'exact'"):
        twin("configs/tube_amp.yaml", ["exakt"], [0], tmp_path, [], 1)


def test_gradients_whose_runs_would_have_one_name_are_an_error(tmp_path):
    with pytest.raises(UserError, match="runs of 2 gradients would be named exact: rename"):
        twin("configs/tube_amp.yaml", ["exact", "mine/exact.yaml"], [0], tmp_path, [], 1)
