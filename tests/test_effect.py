import pickle
import sys

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
    (parameter,) = ChainSpec([known("Kilohertz")], SAMPLE_RATE).parameters
    assert parameter.high == pytest.approx(0.49e-3 * SAMPLE_RATE)


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


def test_an_optional_fixed_value_is_set_where_the_effect_has_it_and_told_where_it_has_not(recwarn):
    spec = ChainSpec([EffectSpec(COMPRESSOR, fixed={"ratio?": 2.0})], SAMPLE_RATE)
    assert spec.recipes[0].fixed == {"ratio": 2.0} and "compressor.ratio" not in spec.space.names
    assert not recwarn
    with pytest.warns(UserWarning, match="pedalboard:Compressor has no 'knee' in the version installed here"):
        spec = ChainSpec([EffectSpec(COMPRESSOR, fixed={"knee?": 2.0, "ratio": 2.0})], SAMPLE_RATE)
    assert spec.recipes[0].fixed == {"ratio": 2.0}
    refused("'ratio' is fixed twice", EffectSpec(COMPRESSOR, fixed={"ratio": 2.0, "ratio?": 2.0}))
    refused("both trained and fixed", EffectSpec(COMPRESSOR, train={"ratio": None}, fixed={"ratio?": 2.0}))
    refused("finite number", EffectSpec(COMPRESSOR, fixed={"ratio?": "much"}))


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


NOT_NUMBERS = ["a", True, [1], {"a": 1}, float("nan"), float("inf"), -float("inf"), 10**400]


@pytest.mark.parametrize("value", [*NOT_NUMBERS, None])
def test_a_fixed_value_of_another_type_is_refused_with_its_parameter(value):
    refused("Compressor: ratio must be a finite number", EffectSpec(COMPRESSOR, fixed={"ratio": value}))
    ladder, limiter = "pedalboard:LadderFilter", "pedalboard:BrickwallLimiter"
    refused("LadderFilter: mode cannot be", EffectSpec(ladder, fixed={"mode": value}))
    if value is not True:
        refused("BrickwallLimiter: true_peak is a switch", EffectSpec(limiter, fixed={"true_peak": value}))


@pytest.mark.parametrize("value", NOT_NUMBERS)
def test_a_trained_value_of_another_type_is_refused_with_its_parameter(value):
    for given in [(1, value), [value, 2], {"range": [value, 2]}, Trained(range=(1, value)), {"range": value}]:
        refused("Compressor: ratio is trained with [low, high]", EffectSpec(COMPRESSOR, train={"ratio": given}))
    refused("ratio: the default is a finite number", EffectSpec(COMPRESSOR, train={"ratio": {"default": value}}))
    refused("ratio: the scale is linear or log", EffectSpec(COMPRESSOR, train={"ratio": {"scale": value}}))


@pytest.mark.parametrize("given", [{0: 1, 1: 2}, {"range": {"low": 1, "high": 2}}, {"range": []}, {"from": 1}, "12"])
def test_a_range_in_another_container_is_refused(given):
    refused("Compressor: ratio is trained with [low, high]", EffectSpec(COMPRESSOR, train={"ratio": given}))


@pytest.mark.parametrize(
    "option, value, said",
    [
        ("effect", 3, "named host:effect"),
        ("effect", ["pedalboard:Gain"], "named host:effect"),
        ("train", "ratio", "`train` is a mapping"),
        ("train", {3: None}, "no parameter '3'"),
        ("fixed", [1], "`fixed` is a mapping"),
        ("fixed", {None: 1}, "no parameter 'None'"),
        ("scale", "cubic", "the scale is linear or log, not 'cubic'"),
        ("scale", 0, "the scale is linear or log"),
        ("name", 7, "the name 7 must consist of"),
        (3, 4, "no option '3'"),
    ],
)
def test_an_option_of_another_type_is_refused_with_its_effect(option, value, said):
    with pytest.raises(EffectError) as error:
        ChainSpec([EffectSpec.of({"effect": COMPRESSOR, option: value})], SAMPLE_RATE)
    assert said in str(error.value) and (option == "effect" or COMPRESSOR in str(error.value))


NAMES = [
    "",
    " ",
    "a\nimport os",
    "../../x",
    "a/b",
    "a\\b",
    "a'b",
    'a"b',
    "a.b",
    "\x1b[31m",
    "a|b",
    "<b>",
    "a  b",
    65 * "a",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_would_be_more_than_a_name_elsewhere_is_refused(name):
    with pytest.raises(EffectError, match="must consist of at most 64 letters, digits"):
        known("Gain", name=name)


@pytest.mark.parametrize("name", ["gain", "Gain 2", "before-low", "Verstärker", "1"])
def test_names_may_have_letters_digits_and_spaces_of_any_language(name):
    assert ChainSpec([known("Gain", name=name)], SAMPLE_RATE).space.names == [f"{name}.gain"]


@pytest.mark.parametrize("effect", ["a/../..", "http://x/#\n", "///", 'a"; import os', "<script>", 100 * "ab"])
def test_default_names_are_names(effect):
    known("Gain", name=_snake_case(effect))


def test_a_python_effect_is_not_imported_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "lying_around.py").write_text("from tests.known_effects import Gain\n")
    monkeypatch.chdir(tmp_path)
    for entry in ("", str(tmp_path)):
        with monkeypatch.context() as patched:
            patched.syspath_prepend(entry)
            refused("No module named 'lying_around'", EffectSpec("python:lying_around.Gain"))
            assert sys.path[0] == entry
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert ChainSpec([EffectSpec("python:lying_around.Gain")], SAMPLE_RATE).space.names == ["gain.gain"]


@pytest.mark.parametrize("content, said", [
    ("def", "SyntaxError"), ("1 / 0", "ZeroDivisionError"), ("import no_such", "No module named 'no_such'"),
    ("class E: pass", "no `controls`"), ("class E: controls = 3", "no `controls`"), ("class E: controls = 1,", "no `"),
])  # fmt: skip
def test_a_python_effect_that_cannot_be_used_is_refused(tmp_path, monkeypatch, content, said):
    (tmp_path / "unusable.py").write_text(content + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "unusable", raising=False)
    refused(said, EffectSpec("python:unusable.E"))


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


def test_a_failing_effect_without_trained_parameters_is_named_too(noise):
    fixed = known("Raising", name="second", train={}, fixed={"gain": 1.7})
    chain = ChainSpec([known("Gain", name="first"), fixed], SAMPLE_RATE).build()
    with pytest.raises(RenderError, match=r"^second failed: too loud"):
        chain.render(noise, np.array([1.0]))


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
