import numpy as np
import pytest

from dfx.effects import Parameter, ParameterSpace

LINEAR = Parameter("threshold_db", "dB", -60, 0, -20)
LOG = Parameter("cutoff_hz", "Hz", 20, 10000, 1000, "log")


@pytest.mark.parametrize("parameter", [LINEAR, LOG])
def test_normalize_and_denormalize_are_inverse(parameter):
    for x in np.linspace(0, 1, 101):
        assert parameter.normalize(parameter.denormalize(x)) == pytest.approx(x, abs=1e-12)
    for value in np.linspace(parameter.low, parameter.high, 101):
        assert parameter.denormalize(parameter.normalize(value)) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("parameter", [LINEAR, LOG])
def test_the_ends_of_a_range_are_exact(parameter):
    assert parameter.denormalize(0.0) == parameter.low
    assert parameter.denormalize(1.0) == parameter.high
    assert parameter.normalize(parameter.low) == 0.0
    assert parameter.normalize(parameter.high) == 1.0


def test_a_log_scale_has_its_geometric_mean_in_the_middle():
    assert LOG.denormalize(0.5) == pytest.approx(np.sqrt(20 * 10000))
    assert LINEAR.denormalize(0.5) == -30


def test_values_outside_the_range_are_clipped():
    assert LINEAR.denormalize(1.5) == 0 and LINEAR.normalize(-100) == 0.0


def test_a_space_maps_a_batch_as_its_parameters_do_one_by_one():
    space = ParameterSpace([LINEAR, LOG])
    x = np.random.default_rng(0).uniform(size=(4, 3, 2))
    values = space.denormalize(x)
    assert values.shape == x.shape
    assert values[2, 1, 0] == pytest.approx(LINEAR.denormalize(x[2, 1, 0]))
    assert values[2, 1, 1] == pytest.approx(LOG.denormalize(x[2, 1, 1]))
    np.testing.assert_allclose(space.defaults, [LINEAR.normalize(-20), LOG.normalize(1000)])


@pytest.mark.parametrize(
    "low, high, default, scale, message",
    [
        (1, 1, 1, "linear", "lower first"),
        (0, float("inf"), 1, "linear", "finite"),
        (0, 10, 1, "log", "positive"),
        (0, 10, 11, "linear", "default 11"),
        (0, 10, 1, "cubic", "'cubic'"),
    ],
)
def test_an_invalid_range_is_refused_by_name(low, high, default, scale, message):
    with pytest.raises(ValueError, match="drive_db") as error:
        Parameter("drive_db", "dB", low, high, default, scale)
    assert message in str(error.value)
