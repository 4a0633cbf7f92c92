"""The host of LV2 plugins, through liblilv: ``lv2:http://calf.sourceforge.net/plugins/MultibandCompressor``.

Controls are named by the symbols of their ports; ranges, defaults and units are what a plugin's metadata
say. liblilv finds and loads plugins, and from then on their functions are called directly. What is true
of LV2 plugins, and what we do about it:

* a plugin that is activated again still knows something of what it heard: a restart is a new instance;
* many glide from their defaults, or set themselves up while they render their first block: an instance is
  made when a stream's first block is there, with its values, and renders ``BLOCK_SAMPLES`` of silence first;
* some work on whole blocks (LSP's limiter), so that blocks of another length give another output: longer
  blocks are rendered in pieces of ``BLOCK_SAMPLES``, and frames of a multiple of it equal the whole;
* liblilv must not be used by two threads at once: plugins are loaded on the main thread. Instances are made
  in any thread, but one at a time, since they may share what their library holds.

Metadata do not tell all: which controls do nothing to the sound, which ones glide (Calf's equalizers climb to
their frequencies from 0, by about 1 Hz a sample), or delays that go unreported (Calf's limiter: its attack).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import itertools
import math
import os
import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from ctypes import CFUNCTYPE, POINTER, c_bool, c_char_p, c_double, c_float, c_int32, c_uint32, c_void_p
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from dfx.effects.effect import Control, Effect, EffectError, Recipe, RenderError
from dfx.errors import nearest

BLOCK_SAMPLES = 1024
"""The longest block that a plugin is given at once."""


def controls(name: str, sample_rate: int, channels: int) -> dict[str, Control]:
    """The control inputs of the plugin of URI ``name``, by symbol.

    Switches, modes, whole numbers and controls without a range cannot be trained. A mode is set to one of
    its names, or to the number behind it.

    Raises:
        EffectError: if liblilv or the plugin is not installed, or if the plugin is no effect, does not fit
            ``channels``, or requires of its host what this one does not have.
    """
    plugin = _plugin(name)
    _instances(plugin, channels)
    return {port.symbol: port.control_at(sample_rate) for port in plugin.ports if port.control}


def build(recipes: Sequence[Recipe], sample_rate: int, channels: int) -> list[tuple[Effect, int]]:
    """A live effect for each recipe, each with its number of trained parameters."""
    return [(Lv2Effect(recipe, sample_rate, channels), len(recipe.parameters)) for recipe in recipes]


def list_plugins() -> dict[str, str]:
    """The names of all installed plugins that this host can use as effects, by URI."""
    names = {}
    for uri in _lilv().uris():
        try:
            plugin = _plugin(uri)
            _instances(plugin, channels=1)
        except EffectError:
            continue
        names[uri] = plugin.name
    return names


def plugin_name(uri: str) -> str:
    """What a plugin calls itself."""
    return _plugin(uri).name


def port_value(name: str, symbol: str, value: Any, sample_rate: int, channels: int) -> float:
    """The number that a control's port is set to for a value as it may stand in a config."""
    return float(_number(controls(name, sample_rate, channels)[symbol], value))


class Lv2Effect(Effect):
    """One plugin: one instance, or of a mono plugin one for every channel."""

    def __init__(self, recipe: Recipe, sample_rate: int, channels: int) -> None:
        plugin = _plugin(recipe.effect)
        self._library = _library(recipe.effect, sample_rate)
        self._channels = channels
        self._latency_port = plugin.latency_port

        # A float for every port: those that are no controls waste theirs, and indices stay simple.
        self._values = np.zeros(len(plugin.ports), dtype=np.float32)
        indices = {port.symbol: index for index, port in enumerate(plugin.ports)}
        for symbol, control in controls(recipe.effect, sample_rate, channels).items():
            self._values[indices[symbol]] = _number(control, recipe.fixed.get(symbol, control.default))
        self._trained = np.array([indices[parameter.name] for parameter in recipe.parameters], dtype=np.intp)
        self._values[self._trained] = [parameter.default for parameter in recipe.parameters]

        count = _instances(plugin, channels)
        self._inputs = np.zeros((count * len(plugin.inputs), BLOCK_SAMPLES), dtype=np.float32)
        self._outputs = np.zeros((count * len(plugin.outputs), BLOCK_SAMPLES), dtype=np.float32)
        self._event_outputs: list[tuple[np.ndarray, np.ndarray]] = []
        self._buffers = [self._connect(plugin, instance) for instance in range(count)]
        self._running: list[_Instance] = []
        # Also on the main thread, and before training begins: a plugin that refuses to run.
        self._start()
        self.latency_samples = self._reported_latency()
        self.restart()

    def render(self, audio: np.ndarray, values: np.ndarray) -> np.ndarray:
        self._values[self._trained] = values
        if not self._running:
            self._start()
        output = np.empty_like(audio)
        for start in range(0, audio.shape[1], BLOCK_SAMPLES):
            piece = audio[:, start : start + BLOCK_SAMPLES]
            samples = piece.shape[1]
            # A stereo plugin hears mono audio on both sides, and we hear its left side. (The paper's code
            # left the right side silent, which is the same for Calf's plugins: they follow the louder one.)
            self._inputs[:, :samples] = piece
            self._run(samples)
            output[:, start : start + samples] = self._outputs[: self._channels, :samples]
        latency = self._reported_latency()
        if latency != self.latency_samples:
            raise RenderError(
                f"its latency went from {self.latency_samples} to {latency} samples: what sets it, such as a "
                "look-ahead, cannot be trained; put it under `fixed`"
            )
        return output

    def restart(self) -> None:
        self._running = []

    def _start(self) -> None:
        self._running = [_Instance(self._library, buffers) for buffers in self._buffers]
        self._inputs[:] = 0
        self._run(BLOCK_SAMPLES)

    def _run(self, samples: int) -> None:
        for events, header in self._event_outputs:
            events[:2] = header
        for instance in self._running:
            instance.run(samples)

    def _reported_latency(self) -> int:
        return 0 if self._latency_port is None else round(float(self._values[self._latency_port]))

    def _connect(self, plugin: Plugin, instance: int) -> list[np.ndarray | None]:
        """What each port of one instance reads or writes."""
        inputs = iter(self._inputs[instance * len(plugin.inputs) :])
        outputs = iter(self._outputs[instance * len(plugin.outputs) :])
        buffers: list[np.ndarray | None] = []
        for index, port in enumerate(plugin.ports):
            buffer = None
            if port.kind == "value":
                buffer = self._values[index:]
            elif port.kind == "audio":
                buffer = next(inputs if port.is_input else outputs)
            elif port.kind == "unheard":
                buffer = np.zeros(BLOCK_SAMPLES, dtype=np.float32)
            elif port.kind == "events":
                # A header (size, type, time unit, padding), and in an output the room to write in.
                buffer = np.zeros(4 + port.event_bytes // 4, dtype=np.uint32)
                if port.is_input:
                    buffer[:2] = 8, _urid("atom:Sequence")
                else:
                    buffer[:2] = port.event_bytes, _urid("atom:Chunk")
                    self._event_outputs.append((buffer, buffer[:2].copy()))
            buffers.append(buffer)
        return buffers


def _instances(plugin: Plugin, channels: int) -> int:
    """How many instances of a plugin it takes to render so many channels."""
    inputs, outputs = len(plugin.inputs), len(plugin.outputs)
    described = f"lv2:{plugin.uri} (audio inputs: {inputs}, outputs: {outputs})"
    if not inputs or not outputs:
        raise EffectError(f"{described} is no effect: an effect has both")
    if inputs == outputs == 1:
        return channels
    if inputs == outputs == 2 and channels <= 2:
        return 1
    raise EffectError(
        f"{described} cannot render {channels}-channel audio: mono plugins render any number of channels, "
        "stereo plugins one or two, others none"
    )


def _number(control: Control, value: Any) -> float:
    """What a port is set to for a value as it may stand in a config."""
    return next((point.number for point in control.choices if point == value), value)


# --- what the metadata say ---------------------------------------------------------------------------


class ScalePoint(str):
    """The name of a value of a mode. It equals the number too, so that a config may hold either."""

    number: float

    def __new__(cls, name: str, number: float) -> ScalePoint:
        point = super().__new__(cls, name)
        point.number = number
        return point

    def __eq__(self, other: object) -> bool:
        return str(self) == other or self.number == other

    __hash__ = str.__hash__


class Port(NamedTuple):
    """One port of a plugin.

    Args:
        kind: ``value``, ``audio``, ``unheard`` (side chains and control voltages, which are silent),
            ``events`` (of which there are none) or ``unconnected``.
        control: what an input of kind ``value`` controls.
        in_sample_rates: the control's numbers count sample rates.
        event_bytes: how much a buffer of events must hold.
    """

    symbol: str
    kind: str
    is_input: bool
    control: Control | None = None
    in_sample_rates: bool = False
    event_bytes: int = 0

    def control_at(self, sample_rate: int) -> Control:
        if not self.in_sample_rates:
            return self.control
        names = ("default", "low", "high", "minimum", "maximum")
        return replace(self.control, **{name: sample_rate * getattr(self.control, name) for name in names})


class Plugin(NamedTuple):
    """What the metadata say of one plugin."""

    uri: str
    name: str
    ports: tuple[Port, ...]
    latency_port: int | None

    @property
    def inputs(self) -> list[Port]:
        return [port for port in self.ports if port.kind == "audio" and port.is_input]

    @property
    def outputs(self) -> list[Port]:
        return [port for port in self.ports if port.kind == "audio" and not port.is_input]


_EXTENSIONS = "http://lv2plug.in/ns/ext/"
_PREFIXES = {
    "atom": f"{_EXTENSIONS}atom#",
    "bufsz": f"{_EXTENSIONS}buf-size#",
    "lv2": "http://lv2plug.in/ns/lv2core#",
    "opts": f"{_EXTENSIONS}options#",
    "param": f"{_EXTENSIONS}parameters#",
    "pg": f"{_EXTENSIONS}port-groups#",
    "pprops": f"{_EXTENSIONS}port-props#",
    "rsz": f"{_EXTENSIONS}resize-port#",
    "units": "http://lv2plug.in/ns/extensions/units#",
    "urid": f"{_EXTENSIONS}urid#",
}

_UNITS = {
    "bar": "bars", "beat": "beats", "bpm": "BPM", "cent": "ct", "coef": "", "db": "dB", "degree": "deg",
    "frame": "samples", "hz": "Hz", "khz": "kHz", "mhz": "MHz", "pc": "%", "semitone12TET": "st",
}  # fmt: skip
"""Units whose name in LV2 is not what stands in tables."""

_NOT_TRAINABLE = ("lv2:toggled", "lv2:integer", "lv2:enumeration", "pprops:trigger", "pprops:notAutomatic")
_SET_BY_HOSTS = ("lv2:enabled", "lv2:freeWheeling", "lv2:latency")

_PACKAGES = {
    "//calf.sourceforge.net/": "calf-plugins",
    "//invadarecords.com/": "invada-studio-plugins-lv2",
    "//lsp-plug.in/": "lsp-plugins-lv2",
    "zamaudio": "zam-plugins",
}
"""The Debian packages of the plugins that our configs name, by a part of their URIs."""


def _uri(name: str) -> str:
    prefix, _, rest = name.partition(":")
    return _PREFIXES[prefix] + rest


def _plugin(uri: str) -> Plugin:
    return _plugin_of(uri, os.getpid())


def _library(uri: str, sample_rate: int) -> _Library:
    return _library_of(uri, sample_rate, os.getpid())


def _lilv() -> _Lilv:
    if threading.current_thread() is not threading.main_thread():
        raise EffectError("LV2 plugins are found and loaded on the main thread: build the chain there")
    return _lilv_of(os.getpid())


# What liblilv gave belongs to one process: a fork may come while another thread is inside of it.
@functools.cache
def _plugin_of(uri: str, process: int) -> Plugin:
    return _lilv().describe(uri)


@functools.cache
def _library_of(uri: str, sample_rate: int, process: int) -> _Library:
    return _Library(_lilv(), uri, sample_rate)


@functools.cache
def _lilv_of(process: int) -> _Lilv:
    return _Lilv()


class _Lilv:
    """liblilv, and what it read of all installed plugins. ``self("x", ...)`` calls ``lilv_x``."""

    def __init__(self) -> None:
        self._functions = _load_lilv()
        self._nodes: dict[str, int] = {}
        self._world = self("world_new")
        self("world_load_all", self._world)
        self._plugins = self("world_get_all_plugins", self._world)

    def __call__(self, function: str, *arguments: Any) -> Any:
        return getattr(self._functions, f"lilv_{function}")(*arguments)

    def uris(self) -> list[str]:
        """The URIs of all installed plugins, of whatever kind."""
        return [self.text(self("plugin_get_uri", plugin)) for plugin in self.each("plugins", self._plugins)]

    def find(self, uri: str) -> int:
        """The address of a plugin."""
        plugin = self("plugins_get_by_uri", self._plugins, self.node(uri))
        if plugin:
            return plugin
        known = self.uris()
        missing = [
            package for part, package in _PACKAGES.items() if part in uri and not any(part in other for other in known)
        ]
        install = f"; on Debian and Ubuntu, `apt-get install {missing[0]}` brings it" if missing else ""
        raise EffectError(f"no LV2 plugin {uri} is installed{nearest(uri, known) if known else ''}{install}")

    def bundle(self, plugin: int) -> bytes:
        """The path of a plugin's directory."""
        uri = self.text(self("plugin_get_bundle_uri", plugin))
        return os.fsencode(url2pathname(urlsplit(uri).path))

    def describe(self, uri: str) -> Plugin:
        """All that we need to know of a plugin."""
        plugin = self.find(uri)
        required = self("plugin_get_required_features", plugin)
        lacking = {self.text(node) for node in self.each("nodes", required)} - set(map(_uri, _FEATURES))
        self("nodes_free", required)
        if lacking:
            raise EffectError(f"lv2:{uri} requires what this host does not offer: {', '.join(lacking)}")

        count = self("plugin_get_num_ports", plugin)
        ranges = np.full((3, count), np.nan, dtype=np.float32)
        self("plugin_get_port_ranges_float", plugin, *(row.ctypes.data for row in ranges))
        ports = tuple(_PortReader(self, plugin, index).port(*ranges[:, index]) for index in range(count))
        for symbol, ports_of_it in Counter(port.symbol for port in ports).items():
            if ports_of_it > 1:
                raise EffectError(f"lv2:{uri} has {ports_of_it} ports with the symbol '{symbol}'")
        unknown = [port.symbol for port in ports if port.kind == "unknown"]
        if unknown:
            raise EffectError(f"lv2:{uri} has ports of a kind unknown to this host: {', '.join(unknown)}")
        has_latency = self("plugin_has_latency", plugin)
        latency_port = self("plugin_get_latency_port_index", plugin) if has_latency else None
        return Plugin(uri, self.take(self("plugin_get_name", plugin)), ports, latency_port)

    def node(self, uri: str) -> int:
        """A URI as liblilv wants it."""
        if uri not in self._nodes:
            self._nodes[uri] = self("new_uri", self._world, uri.encode())
        return self._nodes[uri]

    def each(self, kind: str, collection: int | None) -> Iterator[int]:
        """The members of one of liblilv's collections: ``plugins``, ``nodes`` or ``scale_points``."""
        iterator = self(f"{kind}_begin", collection)
        while not self(f"{kind}_is_end", collection, iterator):
            yield self(f"{kind}_get", collection, iterator)
            iterator = self(f"{kind}_next", collection, iterator)

    def text(self, node: int) -> str:
        """What a node says that liblilv keeps."""
        return self("node_as_string", node).decode()

    def take(self, node: int | None) -> str | None:
        """What a node says that is ours to free."""
        if not node:
            return None
        text = self.text(node)
        self("node_free", node)
        return text

    def world_get(self, subject: int, predicate: str) -> int | None:
        return self("world_get", self._world, subject, self.node(_uri(predicate)), None)


class _PortReader:
    """Reads the metadata of one port."""

    def __init__(self, lilv: _Lilv, plugin: int, index: int) -> None:
        self._lilv = lilv
        self._plugin = plugin
        self._port = lilv("plugin_get_port_by_index", plugin, index)
        self._symbol = lilv.text(lilv("port_get_symbol", plugin, self._port))

    def port(self, minimum: np.float32, maximum: np.float32, default: np.float32) -> Port:
        is_input = self._is_a("lv2:InputPort")
        is_optional = self._has("lv2:connectionOptional")
        port = functools.partial(Port, self._symbol, is_input=is_input)
        if self._is_a("lv2:ControlPort"):
            if not is_input:
                return port(kind="value")
            control = self._control(_decimal(minimum), _decimal(maximum), _decimal(default))
            return port(kind="value", control=control, in_sample_rates=self._has("lv2:sampleRate"))
        if self._is_a("lv2:AudioPort"):
            is_side_chain = self._has("lv2:isSideChain") or self._get("pg:group", "pg:sideChainOf")
            # All that marks Calf's side chains is that they are optional and no channel.
            is_no_channel = is_optional and not self._get("lv2:designation")
            return port(kind="unheard" if is_side_chain or is_no_channel else "audio")
        if self._is_a("lv2:CVPort"):
            return port(kind="unheard")
        if is_optional:
            return port(kind="unconnected")
        if self._is_a("atom:AtomPort"):
            return port(kind="events", event_bytes=int(self._get("rsz:minimumSize") or 4096))
        return port(kind="unknown")

    def _control(self, minimum: float, maximum: float, default: float) -> Control:
        has_range = math.isfinite(minimum) and math.isfinite(maximum) and minimum < maximum
        if math.isnan(default):
            default = minimum if has_range else 0.0
        points = self._scale_points() if self._has("lv2:enumeration") else ()
        if self._has("lv2:toggled"):
            default = default > 0
        is_ratio = self._has("pprops:logarithmic") and minimum > 0
        return Control(
            self._symbol,
            next((point for point in points if point == default), default),
            low=minimum,
            high=maximum,
            unit=self._unit(),
            scale="log" if is_ratio else "linear",
            minimum=-math.inf if math.isnan(minimum) else minimum,
            maximum=math.inf if math.isnan(maximum) else maximum,
            trainable=has_range
            and not any(self._has(name) for name in _NOT_TRAINABLE)
            and self._get("lv2:designation") not in map(_uri, _SET_BY_HOSTS),
            choices=points,
        )

    def _unit(self) -> str:
        unit = self._get("units:unit") or ""
        if unit.startswith(_PREFIXES["units"]):
            name = unit[len(_PREFIXES["units"]) :]
            return _UNITS.get(name, name)
        return self._get("units:unit", "units:symbol") or ""

    def _scale_points(self) -> tuple[ScalePoint, ...]:
        lilv = self._lilv
        collection = lilv("port_get_scale_points", self._plugin, self._port)
        points = [
            ScalePoint(
                lilv.text(lilv("scale_point_get_label", point)),
                _decimal(lilv("node_as_float", lilv("scale_point_get_value", point))),
            )
            for point in lilv.each("scale_points", collection)
        ]
        lilv("scale_points_free", collection)
        return tuple(sorted(points, key=lambda point: point.number))

    def _is_a(self, kind: str) -> bool:
        return self._lilv("port_is_a", self._plugin, self._port, self._lilv.node(_uri(kind)))

    def _has(self, name: str) -> bool:
        return self._lilv("port_has_property", self._plugin, self._port, self._lilv.node(_uri(name)))

    def _get(self, name: str, of_it: str | None = None) -> str | None:
        """What stands under ``name``, or under ``of_it`` of that."""
        node = self._lilv("port_get", self._plugin, self._port, self._lilv.node(_uri(name)))
        if not node or of_it is None:
            return self._lilv.take(node)
        found = self._lilv.world_get(node, of_it)
        self._lilv("node_free", node)
        return self._lilv.take(found)


def _decimal(number: float) -> float:
    """The number that stands in the metadata, where liblilv has made it a float32: 0.1 is 0.1 again."""
    return float(str(np.float32(number)))


def _load_lilv() -> ctypes.CDLL:
    for name in _library_names():
        try:
            library = ctypes.CDLL(name)
            break
        except OSError:
            continue
    else:
        raise EffectError(
            "LV2 plugins need the library liblilv: `apt-get install liblilv-0-0` on Debian and Ubuntu, "
            "`brew install lilv` on macOS"
        )
    for function, (result, *arguments) in _LILV.items():
        getattr(library, f"lilv_{function}").restype = result
        getattr(library, f"lilv_{function}").argtypes = arguments
    return library


def _library_names() -> Iterator[str]:
    yield "liblilv-0.so.0"
    yield "/opt/homebrew/lib/liblilv-0.dylib"
    yield ctypes.util.find_library("lilv-0") or "lilv-0.dll"


_P = c_void_p
_LILV: dict[str, tuple[Any, ...]] = {
    "new_uri": (_P, _P, c_char_p),
    "node_as_float": (c_float, _P),
    "node_as_string": (c_char_p, _P),
    "node_free": (None, _P),
    "nodes_free": (None, _P),
    "plugin_get_bundle_uri": (_P, _P),
    "plugin_get_latency_port_index": (c_uint32, _P),
    "plugin_get_name": (_P, _P),
    "plugin_get_num_ports": (c_uint32, _P),
    "plugin_get_port_by_index": (_P, _P, c_uint32),
    "plugin_get_port_ranges_float": (None, _P, _P, _P, _P),
    "plugin_get_required_features": (_P, _P),
    "plugin_get_uri": (_P, _P),
    "plugin_has_latency": (c_bool, _P),
    "plugin_instantiate": (_P, _P, c_double, _P),
    "plugins_get_by_uri": (_P, _P, _P),
    "port_get": (_P, _P, _P, _P),
    "port_get_scale_points": (_P, _P, _P),
    "port_get_symbol": (_P, _P, _P),
    "port_has_property": (c_bool, _P, _P, _P),
    "port_is_a": (c_bool, _P, _P, _P),
    "scale_point_get_label": (_P, _P),
    "scale_point_get_value": (_P, _P),
    "scale_points_free": (None, _P),
    "world_get": (_P, _P, _P, _P, _P),
    "world_get_all_plugins": (_P, _P),
    "world_load_all": (None, _P),
    "world_new": (_P,),
    **{f"{kind}_begin": (_P, _P) for kind in ("nodes", "plugins", "scale_points")},
    **{f"{kind}_get": (_P, _P, _P) for kind in ("nodes", "plugins", "scale_points")},
    **{f"{kind}_is_end": (c_bool, _P, _P) for kind in ("nodes", "plugins", "scale_points")},
    **{f"{kind}_next": (_P, _P, _P) for kind in ("nodes", "plugins", "scale_points")},
}
"""The functions of liblilv that we call: the type of the result, then of the arguments."""


# --- what runs ---------------------------------------------------------------------------------------


class _LilvInstance(ctypes.Structure):
    _fields_ = [("descriptor", c_void_p), ("handle", c_void_p), ("private", c_void_p)]


class _Descriptor(ctypes.Structure):
    """``LV2_Descriptor``: the functions of a plugin."""

    _fields_ = [
        ("uri", c_char_p),
        ("instantiate", CFUNCTYPE(_P, _P, c_double, c_char_p, _P)),
        ("connect_port", CFUNCTYPE(None, _P, c_uint32, _P)),
        ("activate", CFUNCTYPE(None, _P)),
        ("run", CFUNCTYPE(None, _P, c_uint32)),
        ("deactivate", CFUNCTYPE(None, _P)),
        ("cleanup", CFUNCTYPE(None, _P)),
    ]


class _Feature(ctypes.Structure):
    _fields_ = [("uri", c_char_p), ("data", c_void_p)]


class _UridFeature(ctypes.Structure):
    _fields_ = [("handle", c_void_p), ("function", c_void_p)]


class _Option(ctypes.Structure):
    _fields_ = [
        ("context", c_uint32),
        ("subject", c_uint32),
        ("key", c_uint32),
        ("size", c_uint32),
        ("type", c_uint32),
        ("value", c_void_p),
    ]


_making = threading.RLock()


class _Library:
    """A plugin's functions, ready to make instances for one sample rate."""

    def __init__(self, lilv: _Lilv, uri: str, sample_rate: int) -> None:
        self.uri = uri
        self.sample_rate = sample_rate
        self._features = _features(sample_rate)
        plugin = lilv.find(uri)
        self._bundle = lilv.bundle(plugin)
        # liblilv unloads a library with its last instance: this one is kept for as long as the process runs.
        with _making:
            first = lilv("plugin_instantiate", plugin, sample_rate, self._features)
        if not first:
            raise self._refused()
        self._descriptor = _LilvInstance.from_address(first).descriptor
        # Every look at a function pointer of a structure makes a new object: they are kept.
        functions = _Descriptor.from_address(self._descriptor)
        self._instantiate = functions.instantiate
        self._activate = functions.activate
        self._deactivate = functions.deactivate
        self._cleanup = functions.cleanup
        self.connect_port = functions.connect_port
        self.run = functions.run

    def make(self) -> int:
        """A new instance."""
        handle = self._instantiate(self._descriptor, self.sample_rate, self._bundle, self._features)
        if not handle:
            raise self._refused()
        return handle

    def activate(self, handle: int) -> None:
        if self._activate:
            self._activate(handle)

    def free(self, handle: int, buffers: Sequence[np.ndarray | None]) -> None:
        """Frees an instance, whose buffers must live until then."""
        with _making:
            if self._deactivate:
                self._deactivate(handle)
            self._cleanup(handle)

    def _refused(self) -> EffectError:
        return EffectError(f"lv2:{self.uri} could not be loaded, or refused to run at {self.sample_rate} Hz")


class _Instance:
    """One live instance; it is freed with the last reference to it."""

    def __init__(self, library: _Library, buffers: Sequence[np.ndarray | None]) -> None:
        with _making:
            handle = library.make()
            # Not when Python exits: the system frees all, and a plugin may be running in another thread.
            weakref.finalize(self, library.free, handle, buffers).atexit = False
            for index, buffer in enumerate(buffers):
                library.connect_port(handle, index, None if buffer is None else buffer.ctypes.data)
            library.activate(handle)
        self.run = functools.partial(library.run, handle)


_FEATURES = (
    "urid:map",
    "urid:unmap",
    "opts:options",
    "bufsz:boundedBlockLength",
    "lv2:hardRTCapable",
    "lv2:inPlaceBroken",
    "lv2:isLive",
)
"""What plugins may require of us. The last three ask nothing of a host with buffers of its own."""


@functools.cache
def _features(sample_rate: int) -> ctypes.Array:
    """``LV2_Feature`` pointers up to a null, as plugins are given them."""
    blocks = {"minBlockLength": 1, "maxBlockLength": BLOCK_SAMPLES, "nominalBlockLength": BLOCK_SAMPLES}
    values = [(f"bufsz:{name}", "atom:Int", c_int32(samples)) for name, samples in blocks.items()]
    values.append(("param:sampleRate", "atom:Float", c_float(sample_rate)))
    options = [_Option(0, 0, _urid(key), 4, _urid(kind), ctypes.addressof(n)) for key, kind, n in values]
    data = {
        "urid:map": _UridFeature(None, ctypes.cast(_map, c_void_p)),
        "urid:unmap": _UridFeature(None, ctypes.cast(_unmap, c_void_p)),
        "opts:options": (_Option * (len(options) + 1))(*options),
    }
    features = [
        _Feature(_uri(name).encode(), ctypes.addressof(data[name]) if name in data else None) for name in _FEATURES
    ]
    pointers = (POINTER(_Feature) * (len(features) + 1))(*map(ctypes.pointer, features))
    pointers.kept_alive = values, data
    return pointers


_urids: dict[bytes, int] = {}
_unused_urids = itertools.count(1)


@CFUNCTYPE(c_uint32, c_void_p, c_char_p)
def _map(handle: None, uri: bytes) -> int:
    # One operation on the dictionary: plugins may ask from any thread.
    return _urids.setdefault(uri, next(_unused_urids))


@CFUNCTYPE(c_void_p, c_void_p, c_uint32)
def _unmap(handle: None, urid: int) -> int | None:
    uri = next((uri for uri, known in list(_urids.items()) if known == urid), None)
    return ctypes.cast(c_char_p(uri), c_void_p).value


def _urid(name: str) -> int:
    return _map(None, _uri(name).encode())
