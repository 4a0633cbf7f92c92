"""The binding of LV2: plugins and their metadata through liblilv, and instances through LV2's own C interface.

liblilv must not be used by two threads at once: plugins are found and loaded on the main thread. Instances are
created in any thread, but one at a time, since they may share global state of their library.
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

from dfx.effects.effect import Control, EffectError
from dfx.errors import nearest

BLOCK_SAMPLES = 1024
"""The longest block that an instance may be given at once."""

_EXTENSIONS = "http://lv2plug.in/ns/ext/"
PREFIXES = {
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
"""The vocabularies of LV2 by the prefixes that are used here."""

_FREE_FEATURES = ("lv2:hardRTCapable", "lv2:inPlaceBroken", "lv2:isLive")  # free for a host with separate buffers
_FEATURES = ("urid:map", "urid:unmap", "opts:options", "bufsz:boundedBlockLength", *_FREE_FEATURES)
"""Features that plugins may require."""

_NOT_TRAINABLE = ("lv2:toggled", "lv2:integer", "lv2:enumeration", "pprops:trigger", "pprops:notAutomatic")
_SET_BY_HOSTS = ("lv2:enabled", "lv2:freeWheeling", "lv2:latency")

_UNITS = {
    "bar": "bars", "beat": "beats", "bpm": "BPM", "cent": "ct", "coef": "", "db": "dB", "degree": "deg",
    "frame": "samples", "hz": "Hz", "khz": "kHz", "mhz": "MHz", "pc": "%", "semitone12TET": "st",
}  # fmt: skip
"""Symbols of units, by their names in LV2, where the two differ."""

_PACKAGES = {
    "//calf.sourceforge.net/": "calf-plugins",
    "//invadarecords.com/": "invada-studio-plugins-lv2",
    "//lsp-plug.in/": "lsp-plugins-lv2",
    "zamaudio": "zam-plugins",
}
"""Debian packages of plugins that the configs name, by a part of their URIs."""

_P = c_void_p
_KINDS = ("nodes", "plugins", "scale_points")
_FUNCTIONS: dict[tuple[Any, ...], list[str]] = {
    (_P,): ["world_new"],
    (_P, _P): [
        *("plugin_get_bundle_uri", "plugin_get_name", "plugin_get_required_features", "plugin_get_uri"),
        *("scale_point_get_label", "scale_point_get_value", "world_get_all_plugins"),
        *(f"{kind}_begin" for kind in _KINDS),
    ],
    (_P, _P, _P): ["plugins_get_by_uri", "port_get_scale_points", "port_get_symbol"]
    + [f"{kind}_{function}" for kind in _KINDS for function in ("get", "next")],
    (_P, _P, _P, _P): ["port_get"],
    (_P, _P, _P, _P, _P): ["world_get"],
    (_P, _P, c_char_p): ["new_uri"],
    (_P, _P, c_uint32): ["plugin_get_port_by_index"],
    (_P, _P, c_double, _P): ["plugin_instantiate"],
    (c_char_p, _P): ["node_as_string"],
    (c_float, _P): ["node_as_float"],
    (c_uint32, _P): ["plugin_get_latency_port_index", "plugin_get_num_ports"],
    (c_bool, _P): ["plugin_has_latency"],
    (c_bool, _P, _P): [f"{kind}_is_end" for kind in _KINDS],
    (c_bool, _P, _P, _P): ["port_has_property", "port_is_a"],
    (None, _P): ["node_free", "nodes_free", "scale_points_free", "world_load_all"],
    (None, _P, _P, _P, _P): ["plugin_get_port_ranges_float"],
}
"""The functions of liblilv that are called, by the types of the result and of the arguments."""


@functools.cache
def plugin(uri: str) -> Plugin:
    """Return the description of an installed plugin; on the main thread.

    Raises:
        EffectError: if liblilv or the plugin is not installed, or if the host lacks a feature that it requires.
    """
    return _world().describe(uri)


@functools.cache
def library(uri: str, sample_rate: int) -> Library:
    """Load the library of a plugin; on the main thread.

    Raises:
        EffectError: as :func:`plugin`, or if the plugin cannot be loaded, or refuses the sample rate.
    """
    return Library(_world(), uri, sample_rate)


def uris() -> list[str]:
    """Return the URIs of all installed plugins, instruments included; on the main thread."""
    return _world().uris()


def rescan() -> None:
    """Discard everything that liblilv has read, so that plugins are searched again (``LV2_PATH`` may change)."""
    for cached in (plugin, library, _cached_world):
        cached.cache_clear()


# Objects of liblilv belong to one process: a fork may happen while another thread is inside the library.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=rescan)


def urid(name: str) -> int:
    """Return the number of a prefixed name for plugins that map URIs to numbers (LV2's URID extension)."""
    return _map(None, _uri(name).encode())


def _uri(name: str) -> str:
    prefix, _, rest = name.partition(":")
    return PREFIXES[prefix] + rest


def _world() -> World:
    if threading.current_thread() is not threading.main_thread():
        raise EffectError("LV2 plugins are found and loaded on the main thread: build the chain there")
    return _cached_world()


def _load_lilv() -> ctypes.CDLL:
    for name in _library_names():
        try:
            loaded = ctypes.CDLL(name)
            break
        except OSError:
            continue
    else:
        raise EffectError(
            "LV2 plugins need the library liblilv: `apt-get install liblilv-0-0` on Debian and Ubuntu, "
            "`brew install lilv` on macOS"
        )
    for (result, *arguments), names in _FUNCTIONS.items():
        for name in names:
            getattr(loaded, f"lilv_{name}").restype = result
            getattr(loaded, f"lilv_{name}").argtypes = arguments
    return loaded


def _library_names() -> Iterator[str]:
    yield "liblilv-0.so.0"
    yield "/opt/homebrew/lib/liblilv-0.dylib"
    yield ctypes.util.find_library("lilv-0") or "lilv-0.dll"


# --- metadata ----------------------------------------------------------------------------------------


class ScalePoint(str):
    """The name of a setting of a mode. It also equals its number, so that a config may give either."""

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
        kind: ``control``, ``audio``, ``silent`` (side chains and control voltages, which get silence),
            ``events`` (which get none) or ``unconnected``.
        control: the description of an input of kind ``control``.
        in_sample_rates: the control's numbers are multiples of the sample rate.
        event_bytes: the capacity of a buffer of events.
    """

    symbol: str
    kind: str
    is_input: bool
    control: Control | None = None
    in_sample_rates: bool = False
    event_bytes: int = 0


class Plugin(NamedTuple):
    """The metadata of one plugin."""

    uri: str
    name: str
    ports: tuple[Port, ...]
    latency_port: int | None

    def count_audio(self, is_input: bool) -> int:
        """Return the number of audio inputs, without side chains, or of audio outputs."""
        return sum(port.kind == "audio" and port.is_input is is_input for port in self.ports)

    def controls(self, sample_rate: int) -> dict[str, Control]:
        """Return the controls, by symbol, with their ranges at a sample rate."""
        return {
            port.symbol: _scaled(port.control, sample_rate) if port.in_sample_rates else port.control
            for port in self.ports
            if port.control
        }


def _scaled(control: Control, factor: int) -> Control:
    names = ("default", "low", "high", "minimum", "maximum")
    return replace(control, **{name: factor * getattr(control, name) for name in names})


class World:
    """liblilv, and the metadata of all installed plugins. ``self("x", ...)`` calls ``lilv_x``."""

    def __init__(self) -> None:
        self._functions = _load_lilv()
        self._nodes: dict[str, int] = {}
        self._world = self("world_new")
        self("world_load_all", self._world)
        self._plugins = self("world_get_all_plugins", self._world)

    def __call__(self, function: str, *arguments: Any) -> Any:
        return getattr(self._functions, f"lilv_{function}")(*arguments)

    def uris(self) -> list[str]:
        """Return the URIs of all installed plugins, instruments included."""
        return [self.string(self("plugin_get_uri", plugin)) for plugin in self.members("plugins", self._plugins)]

    def find(self, uri: str) -> int:
        """Return the address of a plugin."""
        plugin = self("plugins_get_by_uri", self._plugins, self.uri_node(uri))
        if plugin:
            return plugin
        known = self.uris()
        all_known = " ".join(known)
        missing = [package for part, package in _PACKAGES.items() if part in uri and part not in all_known]
        install = f"; on Debian and Ubuntu, install it with `apt-get install {missing[0]}`" if missing else ""
        raise EffectError(f"no LV2 plugin {uri} is installed{nearest(uri, known) if known else ''}{install}")

    def bundle(self, plugin: int) -> bytes:
        """Return the path of a plugin's directory."""
        uri = self.string(self("plugin_get_bundle_uri", plugin))
        return os.fsencode(url2pathname(urlsplit(uri).path))

    def describe(self, uri: str) -> Plugin:
        """Read the metadata of a plugin and check that this host can run it."""
        plugin = self.find(uri)
        required = self("plugin_get_required_features", plugin)
        lacking = {self.string(node) for node in self.members("nodes", required)} - set(map(_uri, _FEATURES))
        self("nodes_free", required)
        if lacking:
            raise EffectError(f"lv2:{uri} requires features that this host lacks: {', '.join(lacking)}")

        count = self("plugin_get_num_ports", plugin)
        ranges = np.full((3, count), np.nan, dtype=np.float32)
        self("plugin_get_port_ranges_float", plugin, *(row.ctypes.data for row in ranges))
        ports = tuple(_PortReader(self, plugin, index).read(*ranges[:, index]) for index in range(count))
        for symbol, number in Counter(port.symbol for port in ports).items():
            if number > 1:
                raise EffectError(f"lv2:{uri} has {number} ports with the symbol '{symbol}'")
        unknown = [port.symbol for port in ports if port.kind == "unknown"]
        if unknown:
            raise EffectError(f"lv2:{uri} has ports of a kind unknown to this host: {', '.join(unknown)}")
        has_latency = self("plugin_has_latency", plugin)
        latency_port = self("plugin_get_latency_port_index", plugin) if has_latency else None
        return Plugin(uri, self.pop_string(self("plugin_get_name", plugin)) or uri, ports, latency_port)

    def uri_node(self, uri: str) -> int:
        """Return the address of liblilv's object for a URI."""
        if uri not in self._nodes:
            self._nodes[uri] = self("new_uri", self._world, uri.encode())
        return self._nodes[uri]

    def members(self, kind: str, collection: int | None) -> Iterator[int]:
        """Yield the members of one of liblilv's collections: ``plugins``, ``nodes`` or ``scale_points``."""
        iterator = self(f"{kind}_begin", collection)
        while not self(f"{kind}_is_end", collection, iterator):
            yield self(f"{kind}_get", collection, iterator)
            iterator = self(f"{kind}_next", collection, iterator)

    def string(self, node: int) -> str:
        """Return the string of a node that liblilv owns."""
        return self("node_as_string", node).decode()

    def pop_string(self, node: int | None) -> str | None:
        """Return the string of a node that the caller owns, and free the node."""
        if not node:
            return None
        text = self.string(node)
        self("node_free", node)
        return text

    def get_property(self, subject: int, predicate: str) -> int | None:
        """Return the node of a property of a node, for the caller to free."""
        return self("world_get", self._world, subject, self.uri_node(_uri(predicate)), None)


_cached_world = functools.cache(World)


class _PortReader:
    """Reads the metadata of one port."""

    def __init__(self, world: World, plugin: int, index: int) -> None:
        self._world = world
        self._plugin = plugin
        self._port = world("plugin_get_port_by_index", plugin, index)
        self._symbol = world.string(world("port_get_symbol", plugin, self._port))

    def read(self, minimum: float, maximum: float, default: float) -> Port:
        is_input = self._is_a("lv2:InputPort")
        is_optional = self._has("lv2:connectionOptional")
        port = functools.partial(Port, self._symbol, is_input=is_input)
        if self._is_a("lv2:ControlPort"):
            if not is_input:
                return port(kind="control")
            control = self._control(_decimal(minimum), _decimal(maximum), _decimal(default))
            return port(kind="control", control=control, in_sample_rates=self._has("lv2:sampleRate"))
        if self._is_a("lv2:AudioPort"):
            is_side_chain = self._has("lv2:isSideChain") or self._get("pg:group", "pg:sideChainOf")
            # Calf marks its side chains only as optional ports without a channel.
            is_no_channel = is_optional and not self._get("lv2:designation")
            return port(kind="silent" if is_side_chain or is_no_channel else "audio")
        if self._is_a("lv2:CVPort"):
            return port(kind="silent")
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
            and self._get("lv2:designation") not in [_uri(name) for name in _SET_BY_HOSTS],
            choices=points,
        )

    def _unit(self) -> str:
        unit = self._get("units:unit") or ""
        if unit.startswith(PREFIXES["units"]):
            name = unit[len(PREFIXES["units"]) :]
            return _UNITS.get(name, name)
        return self._get("units:unit", "units:symbol") or ""

    def _scale_points(self) -> tuple[ScalePoint, ...]:
        world = self._world
        collection = world("port_get_scale_points", self._plugin, self._port)
        points = [
            ScalePoint(
                world.string(world("scale_point_get_label", point)),
                _decimal(world("node_as_float", world("scale_point_get_value", point))),
            )
            for point in world.members("scale_points", collection)
        ]
        world("scale_points_free", collection)
        return tuple(sorted(points, key=lambda point: point.number))

    def _is_a(self, kind: str) -> bool:
        return self._world("port_is_a", self._plugin, self._port, self._world.uri_node(_uri(kind)))

    def _has(self, name: str) -> bool:
        return self._world("port_has_property", self._plugin, self._port, self._world.uri_node(_uri(name)))

    def _get(self, name: str, nested: str | None = None) -> str | None:
        """Return the property ``name`` of the port, or the property ``nested`` of that."""
        node = self._world("port_get", self._plugin, self._port, self._world.uri_node(_uri(name)))
        if not node or nested is None:
            return self._world.pop_string(node)
        found = self._world.get_property(node, nested)
        self._world("node_free", node)
        return self._world.pop_string(found)


def _decimal(number: float) -> float:
    """Return the decimal number of the metadata, which liblilv has rounded to float32: 0.1 for float32(0.1)."""
    return float(str(np.float32(number)))


# --- instances ---------------------------------------------------------------------------------------


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
    _fields_ = [(name, c_uint32) for name in ("context", "subject", "key", "size", "type")] + [("value", c_void_p)]


_instance_lock = threading.RLock()


class Library:
    """The functions of a plugin, ready to create instances for one sample rate."""

    def __init__(self, world: World, uri: str, sample_rate: int) -> None:
        self.uri = uri
        self.sample_rate = sample_rate
        self._features, self._feature_data = _features(sample_rate)
        address = world.find(uri)
        self._bundle = world.bundle(address)
        # liblilv unloads a library with its last instance: this one is kept for as long as the process runs.
        with _instance_lock:
            first = world("plugin_instantiate", address, sample_rate, self._features)
        if not first:
            raise self._refused()
        self._descriptor = _LilvInstance.from_address(first).descriptor
        # ctypes returns a new object for every access to a function pointer: keep them.
        functions = _Descriptor.from_address(self._descriptor)
        self._instantiate = functions.instantiate
        self.activate = functions.activate
        self._deactivate = functions.deactivate
        self._cleanup = functions.cleanup
        self.connect_port = functions.connect_port
        self.run = functions.run

    def instantiate(self) -> int:
        """Create an instance and return its handle."""
        handle = self._instantiate(self._descriptor, self.sample_rate, self._bundle, self._features)
        if not handle:
            raise self._refused()
        return handle

    def free(self, handle: int, buffers: Sequence[np.ndarray | None]) -> None:
        """Free an instance; its buffers must live until then."""
        with _instance_lock:
            if self._deactivate:
                self._deactivate(handle)
            self._cleanup(handle)

    def _refused(self) -> EffectError:
        return EffectError(f"lv2:{self.uri} could not be loaded, or refused to run at {self.sample_rate} Hz")


class Instance:
    """One live instance, freed with the last reference to it. ``run(samples)`` renders the next block.

    Args:
        buffers: the memory of each port, or None for a port without a connection.
    """

    def __init__(self, library: Library, buffers: Sequence[np.ndarray | None]) -> None:
        with _instance_lock:
            handle = library.instantiate()
            # Not when Python exits: the system frees all memory, and the plugin may be running in another thread.
            weakref.finalize(self, library.free, handle, buffers).atexit = False
            for index, buffer in enumerate(buffers):
                library.connect_port(handle, index, None if buffer is None else buffer.ctypes.data)
            if library.activate:
                library.activate(handle)
        self.run = functools.partial(library.run, handle)


@functools.cache
def _features(sample_rate: int) -> tuple[ctypes.Array, Any]:
    """Return ``LV2_Feature`` pointers up to a null, as plugins take them, and the data that they refer to."""
    blocks = {"minBlockLength": 1, "maxBlockLength": BLOCK_SAMPLES, "nominalBlockLength": BLOCK_SAMPLES}
    values: list[tuple[str, str, c_int32 | c_float]] = [
        *((f"bufsz:{name}", "atom:Int", c_int32(samples)) for name, samples in blocks.items()),
        ("param:sampleRate", "atom:Float", c_float(sample_rate)),
    ]
    options = [_Option(0, 0, urid(key), 4, urid(kind), ctypes.addressof(value)) for key, kind, value in values]
    data = {
        "urid:map": _UridFeature(None, ctypes.cast(_map, c_void_p)),
        "urid:unmap": _UridFeature(None, ctypes.cast(_unmap, c_void_p)),
        "opts:options": (_Option * (len(options) + 1))(*options),
    }
    features = [
        _Feature(_uri(name).encode(), ctypes.addressof(data[name]) if name in data else None) for name in _FEATURES
    ]
    pointers = (POINTER(_Feature) * (len(features) + 1))(*map(ctypes.pointer, features))
    return pointers, (values, data)


_urids: dict[bytes, int] = {}
_unused_urids = itertools.count(1)


@CFUNCTYPE(c_uint32, c_void_p, c_char_p)
def _map(handle: None, uri: bytes) -> int:
    # A single operation on the dictionary, because plugins may call this from any thread.
    return _urids.setdefault(uri, next(_unused_urids))


@CFUNCTYPE(c_void_p, c_void_p, c_uint32)
def _unmap(handle: None, urid: int) -> int | None:
    uri = next((uri for uri, known in list(_urids.items()) if known == urid), None)
    return ctypes.cast(c_char_p(uri), c_void_p).value
