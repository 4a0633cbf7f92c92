#!/usr/bin/env python3
"""Make the paired audio of the tube-amplifier task: dry notes and the same notes through a tube stage.

Inputs are single notes of guitars and basses from FluidR3 (MIT) and one-shots of Sonic Pi (CC0).
Targets are those very inputs through ZamTube, a circuit-modelled tube preamplifier, at one setting.
On Debian, everything the script reads comes from

    apt-get install fluidsynth fluid-soundfont-gm sonic-pi-samples zam-plugins

and `pip install numpy scipy soundfile pedalboard tqdm`. Run it without options to write
`tube_amp/` beside this file, or with `--check` to compare a fresh rendering with what is there.
"""

import argparse
import csv
import hashlib
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pedalboard
import soundfile
from scipy.signal import firwin, resample_poly
from tqdm import tqdm

SAMPLE_RATE = 22_050  # of the files written
RENDER_SAMPLE_RATE = 44_100  # of the synthesiser, the one-shots and the tube stage
NUM_SAMPLES = 2 * SAMPLE_RATE
LEAD_IN_SECONDS = 0.01
NOTE_SECONDS = 1.7  # from key press to key release
INPUT_FADE_OUT_SECONDS = 0.05
# A driven stage ends with a slow offset from its coupling capacitors; it is faded where the file ends.
TARGET_FADE_OUT_SECONDS = 0.01

# A low pass just below the Nyquist frequency of the files, for every change of sample rate.
HALF_BAND_FILTER = firwin(255, 0.97 * SAMPLE_RATE / RENDER_SAMPLE_RATE, window=("kaiser", 9.0))

SYNTHESISER_GAIN = 1.15  # fluidsynth's own linear scale
ONE_SHOT_GAIN_DB = -6.0
TARGET_GAIN_DB = -6.0

TUBE_SETTING = {
    "input_level": 8.0,  # dB
    "tube_drive": 10.0,  # 0.1 to 11
    "insane_boost": 0.0,  # off
    "tone_stack_model": "1959 Bassman 5F6-A",
    "bass": 5.0,  # 0 to 10, as the two below
    "mids": 6.0,
    "treble": 7.0,
}

VELOCITIES = (76, 118)
GUITAR_PITCHES = range(40, 76, 7)  # MIDI note numbers, E2 to D#5
BASS_PITCHES = range(28, 54, 5)  # E1 to F3
PROGRAMS = {  # General MIDI, counted from 0
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
ONE_SHOTS = (  # the tonal ones that last two seconds
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

SPLIT_SEED = 7  # one of the few that give both held-out splits several guitars and several basses
HELD_OUT_SHARE = 0.1  # for validation, and again for test

# What `--check` forgives, as a share of full scale: the last bit of an input, a little more of a target.
INPUT_TOLERANCE = 1.5 / 32_768
TARGET_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Sources:
    """Where the programs and sounds are; the defaults are Debian's."""

    fluidsynth: str
    soundfont: Path
    one_shots: Path
    zamtube: Path

    def require(self) -> None:
        """Stop with the name of the Debian package if something is missing."""
        present = {
            "fluidsynth": (self.fluidsynth, shutil.which(self.fluidsynth) is not None),
            "fluid-soundfont-gm": (self.soundfont, self.soundfont.is_file()),
            "sonic-pi-samples": (
                self.one_shots,
                all((self.one_shots / f"{name}.flac").is_file() for name in ONE_SHOTS),
            ),
            "zam-plugins": (self.zamtube, self.zamtube.exists()),
        }
        missing = {package: where for package, (where, found) in present.items() if not found}
        if missing:
            lines = [f"  {where} (Debian package {package})" for package, where in missing.items()]
            remedy = f"try: apt-get install {' '.join(missing)}"
            sys.exit("\n".join(["error: not found or incomplete:", *lines, remedy]))


@dataclass(frozen=True)
class Note:
    """One note of the soundfont."""

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
    def group(self) -> tuple:
        """What must stay on one side of a split: all velocities of a pitch."""
        return (self.program, self.pitch)

    def render(self, sources: Sources) -> np.ndarray:
        """Play the note in fluidsynth without reverb and chorus."""
        with tempfile.TemporaryDirectory() as folder:
            midi, wave = Path(folder, "note.mid"), Path(folder, "note.wav")
            midi.write_bytes(self.midi())
            command = [sources.fluidsynth, "-n", "-i", "-q", "-R", "0", "-C", "0"]
            command += ["-g", str(SYNTHESISER_GAIN), "-r", str(RENDER_SAMPLE_RATE)]
            command += ["-o", "synth.dynamic-sample-loading=1"]
            command += ["-T", "wav", "-O", "float", "-F", wave, sources.soundfont, midi]  # float: no dither
            process = subprocess.run(command, capture_output=True, text=True)
            if process.returncode or not wave.is_file():
                raise RuntimeError(f"fluidsynth failed on {self.name}: {process.stderr.strip()}")
            return soundfile.read(wave, always_2d=True)[0].mean(axis=1)

    def midi(self) -> bytes:
        """A MIDI file of the note, one tick a millisecond, long enough for two seconds of audio."""
        release_ticks = round(1000 * NOTE_SECONDS)
        track = b"".join(
            [
                b"\x00\xff\x51\x03\x0f\x42\x40",  # a quarter note lasts 1 000 000 microseconds
                b"\x00" + bytes([0xC0, self.program]),
                b"\x00" + bytes([0x90, self.pitch, self.velocity]),
                variable_length(release_ticks) + bytes([0x80, self.pitch, 0]),
                variable_length(2100 - release_ticks) + b"\xff\x2f\x00",  # end of track
            ]
        )
        ticks_per_quarter = 1000
        return struct.pack(">4sIHHH4sI", b"MThd", 6, 0, 1, ticks_per_quarter, b"MTrk", len(track)) + track


@dataclass(frozen=True)
class OneShot:
    """One sample file of Sonic Pi."""

    file: str

    licence = "CC0-1.0"

    @property
    def name(self) -> str:
        return f"sonic_pi_{self.file}"

    @property
    def source(self) -> str:
        return f"sonic-pi-samples {self.file}.flac"

    @property
    def group(self) -> tuple:
        return (self.file,)

    def render(self, sources: Sources) -> np.ndarray:
        """Read the file as mono."""
        audio, sample_rate = soundfile.read(sources.one_shots / f"{self.file}.flac", always_2d=True)
        if sample_rate != RENDER_SAMPLE_RATE:
            raise ValueError(f"{self.file}.flac: {sample_rate} Hz, expected {RENDER_SAMPLE_RATE} Hz")
        return amplitude(ONE_SHOT_GAIN_DB) * audio.mean(axis=1)


def variable_length(value: int) -> bytes:
    """A number below 2 ** 14 the way MIDI files write it."""
    return bytes([0x80 | value >> 7, value & 0x7F])


def amplitude(gain_db: float) -> float:
    return 10 ** (gain_db / 20)


def all_sounds() -> list[Note | OneShot]:
    """Every sound of the data set, in the order of the manifest."""
    notes = [
        Note(program, pitch, velocity)
        for program, (_, pitches) in PROGRAMS.items()
        for pitch in pitches
        for velocity in VELOCITIES
    ]
    return notes + [OneShot(file) for file in ONE_SHOTS]


def split_by_group(sounds: list[Note | OneShot]) -> dict[tuple, str]:
    """Give every group one of train, validation and test."""
    groups = list(dict.fromkeys(sound.group for sound in sounds))
    random.Random(SPLIT_SEED).shuffle(groups)
    num_held_out = round(HELD_OUT_SHARE * len(groups))
    splits = ["validation"] * num_held_out + ["test"] * num_held_out
    splits += ["train"] * (len(groups) - len(splits))
    return dict(zip(groups, splits))


def make_input(dry: np.ndarray) -> np.ndarray:
    """Cut to two seconds with silence before and a fade at the end, at the sample rate of the files."""
    lead_in = np.zeros(round(LEAD_IN_SECONDS * RENDER_SAMPLE_RATE))
    num_samples = NUM_SAMPLES * RENDER_SAMPLE_RATE // SAMPLE_RATE
    audio = np.concatenate([lead_in, dry])[:num_samples]
    if len(audio) < num_samples:
        raise ValueError(f"only {len(audio) / RENDER_SAMPLE_RATE:.2f} s of audio")
    audio = fade_out(audio, round(INPUT_FADE_OUT_SECONDS * RENDER_SAMPLE_RATE))
    return as_16_bit(resample_poly(audio, 1, 2, window=HALF_BAND_FILTER))


def make_target(input: np.ndarray, zamtube: Path) -> np.ndarray:
    """Send a finished input through the tube stage, so that nothing in a target is missing in its input."""
    dry = resample_poly(input, 2, 1, window=HALF_BAND_FILTER)
    wet = resample_poly(tube_amp(dry, zamtube), 1, 2, window=HALF_BAND_FILTER)
    wet = fade_out(wet, round(TARGET_FADE_OUT_SECONDS * SAMPLE_RATE))
    return as_16_bit(-amplitude(TARGET_GAIN_DB) * wet)  # the stage inverts the polarity; undo that


def tube_amp(dry: np.ndarray, zamtube: Path) -> np.ndarray:
    """Process mono audio at RENDER_SAMPLE_RATE in a plugin of its own, so that no state outlives a note."""
    plugin = pedalboard.load_plugin(str(zamtube))
    # The detected type would load the plugin anew on reset and leave its parameters dangling.
    plugin._reload_type = pedalboard.ExternalPluginReloadType.ClearsAudioOnReset
    for name, value in TUBE_SETTING.items():
        setattr(plugin, name, value)
    wet = plugin.process(dry.astype(np.float32)[None], RENDER_SAMPLE_RATE, reset=False)[0]
    return wet.astype(np.float64)


def silence_native_code() -> None:
    """Keep stderr for Python alone: ZamTube's framework prints harmless warnings, some of them at exit."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def fade_out(audio: np.ndarray, num_samples: int) -> np.ndarray:
    """Let the last samples fall to zero along a raised cosine."""
    audio = audio.copy()
    audio[-num_samples:] *= np.cos(np.linspace(0, np.pi / 2, num_samples)) ** 2
    return audio


def as_16_bit(audio: np.ndarray) -> np.ndarray:
    """Round to the steps of a 16-bit file."""
    if not np.abs(audio).max() < 1:
        raise ValueError("audio clips or is not a number")
    return np.round(audio * 32_768).clip(-32_768, 32_767) / 32_768


def write_dataset(folder: Path, sources: Sources) -> None:
    """Write inputs, targets, manifest and checksums."""
    sounds = all_sounds()
    split_of = split_by_group(sounds)
    for side in ("input", "target"):
        shutil.rmtree(folder / side, ignore_errors=True)
        (folder / side).mkdir(parents=True)
    rows = []
    for sound in tqdm(sounds, desc="render", unit="pair"):
        paths = {side: f"{side}/{sound.name}.flac" for side in ("input", "target")}
        input = make_input(sound.render(sources))
        soundfile.write(folder / paths["input"], input, SAMPLE_RATE, subtype="PCM_16")
        target = make_target(input, sources.zamtube)
        soundfile.write(folder / paths["target"], target, SAMPLE_RATE, subtype="PCM_16")
        row = {"name": sound.name, "split": split_of[sound.group], **paths}
        rows.append(row | {"source": sound.source, "licence": sound.licence})
    with open(folder / "manifest.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_checksums(folder)


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS, in the format of `sha256sum --check`."""
    files = ["manifest.csv", *sorted(str(path.relative_to(folder)) for path in folder.glob("*/*.flac"))]
    lines = [f"{hashlib.sha256((folder / file).read_bytes()).hexdigest()}  {file}\n" for file in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def compare(shipped: Path, fresh: Path) -> bool:
    """Print how far a fresh rendering is from the shipped files; true if all are within tolerance."""
    same = (shipped / "manifest.csv").read_bytes() == (fresh / "manifest.csv").read_bytes()
    print(f"manifest: {'identical' if same else 'DIFFERENT'}")
    for side, tolerance in (("input", INPUT_TOLERANCE), ("target", TARGET_TOLERANCE)):
        paths = sorted((fresh / side).glob("*.flac"))
        errors = [largest_difference(shipped / side / path.name, path) for path in paths]
        wrong = [path.name for path, error in zip(paths, errors) if not error <= tolerance]
        print(
            f"{side}: {errors.count(0.0)} of {len(errors)} identical, "
            f"largest difference {max(errors):.1e} of full scale (tolerance {tolerance:.1e})"
        )
        for name in wrong:
            print(f"  MISMATCH {side}/{name}")
        same = same and not wrong
    return same


def largest_difference(shipped: Path, fresh: Path) -> float:
    """Largest difference between the samples of two files, infinite if they cannot be compared."""
    if not shipped.is_file():
        return np.inf
    (first, first_rate), (second, second_rate) = soundfile.read(shipped), soundfile.read(fresh)
    if first_rate != second_rate or first.shape != second.shape:
        return np.inf
    return float(np.abs(first - second).max())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Make the paired audio of the tube-amplifier task (about a minute).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    here = Path(__file__).resolve().parent
    parser.add_argument("--folder", type=Path, default=here / "tube_amp", help="the data set")
    parser.add_argument(
        "--check",
        action="store_true",
        help="leave the data set alone, make it again elsewhere and compare; exit status 1 on a mismatch",
    )
    parser.add_argument("--fluidsynth", default="fluidsynth", help="the synthesiser's command")
    parser.add_argument(
        "--soundfont", type=Path, default=Path("/usr/share/sounds/sf2/FluidR3_GM.sf2"), help="FluidR3_GM"
    )
    parser.add_argument(
        "--one-shots", type=Path, default=Path("/usr/share/sonic-pi/samples"), help="folder of Sonic Pi's samples"
    )
    parser.add_argument(
        "--zamtube", type=Path, default=Path("/usr/lib/vst3/ZamTube.vst3"), help="the plugin, as VST3"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    sources = Sources(arguments.fluidsynth, arguments.soundfont, arguments.one_shots, arguments.zamtube)
    sources.require()
    silence_native_code()
    if not arguments.check:
        write_dataset(arguments.folder, sources)
        return
    if not (arguments.folder / "manifest.csv").is_file():
        sys.exit(f"error: no data set in {arguments.folder}")
    with tempfile.TemporaryDirectory() as fresh:
        write_dataset(Path(fresh), sources)
        sys.exit(0 if compare(arguments.folder, Path(fresh)) else 1)


if __name__ == "__main__":
    main()
