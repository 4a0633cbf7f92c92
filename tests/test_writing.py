"""Files that are written whole."""

import pytest

from dfx.writing import replacing, write_csv, write_json


@pytest.mark.parametrize("sync", [False, True])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, sync):
    path = tmp_path / "a.txt"
    for content in ("one", "two"):
        with replacing(path, sync) as partial:
            partial.write_text(content)
            assert partial.parent == tmp_path and partial != path
    with pytest.raises(KeyboardInterrupt), replacing(path, sync) as partial:
        partial.write_text("three")
        raise KeyboardInterrupt
    assert path.read_text() == "two" and list(tmp_path.iterdir()) == [path]


def test_tables_and_json_are_text_in_utf_8(tmp_path):
    write_csv(tmp_path / "a.csv", [{"name": "é", "dB": -3.0}, {"name": "b", "dB": None}])
    write_json(tmp_path / "a.json", {"name": [1, None]})
    assert (tmp_path / "a.csv").read_bytes().decode("utf-8") == "name,dB\né,-3.0\nb,\n"
    assert (tmp_path / "a.json").read_text() == '{\n  "name": [\n    1,\n    null\n  ]\n}\n'
    with pytest.raises(ValueError, match="fields not in fieldnames"):
        write_csv(tmp_path / "a.csv", [{"name": "c", "other": 1}], ["name"])
    assert "other" not in (tmp_path / "a.csv").read_text() and len(list(tmp_path.iterdir())) == 2
