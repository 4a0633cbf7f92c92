"""Export of an evaluation as a listening test for webMUSHRA: a YAML file, and WAV files."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pedalboard
import soundfile
import torch
import yaml

from dfx.audio.levels import db_to_amplitude
from dfx.audio.loudness import SILENCE_LUFS, lufs
from dfx.audio.metadata import soundfile_path
from dfx.errors import UserError, check_numbers, in_one_line, nearest
from dfx.writing import write_text

MID_ANCHOR = "mid_anchor"
_MOST_CONDITIONS = 12  # of BS.1534, with the hidden reference
_FADE_SECONDS = 0.005
_INSTRUCTIONS = (
    "On each page, rate how similar every condition is to the reference, from 0 to 100. One of the conditions is the "
    "reference itself: rate it 100. Use headphones in a quiet room, set the volume on the next page, and keep it."
)


@dataclass(frozen=True)
class ExportOptions:
    """The form of a test.

    Args:
        name: of the test: letters, digits, ``_`` and ``-``; by default that of the task.
        items: files of the evaluation, with the offset of each excerpt in seconds; by default all, from the beginning.
        methods: under test; by default those of the evaluation except ``input`` and ``defaults``.
        seconds: maximum length of an excerpt; BS.1534 allows 12.
        own_levels: keep the levels, as the paper's test did, instead of bringing all to the loudness of the reference.

    Raises:
        UserError: if a value is out of its range.
    """

    name: str = ""
    items: Mapping[str, float] | None = None
    methods: Sequence[str] | None = None
    seconds: float = 4.0
    own_levels: bool = False

    def __post_init__(self) -> None:
        check_numbers(vars(self), seconds="(0, 12]", items="[0, 86400]")
        if not re.fullmatch(r"[A-Za-z0-9_-]*", self.name):
            raise UserError(f"'{self.name}' cannot name a test: use letters, digits, _ and -")


class _Evaluation(NamedTuple):
    """The part of an evaluation that a test uses; ``stems`` has the names of its audio files without suffix."""

    folder: Path
    task: str
    sample_rate: int
    methods: list[str]
    stems: dict[str, str]

    def read(self, item: str, track: str) -> np.ndarray:
        """Return a track of a file, float32 ``(samples, channels)``."""
        path = self.folder / "audio" / f"{self.stems[item]}_{track}.flac"
        try:
            return soundfile.read(soundfile_path(str(path)), dtype="float32", always_2d=True)[0]
        except soundfile.LibsndfileError:
            raise UserError(f"{path} is missing or broken: run evaluate.py again") from None


def export_webmushra(evaluation: Path, folder: Path, options: ExportOptions = ExportOptions()) -> Path:
    """Write a test into the folder of webMUSHRA, and return the path of its config.

    The conditions of a page are the hidden reference (the target), the low anchor ``input``, the paper's mid-anchor of
    the task, and the methods under test. The mid-anchor is a distortion with a drive of 8 dB for the tube amplifier,
    the gate at its defaults for speech, and the input with its peak at -1 dBFS for mastering. At equal loudness the
    last is the input again, and is left out.

    Args:
        evaluation: a folder that ``evaluate.py`` wrote.
        folder: of webMUSHRA; the test goes to ``configs/NAME.yaml`` and ``configs/NAME/``.
        options: the form of the test.

    Raises:
        UserError: if the folder holds no evaluation, or lacks a file or method, or there are more than 12 conditions.
    """
    content = _read_evaluation(evaluation)
    tested = options.methods or [method for method in content.methods if method not in ("input", "defaults")]
    items = options.items or dict.fromkeys(content.stems, 0.0)
    _check_known(tested, content.methods, evaluation)
    _check_known(items, content.stems, evaluation)
    name = options.name or content.task.lower()
    pages = []
    for item, offset in items.items():
        tracks = {track: content.read(item, track) for track in dict.fromkeys(["target", "input", *tested])}
        tracks |= _mid_anchor(content, item, tracks["input"], options.own_levels)
        if len(tracks) > _MOST_CONDITIONS:
            raise UserError(f"BS.1534 allows {_MOST_CONDITIONS} conditions, not {len(tracks)}: name fewer methods")
        stimuli = _cut(tracks, offset, options.seconds, content.sample_rate, item)
        if not options.own_levels:
            stimuli = _at_one_loudness(stimuli, content.sample_rate)
        pages.append(_write_page(folder, f"configs/{name}", content.stems[item], stimuli, content.sample_rate))
    config = folder / "configs" / f"{name}.yaml"
    write_text(config, yaml.safe_dump(_as_config(name, pages), sort_keys=False, allow_unicode=True))
    return config


def _read_evaluation(folder: Path) -> _Evaluation:
    try:
        about = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        stems = {str(file["name"]): str(file["stem"]) for file in about["files"]}
        methods = [str(method) for method in about["methods"]]
        for part in (*stems.values(), *methods):
            if Path(part).name != part:  # the folder may come from a stranger
                raise ValueError(f"{part!r} is not the name of a file in it")
        return _Evaluation(folder, str(about["task"]), int(about["sample_rate"]), methods, stems)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder} holds no complete evaluation ({in_one_line(error)}): run evaluate.py") from None


def _check_known(names: Iterable[str], known: Iterable[str], evaluation: Path) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"{evaluation} has no '{name}'{nearest(name, list(known))}")


def _mid_anchor(evaluation: _Evaluation, item: str, input: np.ndarray, own_levels: bool) -> dict[str, np.ndarray]:
    if evaluation.task == "TubeAmp":
        return {MID_ANCHOR: pedalboard.Distortion(drive_db=8.0)(input.T, evaluation.sample_rate).T}
    if evaluation.task == "NonSpeech":
        return {MID_ANCHOR: evaluation.read(item, "defaults")}
    if evaluation.task == "Mastering" and own_levels:
        return {MID_ANCHOR: input * (db_to_amplitude(-1.0) / max(float(np.abs(input).max()), 1e-9))}
    return {}


def _cut(
    tracks: Mapping[str, np.ndarray], offset: float, seconds: float, sample_rate: int, item: str
) -> dict[str, np.ndarray]:
    """Cut all tracks at an offset, with short fades, which also keep a cut from clicking."""
    start = round(offset * sample_rate)
    parts = {track: audio[start : start + round(seconds * sample_rate)] for track, audio in tracks.items()}
    samples = len(parts["target"])
    if not samples:
        raise UserError(f"{item} ends before its offset of {offset:g} s")
    fade = min(round(_FADE_SECONDS * sample_rate), samples // 2)
    window = np.ones((samples, 1), dtype=np.float32)
    window[:fade, 0] = np.linspace(0, 1, fade, dtype=np.float32)
    window[samples - fade :] = window[:fade][::-1]
    return {track: part * window for track, part in parts.items()}


def _at_one_loudness(stimuli: Mapping[str, np.ndarray], sample_rate: int) -> dict[str, np.ndarray]:
    """Bring all stimuli to the loudness of the target; those without a loudness stay as they are."""
    loudness = {track: lufs(torch.from_numpy(audio.T), sample_rate) for track, audio in stimuli.items()}
    silent = {track for track, value in loudness.items() if value <= SILENCE_LUFS or loudness["target"] <= SILENCE_LUFS}
    gains_db = {track: 0.0 if track in silent else loudness["target"] - loudness[track] for track in stimuli}
    return {track: audio * np.float32(db_to_amplitude(gains_db[track])) for track, audio in stimuli.items()}


def _write_page(
    folder: Path, place: str, stem: str, stimuli: Mapping[str, np.ndarray], sample_rate: int
) -> dict[str, Any]:
    """Write the stimuli of a page, lowered by one gain if one of them would clip, and return the page."""
    gain = 0.99 / max(0.99, *(float(np.abs(audio).max()) for audio in stimuli.values()))
    paths = {track: f"{place}/{stem}/{track}.wav" for track in stimuli}
    for track, audio in stimuli.items():
        path = folder / paths[track]
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(soundfile_path(str(path)), audio * np.float32(gain), sample_rate, subtype="PCM_16")
    return {
        "type": "mushra",
        "id": stem,
        "name": "How similar is each condition to the reference?",
        "content": "",
        "showWaveform": True,
        "enableLooping": True,
        "reference": paths.pop("target"),  # webMUSHRA adds it as a hidden condition
        "createAnchor35": False,
        "createAnchor70": False,
        "stimuli": paths,
    }


def _as_config(name: str, pages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    volume = {"type": "volume", "id": "volume", "name": "Volume", "content": "Set a comfortable volume."}
    thanks = {"type": "finish", "name": "Thank you", "content": "", "showResults": False, "writeResults": True}
    return {
        "testname": name,
        "testId": name,
        "bufferSize": 2048,
        "stopOnErrors": True,
        "showButtonPreviousPage": True,
        "remoteService": "service/write.php",
        "pages": [
            {"type": "generic", "id": "instructions", "name": "Listening test", "content": _INSTRUCTIONS},
            {**volume, "stimulus": pages[0]["reference"], "defaultVolume": 0.5},
            ["random", *pages],
            {**thanks, "questionnaire": [{"type": "text", "label": "Your name or number", "name": "listener"}]},
        ],
    }
