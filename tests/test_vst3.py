import gc
import os
import sys
import threading

import numpy as np
import pedalboard
import pytest
import torch

from dfx.blackbox import EffectLayer, GradientOptions, RenderingOptions
from dfx.effects import ChainSpec, EffectError, EffectSpec, vst3
from dfx.effects.vst3 import Positions

SAMPLE_RATE = 44100
FRAME = 1024
PLUGINS = ("ZaMultiComp", "ZamTube", "ZamGate", "ZamGEQ31")
ON = {f"zamcomp_{band}_on": True for band in (1, 2, 3)}
FIXED = {"ZaMultiComp": ON}

missing = {*PLUGINS, "ZamComp", "ZaMaximX2"} - {*vst3.installed()}
needs_zam = pytest.mark.skipif(
    bool(missing), reason=f"{', '.join(sorted(missing))} not found (Debian: apt-get install zam-plugins)"
)


def chain_of(name, channels=1, train=None, fixed=None, sample_rate=SAMPLE_RATE):
    fixed = FIXED.get(name, {}) if fixed is None else fixed
    return ChainSpec([EffectSpec(f"vst3:{name}", train=train, fixed=fixed)], sample_rate, channels)


def noise(samples, channels=1, seed=0):
    return (0.2 * np.random.default_rng(seed).standard_normal((channels, samples))).astype(np.float32)


def values_at(spec, parameter):
    return spec.space.denormalize(np.full(len(spec.parameters), parameter))


def in_frames(chain, audio, values, frame=FRAME):
    frames = [chain.render(audio[:, i : i + frame], values) for i in range(0, audio.shape[1], frame)]
    return np.concatenate(frames, axis=1)


def plugins_of(chain):
    return chain.parts[0].effect.plugins


@needs_zam
class TestControls:
    def test_the_trainable_controls_of_each_plugin_are_its_knobs(self):
        trainable = {
            name: [c.name for c in vst3.controls(name, SAMPLE_RATE, 1).values() if c.trainable] for name in PLUGINS
        }
        assert trainable["ZamTube"] == ["tube_drive", "bass", "mids", "treble", "input_level"]
        assert trainable["ZamGate"] == [
            "attack_ms", "release_ms", "threshold_db", "makeup_db", "max_gate_close_db",
        ]  # fmt: skip
        bands = ("attack{}_ms", "release{}_ms", "knee{}_db", "ratio{}", "threshold_{}_db", "makeup_{}_db")
        assert trainable["ZaMultiComp"] == [
            *(name.format(band) for name in bands for band in (1, 2, 3)),
            "crossover_freq_1_hz", "crossover_freq_2_hz", "master_trim_db",
        ]  # fmt: skip
        assert len(trainable["ZamGEQ31"]) == 30
        assert trainable["ZamGEQ31"][:2] == ["master_gain_db", "32hz_db"]

    @pytest.mark.parametrize("name", ["ZamTube", "ZaMaximX2"])
    def test_plugins_print_nothing_while_they_are_loaded_and_freed(self, name, capfd):
        # Plugins that other tests have left behind.
        gc.collect()
        capfd.readouterr()
        vst3.describe.cache_clear()
        chain = chain_of(name).build()
        chain.restart()
        del chain
        gc.collect()
        assert capfd.readouterr().err == ""

    def test_what_a_plugin_prints_before_it_fails_to_load_is_shown(self, capfd, monkeypatch):
        def fail(*args, **options):
            os.write(2, b"no licence\n")
            raise ImportError("it returned no factory")

        monkeypatch.setattr("pedalboard.load_plugin", fail)
        with pytest.raises(EffectError, match="it returned no factory"):
            vst3._load("X.vst3", None)
        assert capfd.readouterr().err == "no licence\n"

    @pytest.mark.parametrize("name", [*PLUGINS, "ZaMaximX2"])
    def test_programs_meters_and_the_hosts_settings_are_not_controls(self, name):
        listed = " ".join(vst3.controls(name, SAMPLE_RATE, 2 if name.endswith("X2") else 1))
        for junk in ("program", "gain_reduction", "buffer_size", "sample_rate", "latency", "output_low"):
            assert junk not in listed

    def test_ranges_units_scales_and_defaults_are_the_plugins_own(self):
        controls = vst3.controls("ZaMultiComp", SAMPLE_RATE, 1)
        attack, threshold = controls["attack1_ms"], controls["threshold_1_db"]
        assert (attack.low, attack.high, attack.unit, attack.scale) == (0.1, 100, "ms", "log")
        assert (threshold.low, threshold.high, threshold.unit, threshold.scale) == (-60, 0, "dB", "linear")
        assert (attack.default, threshold.default) == (10, -20)
        assert controls["ratio1"].unit == ""
        crossover = controls["crossover_freq_2_hz"]
        assert (crossover.minimum, crossover.maximum, crossover.scale) == (1400, 14000, "log")

    def test_frequencies_stay_below_nyquist(self):
        spec = chain_of("ZaMultiComp", train={"crossover_freq_2_hz": None}, sample_rate=22050)
        assert spec.parameters[0].high == pytest.approx(0.49 * 22050)

    def test_switches_and_modes_can_be_fixed_but_not_trained(self):
        controls = vst3.controls("ZaMultiComp", SAMPLE_RATE, 1)
        assert controls["zamcomp_1_on"].default is False
        assert not controls["zamcomp_1_on"].trainable
        models = vst3.controls("ZamTube", SAMPLE_RATE, 1)["tone_stack_model"]
        assert len(models.choices) == 25
        assert models.default == models.choices[0] == "1959 Bassman 5F6-A"
        with pytest.raises(EffectError, match="cannot be trained"):
            chain_of("ZaMultiComp", train={"zamcomp_1_on": None}, fixed={})
        with pytest.raises(EffectError, match="did you mean 'JTM 45'"):
            chain_of("ZamTube", fixed={"tone_stack_model": "JTM45"})


@needs_zam
class TestValues:
    @pytest.mark.parametrize("name", PLUGINS)
    def test_the_plugin_displays_the_values_that_were_set(self, name):
        spec = chain_of(name)
        chain = spec.build()
        (plugin,) = plugins_of(chain)
        for parameter in (0.0, 0.37, 1.0):
            values = values_at(spec, parameter)
            chain.render(noise(FRAME), values)
            parameters = vst3.native_parameters(plugin)
            entries = vst3.describe(name, SAMPLE_RATE, 1).entries.values()
            texts = {entry.control.name: parameters[entry.parameter_index].string_value for entry in entries}
            shown = [float(texts[parameter.name.split(".")[1]]) for parameter in spec.parameters]
            # A position is a float32, with at most six digits of the range.
            ranges = [parameter.high - parameter.low for parameter in spec.parameters]
            np.testing.assert_array_less(np.abs(shown - values), 2e-6 + 2e-7 * np.array(ranges))

    def test_fixed_values_reach_the_plugin(self):
        fixed = {"tone_stack_model": "JTM 45", "insane_boost": True, "bass": 2.5}
        chain = chain_of("ZamTube", train={"mids": None}, fixed=fixed).build()
        plugin = plugins_of(chain)[0]
        shown = {parameter.name: parameter.string_value for parameter in vst3.native_parameters(plugin)}
        assert shown["Tone Stack Model"] == "JTM 45"
        assert float(shown["Insane Boost"]) == 1
        assert float(shown["Bass"]) == pytest.approx(2.5, abs=1e-5)


class TestTables:
    def test_values_that_are_not_linear_are_looked_up(self):
        raws = np.linspace(0, 1, 1001)
        curved = vst3._numbers(list(20.0 * 1000.0**raws), list(raws))
        linear = vst3._numbers(list(-60 + 60 * raws), list(raws))
        falling = vst3._numbers(list(10 - 10 * raws), list(raws))
        assert [len(table) for table in (curved, linear, falling)] == [1001, 2, 2]
        positions = Positions([curved, linear, falling])
        expected = np.array([0.3333, 0.25, 0.9])
        values = np.array([20 * 1000 ** expected[0], -60 + 60 * expected[1], 10 - 10 * expected[2]])
        np.testing.assert_allclose(positions(values), expected, atol=1e-5)
        assert positions(np.array([20000.0, 0.0, 10.0])) == [1, 1, 0]

    def test_numbers_out_of_order_are_not_a_scale(self):
        assert vst3._numbers([50.0, 0.0, 50.0], [0.0, 0.5, 1.0]) is None
        assert vst3._numbers([-np.inf, -60.0, 0.0], [0.0, 0.001, 1.0]) == {-60.0: 0.001, 0.0: 1.0}


def test_a_missing_file_and_a_file_that_is_not_a_plugin_have_different_errors(tmp_path):
    for absent in (str(tmp_path / "absent.vst3"), "~nobody/absent.vst3"):
        with pytest.raises(EffectError, match="there is no plugin at"):
            chain_of(absent)
    with pytest.raises(EffectError, match="no plugin '~' is installed"):
        chain_of("~")
    (tmp_path / "notes.vst3").write_text("not a plugin")
    with pytest.raises(EffectError, match="not a plugin that can be loaded"):
        chain_of(str(tmp_path / "notes.vst3"))


@needs_zam
class TestStreaming:
    @pytest.mark.parametrize("name", [*PLUGINS, "ZamComp"])
    def test_frames_equal_the_whole_and_a_restart_repeats_it(self, name):
        spec = chain_of(name)
        chain = spec.build()
        audio, values = noise(8 * FRAME + 100), values_at(spec, 0.4)
        whole = chain.render_whole(audio, values)
        assert np.abs(whole).max() > 1e-3
        chain.render(3 * noise(FRAME, seed=1), values_at(spec, 0.8))
        chain.restart()
        np.testing.assert_array_equal(in_frames(chain, audio, values), whole)

    def test_the_first_pass_of_every_instance_is_the_same(self):
        spec = chain_of("ZaMultiComp")
        audio, values = noise(4 * FRAME), values_at(spec, 0.6)
        first, second = (in_frames(spec.build(), audio, values) for _ in range(2))
        np.testing.assert_array_equal(first, second)

    def test_every_instance_of_a_tube_is_known_to_keep_sound_through_a_reset(self):
        found = []
        for _ in range(20):
            vst3.describe.cache_clear()
            found.append(vst3.describe("ZamTube", SAMPLE_RATE, 1).reset_is_exact)
        assert found == [False] * 20

    def test_a_tube_that_restarts_in_a_worker_converges(self):
        spec = chain_of("ZamTube")
        audio, values = noise(128 * FRAME), values_at(spec, 0.6)
        chain = spec.build()
        whole = in_frames(chain, audio, values)
        thread = threading.Thread(target=chain.restart)
        thread.start()
        thread.join()
        late = slice(-16 * FRAME, None)
        again = in_frames(chain, audio, values)
        np.testing.assert_allclose(again[:, late], whole[:, late], atol=1e-2, rtol=0)

    def test_a_first_frame_shorter_than_the_next_loses_nothing(self):
        spec = chain_of("ZamGate")
        chain = spec.build()
        audio, values = noise(4 * FRAME), values_at(spec, 0.4)
        whole = chain.render_whole(audio, values)
        chain.restart()
        frames = [chain.render(part, values) for part in np.split(audio, [1, 100, 2000], axis=1)]
        np.testing.assert_array_equal(np.concatenate(frames, axis=1), whole)

    def test_restarts_in_a_worker_are_exact_where_the_effect_declares_it(self):
        def second_pass(name):
            spec = chain_of(name)
            chain = spec.build()
            audio, values = noise(4 * FRAME), values_at(spec, 0.6)
            first = in_frames(chain, audio, values)
            thread = threading.Thread(target=chain.restart)
            thread.start()
            thread.join()
            return np.abs(in_frames(chain, audio, values) - first).max(), chain.parts[0].effect.restart_is_exact

        assert second_pass("ZaMultiComp") == (0, True)

    def test_restarting_a_tube_often_does_not_crash(self):
        spec = chain_of("ZamTube")
        chain = spec.build()
        for count in range(50):
            chain.restart()
            output = chain.render(noise(64, seed=count), values_at(spec, count / 50))
            assert np.isfinite(output).all()


@needs_zam
class TestLatency:
    def test_an_impulse_comes_out_where_it_went_in(self):
        spec = chain_of("ZaMaximX2", channels=2)
        chain = spec.build()
        assert chain.latency_samples == 480
        impulse = np.zeros((2, 4 * FRAME), dtype=np.float32)
        impulse[:, 700] = 0.1
        output = chain.render_whole(impulse, values_at(spec, 1.0))
        assert np.abs(output).argmax(axis=1).tolist() == [700, 700]

    def test_every_frame_has_its_full_length_and_is_delayed_by_the_latency(self):
        spec = chain_of("ZaMaximX2", channels=2)
        chain = spec.build()
        audio, values = noise(2000, channels=2), values_at(spec, 0.7)
        whole = chain.render_whole(audio, values)
        chain.restart()
        late = in_frames(chain, audio, values, frame=100)
        assert late.shape == audio.shape
        np.testing.assert_array_equal(late[:, :480], 0)
        chain.restart()
        late = in_frames(chain, audio, values, frame=256)
        np.testing.assert_array_equal(late[:, 480:], whole[:, :-480])


@needs_zam
class TestChannels:
    def test_a_stereo_plugin_gets_mono_on_both_inputs(self):
        mono, stereo = chain_of("ZaMaximX2"), chain_of("ZaMaximX2", channels=2)
        audio = noise(4 * FRAME)
        values = values_at(mono, 0.6)
        output = mono.build().render_whole(audio, values)
        assert output.shape == audio.shape
        both = stereo.build().render_whole(np.repeat(audio, 2, axis=0), values)
        np.testing.assert_array_equal(output, both[:1])

    def test_a_mono_plugin_renders_every_channel_separately(self):
        mono, stereo = chain_of("ZamGate"), chain_of("ZamGate", channels=2)
        audio = noise(4 * FRAME, channels=2)
        values = values_at(mono, 0.5)
        single = mono.build()
        expected = [single.render_whole(channel[None], values) for channel in audio]
        np.testing.assert_array_equal(stereo.build().render_whole(audio, values), np.concatenate(expected))

    def test_channels_that_the_plugin_refuses_are_an_error_with_the_counts(self):
        with pytest.raises(EffectError, match="neither 3 nor 1 channels.*2 input channels"):
            vst3.controls("ZaMaximX2", SAMPLE_RATE, 3)


@needs_zam
class TestErrors:
    def test_an_unknown_plugin_names_the_nearest_and_the_package(self):
        with pytest.raises(EffectError, match="did you mean 'ZaMultiComp'.*apt-get install zam-plugins"):
            chain_of("ZamMultiComp")

    def test_a_plugin_is_found_by_its_path_and_in_the_folders_of_vst3_path(self, tmp_path, monkeypatch):
        path = vst3.describe("ZamGate", SAMPLE_RATE, 1).path
        assert chain_of(path).parameters[0].unit == "ms"
        assert chain_of(f"{path}#ZamGate").parameters[0].unit == "ms"
        (tmp_path / "Linked.vst3").symlink_to(path)
        monkeypatch.setenv("VST3_PATH", str(tmp_path))
        assert vst3._find("Linked") == str(tmp_path / "Linked.vst3")

    def test_a_parameter_of_another_name_names_the_nearest(self):
        with pytest.raises(EffectError, match="did you mean 'threshold_db'"):
            chain_of("ZamGate", train={"treshold_db": None})

    def test_an_instrument_is_refused(self, monkeypatch):
        class Instrument:
            is_effect = False

        monkeypatch.setattr(pedalboard, "load_plugin", lambda path, plugin_name: Instrument())
        with pytest.raises(EffectError, match="is an instrument"):
            vst3.controls("ZamComp", 8000, 1)

    def test_two_parameters_of_one_name_are_refused(self, monkeypatch):
        monkeypatch.setattr(vst3, "to_python_parameter_name", lambda parameter: "threshold_db")
        with pytest.raises(EffectError, match="two parameters 'threshold_db'"):
            vst3.controls("ZamGate", 8000, 1)

    def test_loading_off_the_main_thread_is_an_error(self):
        raised = []

        def build():
            try:
                chain_of("ZamGate").build()
            except EffectError as error:
                raised.append(str(error))

        thread = threading.Thread(target=build)
        thread.start()
        thread.join()
        assert "main thread" in raised[0]

    @pytest.mark.skipif(sys.platform == "darwin", reason="macOS has Audio Units")
    def test_audio_units_are_refused_where_there_are_none(self):
        with pytest.raises(EffectError, match="macOS only"):
            ChainSpec([EffectSpec("au:ZamGate")], SAMPLE_RATE).build()
        with pytest.raises(EffectError, match="macOS only"):
            ChainSpec([EffectSpec("au:X.component")], SAMPLE_RATE)


@needs_zam
@pytest.mark.parametrize("name", PLUGINS)
def test_ten_steps_of_training_through_each_plugin_move_its_parameters(name):
    torch.manual_seed(0)
    spec = chain_of(name)
    layer = EffectLayer(spec, GradientOptions(sides=1), rendering=RenderingOptions(workers=2))
    logits = torch.nn.Parameter(torch.zeros(len(spec.parameters)))
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for step in range(10):
        audio = torch.from_numpy(noise(2 * FRAME, seed=step)).reshape(2, FRAME)
        output = layer(audio, torch.sigmoid(logits).expand(2, -1), torch.tensor([step == 0] * 2))
        loss = (output - 0.5 * audio).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert output.shape == audio.shape
        assert torch.isfinite(output).all() and torch.isfinite(logits.grad).all()
    assert (logits != 0).any()
