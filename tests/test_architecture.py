"""The layout of dfx: imports run downwards, and few modules lie loose."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "dfx").rglob("*.py")
}


def imported_by(module: str) -> set[str]:
    """The modules of dfx that a module imports, inside functions and for type checking too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return {name for name in found if name in MODULES and name != module}


def test_no_import_leads_back_to_its_module():
    graph = {module: imported_by(module) for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_texts_are_written_under_a_partial_name_and_then_replace_the_old_file():
    for module, path in MODULES.items():
        written = re.findall(r"(\S+)\.write_(?:text|bytes)\(", path.read_text(encoding="utf-8"))
        assert set(written) <= {"partial"}, f"{module} writes {written}: use dfx.writing"


def test_at_most_ten_modules_lie_loose():
    loose = [path.name for path in (ROOT / "dfx").glob("*.py")]
    assert len(loose) <= 10, f"move some of {sorted(loose)} into a room"
