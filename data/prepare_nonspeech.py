#!/usr/bin/env python3
"""Prepare the pairs of the nonspeech task: speech with breaths, clicks and room tone in its pauses, and without.

Inputs are recordings of eight speakers. Five of them recorded telephone prompts, whose pauses the studio silenced:
they are filled with breaths, clicks, pops and room tone synthesized from seeded noise. The pauses of the other
three are as recorded. Targets are the inputs with every pause attenuated to -80 dBFS.

On Debian, install the sources with

    apt-get install --no-install-recommends asterisk-core-sounds-en-g722 asterisk-core-sounds-fr-g722 \\
        asterisk-core-sounds-it-g722 asterisk-core-sounds-ru-g722 asterisk-prompt-it-menardi-wav \\
        fillets-ng-data-cs pocketsphinx-testdata ffmpeg

and `pip install numpy scipy soundfile pedalboard tqdm`. Without options, the script writes `nonspeech/` next to
this file; with `--check`, it compares that folder with a new rendering.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import gcd
from pathlib import Path

import numpy as np
import shipped
from scipy.signal import firwin, resample_poly
from shipped import SAMPLE_RATE
from tqdm import tqdm

from dfx.audio.levels import db_to_amplitude
from dfx.writing import write_csv

PROMPTS = Path("/usr/share/asterisk/sounds")
FISH = Path("/usr/share/games/fillets-ng/sound")
LIBRIVOX = Path("/usr/share/pocketsphinx/test/data/librivox")
FFMPEG = Path("/usr/bin/ffmpeg")
LICENCES = {
    "LICENCE-asterisk-core-sounds.txt": Path("/usr/share/doc/asterisk-core-sounds-en-g722/copyright"),
    "LICENCE-asterisk-prompt-it-menardi.txt": Path("/usr/share/doc/asterisk-prompt-it-menardi-wav/copyright"),
    "LICENCE-fillets-ng.txt": Path("/usr/share/doc/fillets-ng-data-cs/copyright"),
    "LICENCE-GPL-2.txt": Path("/usr/share/common-licenses/GPL-2"),
    "LICENCE-pocketsphinx.txt": Path("/usr/share/doc/pocketsphinx-testdata/copyright"),
}

SPEECH_DB = -24.0  # median level of every speaker
MIN_EXCERPT_SECONDS, MAX_EXCERPT_SECONDS = 3.0, 10.0

# A pause is at least this long below the threshold of the speaker. Its edges are kept, so that no consonant is cut.
FRAME_SECONDS, HOP_SECONDS = 0.03, 0.01
MIN_PAUSE_SECONDS = 0.12
KEPT_BEFORE_SECONDS, KEPT_AFTER_SECONDS = 0.02, 0.03
FADE_SECONDS = 0.015
FLOOR_DB = -80.0

# The pauses of the prompts are short: those of at least this length are lengthened to leave time for a breath.
LENGTHENED_SECONDS = 0.16
ADDED_SECONDS = (0.2, 0.6)

# Levels of synthetic sounds relative to the speech: RMS of room tone and breaths, peak of clicks and pops.
ROOM_DB = (-46.0, -38.0)
BREATH_DB = (-36.0, -24.0)
CLICK_DB = (-22.0, -10.0)
POP_DB = (-18.0, -8.0)

SYNTHETIC_SOUNDS: tuple[str, ...] = ("breaths", "clicks", "pops")  # columns of the manifest
PROMPT_FILES = ("demo-congrats", "demo-echotest", "priv-callee-options")


@dataclass(frozen=True)
class Speaker:
    """A speaker with the recordings and the threshold of their pauses."""

    name: str
    split: str
    max_seconds: float  # of all excerpts
    package: str
    licence: str
    language: str
    files: tuple[Path, ...]
    silenced: bool  # the studio silenced the pauses; fill them with synthetic sounds
    pause_db: float  # threshold of a pause relative to the speech level


def prompts(folder: str, ending: str) -> tuple[Path, ...]:
    return tuple(PROMPTS / folder / f"{name}.{ending}" for name in PROMPT_FILES)


def fish(names: str) -> tuple[Path, ...]:
    """Return the paths of recordings of Fish Fillets, given as LEVEL/NAME, from levels without an underwater effect."""
    return tuple(FISH / level / "cs" / f"{name}.ogg" for level, name in (pair.split("/") for pair in names.split()))


SPEAKERS = (
    Speaker("allison", "train", 44, "asterisk-core-sounds-en-g722", "CC-BY-SA-3.0", "English",
            prompts("en_US_f_Allison", "g722"), True, -26),
    Speaker("ivrvoice", "train", 40, "asterisk-core-sounds-ru-g722", "CC-BY-3.0", "Russian",
            prompts("ru_RU_f_IvrvoiceRU", "g722"), True, -26),
    Speaker("paola", "train", 30, "asterisk-prompt-it-menardi-wav", "CC-BY-SA-3.0-IT", "Italian",
            prompts("it_IT_f_Menardi", "wav"), True, -26),
    Speaker("big_fish", "train", 50, "fillets-ng-data-cs", "GPL-2.0-only", "Czech",
            fish("hanoi/v-restartovat rush/v-upozornit hole/v-bojim rush/v-ffneni hole/v-neber hanoi/v-kopie "
                 "hanoi/v-nenifer rush/v-zopakuje hanoi/v-plny hanoi/v-jineho hanoi/v-looser nowall/v-odpoved0 "
                 "hole/v-vratte"), False, -26),
    Speaker("june", "validation", 32, "asterisk-core-sounds-fr-g722", "CC-BY-SA-3.0", "French",
            prompts("fr_CA_f_June", "g722"), True, -26),
    Speaker("librivox", "validation", 25, "pocketsphinx-testdata", "public domain", "English",
            tuple(LIBRIVOX / f"sense_and_sensibility_01_austen_64kb-{number}.wav"
                  for number in ("0870", "0880", "0890", "0920", "0930")), False, -18),
    Speaker("carlo", "test", 32, "asterisk-core-sounds-it-g722", "CC-BY-3.0", "Italian",
            prompts("it_IT_m_Carlo", "g722"), True, -26),
    Speaker("small_fish", "test", 36, "fillets-ng-data-cs", "GPL-2.0-only", "Czech",
            fish("rush/m-hraje hanoi/m-predstavujes hanoi/m-rekurzivni hanoi/m-restartuj rush/m-silou "
                 "rush/m-obdivovat hole/m-zmizet nowall/m-uvedomit"), False, -26),
)  # fmt: skip


@dataclass(frozen=True)
class Excerpt:
    """A part of a recording, and its spans without speech as (start, end) in samples."""

    audio: np.ndarray
    spans: list[tuple[int, int]]


def read(path: Path) -> tuple[np.ndarray, int]:
    """Decode a file as mono; return it with its sample rate in Hz."""
    if path.suffix != ".g722":
        return shipped.read_mono(path)
    command = [FFMPEG, "-v", "error", "-f", "g722", "-i", path, "-f", "s16le", "-"]
    return np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, "<i2") / 32_768, 16_000


def levels_db(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the levels of frames that begin every HOP_SECONDS."""
    hop, frame = (round(seconds * sample_rate) for seconds in (HOP_SECONDS, FRAME_SECONDS))
    power = np.lib.stride_tricks.sliding_window_view(audio**2, frame)[::hop].mean(axis=1)
    return 10 * np.log10(power + 1e-12)


def speech_level_db(levels: np.ndarray) -> float:
    """Return the median level of the frames within 25 dB of the loudest one."""
    return float(np.median(levels[levels > levels.max() - 25]))


def find_pauses(audio: np.ndarray, sample_rate: int, pause_db: float) -> list[tuple[int, int]]:
    """Return the pauses of a recording, without the edges that are kept, as (start, end) in samples."""
    levels = levels_db(audio, sample_rate)
    quiet = np.concatenate([[False], levels < speech_level_db(levels) + pause_db, [False]])
    edges = np.flatnonzero(np.diff(quiet.astype(int)))
    pauses = []
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        if (last - first) * HOP_SECONDS < MIN_PAUSE_SECONDS:
            continue
        # The first and the last quiet frame contain no speech at all.
        start = 0 if first == 0 else first * HOP_SECONDS + KEPT_BEFORE_SECONDS
        end = (last - 1) * HOP_SECONDS + FRAME_SECONDS - KEPT_AFTER_SECONDS
        end = len(audio) if last == len(levels) else round(end * sample_rate)
        if end / sample_rate - start >= 4 * FADE_SECONDS:
            pauses.append((round(start * sample_rate), end))
    return pauses


def cut_excerpts(audio: np.ndarray, sample_rate: int, pauses: list[tuple[int, int]]) -> list[Excerpt]:
    """Cut a recording in the middle of pauses, into excerpts as long as MAX_EXCERPT_SECONDS allows."""
    excerpts = []
    cuts = [(start + end) // 2 for start, end in pauses if start > 0 and end < len(audio)] + [len(audio)]
    begin = 0
    for stop, next_cut in pairwise([*cuts, np.inf]):
        if next_cut - begin <= MAX_EXCERPT_SECONDS * sample_rate:
            continue
        if MIN_EXCERPT_SECONDS <= (stop - begin) / sample_rate <= MAX_EXCERPT_SECONDS:
            inside = [(max(start, begin) - begin, min(end, stop) - begin) for start, end in pauses]
            spans = [(start, end) for start, end in inside if end - start > FADE_SECONDS * sample_rate]
            excerpts.append(Excerpt(audio[begin:stop], spans))
        begin = stop
    return excerpts


def lengthen(
    audio: np.ndarray, sample_rate: int, pauses: list[tuple[int, int]], random: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Insert silence in the middle of the longer pauses; return the audio and its pauses."""
    pieces, lengthened = [], []
    last = added = 0
    for start, end in pauses:
        more = 0
        if end - start >= LENGTHENED_SECONDS * sample_rate:
            more = round(random.uniform(*ADDED_SECONDS) * sample_rate)
            middle = (start + end) // 2
            pieces += [audio[last:middle], np.zeros(more)]
            last = middle
        lengthened.append((start + added, end + added + more))
        added += more
    return np.concatenate([*pieces, audio[last:]]), lengthened


def seeded_generator(*names: str) -> np.random.Generator:
    """Return a generator whose seed depends on the names only, not on earlier draws."""
    return np.random.default_rng(zlib.crc32(" ".join(names).encode()))


def shaped_noise(
    random: np.random.Generator, samples: int, sample_rate: int, gain: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return noise of RMS 1, filtered by a gain that is a function of the frequency in Hz."""
    spectrum = np.fft.rfft(random.standard_normal(samples))
    noise = np.fft.irfft(spectrum * gain(np.fft.rfftfreq(samples, 1 / sample_rate)), samples)
    return noise / np.sqrt(np.mean(noise**2))


def room_tone(random: np.random.Generator, samples: int, sample_rate: int) -> np.ndarray:
    """Return noise that falls by 3 dB per octave, without rumble."""
    return shaped_noise(random, samples, sample_rate, lambda hz: hz / (hz + 60) / np.sqrt(hz + 100))


def breath(random: np.random.Generator, samples: int, sample_rate: int) -> np.ndarray:
    """Return an inhalation of RMS 1: noise with the resonances of an open throat, slower in attack than in release."""
    resonances = ((600, 0.5), (1600, 1.0), (2700, 0.8), (4200, 0.4))
    peaks = [(hz * random.uniform(0.88, 1.12), height * random.uniform(0.7, 1.3)) for hz, height in resonances]

    def gain(hz: np.ndarray) -> np.ndarray:
        octaves = np.log2((hz + 1)[:, None] / [center for center, _ in peaks])
        return 0.05 * (hz > 200) + np.exp(-0.5 * (octaves / 0.18) ** 2) @ [height for _, height in peaks]

    position = np.linspace(0, 1, samples) ** random.uniform(1.2, 1.8)
    envelope = np.sin(np.pi * position) ** 1.5
    sound = shaped_noise(random, samples, sample_rate, gain) * envelope
    return sound / np.sqrt(np.mean(sound**2))


def click(random: np.random.Generator, sample_rate: int) -> np.ndarray:
    """Return a lip or tongue click of peak 1: one to three short decaying resonances within 60 ms."""
    sound = np.zeros(round(0.06 * sample_rate))
    onset = 0.0
    for strength in random.uniform(0.4, 1.0, random.integers(1, 4)):
        seconds = np.arange(len(sound) - round(onset * sample_rate)) / sample_rate
        decay = np.exp(-seconds / random.uniform(0.0008, 0.003)) * (1 - np.exp(-seconds / 0.0002))
        for hz in random.uniform(900, 3300, 2):
            sound[-len(seconds) :] += strength * decay * np.sin(2 * np.pi * hz * seconds)
        onset += random.uniform(0.006, 0.018)
    return sound / np.abs(sound).max()


def pop(random: np.random.Generator, sample_rate: int) -> np.ndarray:
    """Return a plosive pop of peak 1: a decaying low tone of falling pitch."""
    seconds = np.arange(round(0.12 * sample_rate)) / sample_rate
    hz = random.uniform(50, 70) + random.uniform(50, 90) * np.exp(-seconds / 0.02)
    sound = np.sin(2 * np.pi * np.cumsum(hz) / sample_rate) * np.exp(-seconds / random.uniform(0.015, 0.03))
    sound *= np.minimum(1, seconds[::-1] / 0.02)
    return sound / np.abs(sound).max()


def add_sounds(excerpt: Excerpt, sample_rate: int, name: str, speaker: str) -> tuple[Excerpt, dict[str, int]]:
    """Add room tone to an excerpt, and breaths, clicks and pops to its spans; return it and the counts."""
    random = seeded_generator(name)
    room_gain_db = SPEECH_DB + seeded_generator(speaker).uniform(*ROOM_DB)
    audio = excerpt.audio + db_to_amplitude(room_gain_db) * room_tone(random, len(excerpt.audio), sample_rate)
    counts = dict.fromkeys(SYNTHETIC_SOUNDS, 0)

    def add(kind: str, sound: np.ndarray, level_db: tuple[float, float], start: int) -> None:
        audio[start : start + len(sound)] += db_to_amplitude(SPEECH_DB + random.uniform(*level_db)) * sound
        counts[kind] += 1

    margin = round(FADE_SECONDS * sample_rate)
    for start, end in excerpt.spans:
        start, end = start + margin, end - margin
        longest = min((end - start) / sample_rate, 0.5)
        if longest > 0.15 and random.random() < 0.8:
            samples = round(random.uniform(0.15, longest) * sample_rate)
            add("breaths", breath(random, samples, sample_rate), BREATH_DB, end - samples)
        for kind, synthesize, level_db, probability in (("clicks", click, CLICK_DB, 0.6), ("pops", pop, POP_DB, 0.15)):
            sound = synthesize(random, sample_rate)
            if len(sound) < end - start and random.random() < probability:
                add(kind, sound, level_db, int(random.integers(start, end - len(sound))))
    return Excerpt(audio, excerpt.spans), counts


def resample(excerpt: Excerpt, sample_rate: int) -> Excerpt:
    """Convert an excerpt to SAMPLE_RATE and 16 bit."""
    divisor = gcd(SAMPLE_RATE, sample_rate)
    up, down = SAMPLE_RATE // divisor, sample_rate // divisor
    factor = max(up, down)
    low_pass = firwin(128 * factor + 1, 0.95 / factor, window=("kaiser", 9.0))
    audio = shipped.round_to_16_bit(resample_poly(excerpt.audio, up, down, window=low_pass))
    spans = [(round(start * up / down), min(round(end * up / down), len(audio))) for start, end in excerpt.spans]
    return Excerpt(audio, spans)


def make_target(input: Excerpt) -> np.ndarray:
    """Attenuate each span to FLOOR_DB, with fades next to speech."""
    target = input.audio.copy()
    fade = np.cos(np.linspace(0, np.pi / 2, round(FADE_SECONDS * SAMPLE_RATE))) ** 2
    for start, end in input.spans:
        span = target[start:end]
        floor_gain = min(1.0, db_to_amplitude(FLOOR_DB) / np.sqrt(np.mean(span**2) + 1e-12))
        attenuation = np.ones(len(span))
        if start > 0:
            attenuation[: len(fade)] = 1 - fade
        if end < len(target):
            attenuation[-len(fade) :] = np.minimum(attenuation[-len(fade) :], 1 - fade[::-1])
        span *= 1 - (1 - floor_gain) * attenuation
    return shipped.round_to_16_bit(target)


def excerpts_of(speaker: Speaker) -> Iterator[tuple[str, Path, Excerpt, dict[str, int]]]:
    """Yield the name, recording, input and counts of synthetic sounds of every excerpt of a speaker."""
    recordings = [read(path) for path in speaker.files]
    level_db = np.median([speech_level_db(levels_db(*recording)) for recording in recordings])
    seconds_left = speaker.max_seconds
    number = 0
    for path, (audio, sample_rate) in zip(speaker.files, recordings, strict=True):
        audio = db_to_amplitude(SPEECH_DB - level_db) * audio
        pauses = find_pauses(audio, sample_rate, speaker.pause_db)
        if speaker.silenced:
            audio, pauses = lengthen(audio, sample_rate, pauses, seeded_generator(speaker.name, path.name))
        for excerpt in cut_excerpts(audio, sample_rate, pauses):
            seconds = len(excerpt.audio) / sample_rate
            if seconds > seconds_left or not excerpt.spans:
                continue
            seconds_left -= seconds
            number += 1
            name = f"{speaker.name}_{number:02d}"
            counts = dict.fromkeys(SYNTHETIC_SOUNDS, 0)
            if speaker.silenced:
                excerpt, counts = add_sounds(excerpt, sample_rate, name, speaker.name)
            yield name, path, resample(excerpt, sample_rate), counts


def write_dataset(folder: Path) -> None:
    """Write inputs with their spans, targets, manifest and checksums."""
    packages: dict[str, list[Path]] = {"ffmpeg": [FFMPEG]}
    for speaker in SPEAKERS:
        packages.setdefault(speaker.package, []).extend(speaker.files)
    shipped.require(packages)
    shipped.clear_sides(folder)
    rows = []
    for speaker in tqdm(SPEAKERS, desc="render", unit="speaker"):
        for name, recording, input, counts in excerpts_of(speaker):
            paths = shipped.write_pair(folder, name, input.audio, make_target(input))
            spans = [{"t0": round(t0 / SAMPLE_RATE, 6), "t1": round(t1 / SAMPLE_RATE, 6)} for t0, t1 in input.spans]
            (folder / "input" / f"{name}_removed.json").write_text(json.dumps(spans) + "\n")
            row = {"name": name, "split": speaker.split, "group": speaker.name, **paths, "speaker": speaker.name}
            row |= {"language": speaker.language, "pauses": "made" if speaker.silenced else "recorded", **counts}
            rows.append(row | {"source": f"{speaker.package} {recording.name}", "licence": speaker.licence})
    for name, path in LICENCES.items():
        shutil.copy(path, folder / name)
    write_csv(folder / "manifest.csv", rows)
    shipped.write_checksums(folder)


if __name__ == "__main__":
    parser = shipped.argument_parser("Prepare the pairs of the nonspeech task (under a minute).", "nonspeech")
    shipped.run(parser.parse_args(), write_dataset)
