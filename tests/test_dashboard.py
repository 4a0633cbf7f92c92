"""The dashboards: the workspace shows the metrics that runs log, and the summary contains all of them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from dfx.dashboard.__main__ import main
from dfx.dashboard.charts import COLOURS, chart_automation, still_values
from dfx.dashboard.summary import breakable, find_runs, write_summary
from dfx.dashboard.workspace import CURVES, make_workspace
from dfx.dashboard.workspace import TESTED as TESTED_METRICS
from dfx.errors import UserError
from dfx.figures import COLOURS as FIGURE_COLOURS
from dfx.loggers.history import read_history
from tests.colour_vision import least_difference
from tests.wandb_records import merged, records

ROOT = Path(__file__).parent.parent
PREFIXES = ("train", "validation", "gradient", "parameters", "speed", "test", "media", "tables")


@pytest.fixture(scope="module")
def ablation(logged_run, tmp_path_factory) -> Path:
    """Two runs that differ in one option; one of them is not evaluated."""
    folder = tmp_path_factory.mktemp("ablation")
    for name, sides in (("one_side", 1), ("two_sides", 2)):
        shutil.copytree(logged_run, folder / name, ignore=shutil.ignore_patterns("wandb"))
        path = folder / name / "resolved_config.yaml"
        config = yaml.safe_load(path.read_text())
        config["model"]["init_args"]["gradient"]["sides"] = sides
        config["run"]["name"] = name
        path.write_text(yaml.safe_dump(config))
    shutil.rmtree(folder / "two_sides" / "evaluation")
    return folder


class Page(HTMLParser):
    """The sources that a page loads, its charts and text, and the rows of its tables."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.sources, self.players, self.rows, self.words, self.charts = [], 0, [], [], []
        self._in_cell = False
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.words)

    def handle_starttag(self, tag, attributes) -> None:
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        self.charts += [json.loads(value) for name, value in attributes if name == "data-chart"]
        self.players += tag == "audio"
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, text) -> None:
        self.words.append(text)
        if self._in_cell:
            self.rows[-1][-1] += text


def spec(**options) -> dict:
    return make_workspace("entity", "project", **options)._to_model().model_dump(by_alias=True, exclude_none=True)


def test_every_metric_that_the_workspace_names_is_logged_by_a_run(logged_run):
    named = set(re.findall(rf'"((?:{"|".join(PREFIXES)})/[^"]+|lr-[^"]+)"', json.dumps(spec())))
    logged = merged(records(logged_run))
    assert len(named) == 42 and {f"test/fixed/{metric}" for metric in TESTED_METRICS} < named
    for name in named - {f"test/fixed/{metric}" for metric in TESTED_METRICS}:  # which evaluate.py computes
        assert name in logged or any(key.startswith(f"{name}.") for key in logged), name


def test_the_workspace_has_all_sections_of_curves_with_their_panels():
    bank = spec()["spec"]["section"]["panelBankConfig"]
    sections = {section["name"]: section["panels"] for section in bank["sections"]}
    for name, panels in CURVES.items():
        assert [panel["config"]["metrics"] for panel in sections[name]] == [list(panel.metrics) for panel in panels]
    kinds = {panel["viewType"] for panels in sections.values() for panel in panels}
    assert kinds == {"Run History Line Plot", "Bar Chart", "Media Browser", "Run Comparer", "Weave"}


def test_the_workspace_shows_an_ablation_as_its_group_with_a_line_for_each_arm():
    (runs,) = spec(group="an_ablation", by="model.init_args.gradient.directions")["spec"]["section"]["runSets"]
    (only,) = runs["filters"]["filters"]
    assert (only["key"]["name"], only["op"], only["value"]) == ("group", "=", "an_ablation")
    assert runs["grouping"] == [{"section": "config", "name": "model.value.init_args.gradient.directions"}]


def test_without_its_library_the_workspace_names_the_package_to_install():
    code = (
        "import sys; sys.modules['wandb_workspaces'] = None\n"
        "from dfx.dashboard.workspace import make_workspace; make_workspace('entity', 'project')"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1 and "UserError: the workspace needs wandb-workspaces: pip install" in ended.stderr


def test_a_summary_is_self_contained(logged_run, tmp_path):
    page = Page(write_summary([logged_run], tmp_path / "summary.html"))
    assert all(source.startswith("data:") for source in page.sources)
    media = list((logged_run / "media").glob("*/*.flac"))
    assert page.players == len(media) == 18
    pictures = len(list((logged_run / "media").glob("*/spectrograms.png")))
    assert sum(source.startswith("data:image/") for source in page.sources) == pictures > 0


def test_the_charts_of_a_summary_hold_the_values_of_the_history(logged_run, tmp_path):
    page = Page(write_summary([logged_run], tmp_path / "summary.html"))
    charts = {chart["title"]: chart for chart in page.charts}
    assert {panel.title for panels in CURVES.values() for panel in panels} <= charts.keys()
    assert all(chart["x"] and chart["y"] for chart in page.charts)
    output, _ = charts["Validation loss, of output and unprocessed input"]["lines"]
    rows = [row for row in read_history(logged_run) if "validation/loss" in row]
    assert list(zip(output["x"], output["y"])) == [(row["total_step"], row["validation/loss"]) for row in rows]


def test_a_parameter_that_moves_has_a_chart_and_others_are_in_a_table():
    of = {"low": 100.0, "high": 10000.0, "unit": "Hz"}
    rows = [{"name": "moving_hz", **of}, {"name": "still_hz", **of}]
    lines = {"one": {"seconds": [0.0, 0.1], "moving_hz": [200.0, 900.0], "still_hz": [5000.0, 5000.0]}}
    (chart,) = chart_automation(lines, rows)
    assert (chart["title"], chart["x"], chart["y"], chart["log"]) == ("moving_hz", "seconds", "Hz", True)
    assert chart["lines"][0]["y"] == [200.0, 900.0]
    assert still_values(lines, rows, [chart]) == [["still_hz", "5 kHz"]]


def test_the_lines_of_charts_and_figures_differ_for_the_colour_blind(logged_run, tmp_path):
    style = write_summary([logged_run], tmp_path / "summary.html").read_text()
    lines = re.findall(r"--line-\d: (#\w{6})", style)[:COLOURS]
    assert len(lines) == COLOURS and least_difference(lines) > 14 and least_difference(FIGURE_COLOURS) > 14
    assert least_difference(["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728"]) < 14  # the defaults of matplotlib


@pytest.mark.slow
@pytest.mark.parametrize("width, dark", [(1280, False), (390, True)])
def test_a_summary_fits_the_screen_and_its_charts_are_read_by_touch_and_keys(logged_run, tmp_path, browse, width, dark):
    from selenium.webdriver import Keys

    page = browse(write_summary([logged_run], tmp_path / "summary.html"), width, 844, is_phone=width < 500, dark=dark)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    figures = page.find_elements("css selector", "figure")
    assert len(figures) >= 9 and all(figure.find_elements("css selector", ".line") for figure in figures)
    figures[0].send_keys(Keys.ARROW_RIGHT)
    first = next(row for row in read_history(logged_run) if "train/loss" in row)
    reading = figures[0].find_element("css selector", ".reading").text.split("\n")
    assert reading == [f"step {first['total_step']}", f"loss {float(format(first['train/loss'], '.4g')):g}"]
    assert page.get_log("browser") == []


def test_a_summary_shows_losses_parameters_and_versions_as_the_run_has_them(logged_run, tmp_path):
    page = Page(write_summary([logged_run], tmp_path / "summary.html"))
    tested = json.loads((logged_run / "evaluation" / "metrics.json").read_text())
    best = min(row["validation/loss"] for row in read_history(logged_run) if "validation/loss" in row)
    rows = {row[0]: row for row in reversed(page.rows) if row}
    assert rows["smoke"][1] == "10" and rows["smoke"][3:5] == [f"{best:.4g}", f"{tested['output']['loss']:.4g}"]
    assert rows["input"][4] == f"{tested['input']['loss']:.4g}"
    assert rows["distortion.drive_db"][2] == "0 to 30 dB" and rows["gain.gain_db"][2] == "-24 to 24 dB"
    assert rows["torch"][1] == json.loads((logged_run / "versions.json").read_text())["torch"]


def test_a_summary_of_an_ablation_shows_differing_options_only(ablation):
    page = Page(write_summary([ablation]))
    at = page.rows.index(["run", "model.init_args.gradient.sides"])
    assert page.rows[at + 1 : at + 3] == [["one_side", "1"], ["two_sides", "2"]]
    assert page.rows[2][:4] == ["two_sides", "10", page.rows[1][2], page.rows[1][3]] and page.rows[2][4] == "-"
    # The last media of each run.
    assert page.players == 2 * 9


def test_a_summary_of_a_sweep_has_its_tables_with_intervals(ablation, tmp_path):
    table = "parameter,value,runs,test loss,test loss interval\nepsilon,0.01,4,1.25,0.5\nepsilon,<b>,1,2,\n"
    shutil.copytree(ablation, tmp_path / "sweep")
    (tmp_path / "sweep" / "marginal_means.csv").write_text(table)
    page = Page(write_summary([tmp_path / "sweep"]))
    assert ["epsilon", "0.01", "4", "1.250 ± 0.500"] in page.rows and ["epsilon", "<b>", "1", "2.000"] in page.rows
    assert "Sweep sweep" in page.words and "Marginal means" in page.words
    (tmp_path / "sweep" / "marginal_means.csv").write_text("parameter,test loss\nepsilon,many\n")
    with pytest.raises(UserError, match="cannot be read"):
        write_summary([tmp_path / "sweep"])


def test_runs_are_found_by_their_folders_or_the_parent_folder(ablation, logged_run):
    assert [run.name for run in find_runs([ablation])] == ["one_side", "two_sides"]
    assert [run.name for run in find_runs([ablation / "two_sides", logged_run])] == ["two_sides", "smoke"]


def test_a_run_that_has_only_begun_has_a_summary(tmp_path):
    (tmp_path / "resolved_config.yaml").write_text("run:\n  name: begun\n")
    page = Page(write_summary([tmp_path]))
    assert "Nothing has been logged yet." in page.text and "There are no media." in page.text


def test_the_command_writes_the_summary_and_prints_its_path(logged_run, tmp_path, capsys):
    output = tmp_path / "page.html"
    main(["summary", str(logged_run), "--output", str(output)])
    assert capsys.readouterr().out.strip() == str(output) and output.stat().st_size > 100_000


@pytest.mark.parametrize("name, message", [("nowhere", "no such folder"), ("empty", "is not a run and contains none")])
def test_folders_without_runs_are_refused(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        write_summary([tmp_path / name])


# --- damaged runs, and runs of strangers ---------------------------------------------------------------

CONFIG, HISTORY, PARAMETERS = "resolved_config.yaml", "history.jsonl", "parameters.csv"
TESTED, ABOUT = "evaluation/metrics.json", "media/step_000009/about.json"


@pytest.fixture
def copied(logged_run, tmp_path) -> Path:
    return shutil.copytree(logged_run, tmp_path / "run", ignore=shutil.ignore_patterns("wandb", "checkpoints"))


def put(path: Path, content: str | bytes | None) -> None:
    """Replace a file, or with None by a folder of its name."""
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(
    "file, content",
    [
        (CONFIG, b"\x00\xff\xfe"),
        (CONFIG, "run: {name: "),
        (CONFIG, "only text"),
        (CONFIG, "&a [*a]"),
        (CONFIG, "a: &a [*a]"),
        (CONFIG, None),
        (HISTORY, b"\xff\xfe\x00"),
        (PARAMETERS, "name,value\ngain.gain_db,1\n"),
        (PARAMETERS, "name,unit\n" + 200_000 * "a" + ",dB\n"),
        (PARAMETERS, b"\xff\xfe\x00"),
        (PARAMETERS, None),
        ("versions.json", "{"),
        ("versions.json", "[1]"),
        ("versions.json", None),
        (TESTED, ""),
        (TESTED, "3"),
        (TESTED, '{"output": 3}'),
        (TESTED, '{"output": {"loss": "<script>"}}'),
        (ABOUT, "{"),
        (ABOUT, "{}"),
        (ABOUT, '{"step": "<script>", "validation/loss": 1.0, "excerpts": []}'),
        (ABOUT, '{"step": 1, "validation/loss": 1.0, "excerpts": ["../../../secret"]}'),
        (ABOUT, '{"step": 1, "validation/loss": 1.0, "excerpts": ["lost"]}'),
        (ABOUT, '{"step": 1, "validation/loss": 1.0, "excerpts": 3}'),
    ],
)
def test_a_damaged_run_is_refused_in_one_line(copied, file, content):
    put(next(copied.glob("media/step_*/about.json")) if file == ABOUT else copied / file, content)
    with pytest.raises(UserError) as refused:
        write_summary([copied])
    assert str(copied) in str(refused.value) and len(str(refused.value).splitlines()) == 1


def test_a_parameter_without_a_range_is_refused(copied):
    lines = (copied / PARAMETERS).read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","))) for line in lines[1:]]
    rows[0]["high"] = rows[0]["low"]
    put(copied / PARAMETERS, "\n".join([lines[0], *(",".join(row.values()) for row in rows)]))
    with pytest.raises(UserError, match="does not have the content that dfx writes"):
        write_summary([copied])


@pytest.mark.parametrize("line", ["", "{", "[]", "3", "{}", '{"stage": 0, "step": "a", "time": 1}', 9999 * "["])
def test_a_damaged_line_of_the_history_is_left_out(copied, line):
    before = read_history(copied)
    with (copied / HISTORY).open("a") as file:
        file.write(line + "\n")
    assert read_history(copied) == before
    write_summary([copied])


SCRIPT = "</script><script>alert(1)</script>"


def test_names_from_a_run_become_no_markup_of_its_summary(copied):
    put(copied / TESTED, json.dumps({method: {f"loss{SCRIPT}": 1.0} for method in ("output", "input", "defaults")}))
    put(copied / CONFIG, json.dumps({f"a{SCRIPT}": SCRIPT, "run": {"name": SCRIPT}}))
    put(copied / "versions.json", json.dumps({SCRIPT: SCRIPT}))
    columns, *rows = (copied / PARAMETERS).read_text().splitlines()
    name, rest = rows[0].split(",", 1)
    put(copied / PARAMETERS, "\n".join([columns, f"{SCRIPT},{rest}"]))
    with (copied / HISTORY).open("a") as file:
        file.write(json.dumps({"stage": 0, "step": 10**6, "time": 1.0, f"train/{SCRIPT}": 1.0}) + "\n")
    text = write_summary([copied, shutil.copytree(copied, copied.parent / "<b>other")]).read_text()
    assert text.count("<script") == 1 and "&lt;script&gt;" in text and "<b>" not in text


def test_lines_of_a_name_end_after_its_underscores_and_dots_but_not_in_a_number():
    assert breakable("gate.ratio_<0.5") == "gate.<wbr>ratio_<wbr>&lt;0.5"


def test_only_the_script_of_the_summary_may_run(logged_run, tmp_path):
    text = write_summary([logged_run], tmp_path / "summary.html").read_text()
    (script,) = re.findall("<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text and "default-src 'none'" in text
