"""The local page: ``python -m dfx.demo``."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlparse

import pytest
import soundfile

import dfx
from dfx.demo.main_thread import MainThread
from dfx.demo.rendering import Limits, render_upload
from dfx.demo.server import serve
from dfx.errors import UserError
from tests.test_reference import following
from tests.test_render import music
from tests.test_report import css, play, wait

ROOT = Path(__file__).parent.parent
RATE = 22050
LIMITS = Limits(minutes=0.05, megabytes=1)


def write_recording(path, seconds=0.5):
    soundfile.write(path, music(seconds, RATE).T, RATE)
    return str(path)


@pytest.fixture(scope="module")
def model():
    return dfx.load("tube_amp")


def test_a_rendering_has_every_file_and_an_archive_whose_project_finds_its_audio(model, tmp_path):
    upload = write_recording(tmp_path / "so <ng>.wav")
    result = render_upload(upload, model, "amp", str(tmp_path), LIMITS)
    assert [Path(path).suffix for path in result.files] == [".wav", ".csv", ".json", ".py", ".rpp", ".zip"]
    assert {Path(path).stem for path in result.files} == {"so <ng>_amp"}
    assert soundfile.info(result.files[0]).frames == soundfile.info(upload).frames
    assert "so &lt;ng&gt;_amp.wav" in result.page
    with zipfile.ZipFile(result.files[-1]) as archive:
        sources = re.findall(r'FILE "(.*)"', archive.read("so <ng>_amp.rpp").decode())
        assert sources == ["so <ng>.wav", "so <ng>_amp.wav"] and set(sources) <= set(archive.namelist())


def test_a_reference_is_uploaded_beside_the_recording_under_the_same_name(tmp_path):
    (tmp_path / "song").mkdir()
    paths = [write_recording(tmp_path / name, 1.2) for name in ("take.wav", "song/take.wav")]
    result = render_upload(paths[0], following(), "style", str(tmp_path), LIMITS, paths[1])
    assert "The reference is the middle of take.wav" in result.page
    with zipfile.ZipFile(result.files[-1]) as archive:
        assert {"take.wav", "reference/take.wav"} <= set(archive.namelist())


@pytest.mark.parametrize("seconds, message", [(4, "take.wav lasts 0.07 minutes, more than 0.05"), (0, "take.wav ")])
def test_a_recording_that_is_too_long_or_empty_is_refused_by_its_name(model, tmp_path, seconds, message):
    upload = write_recording(tmp_path / "take.wav", seconds)
    with pytest.raises(UserError, match=f"^{message}"):
        render_upload(upload, model, "amp", str(tmp_path), LIMITS)


def test_functions_run_on_the_main_thread_and_an_interrupt_cancels_those_that_wait():
    main_thread = MainThread()

    def interrupt():
        raise KeyboardInterrupt

    def call_all():
        assert main_thread.call(threading.current_thread) is threading.main_thread()
        with pytest.raises(ZeroDivisionError):
            main_thread.call(lambda: 1 / 0)
        with pytest.raises(CancelledError):
            main_thread.call(interrupt)
        with pytest.raises(CancelledError):
            main_thread.call(interrupt)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(call_all)
        with pytest.raises(KeyboardInterrupt):
            main_thread.run()
        done.result()


def test_without_gradio_the_command_names_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(UserError, match=r"pip install 'gradio>=6.31,<7'"):
        serve([], LIMITS)


# --- in Chromium --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of the page, and its process, whose temporary folders lie in ``process.folder``."""
    folder = tmp_path_factory.mktemp("temporary")
    command = [sys.executable, "-m", "dfx.demo", "tube_amp", "--minutes", "0.05", "--megabytes", "1"]
    environment = {**os.environ, "TMPDIR": str(folder), "GRADIO_SERVER_NAME": "0.0.0.0"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell ignores it in commands that it runs in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        process.folder = folder
        try:
            yield process.stdout.readline().split()[0], process
        finally:
            process.kill()


def drop(page, path):
    """Replace the recording."""
    for button in page.find_elements("css selector", "button[aria-label=Clear]"):
        button.click()
    wait(page, lambda: page.find_elements("css selector", "input[type=file]"))
    css(page, "input[type=file]").send_keys(str(path))


def press_render(page, path):
    """Render a recording, and return the message about it."""
    drop(page, path)
    wait(page, lambda: path.stem in css(page, "body").text)
    css(page, "button.primary").click()
    alerts = "return [...document.querySelectorAll('.result [role=alert]')].map((alert) => alert.textContent).join()"
    wait(page, lambda: path.name in page.execute_script(alerts))
    return page.execute_script(alerts)


@pytest.mark.slow
def test_the_page_renders_a_dropped_file_refuses_others_and_ends_without_a_trace(browse, server, tmp_path):
    address, process = server
    page = browse(address)

    write_recording(tmp_path / "pluck.wav")
    drop(page, tmp_path / "pluck.wav")
    wait(page, lambda: "pluck" in css(page, "body").text)
    css(page, "button.primary").click()
    wait(page, lambda: page.find_elements("css selector", "iframe"))
    assert len(page.find_elements("css selector", ".result li a")) == 6
    css(page, ".result li a[href$='.wav']").click()
    wait(page, lambda: (page.downloads / "pluck_tube_amp.wav").exists())
    assert soundfile.info(page.downloads / "pluck_tube_amp.wav").frames == RATE // 2
    page.switch_to.frame(css(page, "iframe"))
    play(page)
    assert css(page, "h1").text == "pluck_tube_amp.wav"
    page.switch_to.default_content()

    write_recording(tmp_path / "endless.wav", 4)
    assert "lasts 0.07 minutes, more than 0.05" in press_render(page, tmp_path / "endless.wav")
    (tmp_path / "garbage.wav").write_text("not audio")
    assert "not an audio file" in press_render(page, tmp_path / "garbage.wav")
    write_recording(tmp_path / "large.wav", 30)
    drop(page, tmp_path / "large.wav")
    wait(page, lambda: 'exceed the maximum allowed size of 1.0 Mb: "large.wav"' in css(page, "body").text)

    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert {urlparse(url).hostname for url in urls if not url.startswith(("data:", "blob:", "about:"))} == {"127.0.0.1"}
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", urlparse(address).port), timeout=1)

    assert len(list(process.folder.glob("dfx-demo-*"))) == 1
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0 and not list(process.folder.glob("dfx-demo-*"))
