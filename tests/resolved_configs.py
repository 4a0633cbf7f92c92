"""What every committed config resolves to. ``python -m tests.resolved_configs`` writes it anew, on purpose.

Pinned is each config with every default filled in; of a config that goes over another, what it changes in that. So
an option that leaks from one file into the next, or a default that moves, shows as a line here.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "sweeps")
PINNED = ROOT / "tests" / "resolved_configs.yaml"

Flat = dict[str, Any]


def base_of(config: Path) -> Path | None:
    """The config that a config goes over, as the command in its first lines says; none if it stands alone."""
    said = re.search(r"fit --config (\S+) --config (\S+)", config.read_text())
    if said is None:
        return None
    assert said[2] == config.relative_to(ROOT).as_posix(), f"{config} tells how to run {said[2]}"
    return ROOT / said[1]


def given(config: Path) -> list[str]:
    """The options of train.py for a config, and the one that it goes over."""
    base = base_of(config)
    return [*(["--config", str(base)] if base else []), "--config", str(config)]


def resolve(config: Path) -> Flat:
    """All options of a run with a config, ``{"model.init_args.gradient.epsilon": 0.01, ...}``; lists are one value."""
    from dfx.cli import DfxCLI

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        DfxCLI(["fit", *given(config), "--print_config"])
    options = yaml.safe_load(printed.getvalue())
    if not options:
        raise ValueError(f"{config} does not resolve")
    return flat(options)


def to_pin(config: Path, resolved: dict[Path, Flat]) -> Flat:
    """What is pinned of a config, given all that are resolved."""
    options, base = resolved[config], base_of(config)
    if base is None:
        return options
    before = resolved[base]
    dropped = {name: "(no longer there)" for name in before if name not in options}
    changed = {name: value for name, value in options.items() if name not in before or before[name] != value}
    return {**changed, **dropped}


def flat(options: Any, name: str = "") -> Flat:
    """A tree of mappings as one, with dots in its names."""
    if not isinstance(options, dict) or not options:
        return {name: options}
    found: Flat = {}
    for key, value in options.items():
        found.update(flat(value, f"{name}.{key}" if name else str(key)))
    return found


def main() -> None:
    os.chdir(ROOT)
    resolved = {config: resolve(config) for config in CONFIGS}
    pinned = {config.relative_to(ROOT).as_posix(): to_pin(config, resolved) for config in CONFIGS}
    PINNED.write_text(yaml.safe_dump(pinned, sort_keys=True, width=1000, default_flow_style=None))
    print(f"{len(pinned)} configs in {PINNED.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
