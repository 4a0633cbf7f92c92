import csv
import json

import numpy as np
import pytest

from dfx.effects import Parameter, ParameterSpace
from dfx.errors import UserError
from dfx.render.automation import Automation, thin_out

SPACE = ParameterSpace(
    [
        Parameter("filter.cutoff_hz", "Hz", 100, 1000, 200, "log"),
        Parameter("filter.mix", "", 0, 1, 0.5),
        Parameter("gain.gain_db", "dB", -10, 10, 0),
        Parameter("other.gain_db", "dB", -10, 10, 0),
    ]
)


@pytest.fixture
def automation():
    parameters = np.array([[0.0, 0.1, 0.5, 0.0], [0.5, 0.2, 0.75, 0.0], [1.0, 0.9, 1.0, 1.0]])
    return Automation(SPACE, np.array([0.25, 0.75, 1.25]), parameters)


def test_parameters_are_read_by_name_in_their_units(automation):
    np.testing.assert_allclose(automation["filter.cutoff_hz"], [100, 316.227766, 1000])
    np.testing.assert_allclose(automation["mix"], [0.1, 0.2, 0.9])
    assert automation.units["filter.cutoff_hz"] == "Hz"


def test_a_name_that_is_not_one_parameters_is_an_error(automation):
    with pytest.raises(UserError, match="there are gain.gain_db, other.gain_db"):
        automation["gain_db"]
    with pytest.raises(UserError, match="did you mean 'filter.mix'"):
        automation["filter.mixx"]


def test_the_median_is_one_setting_for_all(automation):
    median = automation.median()
    assert median["filter.cutoff_hz"] == pytest.approx(316.227766) and median["other.gain_db"] == -10


def test_csv_holds_a_column_for_each_parameter(automation, tmp_path):
    automation.write(str(tmp_path / "a.csv"))
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert list(rows[0]) == [
        "time (s)", "filter.cutoff_hz (Hz)", "filter.mix", "gain.gain_db (dB)", "other.gain_db (dB)"
    ]  # fmt: skip
    assert [float(row["filter.cutoff_hz (Hz)"]) for row in rows] == pytest.approx([100, 316.227766, 1000])


def test_json_holds_units_ranges_and_values(automation, tmp_path):
    automation.write(str(tmp_path / "a.json"))
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["times_s"] == [0.25, 0.75, 1.25]
    gain = content["parameters"]["gain.gain_db"]
    assert gain == {"unit": "dB", "range": [-10, 10], "scale": "linear", "values": [0, 5, 10]}


def test_another_suffix_is_refused(automation, tmp_path):
    with pytest.raises(UserError, match="a.xml: automation is written as .csv or .json"):
        automation.write(str(tmp_path / "a.xml"))


def test_a_thin_out_curve_misses_no_point_by_more_than_the_tolerance():
    times = np.linspace(0, 10, 2001)
    values = np.sin(times) + np.where(times > 5, 0.5, 0)
    kept = thin_out(times, values, 0.01)
    assert len(kept) < 60
    assert np.abs(np.interp(times, times[kept], values[kept]) - values).max() <= 0.01
    assert list(thin_out(times, np.ones(2001), 1e-6)) == [0, 2000]
    assert list(thin_out(times[:1], np.ones(1), 1e-6)) == [0]
