"""The page of one rendering: input, output and a reference at one loudness, spectrograms, and the automation."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from dfx.audio.levels import amplitude_to_db, db_to_amplitude
from dfx.audio.loudness import SILENCE_LUFS, lufs
from dfx.audio.reading import AudioFile, stream_file
from dfx.errors import printable
from dfx.render.automation import Automation
from dfx.report import PAGE_SECONDS
from dfx.report.write import ANCHOR, drawing, encode_flac, pictures_of, write_page


def write_rendering(
    path: Path,
    input: str,
    output: str,
    automation: Automation,
    reference: str | None = None,
    seconds: float = PAGE_SECONDS,
) -> None:
    """Write the page of one rendering: input and output at one loudness, their spectrograms, and the automation.

    Args:
        path: of the page.
        input, output: the paths of the recordings, of one sample rate.
        automation: of the rendering.
        reference: the path of a recording whose middle is a third track.
        seconds: maximum length on the page, from the beginning.

    Raises:
        DataError: if a recording cannot be decoded.
    """
    audio = {}
    for track, file in (("input", input), ("output", output)):
        with contextlib.closing(stream_file(file)) as stream:
            sample_rate, samples, channels = stream.sample_rate, stream.samples, stream.channels
            audio[track] = stream.read(min(samples, max(1, round(seconds * sample_rate))))[:2].T
    if reference is not None:
        audio["reference"] = _read_middle(reference, len(audio["output"]), sample_rate)
    levels, audio = _at_one_loudness(audio, sample_rate)
    if channels > 2:
        levels += f" Of {channels} channels, the page holds the first two."
    if reference is not None:
        levels += f" The reference is the middle of {printable(Path(reference).name)}."
    name, shown = printable(Path(output).name), len(audio["output"]) / sample_rate
    points = max(1, int((automation.times < shown).sum()))
    columns = {"seconds": automation.times, **dict(zip(automation.names, automation.values.T))}
    file_data = {
        "name": name,
        "seconds": shown,
        "whole_seconds": samples / sample_rate,
        **pictures_of(audio, sample_rate),
        "automation": {name: [float(f"{value:.6g}") for value in column[:points]] for name, column in columns.items()},
        "settings": {},
    }
    shared = {
        "parameters": [dict(vars(parameter)) for parameter in automation.space.parameters],
        "interpolation": automation.interpolation,
        "identity": "",
        "tracks": list(audio),
        "anchor": ANCHOR,
        "count": 1,
        "complete": "the rendered file is complete",
        "pages": [path.name],
        **drawing(sample_rate),
    }
    data = {"page": 0, "first": 0, "files": [file_data], "shared": shared}
    encoded = {track: encode_flac(samples, sample_rate) for track, samples in audio.items()}
    write_page(path, name, levels, data, [encoded])


def _read_middle(path: str, samples: int, sample_rate: int) -> np.ndarray:
    """Return the middle of a recording, ``(samples, channels)``, in mono unless it is in stereo."""
    file = AudioFile.open(path)
    start = max(0, (file.samples_at(sample_rate) - samples) // 2)
    return file.read(start, samples, sample_rate, 2 if file.channels == 2 else 1).T.numpy()


def _at_one_loudness(audio: Mapping[str, np.ndarray], sample_rate: int) -> tuple[str, dict[str, np.ndarray]]:
    """Attenuate the louder recordings to the quietest, and all to full scale; return a sentence, and the recordings."""
    loudness = {track: lufs(torch.from_numpy(samples.T), sample_rate) for track, samples in audio.items()}
    lowest = min(loudness.values())
    is_silent = lowest <= SILENCE_LUFS
    gains_db = {track: 0.0 if is_silent else lowest - loudness[track] for track in audio}
    peak = max(float(np.abs(samples).max()) * db_to_amplitude(gains_db[track]) for track, samples in audio.items())
    # Full scale of 16 bits is slightly below 1; 0.1 dB keeps off it.
    common_db = -float(amplitude_to_db(peak)) - 0.1 if peak > 1 else 0.0
    gains_db = {track: gain_db + common_db for track, gain_db in gains_db.items()}
    gains = " and ".join(f"the {track} by {-gain_db:.1f} dB" for track, gain_db in gains_db.items() if gain_db < -0.05)
    sentence = f"All tracks play at one loudness{f': the page attenuates {gains}' if gains else ''}."
    if is_silent:
        sentence = "A track is silent here, so loudness is not matched."
    changed = {track: samples * np.float32(db_to_amplitude(gains_db[track])) for track, samples in audio.items()}
    return sentence, changed
