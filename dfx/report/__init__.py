"""The listening page of an evaluation: what a model and its baselines make of every file, to hear, see and rate.

    python -m dfx.report runs/tube_amp/evaluation

writes ``report.html`` again from the folder that ``evaluate.py`` has left, and from nothing else. The page is one
file that holds its audio, opens from disk, and asks nothing of any server. It shows the files one at a time: input,
target, output and baselines as players that keep time with each other, their waveforms and spectrograms, the
model's automation, and the metrics. In its blind test the names are hidden and the order is drawn anew for every
file and listener; one rates against the target from 0 to 100, a hidden target and a low-passed one among the others
(after ITU-R BS.1534, MUSHRA), and takes the ratings home as CSV. When there is too much audio for one page, the rest
goes to ``report_2.html`` and so on, each of which leads to the others.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile
from tqdm import tqdm

from dfx.errors import UserError

ANCHOR = "anchor_3.5_khz"
"""The target through a low-pass: what a listener who listens rates low."""

PAGE_SECONDS = 60.0
PAGE_MEGABYTES = 40.0

_HERE = Path(__file__).parent
_COLUMNS = 480
_BANDS = 80
_RANGE_DB = 80.0
_LOWEST_HZ = 40.0
_TICKS_HZ = (200, 500, 1000, 2000, 5000, 10000)
_RAMPS = {
    "dark": ["#131215", "#2b1b3f", "#6d2a63", "#c04a54", "#f09a58", "#fdf0d0"],
    "light": ["#ffffff", "#fbe9da", "#efb184", "#cf6457", "#6f2a5c", "#1c0f26"],
}
"""Colours from silence to the loudest; their lightness runs one way."""


class ReportError(UserError):
    """There is nothing to make a page of, or it is not whole."""


def write_report(folder: Path, seconds: float = PAGE_SECONDS, megabytes: float = PAGE_MEGABYTES) -> list[Path]:
    """Writes the page of an evaluation into its folder.

    Args:
        folder: what :func:`dfx.evaluation.evaluate` has written to.
        seconds: how much of each file the page holds, from its beginning; the folder's audio is whole.
        megabytes: of what belongs to files, on one page; a page holds one file at least.

    Returns:
        The pages, ``report.html`` first.

    Raises:
        ReportError: if the folder holds no evaluation, or a part of it is missing.
        ValueError: if ``seconds`` or ``megabytes`` is not positive.
    """
    if not (seconds > 0 and megabytes > 0):
        raise ValueError(f"seconds ({seconds:g}) and megabytes ({megabytes:g}) must be above 0")
    about = _read_json(folder, "evaluation")
    rows = _read_json(folder, "files")
    settings = _read_json(folder, "settings")
    methods = about["methods"]
    # What is compared stands between what it begins with and where it should lead.
    tracks = ["input", *(method for method in methods if method != "input"), "target"]

    pages: list[list[dict[str, str]]] = [[]]
    size = 0
    for file in tqdm(about["files"], desc="Writing the page", unit="file", leave=False):
        parts = _parts(folder, file, tracks, rows, settings, seconds)
        length = sum(map(len, parts.values()))
        if pages[-1] and size + length > 1e6 * megabytes:
            pages.append([])
            size = 0
        pages[-1].append(parts)
        size += length

    paths = [folder / ("report.html" if i == 0 else f"report_{i + 1}.html") for i in range(len(pages))]
    shared = {
        **{name: about[name] for name in ("task", "methods", "parameters", "metrics", "less_is_better")},
        "identity": hashlib.sha256(json.dumps([about, rows]).encode()).hexdigest()[:16],
        "means": _read_json(folder, "means"),
        "tracks": tracks,
        "anchor": ANCHOR,
        "count": len(about["files"]),
        "bands": _BANDS,
        "ticks": _ticks(about["sample_rate"]),
        "colours": _colours(),
        "pages": [path.name for path in paths],
    }
    first = 0
    for number, (path, page) in enumerate(zip(paths, pages)):
        files = ",".join(parts.pop("file") for parts in page)
        data = f'{{"page":{number},"first":{first},"files":[{files}],"shared":{_json(shared)}}}'
        audio = "\n".join(
            f'<script type="text/plain" id="audio-{i}-{html.escape(track)}">{encoded}</script>'
            for i, parts in enumerate(page)
            for track, encoded in parts.items()
        )
        path.write_text(_fill({"data": data, "audio": audio, "title": _title(about)}), encoding="utf-8")
        first += len(page)
    for stale in set(folder.glob("report_*.html")) - set(paths):
        stale.unlink()
    return paths


def low_pass(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """The low anchor of ITU-R BS.1534: flat up to 3.5 kHz, 25 dB down at 4 kHz, 50 dB at 4.5 kHz, without delay.

    Args:
        audio: ``(samples, channels)``.
        sample_rate: in Hz; below 9 kHz there is nothing to take away, and the audio is returned as it is.
    """
    if sample_rate <= 9000:
        return audio
    taps, beta = scipy.signal.kaiserord(60.0, 500 / (sample_rate / 2))
    window = scipy.signal.firwin(taps | 1, 3750, window=("kaiser", beta), fs=sample_rate)
    # Not mode "same" of both: that is as long as the longer of them.
    reach = len(window) // 2
    filtered = scipy.signal.fftconvolve(audio, window[:, None], axes=0)
    return filtered[reach : reach + len(audio)].astype(audio.dtype)


def _parts(
    folder: Path,
    file: Mapping[str, object],
    tracks: Sequence[str],
    rows: Sequence[Mapping[str, object]],
    settings: Mapping[str, Mapping[str, object]],
    seconds: float,
) -> dict[str, str]:
    """``file``, what the page knows of a file, as JSON, and the FLAC of each of its tracks in base64."""
    audio: dict[str, np.ndarray] = {}
    encoded: dict[str, str] = {}
    sample_rate = 0
    for track in tracks:
        path = folder / "audio" / f"{file['stem']}_{track}.flac"
        try:
            whole, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError:
            raise ReportError(f"{path} is missing or broken: evaluate again") from None
        audio[track] = whole[: max(1, round(seconds * sample_rate))]
        as_it_is = len(audio[track]) == len(whole)
        encoded[track] = _base64(path.read_bytes() if as_it_is else _flac(audio[track], sample_rate))
    encoded[ANCHOR] = _base64(_flac(low_pass(audio["target"], sample_rate), sample_rate))

    peak = max(float(np.abs(heard).max()) for heard in audio.values()) or 1.0
    spectra = {track: _spectrum(heard.mean(axis=1), sample_rate) for track, heard in audio.items()}
    loudest = max(float(spectrum.max()) for spectrum in spectra.values()) or 1.0
    of_file = [row for row in rows if row["file"] == file["name"]]
    held_seconds = len(audio["target"]) / sample_rate
    known = {
        "name": file["name"],
        "seconds": held_seconds,
        "whole_seconds": file["seconds"],
        "waveforms": {track: _waveform(heard, peak) for track, heard in audio.items()},
        "spectrograms": {track: _spectrogram(spectrum, loudest) for track, spectrum in spectra.items()},
        "automation": _automation(folder / "automation" / f"{file['stem']}.csv", held_seconds),
        "metrics": {
            row["method"]: {name: value for name, value in row.items() if isinstance(value, (int, float))}
            for row in of_file
        },
        "left_out": {row["method"]: row["left_out"] for row in of_file if row["left_out"]},
        # One for all files, or one for each.
        "settings": {name: values.get(file["name"], values) for name, values in settings.items()},
    }
    return {"file": _json(known), **encoded}


def _automation(path: Path, seconds: float) -> dict[str, list[float]]:
    """The columns of the file, as far as they are heard."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if float(row["seconds"]) < seconds]
    except FileNotFoundError:
        raise ReportError(f"{path} is missing: evaluate again") from None
    return {name: [float(f"{float(row[name]):.6g}") for row in rows] for name in rows[0]}


def _waveform(audio: np.ndarray, peak: float) -> dict[str, object]:
    """Lowest and highest samples of all channels in each column, int8, 127 at the peak."""
    starts = _starts(len(audio))
    low = np.minimum.reduceat(audio.min(axis=1), starts)
    high = np.maximum.reduceat(audio.max(axis=1), starts)
    scaled = np.round(127 * np.stack([low, high]) / peak).astype(np.int8)
    return {"columns": len(starts), "levels": _base64(scaled.tobytes())}


def _spectrum(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """The strongest magnitude in each mel band and column, ``(bands, columns)``, the lowest band first."""
    window = 2 ** round(np.log2(0.046 * sample_rate))
    hop = max(1, min(window // 4, len(audio) // _COLUMNS))
    transform = scipy.signal.ShortTimeFFT(scipy.signal.get_window("hann", window), hop, sample_rate)
    magnitude = np.abs(transform.stft(np.pad(audio, (0, max(0, window - len(audio))))))
    # Only the columns whose middle lies in the audio.
    first = -transform.p_min
    magnitude = magnitude[:, first : first + max(1, -(-len(audio) // hop))]
    edges = _hz(np.linspace(_mel(_LOWEST_HZ), _mel(sample_rate / 2), _BANDS + 1))[:-1]
    bins = np.minimum(np.round(edges * window / sample_rate).astype(int), len(magnitude) - 1)
    return np.maximum.reduceat(np.maximum.reduceat(magnitude, bins, axis=0), _starts(magnitude.shape[1]), axis=1)


def _spectrogram(spectrum: np.ndarray, loudest: float) -> dict[str, object]:
    """Levels, uint8: 255 the loudest of all tracks, 0 for 80 dB less."""
    decibels = 20 * np.log10(np.maximum(spectrum / loudest, 1e-10))
    levels = np.round(255 * np.clip(1 + decibels / _RANGE_DB, 0, 1)).astype(np.uint8)
    return {"columns": levels.shape[1], "levels": _base64(levels.tobytes())}


def _starts(length: int) -> np.ndarray:
    """Where each of at most 480 columns begins."""
    columns = min(_COLUMNS, length)
    return np.arange(columns) * length // columns


def _ticks(sample_rate: int) -> list[dict[str, object]]:
    lowest, highest = _mel(_LOWEST_HZ), _mel(sample_rate / 2)
    names = {hz: f"{hz} Hz" if hz < 1000 else f"{hz // 1000} kHz" for hz in _TICKS_HZ if hz < 0.45 * sample_rate}
    return [{"name": name, "height": float((_mel(hz) - lowest) / (highest - lowest))} for hz, name in names.items()]


def _mel(hz: float) -> float:
    return 2595 * np.log10(1 + hz / 700)


def _hz(mel: np.ndarray) -> np.ndarray:
    return 700 * (10 ** (mel / 2595) - 1)


def _colours() -> dict[str, str]:
    """256 times red, green and blue, for dark and for light screens."""
    ramps = {}
    for name, colours in _RAMPS.items():
        corners = np.array([list(bytes.fromhex(colour[1:])) for colour in colours])
        positions = np.linspace(0, 255, len(corners))
        levels = np.stack([np.interp(np.arange(256), positions, corner) for corner in corners.T], axis=1)
        ramps[name] = _base64(np.round(levels).astype(np.uint8).tobytes())
    return ramps


def _flac(audio: np.ndarray, sample_rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.clip(audio, -1, 1), sample_rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _json(content: object) -> str:
    """JSON that may stand in a script element."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _title(about: Mapping[str, object]) -> str:
    return html.escape(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", str(about["task"])).capitalize())


def _fill(parts: Mapping[str, str]) -> str:
    parts = {
        "style": (_HERE / "page.css").read_text(encoding="utf-8"),
        "script": (_HERE / "page.js").read_text(encoding="utf-8"),
        **parts,
    }
    page = (_HERE / "page.html").read_text(encoding="utf-8")
    # In one pass: what is filled in is not searched.
    return re.sub(r"<!--(\w+)-->", lambda match: parts[match[1]], page)


def _read_json(folder: Path, name: str) -> object:
    path = folder / f"{name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReportError(f"{folder} holds no evaluation: {path.name} is missing; evaluate.py writes it") from None
    except ValueError:
        raise ReportError(f"{path} is broken: evaluate again") from None
