"""The regression that predicts gradients."""

import numpy as np
import pytest
import torch

from dfx.blackbox import EffectLayer, GradientOptions
from dfx.blackbox.control_variate import BANDS, LEVELS_DBFS, ControlVariate
from dfx.effects import ChainSpec, EffectSpec
from tests.known_effects import SAMPLE_RATE

EQUALIZER = [
    EffectSpec("pedalboard:LowShelfFilter", train={"gain_db": None}, fixed={"cutoff_frequency_hz": 200}),
    EffectSpec("pedalboard:HighShelfFilter", train={"gain_db": None}, fixed={"cutoff_frequency_hz": 4000}),
    EffectSpec("pedalboard:Gain", train={"gain_db": [-24, 24]}),
]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def control_variate(parameters: int = 3) -> ControlVariate:
    return ControlVariate(parameters, SAMPLE_RATE, forgetting_factor=0.9)


def test_cells_share_out_all_of_the_power_and_of_the_gradient():
    output = noise(2, 1, 8192)
    grad = np.cumsum(output, axis=-1) * 0.1 + output
    cells = control_variate().measure(output, grad, noise(2, 3, 1, 8192, seed=2), frames=4)
    assert cells.power.shape == cells.gradient.shape == (2, 4, BANDS * (len(LEVELS_DBFS) + 1))
    assert cells.change.shape == (2, 3, 4, BANDS * (len(LEVELS_DBFS) + 1))
    power = np.square(output).reshape(2, 4, -1).sum(axis=-1)
    np.testing.assert_allclose(cells.power.sum(axis=-1), power, rtol=0.15)
    np.testing.assert_allclose(cells.gradient.sum(axis=-1), (output * grad).reshape(2, 4, -1).sum(axis=-1), rtol=0.3)


def test_loud_and_quiet_frames_fall_into_other_cells_and_low_and_high_tones_too():
    tone = np.sin(2 * np.pi * np.array([[100.0], [5000.0]]) * np.arange(2048) / SAMPLE_RATE).astype(np.float32)
    loudness = np.array([1.0, 10 ** (-35 / 20)], dtype=np.float32)
    output = (tone[:, None] * loudness[None, :, None]).reshape(4, 1, 2048)
    cells = control_variate().measure(output, output, output[:, None], frames=1)
    loudest = cells.power[:, 0].argmax(axis=-1)
    assert len(set(loudest.tolist())) == 4
    levels = loudest % (len(LEVELS_DBFS) + 1)
    assert levels.tolist() == [5, 2, 5, 2]


@pytest.mark.parametrize("frames", [1, 8])
def test_a_regression_on_some_examples_predicts_the_gradient_of_others(frames):
    spec = ChainSpec(EQUALIZER, SAMPLE_RATE)
    layer = EffectLayer(spec, GradientOptions(control_variate="regression", residual_weight=0.0))
    exact = EffectLayer(spec, GradientOptions("finite_difference", sides=2, epsilon=1e-3))
    at = torch.full((8, frames, 3), 0.4, requires_grad=True)

    def gradient(of: EffectLayer, seed: int) -> torch.Tensor:
        at.grad = None
        input = torch.from_numpy(noise(8, 8192, seed=seed))
        # Another tilt for every example.
        target = input + 0.5 * torch.linspace(-1, 1, 8)[:, None] * input.roll(1, dims=1)
        (of(input, at, torch.ones(8, dtype=torch.bool)) - target).square().mean().backward()
        return at.grad.flatten()

    for seed in range(5):
        gradient(layer, seed)
    assert torch.nn.functional.cosine_similarity(gradient(layer, 6), gradient(exact, 6), dim=0) > 0.9


def test_silence_predicts_nothing_and_one_sample_is_enough():
    for output in (np.zeros((2, 1, 1024), np.float32), np.ones((2, 1, 1), np.float32)):
        regression = control_variate()
        cells = regression.measure(output, output, 0.01 * output[:, None], frames=1)
        regression.update(cells, np.full((2, 1, 1, 3), 0.01))
        assert np.isfinite(regression.predict(cells)).all()
        assert regression.predict(cells).any() == output.any()
