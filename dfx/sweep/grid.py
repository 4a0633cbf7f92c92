"""Sweep files in the format of Weights & Biases. Grids are expanded exactly as its agent does."""

import itertools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dfx.errors import UserError, in_one_line

SEED = "run.seed"
"""The parameter whose values are seeds: points that differ only in it belong to one arm."""

CONFIG = "config"
"""The parameter whose values are files; the name of a file, without its folder and ending, stands for it."""

_UNITS = {"db": "dB", "hz": "Hz", "ms": "ms", "seconds": "s", "minutes": "min", "samples": "samples", "lufs": "LUFS"}
"""Units by the last word of an option's name."""


class SweepError(UserError):
    """A sweep file or a sweep's folder cannot be used; the message says why."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    name: str  # unique in the sweep
    arm: str  # shared with the points of other seeds
    command: list[str]  # without the options of folder and logging
    seed: int | None = None
    values: dict[str, Any] = field(default_factory=dict)  # by readable names, of other parameters with several values


@dataclass(frozen=True)
class Sweep:
    """A grid of values of parameters."""

    name: str  # also the group of its runs in Weights & Biases
    program: str  # relative to the root of the repository
    parameters: dict[str, list[Any]]  # the values of each parameter
    command: list[str]  # with macros; ``${args}`` stands for the parameters of a point

    def points(self, seeds: Sequence[int] | None = None, options: Sequence[str] = ()) -> list[Point]:
        """Return all points, arm by arm in the order of the file.

        Args:
            seeds: seeds instead of those of the file.
            options: options appended to every command.

        Raises:
            SweepError: if two points have the same name.
        """
        parameters = dict(self.parameters)
        if seeds:
            parameters[SEED] = list(seeds)
        varied = [name for name, values in parameters.items() if len(values) > 1 and name != SEED]
        columns = _readable_names(varied)
        points = []
        for values in itertools.product(*parameters.values()):
            of_point = dict(zip(parameters, values))
            arm = "_".join(_label(name, of_point[name]) for name in varied) or self.name
            name = f"{arm}_seed{of_point[SEED]}" if SEED in of_point else arm
            shown = {column: _shown(name, of_point[name]) for name, column in columns.items()}
            command = [*self._expand(of_point), *options]
            points.append(Point(name, arm, command, of_point.get(SEED), shown))
        names = [point.name for point in points]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise SweepError(
                f"two points of the sweep {self.name} are named {twice}: rename a config, or remove a value"
            )
        arms = list(dict.fromkeys(point.arm for point in points))
        return sorted(points, key=lambda point: arms.index(point.arm))

    def _expand(self, values: dict[str, Any]) -> list[str]:
        # Private functions of wandb, used here only, so that commands equal those of its agent. The import is slow.
        from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

        try:
            command = create_sweep_command(list(self.command))
        except ValueError as error:
            raise SweepError(f"sweep {self.name}: {error}") from None
        macros = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
        macros.update(env=[], interpreter=[sys.executable], program=[self.program])
        expanded: list[str] = []
        for part in map(str, command):
            macro = re.fullmatch(r"\$\{(\w+)\}", part)
            if macro and not isinstance(macros.get(macro[1]), list):
                raise SweepError(f"sweep {self.name}: {part} is not a supported macro; use ${{args}}")
            expanded += macros[macro[1]] if macro else [part]
        return expanded


def read_sweep(path: str) -> Sweep:
    """Read the grid of a sweep file.

    Raises:
        SweepError: if the file does not exist, or does not describe a grid.
    """
    file = Path(path)
    if not file.is_file():
        raise SweepError(f"{path}: no such file")
    content = _read_yaml(file)
    if not isinstance(content, dict):
        raise SweepError(f"{path} is not a sweep; see configs/sweeps/ for examples")
    for key, kind in {"program": str, "parameters": dict, "command": list}.items():
        if not content.get(key):
            raise SweepError(f"{path} has no `{key}`; see configs/sweeps/ for examples")
        if not isinstance(content[key], kind):
            raise SweepError(f"{path}: `{key}` cannot be {content[key]!r}; see configs/sweeps/ for examples")
    if content.get("method") != "grid":
        raise SweepError(f"{path} has the method {content.get('method')}: only `grid` is supported; use `wandb agent`")
    parameters = {}
    for name, given in content["parameters"].items():
        if isinstance(given, dict) and "value" in given:
            parameters[name] = [given["value"]]
        elif isinstance(given, dict) and isinstance(given.get("values"), list) and given["values"]:
            parameters[name] = given["values"]
        else:
            raise SweepError(f"{path}: the parameter {name} needs `value`, or a list as `values`")
    if not any(str(part).startswith("${args") for part in content["command"]):
        raise SweepError(f"{path}: the command has no ${{args}}, so all points would be the same")
    return Sweep(_as_name(str(content.get("name") or file.stem)), content["program"], parameters, content["command"])


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise SweepError(f"{path} is not YAML: {in_one_line(error)}") from None


def _label(parameter: str, value: Any) -> str:
    """Return the part of an arm's name for a value; for a config file, the name of the file."""
    shown = _shown(parameter, value)
    return _as_name(shown if parameter == CONFIG else f"{parameter.rsplit('.')[-1]}_{shown}")


def _shown(parameter: str, value: Any) -> Any:
    return Path(str(value)).stem if parameter == CONFIG else value


def _readable_names(parameters: Sequence[str]) -> dict[str, str]:
    """Return ``learning rate`` for an option's dotted name, with its unit as in ``noise [dB]``; all names differ."""
    names = {}
    for parameter in parameters:
        words = parameter.rsplit(".")[-1].split("_")
        unit = _UNITS.get(words[-1]) if len(words) > 1 else None
        names[parameter] = f"{' '.join(words[:-1])} [{unit}]" if unit else " ".join(words)
    return {
        parameter: name if list(names.values()).count(name) == 1 else parameter for parameter, name in names.items()
    }


def _as_name(text: str) -> str:
    """Return a name of folders, runs and rows of a table."""
    return re.sub(r"[^\w.+-]+", "-", text)
