"""One setting of a chain, written for other programs: Python, JSON, VST3 presets and LV2 presets.

======================  ================================================================================
``NAME.py``             the chain as a ``pedalboard.Pedalboard``: built-in effects, VST3 and Audio Units
``NAME.json``           every control of every effect, of whatever host
``NAME.vstpreset``      the VST3 plugin of the chain; of several, ``NAME_EFFECT.vstpreset`` each
``NAME.lv2``            a bundle with a preset for every LV2 plugin of the chain: goes into ``~/.lv2``
======================  ================================================================================
"""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from pedalboard import PluginContainer

from dfx.effects import ChainSpec, lv2, vst3
from dfx.effects import pedalboard as built_in
from dfx.effects.chain import HOSTS
from dfx.effects.effect import Recipe
from dfx.errors import UserError, printable
from dfx.writing import replacing, write_json, write_text

_HOSTS = {".json": tuple(HOSTS), ".py": ("pedalboard", "vst3", "au"), ".vstpreset": ("vst3",), ".lv2": ("lv2",)}
"""The hosts whose effects each format can hold. ``.py`` and ``.json`` hold the whole chain."""


def preset_files(path: str, chain: ChainSpec) -> list[str]:
    """List the files, or the bundle, that :func:`write_preset` writes.

    Raises:
        UserError: if a preset of this suffix cannot hold the chain.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _HOSTS:
        raise UserError(f"{path}: presets are written as {', '.join(_HOSTS)}")
    fitting = [recipe for recipe in chain.recipes if recipe.host in _HOSTS[suffix]]
    hosts = " and ".join(f"{host}:" for host in _HOSTS[suffix])
    if not fitting:
        raise UserError(f"{path}: a {suffix} holds {hosts} effects, and the chain has none; .json holds all")
    if suffix == ".py" and len(fitting) < len(chain.recipes):
        other = next(recipe for recipe in chain.recipes if recipe not in fitting)
        raise UserError(f"{path}: pedalboard cannot run {other.host}:{other.effect}; .json holds all effects")
    if suffix == ".vstpreset" and len(fitting) > 1:
        return [str(Path(path).with_name(f"{Path(path).stem}_{recipe.name}.vstpreset")) for recipe in fitting]
    return [path]


def preset_suffixes(chain: ChainSpec) -> list[str]:
    """Return the suffixes of the presets that can hold a chain, or its effects of one host."""
    suffixes = []
    for suffix in _HOSTS:
        with contextlib.suppress(UserError):
            preset_files(f"preset{suffix}", chain)
            suffixes.append(suffix)
    return suffixes


def write_preset(path: str, chain: ChainSpec, values: dict[str, float]) -> None:
    """Write one setting. Call it on the main thread: some hosts load plugins there only.

    Args:
        path: its suffix decides the format.
        chain: at the sample rate and channels of the preset.
        values: of the trained parameters in their units, by ``effect.parameter``.

    Raises:
        UserError: as :func:`preset_files`.
    """
    files = preset_files(path, chain)
    suffix = Path(path).suffix.lower()
    if suffix == ".json":
        write_json(Path(path), _as_json(chain, values))
    elif suffix == ".py":
        write_text(Path(path), as_python(chain, values))
    elif suffix == ".vstpreset":
        for file, recipe in zip(files, (recipe for recipe in chain.recipes if recipe.host == "vst3")):
            plugin = vst3.load_plugin(recipe, _values_of(recipe, values), chain.sample_rate, chain.channels).plugin
            with replacing(Path(file)) as partial:
                partial.write_bytes(plugin.preset_data)
    else:
        _write_bundle(Path(path), chain, values)


def _values_of(recipe: Recipe, values: dict[str, float]) -> dict[str, float]:
    return {parameter.name: values[f"{recipe.name}.{parameter.name}"] for parameter in recipe.parameters}


def _as_json(chain: ChainSpec, values: dict[str, float]) -> dict[str, Any]:
    settings = chain.settings(values)
    effects = [
        {"effect": f"{recipe.host}:{recipe.effect}", "name": recipe.name, "settings": settings[recipe.name]}
        for recipe in chain.recipes
    ]
    return {"sample_rate": chain.sample_rate, "channels": chain.channels, "effects": effects}


_HEAD = '''"""A chain of effects, set by dfx for {sample_rate:d} Hz.

    board = make_board()
    output = board(audio, sample_rate)
"""

import pedalboard
'''

_PLUGIN = '''

def plugin(path, name, positions):
    """A plugin with its controls at positions in [0, 1]."""
    loaded = pedalboard.load_plugin(path, plugin_name=name)
    for control, position in positions.items():
        loaded.parameters[control].raw_value = position
    return loaded
'''


def as_python(chain: ChainSpec, values: dict[str, float]) -> str:
    """Return the source of a module with a function ``make_board``, which needs pedalboard only."""
    settings, lines = chain.settings(values), []
    for recipe in chain.recipes:
        if recipe.host == "pedalboard":
            plugin = built_in.build_plugin(recipe.effect, settings[recipe.name], chain.sample_rate).plugin
            code = list(_code(plugin))
        else:
            loaded = vst3.load_plugin(recipe, _values_of(recipe, values), chain.sample_rate, chain.channels)
            positions = {name: position for name, (_, position) in loaded.places.items()}
            name = recipe.effect.partition("#")[2] or None
            code = [f"plugin({loaded.path!r}, {name!r}, {positions!r})"]
        lines += [f"# {printable(recipe.name)}", *code[:-1], f"{code[-1]},"]
    helper = "" if all(recipe.host == "pedalboard" for recipe in chain.recipes) else _PLUGIN
    body = "\n".join(f"            {line}" for line in lines)
    make = f"\n\ndef make_board():\n    return pedalboard.Pedalboard(\n        [\n{body}\n        ]\n    )\n"
    return _HEAD.format(sample_rate=chain.sample_rate) + helper + make


def _code(plugin: Any) -> Iterator[str]:
    """Yield the lines that build one of pedalboard's plugins, or a composite of them."""
    kind = type(plugin)
    if isinstance(plugin, PluginContainer):
        yield f"pedalboard.{kind.__name__}(["
        for part in plugin:
            *lines, last = _code(part)
            yield from (f"    {line}" for line in [*lines, f"{last},"])
        yield "])"
        return
    names = [name for name in dir(kind) if name[0] != "_" and getattr(getattr(kind, name), "fset", None)]
    arguments = ", ".join(f"{name}={_literal(getattr(plugin, name))}" for name in names)
    yield f"pedalboard.{kind.__name__}({arguments})"


def _literal(value: Any) -> str:
    """A number or switch as it is; a mode is a member of an enum inside the plugin's class."""
    is_number = isinstance(value, (bool, int, float))
    return repr(value) if is_number else f"pedalboard.{type(value).__qualname__}.{value.name}"


_PREFIXES = """@prefix lv2: <http://lv2plug.in/ns/lv2core#> .
@prefix pset: <http://lv2plug.in/ns/ext/presets#> .
@prefix rdfs: <http://www.w3.org/2000/01/rdf-schema#> .
"""


def _write_bundle(folder: Path, chain: ChainSpec, values: dict[str, float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    settings, manifest = chain.settings(values), [_PREFIXES]
    for recipe in chain.recipes:
        if recipe.host != "lv2":
            continue
        file = re.sub(r"[^\w -]", "_", recipe.name) + ".ttl"
        head = f"a pset:Preset ;\n    lv2:appliesTo {_iri(recipe.effect)} ;"
        manifest.append(f"<{quote(file)}>\n    {head}\n    rdfs:seeAlso <{quote(file)}> .\n")
        controls, ports = lv2.controls(recipe.effect, chain.sample_rate, chain.channels), []
        for symbol, value in settings[recipe.name].items():
            # A decimal of Turtle has a point and no exponent.
            decimal = np.format_float_positional(lv2.port_value(controls[symbol], value), 10, unique=False, trim="0")
            ports.append(f"[\n        lv2:symbol {_literal_of(symbol)} ;\n        pset:value {decimal}\n    ]")
        label = _literal_of(f"{folder.stem}: {recipe.name}")
        text = f"{_PREFIXES}\n<>\n    {head}\n    rdfs:label {label} ;\n    lv2:port {' , '.join(ports)} .\n"
        write_text(folder / file, text)
    write_text(folder / "manifest.ttl", "\n".join(manifest))


def _iri(text: str) -> str:
    """Return an IRI of Turtle, in which some characters must be escaped."""
    return "<" + re.sub(r'[\x00-\x20<>"{}|^`\\]', lambda match: f"\\u{ord(match[0]):04X}", text) + ">"


def _literal_of(text: str) -> str:
    """Return a literal of Turtle: its escapes are those of JSON, but for characters beyond 16 bits."""
    return json.dumps(printable(text), ensure_ascii=False)
