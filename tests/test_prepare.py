"""The prepare scripts of data/, on small archives in the layouts of the real ones."""

import csv
import dataclasses
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from sklearn.model_selection import train_test_split

from dfx.audio.reading import AudioFile
from dfx.datasets.pairs import SPLITS, check_audio, find_pairs, list_pairs
from dfx.datasets.preparation import download as download_module
from dfx.datasets.preparation.pairs import ZenodoPairs, run, safe_name, split_as_published, split_by_group, write_audio
from dfx.errors import DataError, UserError
from tests.loopback import Loopback

DATA = Path(__file__).parent.parent / "data"
RATE = 44_100


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, DATA / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


AUDIOMDPI = script("prepare_audiomdpi").AUDIOMDPI
DAPS = script("prepare_daps").DAPS
cambridge = script("prepare_cambridge_mt")
cut_songs = script("cut_songs")
draw_pairs = script("draw_pairs")


def sound(seed: int = 0, samples: int = 4410, gain: float = 0.1, channels: int = 1) -> np.ndarray:
    return gain * np.random.default_rng(seed).standard_normal((samples, channels)).clip(-4, 4)


def wav(audio: np.ndarray, sample_rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, audio, sample_rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def as_zip(files: dict) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def as_tar(files: dict) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def notes(count: int = 20, target: str = "{}") -> dict:
    strip = "AudioMDPI/6176ChannelStrip"
    files = {"AudioMDPI/LeslieHornTremolo/dry/other.wav": wav(sound()), "AudioMDPI/": b"", "__MACOSX/x": b"?"}
    for i in range(count):
        name = f"G61-{40100 + i}-1111-{20593 + i}"
        files[f"{strip}/dry/{name}.wav"] = wav(sound(i))
        files[f"{strip}/preamp/{target.format(name)}.wav"] = wav(np.tanh(3 * sound(i)))
        files[f"{strip}/dry/._{name}.wav"] = b"macOS keeps something here"
    return files


def speech(speakers: tuple = ("f1", "m1", "f10", "m10", "f9", "m9"), scripts: int = 2) -> dict:
    files = {"daps/README.txt": b"read me"}
    for folder in ("clean", "ipad_office1", "cleanraw"):
        for i, speaker in enumerate(speakers):
            for number in range(1, scripts + 1):
                name = f"{speaker}_script{number}_{folder}.wav"
                files[f"daps/{folder}/{name}"] = wav(sound(i + 100 * number))
                files[f"daps/{folder}/._{name}"] = b"macOS"
    return files


def manifest(folder: Path) -> dict:
    with open(folder / "manifest.csv", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def doubtful(folder: Path) -> dict:
    if not (folder / "doubtful.csv").exists():
        return {}
    with open(folder / "doubtful.csv", newline="") as file:
        return {row["name"]: row["reason"] for row in csv.DictReader(file)}


def names(folder: Path) -> dict:
    return {split: [pair.name for pair in pairs] for split, pairs in find_pairs(str(folder)).items()}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download_module, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(cambridge, "PAUSE_SECONDS", 0.0)
    loopback = Loopback()
    yield loopback
    loopback.close()


@pytest.fixture
def prepare(tmp_path):
    """Prepares a data set from an archive of these bytes, or this file, into ``tmp_path/out``."""

    def do(pairs: ZenodoPairs, archive, *more: str) -> Path:
        path = tmp_path / "archive"
        if isinstance(archive, bytes):
            path.write_bytes(archive)
        pairs.main("", "unused", ["--archive", str(path), "--output", str(tmp_path / "out"), *more])
        return tmp_path / "out"

    return do


# The archives of Zenodo


def test_audiomdpi_is_downloaded_over_a_bad_connection_verified_and_prepared(server, tmp_path, capsys):
    server.files["AudioMDPI.zip"] = as_zip(notes())
    server.breaks_after = 40_000
    AUDIOMDPI.main("", "unused", ["--url", server.record, "--output", str(tmp_path)])
    assert len(server.requests) > 2
    splits = find_pairs(str(tmp_path))
    assert {split: len(pairs) for split, pairs in splits.items()} == {"train": 16, "validation": 2, "test": 2}
    check_audio([pair for pairs in splits.values() for pair in pairs])
    row = manifest(tmp_path)["G61-40100-1111-20593"]
    assert row["input"] == "input/G61-40100-1111-20593.flac" and row["target"] == "target/G61-40100-1111-20593.flac"
    assert row["input_source"] == "AudioMDPI/6176ChannelStrip/dry/G61-40100-1111-20593.wav"
    assert row["target_source"] == "AudioMDPI/6176ChannelStrip/preamp/G61-40100-1111-20593.wav"
    assert "20 pairs in" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.partial*")) and not list(tmp_path.rglob("*other*"))


def test_daps_is_split_by_speaker_and_its_names_are_matched(server, tmp_path):
    server.files["daps.tar.gz"] = as_tar(speech())
    DAPS.main("", "unused", ["--url", server.record, "--output", str(tmp_path)])
    assert names(tmp_path) == {
        "train": ["f1_script1", "f1_script2", "m1_script1", "m1_script2"],
        "validation": ["f10_script1", "f10_script2", "m10_script1", "m10_script2"],
        "test": ["f9_script1", "f9_script2", "m9_script1", "m9_script2"],
    }
    row = manifest(tmp_path)["f10_script2"]
    assert row["input_source"] == "daps/cleanraw/f10_script2_cleanraw.wav"
    assert row["target_source"] == "daps/clean/f10_script2_clean.wav" and row["group"] == "f10"


def test_a_corrupt_archive_is_refused_and_nothing_is_prepared(server, tmp_path):
    server.files["AudioMDPI.zip"] = as_zip(notes(3))
    server.published["AudioMDPI.zip"] = {"checksum": "md5:" + "1" * 32}
    with pytest.raises(UserError, match="came damaged"):
        AUDIOMDPI.main("", "unused", ["--url", server.record, "--output", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_files_are_resampled_to_the_rate_of_the_model(prepare):
    files = {}
    n = np.arange(RATE)
    for i in range(3):
        # 1 kHz is kept; 15 kHz is above Nyquist (11 025 Hz) and must not alias.
        input = 0.4 * np.sin(2 * np.pi * 1000 * n / RATE) + 0.4 * np.sin(2 * np.pi * 15_000 * n / RATE)
        for side in ("dry", "preamp"):
            files[f"AudioMDPI/6176ChannelStrip/{side}/{i}.wav"] = wav(input)
    out = prepare(AUDIOMDPI, as_zip(files))
    audio, sample_rate = soundfile.read(out / "input" / "0.flac")
    assert sample_rate == 22_050 and len(audio) == 22_050
    assert soundfile.info(out / "input" / "0.flac").subtype == "PCM_24"
    expected = 0.4 * np.sin(2 * np.pi * 1000 * np.arange(22_050) / 22_050)
    assert np.abs(audio - expected)[100:-100].max() < 1e-3


def test_audio_beyond_full_scale_is_kept_as_float_and_reported(prepare, capsys):
    files = notes(5)
    square = np.sign(np.sin(2 * np.pi * 5000 * np.arange(4410) / RATE))
    files["AudioMDPI/6176ChannelStrip/preamp/G61-40102-1111-20595.wav"] = wav(square)  # overshoots when resampled
    out = prepare(AUDIOMDPI, as_zip(files))
    row = manifest(out)["G61-40102-1111-20595"]
    assert row["target"].endswith(".wav") and row["input"].endswith(".flac")
    assert np.abs(soundfile.read(out / row["target"])[0]).max() > 1.05
    assert "1 files exceed full scale: they are WAV" in capsys.readouterr().out
    prepare(AUDIOMDPI, as_zip(files))
    assert "prepared already" in capsys.readouterr().out


def test_another_run_keeps_existing_files_and_makes_missing_ones(prepare, capsys):
    out = prepare(AUDIOMDPI, as_zip(notes(5)))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.flac")}
    prepare(AUDIOMDPI, "the same")
    assert "prepared already" in capsys.readouterr().out
    lost, broken = sorted(before)[1], sorted(before)[7]
    lost.unlink()
    broken.write_bytes(broken.read_bytes()[:10])
    prepare(AUDIOMDPI, "the same")
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.flac")}
    assert after.keys() == before.keys()
    assert {path for path in before if before[path] != after[path]} == {lost, broken}


def test_another_sample_rate_makes_all_files_again(prepare):
    prepare(AUDIOMDPI, as_zip(notes(5)))
    out = prepare(AUDIOMDPI, "the same", "--sample-rate", "16000")
    assert {soundfile.info(path).samplerate for path in out.rglob("*.flac")} == {16_000}


def test_an_interrupted_run_loses_nothing(prepare, tmp_path):
    whole = as_tar(speech())
    with pytest.raises(UserError, match="archive is damaged or incomplete .*remove it and run this again"):
        prepare(DAPS, whole[: len(whole) * 9 // 10])
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.flac")}
    assert len(kept) > 10
    prepare(DAPS, whole)
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())


@pytest.mark.parametrize("pairs, make, files", [(AUDIOMDPI, as_zip, notes(3)), (DAPS, as_tar, speech())])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.999])
def test_a_truncated_archive_is_never_taken_for_a_complete_one(prepare, pairs, make, files, share):
    whole = make(files)
    with pytest.raises(UserError, match="is damaged or incomplete"):
        prepare(pairs, whole[: int(share * len(whole))])


@pytest.mark.parametrize("make", [as_zip, as_tar])
def test_a_flipped_byte_in_an_archive_is_found(prepare, make):
    pairs, files = (AUDIOMDPI, notes(3)) if make is as_zip else (DAPS, speech())
    content = bytearray(make(files))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(UserError, match="is damaged or incomplete"):
        prepare(pairs, bytes(content))


def test_an_archive_of_another_kind_or_layout_is_named(prepare):
    with pytest.raises(UserError, match="neither a zip nor a tar.gz"):
        prepare(AUDIOMDPI, b"hello")
    with pytest.raises(UserError, match="neither a zip nor a tar.gz"):
        prepare(AUDIOMDPI, b"")
    with pytest.raises(UserError, match="no audio in AudioMDPI/6176ChannelStrip/dry, but in: other/dry, other/wet"):
        prepare(AUDIOMDPI, as_zip({"other/wet/a.wav": b"", "other/dry/a.wav": b""}))
    with pytest.raises(UserError, match="no audio in AudioMDPI/6176ChannelStrip/dry, but in: nothing"):
        prepare(AUDIOMDPI, as_zip({}))
    with pytest.raises(UserError, match="no audio in daps/clean, "):
        prepare(DAPS, as_tar({name: content for name, content in speech().items() if "/clean/" not in name}))


def test_names_in_an_archive_may_be_in_any_encoding_and_unicode_form(prepare, capsys):
    files = {}
    names = [("é-composed", "é-composed"), ("e\u0301-decomposed", "é-decomposed"), (os.fsdecode(b"\xe9-1"),) * 2]
    for i, sides in enumerate(names):
        for side, name in zip(("cleanraw", "clean"), sides):
            files[f"daps/{side}/f{i}_script1{name}_{side}.WAV"] = wav(sound(i))
            files[f"daps/{side}/._f{i}_script1{name}_{side}.WAV"] = files[f"__MACOSX/daps/{side}/a.wav"] = b"macOS"
    files["daps/clean/f0_script1e\u0301-composed_clean.wav"] = wav(sound(9))
    pairs = dataclasses.replace(DAPS, split=lambda names: dict(zip(names, SPLITS)))
    out = prepare(pairs, as_tar(files))
    assert sorted(manifest(out)) == ["f0_script1é-composed", "f1_script1é-decomposed", "f2_script1%E9-1"]
    assert len(find_pairs(str(out))["train"]) == 1
    assert (
        "daps/clean/f0_script1e\u0301-composed_clean.wav: daps/clean/f0_script1é-composed_clean.WAV has its name"
        in (capsys.readouterr().out)
    )


def test_an_archive_cannot_write_elsewhere(prepare, tmp_path):
    files = notes(3)
    evil = wav(sound(9))
    for name in ("../evil.wav", "../../evil.wav", "/tmp/evil.wav", "..\\..\\evil.wav", "C:evil.wav"):
        files[f"AudioMDPI/6176ChannelStrip/dry/{name}"] = evil
        files[name] = evil
    out = prepare(AUDIOMDPI, as_zip(files))
    assert {path.parent.name for path in tmp_path.rglob("*evil*")} == {"input"}
    assert len(manifest(out)) == 3


def test_a_link_in_an_archive_is_not_followed(prepare, tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        link = tarfile.TarInfo("daps/clean/f1_script1_clean.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    with pytest.raises(UserError, match="no audio in daps/cleanraw"):
        prepare(DAPS, out.getvalue())


def test_files_without_a_partner_broken_and_silent_ones_are_left_out_and_listed(prepare, capsys):
    files, strip = notes(8), "AudioMDPI/6176ChannelStrip"
    del files[f"{strip}/preamp/G61-40100-1111-20593.wav"]
    files[f"{strip}/dry/G61-40101-1111-20594.wav"] = b"no audio"
    files[f"{strip}/preamp/G61-40102-1111-20595.wav"] = wav(np.zeros(4410))
    files[f"{strip}/preamp/G61-40103-1111-20596.wav"] = wav(sound(3, samples=3 * RATE))
    out = prepare(AUDIOMDPI, as_zip(files))
    assert len(manifest(out)) == 4
    found = doubtful(out)
    assert found["G61-40100-1111-20593"] == "has no target"
    assert found["G61-40101-1111-20594"].startswith(f"{strip}/dry/G61-40101-1111-20594.wav is not an audio file")
    assert found["G61-40102-1111-20595"] == "G61-40102-1111-20595 is silent"
    assert found["G61-40103-1111-20596"] == "input and target have different lengths, 0.10 s and 3.00 s"
    printed = capsys.readouterr().out
    assert all(name in printed for name in found) and "4 pairs were left out" in printed


def test_a_partner_that_is_a_little_longer_is_cut(prepare):
    files = notes(3)
    name = "G61-40100-1111-20593"
    files[f"AudioMDPI/6176ChannelStrip/preamp/{name}.wav"] = wav(sound(0, samples=4510))
    out = prepare(AUDIOMDPI, as_zip(files))
    assert soundfile.info(out / "target" / f"{name}.flac").frames == 2205 and name in manifest(out)


def test_a_partner_that_is_too_loud_only_where_it_is_cut_needs_no_float(prepare):
    files, n = notes(3), np.arange(9000)
    loud = np.where(n < 6000, 0.1, 1.0) * np.sign(np.sin(2 * np.pi * 5000 * n / RATE))
    files["AudioMDPI/6176ChannelStrip/preamp/G61-40100-1111-20593.wav"] = wav(loud)
    out = prepare(AUDIOMDPI, as_zip(files))
    assert manifest(out)["G61-40100-1111-20593"]["target"].endswith(".flac")
    assert [path.suffix for path in (out / "target").iterdir()] == [".flac"] * 3


def test_folders_without_a_name_in_common_are_paired_in_their_order(prepare, capsys):
    out = prepare(AUDIOMDPI, as_zip(notes(4, target="{}_preamp")))
    assert all(row["target"] == f"target/{name}_preamp.flac" for name, row in manifest(out).items())
    assert "paired in their order" in capsys.readouterr().out


def test_too_few_pairs_for_three_splits_are_reported(prepare):
    with pytest.raises(DataError, match="none for train"):
        prepare(AUDIOMDPI, as_zip(notes(2)))


def test_a_disk_that_is_too_small_is_reported_before_it_is_full(prepare, monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 1000))
    with pytest.raises(UserError, match="make room, or choose another disk"):
        prepare(AUDIOMDPI, as_zip(notes(3)))
    assert not list((tmp_path / "out").rglob("*.*"))


# Parts of the preparation


@pytest.mark.parametrize("count", [10, 103, 1188])
def test_the_published_split_is_scikit_learns(count):
    files = [f"note_{i:04}" for i in range(count)]
    rest, test = train_test_split(files, test_size=0.1, random_state=0)
    train, validation = train_test_split(rest, test_size=0.1111, random_state=0)
    split = split_as_published(files[::-1])
    for name, expected in (("train", train), ("validation", validation), ("test", test)):
        assert {file for file in files if split[file] == name} == set(expected)


def test_a_group_is_in_one_split_and_keeps_it_when_names_are_added():
    groups = {f"song {i}": f"artist {i // 3}" for i in range(150)}
    split = split_by_group(groups)
    counts = [list(split.values()).count(name) for name in ("train", "validation", "test")]
    assert counts[1] in range(15, 18) and counts[2] in range(15, 18) and sum(counts) == 150
    assert all(len({split[name] for name in groups if groups[name] == group}) == 1 for group in groups.values())
    more = split_by_group({**groups, "one more": "another artist"})
    assert sum(more[name] != split[name] for name in groups) <= 9
    assert sorted(split_by_group({"a": "x", "b": "y", "c": "z"}).values()) == ["test", "train", "validation"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_refused(tmp_path, bad):
    with pytest.raises(DataError, match="a holds samples that are not finite"):
        write_audio(torch.tensor([[0.1, bad]]), tmp_path / "a", RATE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a/b", "..", "a\\b", "c:d", "\x00", "  ", ""])
def test_names_are_safe(tmp_path, name):
    assert re.fullmatch(r"[\w. -]+", safe_name(name)) and (tmp_path / safe_name(name)).parent == tmp_path
    assert safe_name("Björk - Hyper-Ballad (v1.2)") == "Björk - Hyper-Ballad (v1.2)"


@pytest.mark.parametrize(
    "error, message",
    [
        (UserError("a: no"), "error: a: no"),
        (PermissionError(13, "Permission denied", "a"), "error: a: Permission denied"),
    ],
)
def test_errors_that_a_user_can_fix_end_a_script_with_one_line(error, message):
    def main():
        raise error

    with pytest.raises(SystemExit, match=f"^{message}$"):
        run(main)


def test_an_interrupted_script_ends_with_one_line(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="^130$"):
        run(main)
    assert capsys.readouterr().err == "stopped by Ctrl-C: run this again to continue\n"


@pytest.mark.parametrize("pairs", [AUDIOMDPI, DAPS])
def test_a_missing_copy_and_a_wrong_rate_are_refused(pairs, tmp_path, capsys):
    with pytest.raises(UserError, match="nothing.zip: no such file"):
        pairs.main("", str(tmp_path), ["--archive", str(tmp_path / "nothing.zip")])
    for rate in ("0", "-1", "x", "1e9"):
        with pytest.raises(SystemExit):
            pairs.main("", str(tmp_path), ["--sample-rate", rate])
        assert "--sample-rate" in capsys.readouterr().err


def test_scripts_run_from_anywhere_and_end_with_one_line(tmp_path):
    command = [sys.executable, str(DATA / "prepare_daps.py"), "--archive", "nothing.tar.gz"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (1, "error: nothing.tar.gz: no such file\n")


# Draws of a few pairs


def test_a_draw_is_of_different_groups_and_the_same_again(tmp_path, capsys):
    names = [f"note{number // 2}_{number % 2}" for number in range(24)]
    for side in ("input", "target"):
        (tmp_path / side).mkdir()
        for name in names:
            soundfile.write(tmp_path / side / f"{name}.wav", sound(), RATE)

    def draw(seed: int, *options: str) -> dict[str, list[str]]:
        draw_pairs.main([str(tmp_path), str(tmp_path / "draw"), f"--seed={seed}", "--group=note[0-9]+", *options])
        splits = find_pairs(str(tmp_path / "draw"))
        return {split: [pair.name for pair in splits[split]] for split in SPLITS}

    splits = draw(0)
    drawn = [name for split in SPLITS for name in splits[split]]
    assert [len(splits[split]) for split in SPLITS] == [5, 1, 4]
    assert len({name.split("_")[0] for name in drawn}) == 10
    assert capsys.readouterr().out.splitlines()[-1] == f"test: {drawn[-1]}"
    assert draw(0) == splits != draw(1)
    with pytest.raises(DataError, match="12 groups of pairs are too few for 13 pairs of different groups"):
        draw(0, "--train=8")
    with pytest.raises(UserError, match="validation is 0"):
        draw(0, "--validation=0")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is Unicode")
def test_a_draw_lists_files_whose_names_are_not_utf_8(tmp_path):
    name = os.fsdecode(b"note_\xe9.wav")
    for side in ("input", "target"):
        (tmp_path / side).mkdir()
        soundfile.write(os.fsencode(tmp_path / side / name), sound(), RATE, format="WAV")
        for number in range(9):
            soundfile.write(tmp_path / side / f"note_{number}.wav", sound(), RATE)
    draw_pairs.main([str(tmp_path), str(tmp_path / "draw")])
    pairs = [pair for pairs in find_pairs(str(tmp_path / "draw")).values() for pair in pairs]
    assert str(tmp_path / "input" / name) in {pair.input.path for pair in pairs}


# Cuts of songs


def test_the_middles_of_long_songs_are_cut(tmp_path, capsys):
    songs, folder = tmp_path / "songs", tmp_path / "cut"
    (songs / "band" / "album").mkdir(parents=True)
    long = sound(samples=4 * RATE, channels=2)
    soundfile.write(songs / "band" / "album" / "long.wav", long, RATE, "FLOAT")
    soundfile.write(songs / "short.wav", sound(samples=RATE), RATE)
    soundfile.write(songs / "silent.wav", np.zeros(4 * RATE), RATE)
    (songs / "broken.wav").write_bytes(b"RIFF")
    options = [str(songs), str(folder), "--seconds=1", "--shortest=2"]
    cut_songs.main(options)
    assert capsys.readouterr().out == f"1 song, listed in {folder / 'manifest.csv'}\n"
    ((pair, split),) = list_pairs(str(folder))
    assert (pair.name, split) == ("band_long", "test") and pair.input.path == pair.target.path
    cut, _ = soundfile.read(pair.input.path)
    middle = AudioFile.open(str(songs / "band" / "album" / "long.wav")).read(22050 * 3 // 2, 22050, 22050, 1)
    np.testing.assert_allclose(cut, middle[0], atol=1e-6)
    with (folder / "doubtful.csv").open() as file:
        assert {row["name"]: row["reason"] for row in csv.DictReader(file)}.keys() == {"silent", "broken"}

    (songs / "band" / "long.wav").write_bytes((songs / "band" / "album" / "long.wav").read_bytes())
    with pytest.raises(UserError, match="would both be named band_long: rename one of them"):
        cut_songs.main(options)
    with pytest.raises(DataError, match="has no song of 9 s or more that can be read"):
        cut_songs.main([*options[:3], "--shortest=9"])
    assert doubtful(folder).keys() == {"broken"}
    with pytest.raises(UserError, match="nowhere: no such folder"):
        cut_songs.main([str(tmp_path / "nowhere"), *options[1:]])
    with pytest.raises(UserError, match="--shortest 1.5 is less than the 2 s of a cut"):
        cut_songs.main([*options[:3], "--shortest=1.5", "--seconds=2"])


def test_cuts_that_are_written_below_the_songs_are_not_cut_again(tmp_path):
    soundfile.write(tmp_path / "long.wav", sound(samples=4 * RATE), RATE)
    for _ in range(2):
        cut_songs.main([str(tmp_path), str(tmp_path / "cut"), "--seconds=2", "--shortest=2"])
        assert manifest(tmp_path / "cut").keys() == {"long"}


# Cambridge-MT


def entry(artist: str, title: str, type: str, preview: str) -> str:
    rest = '"tags": ["x", {"pv": "no"}], "n": 3'
    return f'{{"s":"Pop","a":"{artist}","p":"\'{title}\'","pt":"{type}",{rest},"pv":"{preview}"}}'


def page(*entries: str) -> str:
    listed = ",\n".join(entries)
    return f"<html><script>// a comment\nvar projects = [\n{listed},\n];\nvar other = [{{}}];</script></html>"


def test_the_page_lists_the_songs_that_have_both_previews():
    songs = cambridge.parse_page(
        page(
            entry("A &amp; B", "One", "Full", "https://p.example/One_Full_Preview.mp3"),
            entry("A &amp; B", "One", "Mstr", "https://p.example/One_UnmasteredWAV.mp3"),
            entry("A &amp; B", "One", "Excerpt", "https://p.example/One_Excerpt.mp3"),
            entry("C", "Two", "Full", "https://p.example/Two_Full_Preview.mp3"),
            entry("C", "Three", "Mstr", "Three Un%20mastered.mp3?x=1"),
            entry("C", "Three", "Full", "/Three.mp3"),
            entry("C", "Four", "Mstr", ""),
            entry("C", "Four", "Full", "/Four.mp3"),
        )
    )
    assert songs == [
        ("A & B", "One", "https://p.example/One_UnmasteredWAV.mp3", "https://p.example/One_Full_Preview.mp3"),
        ("C", "Three", f"{cambridge.SITE}Three%20Un%20mastered.mp3?x=1", f"{cambridge.SITE}Three.mp3"),
    ]
    assert songs[0].name == "A & B - One"
    assert cambridge.file_name(songs[1].input) == "Three Un mastered.mp3"


def test_the_page_may_contain_javascript_syntax():
    text = r"""
        var projects=[ { artist : 'It\'s "me"', /* { not this } */ project: "]; \u00e9",
          type:'Mstr', pv : 'a.mp3', years: [1999, 2000], link: '<a href="x.zip">{</a>' }, // nor ] this
        {'artist': "It's \"me\"", "project": ']; é', "type": "Full", "pv": "b.mp3"} ];"""
    assert cambridge.parse_page(text) == [
        ('It\'s "me"', "]; é", f"{cambridge.SITE}a.mp3", f"{cambridge.SITE}b.mp3"),
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no list `var projects = \\[`"),
        ("<html>Just a moment...</html>", "no list `var projects = \\[`"),
        ("var projects = [", "ends in the middle"),
        ('var projects = [{"a":"b"', "ends in the middle"),
        ("var projects = [];", "its fields are: none"),
        ('var projects = [{"name":"b","url":"c"}];', "its fields are: name, url"),
    ],
)
def test_a_page_of_another_layout_is_named(text, message):
    with pytest.raises(UserError, match=message):
        cambridge.parse_page(text)


def mix(seed: int, seconds: float = 9.0) -> np.ndarray:
    """Noise in bursts, ``(samples, 2)``."""
    bursts = np.repeat(np.random.default_rng(seed).uniform(0.05, 0.3, int(seconds * 10)), RATE // 10)
    return bursts[:, None] * sound(seed, len(bursts), 0.5, 2)


@pytest.fixture
def library(tmp_path):
    """Writes previews as MP3 to ``tmp_path/copy`` and a page that lists them, and prepares them."""
    entries = []
    (tmp_path / "copy").mkdir()

    def add(artist: str, title: str, input: np.ndarray, target: np.ndarray, url: str = "https://p.example") -> None:
        for type, audio in (("Mstr", input), ("Full", target)):
            entries.append(entry(artist, title, type, f"{url}/{title}_{type}_Preview.mp3"))
            if audio is not None:
                soundfile.write(tmp_path / "copy" / f"{title}_{type}_Preview.mp3", audio, RATE, format="MP3")

    def run_it(*more: str) -> Path:
        (tmp_path / "page.htm").write_text(page(*entries), encoding="utf-8")
        options = ["--page", str(tmp_path / "page.htm"), "--copy", str(tmp_path / "copy")]
        cambridge.main([*options, "--output", str(tmp_path / "out"), *more])
        return tmp_path / "out"

    return namedtuple("Library", "add run entries")(add, run_it, entries)


def master(audio: np.ndarray) -> np.ndarray:
    return 0.5 * np.tanh(4 * audio)


def test_songs_are_aligned_and_doubtful_ones_left_out_with_the_reason(library, tmp_path, capsys):
    songs = [mix(i) for i in range(9)]
    library.add("A", "even", songs[0], master(songs[0]))
    library.add("B", "late", songs[1], np.concatenate([np.zeros((2000, 2)), master(songs[1])]))
    library.add("C", "early", songs[2], master(songs[2])[3000:])
    library.add("D", "inverted", songs[3], -master(songs[3]))
    library.add("E", "wrong", songs[4], master(songs[5]))
    library.add("F", "edited", songs[6], master(np.delete(songs[6], slice(165_000, 165_200), axis=0)))
    library.add("G", "excerpt", songs[7], master(songs[7])[: 6 * RATE])
    library.add("H", "absent", songs[8], None)
    library.add("I", "page", songs[8], songs[8])
    (tmp_path / "copy" / "page_Full_Preview.mp3").write_text("<html>Just a moment...</html>")
    out = library.run()

    rows = manifest(out)
    assert set(rows) == {"A - even", "B - late", "C - early", "D - inverted"}
    assert [int(rows[name]["delay_samples"]) for name in sorted(rows)] == pytest.approx([0, 1000, -1500, 0], abs=1)
    assert [row["polarity"] for row in rows.values()] == ["1", "1", "1", "-1"]
    assert all(abs(int(row["drift_samples"])) <= 1 and float(row["correlation"]) > 0.6 for row in rows.values())
    assert {row["artist"] for row in rows.values()} == set("ABCD")
    for row in rows.values():
        (input, rate), (target, _) = (soundfile.read(out / row[side]) for side in ("input", "target"))
        assert rate == 22_050 and input.shape == target.shape and input.shape[1] == 2
        assert (input * target).sum() / np.sqrt((input**2).sum() * (target**2).sum()) > 0.8
    assert len(soundfile.read(out / "input/C - early.flac")[0]) == pytest.approx(9 * 22_050 - 1500, abs=5)

    found = doubtful(out)
    assert found["E - wrong"].startswith("input and target are too unlike")
    assert found["F - edited"].startswith("the delay drifts: ")
    assert found["G - excerpt"].startswith("the lengths are too different: 9.0 s, and 6.0 s of target")
    assert found["H - absent"].startswith("absent_Full_Preview.mp3 not in ")
    assert "page_Full_Preview.mp3 is not an audio file" in found["I - page"]
    printed = capsys.readouterr().out
    assert "9 songs of the page" in printed and all(name in printed for name in found)


def test_a_copy_that_grows_is_added_to_and_no_artist_is_in_two_splits(library, tmp_path):
    for i in range(3):
        library.add(f"artist {i}", f"first {i}", mix(i, 6.0), master(mix(i, 6.0)))
    out = library.run()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.flac")}
    for i in range(3):
        library.add(f"artist {i}", f"second {i}", mix(10 + i, 6.0), master(mix(10 + i, 6.0)))
    del library.entries[:2]  # what is prepared is kept, also if the page no longer lists it
    (tmp_path / "copy" / "first 0_Full_Preview.mp3").unlink()  # what is prepared is not needed again
    library.run()
    rows = manifest(out)
    assert len(rows) == 6 and len(before) == 6 and doubtful(out) == {}
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert all(len({row["split"] for row in rows.values() if row["group"] == f"artist {i}"}) == 1 for i in range(3))
    assert {row["split"] for row in rows.values()} == {"train", "validation", "test"}
    assert all(row["correlation"] for row in rows.values())


def test_previews_can_be_downloaded_if_the_site_permits(library, server, tmp_path, capsys):
    for i in range(3):
        library.add(f"artist {i}", f"song {i}", mix(i, 6.0), master(mix(i, 6.0)), server.url)
    library.add("D", "gone", None, None, server.url)
    copy = tmp_path / "copy"
    for path in list(copy.iterdir()):
        server.files[path.name.replace(" ", "%20")] = path.read_bytes()
        path.unlink()
    server.breaks_after = 50_000
    out = library.run("--download")
    assert len(manifest(out)) == 3 and len(list(copy.iterdir())) == 6
    assert "gone_Full_Preview.mp3 not in" in doubtful(out)["D - gone"]
    assert "gone_Mstr_Preview.mp3 is refused: HTTP 404" in capsys.readouterr().out

    (copy / "song 0_Full_Preview.mp3").unlink()
    server.status["song%200_Full_Preview.mp3"] = [403]
    with pytest.raises(UserError, match="HTTP 403.*save the missing previews with a browser into .*copy"):
        library.run("--download")


def test_a_missing_page_a_missing_copy_and_an_empty_copy_are_named(library, tmp_path, capsys):
    with pytest.raises(UserError, match="nowhere.htm: no such file; save https://multitracksearch.*with a browser"):
        cambridge.main(["--page", str(tmp_path / "nowhere.htm"), "--copy", str(tmp_path)])
    library.add("A", "one", None, None)
    with pytest.raises(UserError, match="nothing: no such folder"):
        library.run("--copy", str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="out: no pair could be prepared"):
        library.run()
    assert "A - one: one_Mstr_Preview.mp3 and one_Full_Preview.mp3 not in" in capsys.readouterr().out
