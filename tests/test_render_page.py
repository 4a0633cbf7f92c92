"""The page of one rendering: ``python -m dfx.render ... --page``."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
import soundfile
import torch

from dfx.audio.loudness import lufs
from dfx.effects import Parameter, ParameterSpace
from dfx.errors import UserError
from dfx.render.__main__ import main
from dfx.render.automation import Automation
from dfx.report.rendering import write_rendering
from tests.test_render import checkpoint, music  # noqa: F401 (a fixture)
from tests.test_report import css, play, wait

RATE = 44100


def write_page(folder, output_gain=0.1, seconds=2.0, name="out.wav", input_gain=1.0, channels=2):
    audio = music(3.0, RATE, channels)
    for file, gain in (("in.wav", input_gain), (name, output_gain)):
        soundfile.write(folder / file, gain * audio.T, RATE, "FLOAT")
    space = ParameterSpace([Parameter("gain.gain", "dB", -12, 12, 0)])
    automation = Automation(space, np.arange(30) / 10, np.linspace(0, 1, 30)[:, None])
    write_rendering(folder / "page.html", str(folder / "in.wav"), str(folder / name), automation, seconds=seconds)
    return (folder / "page.html").read_text()


def tracks_of(text):
    found = re.findall(r'id="audio-0-(\w+)">([^<]+)<', text)
    return {track: soundfile.read(io.BytesIO(base64.b64decode(flac)))[0] for track, flac in found}


def data_of(text):
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])


@pytest.mark.parametrize(
    "input_gain, output_gain, attenuated",
    [(1, 0.1, "input by 20.0"), (0.1, 1, "output by 20.0"), (20, 10, r"input by [\d.]+ dB and the output by [\d.]+")],
    ids=["quieter", "louder", "clips"],
)
def test_input_and_output_have_one_loudness_and_do_not_clip(tmp_path, input_gain, output_gain, attenuated):
    text = write_page(tmp_path, output_gain, input_gain=input_gain)
    tracks = tracks_of(text)
    assert list(tracks) == ["input", "output"] and len(tracks["input"]) == len(tracks["output"]) == 2 * RATE
    levels = [lufs(torch.from_numpy(audio.T), RATE) for audio in tracks.values()]
    assert levels[0] == pytest.approx(levels[1], abs=0.05)
    assert all(np.abs(audio).max() < 1 - 2**-15 for audio in tracks.values())
    assert re.search(rf"play at one loudness: the page attenuates the {attenuated} dB\.", text)


def test_a_silent_output_is_not_matched_and_the_page_says_so(tmp_path):
    text = write_page(tmp_path, output_gain=0.0)
    assert np.abs(tracks_of(text)["input"]).max() > 0.1 and "loudness is not matched" in text


def test_the_page_holds_the_beginning_and_the_automation_of_it(tmp_path):
    file = data_of(write_page(tmp_path))["files"][0]
    assert (file["seconds"], file["whole_seconds"]) == (2, 3)
    assert len(file["automation"]["seconds"]) == 20 and file["automation"]["gain.gain"][0] == -12


def test_more_than_two_channels_are_cut_to_two_and_the_page_says_so(tmp_path):
    text = write_page(tmp_path, channels=12)
    assert tracks_of(text)["output"].shape == (2 * RATE, 2) and "Of 12 channels" in text


def test_the_name_of_a_file_becomes_no_markup(tmp_path):
    text = write_page(tmp_path, name="<script>alert(1)<.wav")
    assert "&lt;script&gt;alert(1)" in text and "<script>alert" not in text


def test_the_command_writes_the_page_and_refuses_other_suffixes(checkpoint, tmp_path):
    soundfile.write(tmp_path / "a.wav", music(0.5).T, RATE)
    arguments = [checkpoint, str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), "--quiet"]
    with pytest.raises(UserError, match="a page is written as .html"):
        main([*arguments, "--page", ".pdf"])
    assert not (tmp_path / "b.wav").exists()
    main([*arguments, "--page", ".html"])
    assert set(tracks_of((tmp_path / "b.html").read_text())) == {"input", "output"}
    with pytest.raises(UserError, match="a page needs files"):
        main([checkpoint, str(tmp_path / "a.wav"), "-", "--page", str(tmp_path / "c.html")])


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_it_plays_in_chromium_without_the_parts_that_need_a_target(browse, tmp_path, width):
    write_page(tmp_path)
    page = browse(tmp_path / "page.html", width, 900, is_phone=width < 400)
    play(page)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    assert [css(page, selector).is_displayed() for selector in ("#modes", "#files", "#numbers")] == [False] * 3
    assert css(page, "#cut").text == "The first 0:02.0 of 0:03.0; the rendered file is complete."
    value = css(page, ".curve b")
    wait(page, lambda: value.text.endswith("dB"))
    assert page.get_log("browser") == []
