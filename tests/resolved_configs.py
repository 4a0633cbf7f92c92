"""Pin the options that every committed config resolves to; ``python -m tests.resolved_configs`` rewrites the pins.

A config is pinned with every default filled in, an overlay by the options that it changes in its base. An option
that leaks from one file into the next, or a default that changes, then shows as a line of ``resolved_configs.yaml``.
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
    """Return the config that an overlay changes, from the command in its first lines; None if it is no overlay."""
    command = re.search(r"fit --config (\S+) --config (\S+)", config.read_text())
    if command is None:
        return None
    assert command[2] == config.relative_to(ROOT).as_posix(), f"{config} contains the command of {command[2]}"
    return ROOT / command[1]


def config_options(config: Path) -> list[str]:
    """Return the options of train.py for a config and, if it is an overlay, its base."""
    base = base_of(config)
    return [*(["--config", str(base)] if base else []), "--config", str(config)]


def resolve(config: Path) -> Flat:
    """Return all options of a run, ``{"model.init_args.gradient.epsilon": 0.01, ...}``; a list is one value."""
    from dfx.cli import DfxCLI

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        DfxCLI(["fit", *config_options(config), "--print_config"])
    options = yaml.safe_load(printed.getvalue())
    if not options:
        raise ValueError(f"{config} does not resolve")
    return flatten(options)


def options_to_pin(config: Path, resolved: dict[Path, Flat]) -> Flat:
    """Return the options of a config that are pinned: all, or for an overlay those that differ from its base."""
    options, base = resolved[config], base_of(config)
    if base is None:
        return options
    before = resolved[base]
    dropped = {name: "(no longer there)" for name in before if name not in options}
    changed = {name: value for name, value in options.items() if name not in before or before[name] != value}
    return {**changed, **dropped}


def flatten(options: Any, name: str = "") -> Flat:
    """Turn nested mappings into one, with dots in its names."""
    if not isinstance(options, dict) or not options:
        return {name: options}
    flattened: Flat = {}
    for key, value in options.items():
        flattened.update(flatten(value, f"{name}.{key}" if name else str(key)))
    return flattened


def main() -> None:
    os.chdir(ROOT)
    resolved = {config: resolve(config) for config in CONFIGS}
    pinned = {config.relative_to(ROOT).as_posix(): options_to_pin(config, resolved) for config in CONFIGS}
    PINNED.write_text(yaml.safe_dump(pinned, sort_keys=True, width=1000, default_flow_style=None))
    print(f"{len(pinned)} configs in {PINNED.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
