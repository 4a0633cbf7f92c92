"""The effect layer: gradients, lanes, resumption, errors."""

import itertools
import threading
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from dfx import distributed
from dfx.blackbox import EffectLayer, GradientOptions, RenderingOptions
from dfx.blackbox import workers as workers_module
from dfx.blackbox.workers import Workers
from dfx.effects import Chain, ChainSpec, EffectSpec, RenderError
from dfx.errors import UserError
from tests.known_effects import CURVATURE, GRADIENT, SAMPLE_RATE, known

TUBE = [
    EffectSpec("pedalboard:Distortion", train={"drive_db": (0, 20)}),
    EffectSpec("pedalboard:PeakFilter", train={"gain_db": None, "cutoff_frequency_hz": None}),
    EffectSpec("pedalboard:Compressor"),
]


def chain(*specs: EffectSpec, channels: int = 1) -> ChainSpec:
    return ChainSpec(specs, SAMPLE_RATE, channels)


def frames(batch: int, samples: int = 512, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed))


def flags(batch: int, value: bool = True) -> torch.Tensor:
    return torch.full((batch,), value)


def parameters(batch: int, count: int, value: float = 0.5) -> torch.Tensor:
    return torch.full((batch, count), value, requires_grad=True)


def quadratic_gradient(audio: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Return the exact gradient of the sum of squares of the output of ``known_effects.Quadratic``."""
    v = at.detach().double().numpy()
    factor = 1 + v @ GRADIENT + np.einsum("bi,ij,bj->b", v, CURVATURE, v) / 2
    power = audio.double().square().sum(dim=1).numpy()
    return torch.from_numpy(2 * (power * factor)[:, None] * (GRADIENT + v @ CURVATURE))


@pytest.mark.parametrize("at", [(0.5, 0.5, 0.5), (0.2, 0.7, 0.9), (0.0, 0.5, 1.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("sides", [1, 2])
def test_spsa_averaged_over_all_signs_equals_the_exact_gradient_of_a_quadratic(at, sides):
    options = GradientOptions(directions="rademacher", sides=sides, draws=8, epsilon=1e-4)
    layer = EffectLayer(chain(known("Quadratic")), options)
    every_sign = np.array(list(itertools.product([-1.0, 1.0], repeat=3)))[:, None]
    layer._perturbation.next = lambda restart, frames, count: np.stack([every_sign] * len(restart))

    audio, at = frames(2, 4096), torch.tensor([at, at], requires_grad=True)
    layer(audio, at, flags(2)).square().sum().backward()
    exact = quadratic_gradient(audio, at)
    error = (at.grad - exact).norm() / exact.norm()
    assert error < 1e-4


ESTIMATORS = {
    "spsa": {},
    "rademacher": {"directions": "rademacher"},
    "shared": {"directions": "shared"},
    "draws": {"draws": 3},
    "regression": {"control_variate": "regression"},
    "finite_difference": {"estimator": "finite_difference"},
}
EVERY_ESTIMATOR = pytest.mark.parametrize("options", ESTIMATORS.values(), ids=ESTIMATORS)


def estimates(layer: EffectLayer, audio: torch.Tensor, at: torch.Tensor, count: int) -> torch.Tensor:
    """Return ``(count, batch, P)``: gradients of the sum of squares, each from a new step."""
    gradients = []
    for _ in range(count):
        at.grad = None
        layer(audio, at, flags(len(audio))).square().sum().backward()
        gradients.append(at.grad)
    return torch.stack(gradients)


@EVERY_ESTIMATOR
@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_every_estimator_is_unbiased_inside_and_at_the_bounds(options, sides, value):
    layer = EffectLayer(
        chain(known("Quadratic")), GradientOptions(sides=sides, epsilon=1e-3, **options), RenderingOptions(workers=1)
    )
    # Copies of an example are samples of their own, unless they share a direction.
    copies = 1 if options.get("directions") == "shared" else 4
    steps = 3 if options.get("estimator") else 1500 // copies
    audio, at = frames(2, 64).repeat_interleave(copies, dim=0), parameters(2 * copies, 3, value)
    mean = estimates(layer, audio, at, steps).mean(dim=0).unflatten(0, (2, copies)).mean(dim=1)
    exact = quadratic_gradient(audio, at)[::copies]
    assert (mean - exact).norm() / exact.norm() < 0.1


LEAST_NORM = {"control_variate": "regression", "residual": "least_norm", "draws": 2}


@pytest.mark.parametrize("options", [*ESTIMATORS.values(), LEAST_NORM], ids=[*ESTIMATORS, "least_norm"])
@pytest.mark.parametrize("sides", [1, 2])
def test_every_estimator_is_reproducible_and_resumes(options, sides):
    audio, at = frames(4, 64), parameters(4, 3)
    layers = [EffectLayer(chain(known("Quadratic")), GradientOptions(sides=sides, **options)) for _ in range(3)]
    assert torch.equal(estimates(layers[0], audio, at, 5), estimates(layers[1], audio, at, 5))
    layers[2].load_streaming_state(layers[0].streaming_state())
    assert torch.equal(estimates(layers[2], audio, at, 5), estimates(layers[0], audio, at, 5))


@EVERY_ESTIMATOR
@pytest.mark.parametrize("sides", [1, 2])
def test_the_number_of_renderings_of_an_estimator_is_known_in_advance(options, sides, monkeypatch):
    layer = EffectLayer(chain(known("Quadratic")), GradientOptions(sides=sides, **options))
    renderings, render = [], Chain.render
    monkeypatch.setattr(Chain, "render", lambda *arguments: renderings.append(1) or render(*arguments))
    layer(frames(2, 64), parameters(2, 3), flags(2))
    assert len(renderings) == 2 * layer.renderings


@pytest.mark.parametrize("sides, at", [(1, 0.0), (1, 1.0), (2, 0.5), (2, 1.0)])
def test_finite_differences_are_exact_for_every_example_and_coordinate(sides, at):
    layer = EffectLayer(chain(known("Quadratic")), GradientOptions("finite_difference", sides=sides, epsilon=1e-4))
    audio, at = frames(2, 4096), parameters(2, 3, at)
    (gradient,) = estimates(layer, audio, at, 1)
    torch.testing.assert_close(gradient.double(), quadratic_gradient(audio, at), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("estimator", ["spsa", "finite_difference"])
@pytest.mark.parametrize("value, share", [(0.0, 0.5), (0.005, 0.75), (0.5, 1.0), (1.0, 0.5)])
def test_divided_by_epsilon_the_gradient_is_halved_at_the_bounds_as_released(estimator, value, share):
    options = GradientOptions(estimator, directions="rademacher", sides=2, redraw="frame", epsilon=0.01)
    audio, at = frames(2, 64), parameters(2, 3, value)
    ours, released = (
        estimates(EffectLayer(chain(known("Quadratic")), replace(options, divisor=divisor)), audio, at, 1)
        for divisor in ("step", "epsilon")
    )
    torch.testing.assert_close(released, share * ours)


def test_divided_by_epsilon_a_difference_has_two_sides():
    with pytest.raises(UserError, match="sides: 2"):
        GradientOptions(divisor="epsilon", sides=1)


def test_a_control_variate_removes_the_variance_that_it_predicts():
    audio, at = frames(8, 8192), parameters(8, 3)
    exact = quadratic_gradient(audio, at)
    errors = {}
    for control_variate in ("none", "regression"):
        options = GradientOptions(directions="rademacher", control_variate=control_variate, epsilon=1e-3)
        gradients = estimates(EffectLayer(chain(known("Quadratic")), options), audio, at, 60)[30:]
        errors[control_variate] = (gradients - exact).norm()
    assert errors["regression"] < 0.1 * errors["none"]


def test_steps_can_differ_between_parameters_and_change_over_the_run():
    options = GradientOptions(epsilon=0.01, epsilon_end=0.001, epsilon_of={"quadratic.b": 0.02})
    layer = EffectLayer(chain(known("Quadratic")), options)
    for progress, expected in [(0.0, [0.01, 0.02, 0.01]), (1.0, [0.001, 0.002, 0.001])]:
        assert layer._estimator.epsilon(progress).tolist() == pytest.approx(expected)
    layer.progress = 1.0
    audio, at = frames(4, 64), parameters(4, 3)
    assert estimates(layer, audio, at, 1).isfinite().all()


def test_gradients_reach_what_predicts_the_parameters_and_agree_with_differences():
    spec = chain(*TUBE)
    options = GradientOptions(directions="rademacher", sides=2, draws=256, epsilon=1e-3)
    layer = EffectLayer(spec, options)
    audio, weight = frames(1, 2048), torch.zeros(len(spec.parameters), requires_grad=True)
    target = frames(1, 2048, seed=1)

    def loss(w: torch.Tensor) -> torch.Tensor:
        return (layer(audio, torch.sigmoid(w)[None], flags(1)) - target).square().sum()

    loss(weight).backward()
    exact = torch.zeros_like(weight)
    with torch.no_grad():
        for i in range(len(weight)):
            step = torch.zeros_like(weight)
            step[i] = 4e-3
            exact[i] = (loss(step) - loss(-step)) / 8e-3
    assert torch.nn.functional.cosine_similarity(weight.grad, exact, dim=0) > 0.97


def test_gradients_of_examples_are_independent():
    layer = EffectLayer(chain(known("Gain")), GradientOptions())
    at = parameters(3, 1)
    output = layer(frames(3), at, flags(3))
    output[1].square().sum().backward()
    assert at.grad[1].abs().sum() > 0
    assert at.grad[[0, 2]].abs().sum() == 0


@pytest.mark.parametrize("shape", [(2, 512), (2, 1, 512), (2, 2, 512)])
def test_the_output_has_the_shape_of_the_input(shape):
    channels = shape[1] if len(shape) == 3 else 1
    layer = EffectLayer(chain(known("Gain"), channels=channels))
    audio = torch.randn(shape)
    torch.testing.assert_close(layer(audio, parameters(2, 1), flags(2)), audio)


def test_frames_of_a_lane_continue_each_other_until_it_restarts():
    spec = chain(known("Leaky"))
    layer = EffectLayer(spec)
    audio, at = frames(2, 1024), parameters(2, 1, 0.7)
    first = layer(audio[:, :512], at, flags(2))
    second = layer(audio[:, 512:], at, torch.tensor([False, True]))
    whole = torch.from_numpy(spec.build().render(audio[:1].numpy(), np.array([1.4])))
    torch.testing.assert_close(torch.cat([first, second], dim=1)[:1], whole)
    restarted = torch.from_numpy(spec.build().render(audio[1:, 512:].numpy(), np.array([1.4])))
    torch.testing.assert_close(second[1:], restarted)


@pytest.mark.parametrize("isolate", [False, True])
def test_chains_that_never_restart_keep_the_state_of_the_last_excerpt_in_training_only(isolate):
    layer = EffectLayer(
        chain(known("Leaky")), GradientOptions(restart="never"), RenderingOptions(workers=1, isolate=isolate)
    )
    audio, at = frames(2), parameters(2, 1)
    first, second = (layer(audio, at, flags(2)).detach() for _ in range(2))
    whole = EffectLayer(chain(known("Leaky")))(torch.cat([audio, audio], dim=1), at, flags(2)).detach()
    assert torch.equal(torch.cat([first, second], dim=1), whole) and not torch.equal(first, second)
    with torch.no_grad():
        assert torch.equal(layer(audio, at, flags(2)), layer(audio, at, flags(2)))


def test_a_layer_that_never_restarts_resumes_with_the_current_excerpt():
    audio, at = frames(2), parameters(2, 1)
    layer, resumed, fresh = (EffectLayer(chain(known("Leaky")), GradientOptions(restart="never")) for _ in range(3))
    for restart in (True, True, False):
        layer(audio, at, flags(2, restart))
    resumed.load_streaming_state(layer.streaming_state())
    for restart in (True, False):
        fresh(audio, at, flags(2, restart))
    assert torch.equal(resumed(audio, at, flags(2, False)), fresh(audio, at, flags(2, False)))


def test_perturbed_chains_render_every_frame_once_like_the_nominal_one():
    options = GradientOptions(sides=2, redraw="excerpt", epsilon=0.1)
    layer = EffectLayer(chain(known("Leaky")), options)
    audio, at = frames(1, 1024), parameters(1, 1)
    layer(audio[:, :512], at, flags(1))
    output = layer(audio[:, 512:], at, flags(1, False))
    output.backward(torch.ones_like(output))
    # The effect is linear in its gain, which is twice the parameter, so the difference is exact.
    torch.testing.assert_close(at.grad[0, 0], 2 * output.sum(), rtol=1e-3, atol=1e-4)


def test_without_gradients_only_the_nominal_rendering_is_made(monkeypatch):
    layer = EffectLayer(chain(known("Gain")), GradientOptions(sides=2, draws=2))
    renderings, render = [], Chain.render
    monkeypatch.setattr(Chain, "render", lambda *arguments: renderings.append(1) or render(*arguments))
    layer(frames(3), parameters(3, 1), flags(3))
    assert len(renderings) == 3 * (1 + 2 * 2)
    renderings.clear()
    with torch.no_grad():
        layer(frames(3), parameters(3, 1), flags(3))
    assert len(renderings) == 3


def test_validation_does_not_change_training():
    layers = [EffectLayer(chain(known("Leaky")), GradientOptions(seed=1)) for _ in range(2)]
    audio, outputs, gradients = frames(2), [], []
    for disturbed, layer in enumerate(layers):
        at = parameters(2, 1)
        layer(audio, at, flags(2))
        if disturbed:
            with torch.no_grad():
                layer(frames(5, 99), parameters(5, 1), flags(5))
        outputs.append(layer(audio, at, flags(2, False)))
        outputs[-1].square().sum().backward()
        gradients.append(at.grad)
    assert torch.equal(*outputs) and torch.equal(*gradients)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("redraw", ["frame", "excerpt"])
def test_several_frames_in_one_call_equal_as_many_calls(channels, redraw):
    whole, one_by_one = (EffectLayer(chain(*TUBE, channels=channels), GradientOptions(redraw=redraw)) for _ in range(2))
    at = torch.rand(3, 4, len(whole.chain.parameters), generator=torch.Generator().manual_seed(0), requires_grad=True)
    audio = 0.1 * torch.randn(3, channels, 4 * 512, generator=torch.Generator().manual_seed(1))
    output = whole(audio, at, flags(3))
    output.square().sum().backward()
    gradient, at.grad = at.grad, None
    # Directions drawn for each frame differ, and so do the estimates, but not the output.
    outputs = [
        one_by_one(part, at[:, frame], flags(3, frame == 0)) for frame, part in enumerate(audio.split(512, dim=-1))
    ]
    joined = torch.cat(outputs, dim=-1)
    joined.square().sum().backward()
    assert torch.equal(output, joined)
    assert gradient.isfinite().all() and gradient.abs().sum(dim=(0, 2)).min() > 0
    if redraw == "excerpt":
        torch.testing.assert_close(gradient, at.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("redraw", ["frame", "excerpt"])
def test_a_restored_layer_continues_to_the_bit(redraw, tmp_path):
    options = GradientOptions(redraw=redraw, sides=2)
    layer = EffectLayer(chain(*TUBE), options)
    at = parameters(3, len(layer.chain.parameters))

    def step(of: EffectLayer, k: int, restart: torch.Tensor) -> tuple:
        at.grad = None
        output = of(frames(3, 512, seed=k), at, restart)
        output.square().sum().backward()
        return output.detach(), at.grad.clone()

    for k in range(4):
        step(layer, k, torch.tensor([k == 0, k in (0, 2), k == 0]))
    torch.save(layer.streaming_state(), tmp_path / "state.pt")
    restored = EffectLayer(chain(*TUBE), options)
    restored.load_streaming_state(torch.load(tmp_path / "state.pt", weights_only=True))
    for k in range(4, 7):
        restart = torch.tensor([False, False, k == 5])
        for expected, result in zip(step(layer, k, restart), step(restored, k, restart)):
            assert torch.equal(expected, result)


@EVERY_ESTIMATOR
@pytest.mark.parametrize("workers", [2, 7])
def test_the_number_of_workers_changes_no_bit(options, workers):
    # All workers run in the first steps, however little work there is.
    one, several = (
        EffectLayer(chain(*TUBE), GradientOptions(**options), RenderingOptions(workers=count)) for count in (1, workers)
    )
    results = []
    for layer in (one, several):
        at = parameters(7, len(layer.chain.parameters))
        results.append([])
        for step in range(3):
            output = layer(frames(7, 1024, seed=step), at, flags(7, step == 0))
            output.square().sum().backward()
            results[-1] += [output.detach(), at.grad.clone()]
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize(
    "given, here, elsewhere, count", [(None, 1, 0, 8), (None, 4, 0, 2), (None, 2, 2, 4), (None, 9, 0, 1), (3, 4, 0, 3)]
)
def test_ranks_of_a_machine_share_its_cores_unless_workers_are_given(
    given, here, elsewhere, count, isolate, monkeypatch
):
    monkeypatch.setattr(workers_module, "available_cores", lambda: 8)
    layer = EffectLayer(chain(known("Gain")), rendering=RenderingOptions(workers=given, isolate=isolate))
    # The ranks start after the layer was built.
    monkeypatch.setattr(distributed, "_sharing", 1)
    monkeypatch.setattr(distributed, "gather_list", lambda own: here * own + elsewhere * [("another machine", [0])])
    distributed.count_ranks_on_cores()
    pools = layer._training_lanes.workers, layer._evaluation_lanes.workers, layer._estimator._workers
    assert [pool.count for pool in pools] == 3 * [count]


@pytest.mark.parametrize("isolate", [False, True])
def test_outputs_in_use_are_not_overwritten(isolate):
    at_once = EffectLayer(chain(*TUBE))
    later = EffectLayer(chain(*TUBE), rendering=RenderingOptions(workers=2, isolate=isolate))
    expected, kept = [], []
    for step in range(3):
        audio, (one, other) = frames(4, 1024, seed=step), (parameters(4, len(later.chain.parameters)) for _ in range(2))
        output = at_once(audio, one, flags(4, step == 0))
        output.square().sum().backward()
        expected.append((output.detach().clone(), one.grad))
        kept.append((later(audio, other, flags(4, step == 0)), other))
    views = [output.detach()[1:].numpy() for output, _ in kept]
    for output, _ in kept:
        output.square().sum().backward()
    for (output, grad), (kept_output, other), view in zip(expected, kept, views):
        assert torch.equal(kept_output, output) and torch.equal(other.grad, grad)
        assert np.array_equal(view, output[1:])


@pytest.mark.parametrize("isolate", [False, True])
def test_output_memory_is_reused_when_nothing_refers_to_it(isolate):
    layer = EffectLayer(chain(*TUBE), GradientOptions(draws=7), RenderingOptions(workers=1, isolate=isolate))
    audio, at = frames(8, 16384), parameters(8, len(layer.chain.parameters))

    def step() -> None:
        layer(audio, at, flags(8, False)).square().sum().backward()
        layer.end_excerpts()

    layer(audio, at, flags(8))
    tracemalloc.start()
    step()
    step()
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    step()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - before < audio.nbytes * layer.renderings / 2


@pytest.mark.parametrize("times, fastest", [({1: 4, 2: 3, 4: 2, 8: 1}, 8), ({1: 4, 2: 3, 4: 5, 8: 6}, 2)])
def test_as_many_threads_run_as_were_fastest(times, fastest, monkeypatch):
    pool, counts, now, lock = Workers(8), [], [0.0], threading.Lock()
    choose = pool._choose
    monkeypatch.setattr(pool, "_choose", lambda limit: counts.append(choose(limit)) or counts[-1])
    monkeypatch.setattr(workers_module.time, "perf_counter", lambda: now[0])

    def work(rows: range) -> None:
        with lock:
            now[0] += len(rows) * times[counts[-1]]

    for _ in range(150):
        pool.run(work, 16)
    # Later, few runs try another number.
    assert counts[:9] == [8] * 9 and counts[12:].count(fastest) > 120


def test_an_error_of_any_kind_in_a_worker_is_raised():
    workers = Workers(3)

    def work(rows: range) -> None:
        if 5 in rows:
            raise IndexError("raised by the work")

    with pytest.raises(IndexError, match="raised by the work"):
        workers.run(work, 12)


def test_a_run_can_be_resumed_with_a_new_control_variate():
    spec = chain(known("Gain"))
    layer = EffectLayer(spec, GradientOptions(control_variate="regression"))
    layer.load_streaming_state(EffectLayer(spec).streaming_state())
    assert estimates(layer, frames(2, 2048), parameters(2, 1), 2).isfinite().all()


@pytest.mark.parametrize("effect, message", [("Raising", "too loud"), ("NotFinite", "not finite")])
def test_a_failing_effect_raises_with_its_name_and_values(effect, message):
    layer = EffectLayer(chain(known(effect)), GradientOptions(epsilon=0.001))
    at = parameters(4, 1)
    layer(frames(4), at, flags(4))
    with torch.no_grad():
        at[2] = 0.9
    with pytest.raises(RenderError, match=r"\.gain=1\.\d+") as error:
        layer(frames(4), at, flags(4))
    assert message in str(error.value)


def test_wrong_shapes_and_options_are_refused():
    layer = EffectLayer(chain(known("Gain")))
    with pytest.raises(ValueError, match="gradient with respect to its input"):
        layer(frames(2).requires_grad_(), parameters(2, 1), flags(2))
    with pytest.raises(ValueError, match=r"expected \(2, 1\)"):
        layer(frames(2), parameters(2, 3), flags(2))
    with pytest.raises(ValueError, match="512 samples cannot be split into 3 equal frames"):
        layer(frames(2), torch.full((2, 3, 1), 0.5), flags(2))
    with pytest.raises(RenderError, match="network that predicts them have diverged; lower the learning rate"):
        layer(frames(2), parameters(2, 1, float("nan")), flags(2))
    with pytest.raises(RenderError, match="audio has samples that are not finite"):
        layer(frames(2) * float("nan"), parameters(2, 1, float("nan")), flags(2))
    with pytest.raises(RenderError, match="not in"):
        layer(frames(2), parameters(2, 1, 1.5), flags(2))
    with pytest.raises(ValueError, match="2 channels"):
        layer(torch.randn(2, 2, 64), parameters(2, 1), flags(2))
    with pytest.raises(ValueError, match="restart"):
        layer(frames(2), parameters(2, 1), flags(3))
    with pytest.raises(ValueError, match="input is"):
        layer(torch.zeros(2, 0), parameters(2, 1), flags(2))
    for wrong in (
        {"epsilon": 0.0},
        {"epsilon": 0.6},
        {"epsilon_of": {"gain.gain": 0.7}},
        {"epsilon_end": -1.0},
        {"epsilon_end": 0.3, "epsilon_of": {"gain.gain": 0.3}},
        {"draws": 0},
        {"sides": 3},
        {"forgetting_factor": 1.0},
        {"residual_weight": -0.1},
        {"draws": 2, "estimator": "finite_difference"},
    ):
        with pytest.raises(UserError, match=next(iter(wrong)).split("_")[0]):
            GradientOptions(**wrong)
    with pytest.raises(UserError, match="epsilon_of names gain.volume; there are: gain.gain"):
        EffectLayer(chain(known("Gain")), GradientOptions(epsilon_of={"gain.volume": 0.1}))


def test_smoothed_parameters_are_named_if_directions_change_every_frame():
    ladder = chain(EffectSpec("pedalboard:LadderFilter", train={"cutoff_hz": None}))
    with pytest.warns(UserWarning, match="ladder_filter.cutoff_hz"):
        EffectLayer(ladder, GradientOptions(redraw="frame"))


def test_one_sample_and_half_precision_are_enough():
    layer = EffectLayer(chain(known("Gain")))
    at = torch.full((2, 1), 0.25, dtype=torch.float16, requires_grad=True)
    output = layer(torch.ones(2, 1, dtype=torch.float16), at, flags(2))
    assert output.dtype == torch.float16 and torch.equal(output, torch.full((2, 1), 0.5, dtype=torch.float16))
    output.sum().backward()
    torch.testing.assert_close(at.grad, torch.full((2, 1), 2.0, dtype=torch.float16), rtol=1e-2, atol=0)
