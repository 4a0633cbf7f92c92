"""Writes the pages: the data of every file, and the template that holds them."""

import base64
import csv
import hashlib
import io
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tqdm import tqdm

from dfx.audio.levels import amplitude_to_db
from dfx.audio.metadata import soundfile_path
from dfx.audio.spectrogram import magnitude_spectrogram
from dfx.errors import UserError, in_one_line
from dfx.evaluation.meanings import EXPLAINED, TITLES
from dfx.render.automation import INTERPOLATIONS
from dfx.report import PAGE_MEGABYTES, PAGE_SECONDS
from dfx.writing import write_text

ANCHOR = "anchor_3.5_khz"
"""The low-passed target, which attentive listeners rate low."""

_HERE = Path(__file__).parent
_TITLES = {
    "TubeAmp": "Tube amplifier",
    "NonSpeech": "Breaths and clicks",
    "Mastering": "Mastering",
    "StyleTransfer": "Style transfer",
}
_COLUMNS = 480
_BANDS = 80
_RANGE_DB = 80.0
_LOWEST_HZ = 40.0
_TICKS_HZ = (200, 500, 1000, 2000, 5000, 10000)
_RAMPS = {
    "dark": ["#131215", "#2b1b3f", "#6d2a63", "#c04a54", "#f09a58", "#fdf0d0"],
    "light": ["#ffffff", "#fbe9da", "#efb184", "#cf6457", "#6f2a5c", "#1c0f26"],
}
"""Colours from silence to the maximum, with monotonic lightness."""

_File = tuple[dict[str, Any], dict[str, str]]
"""The data of a file, and its tracks as FLAC in base64."""


class ReportError(UserError):
    """A folder holds no complete evaluation."""


def write_report(folder: Path, seconds: float = PAGE_SECONDS, megabytes: float = PAGE_MEGABYTES) -> list[Path]:
    """Write the listening page of an evaluation into its folder.

    Args:
        folder: the folder written by :func:`dfx.evaluation.evaluate`.
        seconds: maximum length of each file on the page, from its beginning; the folder keeps the complete audio.
        megabytes: maximum size of the files' data on one page, which holds at least one file.

    Returns:
        The paths of the pages, ``report.html`` first.

    Raises:
        ReportError: if the folder holds no evaluation, or a part of it is missing.
        ValueError: if ``seconds`` or ``megabytes`` is not positive.
    """
    if not (seconds > 0 and megabytes > 0):
        raise ValueError(f"seconds ({seconds:g}) and megabytes ({megabytes:g}) must be above 0")
    broken = (ValueError, TypeError, LookupError, AttributeError, RecursionError, csv.Error)
    try:
        return _write_pages(folder, seconds, megabytes)
    except broken as error:
        fault = in_one_line(error) or type(error).__name__
        raise ReportError(f"{folder} holds no complete evaluation ({fault}): run evaluate.py again") from error


def _write_pages(folder: Path, seconds: float, megabytes: float) -> list[Path]:
    about, rows, settings, means = (_read_json(folder, name) for name in ("evaluation", "files", "settings", "means"))
    # Evaluations of earlier versions wrote no differences.
    differences = _read_json(folder, "differences") if (folder / "differences.json").exists() else {}
    # From the unprocessed input to the target.
    tracks = ["input", *(method for method in about["methods"] if method != "input"), "target"]
    progress = tqdm(about["files"], desc="Writing the page", unit="file", leave=False, disable=None)
    files = [_read_file(folder, file, tracks, seconds, rows, settings) for file in progress]
    pages = _paginate(files, 1e6 * megabytes)
    paths = [folder / ("report.html" if i == 0 else f"report_{i + 1}.html") for i in range(len(pages))]
    shared = {
        **{name: about[name] for name in ("task", "methods", "parameters", "less_is_better")},
        "metrics": {name: _meaning(name, text) for name, text in about["metrics"].items()},
        # Evaluations of earlier versions held parameters and did not say so.
        "interpolation": about.get("interpolation", "hold"),
        "identity": hashlib.sha256(json.dumps([about, rows]).encode()).hexdigest()[:16],
        "means": means,
        "differences": differences,
        "tracks": tracks,
        "anchor": ANCHOR,
        "count": len(about["files"]),
        "complete": "the folder “audio” holds the complete files",
        "pages": [path.name for path in paths],
        **drawing(about["sample_rate"]),
    }
    title = _TITLES.get(about["task"], about["task"])
    firsts = itertools.accumulate(map(len, pages), initial=0)
    for number, (path, page, first) in enumerate(zip(paths, pages, firsts)):
        data = {"page": number, "first": first, "files": [data for data, _ in page], "shared": shared}
        write_page(path, title, "All tracks have the same gain.", data, [encoded for _, encoded in page])
    for stale in set(folder.glob("report_*.html")) - set(paths):
        stale.unlink()
    return paths


def write_page(
    path: Path, title: str, levels: str, data: Mapping[str, Any], audio: Sequence[Mapping[str, str]]
) -> None:
    """Fill the template; ``levels`` is the sentence about the gains of the tracks."""
    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    content = environment.get_template("page.html").render(
        title=title,
        levels=levels,
        interpolation=INTERPOLATIONS[data["shared"]["interpolation"]],
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        script=script,
        digest=_base64(hashlib.sha256(script.encode()).digest()),
        data=data,
        audio=audio,
    )
    write_text(path, content)


def _paginate(files: Sequence[_File], max_bytes: float) -> list[list[_File]]:
    pages: list[list[_File]] = [[]]
    size = 0
    for data, encoded in files:
        length = len(json.dumps(data)) + sum(map(len, encoded.values()))
        size += length
        if pages[-1] and size > max_bytes:
            pages.append([])
            size = length
        pages[-1].append((data, encoded))
    return pages


def low_pass(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the low anchor of ITU-R BS.1534: flat up to 3.5 kHz, -25 dB at 4 kHz, -50 dB at 4.5 kHz, without delay.

    Args:
        audio: ``(samples, channels)``.
        sample_rate: in Hz; below 9 kHz the audio is returned unchanged.
    """
    if sample_rate <= 9000:
        return audio
    # Kaiser's formulas for 60 dB over 500 Hz, in NumPy: importing scipy.signal would take longer than a page.
    reach = math.ceil((60 - 7.95) / (2 * 2.285 * 2 * math.pi * 500 / sample_rate))
    kernel = np.sinc(2 * 3750 / sample_rate * np.arange(-reach, reach + 1)) * np.kaiser(2 * reach + 1, 0.1102 * 51.3)
    # A power of two: the transform is slow for lengths with large prime factors.
    length = 1 << (len(audio) + 2 * reach - 1).bit_length()
    response = np.fft.rfft(kernel / kernel.sum(), length)[:, None]
    filtered = np.fft.irfft(np.fft.rfft(audio, length, axis=0) * response, length, axis=0)
    return filtered[reach : reach + len(audio)].astype(audio.dtype)


def _read_file(
    folder: Path,
    file: Mapping[str, Any],
    tracks: Sequence[str],
    seconds: float,
    rows: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Mapping[str, Any]],
) -> _File:
    """Return the data of a file as page.js reads them, and its tracks with the anchor added."""
    audio, encoded = {}, {}
    for name in (file["stem"], *tracks):
        # The folder may come from a stranger.
        if Path(name).name != name:
            raise ValueError(f"{name!r} is not the name of a file in it")
    for track in tracks:
        path = folder / "audio" / f"{file['stem']}_{track}.flac"
        whole, sample_rate = _read_track(path)
        part = whole[: max(1, round(seconds * sample_rate))]
        audio[track] = part
        encoded[track] = _base64(path.read_bytes() if len(part) == len(whole) else _flac(part, sample_rate))
    if "reference" in file:
        # It may have another length: the page has as much of it as of the others.
        part = _read_track(folder / "audio" / f"{file['stem']}_reference.flac")[0][: len(audio["target"])]
        audio["reference"] = np.pad(part, ((0, len(audio["target"]) - len(part)), (0, 0)))
        encoded["reference"] = encode_flac(audio["reference"], sample_rate)
    encoded[ANCHOR] = encode_flac(low_pass(audio["target"], sample_rate), sample_rate)
    of_file = [row for row in rows if row["file"] == file["name"]]
    shown = len(audio["target"]) / sample_rate
    data = {
        "name": file["name"],
        "seconds": shown,
        "whole_seconds": file["seconds"],
        "reference": file.get("reference"),
        **pictures_of(audio, sample_rate),
        "automation": _automation(folder / "automation" / f"{file['stem']}.csv", shown),
        "metrics": {
            row["method"]: {name: value for name, value in row.items() if isinstance(value, (int, float))}
            for row in of_file
        },
        "left_out": {row["method"]: row["left_out"] for row in of_file if row["left_out"]},
        # One setting for all files, or one for each.
        "settings": {name: values.get(file["name"], values) for name, values in settings.items()},
    }
    return data, encoded


def _read_track(path: Path) -> tuple[np.ndarray, int]:
    """Return the audio ``(samples, channels)`` and the sample rate of a file of the evaluation."""
    try:
        return soundfile.read(soundfile_path(str(path)), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        raise ReportError(f"{path} is missing or broken: run evaluate.py again") from None


def _automation(path: Path, seconds: float) -> dict[str, list[float]]:
    """Return the columns of the file up to a time."""
    try:
        points = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except FileNotFoundError:
        raise ReportError(f"{path} is missing: run evaluate.py again") from None
    shown = [point for point in points if float(point["seconds"]) < seconds] or points[:1]
    return {name: [float(f"{float(point[name]):.6g}") for point in shown] for name in shown[0]}


def pictures_of(audio: Mapping[str, np.ndarray], sample_rate: int) -> dict[str, dict[str, object]]:
    """Return waveforms and spectrograms of the tracks, ``(samples, channels)``, on one scale each."""
    peak = max(float(np.abs(samples).max()) for samples in audio.values()) or 1.0
    spectra = {track: _spectrum(samples.mean(axis=1), sample_rate) for track, samples in audio.items()}
    maximum = max(float(spectrum.max()) for spectrum in spectra.values()) or 1.0
    return {
        "waveforms": {track: _waveform(samples, peak) for track, samples in audio.items()},
        "spectrograms": {track: _spectrogram(spectrum, maximum) for track, spectrum in spectra.items()},
    }


def _waveform(audio: np.ndarray, peak: float) -> dict[str, object]:
    """Return minimum and maximum over all channels in each column, as int8 with 127 at the peak."""
    starts = _starts(len(audio))
    low = np.minimum.reduceat(audio.min(axis=1), starts)
    high = np.maximum.reduceat(audio.max(axis=1), starts)
    return _packed(np.round(127 * np.stack([low, high]) / peak).astype(np.int8))


def _spectrum(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the maximum magnitude in each mel band and column, ``(bands, columns)``, the lowest band first."""
    window = 2 ** round(np.log2(0.046 * sample_rate))
    hop = max(1, min(window // 4, len(audio) // _COLUMNS))
    magnitude = magnitude_spectrogram(audio, window, hop)
    mels = np.linspace(_hz_to_mel(_LOWEST_HZ), _hz_to_mel(sample_rate / 2), _BANDS + 1)[:-1]
    edges = 700 * (10 ** (mels / 2595) - 1)
    bins = np.minimum(np.round(edges * window / sample_rate).astype(int), len(magnitude) - 1)
    return np.maximum.reduceat(np.maximum.reduceat(magnitude, bins, axis=0), _starts(magnitude.shape[1]), axis=1)


def _spectrogram(spectrum: np.ndarray, maximum: float) -> dict[str, object]:
    """Return levels as uint8: 255 at the maximum of all tracks, 0 at 80 dB below."""
    return _packed(np.round(255 * np.clip(1 + amplitude_to_db(spectrum / maximum) / _RANGE_DB, 0, 1)).astype(np.uint8))


def _packed(levels: np.ndarray) -> dict[str, object]:
    return {"columns": levels.shape[1], "levels": _base64(levels.tobytes())}


def _starts(length: int) -> np.ndarray:
    """Return the first index of each of at most 480 columns."""
    columns = min(_COLUMNS, length)
    return np.arange(columns) * length // columns


def _meaning(metric: str, explained: str) -> dict[str, str]:
    """Return the title and the sentence of a metric, which evaluations of other versions may have named themselves."""
    return {"title": TITLES.get(metric, metric.replace("_", " ")), "sentence": EXPLAINED.get(metric, explained)}


def drawing(sample_rate: int) -> dict[str, object]:
    """Return the scales and colours of the spectrograms."""
    return {"bands": _BANDS, "ticks": _ticks(sample_rate), "colours": _colours()}


def _ticks(sample_rate: int) -> list[dict[str, object]]:
    lowest, highest = _hz_to_mel(_LOWEST_HZ), _hz_to_mel(sample_rate / 2)
    names = {hz: f"{hz} Hz" if hz < 1000 else f"{hz // 1000} kHz" for hz in _TICKS_HZ if hz < 0.45 * sample_rate}
    return [{"name": name, "height": (_hz_to_mel(hz) - lowest) / (highest - lowest)} for hz, name in names.items()]


def _hz_to_mel(hz: float) -> float:
    return 2595 * math.log10(1 + hz / 700)


def _colours() -> dict[str, str]:
    """Return 256 RGB triples for dark and for light screens."""
    return {name: _base64(_ramp(stops).tobytes()) for name, stops in _RAMPS.items()}


def _ramp(stops: Sequence[str]) -> np.ndarray:
    """Return 256 colours on straight lines between evenly spaced ones, ``(256, 3)`` as uint8."""
    channels = np.array([list(bytes.fromhex(stop[1:])) for stop in stops]).T
    places = np.linspace(0, len(stops) - 1, 256)
    rgb = np.stack([np.interp(places, np.arange(len(stops)), channel) for channel in channels], axis=1)
    return np.round(rgb).astype(np.uint8)


def _flac(audio: np.ndarray, sample_rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.clip(audio, -1, 1), sample_rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def encode_flac(audio: np.ndarray, sample_rate: int) -> str:
    """Return ``(samples, channels)`` as FLAC of 16 bits, in base64."""
    return _base64(_flac(audio, sample_rate))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _read_json(folder: Path, name: str) -> Any:
    path = folder / f"{name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReportError(f"{folder} holds no evaluation: {path.name} is missing; run evaluate.py") from None
    except ValueError:
        raise ReportError(f"{path} is broken: run evaluate.py again") from None
