import pytest
import yaml

from dfx.benchmark.step import step
from dfx.errors import DataError
from tests.resolved_configs import ROOT

PARTS = {"effects", "estimator", "encoder", "loss", "data", "logging", "validation", "rest"}


@pytest.mark.parametrize("steps", [1, 6])
def test_the_parts_of_a_step_add_up_also_where_noise_takes_the_place_of_absent_data(tmp_path, steps):
    config = yaml.safe_load((ROOT / "configs" / "smoke.yaml").read_text())
    config["data"] |= {"root": "absent", "rows": None}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    rows = list(step([str(tmp_path / "config.yaml")], steps, ["--wandb.mode=disabled"]))
    assert {row["part"] for row in rows} == PARTS
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert all(row["cpu_ms"] > 0 for row in rows if row["part"] != "rest")


@pytest.mark.parametrize("content", [b"data: 3", b"data: {root: [a]}", b"data: \xff", b"- data"])
def test_a_config_that_cannot_be_read_is_an_error_that_names_it(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(DataError, match="config.yaml cannot be read as a config"):
        next(step([str(tmp_path / "config.yaml")], 1, []))
