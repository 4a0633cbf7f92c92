"""The installed package: its requirements, its console scripts, and what a command imports before it has work."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SLOW = {"torch", "pytorch_lightning", "lightning_fabric", "torchaudio", "torchvision", "torchmetrics"}
SLOW |= {"scipy.signal", "matplotlib", "jsonargparse", "wandb", "cma", "auraloss", "gradio"}
"""Modules that take a good part of a second to import, or import others that do."""


def requirements(lines: list[str]) -> list[str]:
    return sorted(re.sub(r"\s*#.*", "", line) for line in lines if line.strip() and not line.startswith("#"))


def slow_imports(code: str, *arguments: str) -> set[str]:
    """Return the slow modules that a fresh interpreter has imported when the code ends."""
    report = "import atexit, sys; atexit.register(lambda: sys.stderr.write('imported ' + ' '.join(sys.modules)))"
    process = subprocess.run(
        [sys.executable, "-c", f"{report}\n{code}", *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert process.returncode == 0, process.stderr
    return SLOW & set(process.stderr.rpartition("imported ")[2].split())


def test_requirements_are_the_dependencies_and_the_extras_of_the_package():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    extras = PROJECT["optional-dependencies"].values()
    assert requirements(lines) == requirements(
        [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    )


@pytest.mark.parametrize("script", PROJECT["scripts"].values(), ids=PROJECT["scripts"])
def test_a_script_prints_its_help_without_slow_imports(script):
    module, function = script.split(":")
    assert callable(getattr(import_module(module), function))
    code = f"from {module} import {function}; {function}()"
    assert slow_imports(code, "--help") == set()


@pytest.mark.parametrize("module", ["dfx.benchmark", "dfx.check", "dfx.listening"])
def test_other_commands_print_their_help_without_slow_imports(module):
    assert slow_imports(f"import runpy; runpy.run_module('{module}', run_name='__main__')", "--help") == set()


@pytest.mark.parametrize("module", ["dfx.report.write", "dfx.dashboard.summary"])
def test_pages_are_written_without_slow_imports(module):
    assert slow_imports(f"import {module}") == set()


def test_the_check_of_imports_finds_a_slow_one():
    assert slow_imports("import jsonargparse") == {"jsonargparse"}


def test_the_container_has_the_plugins_that_the_readme_names():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.search(r"apt-get install --no-install-recommends (calf-plugins .*)", readme)
    assert named and named[1] in (ROOT / "Dockerfile").read_text()


def test_the_citation_names_the_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["preferred-citation"]["title"].startswith("Differentiable signal processing with black-box")
