"""The listening page, in headless Chromium."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
import scipy.signal
import soundfile

from dfx.evaluation.evaluate import evaluate
from dfx.report.write import ANCHOR, ReportError, low_pass, write_report
from tests.colour_vision import least_difference
from tests.known_effects import known
from tests.small_training import task
from tests.test_evaluation import pairs

SAMPLE_RATE = 22050
SECONDS = 1.5
TONES_HZ = {"input": [400], "defaults": [800], "output": [1600], "target": [2400, 6000], ANCHOR: [2400]}
"""The frequencies of each track, which identify it."""
ALL_TONES_HZ = sorted({hz for tones in TONES_HZ.values() for hz in tones})
TRACKS = ["input", "defaults", "output", "target"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An evaluation of two files, whose audio is replaced by tones."""
    folder = tmp_path_factory.mktemp("evaluation")
    evaluate(task([known("Gain")]), pairs(names=("one", "two, <again>")), folder)
    time = np.arange(round(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    for track in TRACKS:
        tone = sum(0.2 * np.sin(2 * np.pi * hz * time) for hz in TONES_HZ[track])
        for path in (folder / "audio").glob(f"*_{track}.flac"):
            soundfile.write(path, tone, SAMPLE_RATE)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def browser(browse, folder):
    return browse(folder / "report.html")


@pytest.fixture
def page(browser, folder):
    """The page as it is when first opened."""
    browser.get((folder / "report.html").as_uri())
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    return browser


def css(page, selector: str):
    return page.find_element("css selector", selector)


def enter(page, mode: str) -> None:
    css(page, f".modes label:has([value={mode}])").click()


def state(page) -> dict[str, float]:
    return page.execute_script(
        "const p = dfx.player; return {position: p.position, playing: p.playing, now: p.context?.currentTime}"
    )


def wait(page, condition: Callable) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 20, poll_frequency=0.05).until(lambda _: condition())


def press(page, keys: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(page).send_keys(keys).perform()


def tap(page, element) -> None:
    """Touch the middle of an element."""
    from selenium.webdriver.common.actions.action_builder import ActionBuilder
    from selenium.webdriver.common.actions.pointer_input import PointerInput

    actions = ActionBuilder(page, mouse=PointerInput("touch", "finger"))
    actions.pointer_action.move_to(element).pointer_down().pointer_up()
    actions.perform()


def play(page) -> None:
    css(page, "#play").click()
    wait(page, lambda: state(page)["position"] > 0)


def audible_track(page) -> str:
    """Return the track that the player plays, found by its tones; no other track may sound."""
    levels_db = page.execute_async_script(
        """
        const [tones, done] = arguments;
        const { context, master } = dfx.player;
        const analyser = new AnalyserNode(context, { fftSize: 8192, smoothingTimeConstant: 0 });
        master.connect(analyser);
        setTimeout(() => {
          const levels = new Float32Array(analyser.frequencyBinCount);
          analyser.getFloatFrequencyData(levels);
          master.disconnect(analyser);
          done(tones.map((hz) => levels[Math.round((hz * analyser.fftSize) / context.sampleRate)]));
        }, 400);
        """,
        ALL_TONES_HZ,
    )
    present = [hz for hz, level in zip(ALL_TONES_HZ, levels_db) if level > -60]
    return next((track for track, tones in TONES_HZ.items() if tones == present), f"unknown tones: {present}")


@pytest.mark.slow
def test_it_plays_after_a_click_and_pauses(page):
    assert state(page) == {"position": 0, "playing": False, "now": None}
    play(page)
    assert css(page, "#play").get_attribute("aria-label") == "Pause"
    assert audible_track(page) == "output"
    css(page, "#play").click()
    paused = state(page)
    assert not paused["playing"] and state(page)["position"] == paused["position"]


@pytest.mark.slow
def test_a_switch_keeps_the_position_and_one_track_is_audible(page):
    play(page)
    before = state(page)
    for track in TRACKS:
        css(page, f'[data-track="{track}"] .name').click()
        assert audible_track(page) == track
    after = state(page)
    went = (after["position"] - before["position"] - (after["now"] - before["now"])) % SECONDS
    assert min(went, SECONDS - went) < 1e-6


@pytest.mark.slow
def test_a_press_on_a_waveform_seeks_and_the_cursor_follows(page):
    from selenium.webdriver import ActionChains

    for is_playing in (False, True):
        if is_playing:
            css(page, "#play").click()
            wait(page, lambda: state(page)["playing"])
        canvas = css(page, '[data-waveform="target"]')
        ActionChains(page).move_to_element(canvas).click().perform()
        # The offset, since the position moves during playback.
        assert page.execute_script("return dfx.player.offset") == pytest.approx(SECONDS / 2, abs=0.01)
        assert state(page)["playing"] == is_playing
        if not is_playing:
            wait(page, lambda: css(page, "#now").text == "0:00.7")
            left, canvas_left, width = page.execute_script(
                "const a = arguments[0].getBoundingClientRect();"
                "return [document.getElementById('cursor').getBoundingClientRect().left, a.left, a.width]",
                canvas,
            )
            assert left == pytest.approx(canvas_left + width / 2, abs=3)


@pytest.mark.slow
def test_the_keyboard_plays_switches_and_seeks(page):
    from selenium.webdriver import Keys

    press(page, "1")
    press(page, Keys.ARROW_RIGHT)
    position = state(page)["position"]
    assert position > 0
    press(page, " ")
    wait(page, lambda: state(page)["playing"])
    assert audible_track(page) == "input"
    press(page, " ")
    assert not state(page)["playing"]
    press(page, "4")
    assert css(page, '[data-track="target"] input').is_selected()


@pytest.mark.slow
def test_without_the_loop_it_ends_at_the_end(page):
    css(page, "#loop").click()
    page.execute_script(f"dfx.player.seek({SECONDS - 0.3})")
    css(page, "#play").click()
    wait(page, lambda: state(page)["playing"])
    wait(page, lambda: not state(page)["playing"])
    assert state(page)["position"] == SECONDS


@pytest.mark.slow
def test_the_automation_is_read_at_the_cursor(page, folder):
    from selenium.webdriver.support.ui import Select

    Select(css(page, "#file")).select_by_visible_text("two, <again>")
    with (folder / "automation" / "two, <again>.csv").open() as file:
        row = list(csv.DictReader(file))[2]
    page.execute_script("dfx.player.seek(arguments[0])", float(row["seconds"]) + 0.001)
    value = css(page, "[data-parameter='gain.gain'] b")
    wait(page, lambda: value.text == f"{float(row['gain.gain']):.3f}")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_a_parameter_that_moves_is_a_curve_and_others_are_knobs_all_labelled_beside_the_pictures(
    browse, folder, tmp_path, width
):
    names = ["filter.cutoff_hz", "filter.q", "gate.release_ms"]

    def change(about: dict) -> dict:
        of = {"unit": "", "low": 0, "high": 1, "default": 0.5, "scale": "linear"}
        hz = {**of, "unit": "Hz", "low": 100, "high": 10000, "default": 300, "scale": "log"}
        ms = {**hz, "unit": "ms", "default": 2500}
        return {**about, "parameters": [{"name": name, **unit} for name, unit in zip(names, (hz, of, ms))]}

    copy = with_json(folder, tmp_path / "copy", "evaluation", change)
    (copy / "settings.json").write_text("{}")
    for path in (copy / "automation").glob("*.csv"):
        path.write_text(f"seconds,{','.join(names)}\n0,200,0.5,2500\n1,8000,0.55,2500\n")
    page = browse(write_report(copy)[0], width, 844, is_phone=width < 500)
    assert [row.get_attribute("data-parameter") for row in page.find_elements("css selector", ".curve")] == names[:1]
    assert [knob.get_attribute("data-parameter") for knob in page.find_elements("css selector", ".knob")] == names[1:]
    page.execute_script("dfx.player.seek(1.2)")
    values = page.find_elements("css selector", "[data-parameter] b")
    wait(page, lambda: [value.text for value in values] == ["8.000 kHz", "0.550", "2.500 s"])
    assert css(page, ".curve .axis").text.split("\n") == ["10 kHz", "100 Hz"]
    assert {"1 kHz", "5 kHz"} <= set(css(page, "#frequencies").text.split("\n"))
    for row in page.find_elements("css selector", ".row:has(.axis)"):
        canvas, *labels = row.find_elements("css selector", "canvas, .axis span")
        right = canvas.rect["x"] + canvas.rect["width"]
        assert labels and all(label.rect["x"] >= right for label in labels)
        assert all(label.rect["x"] + label.rect["width"] <= width for label in labels)


@pytest.mark.slow
def test_the_metrics_of_the_file_and_their_means_are_shown(page, folder):
    rows = json.loads((folder / "files.json").read_text())
    means = json.loads((folder / "means.json").read_text())
    esr = next(row["esr"] for row in rows if row["file"] == "one" and row["method"] == "output")
    for table, value in {"of-file": esr, "means": means["output"]["esr"]["mean"]}.items():
        row = next(
            r for r in page.find_elements("css selector", f"#{table} tbody tr") if r.text.startswith("Waveform error")
        )
        assert row.find_elements("css selector", "td")[-1].text.startswith(f"{value:.3f}")


@pytest.mark.slow
def test_differences_are_bold_where_their_intervals_exclude_zero(browse, folder, tmp_path):
    def change(differences):
        for low, method in ((-2.0, "input"), (0.5, "defaults")):
            differences[method]["esr"].update(mean=1.0, low=low, high=4.0)
        return differences

    page = browse(write_report(with_json(folder, tmp_path / "copy", "differences", change))[0])
    row = next(r for r in page.find_elements("css selector", "#differences tbody tr") if "Waveform error" in r.text)
    cells = row.find_elements("css selector", "td")
    assert [cell.text.split(" ")[0] for cell in cells] == ["1.000", "1.000"]
    assert [cell.get_attribute("class") for cell in cells] == ["", "best"]
    assert not page.find_elements("css selector", "#means .best")
    earlier = with_json(folder, tmp_path / "earlier", "differences", lambda _: {})
    assert not browse(write_report(earlier)[0]).find_element("css selector", "#rivals").is_displayed()


def rate(page, row, rating: int) -> None:
    from selenium.webdriver import Keys

    row.find_element("css selector", "input[type=range]").send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * rating)


@pytest.mark.slow
def test_a_blind_test_hides_the_tracks_and_its_csv_holds_the_ratings(page):
    enter(page, "blind")
    shown = css(page, "main").text.lower()
    assert not any(name in shown for name in ("output", "defaults", "anchor", "automation", "spectrogram", "esr"))
    css(page, "#listener").send_keys('Anna, "the ear"')
    play(page)
    assert audible_track(page) == "target"
    rows = page.find_elements("css selector", ".stimulus")
    truth, given = {}, {}
    for place, row in enumerate(rows):
        row.find_element("css selector", ".name").click()
        truth[row.get_attribute("data-track")] = audible_track(page)
        if place < 4:
            rate(page, row, 2 * place)
            given[row.get_attribute("data-track")] = 2 * place
    assert sorted(truth) == list("ABCDE") and sorted(truth.values()) == sorted(TONES_HZ)
    assert css(page, "#progress").text.startswith("4 of 5 rated")

    css(page, "#download").click()
    path = page.downloads / "ratings.csv"
    wait(page, path.is_file)
    with path.open(newline="", encoding="utf-8") as file:
        ratings = list(csv.DictReader(file))
    path.unlink()
    assert {row["place"]: int(row["rating"]) for row in ratings} == given
    names = {**{track: track for track in TONES_HZ}, "target": "hidden_reference"}
    assert {row["place"]: row["method"] for row in ratings} == {place: names[truth[place]] for place in given}
    assert {(row["listener"], row["file"], row["task"]) for row in ratings} == {('Anna, "the ear"', "one", "TubeAmp")}


@pytest.mark.slow
def test_all_orders_of_a_blind_test_occur(page):
    orders = page.execute_script("return Array.from({ length: 200 }, () => shuffled(['a', 'b', 'c']).join(''))")
    assert sorted(set(orders)) == ["abc", "acb", "bac", "bca", "cab", "cba"]


@pytest.mark.slow
def test_ratings_outlive_the_page_and_are_revealed_when_asked(page):
    def begin() -> list:
        enter(page, "blind")
        return page.execute_script("return dfx.ratings.files['one'].order")

    order = begin()
    rate(page, page.find_elements("css selector", ".stimulus")[2], 3)
    page.refresh()
    assert begin() == order
    given = [output.text for output in page.find_elements("css selector", ".stimulus output")]
    assert given == ["–", "–", "3", "–", "–"]
    css(page, "#reveal").click()
    truths = [truth.text for truth in page.find_elements("css selector", ".truth")]
    assert truths == ["hidden reference" if track == "target" else track.replace("_", " ") for track in order]
    assert not page.find_elements("css selector", ".stimulus input[type=range]:enabled")


@pytest.mark.slow
def test_it_requests_nothing_external_and_logs_no_error(browse, folder):
    page = browse(folder / "report.html")
    play(page)
    enter(page, "blind")
    css(page, "#next").click()
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert any(url.endswith("report.html") for url in urls)
    assert {urlparse(url).scheme for url in urls} <= {"file", "data", "blob"}
    assert page.get_log("browser") == []
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", (folder / "report.html").read_text())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_colours_of_the_tracks_differ_for_the_colour_blind(folder, scheme):
    style = re.search("<style>(.*?)</style>", (folder / "report.html").read_text(), flags=re.DOTALL)[1]
    light, dark = style.split("@media (prefers-color-scheme: dark)")[:2]
    names = ("input", "target", "output", *(f"rival-{index}" for index in range(5)))
    colours = [re.search(rf"--{name}: (#\w+)", light if scheme == "light" else dark)[1] for name in names]
    assert least_difference(colours) > 14


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_follows_its_colours(browse, folder, dark):
    page = browse(folder / "report.html", 390, 844, is_phone=True, dark=dark)
    for mode in ("compare", "blind"):
        enter(page, mode)
        assert page.execute_script("return document.documentElement.scrollWidth") <= 390
        buttons = page.find_elements("css selector", ".deck button, .files button, .modes label")
        assert all(min(button.size.values()) >= 36 for button in buttons)
    play(page)
    assert audible_track(page) == "target"
    tap(page, css(page, "[data-waveform=target]"))
    assert page.execute_script("return dfx.player.offset") == pytest.approx(SECONDS / 2, abs=0.02)
    colour = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", colour))) < 3 * 64) == dark


@pytest.mark.slow
def test_all_controls_have_a_name(page):
    for mode in ("compare", "blind"):
        enter(page, mode)
        script = "return [...document.querySelectorAll('button, input, select')].filter((e) => e.checkVisibility())"
        controls = page.execute_script(script)
        assert len(controls) > 10 and all(control.accessible_name for control in controls)


@pytest.mark.slow
def test_files_beyond_the_size_of_one_page_go_to_linked_pages(browse, folder, tmp_path):
    copy = tmp_path / "evaluation"
    shutil.copytree(folder, copy)
    assert [path.name for path in write_report(copy, megabytes=1e-3)] == ["report.html", "report_2.html"]
    page = browse(copy / "report.html")
    css(page, "#pages a").click()
    wait(page, lambda: css(page, "#place").text == "2 of 2")
    assert write_report(copy) == [copy / "report.html"] and not (copy / "report_2.html").exists()


@pytest.mark.slow
def test_long_files_are_cut_and_the_page_says_so(folder, browse, tmp_path):
    copy = tmp_path / "evaluation"
    shutil.copytree(folder, copy)
    whole = (copy / "report.html").stat().st_size
    write_report(copy, seconds=0.2)
    assert (copy / "report.html").stat().st_size < whole
    page = browse(copy / "report.html")
    play(page)
    assert page.execute_script("return dfx.player.buffers.map((b) => b.duration)") == pytest.approx([0.2] * 4, abs=1e-3)
    assert "The first 0:00.2" in css(page, "#cut").text


def test_a_file_of_one_sample_has_a_page(tmp_path):
    import torch

    one = [{"input": torch.ones(1, 1), "target": torch.ones(1, 1), "name": "one"}]
    evaluate(task([known("Gain")]), one, tmp_path)
    assert "one" in (tmp_path / "report.html").read_text()


def with_json(folder: Path, copy: Path, file: str, change: Callable) -> Path:
    """Return a copy of an evaluation in which the content of a JSON file is changed."""
    shutil.copytree(folder, copy)
    path = copy / f"{file}.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    return copy


@pytest.mark.parametrize(
    "file, change",
    [
        ("evaluation", lambda about: []),
        ("evaluation", lambda about: {**about, "methods": 3}),
        ("evaluation", lambda about: {**about, "files": [{"name": "one"}]}),
        ("evaluation", lambda about: {**about, "files": [{**about["files"][0], "stem": "../audio/one"}]}),
        ("evaluation", lambda about: {**about, "methods": ["input", "/etc/x"]}),
        ("evaluation", lambda about: {**about, "interpolation": "other"}),
        ("evaluation", lambda about: {**about, "sample_rate": "fast"}),
        ("evaluation", lambda about: {key: value for key, value in about.items() if key != "parameters"}),
        ("files", lambda rows: [{}]),
        ("files", lambda rows: {"a": 1}),
        ("files", lambda rows: [{**row, "loss": float("nan")} for row in rows]),
        ("settings", lambda settings: 3),
        ("settings", lambda settings: {"fixed": 3}),
    ],
)
def test_a_damaged_evaluation_is_refused_in_one_line(folder, tmp_path, file, change):
    copy = with_json(folder, tmp_path / "copy", file, change)
    with pytest.raises(ReportError) as refused:
        write_report(copy)
    assert str(copy) in str(refused.value) and len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "seconds\nx\n", "seconds\n" + 200_000 * "1" + "\n", "\0"])
def test_damaged_automation_is_refused(folder, tmp_path, content):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "automation" / "one.csv").write_text(content)
    with pytest.raises(ReportError, match="holds no complete evaluation"):
        write_report(copy)


def test_names_of_an_evaluation_become_no_markup_of_its_page(folder, tmp_path):
    name = "</script><script>alert(1)</script>"

    def rename(about: dict) -> dict:
        files = [{**file, "name": name} for file in about["files"]]
        return {**about, "task": name, "files": files, "metrics": {name: name}, "less_is_better": [name]}

    copy = with_json(folder, tmp_path / "copy", "evaluation", rename)
    (copy / "means.json").write_text(json.dumps({name: {name: {"mean": 1.0, "low": 0.0, "high": 2.0, "files": 2}}}))
    text = write_report(copy)[0].read_text()
    untouched = (folder / "report.html").read_text()
    assert "alert(1)" in text and text.count("<script") == untouched.count("<script") and "<script>alert" not in text


def test_only_the_script_of_the_page_may_run(folder):
    text = (folder / "report.html").read_text()
    script = text[text.rindex("<script>") + 8 : text.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text and "script-src 'unsafe" not in text


@pytest.mark.parametrize("missing", ["evaluation.json", "audio/one_target.flac", "automation/one.csv"])
def test_an_incomplete_folder_is_refused(folder, tmp_path, missing):
    copy = tmp_path / "evaluation"
    shutil.copytree(folder, copy)
    (copy / missing).unlink()
    with pytest.raises(ReportError, match=Path(missing).name):
        write_report(copy)


@pytest.mark.parametrize("sample_rate", [16000, 22050, 48000])
def test_the_anchor_is_that_of_the_recommendation(sample_rate):
    impulse = np.zeros((4001, 2), dtype=np.float32)
    impulse[2000] = 1
    response = low_pass(impulse, sample_rate)
    assert np.abs(response).argmax(axis=0).tolist() == [2000, 2000]
    hz, gain = scipy.signal.freqz(response[:, 0], worN=2**15, fs=sample_rate)
    level_db = 20 * np.log10(np.abs(gain) + 1e-9)
    assert np.abs(level_db[hz <= 3500]).max() < 0.1
    assert level_db[hz >= 4000].max() < -25 and level_db[hz >= 4500].max() < -50


def test_the_command_writes_the_page_again_or_prints_a_one_line_error(folder, tmp_path, monkeypatch, capsys):
    def run(path: Path) -> None:
        monkeypatch.setattr(sys, "argv", ["dfx.report", str(path)])
        runpy.run_module("dfx.report", run_name="__main__")

    page = folder / "report.html"
    before = page.read_text()
    page.unlink()
    run(folder)
    assert capsys.readouterr().out.strip() == str(page) and page.read_text() == before
    with pytest.raises(SystemExit) as exit:
        run(tmp_path)
    assert str(exit.value).startswith("error: ") and "evaluation.json is missing" in str(exit.value)
