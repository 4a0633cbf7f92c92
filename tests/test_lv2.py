import threading

import numpy as np
import pytest
import torch

from dfx.blackbox import EffectLayer, GradientOptions, RenderingOptions
from dfx.effects import ChainSpec, EffectError, EffectSpec, RenderError, lilv, lv2
from tests.known_effects import SAMPLE_RATE

CALF = "http://calf.sourceforge.net/plugins/"
LSP = "http://lsp-plug.in/plugins/lv2/"
BANDS = range(4)

# Fixed values with which each plugin changes its input, and useful parameters to train.
PLUGINS = {
    f"{CALF}MultibandCompressor": (
        {f"bypass{b}": False for b in BANDS},
        ["level_in", "freq1", *(f"threshold{b}" for b in BANDS), *(f"makeup{b}" for b in BANDS)],
    ),
    f"{CALF}MultibandGate": (
        {f"bypass{b}": False for b in BANDS} | {f"makeup{b}": 1 for b in BANDS},
        ["level_in", "freq1", *(f"threshold{b}" for b in BANDS), *(f"range{b}" for b in BANDS)],
    ),
    f"{CALF}Equalizer8Band": (
        {f"p{p}_active": "ON" for p in (1, 2, 3, 4)},
        # The ranges of the ports go up to 36 dB: the sum of all is far too loud.
        {name: (0.1, 4.0) for name in ("level_out", "p1_level", "p2_level", "p3_level", "p4_level")},
    ),
    # Its latency is its attack time, and is not reported.
    f"{CALF}Limiter": ({"attack": 5, "auto_level": False}, ["level_in", "limit"]),
    f"{LSP}graph_equalizer_x32_mono": ({}, [*(f"g_{band}" for band in range(29)), "g_out"]),
    f"{LSP}limiter_mono": ({"alr": False, "boost": False}, ["th"]),
    f"{LSP}mb_compressor_mono": (
        {"envb": "None"},
        [f"{kind}_{band}" for kind in ("al", "cr", "mk") for band in (0, 2, 4, 6)],
    ),
    f"{LSP}mb_gate_mono": (
        {"envb": 0},
        [f"{kind}_{band}" for kind in ("gt", "gr", "mk") for band in (0, 2, 4, 6)],
    ),
    "http://invadarecords.com/plugins/lv2/tube/mono": ({}, ["drive", "dcoffset", "mix"]),
    "urn:zamaudio:ZamTube": ({}, ["tubedrive", "bass", "mids", "treb", "gain"]),
    "urn:zamaudio:ZaMultiComp": (
        {f"toggle{b}": True for b in (1, 2, 3)},
        [f"{kind}{band}" for kind in ("thr", "rat", "mak") for band in (1, 2, 3)],
    ),
}
every_plugin = pytest.mark.parametrize("uri", PLUGINS)


def require(uri: str) -> None:
    """Skip a test whose plugin is not installed; the reason names the package."""
    try:
        lv2.controls(uri, SAMPLE_RATE, 1)
    except EffectError as error:
        if "liblilv" in str(error) or "is installed" in str(error):
            pytest.skip(str(error))
        raise


def spec_of(uri: str, channels: int = 1, sample_rate: int = SAMPLE_RATE, **options: object) -> ChainSpec:
    require(uri)
    if not options and uri in PLUGINS:
        fixed, train = PLUGINS[uri]
        options = {"fixed": fixed, "train": train if isinstance(train, dict) else dict.fromkeys(train)}
    return ChainSpec([EffectSpec(f"lv2:{uri}", **options)], sample_rate, channels)


def some_values(spec: ChainSpec, seed: int = 0) -> np.ndarray:
    around = spec.space.defaults + np.random.default_rng(seed).uniform(-0.1, 0.1, len(spec.parameters))
    return spec.space.denormalize(around)


def in_frames(chain, audio: np.ndarray, values: np.ndarray, frame: int) -> np.ndarray:
    frames = [chain.render(audio[:, i : i + frame], values) for i in range(0, audio.shape[1], frame)]
    return np.concatenate(frames, axis=1)


# --- metadata ----------------------------------------------------------------------------------------


CALF_MULTIBAND = {
    "freq0": (10, 20000, 120),
    "freq1": (10, 20000, 1000),
    "freq2": (10, 20000, 6000),
    "level_in": (0.015625, 64, 1),
    "level_out": (0.015625, 64, 1),
    **{f"threshold{band}": (0.000976563, 1, 0.25) for band in BANDS},
    **{f"ratio{band}": (1, 20, 2) for band in BANDS},
}
IN_THE_PAPER = {
    f"{CALF}MultibandCompressor": CALF_MULTIBAND
    | {f"makeup{band}": (1, 64, 1) for band in BANDS}
    | {f"knee{band}": (1, 8, 2.82843) for band in BANDS},
    f"{CALF}MultibandGate": CALF_MULTIBAND | {f"range{band}": (1.5849e-05, 1, 0.06125) for band in BANDS},
    f"{LSP}graph_equalizer_x32_mono": {f"g_{band}": (0.01585, 63.0958, 1) for band in range(32)}
    | {"g_out": (0, 10, 1)},
    f"{LSP}limiter_mono": {"th": (0.00398, 1, 1)},
}


@pytest.mark.parametrize("uri", IN_THE_PAPER)
def test_ranges_and_defaults_are_those_of_the_paper(uri):
    require(uri)
    controls = lv2.controls(uri, SAMPLE_RATE, 1)
    for symbol, expected in IN_THE_PAPER[uri].items():
        control = controls[symbol]
        assert control.trainable
        # LSP's metadata have one digit more now.
        assert (control.low, control.high, control.default) == pytest.approx(expected, rel=3e-4), symbol


def test_numbers_are_those_of_the_metadata_and_not_their_neighbours_in_float32():
    require(f"{CALF}MultibandCompressor")
    control = lv2.controls(f"{CALF}MultibandCompressor", SAMPLE_RATE, 1)["threshold0"]
    assert (control.minimum, control.maximum, control.default) == (0.000976563, 1.0, 0.25)


def test_units_scales_switches_and_modes_come_from_the_metadata():
    require(f"{CALF}MultibandCompressor")
    controls = lv2.controls(f"{CALF}MultibandCompressor", SAMPLE_RATE, 1)
    assert [(controls[name].unit, controls[name].scale) for name in ("freq0", "attack0", "ratio0")] == [
        ("Hz", "log"), ("ms", "log"), ("", "linear"),
    ]  # fmt: skip
    assert controls["bypass0"].default is True and not controls["bypass0"].trainable
    assert controls["mode"].choices == ("LR4", "LR8") and not controls["mode"].trainable


def test_a_frequency_stays_below_nyquist_when_its_range_goes_above():
    spec = spec_of(f"{CALF}MultibandCompressor", train={"freq2": None})
    assert spec.parameters[0].high == pytest.approx(0.49 * SAMPLE_RATE)


@pytest.mark.parametrize("mode", ["LR4", 0, 0.0])
def test_a_mode_is_set_by_its_name_or_its_number(mode, noise):
    fixed, _ = PLUGINS[f"{CALF}MultibandCompressor"]
    outputs = []
    for m in (mode, "LR4", "LR8"):
        spec = spec_of(f"{CALF}MultibandCompressor", fixed=fixed | {"mode": m}, train={"level_in": None})
        outputs.append(spec.build().render(noise, np.ones(1)))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert np.abs(outputs[0] - outputs[2]).max() > 0.01


def test_an_unknown_mode_is_refused_with_the_nearest_name():
    with pytest.raises(EffectError, match="did you mean 'LR8'"):
        spec_of(f"{CALF}MultibandCompressor", fixed={"mode": "LR9"})


def test_an_unknown_plugin_is_refused_with_the_nearest_uri():
    require(f"{CALF}MultibandGate")
    with pytest.raises(EffectError, match="did you mean '.*/MultibandGate'"):
        ChainSpec([EffectSpec(f"lv2:{CALF}MultibandGat")], SAMPLE_RATE)


@pytest.mark.parametrize("plugin", ["Monosynth", "XOver4Band", "Vocoder"])
def test_a_plugin_that_is_not_an_effect_is_refused_with_the_counts_of_its_channels(plugin):
    require(f"{CALF}MultibandGate")
    with pytest.raises(EffectError, match=r"audio inputs: \d, outputs: \d"):
        ChainSpec([EffectSpec(f"lv2:{CALF}{plugin}")], SAMPLE_RATE)


def test_the_list_of_plugins_holds_effects_and_no_instruments():
    require(f"{CALF}Limiter")
    found = lv2.list_plugins()
    assert found[f"{CALF}Limiter"] == "Calf Limiter"
    assert f"{CALF}Monosynth" not in found


# --- plugins that exist only as metadata -------------------------------------------------------------


@pytest.fixture
def write_plugin(tmp_path, monkeypatch):
    """Make ``urn:test`` the only installed plugin, with the ports that a test gives it."""

    def write(*ports: str, header: str = ""):
        prefixes = "\n".join(f"@prefix {prefix}: <{uri}> ." for prefix, uri in lilv.PREFIXES.items())
        audio = [f'a lv2:{way}Port, lv2:AudioPort ; lv2:symbol "{way}"' for way in ("Input", "Output")]
        listed = ", ".join(
            f'[ {port} ; lv2:index {index} ; lv2:name "port" ]' for index, port in enumerate([*audio, *ports])
        )
        (tmp_path / "test.lv2").mkdir()
        (tmp_path / "test.lv2" / "manifest.ttl").write_text(
            f"{prefixes}\n@prefix doap: <http://usefulinc.com/ns/doap#> .\n"
            f'<urn:test> a lv2:Plugin ; doap:name "Test" ; lv2:binary <no.so> ; {header} lv2:port {listed} .'
        )

    try:
        lilv.uris()
    except EffectError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("LV2_PATH", str(tmp_path))
    lilv.rescan()
    yield write
    lilv.rescan()


def control_input(symbol: str, *details: str) -> str:
    return " ; ".join([f'a lv2:InputPort, lv2:ControlPort ; lv2:symbol "{symbol}"', *details])


RANGE = "lv2:default 0.2 ; lv2:minimum 0.1 ; lv2:maximum 0.4"


def test_a_range_in_sample_rates_is_multiplied_by_the_sample_rate(write_plugin):
    write_plugin(control_input("x", RANGE, "lv2:portProperty lv2:sampleRate"))
    control = lv2.controls("urn:test", 1000, 1)["x"]
    assert (control.default, control.low, control.high, control.maximum) == (200, 100, 400, 400)


def test_a_logarithmic_range_from_zero_is_linear_and_what_has_no_range_cannot_be_trained(write_plugin):
    logarithmic = "lv2:portProperty pprops:logarithmic"
    write_plugin(
        control_input("ratio", RANGE, logarithmic),
        control_input("from_zero", "lv2:default 0 ; lv2:minimum 0 ; lv2:maximum 1", logarithmic),
        control_input("endless", "lv2:default 3"),
        control_input("count", RANGE, "lv2:portProperty lv2:integer"),
        control_input("enabled", RANGE, "lv2:designation lv2:enabled"),
    )
    controls = lv2.controls("urn:test", SAMPLE_RATE, 1)
    assert [controls[name].scale for name in ("ratio", "from_zero")] == ["log", "linear"]
    assert [name for name, control in controls.items() if control.trainable] == ["ratio", "from_zero"]


def test_a_custom_unit_is_named_by_its_symbol(write_plugin):
    write_plugin(control_input("x", RANGE, 'units:unit [ units:symbol "G" ]'))
    assert lv2.controls("urn:test", SAMPLE_RATE, 1)["x"].unit == "G"


def test_two_ports_with_one_symbol_are_refused(write_plugin):
    write_plugin(control_input("x", RANGE), control_input("x", RANGE))
    with pytest.raises(EffectError, match="2 ports with the symbol 'x'"):
        lv2.controls("urn:test", SAMPLE_RATE, 1)


def test_a_required_feature_that_the_host_lacks_is_named(write_plugin):
    write_plugin(header="lv2:requiredFeature urid:map, <urn:flux-capacitor> ;")
    with pytest.raises(EffectError, match="urn:flux-capacitor$"):
        lv2.controls("urn:test", SAMPLE_RATE, 1)


def test_a_plugin_that_cannot_be_loaded_is_an_error_when_the_chain_is_built(write_plugin):
    write_plugin(control_input("x", RANGE))
    with pytest.raises(EffectError, match="urn:test could not be loaded, or refused to run at 22050 Hz"):
        ChainSpec([EffectSpec("lv2:urn:test")], SAMPLE_RATE).build()


def test_a_plugin_of_a_collection_that_is_missing_is_refused_with_what_to_install(write_plugin):
    write_plugin()
    with pytest.raises(EffectError, match="apt-get install calf-plugins"):
        lv2.controls(f"{CALF}MultibandGate", SAMPLE_RATE, 1)


def test_without_liblilv_the_error_says_how_to_install_it(write_plugin, monkeypatch):
    monkeypatch.setattr(lilv, "_library_names", lambda: ["no-such-library"])
    with pytest.raises(EffectError, match="apt-get install liblilv-0-0.*brew install lilv"):
        lv2.controls("urn:test", SAMPLE_RATE, 1)


def test_a_plugin_is_not_loaded_off_the_main_thread(write_plugin):
    write_plugin()
    errors = []

    def load():
        try:
            lv2.controls("urn:test", SAMPLE_RATE, 1)
        except EffectError as error:
            errors.append(str(error))

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    assert errors and "main thread" in errors[0]


# --- rendering ---------------------------------------------------------------------------------------


@every_plugin
def test_a_restart_and_a_fresh_instance_give_the_same_bits(uri, noise):
    spec = spec_of(uri)
    used, values = spec.build(), some_values(spec, 1)
    used.render(noise, some_values(spec, 2))
    used.restart()
    np.testing.assert_array_equal(used.render(noise, values), spec.build().render(noise, values))


@every_plugin
@pytest.mark.parametrize("frame", [1024, 3072])
def test_frames_of_whole_blocks_equal_the_whole_to_the_bit(uri, frame, noise):
    spec = spec_of(uri)
    values = some_values(spec)
    whole = spec.build().render(noise, values)
    np.testing.assert_array_equal(in_frames(spec.build(), noise, values, frame), whole)


@every_plugin
def test_frames_of_another_length_equal_the_whole_where_the_plugin_does_not_work_by_blocks(uri, noise):
    # LSP's limiter searches peaks per block, its dynamics smooth gains per block, and Calf's equalizer smooths its
    # frequencies per block, from 0 for the first 0.3 s.
    by_blocks = {"limiter_mono": 0.2, "mb_compressor_mono": 1e-3, "mb_gate_mono": 0.05, "Equalizer8Band": 0.1}
    tolerance = by_blocks.get(uri.split("/")[-1], 0)
    spec = spec_of(uri)
    values = some_values(spec)
    whole = spec.build().render(noise, values)
    framed = in_frames(spec.build(), noise, values, 600)
    # LSP's gates open at the end of a block; which of their first blocks it is depends on the processor.
    settled = 4096 if "mb_gate" in uri else 0
    np.testing.assert_allclose(framed[:, settled:], whole[:, settled:], atol=tolerance, rtol=0)


@every_plugin
def test_every_trained_parameter_changes_the_output(uri):
    spec = spec_of(uri)
    # It fades in, since a gate that a loud signal opens at once does not depend on its threshold, and remains loud.
    level = 0.4 * np.append(np.geomspace(1e-4, 1, 8192), np.ones(8192))
    loud = (level * np.random.default_rng(0).standard_normal((1, 16384))).astype(np.float32)
    # Low, but not at the end: thresholds are below the signal there, and ratios and gains above their neutral values.
    chain, base = spec.build(), np.full(len(spec.parameters), 0.3)
    reference = chain.render(loud, spec.space.denormalize(base))
    for index, parameter in enumerate(spec.parameters):
        moved = base.copy()
        moved[index] += 0.1
        chain.restart()
        difference = chain.render(loud, spec.space.denormalize(moved)) - reference
        assert np.abs(difference).max() > 1e-6, parameter.name


@every_plugin
def test_a_mono_plugin_on_stereo_is_two_of_it_and_a_stereo_plugin_on_mono_its_left_side(uri, noise):
    stereo, mono = spec_of(uri, channels=2), spec_of(uri)
    values = some_values(mono)
    other = noise[:, ::-1] if uri.endswith("mono") or uri.startswith("urn") else noise
    both = stereo.build().render(np.concatenate([noise, other]), values)
    np.testing.assert_array_equal(both[:1], mono.build().render(noise, values))
    np.testing.assert_array_equal(both[1:], mono.build().render(np.ascontiguousarray(other), values))


def test_a_side_chain_is_silent():
    spec = spec_of(f"{LSP}sc_compressor_mono", train={"g_out": None})
    chain = spec.build()
    assert len(chain.parts[0].effect._inputs) == 1
    assert np.isfinite(chain.render(np.ones((1, 4096), np.float32), np.ones(1))).all()


@pytest.mark.parametrize("sample_rate, latency", [(22050, 110), (44100, 220)])
def test_the_latency_that_a_plugin_reports_is_how_late_it_is(sample_rate, latency):
    spec = spec_of(f"{LSP}limiter_mono", sample_rate=sample_rate)
    chain = spec.build()
    assert chain.latency_samples == latency
    impulse = np.zeros((1, 4096), dtype=np.float32)
    impulse[0, 1000] = 0.5
    assert np.abs(chain.render(impulse, np.ones(1))).argmax() == 1000 + latency
    assert np.abs(chain.render_whole(impulse, np.ones(1))).argmax() == 1000


def test_a_latency_that_changes_while_audio_streams_is_an_error(noise):
    spec = spec_of(f"{LSP}limiter_mono", train={"lk": None})
    with pytest.raises(RenderError, match="latency went from 110 to 441 samples.*`fixed`"):
        spec.build().render(noise, np.array([20.0]))


def test_every_instance_is_freed_with_its_effect(monkeypatch, noise):
    spec = spec_of(f"{LSP}graph_equalizer_x32_mono")
    freed, free = [], lilv.Library.free

    def count(self, handle, buffers):
        freed.append(handle)
        free(self, handle, buffers)

    monkeypatch.setattr(lilv.Library, "free", count)
    chains = [spec.build() for _ in range(5)]
    assert len(freed) == 5  # the instances that were built to read the latency
    for chain in chains:
        chain.render(noise, some_values(spec))
        chain.restart()
        chain.render(noise, some_values(spec))
    assert len(freed) == 10
    del chain, chains
    assert len(freed) == 15


@every_plugin
def test_ten_steps_of_training_move_every_parameter(uri):
    spec = spec_of(uri)
    layer = EffectLayer(spec, GradientOptions(seed=1), rendering=RenderingOptions(workers=2))
    generator = torch.Generator().manual_seed(0)
    audio = 0.3 * torch.randn(4, 10, 1024, generator=generator)
    start = torch.tensor(spec.space.defaults).clamp(0.3, 0.7)
    parameters = start.repeat(4, 1).requires_grad_()
    target_layer = EffectLayer(spec, rendering=RenderingOptions(workers=2))
    target_parameters = (start + 0.2).repeat(4, 1)
    optimizer = torch.optim.Adam([parameters], lr=0.01)
    for step, frame in enumerate(audio.unbind(dim=1)):
        restart = torch.full((4,), step == 0)
        target = target_layer(frame, target_parameters, restart)
        loss = (layer(frame, parameters.clamp(0, 1), restart) - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        assert torch.isfinite(parameters.grad).all()
        optimizer.step()
    assert (parameters.detach() != start).all()


def test_threads_render_and_restart_to_the_bits_of_one(noise):
    spec = spec_of(f"{CALF}MultibandCompressor")
    values = some_values(spec)
    expected = spec.build().render(noise, values)
    chains = [spec.build() for _ in range(4)]
    outputs = {}

    def work(index: int) -> None:
        for _ in range(3):
            chains[index].restart()
            outputs[index] = chains[index].render(noise, values)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(chains))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(len(chains)):
        np.testing.assert_array_equal(outputs[index], expected)
