"""The binding of LV2: plugins and their metadata through liblilv, and instances through LV2's own C interface.

liblilv must not be used by two threads at once: plugins are found and loaded on the main thread. Instances are
created in any thread, but one at a time, since they may share global state of their library.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import functools
import itertools
import math
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from ctypes import CFUNCTYPE, POINTER, c_bool, c_char_p, c_double, c_float, c_int32, c_uint32, c_void_p
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


class _Address(c_void_p):
    """A pointer that ctypes does not convert to an integer, so that it may be passed on as it is."""


_RESULTS: dict[str, type] = {
    "node_as_float": c_float,
    "node_as_string": c_char_p,
    **dict.fromkeys(("plugin_get_latency_port_index", "plugin_get_num_ports"), c_uint32),
    **dict.fromkeys(("plugin_has_latency", "port_has_property", "port_is_a"), c_bool),
    **dict.fromkeys(("nodes_is_end", "plugins_is_end", "scale_points_is_end"), c_bool),
}
"""Types of the results of liblilv's functions; others return an address, or nothing."""


@functools.cache
def plugin(uri: str) -> Plugin:
    """Return the description of an installed plugin; on the main thread.

    Raises:
        EffectError: if liblilv or the plugin is not installed, or if the host lacks a feature that it requires.
    """
    return _describe(uri)


def outline(uri: str) -> Plugin:
    """Return a plugin as :func:`plugin`, with audio ports alone: plugins have hundreds of others, which take time."""
    return _describe(uri, "lv2:AudioPort")


def _describe(uri: str, kind: str | None = None) -> Plugin:
    world = _world()
    address = world.find(uri)
    required = world("plugin_get_required_features", address)
    lacking = {world.string(node) for node in world.members("nodes", required)} - set(map(_uri, _FEATURES))
    world("nodes_free", required)
    if lacking:
        raise EffectError(f"lv2:{uri} requires features that this host lacks: {', '.join(lacking)}")

    count = world("plugin_get_num_ports", address)
    ranges = np.full((3, count), np.nan, dtype=np.float32)
    world("plugin_get_port_ranges_float", address, *(row.ctypes for row in ranges))
    readers = [_PortReader(world, address, index) for index in range(count)]
    ports = tuple(
        reader.read(*numbers) for reader, numbers in zip(readers, ranges.T) if kind is None or reader.is_a(kind)
    )
    for symbol, number in Counter(port.symbol for port in ports).items():
        if number > 1:
            raise EffectError(f"lv2:{uri} has {number} ports with the symbol '{symbol}'")
    if unknown := [port.symbol for port in ports if port.kind == "unknown"]:
        raise EffectError(f"lv2:{uri} has ports of a kind unknown to this host: {', '.join(unknown)}")
    latency_port = world("plugin_get_latency_port_index", address) if world("plugin_has_latency", address) else None
    return Plugin(uri, world.pop_string(world("plugin_get_name", address)) or uri, ports, latency_port)


def uris() -> list[str]:
    """Return the URIs of all installed plugins, instruments included; on the main thread."""
    world = _world()
    return [world.string(world("plugin_get_uri", address)) for address in world.members("plugins", world.plugins)]


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
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    raise EffectError(
        "LV2 plugins need the library liblilv: `apt-get install liblilv-0-0` on Debian and Ubuntu, "
        "`brew install lilv` on macOS"
    )


def _library_names() -> Iterator[str]:
    yield from ("liblilv-0.so.0", "/opt/homebrew/lib/liblilv-0.dylib")
    yield ctypes.util.find_library("lilv-0") or "lilv-0.dll"


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


class World:
    """liblilv, and the metadata of all installed plugins. ``self("x", ...)`` calls ``lilv_x``."""

    def __init__(self) -> None:
        self._functions = _load_lilv()
        self._nodes: dict[str, _Address] = {}
        self.address = self("world_new")
        self("world_load_all", self.address)
        self.plugins = self("world_get_all_plugins", self.address)

    def __call__(self, name: str, *arguments: Any) -> Any:
        function = getattr(self._functions, f"lilv_{name}")
        function.restype = _RESULTS.get(name, _Address)
        return function(*arguments)

    def find(self, uri: str) -> _Address:
        """Return the address of a plugin."""
        if plugin := self("plugins_get_by_uri", self.plugins, self.uri_node(uri)):
            return plugin
        known = uris()
        all_known = " ".join(known)
        missing = [package for part, package in _PACKAGES.items() if part in uri and part not in all_known]
        install = f"; on Debian and Ubuntu, install it with `apt-get install {missing[0]}`" if missing else ""
        raise EffectError(f"no LV2 plugin {uri} is installed{nearest(uri, known) if known else ''}{install}")

    def uri_node(self, uri: str) -> _Address:
        """Return the address of liblilv's object for a URI."""
        if uri not in self._nodes:
            self._nodes[uri] = self("new_uri", self.address, uri.encode())
        return self._nodes[uri]

    def members(self, kind: str, collection: _Address) -> Iterator[_Address]:
        """Yield the members of one of liblilv's collections: ``plugins``, ``nodes`` or ``scale_points``."""
        iterator = self(f"{kind}_begin", collection)
        while not self(f"{kind}_is_end", collection, iterator):
            yield self(f"{kind}_get", collection, iterator)
            iterator = self(f"{kind}_next", collection, iterator)

    def string(self, node: _Address) -> str:
        """Return the string of a node that liblilv owns."""
        return self("node_as_string", node).decode()

    def pop_string(self, node: _Address) -> str | None:
        """Return the string of a node that the caller owns, and free the node; None for a null pointer."""
        text = self.string(node) if node else None
        self("node_free", node)
        return text


_cached_world = functools.cache(World)


class _PortReader:
    """Reads the metadata of one port."""

    def __init__(self, world: World, plugin: _Address, index: int) -> None:
        self._world = world
        self._plugin = plugin
        self._port = world("plugin_get_port_by_index", plugin, index)
        self._symbol = world.string(world("port_get_symbol", plugin, self._port))
        self.is_a = functools.partial(self._query, "is_a")
        self._has = functools.partial(self._query, "has_property")

    def read(self, minimum: float, maximum: float, default: float) -> Port:
        is_input = self.is_a("lv2:InputPort")
        is_optional = self._has("lv2:connectionOptional")
        port = functools.partial(Port, self._symbol, is_input=is_input)
        if self.is_a("lv2:ControlPort"):
            if not is_input:
                return port(kind="control")
            control = self._control(_decimal(minimum), _decimal(maximum), _decimal(default))
            return port(kind="control", control=control, in_sample_rates=self._has("lv2:sampleRate"))
        if self.is_a("lv2:AudioPort"):
            is_side_chain = self._has("lv2:isSideChain") or self._get("pg:group", "pg:sideChainOf")
            # Calf marks its side chains only as optional ports without a channel.
            is_no_channel = is_optional and not self._get("lv2:designation")
            return port(kind="silent" if is_side_chain or is_no_channel else "audio")
        if self.is_a("lv2:CVPort"):
            return port(kind="silent")
        if is_optional:
            return port(kind="unconnected")
        if self.is_a("atom:AtomPort"):
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
        name = unit.removeprefix(PREFIXES["units"])
        return _UNITS.get(name, name) if name != unit else self._get("units:unit", "units:symbol") or ""

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

    def _query(self, function: str, name: str) -> Any:
        return self._world(f"port_{function}", self._plugin, self._port, self._world.uri_node(_uri(name)))

    def _get(self, name: str, nested: str | None = None) -> str | None:
        """Return the property ``name`` of the port, or the property ``nested`` of that."""
        world, node = self._world, self._query("get", name)
        if not node or nested is None:
            return world.pop_string(node)
        found = world("world_get", world.address, node, world.uri_node(_uri(nested)), None)
        world("node_free", node)
        return world.pop_string(found)


def _decimal(number: float) -> float:
    """Return the decimal number of the metadata, which liblilv has rounded to float32: 0.1 for float32(0.1)."""
    return float(str(np.float32(number)))


class _Descriptor(ctypes.Structure):
    """``LV2_Descriptor``: the functions of a plugin."""

    _fields_ = [
        ("uri", c_char_p),
        ("instantiate", CFUNCTYPE(c_void_p, c_void_p, c_double, c_char_p, c_void_p)),
        ("connect_port", CFUNCTYPE(None, c_void_p, c_uint32, c_void_p)),
        ("activate", CFUNCTYPE(None, c_void_p)),
        ("run", CFUNCTYPE(None, c_void_p, c_uint32)),
        ("deactivate", CFUNCTYPE(None, c_void_p)),
        ("cleanup", CFUNCTYPE(None, c_void_p)),
    ]


class _Feature(ctypes.Structure):
    _fields_ = [("uri", c_char_p), ("data", c_void_p)]


class _Option(ctypes.Structure):
    _fields_ = [(name, c_uint32) for name in ("context", "subject", "key", "size", "type")] + [("value", c_void_p)]


_instance_lock = threading.RLock()


class Library:
    """The functions of a plugin, ready to create instances for one sample rate; loaded on the main thread.

    Raises:
        EffectError: as :func:`plugin`, or if the plugin cannot be loaded, or refuses the sample rate.
    """

    def __init__(self, uri: str, sample_rate: int) -> None:
        self.uri = uri
        self.sample_rate = sample_rate
        self._features, _ = _features(sample_rate)
        world = _world()
        address = world.find(uri)
        bundle = urlsplit(world.string(world("plugin_get_bundle_uri", address)))
        self._bundle = os.fsencode(url2pathname(bundle.path))
        # liblilv unloads a library with its last instance: this one is kept for as long as the process runs.
        with _instance_lock:
            first = world("plugin_instantiate", address, c_double(sample_rate), self._features)
        if not first:
            raise self._refused()
        # The descriptor is the first member of liblilv's instance.
        self._descriptor = ctypes.cast(first, POINTER(c_void_p))[0]
        self._functions = _Descriptor.from_address(self._descriptor)

    def instantiate(self, buffers: Sequence[np.ndarray | None]) -> Callable[[int], None]:
        """Return a function that renders the next samples of a new instance, which is freed with the function.

        Args:
            buffers: the memory of each port, or None for a port without a connection.
        """
        functions = self._functions
        with _instance_lock:
            handle = functions.instantiate(self._descriptor, self.sample_rate, self._bundle, self._features)
            if not handle:
                raise self._refused()
            run = functools.partial(functions.run, handle)
            # Not when Python exits: the system frees all memory, and the plugin may be running in another thread.
            weakref.finalize(run, self.free, handle, buffers).atexit = False
            for index, buffer in enumerate(buffers):
                functions.connect_port(handle, index, None if buffer is None else buffer.ctypes.data)
            if functions.activate:
                functions.activate(handle)
        return run

    def free(self, handle: int, buffers: Sequence[np.ndarray | None]) -> None:
        """Free an instance; its buffers must live until then."""
        with _instance_lock:
            if self._functions.deactivate:
                self._functions.deactivate(handle)
            self._functions.cleanup(handle)

    def _refused(self) -> EffectError:
        return EffectError(f"lv2:{self.uri} could not be loaded, or refused to run at {self.sample_rate} Hz")


library = functools.cache(Library)


@functools.cache
def _features(sample_rate: int) -> tuple[ctypes.Array, Any]:
    """Return ``LV2_Feature`` pointers up to a null, as plugins take them, and the data that they refer to."""
    blocks = {"minBlockLength": 1, "maxBlockLength": BLOCK_SAMPLES, "nominalBlockLength": BLOCK_SAMPLES}
    values: list[tuple[str, str, c_int32 | c_float]] = [
        *((f"bufsz:{name}", "atom:Int", c_int32(samples)) for name, samples in blocks.items()),
        ("param:sampleRate", "atom:Float", c_float(sample_rate)),
    ]
    options = [_Option(0, 0, urid(key), 4, urid(kind), ctypes.addressof(value)) for key, kind, value in values]
    data: dict[str, ctypes.Array] = {
        "urid:map": (c_void_p * 2)(None, ctypes.cast(_map, c_void_p)),
        "urid:unmap": (c_void_p * 2)(None, ctypes.cast(_unmap, c_void_p)),
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
