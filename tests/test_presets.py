import ast
import ctypes
import dataclasses
import importlib.util
import json
import subprocess
from pathlib import Path

import numpy as np
import pedalboard
import pytest
from pedalboard._pedalboard import to_python_parameter_name

from dfx.effects import ChainSpec, EffectSpec, vst3
from dfx.effects.pedalboard import EFFECTS
from dfx.errors import UserError
from dfx.render.presets import _iri, as_python, preset_files, write_preset
from tests.known_effects import known

CALF = "lv2:http://calf.sourceforge.net/plugins/Compressor"
ZAM = "lv2:urn:zamaudio:ZamComp"


def at(spec: ChainSpec, seed: int = 0) -> dict:
    """Some setting of a chain."""
    parameters = np.random.default_rng(seed).uniform(0.1, 0.9, len(spec.parameters))
    return dict(zip(spec.space.names, spec.space.denormalize(parameters).tolist()))


def run(path: Path):
    """The board of a preset in Python, made by running it alone."""
    spec = importlib.util.spec_from_file_location("preset", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_board()


@pytest.mark.parametrize("name", EFFECTS)
def test_a_preset_in_python_sounds_as_the_chain_does(name, tmp_path):
    if not any(control.trainable for control in EFFECTS[name](44100).targets):
        effects = [EffectSpec(f"pedalboard:{name}"), EffectSpec("pedalboard:Gain")]
    else:
        effects = [EffectSpec(f"pedalboard:{name}")]
    spec = ChainSpec(effects, 44100, 2)
    values = at(spec)
    write_preset(str(tmp_path / "preset.py"), spec, values)
    audio = (0.3 * np.random.default_rng(1).standard_normal((2, 8000))).astype(np.float32)
    expected = spec.build().render_whole(audio, np.array([*values.values()]))
    chain = spec.build()
    tail = np.zeros((2, chain.latency_samples), np.float32)
    output = run(tmp_path / "preset.py").process(np.concatenate([audio, tail], axis=1), 44100)
    np.testing.assert_allclose(output[:, :8000], expected, atol=1e-5)


def test_json_holds_every_control_of_every_effect(tmp_path):
    effects = [EffectSpec("pedalboard:Compressor", train={"ratio": None}, fixed={"attack_ms": 3}), known("Gain")]
    spec = ChainSpec(effects, 44100, 1)
    write_preset(str(tmp_path / "a.json"), spec, {"compressor.ratio": 3.5, "gain.gain": 0.5})
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["effects"] == [
        {"effect": "pedalboard:Compressor", "name": "compressor",
         "settings": {"threshold_db": -20, "ratio": 3.5, "attack_ms": 3, "release_ms": 100}},
        {"effect": "python:tests.known_effects.Gain", "name": "gain", "settings": {"gain": 0.5}},
    ]  # fmt: skip


def test_a_vst3_preset_is_loaded_by_pedalboard(tmp_path):
    spec = ChainSpec([EffectSpec("vst3:ZamTube", fixed={"insane_boost": True})], 44100, 2)
    values = at(spec)
    write_preset(str(tmp_path / "a.vstpreset"), spec, values)
    path = next(path for path in pedalboard.VST3Plugin.installed_plugins if Path(path).stem == "ZamTube")
    plugin = pedalboard.load_plugin(path)
    plugin.load_preset(str(tmp_path / "a.vstpreset"))
    # The raw values, because pedalboard caches its attributes.
    positions = {
        to_python_parameter_name(parameter): parameter.raw_value for parameter in vst3.native_parameters(plugin)
    }
    for parameter in spec.parameters:
        wanted = parameter.normalize(values[parameter.name])
        assert positions[parameter.name.split(".")[1]] == pytest.approx(wanted, abs=1e-4)
    assert positions["insane_boost"] == 1


def test_several_vst3_plugins_have_a_preset_each(tmp_path):
    spec = ChainSpec([EffectSpec("vst3:ZamTube"), EffectSpec("pedalboard:Gain"), EffectSpec("vst3:ZamComp")], 44100, 1)
    path = str(tmp_path / "a.vstpreset")
    write_preset(path, spec, at(spec))
    written = {str(file) for file in tmp_path.iterdir()}
    assert written == set(preset_files(path, spec))
    assert {Path(file).name for file in written} == {"a_zam_tube.vstpreset", "a_zam_comp.vstpreset"}


def test_a_chain_with_vst3_plugins_in_python_sounds_as_the_chain_does(tmp_path):
    spec = ChainSpec([EffectSpec("pedalboard:Gain"), EffectSpec("vst3:ZamComp")], 44100, 1)
    values = at(spec)
    write_preset(str(tmp_path / "preset.py"), spec, values)
    board = run(tmp_path / "preset.py")
    chain = spec.build()
    chain.render(np.zeros((1, 256), np.float32), np.array([*values.values()]))
    positions = [parameter.raw_value for parameter in vst3.native_parameters(chain.parts[1].effect.plugins[0])]
    written = [parameter.raw_value for parameter in vst3.native_parameters(board[1])]
    np.testing.assert_allclose(written[3:], positions[3:], atol=1e-5)


@pytest.fixture
def bundle(tmp_path):
    effects = [
        EffectSpec(CALF, train={"threshold": None, "ratio": None}, fixed={"stereo_link": 0}),
        EffectSpec(ZAM, name="zam", train={"thr": None}),
    ]
    spec = ChainSpec(effects, 44100, 2)
    values = at(spec)
    write_preset(str(tmp_path / "mine.lv2"), spec, values)
    return tmp_path / "mine.lv2", values


def test_an_lv2_bundle_is_valid(bundle):
    files = [str(file) for file in bundle[0].iterdir()]
    assert len(files) == 3
    done = subprocess.run(["lv2_validate", *files], capture_output=True, text=True)
    errors = [line.strip() for line in (done.stdout + done.stderr).splitlines() if "error:" in line]
    # Only the presets are validated, without the plugins that they apply to.
    assert errors == 2 * ["error: Object not in range <http://lv2plug.in/ns/lv2core#Plugin>"]


def test_liblilv_reads_the_values_of_an_lv2_preset(bundle):
    folder, values = bundle
    lilv = ctypes.CDLL("liblilv-0.so.0")
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    take = ctypes.CFUNCTYPE(None, text, pointer, pointer, ctypes.c_uint32, ctypes.c_uint32)
    map_type = ctypes.CFUNCTYPE(ctypes.c_uint32, pointer, text)
    uris: dict = {}
    mapped = map_type(lambda handle, uri: uris.setdefault(uri, len(uris) + 1))

    class Map(ctypes.Structure):
        _fields_ = [("handle", pointer), ("map", map_type)]

    for name, result, arguments in [
        ("world_new", pointer, []), ("world_load_all", None, [pointer]),
        ("state_new_from_file", pointer, [pointer, pointer, pointer, text]),
        ("state_get_plugin_uri", pointer, [pointer]), ("node_as_uri", text, [pointer]),
        ("state_get_label", text, [pointer]),
        ("state_emit_port_values", None, [pointer, take, pointer]),
    ]:  # fmt: skip
        function = getattr(lilv, f"lilv_{name}")
        function.restype, function.argtypes = result, arguments
    world = lilv.lilv_world_new()
    lilv.lilv_world_load_all(world)
    urid_map = Map(None, mapped)
    read: dict = {}

    @take
    def port(symbol, data, value, size, kind):
        read[symbol.decode()] = ctypes.cast(value, ctypes.POINTER(ctypes.c_float))[0]

    state = lilv.lilv_state_new_from_file(world, ctypes.byref(urid_map), None, str(folder / "compressor.ttl").encode())
    assert lilv.lilv_node_as_uri(lilv.lilv_state_get_plugin_uri(state)).decode() == CALF[4:]
    assert lilv.lilv_state_get_label(state) == b"mine: compressor"
    lilv.lilv_state_emit_port_values(state, port, None)
    assert read["threshold"] == pytest.approx(values["compressor.threshold"])
    assert read["ratio"] == pytest.approx(values["compressor.ratio"])
    assert read["stereo_link"] == 0 and "makeup" in read


def test_what_a_preset_cannot_hold_is_named(tmp_path):
    gain = ChainSpec([known("Gain")], 44100)
    for suffix, message in [
        (".vstpreset", "holds vst3: effects, and the chain has none"),
        (".lv2", "holds lv2: effects"),
        (".fxp", r"presets are written as \.json, \.py"),
    ]:
        with pytest.raises(UserError, match=message):
            preset_files(f"a{suffix}", gain)
    mixed = ChainSpec([known("Gain"), EffectSpec("pedalboard:Gain")], 44100)
    with pytest.raises(UserError, match="pedalboard cannot run python:tests"):
        preset_files("a.py", mixed)


def renamed(spec: ChainSpec, name: str) -> tuple[ChainSpec, dict]:
    """Return a chain whose only effect has a name that a config may not give, and some setting of it."""
    spec.recipes = [dataclasses.replace(spec.recipes[0], name=name)]
    return spec, {f"{name}.{parameter.name}": parameter.default for parameter in spec.recipes[0].parameters}


NAMES = [
    "a\nraise SystemExit",
    "a\r\x0braise SystemExit",
    "a\u2028raise SystemExit",
    "../../x",
    'a" ; "',
    "\x1b[31m",
    "a>b",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_adds_no_statement_to_a_preset_in_python(name):
    spec, values = renamed(ChainSpec([EffectSpec("pedalboard:Gain")], 44100), name)
    source = as_python(spec, values)
    kinds = [type(statement).__name__ for statement in ast.parse(source).body]
    assert kinds == ["Expr", "Import", "FunctionDef"] and "\x1b" not in source
    with pytest.raises(ValueError):
        spec.sample_rate = '1"""; raise SystemExit; """'
        as_python(spec, values)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_leads_to_no_other_folder_and_adds_no_statement_to_an_lv2_preset(tmp_path, name):
    spec, values = renamed(ChainSpec([EffectSpec(CALF)], 44100), name)
    folder = tmp_path / 'a "quoted\n" name.lv2'
    write_preset(str(folder), spec, values)
    assert list(tmp_path.iterdir()) == [folder]
    files = sorted(folder.iterdir())
    assert len(files) == 2 and all(file.suffix == ".ttl" for file in files)
    read = [subprocess.run(["sordi", str(file)], capture_output=True, text=True) for file in files]
    assert not any(done.stderr for done in read)
    presets = [done.stdout.count("<http://lv2plug.in/ns/ext/presets#Preset>") for done in read]
    assert presets == [1, 1]


@pytest.mark.parametrize("uri", ["http://x/a>b", "urn:a b", 'urn:a"b', "urn:a\nb", "urn:a\\b"])
def test_an_iri_of_turtle_has_no_end_inside(uri):
    assert not set(_iri(uri)[1:-1]) & set('<>" \n') and "\\u" in _iri(uri)
