"""Fixtures that several test files share: small data sets, small chains and a finished run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from filelock import FileLock

from dfx.effects import ChainSpec
from tests.known_effects import SAMPLE_RATE, known

ROOT = Path(__file__).parent.parent


def pytest_configure() -> None:
    """Limit torch to one thread in each of several workers, and in the processes that they start."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def logged_run(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Return the folder of a finished run of the smoke config, logged offline in a group, with its ``output.txt`` and
    ``errors.txt``. All workers read the same one."""
    base = tmp_path_factory.getbasetemp()
    runs = (base if worker_id == "master" else base.parent) / "logged"
    with FileLock(f"{runs}.lock"):
        if not runs.exists():
            write_logged_run(runs)
    return runs / "smoke"


def write_logged_run(runs: Path) -> None:
    command = [sys.executable, "train.py", "fit", "--config", "configs/smoke.yaml", "--run.folder", str(runs),
               "--wandb.mode", "offline", "--wandb.group", "an_ablation", "--wandb.tags", "[one_arm]"]  # fmt: skip
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)
    assert ended.returncode == 0, ended.stderr
    (runs / "smoke" / "output.txt").write_text(ended.stdout)
    (runs / "smoke" / "errors.txt").write_text(ended.stderr)


@pytest.fixture
def noise() -> np.ndarray:
    """Return one second of noise, ``(1, 22050)``."""
    return (0.1 * np.random.default_rng(0).standard_normal((1, SAMPLE_RATE))).astype(np.float32)


@pytest.fixture
def gain_chain() -> ChainSpec:
    return ChainSpec([known("Gain")], SAMPLE_RATE)


@pytest.fixture
def make_pairs(tmp_path: Path) -> Callable[..., Path]:
    """Write folders of decaying notes and the same notes through a soft clipper."""

    def make(count: int = 10, seconds: float = 0.5, folder: str = "pairs", sample_rate: int = SAMPLE_RATE) -> Path:
        return write_pairs(tmp_path / folder, count, seconds, sample_rate)

    return make


def write_pairs(root: Path, count: int, seconds: float, sample_rate: int = SAMPLE_RATE) -> Path:
    """Write the pairs of :func:`make_pairs` and return their folder."""
    for side in ("input", "target"):
        (root / side).mkdir(parents=True)
    for i in range(count):
        n = np.arange(int(seconds * sample_rate))
        note = 0.5 * np.sin(2 * np.pi * 110 * 2 ** (i / 12) * n / sample_rate) * np.exp(-3 * n / sample_rate)
        soundfile.write(root / "input" / f"note_{i:02}.wav", note, sample_rate)
        soundfile.write(root / "target" / f"note_{i:02}.wav", np.tanh(4 * note) * 0.5, sample_rate)
    return root


@pytest.fixture(scope="module")
def browse(tmp_path_factory) -> Iterator[Callable]:
    """Return a function that opens a page in a new Chromium, which requires a gesture for sound and logs requests."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not (chromium and shutil.which("chromedriver")):
        pytest.skip("the page is tested in Chromium: apt-get install chromium chromium-driver")
    from selenium import webdriver

    opened = []

    def open_page(path: Path | str, width: int = 1200, height: int = 900, is_phone: bool = False, dark: bool = False):
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for argument in (
            "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
            f"--window-size={width},{height}", "--autoplay-policy=document-user-activation-required",
        ):  # fmt: skip
            options.add_argument(argument)
        downloads = tmp_path_factory.mktemp("downloads")
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        if is_phone:
            metrics = {"width": width, "height": height, "pixelRatio": 2, "touch": True}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        opened.append(driver)
        driver.set_script_timeout(20)
        if dark:
            scheme = [{"name": "prefers-color-scheme", "value": "dark"}]
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        driver.get(path if isinstance(path, str) else path.as_uri())
        driver.downloads = downloads
        return driver

    yield open_page
    for driver in opened:
        driver.quit()
