"""The host of VST3 plugins and, on macOS, of Audio Units, through pedalboard.

``vst3:ZaMultiComp`` is a plugin that is installed (in the platform's folders, or in one of ``VST3_PATH``),
``vst3:path/to/X.vst3`` a file, and ``vst3:path/to/X.vst3#Name`` one of several plugins in a file. What
the path ends in says whether it is a VST3 or an Audio Unit; a name is looked for among both.

What plugins and pedalboard do, and what we do about it:

* a plugin lists meters, programs and the host's own settings among its parameters: those that it does
  not let hosts automate are left out, and others by name; what has steps can be fixed, but not trained;
* setting an attribute costs 0.1 ms: raw positions in [0, 1] are set instead, which costs 0.2 us, at
  places that were looked up once in the values which the plugin shows;
* a plugin is loaded on the main thread only, in about 0.1 s: what is known of it is kept, but never a
  live one;
* the latency is made up for only after a reset: there is one before every stream;
* a plugin that keeps sound through a reset (ZamTube) is made anew by pedalboard, and parameters that
  were looked up before crash: resets are told to be plain, and parameters are looked up again;
* a block longer than the first re-prepares the plugin, and its state is lost; and the output of some
  plugins (ZamComp, ZamDelay) depends on the length of the blocks: all are cut to one, short length.
"""

from __future__ import annotations

import functools
import math
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pedalboard
from pedalboard import ExternalPluginReloadType as ReloadType
from pedalboard._pedalboard import to_python_parameter_name

from dfx.effects.effect import Control, Effect, EffectError, Recipe
from dfx.effects.pedalboard import Pending
from dfx.errors import nearest

BLOCK_SAMPLES = 256
"""What a plugin renders at once. Frames of a multiple of it sound exactly like the whole."""

PROBE_STEP = 1 / 1000
"""How far apart the raw positions are at which pedalboard reads a parameter's text."""

CONTINUOUS_STEPS = 1_000_000
"""Parameters with fewer steps are switches, modes and numbers to choose from."""

LOG_RATIO = 10
"""Times and frequencies whose range spans at least this ratio are trained on a log scale."""

_NOT_CONTROLS = re.compile(
    r"\b(program|preset|bypass|gain reduction|meter|latency|sample rate|buffer size)\b", re.IGNORECASE
)
_UNITS = {"hz": "Hz", "khz": "kHz", "db": "dB", "sec": "s"}

Table = dict[Any, float]
"""Raw positions by value; of numbers, which ascend, two say that they are linear between."""


class Entry(NamedTuple):
    """A control, the place of its parameter in the plugin, and where its values lie."""

    control: Control
    index: int
    table: Table


class Description(NamedTuple):
    """What is known of a plugin without a live one."""

    path: str
    plugin_name: str | None
    channels: int
    reset_is_exact: bool
    entries: dict[str, Entry]


def controls(name: str, sample_rate: int, channels: int) -> dict[str, Control]:
    """The controls of a plugin, by the names that pedalboard gives them: in snake case, with the unit.

    Raises:
        EffectError: if there is no such plugin (with the nearest name), if it cannot be loaded, is an
            instrument, takes another number of channels, or has two controls of one name; or off the
            main thread, for a plugin that was not described before.
    """
    return {key: entry.control for key, entry in _describe(name, sample_rate, channels).entries.items()}


def build(recipes: Sequence[Recipe], sample_rate: int, channels: int) -> list[tuple[Effect, int]]:
    """A live effect for each recipe, each with its number of trained parameters; on the main thread.

    Raises:
        EffectError: as :func:`controls`, and for ``au:`` where there are no Audio Units.
    """
    for recipe in recipes:
        if recipe.host == "au" and sys.platform != "darwin":
            raise EffectError(f"au:{recipe.effect}: {_NO_AUDIO_UNITS}")
    return [(PluginEffect(recipe, sample_rate, channels), len(recipe.parameters)) for recipe in recipes]


class Settled(NamedTuple):
    """A plugin with its controls set.

    Args:
        path: of the file that it is in.
        plugin: pedalboard's, live.
        places: by control, the index of the plugin's parameter and its position in [0, 1].
    """

    path: str
    plugin: Any
    places: dict[str, tuple[int, float]]


def settled(recipe: Recipe, values: dict[str, float], sample_rate: int, channels: int) -> Settled:
    """The plugin of a recipe, on the main thread, with what is fixed and the given values of what is trained."""
    description = _describe(recipe.effect, sample_rate, channels)
    plugin = _load(description.path, description.plugin_name)
    places = {}
    for name, value in {**recipe.fixed, **values}.items():
        entry = description.entries[name]
        places[name] = (entry.index, _position(entry, value))
        plugin._parameters[entry.index].raw_value = places[name][1]
    # Values reach what a plugin keeps of itself with a block.
    plugin.process(np.zeros((description.channels, 64), dtype=np.float32), sample_rate, reset=False)
    return Settled(description.path, plugin, places)


def positions(recipe: Recipe, values: np.ndarray, sample_rate: int, channels: int) -> np.ndarray:
    """Positions in [0, 1] of the trained parameters, both ``(points, P)``."""
    entries = _describe(recipe.effect, sample_rate, channels).entries
    of_values = Positions([entries[parameter.name].table for parameter in recipe.parameters])
    return np.array([of_values(row) for row in values])


class PluginEffect(Effect):
    """One plugin; or, where the plugin is mono and the audio is not, one for every channel.

    A stereo plugin hears mono audio on both inputs, and its left output is taken.

    ``restart_is_exact`` says whether :meth:`restart` gives bit-identical passes on any thread. Where
    it is false (pedalboard found out at loading that the plugin keeps sound through a reset), it does so on
    the main thread alone, where the plugin can be made anew, in 0.1 ms. On another thread the plugin is
    only reset, and what it keeps fades out: in ZamTube, capacitors discharge within some seconds.
    """

    def __init__(self, recipe: Recipe, sample_rate: int, channels: int) -> None:
        description = _describe(recipe.effect, sample_rate, channels)
        entries = [description.entries[parameter.name] for parameter in recipe.parameters]
        self._sample_rate = sample_rate
        self._channels = channels
        self._plugin_channels = description.channels
        self._indices = [entry.index for entry in entries]
        self._positions = Positions([entry.table for entry in entries])
        self.restart_is_exact = description.reset_is_exact
        self._plugins = []
        for _ in range(max(1, channels // description.channels)):
            plugin = _load(description.path, description.plugin_name)
            _set_reload_type(plugin, ReloadType.ClearsAudioOnReset)
            parameters = plugin._parameters
            for name, value in recipe.fixed.items():
                entry = description.entries[name]
                parameters[entry.index].raw_value = _position(entry, value)
            self._plugins.append(plugin)
        self._hear_silence()
        self.latency_samples = self._plugins[0].reported_latency_samples
        self.restart()

    def render(self, audio: np.ndarray, values: np.ndarray) -> np.ndarray:
        raws = self._positions(values)
        for targets, raw, old in zip(self._targets, raws, self._raws):
            if raw != old:
                for parameter in targets:
                    parameter.raw_value = raw
        self._raws = raws
        if self._block_samples == 0:
            # Values reach a plugin with a block: after the reset, what glides begins at them.
            self._hear_silence()
            for plugin in self._plugins:
                plugin.reset()
            self._block_samples = min(audio.shape[1], BLOCK_SAMPLES)
        output = self._process(audio, self._block_samples)
        return self._pending.fill(output, audio.shape[1])

    def restart(self) -> None:
        if not self.restart_is_exact and _on_main_thread():
            for plugin in self._plugins:
                _set_reload_type(plugin, ReloadType.PersistsAudioOnReset)
                plugin.reset()
                _set_reload_type(plugin, ReloadType.ClearsAudioOnReset)
        parameters = [plugin._parameters for plugin in self._plugins]
        self._targets = [[of_plugin[index] for of_plugin in parameters] for index in self._indices]
        self._raws = [float("nan")] * len(self._indices)
        self._block_samples = 0
        self._pending = Pending(self._channels, self.latency_samples)

    def _process(self, audio: np.ndarray, block_samples: int) -> np.ndarray:
        if self._plugin_channels > self._channels:
            audio = np.repeat(audio, self._plugin_channels, axis=0)
        outputs = [
            plugin.process(part, self._sample_rate, buffer_size=block_samples, reset=False)
            for plugin, part in zip(self._plugins, np.split(audio, len(self._plugins)))
        ]
        return np.concatenate(outputs)[: self._channels]

    def _hear_silence(self) -> None:
        self._process(np.zeros((self._channels, 64), dtype=np.float32), 64)


class Positions:
    """Raw positions for the values of all trained parameters at once."""

    def __init__(self, tables: Sequence[Table]) -> None:
        ends = [(*table.items(),) for table in tables]
        low, start = np.array([e[0] for e in ends], dtype=np.float64).reshape(-1, 2).T
        high, end = np.array([e[-1] for e in ends], dtype=np.float64).reshape(-1, 2).T
        self._low, self._start, self._slope = low, start, (end - start) / (high - low)
        self._curved = [
            (place, np.array([*table]), np.array([*table.values()]))
            for place, table in enumerate(tables)
            if len(table) > 2
        ]

    def __call__(self, values: np.ndarray) -> list[float]:
        """Positions in [0, 1] for float64 values in their units, shape ``(P,)``."""
        raws = np.clip(self._start + (values - self._low) * self._slope, 0.0, 1.0)
        for place, known_values, known_raws in self._curved:
            raws[place] = np.interp(values[place], known_values, known_raws)
        return raws.tolist()


# --- what is known of a plugin -----------------------------------------------------------------------


@functools.cache
def _describe(name: str, sample_rate: int, channels: int) -> Description:
    location, _, plugin_name = name.partition("#")
    path = _find(location)
    plugin = _load(path, plugin_name or None)
    if not plugin.is_effect:
        raise EffectError(f"vst3:{name} is an instrument: it takes no audio")
    entries = _entries(name, plugin)
    return Description(
        path,
        plugin_name or None,
        _plugin_channels(name, plugin, sample_rate, channels),
        plugin._reload_type == ReloadType.ClearsAudioOnReset,
        entries,
    )


def _plugin_channels(name: str, plugin: Any, sample_rate: int, channels: int) -> int:
    tried = [1, 2] if channels == 1 else [channels, 1]
    for count in tried:
        try:
            plugin.process(np.zeros((count, 64), dtype=np.float32), sample_rate, reset=False)
            return count
        except ValueError as error:
            reason = error
    raise EffectError(f"vst3:{name} takes neither {tried[0]} nor {tried[1]} channels: {reason}")


def _entries(name: str, plugin: Any) -> dict[str, Entry]:
    parameters = plugin._parameters
    keys = [to_python_parameter_name(parameter) for parameter in parameters]
    described = plugin.parameters
    entries = {
        key: _entry(key, index, parameter, described[key])
        for index, (key, parameter) in enumerate(zip(keys, parameters))
        if key in described and _is_control(parameter) and len(described[key].ranges) > 1
    }
    twice = [key for key, count in Counter(keys).items() if count > 1 and key in entries]
    if twice:
        raise EffectError(f"vst3:{name} has two parameters '{twice[0]}', and no way to tell them apart")
    # They refer to the plugin, which refers to them: it would live until the garbage is collected.
    plugin.__python_parameter_cache__.clear()
    return entries


def _is_control(parameter: Any) -> bool:
    return parameter.is_automatable and not _NOT_CONTROLS.search(parameter.name)


def _entry(key: str, index: int, parameter: Any, described: Any) -> Entry:
    values = list(described.ranges.values())
    # A value that is shown over a range of positions is rounded, and lies in the middle, but for the ends.
    raws = [(start + end - PROBE_STEP) / 2 for start, end in described.ranges]
    raws[0], raws[-1] = 0.0, 1.0
    trainable = parameter.num_steps > CONTINUOUS_STEPS
    numbers = _numbers(values, raws) if described.type is float else None

    if described.type is bool or (numbers and [*numbers] == [0.0, 1.0] and not trainable):
        table = {bool(value): raw for value, raw in zip(values, raws)}
        return Entry(Control(key, _nearest_value(table, parameter.raw_value), trainable=False), index, table)
    if not numbers and not trainable:
        table = {str(value): raw for value, raw in zip(values, raws)}
        default = _nearest_value(table, parameter.raw_value)
        return Entry(Control(key, default, trainable=False, choices=tuple(table)), index, table)

    # Where a plugin shows no numbers, or not in order, the raw position is the value.
    table = numbers or {0.0: 0.0, 1.0: 1.0}
    unit = (described.label or "").strip() if numbers else ""
    unit = _UNITS.get(unit.lower(), unit)
    low, high = min(table), max(table)
    is_log = unit in ("Hz", "kHz", "ms", "s") and low > 0 and high / low >= LOG_RATIO
    by_raw = sorted((raw, value) for value, raw in table.items())
    default = float(np.interp(parameter.raw_value, *zip(*by_raw)))
    # Raw positions are float32: what is beyond their precision is not the plugin's.
    default = min(max(round(default, 6 - math.ceil(math.log10(high - low))), low), high)
    control = Control(key, default, low, high, unit, "log" if is_log else "linear", low, high, trainable=trainable)
    return Entry(control, index, table)


def _numbers(values: Sequence[float], raws: Sequence[float]) -> Table | None:
    """The positions of numbers, ascending; only the ends if the rest is linear; none if out of order."""
    finite = [(value, raw) for value, raw in zip(values, raws) if math.isfinite(value)]
    shown, positions = np.array(sorted(finite)).reshape(-1, 2).T
    steps = np.diff(positions)
    if not len(steps) or np.any(np.diff(shown) == 0) or not (np.all(steps > 0) or np.all(steps < 0)):
        return None
    line = np.interp(shown, shown[[0, -1]], positions[[0, -1]])
    if np.abs(positions - line).max() <= np.abs(steps).max() / 2:
        shown, positions = shown[[0, -1]], positions[[0, -1]]
    return dict(zip(shown.tolist(), positions.tolist()))


def _nearest_value(table: Table, raw: float) -> Any:
    return min(table, key=lambda value: abs(table[value] - raw))


def _position(entry: Entry, value: Any) -> float:
    if value in entry.table:
        return entry.table[value]
    return Positions([entry.table])(np.array([value], dtype=np.float64))[0]


# --- finding and loading -----------------------------------------------------------------------------

_NO_AUDIO_UNITS = "Audio Units exist on macOS only"


def _find(location: str) -> str:
    path = Path(location).expanduser()
    if path.suffix == ".component" and sys.platform != "darwin":
        raise EffectError(f"{location}: {_NO_AUDIO_UNITS}")
    if path.suffix in (".vst3", ".component") or len(path.parts) > 1:
        if not path.exists():
            raise EffectError(f"there is no plugin at {location}")
        return str(path)
    installed = _installed()
    if location not in installed:
        zam = "; Debian has it: apt-get install zam-plugins" if location.lower().startswith("zam") else ""
        known = nearest(location, installed) if installed else " (there are none)"
        raise EffectError(f"no plugin '{location}' is installed{known}{zam}")
    return installed[location]


def _installed() -> dict[str, str]:
    _check_main_thread()
    formats = [getattr(pedalboard, name, None) for name in ("AudioUnitPlugin", "VST3Plugin")]
    paths = [path for plugins in formats if plugins for path in plugins.installed_plugins]
    for folder in filter(None, os.environ.get("VST3_PATH", "").split(os.pathsep)):
        paths += [str(path) for path in sorted(Path(folder).rglob("*.vst3"))]
    return {Path(path).stem: path for path in paths}


def _load(path: str, plugin_name: str | None) -> Any:
    _check_main_thread()
    try:
        return pedalboard.load_plugin(path, plugin_name=plugin_name)
    except ImportError as error:
        raise EffectError(f"{path} is not a plugin that can be loaded here: {error}") from None
    except ValueError as error:
        raise EffectError(f"{path}: name one plugin of the file as {path}#Name: {error}") from None


def _set_reload_type(plugin: Any, reload_type: ReloadType) -> None:
    # pedalboard's own __setattr__ would first read all parameters anew, for 0.1 s and 7 MB.
    object.__setattr__(plugin, "_reload_type", reload_type)


def _on_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _check_main_thread() -> None:
    if not _on_main_thread():
        raise EffectError("plugins can be loaded on the main thread only: build the chain there")
