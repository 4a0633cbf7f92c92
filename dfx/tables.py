"""Tables as files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Mapping, Optional, Sequence


def write_csv(path: Path, rows: Sequence[Mapping[str, object]], columns: Optional[Sequence[str]] = None) -> None:
    """Writes rows, at least one, below a line of their columns; by default those of the first row."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
