#!/usr/bin/env python3
"""Prepare the pairs of the mastering task: excerpts of song mixes, and of their masters.

Inputs are the songs of two packages for the game Frets on Fire, which store the lead guitar in a separate file:
the sum of the two files is the mix. Targets are made from the whole song by one of two engines:

* `plugins`: equalizer, three-band compressor and limiter of zam-plugins, with settings derived from the song;
* `matchering`: Matchering matches loudness, spectrum and peaks to the master of a song of the other band.

On Debian, install the sources with

    apt-get install fretsonfire-songs-muldjord fretsonfire-songs-sectoid zam-plugins

and `pip install numpy scipy soundfile pedalboard tqdm pyloudnorm matchering==2.0.6`. Without options, the script
writes `mastering/` next to this file; with `--check`, it compares that folder with a new rendering.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shipped
import soundfile
from scipy.signal import butter, sosfilt
from shipped import RENDER_SAMPLE_RATE, SAMPLE_RATE
from tqdm import tqdm

from dfx.audio.levels import db_to_amplitude
from dfx.writing import write_csv

try:
    import matchering
    import pyloudnorm
except ImportError as error:
    sys.exit(f"error: {error.name} is not installed; run: pip install pyloudnorm matchering==2.0.6")

SONGS_FOLDER = Path("/usr/share/games/fretsonfire/data/songs")
PLUGINS_FOLDER = Path("/usr/lib/vst3")
COPYRIGHT = Path("/usr/share/doc")

EXCERPT_SECONDS = 6.5
MIX_PEAK_DB = -6.0  # of a whole song: the usual headroom of a mix
MASTER_GAIN_DB = -1.5  # the last step: headroom for peaks between samples

# Constant delays of both engines, measured with an impulse and compensated.
LIMITER_LATENCY_SAMPLES = 480
MATCHERING_LATENCY_SAMPLES = 1

CROSSOVERS_HZ = (160.0, 2500.0)  # of the compressor and of `band_levels_db`
MASTER_LUFS = -8.5  # of an average song, before MASTER_GAIN_DB


@dataclass(frozen=True)
class Song:
    """A song with its split and mastering engine."""

    band: str
    title: str  # name of its folder
    split: str
    excerpts: int
    reference: str = ""  # title of the song whose master Matchering matches; if empty, the plugins master the song

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
    """Return the sum of both tracks at full level, as in the game: mono at RENDER_SAMPLE_RATE, peak at MIX_PEAK_DB."""
    audio = np.sum([shipped.read_mono(path, RENDER_SAMPLE_RATE)[0] for path in song.tracks], axis=0)
    return db_to_amplitude(MIX_PEAK_DB) / np.abs(audio).max() * audio


def loudness_lufs(audio: np.ndarray) -> float:
    return pyloudnorm.Meter(RENDER_SAMPLE_RATE).integrated_loudness(audio)


def band_levels_db(audio: np.ndarray) -> np.ndarray:
    """Return the 90th percentile of the level in blocks of 0.1 s, below, between and above the crossovers."""
    levels = []
    for kind, edges in (("low", CROSSOVERS_HZ[0]), ("band", CROSSOVERS_HZ), ("high", CROSSOVERS_HZ[1])):
        band = sosfilt(butter(4, edges, kind, fs=RENDER_SAMPLE_RATE, output="sos"), audio)
        size = RENDER_SAMPLE_RATE // 10
        blocks = band[: len(band) // size * size].reshape(-1, size)
        levels.append(10 * np.log10(np.percentile(np.mean(blocks**2, axis=1), 90)))
    return np.array(levels)


def process(name: str, settings: dict[str, float], audio: np.ndarray, channels: int = 1) -> np.ndarray:
    """Process mono audio in a plugin of zam-plugins."""
    return shipped.run_plugin(PLUGINS_FOLDER / f"{name}.vst3", settings, audio, channels)


def master_with_plugins(audio: np.ndarray, average_db: np.ndarray, average_lufs: float) -> np.ndarray:
    """Equalize, compress and limit a song.

    The equalizer corrects the balance of the bands towards the average of all songs, attenuates 300 Hz and boosts
    the treble. The compressor has a ratio of 2.5:1 and a threshold 9 dB below `band_levels_db` in each band. The
    limiter keeps half of the loudness differences between songs.
    """
    excess_db = band_levels_db(audio) - average_db
    low_db, middle_db, high_db = np.clip(excess_db.mean() - excess_db, -4, 4)
    audio = process(
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
    for band, (level_db, (attack_ms, release_ms)) in enumerate(
        zip(band_levels_db(audio), timing_ms, strict=True), start=1
    ):
        settings |= {
            f"zamcomp_{band}_on": True,
            f"threshold_{band}_db": level_db - 9,
            f"ratio{band}": 2.5,
            f"knee{band}_db": 6.0,
            f"attack{band}_ms": attack_ms,
            f"release{band}_ms": release_ms,
            f"makeup_{band}_db": 5.4,  # the gain reduction 9 dB above the threshold
        }
    audio = process("ZaMultiComp", settings, audio)
    target_lufs = MASTER_LUFS + 0.5 * (loudness_lufs(audio) - average_lufs)
    settings = {"threshold_db": loudness_lufs(audio) - target_lufs, "output_ceiling_db": 0.0, "release_ms": 40.0}
    padded = np.concatenate([audio, np.zeros(LIMITER_LATENCY_SAMPLES)])
    return process("ZaMaximX2", settings, padded, channels=2)[LIMITER_LATENCY_SAMPLES:]


def master_with_matchering(audio: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Match loudness, spectrum and peaks to the reference."""
    with tempfile.TemporaryDirectory() as folder:
        files = {name: str(Path(folder, f"{name}.wav")) for name in ("audio", "reference", "result")}
        soundfile.write(files["audio"], audio, RENDER_SAMPLE_RATE, "FLOAT")
        soundfile.write(files["reference"], reference, RENDER_SAMPLE_RATE, "FLOAT")
        matchering.process(files["audio"], files["reference"], [matchering.Result(files["result"], "FLOAT")])
        result = soundfile.read(files["result"], always_2d=True)[0][:, 0]
    return np.append(result[MATCHERING_LATENCY_SAMPLES:], np.zeros(MATCHERING_LATENCY_SAMPLES))


def write_dataset(folder: Path) -> None:
    """Master every song as a whole and write its excerpts."""
    shipped.require(
        {
            "fretsonfire-songs-muldjord": [path for song in SONGS if song.band == "muldjord" for path in song.tracks],
            "fretsonfire-songs-sectoid": [path for song in SONGS if song.band == "sectoid" for path in song.tracks],
            "zam-plugins": [PLUGINS_FOLDER / f"{name}.vst3" for name in ("ZamEQ2", "ZaMultiComp", "ZaMaximX2")],
        }
    )
    shipped.silence_native_code()
    shipped.clear_sides(folder)
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
        input = shipped.downsample(mixes[song.title])
        target = shipped.downsample(db_to_amplitude(MASTER_GAIN_DB) * masters[song.title])
        num_samples = round(EXCERPT_SECONDS * SAMPLE_RATE)
        for number in range(1, song.excerpts + 1):
            name = f"{song.name}_{number}"
            # Spread evenly over the song, without its beginning and end.
            start = round(number / (song.excerpts + 1) * len(input)) - num_samples // 2
            excerpts = (shipped.round_to_16_bit(audio[start : start + num_samples]) for audio in (input, target))
            paths = shipped.write_pair(folder, name, *excerpts)
            row = {"name": name, "split": song.split, "group": song.name, **paths}
            row |= {"song": song.title, "band": song.band, "start_seconds": f"{start / SAMPLE_RATE:.3f}"}
            rows.append(row | {"engine": song.engine, "licence": song.licence})
    for band in ("muldjord", "sectoid"):
        shutil.copy(COPYRIGHT / f"fretsonfire-songs-{band}" / "copyright", folder / f"LICENCE-{band}.txt")
    write_csv(folder / "manifest.csv", rows)
    shipped.write_checksums(folder)


if __name__ == "__main__":
    parser = shipped.argument_parser("Prepare the pairs of the mastering task (about a minute).", "mastering")
    shipped.run(parser.parse_args(), write_dataset)
