"""The host of VST3 plugins and, on macOS, of Audio Units, through pedalboard.

``vst3:ZaMultiComp`` is an installed plugin (in the platform's folders, or in one of ``VST3_PATH``),
``vst3:path/to/X.vst3`` a file, and ``vst3:path/to/X.vst3#Name`` one of several plugins in a file. The suffix of a path
selects VST3 or Audio Unit; a name is searched among both.

Properties of plugins and pedalboard that matter for streaming, and how this host deals with them:

* Plugins list meters, programs and settings of the host among their parameters: those that cannot be automated are
  left out, and others by name. Stepped parameters can be fixed, but not trained.
* Setting an attribute takes 0.1 ms: this host sets raw positions in [0, 1] instead, which takes 0.2 us. It derives
  them from tables of the values that the plugin displays, read once.
* A plugin can be loaded only on the main thread, in about 0.1 s: descriptions are cached, live plugins are not.
* pedalboard compensates the latency only after a reset: every stream begins with one.
* pedalboard reloads a plugin that keeps sound through a reset (ZamTube), after which its old parameter objects crash:
  resets are set not to reload, and parameters are looked up again after a reload. It finds such plugins by a random
  test, which ZamTube passes one time in ten: this host tests again.
* A block longer than the first re-initializes the plugin and discards its state, and the output of some plugins
  (ZamComp, ZamDelay) depends on the block length: all blocks have one short length.
"""

import contextlib
import functools
import gc
import math
import os
import re
import sys
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pedalboard
from pedalboard import ExternalPluginReloadType as ReloadType
from pedalboard._pedalboard import to_python_parameter_name

from dfx.effects.effect import Control, Effect, EffectError, Recipe
from dfx.effects.pedalboard import LatencyBuffer
from dfx.errors import nearest

BLOCK_SAMPLES = 256
"""Length of the blocks that a plugin renders. Frames of a multiple of it give the same samples as the whole."""

RAW_STEP = 1 / 1000  # distance between the raw positions at which pedalboard reads a parameter's text
CONTINUOUS_STEPS = 1_000_000  # parameters with fewer steps are switches, modes or lists of numbers
LOG_RATIO = 10  # times and frequencies are trained on a log scale if their range spans at least this ratio

_NOT_CONTROLS = re.compile(r"\b(program|preset|bypass|gain reduction|meter|latency|sample rate|buffer size)\b", re.I)
_UNITS = {"hz": "Hz", "khz": "kHz", "db": "dB", "sec": "s"}
_NUMBER = re.compile(r"\s*[-+]?\d*\.?\d+(e[-+]?\d+)?", re.I)
_NO_AUDIO_UNITS = "Audio Units exist on macOS only"

Table = dict[Any, float]
"""Raw positions by value. Numbers ascend, and two of them stand for a linear scale."""


class Entry(NamedTuple):
    """A control, the index of its parameter in the plugin, and the raw positions of its values."""

    control: Control
    parameter_index: int
    table: Table


class Description(NamedTuple):
    """The properties of a plugin that are needed without a live one."""

    path: str
    plugin_name: str | None
    channels: int
    reset_is_exact: bool
    entries: dict[str, Entry]


class LoadedPlugin(NamedTuple):
    """A plugin with its controls set.

    Args:
        path: the file of the plugin.
        plugin: pedalboard's live object.
        places: by control, the index of the plugin's parameter and its position in [0, 1].
    """

    path: str
    plugin: Any
    places: dict[str, tuple[int, float]]


def controls(name: str, sample_rate: int, channels: int) -> dict[str, Control]:
    """Return the controls of a plugin, by pedalboard's names for them: in snake case, with the unit.

    Raises:
        EffectError: if there is no such plugin (with the nearest name), if it cannot be loaded, is an instrument, takes
            another number of channels, or has two controls of one name; off the main thread, if it is not yet cached.
    """
    return {key: entry.control for key, entry in describe(name, sample_rate, channels).entries.items()}


def build(recipes: Sequence[Recipe], sample_rate: int, channels: int) -> list[tuple[Effect, int]]:
    """Build a live effect for each recipe, on the main thread.

    Raises:
        EffectError: as :func:`controls`, and for ``au:`` on other systems than macOS.
    """
    for recipe in recipes:
        if recipe.host == "au" and sys.platform != "darwin":
            raise EffectError(f"au:{recipe.effect}: {_NO_AUDIO_UNITS}")
    return [(PluginEffect(recipe, sample_rate, channels), 1) for recipe in recipes]


def load_plugin(recipe: Recipe, values: dict[str, float], sample_rate: int, channels: int) -> LoadedPlugin:
    """Load the plugin of a recipe, on the main thread, with its fixed and the given trained values."""
    description = describe(recipe.effect, sample_rate, channels)
    loaded = _load_with(description, {**recipe.fixed, **values})
    # A plugin updates its state when it renders a block.
    loaded.plugin.process(np.zeros((description.channels, 64), dtype=np.float32), sample_rate, reset=False)
    return loaded


def positions(recipe: Recipe, values: np.ndarray, sample_rate: int, channels: int) -> np.ndarray:
    """Return positions in [0, 1] for values of the trained parameters, both ``(points, P)``."""
    entries = describe(recipe.effect, sample_rate, channels).entries
    return np.array(Positions([entries[parameter.name].table for parameter in recipe.parameters])(values))


class PluginEffect(Effect):
    """One plugin, or one for every channel if the plugin is mono and the audio is not.

    A stereo plugin gets mono audio on both inputs, and its left output is used.

    Attributes:
        plugins: pedalboard's live objects.
        restart_is_exact: true if :meth:`restart` gives bit-identical passes on any thread. Where it is false
            (the plugin keeps sound through a reset), passes are identical only after restarts on the main thread, where
            the plugin can be reloaded, in 0.1 ms. On another thread the plugin is only reset, and its remaining state
            decays: in ZamTube, capacitors discharge within some seconds.
    """

    def __init__(self, recipe: Recipe, sample_rate: int, channels: int) -> None:
        description = describe(recipe.effect, sample_rate, channels)
        entries = [description.entries[parameter.name] for parameter in recipe.parameters]
        self._sample_rate = sample_rate
        self._channels = channels
        self._plugin_channels = description.channels
        self._parameter_indices = [entry.parameter_index for entry in entries]
        self._positions = Positions([entry.table for entry in entries])
        self.restart_is_exact = description.reset_is_exact
        count = max(1, channels // description.channels)
        self.plugins = [_load_with(description, recipe.fixed).plugin for _ in range(count)]
        for plugin in self.plugins:
            _set_reload_type(plugin, ReloadType.ClearsAudioOnReset)
        weakref.finalize(self, _release, vars(self))
        self._process_silence()
        self.latency_samples: int = self.plugins[0].reported_latency_samples
        self.restart()

    def restart(self) -> None:
        if not self.restart_is_exact and threading.current_thread() is threading.main_thread():
            with _quiet():
                for plugin in self.plugins:
                    _set_reload_type(plugin, ReloadType.PersistsAudioOnReset)
                    plugin.reset()
                    _set_reload_type(plugin, ReloadType.ClearsAudioOnReset)
        of_plugins = [native_parameters(plugin) for plugin in self.plugins]
        self._parameters = [[of_plugin[index] for of_plugin in of_plugins] for index in self._parameter_indices]
        self._raws = [math.nan] * len(self._parameter_indices)
        self._block_samples = 0
        self._latency_buffer = LatencyBuffer(self._channels, self.latency_samples)

    def render(self, audio: np.ndarray, values: np.ndarray) -> np.ndarray:
        raws = self._positions(values)
        for parameters, raw, old in zip(self._parameters, raws, self._raws):
            if raw != old:
                for parameter in parameters:
                    parameter.raw_value = raw
        self._raws[:] = raws
        if self._block_samples == 0:
            # A plugin applies values with a block: smoothed parameters then start at them after the reset.
            self._process_silence()
            for plugin in self.plugins:
                plugin.reset()
            self._block_samples = min(audio.shape[1], BLOCK_SAMPLES)
        output = self._process(audio, self._block_samples)
        return self._latency_buffer.fill(output, audio.shape[1])

    def read_values(self) -> np.ndarray:
        """Return the numbers in the texts that the plugin displays, which may be rounded."""
        numbers = [_NUMBER.match(parameters[0].string_value) for parameters in self._parameters]
        return np.array([float(number[0]) if number else math.nan for number in numbers])

    def _process(self, audio: np.ndarray, block_samples: int) -> np.ndarray:
        if self._plugin_channels > self._channels:
            audio = np.repeat(audio, self._plugin_channels, axis=0)
        outputs = [
            plugin.process(part, self._sample_rate, buffer_size=block_samples, reset=False)
            for plugin, part in zip(self.plugins, np.split(audio, len(self.plugins)))
        ]
        return np.concatenate(outputs)[: self._channels]

    def _process_silence(self) -> None:
        self._process(np.zeros((self._channels, 64), dtype=np.float32), 64)


class Positions:
    """Maps values of all trained parameters to raw positions at once."""

    def __init__(self, tables: Sequence[Table]) -> None:
        ends = [(*table.items(),) for table in tables]
        low, start = np.array([e[0] for e in ends], dtype=np.float64).reshape(-1, 2).T
        high, end = np.array([e[-1] for e in ends], dtype=np.float64).reshape(-1, 2).T
        self._low, self._start, self._slope = low, start, (end - start) / (high - low)
        self._curved = [(i, np.array([*t]), np.array([*t.values()])) for i, t in enumerate(tables) if len(t) > 2]

    def __call__(self, values: np.ndarray) -> list[Any]:
        """Return positions in [0, 1] for float64 values in their units, shape ``(..., P)``, as nested lists."""
        raws = np.clip(self._start + (values - self._low) * self._slope, 0.0, 1.0)
        for place, known_values, known_raws in self._curved:
            raws[..., place] = np.interp(values[..., place], known_values, known_raws)
        return raws.tolist()


def _release(attributes: dict[str, Any]) -> None:
    """Free the live plugins among the attributes of an effect that is no longer used."""
    with _quiet():
        attributes.clear()


@functools.cache
def describe(name: str, sample_rate: int, channels: int) -> Description:
    """Load a plugin once and return its description; the errors are those of :func:`controls`."""
    with _quiet():
        return _describe(name, sample_rate, channels)


def _describe(name: str, sample_rate: int, channels: int) -> Description:
    location, _, plugin_name = name.partition("#")
    path = _find(location)
    plugin = _load(path, plugin_name or None)
    if not plugin.is_effect:
        raise EffectError(f"vst3:{name} is an instrument: it takes no audio")
    entries = _entries(name, plugin)
    plugin_channels = _plugin_channels(name, plugin, sample_rate, channels)
    clears_audio = plugin._reload_type == ReloadType.ClearsAudioOnReset
    reset_is_exact = clears_audio and _repeats(plugin, plugin_channels, sample_rate)
    return Description(path, plugin_name or None, plugin_channels, reset_is_exact, entries)


def _repeats(plugin: Any, channels: int, sample_rate: int) -> bool:
    """Return whether a plugin renders noise twice to the same bits, with a reset before each time.

    pedalboard's own test, at loading, uses other noise every time, and now and then misses what ZamTube keeps.
    """
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (channels, sample_rate // 4)).astype(np.float32)
    once, twice = (plugin.process(noise, sample_rate, BLOCK_SAMPLES, reset=True) for _ in range(2))
    return np.array_equal(once, twice)


def _plugin_channels(name: str, plugin: Any, sample_rate: int, channels: int) -> int:
    tried = [1, 2] if channels == 1 else [channels, 1]
    for count in tried:
        try:
            plugin.process(np.zeros((count, 64), dtype=np.float32), sample_rate, reset=False)
            return count
        except ValueError as error:
            reason = str(error)  # the error itself would keep the plugin alive, by its traceback
    raise EffectError(f"vst3:{name} takes neither {tried[0]} nor {tried[1]} channels: {reason}")


def _entries(name: str, plugin: Any) -> dict[str, Entry]:
    parameters = native_parameters(plugin)
    keys = [to_python_parameter_name(parameter) or "" for parameter in parameters]
    described = plugin.parameters
    entries = {
        key: _entry(key, index, parameter, described[key])
        for index, (key, parameter) in enumerate(zip(keys, parameters))
        if key in described and parameter.is_automatable and not _NOT_CONTROLS.search(parameter.name)
        if len(described[key].ranges) > 1
    }
    if twice := [key for key, count in Counter(keys).items() if count > 1 and key in entries]:
        raise EffectError(f"vst3:{name} has two parameters '{twice[0]}', and no way to tell them apart")
    # The cached parameters refer to the plugin, and keep it alive until the garbage is collected.
    plugin.__python_parameter_cache__.clear()
    return entries


def _entry(key: str, index: int, parameter: Any, described: Any) -> Entry:
    values = list(described.ranges.values())
    # A value that is displayed over a range of positions is rounded: it is in the middle, except at the ends.
    raws = [(start + end - RAW_STEP) / 2 for start, end in described.ranges]
    raws[0], raws[-1] = 0.0, 1.0
    trainable = parameter.num_steps > CONTINUOUS_STEPS
    numbers = _numbers(values, raws) if described.type is float else None

    is_switch = described.type is bool or (numbers and [*numbers] == [0.0, 1.0] and not trainable)
    if is_switch or (not numbers and not trainable):
        kind = bool if is_switch else str
        table: Table = {kind(value): raw for value, raw in zip(values, raws)}
        default = min(table, key=lambda value: abs(table[value] - parameter.raw_value))
        choices = () if is_switch else tuple(table)
        return Entry(Control(key, default, trainable=False, choices=choices), index, table)

    # If a plugin displays no numbers, or displays them out of order, the raw position is the value.
    table = numbers or {0.0: 0.0, 1.0: 1.0}
    unit = (described.label or "").strip() if numbers else ""
    unit = _UNITS.get(unit.lower(), unit)
    low, high = min(table), max(table)
    is_log = unit in ("Hz", "kHz", "ms", "s") and low > 0 and high / low >= LOG_RATIO
    by_raw = np.array(sorted((raw, value) for value, raw in table.items()))
    default = float(np.interp(parameter.raw_value, *by_raw.T))
    # Raw positions are float32: digits beyond their precision are meaningless.
    default = min(max(round(default, 6 - math.ceil(math.log10(high - low))), low), high)
    control = Control(key, default, low, high, unit, "log" if is_log else "linear", low, high, trainable=trainable)
    return Entry(control, index, table)


def _numbers(values: Sequence[float], raws: Sequence[float]) -> Table | None:
    """Return the positions of numbers, ascending: only the ends of a linear scale, None if out of order."""
    finite = [(value, raw) for value, raw in zip(values, raws) if math.isfinite(value)]
    shown, positions = np.array(sorted(finite)).reshape(-1, 2).T
    steps = np.diff(positions)
    if not len(steps) or np.any(np.diff(shown) == 0) or not (np.all(steps > 0) or np.all(steps < 0)):
        return None
    line = np.interp(shown, shown[[0, -1]], positions[[0, -1]])
    if np.abs(positions - line).max() <= np.abs(steps).max() / 2:
        shown, positions = shown[[0, -1]], positions[[0, -1]]
    return dict(zip(shown.tolist(), positions.tolist()))


def installed() -> dict[str, str]:
    """Return the paths of all installed plugins by name; on the main thread."""
    _check_main_thread()
    formats = [getattr(pedalboard, name, None) for name in ("AudioUnitPlugin", "VST3Plugin")]
    paths = [path for plugins in formats if plugins for path in plugins.installed_plugins]
    for folder in filter(None, os.environ.get("VST3_PATH", "").split(os.pathsep)):
        paths += [str(path) for path in sorted(Path(folder).rglob("*.vst3"))]
    return {Path(path).stem: path for path in paths}


def _find(location: str) -> str:
    path = Path(location)
    if path.suffix == ".component" and sys.platform != "darwin":
        raise EffectError(f"{location}: {_NO_AUDIO_UNITS}")
    if path.suffix in (".vst3", ".component") or len(path.parts) > 1:
        # Not Path.expanduser, which raises for an unknown user.
        path = Path(os.path.expanduser(path))
        if not path.exists():
            raise EffectError(f"there is no plugin at {location}")
        return str(path)
    paths = installed()
    if location not in paths:
        known = nearest(location, paths) if paths else " (there are none)"
        is_zam = location.lower().startswith("zam")
        install = "; on Debian and Ubuntu, install it with `apt-get install zam-plugins`" if is_zam else ""
        raise EffectError(f"no plugin '{location}' is installed{known}{install}")
    return paths[location]


def _load(path: str, plugin_name: str | None) -> Any:
    _check_main_thread()
    is_enabled = gc.isenabled()
    gc.disable()
    try:
        with _quiet():
            return pedalboard.load_plugin(path, plugin_name=plugin_name)
    except ImportError as error:
        raise EffectError(f"{path} is not a plugin that can be loaded here: {error}") from None
    except ValueError as error:
        raise EffectError(f"{path}: name one plugin of the file as {path}#Name: {error}") from None
    finally:
        if is_enabled:
            gc.enable()
        # A second wrapper, in a cycle with its parameters, would keep the plugin alive until a later collection.
        gc.collect(0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discard what plugins print on standard error, such as DPF's warnings of itself, unless the body raises.

    Only on the main thread, since the stream belongs to all: two threads would not restore it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with tempfile.TemporaryFile() as printed, open(os.dup(2), "wb") as terminal:
        os.dup2(printed.fileno(), 2)
        try:
            yield
        except BaseException:
            printed.seek(0)
            terminal.write(printed.read())
            raise
        finally:
            os.dup2(terminal.fileno(), 2)


def _load_with(description: Description, values: Mapping[str, Any]) -> LoadedPlugin:
    plugin = _load(description.path, description.plugin_name)
    parameters = native_parameters(plugin)
    places = {}
    for name, value in values.items():
        _, index, table = description.entries[name]
        position = table[value] if value in table else Positions([table])(np.array([value], dtype=np.float64))[0]
        parameters[index].raw_value = position
        places[name] = (index, position)
    return LoadedPlugin(description.path, plugin, places)


def _check_main_thread() -> None:
    if threading.current_thread() is not threading.main_thread():
        raise EffectError("plugins can be loaded on the main thread only: build the chain there")


# The private API of pedalboard that is used, in this file only: `pedalboard._pedalboard.to_python_parameter_name`, and
# three attributes of external plugins: `_parameters`, `_reload_type` and `__python_parameter_cache__`.


def native_parameters(plugin: Any) -> list[Any]:
    """Return the parameters of a pedalboard plugin in its order, with ``raw_value`` and ``string_value``."""
    return plugin._parameters


def _set_reload_type(plugin: Any, reload_type: ReloadType) -> None:
    # pedalboard's own __setattr__ would first read all parameters again, for 0.1 s and 7 MB.
    object.__setattr__(plugin, "_reload_type", reload_type)
