import pickle

import numpy as np
import pytest

from dfx.effects import ChainSpec, EffectError, EffectSpec, RenderError, Trained
from dfx.effects.chain import _snake_case
from tests.known_effects import SAMPLE_RATE, known

COMPRESSOR = "pedalboard:Compressor"


def refused(message: str, *specs: EffectSpec) -> None:
    with pytest.raises(EffectError) as error:
        ChainSpec(specs, SAMPLE_RATE)
    assert message in str(error.value)


def test_unknown_names_are_refused_with_the_nearest_one():
    refused("did you mean 'pedalboard'", EffectSpec("pedalbord:Gain"))
    refused("did you mean 'Compressor'", EffectSpec("pedalboard:Compresor"))
    refused("did you mean 'threshold_db'", EffectSpec(COMPRESSOR, train={"treshold_db": None}))
    refused("did you mean 'ratio'", EffectSpec(COMPRESSOR, fixed={"rato": 2.0}))
    refused("'pedalboard:Gain'", EffectSpec("Gain"))
    refused("cannot be imported", EffectSpec("python:no.such.module"))


def test_a_range_outside_the_effects_limits_is_refused_with_parameter_range_and_limit():
    refused("ratio: range [0.5, 4] goes below 1", EffectSpec(COMPRESSOR, train={"ratio": (0.5, 4)}))
    refused("above 100 ms", EffectSpec("pedalboard:BrickwallLimiter", fixed={"lookahead_ms": 200.0}))


def test_frequencies_are_kept_below_nyquist():
    lowpass = "pedalboard:LowpassFilter"
    (parameter,) = ChainSpec([EffectSpec(lowpass)], SAMPLE_RATE).parameters
    assert parameter.high == pytest.approx(0.49 * SAMPLE_RATE)
    refused("0.49 of the sample rate", EffectSpec(lowpass, train={"cutoff_frequency_hz": (1000, 12000)}))
    refused("0.49 of the sample rate", EffectSpec(lowpass, fixed={"cutoff_frequency_hz": 12000.0}))
    assert ChainSpec([EffectSpec(lowpass)], 44100).parameters[0].high == 20000


def test_an_invalid_spec_is_refused():
    refused("both trained and fixed", EffectSpec(COMPRESSOR, train={"ratio": None}, fixed={"ratio": 2.0}))
    refused("finite number", EffectSpec(COMPRESSOR, fixed={"ratio": float("nan")}))
    refused("finite number", EffectSpec(COMPRESSOR, fixed={"ratio": "much"}))
    refused("did you mean 'LPF12'", EffectSpec("pedalboard:LadderFilter", fixed={"mode": "LPF13"}))
    refused("true or false", EffectSpec("pedalboard:BrickwallLimiter", fixed={"true_peak": 1.0}))
    refused("cannot be trained", EffectSpec("pedalboard:BrickwallLimiter", train={"lookahead_ms": None}))
    refused("lower first", EffectSpec(COMPRESSOR, train={"ratio": (4, 2)}))
    refused("default 9", EffectSpec(COMPRESSOR, train={"ratio": Trained(range=(1, 4), default=9)}))
    refused("no effects")
    refused("no parameter", EffectSpec(COMPRESSOR, train={}))
    refused("named 'a'", known("Gain", name="a"), known("Gain", name="a"))
    refused("cannot be rendered frame by frame", EffectSpec("pedalboard:PitchShift"))


def test_an_invalid_spec_in_a_config_is_refused():
    for given, said in [
        ("pedalboard:Gain", "an effect is a mapping"),
        ({"name": "gain"}, "an effect is a mapping"),
        ({"effect": COMPRESSOR, "trian": {}}, "did you mean 'train'"),
        ({"effect": COMPRESSOR, "train": ["ratio"]}, "`train` is a mapping"),
        ({"effect": COMPRESSOR, "train": {"ratio": 3}}, "trained with [low, high]"),
        ({"effect": COMPRESSOR, "train": {"ratio": [1, 2, 3]}}, "trained with [low, high]"),
        ({"effect": COMPRESSOR, "train": {"ratio": {"rnage": [1, 2]}}}, "trained with [low, high]"),
    ]:
        with pytest.raises(EffectError) as error:
            ChainSpec([EffectSpec.of(given)], SAMPLE_RATE)
        assert said in str(error.value)


def test_the_config_wins_over_the_host():
    train = {"threshold_db": (-40, -10), "ratio": Trained(scale="linear", default=3)}
    threshold, ratio = ChainSpec([EffectSpec(COMPRESSOR, train=train)], SAMPLE_RATE).parameters
    assert (threshold.low, threshold.high, threshold.default) == (-40, -10, -20)
    assert (ratio.low, ratio.high, ratio.default, ratio.scale) == (1, 20, 3, "linear")


def test_without_train_every_parameter_that_is_not_fixed_is_trained():
    spec = EffectSpec(COMPRESSOR, fixed={"attack_ms": 5.0})
    names = ChainSpec([spec], SAMPLE_RATE).space.names
    assert names == ["compressor.threshold_db", "compressor.ratio", "compressor.release_ms"]


def test_effects_of_one_kind_get_different_names():
    chain = ChainSpec([known("Gain"), known("Gain"), known("Gain", name="gain")], SAMPLE_RATE)
    assert chain.space.names == ["gain_2.gain", "gain_3.gain", "gain.gain"]


def test_default_names_are_the_last_part_of_the_effects_name():
    for given, name in [
        ("PeakFilter", "peak_filter"), ("ZamGEQ31", "zam_geq31"), ("my.module.TubeAmp", "tube_amp"),
        ("http://lsp-plug.in/plugins/lv2/limiter_mono", "limiter_mono"), ("/my plugins/Zam Tube.vst3", "zam_tube"),
        ("http://calf.sourceforge.net/plugins/Equalizer8Band", "equalizer8_band"), ("C:\\p\\X.vst3#Y", "y"),
    ]:  # fmt: skip
        assert _snake_case(given) == name


def test_a_chain_is_picklable_and_its_copy_renders_the_same(noise):
    chain = ChainSpec([EffectSpec(COMPRESSOR), known("Gain")], SAMPLE_RATE)
    copy = pickle.loads(pickle.dumps(chain))
    values = chain.space.denormalize(np.full(len(chain.parameters), 0.4))
    np.testing.assert_array_equal(chain.build().render(noise, values), copy.build().render(noise, values))


def test_values_reach_the_effects_in_the_order_of_the_chain(noise):
    chain = ChainSpec([known("Gain"), EffectSpec("pedalboard:Gain"), known("Gain")], SAMPLE_RATE)
    output = chain.build().render(noise, np.array([0.5, 20.0, 2.0]))
    np.testing.assert_allclose(output, noise * 10, rtol=1e-5)


def test_latency_adds_up_and_is_removed_from_whole_recordings(noise):
    chain = ChainSpec([known("Late"), EffectSpec("pedalboard:BrickwallLimiter"), known("Late")], SAMPLE_RATE).build()
    assert chain.latency_samples == 50 + 110 + 50
    np.testing.assert_array_equal(chain.render_whole(noise, np.array([1.0, 0.0, 100.0, 1.0])), noise)


def test_a_failing_effect_is_named_with_its_values(noise):
    chain = ChainSpec([known("Gain", name="first"), known("Raising", name="second")], SAMPLE_RATE).build()
    with pytest.raises(RenderError, match=r"second at \(second.gain=1.7\) failed: too loud"):
        chain.render(noise, np.array([1.0, 1.7]))


def test_audio_that_is_not_finite_is_attributed_to_the_effect_that_returned_it(noise):
    chain = ChainSpec([known("NotFinite"), known("Gain")], SAMPLE_RATE).build()
    with pytest.raises(RenderError, match=r"not_finite at \(not_finite.gain=1.7\) returned audio that is not finite"):
        chain.render(noise, np.array([1.7, 1.0]))
    noise[0, 7] = np.nan
    with pytest.raises(RenderError, match="was given audio that is not finite"):
        chain.render(noise, np.array([1.0, 1.0]))


def test_the_scale_of_an_effect_applies_to_every_parameter_without_a_scale():
    train = {"ratio": None, "attack_ms": (1, 100), "release_ms": {"scale": "log"}}
    effects = [EffectSpec(COMPRESSOR, train=train, scale="linear"), EffectSpec("pedalboard:LowpassFilter")]
    chain = ChainSpec(effects, SAMPLE_RATE)
    assert [p.scale for p in chain.parameters] == ["linear", "linear", "log", "log"]
    refused("must be positive for a log scale", EffectSpec(COMPRESSOR, train={"threshold_db": None}, scale="log"))
