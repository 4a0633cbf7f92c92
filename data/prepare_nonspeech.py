#!/usr/bin/env python3
"""Make the paired audio of the nonspeech task: speech with breaths, clicks and room tone in its pauses, and without.

Inputs are recordings of eight speakers. Five of them spoke telephone prompts, whose pauses were silenced by the
studio: there, breaths, clicks, pops and room tone are made from seeded noise. The pauses of the other three are as
recorded. Targets are the inputs with every pause turned down to -80 dBFS.

On Debian, everything the script reads comes from

    apt-get install --no-install-recommends asterisk-core-sounds-en-g722 asterisk-core-sounds-fr-g722 \\
        asterisk-core-sounds-it-g722 asterisk-core-sounds-ru-g722 asterisk-prompt-it-menardi-wav \\
        fillets-ng-data-cs pocketsphinx-testdata ffmpeg

and `pip install numpy scipy soundfile pedalboard tqdm`. Run it without options to write `nonspeech/` beside this
file, or with `--check` to compare a fresh rendering with what is there.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import zlib
from dataclasses import dataclass
from math import gcd
from pathlib import Path

import numpy as np
import soundfile
from prepare_tube_amp import SAMPLE_RATE, amplitude, as_16_bit
from scipy.signal import firwin, resample_poly
from shipped import empty_folder, require, run, write_manifest, write_pair
from tqdm import tqdm

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

SPEECH_DB = -24.0  # of every speaker, in the median
MIN_EXCERPT_SECONDS, MAX_EXCERPT_SECONDS = 3.0, 10.0

# A pause: this long below a level that depends on the speaker. Its edges stay, so that no consonant is cut.
FRAME_SECONDS, HOP_SECONDS = 0.03, 0.01
MIN_PAUSE_SECONDS = 0.12
KEPT_BEFORE_SECONDS, KEPT_AFTER_SECONDS = 0.02, 0.03
FADE_SECONDS = 0.015
FLOOR_DB = -80.0

# Prompts were cut tight: what was a pause of this length gets more, so that a breath has its time.
LENGTHENED_SECONDS = 0.16
ADDED_SECONDS = (0.2, 0.6)

# Levels of what is made, relative to the speech: of rooms and breaths the RMS, of clicks and pops the peak.
ROOM_DB = (-46.0, -38.0)
BREATH_DB = (-36.0, -24.0)
CLICK_DB = (-22.0, -10.0)
POP_DB = (-18.0, -8.0)

PROMPT_FILES = ("demo-congrats", "demo-echotest", "priv-callee-options")


@dataclass(frozen=True)
class Speaker:
    """One speaker: the recordings, and how their pauses are found."""

    name: str
    split: str
    seconds: float  # of excerpts, at most
    package: str
    licence: str
    language: str
    files: tuple[Path, ...]
    made: bool  # whether the pauses came silent, and are filled here
    pause_db: float  # what is this far below the speech is a pause


def prompts(folder: str, ending: str) -> tuple[Path, ...]:
    return tuple(PROMPTS / folder / f"{name}.{ending}" for name in PROMPT_FILES)


def fish(names: str) -> tuple[Path, ...]:
    """The files of those levels whose recordings carry no reverberation."""
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
    """A piece of a recording with the spans, in samples, that are no speech."""

    audio: np.ndarray
    spans: list[tuple[int, int]]


def read(path: Path) -> tuple[np.ndarray, int]:
    """Decode a file as mono."""
    if path.suffix != ".g722":
        audio, sample_rate = soundfile.read(path, always_2d=True)
        return audio.mean(axis=1), sample_rate
    command = [FFMPEG, "-v", "error", "-f", "g722", "-i", path, "-f", "s16le", "-"]
    return np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, "<i2") / 32_768, 16_000


def levels_db(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Level of frames that begin every HOP_SECONDS."""
    hop, frame = (round(seconds * sample_rate) for seconds in (HOP_SECONDS, FRAME_SECONDS))
    power = np.lib.stride_tricks.sliding_window_view(audio**2, frame)[::hop].mean(axis=1)
    return 10 * np.log10(power + 1e-12)


def speech_level_db(levels: np.ndarray) -> float:
    """The median of what is near enough to the loudest frame to be speech."""
    return float(np.median(levels[levels > levels.max() - 25]))


def find_pauses(audio: np.ndarray, sample_rate: int, pause_db: float) -> list[tuple[int, int]]:
    """The pauses of a recording, less the edges that stay."""
    levels = levels_db(audio, sample_rate)
    quiet = np.concatenate([[False], levels < speech_level_db(levels) + pause_db, [False]])
    edges = np.flatnonzero(np.diff(quiet.astype(int)))
    pauses = []
    for first, last in zip(edges[::2], edges[1::2]):
        if (last - first) * HOP_SECONDS < MIN_PAUSE_SECONDS:
            continue
        # The first quiet frame has all of its samples past the speech, and so has the last before it.
        start = 0 if first == 0 else first * HOP_SECONDS + KEPT_BEFORE_SECONDS
        end = (last - 1) * HOP_SECONDS + FRAME_SECONDS - KEPT_AFTER_SECONDS
        end = len(audio) if last == len(levels) else round(end * sample_rate)
        if end / sample_rate - start >= 4 * FADE_SECONDS:
            pauses.append((round(start * sample_rate), end))
    return pauses


def cut(audio: np.ndarray, sample_rate: int, pauses: list[tuple[int, int]]) -> list[Excerpt]:
    """Cut a recording in the middle of pauses, into pieces as long as is allowed."""
    excerpts = []
    cuts = [(start + end) // 2 for start, end in pauses if start > 0 and end < len(audio)] + [len(audio)]
    begin = 0
    for here, following in zip(cuts, cuts[1:] + [np.inf]):
        if following - begin <= MAX_EXCERPT_SECONDS * sample_rate:
            continue
        if MIN_EXCERPT_SECONDS <= (here - begin) / sample_rate <= MAX_EXCERPT_SECONDS:
            inside = [(max(start, begin) - begin, min(end, here) - begin) for start, end in pauses]
            spans = [(start, end) for start, end in inside if end - start > FADE_SECONDS * sample_rate]
            excerpts.append(Excerpt(audio[begin:here], spans))
        begin = here
    return excerpts


def lengthen(
    audio: np.ndarray, sample_rate: int, pauses: list[tuple[int, int]], random: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Add silence in the middle of the longer pauses."""
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


def seeded(*what: str) -> np.random.Generator:
    """Random numbers that depend on names alone, not on what was made before."""
    return np.random.default_rng(zlib.crc32(" ".join(what).encode()))


def shaped_noise(random: np.random.Generator, samples: int, sample_rate: int, gain) -> np.ndarray:
    """Noise of RMS 1 with a spectrum: `gain` of the frequency in Hz."""
    spectrum = np.fft.rfft(random.standard_normal(samples))
    noise = np.fft.irfft(spectrum * gain(np.fft.rfftfreq(samples, 1 / sample_rate)), samples)
    return noise / np.sqrt(np.mean(noise**2))


def room(random: np.random.Generator, samples: int, sample_rate: int) -> np.ndarray:
    """Room tone: noise that falls by 3 dB an octave, without rumble."""
    return shaped_noise(random, samples, sample_rate, lambda hz: hz / (hz + 60) / np.sqrt(hz + 100))


def breath(random: np.random.Generator, samples: int, sample_rate: int) -> np.ndarray:
    """An inhalation: noise with the resonances of an open throat that swells, and stops faster than it came."""
    resonances = zip((600, 1600, 2700, 4200), (0.5, 1.0, 0.8, 0.4))
    peaks = [(hz * random.uniform(0.88, 1.12), height * random.uniform(0.7, 1.3)) for hz, height in resonances]

    def gain(hz):
        octaves = np.log2((hz + 1)[:, None] / [center for center, _ in peaks])
        return 0.05 * (hz > 200) + np.exp(-0.5 * (octaves / 0.18) ** 2) @ [height for _, height in peaks]

    position = np.linspace(0, 1, samples) ** random.uniform(1.2, 1.8)
    envelope = np.sin(np.pi * position) ** 1.5
    sound = shaped_noise(random, samples, sample_rate, gain) * envelope
    return sound / np.sqrt(np.mean(sound**2))


def click(random: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A smack of the lips or the tongue, of peak 1: one to three short ringings within a few hundredths of a second."""
    sound = np.zeros(round(0.06 * sample_rate))
    at = 0.0
    for strength in random.uniform(0.4, 1.0, random.integers(1, 4)):
        seconds = np.arange(len(sound) - round(at * sample_rate)) / sample_rate
        decay = np.exp(-seconds / random.uniform(0.0008, 0.003)) * (1 - np.exp(-seconds / 0.0002))
        for hz in random.uniform(900, 3300, 2):
            sound[-len(seconds) :] += strength * decay * np.sin(2 * np.pi * hz * seconds)
        at += random.uniform(0.006, 0.018)
    return sound / np.abs(sound).max()


def pop(random: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A puff of air on the microphone, of peak 1: a falling thump."""
    seconds = np.arange(round(0.12 * sample_rate)) / sample_rate
    hz = random.uniform(50, 70) + random.uniform(50, 90) * np.exp(-seconds / 0.02)
    sound = np.sin(2 * np.pi * np.cumsum(hz) / sample_rate) * np.exp(-seconds / random.uniform(0.015, 0.03))
    sound *= np.minimum(1, seconds[::-1] / 0.02)
    return sound / np.abs(sound).max()


def fill(excerpt: Excerpt, sample_rate: int, speech_db: float, name: str, speaker: str) -> tuple[Excerpt, dict]:
    """Put a room behind an excerpt, and breaths, clicks and pops into its spans."""
    random = seeded(name)
    room_db = seeded(speaker).uniform(*ROOM_DB)
    audio = excerpt.audio + amplitude(speech_db + room_db) * room(random, len(excerpt.audio), sample_rate)
    count = {"breaths": 0, "clicks": 0, "pops": 0}

    def put(kind: str, sound: np.ndarray, level_db: tuple[float, float], at: int) -> None:
        audio[at : at + len(sound)] += amplitude(speech_db + random.uniform(*level_db)) * sound
        count[kind] += 1

    margin = round(FADE_SECONDS * sample_rate)
    for start, end in excerpt.spans:
        start, end = start + margin, end - margin
        longest = min((end - start) / sample_rate, 0.5)
        if longest > 0.15 and random.random() < 0.8:
            samples = round(random.uniform(0.15, longest) * sample_rate)
            put("breaths", breath(random, samples, sample_rate), BREATH_DB, end - samples)
        for kind, make, level_db, chance in (("clicks", click, CLICK_DB, 0.6), ("pops", pop, POP_DB, 0.15)):
            sound = make(random, sample_rate)
            if len(sound) < end - start and random.random() < chance:
                put(kind, sound, level_db, int(random.integers(start, end - len(sound))))
    return Excerpt(audio, excerpt.spans), count


def at_22_khz(excerpt: Excerpt, sample_rate: int) -> Excerpt:
    """At the sample rate of the files, rounded to 16 bit."""
    common = gcd(SAMPLE_RATE, sample_rate)
    up, down = SAMPLE_RATE // common, sample_rate // common
    widest = max(up, down)
    low_pass = firwin(128 * widest + 1, 0.95 / widest, window=("kaiser", 9.0))
    audio = as_16_bit(resample_poly(excerpt.audio, up, down, window=low_pass))
    spans = [(round(start * up / down), min(round(end * up / down), len(audio))) for start, end in excerpt.spans]
    return Excerpt(audio, spans)


def make_target(input: Excerpt) -> np.ndarray:
    """Turn each span down to FLOOR_DB, with fades on the side of the speech."""
    target = input.audio.copy()
    fade = np.cos(np.linspace(0, np.pi / 2, round(FADE_SECONDS * SAMPLE_RATE))) ** 2
    for start, end in input.spans:
        span = target[start:end]
        floor = min(1.0, amplitude(FLOOR_DB) / np.sqrt(np.mean(span**2) + 1e-12))
        down = np.ones(len(span))
        if start > 0:
            down[: len(fade)] = 1 - fade
        if end < len(target):
            down[-len(fade) :] = np.minimum(down[-len(fade) :], 1 - fade[::-1])
        span *= 1 - (1 - floor) * down
    return as_16_bit(target)


def write_dataset(folder: Path) -> None:
    """Write inputs with their spans, targets, manifest and checksums."""
    packages: dict[str, list[Path]] = {"ffmpeg": [FFMPEG]}
    for speaker in SPEAKERS:
        packages.setdefault(speaker.package, []).extend(speaker.files)
    require(packages)
    empty_folder(folder)
    rows = []
    for speaker in tqdm(SPEAKERS, desc="render", unit="speaker"):
        recordings = [read(path) for path in speaker.files]
        level_db = np.median([speech_level_db(levels_db(*recording)) for recording in recordings])
        left = speaker.seconds
        number = 0
        for path, (audio, sample_rate) in zip(speaker.files, recordings):
            audio = amplitude(SPEECH_DB - level_db) * audio
            pauses = find_pauses(audio, sample_rate, speaker.pause_db)
            if speaker.made:
                audio, pauses = lengthen(audio, sample_rate, pauses, seeded(speaker.name, path.name))
            for excerpt in cut(audio, sample_rate, pauses):
                seconds = len(excerpt.audio) / sample_rate
                if seconds > left or not excerpt.spans:
                    continue
                left -= seconds
                number += 1
                name = f"{speaker.name}_{number:02d}"
                made = {"breaths": 0, "clicks": 0, "pops": 0}
                if speaker.made:
                    excerpt, made = fill(excerpt, sample_rate, SPEECH_DB, name, speaker.name)
                input = at_22_khz(excerpt, sample_rate)
                paths = write_pair(folder, name, input.audio, make_target(input))
                spans = [{"t0": round(t0 / SAMPLE_RATE, 6), "t1": round(t1 / SAMPLE_RATE, 6)} for t0, t1 in input.spans]
                (folder / "input" / f"{name}_removed.json").write_text(json.dumps(spans) + "\n")
                row = {"name": name, "split": speaker.split, **paths, "speaker": speaker.name}
                row |= {"language": speaker.language, "pauses": "made" if speaker.made else "recorded", **made}
                rows.append(row | {"source": f"{speaker.package} {path.name}", "licence": speaker.licence})
    for name, path in LICENCES.items():
        shutil.copy(path, folder / name)
    write_manifest(folder, rows)


if __name__ == "__main__":
    run("Make the paired audio of the nonspeech task (under a minute).", "nonspeech", write_dataset)
