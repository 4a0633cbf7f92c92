"""A REAPER project: the recording, the plugins of the chain, and their automation as envelopes.

If all effects are VST3 and LV2 plugins, the project has the input on a track with the plugins, whose trained parameters
have envelopes, and the output on a muted track for comparison. The gain of the task's treatment is the item's volume;
its high-pass is missing. REAPER does not have pedalboard's built-in effects, nor effects in Python: the project of a
chain with one of them has a muted track with the input and a track with the output, and the automation is written as
CSV next to the project.

REAPER does not document its format. The code follows projects that REAPER wrote; independent parsers read its output,
which was not opened in REAPER itself. Envelopes hold the plugin's position in [0, 1]. Fixed values are part of a VST3
plugin's state, and for an LV2 plugin envelopes of one point.
"""

from __future__ import annotations

import base64
import os
import struct
import uuid
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dfx.effects import ChainSpec, lilv, lv2, vst3
from dfx.effects.effect import Recipe
from dfx.errors import UserError
from dfx.render.automation import Automation, thin_out
from dfx.writing import write_text

TOLERANCE = 0.002
"""The largest error of an envelope in [0, 1]: points that are not needed for it are left out."""

_HOSTS = ("vst3", "lv2")
_SOURCES = {".flac": "FLAC", ".mp3": "MP3", ".ogg": "VORBIS", ".oga": "VORBIS", ".opus": "VORBIS"}
_STATE_MAGIC = 0xFEED5EEF
_BYTES_PER_LINE = 210

Curve = tuple[np.ndarray, np.ndarray]
"""Times in seconds and positions in [0, 1]."""

_Envelopes = dict[tuple[object, str], Curve]
_EffectLines = Generator[str, None, tuple[str, _Envelopes]]
"""Yields the lines of a plugin, and returns its name and its envelopes by place and name of the parameter."""


@dataclass(frozen=True)
class Take:
    """A rendered file.

    Args:
        input, output: the paths.
        seconds: the length.
        chain: at the file's rate, with the channels that one chain renders.
        automation: of the chain.
    """

    input: str
    output: str
    seconds: float
    chain: ChainSpec
    automation: Automation


def can_run(chain: ChainSpec) -> bool:
    """Return true if REAPER has all effects of a chain."""
    return all(recipe.host in _HOSTS for recipe in chain.recipes)


def project_files(path: str, chain: ChainSpec) -> list[str]:
    """List the files that :func:`write_project` writes.

    Raises:
        UserError: for another suffix.
    """
    if Path(path).suffix.lower() != ".rpp":
        raise UserError(f"{path}: a REAPER project is written as .rpp")
    return [path] if can_run(chain) else [path, str(Path(path).with_suffix(".csv"))]


def write_project(path: str, take: Take) -> None:
    """Write the project. Call it on the main thread: some hosts load plugins there only."""
    runs = can_run(take.chain)
    write_text(Path(path), "\n".join(_project(path, take, runs)) + "\n")
    if not runs:
        take.automation.write(str(Path(path).with_suffix(".csv")))


def _project(path: str, take: Take, runs: bool) -> Iterator[str]:
    yield '<REAPER_PROJECT 0.1 "7.0" 0'
    yield "  <NOTES 0 2"
    for note in _notes(path, take, runs):
        yield f"    |{note}"
    yield "  >"
    yield f"  SAMPLERATE {take.chain.sample_rate} 1 0"
    yield "  TEMPO 120 4 4"
    effects = list(_effects(take)) if runs else []
    gain = 10 ** (float(np.median(take.automation.input_gains_db)) / 20) if runs else 1.0
    yield from _track(path, take, "input through the chain" if runs else "input", take.input, effects, gain, not runs)
    yield from _track(path, take, "output of dfx", take.output, [], 1.0, runs)
    yield ">"


def _notes(path: str, take: Take, runs: bool) -> Iterator[str]:
    yield "Written by dfx, not by REAPER."
    if runs:
        yield "The muted track is the output as dfx rendered it, to compare with the plugins on the other."
        return
    lacking = [recipe for recipe in take.chain.recipes if recipe.host not in _HOSTS]
    missing = [f"{recipe.name} ({recipe.host}:{recipe.effect})" for recipe in lacking]
    yield f"REAPER cannot run all of this chain: it lacks {', '.join(missing)}."
    yield f"The automation is in {Path(path).with_suffix('.csv').name} next to this project."


def _track(path: str, take: Take, name: str, file: str, effects: list[str], gain: float, muted: bool) -> Iterator[str]:
    guid = _guid(name)
    yield f"  <TRACK {guid}"
    yield f'    NAME "{name}"'
    yield f"    MUTESOLO {int(muted)} 0 0"
    yield "    NCHAN 2"
    yield "    FX 1"
    yield f"    TRACKID {guid}"
    if effects:
        yield "    <FXCHAIN"
        yield "      SHOW 0"
        yield "      LASTSEL 0"
        yield "      DOCKED 0"
        yield from (f"      {line}" for line in effects)
        yield "    >"
    yield "    <ITEM"
    yield "      POSITION 0"
    yield f"      LENGTH {take.seconds:.9g}"
    yield "      LOOP 0"
    yield f"      NAME {_quoted(Path(file).name)}"
    yield f"      VOLPAN 1 0 {gain:.9g} -1"
    yield "      SOFFS 0"
    yield f"      GUID {_guid(name + ' item')}"
    yield f"      <SOURCE {_SOURCES.get(Path(file).suffix.lower(), 'WAVE')}"
    yield f"        FILE {_quoted(_relative(file, path))}"
    yield "      >"
    yield "    >"
    yield "  >"


def _effects(take: Take) -> Iterator[str]:
    place = 0
    for recipe in take.chain.recipes:
        count = len(recipe.parameters)
        values = take.automation.values[:, place : place + count]
        place += count
        yield "BYPASS 0 0 0"
        if recipe.host == "vst3":
            name, envelopes = yield from _vst3(take, recipe, values)
        else:
            name, envelopes = yield from _lv2(take, recipe, values)
        yield f"FXID {_guid(recipe.name)}"
        for (index, parameter), (times, positions) in envelopes.items():
            yield f'<PARMENV {index} 0 1 0.5 "{_plain(parameter)} / {name}"'
            yield f"  EGUID {_guid(f'{recipe.name}.{parameter}')}"
            yield "  ACT 1 -1"
            yield "  VIS 1 1 1"
            yield "  LANEHEIGHT 0 0"
            yield "  ARM 0"
            yield "  DEFSHAPE 0 -1 -1"
            is_held = take.automation.interpolation == "hold"
            for point in range(len(times)) if is_held else thin_out(times, positions, TOLERANCE):
                yield f"  PT {times[point]:.6f} {positions[point]:.6f} {int(is_held)}"
            yield ">"
        yield "WAK 0 0"


def _vst3(take: Take, recipe: Recipe, values: np.ndarray) -> _EffectLines:
    chain = take.chain
    median = {parameter.name: float(np.median(values[:, i])) for i, parameter in enumerate(recipe.parameters)}
    path, plugin, places = vst3.load_plugin(recipe, median, chain.sample_rate, chain.channels)
    class_id, component, controller = _states(plugin.preset_data)
    name = _plain(f"VST3: {plugin.name} ({plugin.manufacturer_name})")
    yield f'<VST "{name}" "{_plain(Path(path).name)}" 0 "" 0{{{class_id}}} ""'
    state = struct.pack("<II", len(component), 1) + component + struct.pack("<II", len(controller), 0) + controller
    pins = b"".join(struct.pack("<Q", 1 << channel) for channel in range(2))
    side = struct.pack("<I", 2) + pins
    head = struct.pack("<II", 0, _STATE_MAGIC) + side + side + struct.pack("<III", len(state), 1, 0x0010FFFF)
    for part in (head, state, bytes((0, 0, 16, 0, 0, 0))):
        for start in range(0, len(part), _BYTES_PER_LINE):
            yield f"  {base64.b64encode(part[start : start + _BYTES_PER_LINE]).decode()}"
    yield ">"
    positions = vst3.positions(recipe, values, chain.sample_rate, chain.channels)
    envelopes: _Envelopes = {
        (places[parameter.name][0], parameter.name): (take.automation.times, positions[:, i])
        for i, parameter in enumerate(recipe.parameters)
    }
    return name, envelopes


def _lv2(take: Take, recipe: Recipe, values: np.ndarray) -> _EffectLines:
    chain = take.chain
    controls = lv2.controls(recipe.effect, chain.sample_rate, chain.channels)
    name = _plain(f"LV2: {lilv.plugin(recipe.effect).name}")
    yield f'<LV2 "{name}" {recipe.effect} ""'
    yield ">"
    trained = {parameter.name: values[:, i] for i, parameter in enumerate(recipe.parameters)}
    envelopes: _Envelopes = {}
    for index, (symbol, control) in enumerate(controls.items()):
        if symbol in trained:
            span = control.maximum - control.minimum
            curve = take.automation.times, (trained[symbol] - control.minimum) / span
        elif symbol in recipe.fixed:
            value = lv2.port_value(control, recipe.fixed[symbol])
            low, high = (control.minimum, control.maximum) if np.isfinite(control.minimum) else (0.0, 1.0)
            curve = take.automation.times[:1], np.array([(value - low) / (high - low)])
        else:
            continue
        envelopes[f"{index}:{symbol}", symbol] = curve
    return name, envelopes


def _states(preset: bytes) -> tuple[str, bytes, bytes]:
    """Return the class, the component's state and the controller's state of a VST3 preset file."""
    class_id = preset[8:40].decode("ascii")
    (table,) = struct.unpack_from("<q", preset, 40)
    (count,) = struct.unpack_from("<i", preset, table + 4)
    parts = {}
    for entry in range(count):
        kind, offset, size = struct.unpack_from("<4sqq", preset, table + 8 + 20 * entry)
        parts[kind] = preset[offset : offset + size]
    return class_id, parts.get(b"Comp", b""), parts.get(b"Cont", b"")


def _guid(name: str) -> str:
    """Return an identifier that depends on the name only, so that a project can be reproduced."""
    return "{" + str(uuid.uuid5(uuid.NAMESPACE_URL, f"dfx:{name}")).upper() + "}"


def _quoted(text: str) -> str:
    """Quote with the first of REAPER's quotation marks that the text does not contain."""
    mark = next((mark for mark in "\"'`" if mark not in text), "`")
    return mark + text.replace("`", "'") + mark if mark == "`" else mark + text + mark


def _plain(text: str) -> str:
    return text.replace('"', "'")


def _relative(file: str, project: str) -> str:
    try:
        return Path(os.path.relpath(file, Path(project).parent)).as_posix()
    except ValueError:  # another drive
        return str(Path(file).resolve())
