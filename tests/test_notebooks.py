"""The notebooks: their committed outputs, and that each runs from top to bottom."""

import base64
import csv
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from dfx.cli import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}


def execute(name: str) -> str:
    """Run a notebook as Jupyter does, in its folder, and return the printed text."""
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    resources = {"metadata": {"path": str(ROOT / "notebooks")}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output["text"] for output in outputs if output["output_type"] == "stream")


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """A folder of runs, read by the notebooks."""
    monkeypatch.setenv("DFX_RUNS", str(tmp_path))
    return tmp_path


def test_they_are_numbered_from_one():
    assert [int(name.split("_")[0]) for name in NOTEBOOKS] == [1, 2, 3]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_committed_as_it_ran_from_top_to_bottom(name):
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_committed_file_is_small_and_has_no_path_of_a_machine(name):
    text = NOTEBOOKS[name].read_text(encoding="utf-8")
    assert len(text) < 400_000
    assert not re.search(r"/(?:home|Users|work|tmp)/|C:\\\\", text)
    outputs = [output for cell in nbformat.reads(text, 4).cells for output in cell.get("outputs", [])]
    figures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert figures and all(len(base64.b64decode(figure)) < 100_000 for figure in figures)


def test_from_a_scalar_to_a_plugin():
    printed = execute("1_from_a_scalar_to_a_plugin")
    (found,) = re.findall(r"found by gradient descent from 0 dB: (\S+) dB", printed)
    assert float(found) == pytest.approx(-7.0, abs=0.1)
    cosines = [float(cosine) for cosine in re.findall(r"cosine between the two over the range (\S+)", printed)]
    assert len(cosines) == 2 and min(cosines) > 0.999

    def cheapest(estimator: str) -> float:
        return float(re.search(rf"^{estimator} +\d+: (\d\.\d+)", printed, flags=re.MULTILINE)[1])

    assert cheapest("hadamard, one-sided") > cheapest("rademacher, two-sided") > cheapest("shared, two-sided")
    assert cheapest("finite differences, two-sided") > 0.99


def test_train_render_listen():
    printed = execute("2_train_render_listen")
    error = {name: float(value) for name, value in re.findall(r"^(\w+) +mrstft (\S+)", printed, flags=re.MULTILINE)}
    assert error["target"] == 0 < error["output"] < error["input"]


def test_results_print_the_commands_for_missing_runs(runs):
    printed = execute("3_results")
    for task in ("tube_amp", "nonspeech", "mastering"):
        assert f"python train.py fit --config configs/{task}.yaml" in printed
    assert "python -m dfx.paper --scale small" in printed
    assert f"There is no sweep in {runs}/sweeps yet." in printed


def test_results_are_read_from_the_folders_of_runs(runs, monkeypatch):
    monkeypatch.chdir(ROOT)
    main(["fit", "--config", "configs/smoke.yaml", "--run.folder", str(runs), "--trainer.max_epochs", "1"])
    sweep = runs / "sweeps" / "epsilon"
    sweep.mkdir(parents=True)
    with (sweep / "summary.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["arm", "runs", "loss", "loss interval"])
        writer.writeheader()
        writer.writerow({"arm": "large", "runs": 3, "loss": 1.25, "loss interval": 0.125})
        writer.writerow({"arm": "small", "runs": 1, "loss": 1.5})
    printed = execute("3_results")
    assert re.search(r"^smoke$\nmethod +loss +mrstft .*\ninput .*\ndefaults .*\noutput ", printed, flags=re.MULTILINE)
    assert re.search(r"^large +3 +1.25 ± 0.125$\n^small +1 +1.5$", printed, flags=re.MULTILINE)
