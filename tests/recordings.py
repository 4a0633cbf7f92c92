"""Excerpts of notes, speech and music: shipped, synthesized, and from a corpus if one is installed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
CORPUS = Path(os.environ.get("DFX_CORPUS", Path(__file__).parents[2] / "shared" / "corpus"))
"""Contains speech in ``nonspeech/audio/*_x.flac`` and music in ``mastering/audio/*_x.flac``; not shipped."""

KINDS = ("notes", "made_speech", "made_music", "speech", "music")
_RATE = 22050


class Planted(NamedTuple):
    """Targets, and outputs with a delay in samples and a polarity, each ``(count, 1, samples)``."""

    output: Tensor
    target: Tensor
    delay: Tensor
    polarity: Tensor


def planted(kind: str, samples: int, count: int = 100, reach: int = 300) -> Planted:
    """Return windows of recordings of one kind, and windows of the same recordings with a random delay and polarity."""
    random = np.random.default_rng(0)
    recordings = _recordings(kind, random)
    outputs, targets, delays, signs = [], [], [], []
    while len(outputs) < count:
        recording = recordings[random.integers(len(recordings))]
        recording = np.pad(recording, (reach, max(reach, samples + 2 * reach - len(recording))))
        start = int(random.integers(reach, len(recording) - samples - reach + 1))
        delay, sign = int(random.integers(-reach, reach + 1)), int(random.choice([-1, 1]))
        target = recording[start : start + samples]
        if np.sqrt(np.square(target).mean()) > 1e-3:
            outputs.append(sign * recording[start - delay : start - delay + samples])
            targets.append(target)
            delays.append(delay)
            signs.append(float(sign))
    output, target = (torch.from_numpy(np.stack(some).astype(np.float32))[:, None] for some in (outputs, targets))
    return Planted(output, target, torch.tensor(delays), torch.tensor(signs))


def _recordings(kind: str, random: np.random.Generator) -> list[np.ndarray]:
    if kind == "made_speech":
        return [_speech(random) for _ in range(10)]
    if kind == "made_music":
        return [_music(random) for _ in range(10)]
    folder, pattern = {
        "notes": (ROOT / "data" / "tube_amp" / "input", "*.flac"),
        "speech": (CORPUS / "nonspeech" / "audio", "*_x.flac"),
        "music": (CORPUS / "mastering" / "audio", "*_x.flac"),
    }[kind]
    files = sorted(folder.glob(pattern))
    if not files:
        pytest.skip(f"no {kind} in {folder}; DFX_CORPUS says where else to look")
    chosen = random.choice(len(files), min(20, len(files)), replace=False)
    return [soundfile.read(files[i], stop=10 * _RATE)[0] for i in chosen]


def _speech(random: np.random.Generator) -> np.ndarray:
    """Return pulses of varying pitch through three formants, in syllables, over quiet noise."""
    seconds = np.arange(3 * _RATE) / _RATE
    pitch = random.uniform(90, 220) * (1 + 0.1 * np.sin(2 * np.pi * 2.3 * seconds))
    phase = np.cumsum(pitch) / _RATE
    pulses = np.diff(np.floor(phase), prepend=0.0)
    decay = seconds[:400]
    formants = sum(
        np.exp(-300 * decay) * np.sin(2 * np.pi * random.uniform(*band) * decay)
        for band in [(300, 800), (900, 2200), (2300, 3200)]
    )
    syllables = np.clip(np.sin(2 * np.pi * 3 * seconds), 0, None)
    voiced = np.convolve(pulses, formants)[: len(seconds)] * syllables
    return 0.1 * voiced + 0.002 * random.standard_normal(len(seconds))


def _music(random: np.random.Generator) -> np.ndarray:
    """Return chords of decaying partials over a bass, with a noise burst on every beat."""
    seconds = np.arange(3 * _RATE) / _RATE
    since_beat = seconds % 0.5
    mix = np.exp(-60 * since_beat) * random.standard_normal(len(seconds)) * 0.2
    for note in [0, 12, 16, 19]:
        frequency = 55 * 2 ** ((note + random.integers(12)) / 12)
        for partial in range(1, 8):
            mix += np.exp(-partial * since_beat) / partial * np.sin(2 * np.pi * frequency * partial * seconds)
    return 0.1 * mix


def delayed(audio: torch.Tensor, by: int) -> torch.Tensor:
    """Delay ``audio`` by ``by`` samples (advance it where negative), and fill with silence."""
    moved = torch.roll(audio, by, dims=-1)
    if by >= 0:
        moved[..., :by] = 0
    else:
        moved[..., by:] = 0
    return moved
