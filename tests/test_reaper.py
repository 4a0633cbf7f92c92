import base64
import csv
import dataclasses
import struct

import numpy as np
import pytest
import reaper_parser
import rpp

from dfx.datasets import Treatment
from dfx.effects import ChainSpec, EffectSpec, lv2
from dfx.errors import UserError
from dfx.render.automation import Automation
from dfx.render.reaper import TOLERANCE, Take, _token, project_files, write_project
from dfx.render.streaming import chain_at_rate
from tests.known_effects import known
from tests.test_render import music, resting

CALF = "lv2:http://calf.sourceforge.net/plugins/Compressor"
PLUGINS = [
    EffectSpec("vst3:ZamTube", train={"tube_drive": None}, fixed={"insane_boost": True}),
    EffectSpec(CALF, train={"threshold": None}, fixed={"stereo_link": 0}),
]


def take(tmp_path, effects, interpolation="linear") -> Take:
    chain = ChainSpec(effects, 44100, 2)
    times = (np.arange(2000) + 0.5) * 1024 / 22050
    parameters = 0.5 + 0.4 * np.sin(times[:, None] * np.arange(1, 1 + len(chain.parameters)) * 0.1)
    automation = Automation(chain.space, times, parameters, np.full(2000, 6.0), interpolation)
    return Take(str(tmp_path / 'in "1".wav'), str(tmp_path / "out.wav"), 92.9, chain, automation)


def envelope(fx, index):
    """Times and positions of a parameter's envelope, by an independent reader."""
    found = [env for env in fx.findall("PARMENV") if str(env.attrib[0]).split(":")[0] == str(index)]
    assert len(found) == 1
    points = [item for item in found[0].children if isinstance(item, list) and item[0] == "PT"]
    return np.array([[float(number) for number in point[1:3]] for point in points]).T


@pytest.fixture
def written(tmp_path):
    given = take(tmp_path, PLUGINS)
    write_project(str(tmp_path / "a.rpp"), given)
    return given, tmp_path / "a.rpp"


def test_a_project_holds_audio_and_plugins_as_an_independent_parser_reads_it(written):
    tracks = reaper_parser.parse(written[1]).project.tracks
    named = [(track.name, track.muted) for track in tracks]
    assert named == [("input through the chain", False), ("output of dfx", True)]
    plugins = tracks[0].fx_chain.fxs
    assert [(fx.plugin.tag, fx.plugin.attrs[0], len(fx.envelopes)) for fx in plugins] == [
        ("VST", "VST3: ZamTube (Damien Zammit)", 1), ("LV2", "LV2: Calf Compressor", 2)
    ]  # fmt: skip
    assert tracks[1].fx_chain is None
    files = [(track.items[0].length, track.items[0].takes[0].source.file_path) for track in tracks]
    assert files == [(92.9, 'in "1".wav'), (92.9, "out.wav")]


def test_envelopes_follow_the_automation_to_the_tolerance_with_few_points(written):
    given, path = written
    chain = rpp.loads(path.read_text()).findall("TRACK")[0].find("FXCHAIN")
    symbols = list(lv2.controls(CALF[4:], 44100, 2))
    times, positions = envelope(chain, symbols.index("threshold"))
    values = given.automation["threshold"]
    control = lv2.controls(CALF[4:], 44100, 2)["threshold"]
    wanted = (values - control.minimum) / (control.maximum - control.minimum)
    assert len(times) < 200
    assert np.abs(np.interp(given.automation.times, times, positions) - wanted).max() < TOLERANCE + 1e-5
    # A fixed value of an LV2 plugin is an envelope of one point.
    assert envelope(chain, symbols.index("stereo_link"))[1].tolist() == [0]


def test_held_parameters_are_steps_of_an_envelope(tmp_path):
    given = take(tmp_path, PLUGINS, "hold")
    write_project(str(tmp_path / "a.rpp"), given)
    points = [line.split() for line in (tmp_path / "a.rpp").read_text().splitlines() if line.strip().startswith("PT ")]
    steps = [float(time) for _, time, _, shape in points if shape == "1"]
    np.testing.assert_allclose(steps[:2000], given.automation.times, atol=1e-6)


def test_the_state_of_a_vst3_plugin_is_whole(written):
    lines = written[1].read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if "<VST" in line)
    stop = next(i for i in range(start, len(lines)) if lines[i].strip() == ">")
    assert '"VST3: ZamTube (Damien Zammit)" "ZamTube.vst3"' in lines[start]
    head, *state, name = [base64.b64decode(line) for line in lines[start + 1 : stop]]
    assert struct.unpack_from("<II", head) == (0, 0xFEED5EEF)
    state = b"".join(state)
    assert struct.unpack_from("<I", head, len(head) - 12) == (len(state),)
    (size,) = struct.unpack_from("<I", state)
    (rest,) = struct.unpack_from("<I", state, 8 + size)
    assert len(state) == 16 + size + rest and b"insane" in state


def test_files_are_named_relative_to_the_project_and_the_gain_is_the_items(written):
    text = written[1].read_text()
    assert 'FILE "out.wav"' in text and "VOLPAN 1 0 1.99526" in text


def test_a_gain_after_the_chain_is_the_volume_of_the_track_with_the_plugins(tmp_path):
    given = take(tmp_path, PLUGINS)
    given.automation.output_gain_db = 6.0
    write_project(str(tmp_path / "a.rpp"), given)
    volumes = [track.volume for track in reaper_parser.parse(tmp_path / "a.rpp").project.tracks]
    assert volumes == pytest.approx([1.99526, 1.0], rel=1e-5)


def test_a_project_at_the_inputs_own_level_is_as_loud_as_the_output(tmp_path):
    audio, model = music(1.0, channels=2), resting(PLUGINS, treatment=Treatment(input_lufs=-25))
    rendering, chain = model.render(audio, 44100, own_level=True), chain_at_rate(model.task, 44100, 2)
    write_project(str(tmp_path / "a.rpp"), Take("in.wav", "out.wav", 1.0, chain, rendering.automation))
    track = rpp.loads((tmp_path / "a.rpp").read_text()).find("TRACK")
    item, volume = float(track.find("ITEM").find("VOLPAN")[3]), float(track.find("VOLPAN")[1])
    assert abs(20 * np.log10(item)) > 3
    played = volume * chain.build().render_whole(np.float32(item) * audio, rendering.automation.values[0])
    np.testing.assert_allclose(played, rendering.audio, atol=1e-5)


def test_a_chain_that_reaper_lacks_leaves_both_recordings_and_csv(tmp_path):
    given = take(tmp_path, [EffectSpec("pedalboard:Gain"), known("Gain")])
    path = str(tmp_path / "a.rpp")
    write_project(path, given)
    assert {str(file) for file in tmp_path.iterdir()} == set(project_files(path, given.chain))
    text = (tmp_path / "a.rpp").read_text()
    assert "it lacks gain (pedalboard:Gain), gain_2 (python:tests.known_effects.Gain)" in text
    assert "FXCHAIN" not in text
    assert [track.muted for track in reaper_parser.parse(tmp_path / "a.rpp").project.tracks] == [True, False]
    assert len(list(csv.reader((tmp_path / "a.csv").open()))) == 2001


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.als: a REAPER project is written as \.rpp"):
        project_files("a.als", ChainSpec([known("Gain")], 44100))


NAMES = ["a\n>\n<TRACK", "a \"b\" 'c' `d`", "a\r>", "a\u2028>", "> |<"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files_and_effects_add_no_lines_to_a_project(tmp_path, name):
    given = take(tmp_path, [EffectSpec("pedalboard:Gain")])
    write_project(str(tmp_path / "plain.rpp"), given)
    given.chain.recipes = [dataclasses.replace(given.chain.recipes[0], name=name, effect=name)]
    odd = dataclasses.replace(given, input=str(tmp_path / name), output=str(tmp_path / f"{name}.flac"))
    write_project(str(tmp_path / "odd.rpp"), odd)
    lines = [(tmp_path / file).read_text().splitlines() for file in ("plain.rpp", "odd.rpp")]
    plain, written = ([line.split()[0] for line in file if line.strip()[0] != "|"] for file in lines)
    assert plain == written
    assert len(reaper_parser.parse(tmp_path / "odd.rpp").project.tracks) == 2


@pytest.mark.parametrize("text, written", [
    ("urn:a#b", "urn:a#b"), ("3:gain", "3:gain"), ("urn:a b", '"urn:a b"'), ('a"b', "'a\"b'"), (">", '">"'),
])  # fmt: skip
def test_a_token_is_quoted_where_it_must_be(text, written):
    assert _token(text) == written
