#!/usr/bin/env python3
"""Prepare the pairs of the tube-amplifier task: dry notes, and the same notes through a tube stage.

Inputs are single notes of guitars and basses from FluidR3 (MIT) and one-shots of Sonic Pi (CC0).
Targets are these inputs processed by ZamTube, a circuit model of a tube preamplifier, at one setting.
On Debian, install the sources with

    apt-get install fluidsynth fluid-soundfont-gm sonic-pi-samples zam-plugins

and `pip install numpy scipy soundfile pedalboard tqdm`. Without options, the script writes
`tube_amp/` next to this file; with `--check`, it compares that folder with a new rendering.
"""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shipped
from scipy.signal import resample_poly
from shipped import HALF_BAND_FILTER, RENDER_SAMPLE_RATE, SAMPLE_RATE
from tqdm import tqdm

from dfx.audio.levels import db_to_amplitude
from dfx.writing import write_csv

ZAMTUBE = Path("/usr/lib/vst3/ZamTube.vst3")

NUM_SAMPLES = 2 * SAMPLE_RATE
LEAD_IN_SECONDS = 0.01
NOTE_SECONDS = 1.7  # from key press to key release
INPUT_FADE_OUT_SECONDS = 0.05
# Coupling capacitors leave a slowly decaying offset after a driven note; fade it where the file ends.
TARGET_FADE_OUT_SECONDS = 0.01

SYNTHESIZER_GAIN = 1.15  # on fluidsynth's linear scale
ONE_SHOT_GAIN_DB = -6.0
TARGET_GAIN_DB = -6.0

TUBE_SETTING = {
    "input_level": 8.0,  # dB
    "tube_drive": 10.0,  # 0.1 to 11
    "insane_boost": 0.0,  # off
    "tone_stack_model": "1959 Bassman 5F6-A",
    "bass": 5.0,  # 0 to 10, like mids and treble
    "mids": 6.0,
    "treble": 7.0,
}

VELOCITIES = (76, 118)
GUITAR_PITCHES = range(40, 76, 7)  # MIDI note numbers, E2 to D#5
BASS_PITCHES = range(28, 54, 5)  # E1 to F3
PROGRAMS = {  # General MIDI program numbers, from 0
    24: ("nylon_guitar", GUITAR_PITCHES),
    25: ("steel_guitar", GUITAR_PITCHES),
    26: ("jazz_guitar", GUITAR_PITCHES),
    27: ("clean_guitar", GUITAR_PITCHES),
    28: ("muted_guitar", GUITAR_PITCHES),
    32: ("acoustic_bass", BASS_PITCHES),
    33: ("finger_bass", BASS_PITCHES),
    34: ("pick_bass", BASS_PITCHES),
    35: ("fretless_bass", BASS_PITCHES),
    36: ("slap_bass", BASS_PITCHES),
    37: ("pop_bass", BASS_PITCHES),
}
ONE_SHOTS = (  # the tonal ones of at least two seconds
    "bass_drop_c",
    "bass_thick_c",
    "bass_trance_c",
    "bass_voxy_c",
    "bass_woodsy_c",
    "guit_e_fifths",
    "guit_e_slide",
    "guit_em9",
    "guit_harmonics",
)

SPLIT_SEED = 7  # one of the few seeds with several guitars and several basses in both held-out splits
HELD_OUT_SHARE = 0.1  # of the groups, for validation and test each


@dataclass(frozen=True)
class Sources:
    """Locations of the programs and sounds; the defaults of the command line are Debian's."""

    fluidsynth: str
    soundfont: Path
    one_shots: Path
    zamtube: Path

    def require(self) -> None:
        """Exit with the names of the Debian packages whose files are missing."""
        shipped.require(
            {
                "fluidsynth": [Path(shutil.which(self.fluidsynth) or self.fluidsynth)],
                "fluid-soundfont-gm": [self.soundfont],
                "sonic-pi-samples": [self.one_shots / f"{name}.flac" for name in ONE_SHOTS],
                "zam-plugins": [self.zamtube],
            }
        )


@dataclass(frozen=True)
class Note:
    """A note of the soundfont."""

    program: int
    pitch: int
    velocity: int

    licence = "MIT"

    @property
    def name(self) -> str:
        return f"{PROGRAMS[self.program][0]}_{self.pitch:03d}_{self.velocity:03d}"

    @property
    def source(self) -> str:
        return f"FluidR3_GM program {self.program} pitch {self.pitch} velocity {self.velocity}"

    @property
    def group(self) -> str:
        """Name of the sounds that must be in the same split: all velocities of a pitch."""
        return f"{PROGRAMS[self.program][0]}_{self.pitch:03d}"

    def render(self, sources: Sources) -> np.ndarray:
        """Render the note with fluidsynth, without reverb and chorus, as mono audio at RENDER_SAMPLE_RATE.

        Raises:
            RuntimeError: if fluidsynth fails.
        """
        with tempfile.TemporaryDirectory() as folder:
            midi, wave = Path(folder, "note.mid"), Path(folder, "note.wav")
            midi.write_bytes(self.to_midi())
            command = [sources.fluidsynth, "-n", "-i", "-q", "-R", "0", "-C", "0"]
            command += ["-g", str(SYNTHESIZER_GAIN), "-r", str(RENDER_SAMPLE_RATE)]
            command += ["-o", "synth.dynamic-sample-loading=1"]
            command += ["-T", "wav", "-O", "float", "-F", wave, sources.soundfont, midi]  # float: no dither
            process = subprocess.run(command, capture_output=True, text=True)
            if process.returncode or not wave.is_file():
                raise RuntimeError(f"fluidsynth failed on {self.name}: {process.stderr.strip()}")
            return shipped.read_mono(wave, RENDER_SAMPLE_RATE)[0]

    def to_midi(self) -> bytes:
        """Encode the note as a MIDI file with a tick of 1 ms, long enough for two seconds of audio."""
        release_ticks = round(1000 * NOTE_SECONDS)
        track = b"".join(
            [
                b"\x00\xff\x51\x03\x0f\x42\x40",  # a quarter note lasts 1 000 000 microseconds
                b"\x00" + bytes([0xC0, self.program]),
                b"\x00" + bytes([0x90, self.pitch, self.velocity]),
                encode_variable_length(release_ticks) + bytes([0x80, self.pitch, 0]),
                encode_variable_length(2100 - release_ticks) + b"\xff\x2f\x00",  # end of track
            ]
        )
        ticks_per_quarter = 1000
        return struct.pack(">4sIHHH4sI", b"MThd", 6, 0, 1, ticks_per_quarter, b"MTrk", len(track)) + track


@dataclass(frozen=True)
class OneShot:
    """A sample file of Sonic Pi."""

    file: str

    licence = "CC0-1.0"

    @property
    def name(self) -> str:
        return f"sonic_pi_{self.file}"

    @property
    def source(self) -> str:
        return f"sonic-pi-samples {self.file}.flac"

    @property
    def group(self) -> str:
        return self.name

    def render(self, sources: Sources) -> np.ndarray:
        """Read the file as mono audio at RENDER_SAMPLE_RATE."""
        audio, _ = shipped.read_mono(sources.one_shots / f"{self.file}.flac", RENDER_SAMPLE_RATE)
        return db_to_amplitude(ONE_SHOT_GAIN_DB) * audio


def encode_variable_length(value: int) -> bytes:
    """Encode a number below 2 ** 14 as a variable-length quantity of MIDI files."""
    return bytes([0x80 | value >> 7, value & 0x7F])


def list_sounds() -> list[Note | OneShot]:
    """Return all sounds of the data set, in the order of the manifest."""
    notes = [
        Note(program, pitch, velocity)
        for program, (_, pitches) in PROGRAMS.items()
        for pitch in pitches
        for velocity in VELOCITIES
    ]
    return notes + [OneShot(file) for file in ONE_SHOTS]


def split_by_group(sounds: list[Note | OneShot]) -> dict[str, str]:
    """Assign every group to train, validation or test."""
    groups = list(dict.fromkeys(sound.group for sound in sounds))
    random.Random(SPLIT_SEED).shuffle(groups)
    num_held_out = round(HELD_OUT_SHARE * len(groups))
    splits = ["validation"] * num_held_out + ["test"] * num_held_out
    splits += ["train"] * (len(groups) - len(splits))
    return dict(zip(groups, splits, strict=True))


def make_input(dry: np.ndarray) -> np.ndarray:
    """Prepend silence, cut to two seconds, fade out and convert to SAMPLE_RATE and 16 bit.

    Raises:
        ValueError: if the sound is too short.
    """
    lead_in = np.zeros(round(LEAD_IN_SECONDS * RENDER_SAMPLE_RATE))
    num_samples = NUM_SAMPLES * RENDER_SAMPLE_RATE // SAMPLE_RATE
    audio = np.concatenate([lead_in, dry])[:num_samples]
    if len(audio) < num_samples:
        raise ValueError(f"the sound lasts only {len(audio) / RENDER_SAMPLE_RATE:.2f} s; two seconds are needed")
    audio = fade_out(audio, round(INPUT_FADE_OUT_SECONDS * RENDER_SAMPLE_RATE))
    return shipped.round_to_16_bit(shipped.downsample(audio))


def make_target(input: np.ndarray, zamtube: Path) -> np.ndarray:
    """Process a finished input in the tube stage, so that a target contains nothing that its input lacks."""
    dry = resample_poly(input, 2, 1, window=HALF_BAND_FILTER)
    wet = shipped.downsample(shipped.run_plugin(zamtube, TUBE_SETTING, dry))
    wet = fade_out(wet, round(TARGET_FADE_OUT_SECONDS * SAMPLE_RATE))
    # The stage inverts the polarity: invert it back.
    return shipped.round_to_16_bit(-db_to_amplitude(TARGET_GAIN_DB) * wet)


def fade_out(audio: np.ndarray, num_samples: int) -> np.ndarray:
    """Fade the last samples to zero along a raised cosine."""
    audio = audio.copy()
    audio[-num_samples:] *= np.cos(np.linspace(0, np.pi / 2, num_samples)) ** 2
    return audio


def write_dataset(folder: Path, sources: Sources) -> None:
    """Write inputs, targets, manifest and checksums."""
    sources.require()
    shipped.silence_native_code()
    sounds = list_sounds()
    split_of = split_by_group(sounds)
    shipped.clear_sides(folder)
    rows = []
    for sound in tqdm(sounds, desc="render", unit="pair"):
        input = make_input(sound.render(sources))
        paths = shipped.write_pair(folder, sound.name, input, make_target(input, sources.zamtube))
        row = {"name": sound.name, "split": split_of[sound.group], "group": sound.group, **paths}
        rows.append(row | {"source": sound.source, "licence": sound.licence})
    write_csv(folder / "manifest.csv", rows)
    # LICENCE-FluidR3.txt is not written by this script, so it is not listed.
    shipped.write_checksums(folder, [folder / "manifest.csv", *sorted(folder.glob("*/*.flac"))])


def main() -> None:
    parser = shipped.argument_parser("Prepare the pairs of the tube-amplifier task (about a minute).", "tube_amp")
    debian = Path("/usr/share")
    parser.add_argument("--fluidsynth", default="fluidsynth", help="command of the synthesizer")
    parser.add_argument("--soundfont", type=Path, default=debian / "sounds/sf2/FluidR3_GM.sf2", help="FluidR3_GM")
    parser.add_argument(
        "--one-shots", type=Path, default=debian / "sonic-pi/samples", help="folder of Sonic Pi's samples"
    )
    parser.add_argument("--zamtube", type=Path, default=ZAMTUBE, help="the plugin, as VST3")
    arguments = parser.parse_args()
    sources = Sources(arguments.fluidsynth, arguments.soundfont, arguments.one_shots, arguments.zamtube)
    shipped.run(arguments, lambda folder: write_dataset(folder, sources))


if __name__ == "__main__":
    main()
