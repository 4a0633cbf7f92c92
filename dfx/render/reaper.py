"""A REAPER project: the recording, the plugins of the chain, and their automation as envelopes.

If all effects are VST3 and LV2 plugins, the project has the input on a track with the plugins, whose trained parameters
have envelopes, and the output on a muted track for comparison. The gain of the task's treatment is the item's volume,
and a gain after the chain is that of the track with the plugins; the treatment's high-pass is missing. REAPER does not
have pedalboard's built-in effects, nor effects in Python: the project of a chain with one of them has a muted track
with the input and a track with the output, and the automation is written as CSV next to the project.

REAPER does not document its format. The code follows projects that REAPER wrote; independent parsers read its output,
which was not opened in REAPER itself. Envelopes hold the plugin's position in [0, 1]. Fixed values are part of a VST3
plugin's state, and for an LV2 plugin envelopes of one point.
"""

import base64
import os
import re
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dfx.effects import ChainSpec, lilv, lv2, vst3
from dfx.effects.effect import Recipe
from dfx.errors import UserError, printable
from dfx.render.automation import Automation, thin_out
from dfx.writing import write_text

TOLERANCE = 0.002
"""The largest error of an envelope in [0, 1]: points that are not needed for it are left out."""

_HOSTS = ("vst3", "lv2")
_SOURCES = {".flac": "FLAC", ".mp3": "MP3", ".ogg": "VORBIS", ".oga": "VORBIS", ".opus": "VORBIS"}
_STATE_MAGIC = 0xFEED5EEF
_BYTES_PER_LINE = 210

_Envelopes = dict[tuple[object, str], tuple[np.ndarray, np.ndarray]]
"""Times in seconds and positions in [0, 1], by place and name of the parameter."""


@dataclass(frozen=True)
class Take:
    """A rendered file.

    Args:
        input, output: the paths.
        seconds: the length.
        chain: at the file's rate, with the channels that one chain renders.
        automation: of the chain.
        reference: the path of the recording that the output was made to sound like, or None.
    """

    input: str
    output: str
    seconds: float
    chain: ChainSpec
    automation: Automation
    reference: str | None = None


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
    # The format has no escapes: a line break in a name would begin a line of its own.
    write_text(Path(path), "".join(f"{printable(line)}\n" for line in _project(path, take, runs)))
    if not runs:
        take.automation.write(str(Path(path).with_suffix(".csv")))


def _block(head: str, *lines: str) -> list[str]:
    return [f"<{head}", *(f"  {line}" for line in lines), ">"]


def _project(path: str, take: Take, runs: bool) -> list[str]:
    lines = "Written by dfx, not by REAPER.", *_notes(path, take, runs)
    notes = _block("NOTES 0 2", *(f"|{line}" for line in lines))
    gain = 10 ** (float(np.median(take.automation.input_gains_db)) / 20) if runs else 1.0
    effects = list(_effects(take)) if runs else []
    name = "input through the chain" if runs else "input"
    volume = 10 ** (take.automation.output_gain_db / 20) if runs else 1.0
    input = _track(path, take, name, take.input, effects, gain, not runs, volume)
    output = _track(path, take, "output of dfx", take.output, [], 1.0, runs)
    settings = f"SAMPLERATE {take.chain.sample_rate} 1 0", "TEMPO 120 4 4"
    return _block('REAPER_PROJECT 0.1 "7.0" 0', *notes, *settings, *input, *output)


def _notes(path: str, take: Take, runs: bool) -> list[str]:
    if runs:
        return ["The muted track is the output as dfx rendered it, to compare with the plugins on the other."]
    lacking = [recipe for recipe in take.chain.recipes if recipe.host not in _HOSTS]
    missing = ", ".join(f"{recipe.name} ({recipe.host}:{recipe.effect})" for recipe in lacking)
    automation = f"The automation is in {Path(path).with_suffix('.csv').name} next to this project."
    return [f"REAPER cannot run all of this chain: it lacks {missing}.", automation]


def _track(
    path: str, take: Take, name: str, file: str, effects: list[str], gain: float, muted: bool, volume: float = 1.0
) -> list[str]:
    kind = _SOURCES.get(Path(file).suffix.lower(), "WAVE")
    source = _block(f"SOURCE {kind}", f"FILE {_quoted(_relative(file, path))}")
    place = "POSITION 0", f"LENGTH {take.seconds:.9g}", "LOOP 0"
    sound = f"NAME {_quoted(Path(file).name)}", f"VOLPAN 1 0 {gain:.9g} -1", "SOFFS 0"
    item = _block("ITEM", *place, *sound, f"GUID {_guid(name + ' item')}", *source)
    chain = _block("FXCHAIN", "SHOW 0", "LASTSEL 0", "DOCKED 0", *effects) if effects else []
    mixer = f"VOLPAN {volume:.9g} 0 -1 -1 1", f"MUTESOLO {int(muted)} 0 0"
    settings = f'NAME "{name}"', *mixer, "NCHAN 2", "FX 1", f"TRACKID {_guid(name)}"
    return _block(f"TRACK {_guid(name)}", *settings, *chain, *item)


def _effects(take: Take) -> Iterator[str]:
    place = 0
    is_held = take.automation.interpolation == "hold"
    for recipe in take.chain.recipes:
        values = take.automation.values[:, place : place + len(recipe.parameters)]
        place += len(recipe.parameters)
        name, lines, envelopes = (_vst3 if recipe.host == "vst3" else _lv2)(take, recipe, values)
        yield from ["BYPASS 0 0 0", *lines, f"FXID {_guid(recipe.name)}"]
        for (index, parameter), (times, positions) in envelopes.items():
            kept = range(len(times)) if is_held else thin_out(times, positions, TOLERANCE)
            points = [f"PT {times[point]:.6f} {positions[point]:.6f} {int(is_held)}" for point in kept]
            identifier = f"EGUID {_guid(f'{recipe.name}.{parameter}')}"
            settings = identifier, "ACT 1 -1", "VIS 1 1 1", "LANEHEIGHT 0 0", "ARM 0", "DEFSHAPE 0 -1 -1"
            head = f'PARMENV {_token(str(index))} 0 1 0.5 "{_plain(parameter)} / {name}"'
            yield from _block(head, *settings, *points)
        yield "WAK 0 0"


def _vst3(take: Take, recipe: Recipe, values: np.ndarray) -> tuple[str, list[str], _Envelopes]:
    """Return a plugin's name, its lines, and its envelopes."""
    chain = take.chain
    median = {parameter.name: float(np.median(values[:, i])) for i, parameter in enumerate(recipe.parameters)}
    path, plugin, places = vst3.load_plugin(recipe, median, chain.sample_rate, chain.channels)
    class_id, component, controller = _states(plugin.preset_data)
    name = _plain(f"VST3: {plugin.name} ({plugin.manufacturer_name})")
    state = struct.pack("<II", len(component), 1) + component + struct.pack("<II", len(controller), 0) + controller
    side = struct.pack("<IQQ", 2, 1, 2)  # the pins of two channels
    head = struct.pack("<II", 0, _STATE_MAGIC) + side + side + struct.pack("<III", len(state), 1, 0x0010FFFF)
    parts = [
        base64.b64encode(part[start : start + _BYTES_PER_LINE]).decode()
        for part in (head, state, bytes((0, 0, 16, 0, 0, 0)))
        for start in range(0, len(part), _BYTES_PER_LINE)
    ]
    lines = _block(f'VST "{name}" "{_plain(Path(path).name)}" 0 "" 0{{{class_id}}} ""', *parts)
    positions = vst3.positions(recipe, values, chain.sample_rate, chain.channels)
    envelopes: _Envelopes = {
        (places[parameter.name][0], parameter.name): (take.automation.times, positions[:, i])
        for i, parameter in enumerate(recipe.parameters)
    }
    return name, lines, envelopes


def _lv2(take: Take, recipe: Recipe, values: np.ndarray) -> tuple[str, list[str], _Envelopes]:
    """Return a plugin's name, its lines, and its envelopes."""
    controls = lv2.controls(recipe.effect, take.chain.sample_rate, take.chain.channels)
    name = _plain(f"LV2: {lilv.plugin(recipe.effect).name}")
    trained = {parameter.name: values[:, i] for i, parameter in enumerate(recipe.parameters)}
    envelopes: _Envelopes = {}
    for index, (symbol, control) in enumerate(controls.items()):
        low, high = (control.minimum, control.maximum) if np.isfinite(control.minimum) else (0.0, 1.0)
        if symbol in trained:
            numbers, times = trained[symbol], take.automation.times
        elif symbol in recipe.fixed:
            numbers = np.array([lv2.port_value(control, recipe.fixed[symbol])])
            times = take.automation.times[:1]
        else:
            continue
        envelopes[f"{index}:{symbol}", symbol] = times, (numbers - low) / (high - low)
    return name, _block(f'LV2 "{name}" {_token(recipe.effect)} ""'), envelopes


def _states(preset: bytes) -> tuple[str, bytes, bytes]:
    """Return the class, the component's state and the controller's state of a VST3 preset file."""
    (table,) = struct.unpack_from("<q", preset, 40)
    (count,) = struct.unpack_from("<i", preset, table + 4)
    parts = {}
    for entry in range(count):
        kind, offset, size = struct.unpack_from("<4sqq", preset, table + 8 + 20 * entry)
        parts[kind] = preset[offset : offset + size]
    return preset[8:40].decode("ascii"), parts.get(b"Comp", b""), parts.get(b"Cont", b"")


def _guid(name: str) -> str:
    """Return an identifier that depends on the name only, so that a project can be reproduced."""
    return "{" + str(uuid.uuid5(uuid.NAMESPACE_URL, f"dfx:{name}")).upper() + "}"


def _quoted(text: str) -> str:
    """Quote with the first of REAPER's quotation marks that the text does not contain."""
    mark = next((mark for mark in "\"'`" if mark not in text), "`")
    return mark + text.replace("`", "'") + mark if mark == "`" else mark + text + mark


def _token(text: str) -> str:
    """Return a text without quotation marks if it can do without them."""
    return text if re.fullmatch(r"[^\s\"'`<>|]+", text) else _quoted(text)


def _plain(text: str) -> str:
    return text.replace('"', "'")


def _relative(file: str, project: str) -> str:
    try:
        return Path(os.path.relpath(file, Path(project).parent)).as_posix()
    except ValueError:  # another drive
        return str(Path(file).resolve())
