import numpy as np
import pytest

from dfx.effects import ChainSpec, EffectError, EffectSpec
from dfx.effects.pedalboard import EFFECTS
from tests.known_effects import SAMPLE_RATE

WITH_PARAMETERS = [name for name in EFFECTS if name != "Invert"]
DEFAULT_CHAIN = [
    EffectSpec("pedalboard:MultibandCompressor"),
    EffectSpec("pedalboard:GraphicEqualizer"),
    EffectSpec("pedalboard:BrickwallLimiter"),
]


def random_values(chain: ChainSpec, seed: int = 0) -> np.ndarray:
    return chain.space.denormalize(np.random.default_rng(seed).uniform(size=len(chain.parameters)))


def in_blocks(chain, audio: np.ndarray, values: np.ndarray, *sizes: int) -> np.ndarray:
    blocks, start = [], 0
    while start < audio.shape[1]:
        size = sizes[len(blocks) % len(sizes)]
        blocks.append(chain.render(audio[:, start : start + size], values))
        start += size
    return np.concatenate(blocks, axis=1)


@pytest.mark.parametrize("name", WITH_PARAMETERS)
@pytest.mark.parametrize("sizes", [(1024,), (1000,), (512, 2048), (64, 1000, 4096)])
def test_rendering_in_blocks_equals_rendering_whole_to_the_bit(name, sizes, noise):
    spec = ChainSpec([EffectSpec(f"pedalboard:{name}")], SAMPLE_RATE)
    values = random_values(spec)
    whole = spec.build().render(noise, values)
    assert whole.shape == noise.shape
    np.testing.assert_array_equal(in_blocks(spec.build(), noise, values, *sizes), whole)


@pytest.mark.parametrize("sizes", [(1024,), (512, 2048)])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_chain_in_blocks_equals_the_whole_chain(sizes, channels, noise):
    spec = ChainSpec(DEFAULT_CHAIN, SAMPLE_RATE, channels)
    audio = np.concatenate([noise, 0.5 * noise[:, ::-1]])[:channels]
    values = random_values(spec)
    chain = spec.build()
    whole = chain.render_whole(audio, values)
    chain.restart()
    late = in_blocks(chain, np.pad(audio, ((0, 0), (0, chain.latency_samples))), values, *sizes)
    np.testing.assert_allclose(late[:, chain.latency_samples :], whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_restart_gives_the_bits_of_a_new_instance(name, noise):
    spec = ChainSpec([EffectSpec(f"pedalboard:{name}")], SAMPLE_RATE)
    used, values = spec.build(), random_values(spec, 1)
    used.render(noise, random_values(spec, 2))
    used.restart()
    np.testing.assert_array_equal(used.render(noise, values), spec.build().render(noise, values))


@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_every_declared_range_is_accepted_by_pedalboard_and_stays_finite(name, noise):
    spec = ChainSpec([EffectSpec(f"pedalboard:{name}")], SAMPLE_RATE)
    chain = spec.build()
    for end in (0.0, 1.0):
        chain.restart()
        output = chain.render(noise, spec.space.denormalize(np.full(len(spec.parameters), end)))
        assert np.isfinite(output).all()


def test_setting_a_value_has_its_effect_at_the_next_block(noise):
    spec = ChainSpec([EffectSpec("pedalboard:Gain")], SAMPLE_RATE)
    chain = spec.build()
    chain.render(noise, np.array([0.0]))
    np.testing.assert_allclose(chain.render(noise, np.array([20.0])), 10 * noise, rtol=1e-5)


@pytest.mark.parametrize("name, parameter", [("LadderFilter", "cutoff_hz"), ("Chorus", "mix"), ("Reverb", "wet_level")])
def test_smoothed_parameters_start_at_their_values_and_declare_their_smoothing(name, parameter, noise):
    spec = ChainSpec([EffectSpec(f"pedalboard:{name}", train={parameter: None})], SAMPLE_RATE)
    assert spec.parameters[0].smoothing_ms > 0
    low, high = np.array([spec.parameters[0].low]), np.array([spec.parameters[0].high])
    begun_low, begun_high, moved = spec.build(), spec.build(), spec.build()
    begun_low.render(noise, low)
    moved.render(noise, low)
    glide = int(0.001 * SAMPLE_RATE)
    at_high = begun_high.render(noise, high)
    assert not np.allclose(moved.render(noise, high)[:, :glide], at_high[:, :glide], atol=1e-4)
    moved.restart()
    np.testing.assert_array_equal(moved.render(noise, high), at_high)


def test_the_limiter_never_exceeds_its_ceiling_and_reports_its_latency(noise):
    spec = ChainSpec(
        [EffectSpec("pedalboard:BrickwallLimiter", train={"ceiling_db": None}, fixed={"lookahead_ms": 5.0})],
        SAMPLE_RATE,
    )
    chain = spec.build()
    assert chain.latency_samples == round(0.005 * SAMPLE_RATE)
    limited = chain.render_whole(10 * noise, np.array([-12.0]))
    assert np.abs(limited).max() <= 10 ** (-12 / 20) * 1.0001
    np.testing.assert_array_equal(chain.render_whole(0.1 * noise, np.array([0.0])), 0.1 * noise)


@pytest.mark.parametrize("name, rest", [("MultibandCompressor", {"ratio": 1.0}), ("MultibandGate", {"ratio": 1.0})])
def test_multiband_effects_at_rest_return_their_input(name, rest, noise):
    fixed = {f"band_{band}_{control}": value for band in range(1, 5) for control, value in rest.items()}
    spec = ChainSpec([EffectSpec(f"pedalboard:{name}", fixed=fixed)], SAMPLE_RATE)
    output = spec.build().render(noise, spec.space.denormalize(spec.space.defaults))
    np.testing.assert_allclose(output, noise, atol=1e-6)


def test_each_band_gain_changes_one_part_of_the_spectrum(noise):
    spec = ChainSpec([EffectSpec("pedalboard:MultibandCompressor", fixed={
        **{f"band_{band}_ratio": 1.0 for band in range(1, 5)},
        "crossover_1_hz": 200.0, "crossover_2_hz": 1000.0, "crossover_3_hz": 5000.0,
    }, train={f"band_{band}_gain_db": None for band in range(1, 5)})], SAMPLE_RATE)  # fmt: skip
    power = np.abs(np.fft.rfft(noise[0])) ** 2
    strongest = []
    for band in range(4):
        gains = np.full(4, 0.0)
        gains[band] = 12.0
        boosted = np.abs(np.fft.rfft(spec.build().render(noise, gains)[0])) ** 2
        frequencies = np.fft.rfftfreq(noise.shape[1], 1 / SAMPLE_RATE)
        rise = [
            boosted[(frequencies > low) & (frequencies < high)].sum()
            / power[(frequencies > low) & (frequencies < high)].sum()
            for low, high in [(10, 100), (350, 600), (1700, 3000), (8000, 11000)]
        ]
        strongest.append(int(np.argmax(rise)))
    assert strongest == [0, 1, 2, 3]


def test_the_graphic_equalizer_boosts_the_band_that_it_names(noise):
    spec = ChainSpec([EffectSpec("pedalboard:GraphicEqualizer", train={"gain_1000_hz_db": None})], SAMPLE_RATE)
    n = np.arange(SAMPLE_RATE)
    for hz, expected_db in [(1000, 10.0), (250, 0.0), (4000, 0.0)]:
        sine = (0.1 * np.sin(2 * np.pi * hz * n / SAMPLE_RATE)).astype(np.float32)[None]
        output = spec.build().render(sine, np.array([10.0]))
        rise_db = 20 * np.log10(np.abs(output[:, 4000:]).max() / np.abs(sine).max())
        assert rise_db == pytest.approx(expected_db, abs=0.3)


def test_the_graphic_equalizer_has_no_band_above_nyquist():
    with pytest.raises(EffectError, match="gain_16000_hz_db"):
        ChainSpec([EffectSpec("pedalboard:GraphicEqualizer", train={"gain_16000_hz_db": None})], SAMPLE_RATE)
    ChainSpec([EffectSpec("pedalboard:GraphicEqualizer", train={"gain_16000_hz_db": None})], 44100)
