"""The host of LV2 plugins: ``lv2:http://calf.sourceforge.net/plugins/MultibandCompressor``.

Controls are named by the symbols of their ports. Ranges, defaults and units come from a plugin's metadata.
Properties of LV2 plugins that matter for streaming, and how this host deals with them:

* A plugin that is activated again keeps part of its state: a restart creates a new instance.
* Many smooth their controls from the defaults, or initialize while they render their first block: an instance
  is created for the first block of a stream, with its values, and renders ``BLOCK_SAMPLES`` of silence first.
* Some process whole blocks (LSP's limiter), so that the block length changes the output: longer blocks are
  rendered in pieces of ``BLOCK_SAMPLES``, and frames of a multiple of it equal the whole.

Metadata do not tell everything: not which controls have no effect, nor which are smoothed (the frequencies of
Calf's equalizers rise from 0 by about 1 Hz per sample), nor unreported delays (Calf's limiter: its attack).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dfx.effects import lilv
from dfx.effects.effect import Control, Effect, EffectError, Recipe, RenderError
from dfx.effects.lilv import BLOCK_SAMPLES


def controls(name: str, sample_rate: int, channels: int) -> dict[str, Control]:
    """Return the control inputs of the plugin with the URI ``name``, by symbol.

    Switches, modes, integers and controls without a range cannot be trained. A mode is set by the name of a
    setting or by its number.

    Raises:
        EffectError: if liblilv or the plugin is not installed, or if the plugin is not an effect, does not fit
            ``channels``, or requires features that this host lacks.
    """
    plugin = lilv.plugin(name)
    _count_instances(plugin, channels)
    return {
        port.symbol: _scaled(port.control, sample_rate) if port.in_sample_rates else port.control
        for port in plugin.ports
        if port.control
    }


def _scaled(control: Control, factor: int) -> Control:
    names = ("default", "low", "high", "minimum", "maximum")
    return replace(control, **{name: factor * getattr(control, name) for name in names})


def build(recipes: Sequence[Recipe], sample_rate: int, channels: int) -> list[tuple[Effect, int]]:
    """Build a live effect for each recipe."""
    return [(Lv2Effect(recipe, sample_rate, channels), 1) for recipe in recipes]


def list_plugins() -> dict[str, str]:
    """Return the names of all installed plugins that this host can use as effects, by URI."""
    names = {}
    for uri in lilv.uris():
        with contextlib.suppress(EffectError):
            plugin = lilv.outline(uri)
            _count_instances(plugin, channels=1)
            names[uri] = plugin.name
    return names


def port_value(control: Control, value: Any) -> float:
    """Return the number of a value as a config may give it: a number, a switch, or the name of a setting."""
    points = (point for point in control.choices if isinstance(point, lilv.ScalePoint))
    return float(next((point.number for point in points if point == value), value))


class Lv2Effect(Effect):
    """One plugin: one instance, or one for every channel if the plugin is mono."""

    def __init__(self, recipe: Recipe, sample_rate: int, channels: int) -> None:
        plugin = lilv.plugin(recipe.effect)
        self._library = lilv.library(recipe.effect, sample_rate)
        self._channels = channels
        self._latency_port = plugin.latency_port

        # One float for every port keeps indices simple; ports that are not controls leave theirs unused.
        self._values = np.zeros(len(plugin.ports), dtype=np.float32)
        indices = {port.symbol: index for index, port in enumerate(plugin.ports)}
        for symbol, control in controls(recipe.effect, sample_rate, channels).items():
            self._values[indices[symbol]] = port_value(control, recipe.fixed.get(symbol, control.default))
        self._trained = np.array([indices[parameter.name] for parameter in recipe.parameters], dtype=np.intp)
        self._values[self._trained] = [parameter.default for parameter in recipe.parameters]

        count = _count_instances(plugin, channels)
        shapes = [(count * plugin.count_audio(is_input), BLOCK_SAMPLES) for is_input in (True, False)]
        self._inputs, self._outputs = (np.zeros(shape, dtype=np.float32) for shape in shapes)
        self._event_outputs: list[tuple[np.ndarray, np.ndarray]] = []
        audio = {True: iter(self._inputs), False: iter(self._outputs)}
        self._buffers = [self._port_buffers(plugin, audio) for _ in range(count)]
        self._instances: list[Callable[[int], None]] = []
        # Start on the main thread, before training begins, to find plugins that refuse to run.
        self._start()
        self.latency_samples = self._reported_latency()
        self.restart()

    def render(self, audio: np.ndarray, values: np.ndarray) -> np.ndarray:
        self._values[self._trained] = values
        if not self._instances:
            self._start()
        output = np.empty_like(audio)
        for start in range(0, audio.shape[1], BLOCK_SAMPLES):
            samples = min(BLOCK_SAMPLES, audio.shape[1] - start)
            # A stereo plugin gets mono audio on both inputs, and its left output is used. (The paper's code left
            # the right input silent, with the same result for Calf's plugins: they follow the louder side.)
            self._inputs[:, :samples] = audio[:, start : start + samples]
            self._run(samples)
            output[:, start : start + samples] = self._outputs[: self._channels, :samples]
        if (latency := self._reported_latency()) != self.latency_samples:
            raise RenderError(
                f"its latency went from {self.latency_samples} to {latency} samples: a control that changes it, "
                "such as a look-ahead, cannot be trained; put it under `fixed`"
            )
        return output

    def restart(self) -> None:
        self._instances = []

    def read_values(self) -> np.ndarray:
        return self._values[self._trained].astype(np.float64)

    def _start(self) -> None:
        self._instances = [self._library.instantiate(buffers) for buffers in self._buffers]
        self._inputs[:] = 0
        self._run(BLOCK_SAMPLES)

    def _run(self, samples: int) -> None:
        for events, header in self._event_outputs:
            events[:2] = header
        for run_instance in self._instances:
            run_instance(samples)

    def _reported_latency(self) -> int:
        return 0 if self._latency_port is None else round(float(self._values[self._latency_port]))

    def _port_buffers(self, plugin: lilv.Plugin, audio: dict[bool, Iterator[np.ndarray]]) -> list[np.ndarray | None]:
        """Return the memory of each port of one instance; ``audio`` gives that of inputs (True) and of outputs."""
        buffers: list[np.ndarray | None] = []
        for index, port in enumerate(plugin.ports):
            buffer = None
            if port.kind == "control":
                buffer = self._values[index:]
            elif port.kind == "audio":
                buffer = next(audio[port.is_input])
            elif port.kind == "silent":
                buffer = np.zeros(BLOCK_SAMPLES, dtype=np.float32)
            elif port.kind == "events":
                # A header (size, type, time unit, padding) and, in an output, the capacity for events.
                buffer = np.zeros(4 + port.event_bytes // 4, dtype=np.uint32)
                if port.is_input:
                    buffer[:2] = 8, lilv.urid("atom:Sequence")
                else:
                    buffer[:2] = port.event_bytes, lilv.urid("atom:Chunk")
                    self._event_outputs.append((buffer, buffer[:2].copy()))
            buffers.append(buffer)
        return buffers


def _count_instances(plugin: lilv.Plugin, channels: int) -> int:
    """Return the number of instances of a plugin that render so many channels."""
    inputs, outputs = plugin.count_audio(is_input=True), plugin.count_audio(is_input=False)
    described = f"lv2:{plugin.uri} (audio inputs: {inputs}, outputs: {outputs})"
    if not inputs or not outputs:
        raise EffectError(f"{described} is not an effect: an effect has both")
    if inputs == outputs == 1:
        return channels
    if inputs == outputs == 2 and channels <= 2:
        return 1
    raise EffectError(
        f"{described} cannot render {channels}-channel audio: mono plugins render any number of channels, "
        "stereo plugins one or two, others none"
    )
