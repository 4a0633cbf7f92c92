#!/usr/bin/env python3
"""Make the paired audio of the mastering task: excerpts of songs as they were mixed, and mastered.

Inputs are the songs of two packages for the game Frets on Fire, which keep the lead guitar in a file of its
own: the sum of the two files is the mix. Targets are made from the whole song by one of two engines:

* `plugins`: equalizer, three-band compressor and limiter of zam-plugins, with settings that follow the song;
* `matchering`: Matchering matches loudness, spectrum and peaks to the master of a song of the other band.

On Debian, everything the script reads comes from

    apt-get install fretsonfire-songs-muldjord fretsonfire-songs-sectoid zam-plugins

and `pip install numpy scipy soundfile pedalboard tqdm pyloudnorm matchering==2.0.6`. Run it without options to
write `mastering/` beside this file, or with `--check` to compare a fresh rendering with what is there.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pedalboard
import soundfile
from prepare_tube_amp import (
    HALF_BAND_FILTER,
    RENDER_SAMPLE_RATE,
    SAMPLE_RATE,
    amplitude,
    as_16_bit,
    silence_native_code,
)
from scipy.signal import butter, resample_poly, sosfilt
from shipped import empty_folder, require, run, write_manifest, write_pair
from tqdm import tqdm

try:
    import matchering
    import pyloudnorm
except ImportError as error:
    sys.exit(f"error: {error.name} is missing; try: pip install pyloudnorm matchering==2.0.6")

SONGS_FOLDER = Path("/usr/share/games/fretsonfire/data/songs")
PLUGINS_FOLDER = Path("/usr/lib/vst3")
COPYRIGHT = Path("/usr/share/doc")

EXCERPT_SECONDS = 6.5
MIX_PEAK_DB = -6.0  # of a whole song: the headroom that mixes are delivered with
MASTER_GAIN_DB = -1.5  # the last step: what comes back in between the samples must not clip

# Both engines delay by a constant, measured with an impulse and cut off again.
LIMITER_LATENCY_SAMPLES = 480
MATCHERING_LATENCY_SAMPLES = 1

CROSSOVERS_HZ = (160.0, 2500.0)  # of the compressor, and of the bands that are measured for the settings
MASTER_LUFS = -8.5  # of an average song, before MASTER_GAIN_DB


@dataclass(frozen=True)
class Song:
    """One song, where it belongs and who masters it."""

    band: str
    title: str  # the name of its folder
    split: str
    excerpts: int
    reference: str = ""  # the title of the song whose master Matchering follows; without one, plugins do

    @property
    def name(self) -> str:
        return f"{self.band}_{self.title.lower().replace(' ', '_')}"

    @property
    def engine(self) -> str:
        return f"matchering to {self.reference}" if self.reference else "plugins"

    @property
    def licence(self) -> str:
        return {"muldjord": "CC-BY-SA-3.0", "sectoid": "MIT"}[self.band]

    @property
    def tracks(self) -> list[Path]:
        return [SONGS_FOLDER / self.band / self.title / f"{track}.ogg" for track in ("song", "guitar")]


SONGS = (
    Song("muldjord", "armygeddon", "train", 4, reference="Escape from chaosland"),
    Song("muldjord", "internal_degeneration", "train", 4),
    Song("sectoid", "Escape from chaosland", "train", 4),
    Song("sectoid", "Metal madness", "train", 4, reference="internal_degeneration"),
    Song("muldjord", "chaos_god", "validation", 2, reference="Escape from chaosland"),
    Song("sectoid", "Feelings", "validation", 2),
    Song("muldjord", "mutilated_mime", "test", 2),
    Song("sectoid", "War of freedom", "test", 2, reference="internal_degeneration"),
)


def mix(song: Song) -> np.ndarray:
    """The song as the game plays it, both tracks at full level, in mono at RENDER_SAMPLE_RATE."""
    tracks = []
    for path in song.tracks:
        audio, sample_rate = soundfile.read(path, always_2d=True)
        if sample_rate != RENDER_SAMPLE_RATE:
            raise ValueError(f"{path}: {sample_rate} Hz, expected {RENDER_SAMPLE_RATE} Hz")
        tracks.append(audio.mean(axis=1))
    audio = np.sum(tracks, axis=0)
    return amplitude(MIX_PEAK_DB) / np.abs(audio).max() * audio


def loudness_lufs(audio: np.ndarray) -> float:
    return pyloudnorm.Meter(RENDER_SAMPLE_RATE).integrated_loudness(audio)


def band_levels_db(audio: np.ndarray) -> np.ndarray:
    """Level of the loud moments below, between and above the crossovers."""
    levels = []
    for kind, edges in (("low", CROSSOVERS_HZ[0]), ("band", CROSSOVERS_HZ), ("high", CROSSOVERS_HZ[1])):
        band = sosfilt(butter(4, edges, kind, fs=RENDER_SAMPLE_RATE, output="sos"), audio)
        blocks = band[: len(band) // 4410 * 4410].reshape(-1, 4410)
        levels.append(10 * np.log10(np.percentile(np.mean(blocks**2, axis=1), 90)))
    return np.array(levels)


def plugin(name: str, settings: dict[str, float], audio: np.ndarray, channels: int = 1) -> np.ndarray:
    """Process in a plugin of its own, so that no state outlives a song."""
    effect = pedalboard.load_plugin(str(PLUGINS_FOLDER / f"{name}.vst3"))
    # The detected type would load the plugin anew on reset and leave its parameters dangling.
    effect._reload_type = pedalboard.ExternalPluginReloadType.ClearsAudioOnReset
    for parameter, value in settings.items():
        setattr(effect, parameter, value)
    both = np.repeat(audio[None].astype(np.float32), channels, axis=0)
    return effect.process(both, RENDER_SAMPLE_RATE, reset=False)[0].astype(np.float64)


def master_with_plugins(audio: np.ndarray, average_db: np.ndarray, average_lufs: float) -> np.ndarray:
    """Equalize towards the average of all songs, compress three bands and limit.

    What a song has more or less of than the average in a band is corrected, and all get less mud and more air;
    every band is compressed 5:2 above a threshold well under its loud moments; songs that are dense stay a
    little louder than others.
    """
    excess_db = band_levels_db(audio) - average_db
    low_db, middle_db, high_db = np.clip(excess_db.mean() - excess_db, -4, 4)
    audio = plugin(
        "ZamEQ2",
        {
            "boost_cut_l_db": low_db,
            "frequency_l_hz": 140.0,
            "boost_cut_1_db": middle_db,
            "frequency_1_hz": 700.0,
            "bandwidth_1": 2.0,
            "boost_cut_2_db": -2.5,
            "frequency_2_hz": 300.0,
            "boost_cut_h_db": high_db + 3.5,
            "frequency_h_hz": 5000.0,
        },
        audio,
    )
    settings = {"crossover_freq_1_hz": CROSSOVERS_HZ[0], "crossover_freq_2_hz": CROSSOVERS_HZ[1]}
    timing_ms = ((30.0, 200.0), (15.0, 120.0), (5.0, 80.0))
    for band, (level_db, (attack_ms, release_ms)) in enumerate(zip(band_levels_db(audio), timing_ms), start=1):
        settings |= {
            f"zamcomp_{band}_on": True,
            f"threshold_{band}_db": level_db - 9,
            f"ratio{band}": 2.5,
            f"knee{band}_db": 6.0,
            f"attack{band}_ms": attack_ms,
            f"release{band}_ms": release_ms,
            f"makeup_{band}_db": 5.4,  # what the ratio takes from 9 dB above the threshold
        }
    audio = plugin("ZaMultiComp", settings, audio)
    wanted_lufs = MASTER_LUFS + 0.5 * (loudness_lufs(audio) - average_lufs)
    settings = {"threshold_db": loudness_lufs(audio) - wanted_lufs, "output_ceiling_db": 0.0, "release_ms": 40.0}
    late = np.concatenate([audio, np.zeros(LIMITER_LATENCY_SAMPLES)])
    return plugin("ZaMaximX2", settings, late, channels=2)[LIMITER_LATENCY_SAMPLES:]


def master_with_matchering(audio: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Match the loudness, spectrum and peaks of the reference."""
    with tempfile.TemporaryDirectory() as folder:
        files = {name: str(Path(folder, f"{name}.wav")) for name in ("audio", "reference", "result")}
        soundfile.write(files["audio"], audio, RENDER_SAMPLE_RATE, "FLOAT")
        soundfile.write(files["reference"], reference, RENDER_SAMPLE_RATE, "FLOAT")
        matchering.process(files["audio"], files["reference"], [matchering.Result(files["result"], "FLOAT")])
        result = soundfile.read(files["result"], always_2d=True)[0][:, 0]
    return np.append(result[MATCHERING_LATENCY_SAMPLES:], np.zeros(MATCHERING_LATENCY_SAMPLES))


def write_dataset(folder: Path) -> None:
    """Master every song as a whole and write its excerpts."""
    require(
        {
            "fretsonfire-songs-muldjord": [path for song in SONGS if song.band == "muldjord" for path in song.tracks],
            "fretsonfire-songs-sectoid": [path for song in SONGS if song.band == "sectoid" for path in song.tracks],
            "zam-plugins": [PLUGINS_FOLDER / f"{name}.vst3" for name in ("ZamEQ2", "ZaMultiComp", "ZaMaximX2")],
        }
    )
    silence_native_code()
    empty_folder(folder)
    mixes = {song.title: mix(song) for song in SONGS}
    average_db = np.mean([band_levels_db(audio) for audio in mixes.values()], axis=0)
    average_lufs = float(np.mean([loudness_lufs(audio) for audio in mixes.values()]))
    masters = {}
    for song in tqdm(sorted(SONGS, key=lambda song: song.engine != "plugins"), desc="master", unit="song"):
        audio = mixes[song.title]
        if song.reference:
            masters[song.title] = master_with_matchering(audio, masters[song.reference])
        else:
            masters[song.title] = master_with_plugins(audio, average_db, average_lufs)

    rows = []
    for song in SONGS:
        input, target = (
            resample_poly(audio, 1, 2, window=HALF_BAND_FILTER)
            for audio in (mixes[song.title], amplitude(MASTER_GAIN_DB) * masters[song.title])
        )
        samples = round(EXCERPT_SECONDS * SAMPLE_RATE)
        for number in range(song.excerpts):
            # Spread over the song, away from intro and ending.
            start = round((number + 1) / (song.excerpts + 1) * len(input)) - samples // 2
            name = f"{song.name}_{number + 1}"
            cut = slice(start, start + samples)
            paths = write_pair(folder, name, as_16_bit(input[cut]), as_16_bit(target[cut]))
            row = {"name": name, "split": song.split, **paths, "song": song.title, "band": song.band}
            rows.append(row | {"start_seconds": f"{start / SAMPLE_RATE:.3f}", "engine": song.engine})
            rows[-1]["licence"] = song.licence
    for band in ("muldjord", "sectoid"):
        shutil.copy(COPYRIGHT / f"fretsonfire-songs-{band}" / "copyright", folder / f"LICENCE-{band}.txt")
    write_manifest(folder, rows)


if __name__ == "__main__":
    run("Make the paired audio of the mastering task (about a minute).", "mastering", write_dataset)
