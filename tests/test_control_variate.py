"""The regression that predicts gradients."""

import numpy as np
import pytest
import torch

from dfx.blackbox import EffectLayer, GradientOptions
from dfx.blackbox.control_variate import BANDS, LEVELS_DBFS, Cells, ControlVariate
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


def gradients(options: GradientOptions, frames: int, batches: range) -> list[torch.Tensor]:
    """Return the gradients of the parameters, flat, of batches with another tilt for every example."""
    layer = EffectLayer(ChainSpec(EQUALIZER, SAMPLE_RATE), options)
    at = torch.full((8, frames, 3), 0.4, requires_grad=True)
    found = []
    for seed in batches:
        input = torch.from_numpy(noise(8, 8192, seed=seed))
        target = input + 0.5 * torch.linspace(-1, 1, 8)[:, None] * input.roll(1, dims=1)
        loss = (layer(input, at, torch.ones(8, dtype=torch.bool)) - target).square().mean()
        found.append(torch.autograd.grad(loss, at)[0].flatten())
    return found


EXACT = GradientOptions("finite_difference", sides=2, epsilon=1e-3)


@pytest.mark.parametrize("frames", [1, 8])
def test_a_regression_on_some_examples_predicts_the_gradient_of_others(frames):
    prediction = GradientOptions(control_variate="regression", residual_weight=0.0)
    *_, predicted = gradients(prediction, frames, range(6))
    (exact,) = gradients(EXACT, frames, range(5, 6))
    assert torch.nn.functional.cosine_similarity(predicted, exact, dim=0) > 0.9


@pytest.mark.parametrize("frames", [1, 8])
def test_the_residual_of_least_norm_errs_less_than_the_mean(frames):
    exact = torch.stack(gradients(EXACT, frames, range(4, 8)))
    error = {}
    for residual in ("mean", "least_norm"):
        options = GradientOptions(control_variate="regression", draws=2, residual=residual)
        error[residual] = (torch.stack(gradients(options, frames, range(8)))[4:] - exact).norm()
    assert error["least_norm"] < 0.7 * error["mean"]


def regression_of(response: np.ndarray) -> tuple[ControlVariate, Cells]:
    """Return a regression with the same response ``(P,)`` in all cells, and cells of two examples with three frames."""
    regression = control_variate(len(response))
    cells = BANDS * (len(LEVELS_DBFS) + 1)
    regression.load_state_dict({
        "squares": torch.zeros(cells, len(response), len(response)),
        "products": torch.zeros(cells, len(response)),
        "response": torch.from_numpy(response).expand(cells, -1),
    })  # fmt: skip
    power = np.ones((2, 3, cells))
    return regression, Cells(power, power, np.zeros((2, 1, 3, cells)))


def test_the_residual_of_least_norm_explains_every_slope():
    regression, cells = regression_of(np.array([1.0, 2.0, 0.5, 3.0]))
    generator = np.random.default_rng(0)
    steps, slopes = 0.01 * generator.standard_normal((2, 3, 3, 4)), generator.standard_normal((2, 3, 3))
    residual = regression.solve_residual(slopes, steps, cells)
    np.testing.assert_allclose(np.einsum("bdfp,bfp->bdf", steps, residual), slopes, rtol=1e-3, atol=1e-3)


def test_most_of_the_residual_is_that_of_parameters_with_a_large_effect():
    regression, cells = regression_of(np.array([1.0, 10.0]))
    residual = regression.solve_residual(np.ones((2, 1, 3)), np.full((2, 1, 3, 2), 0.01), cells)
    np.testing.assert_allclose(residual[..., 1] / residual[..., 0], 100, rtol=0.05)


@pytest.mark.parametrize("response", [0.0, 1.0])
def test_coinciding_directions_and_missing_steps_leave_the_residual_finite(response):
    regression, cells = regression_of(np.full(2, response))
    slopes = np.ones((2, 2, 3))
    repeated = regression.solve_residual(slopes, np.full((2, 2, 3, 2), 0.01), cells)
    np.testing.assert_allclose(repeated, 50, rtol=1e-3)
    assert not regression.solve_residual(0 * slopes, np.zeros((2, 2, 3, 2)), cells).any()


def test_a_step_in_which_no_parameter_moves_teaches_nothing():
    regression, cells = regression_of(np.full(2, 1.0))
    before = regression.state_dict()
    regression.update(cells, np.zeros((2, 1, 3, 2)))
    assert all(torch.equal(value, before[name]) for name, value in regression.state_dict().items())


def test_silence_predicts_nothing_and_one_sample_is_enough():
    for output in (np.zeros((2, 1, 1024), np.float32), np.ones((2, 1, 1), np.float32)):
        regression = control_variate()
        cells = regression.measure(output, output, 0.01 * output[:, None], frames=1)
        regression.update(cells, np.full((2, 1, 1, 3), 0.01))
        assert np.isfinite(regression.predict(cells)).all()
        assert regression.predict(cells).any() == output.any()
