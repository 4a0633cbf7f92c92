import warnings

import numpy as np
import pytest

from dfx.effects import ChainSpec, EffectSpec
from dfx.effects.latency import measure_delay, warn_of_latency
from tests.known_effects import SAMPLE_RATE, known
from tests.small_training import task

FILTER = EffectSpec("pedalboard:PeakFilter")


@pytest.mark.parametrize(
    "effects, numbers",
    [
        ([known("Unreported")], "reported as 0 samples but measured as 219"),
        ([known("Overstated")], "reported as 500 samples but measured as 100"),
        ([known("Late"), FILTER, known("Unreported")], "reported as 50 samples but measured as 269"),
        ([known("Unreported", name="a"), known("Unreported", name="b")], "reported as 0 samples but measured as 438"),
    ],
)
def test_a_latency_that_is_not_the_reported_one_is_told_when_a_task_is_built(effects, numbers):
    # A checkpoint that is loaded for rendering builds its task too.
    with pytest.warns(UserWarning, match=numbers):
        task(effects)


@pytest.mark.parametrize(
    "effects",
    [[known("Late")], [known("Gain"), FILTER], [known("Late"), known("Late", name="again")], [FILTER]],
    ids=["late", "not late", "twice late", "pedalboard"],
)
def test_a_latency_that_is_reported_is_not_told(effects):
    spec = ChainSpec(effects, SAMPLE_RATE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_latency(spec, spec.build())


def test_an_output_that_does_not_resemble_its_input_has_no_delay():
    first, second = np.random.default_rng(0).standard_normal((2, 1, 8000))
    assert measure_delay(first, second) is None
    assert measure_delay(first, -np.roll(first, 3)) == (3, True)
