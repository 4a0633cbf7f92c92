import numpy as np
import pytest
import soundfile

from dfx.audio.reading import audio_files
from dfx.datasets.pairs import SPLITS, check_audio, find_pairs
from dfx.errors import DataError


def all_pairs(root) -> list:
    return [pair for pairs in find_pairs(str(root)).values() for pair in pairs]


def test_files_of_the_same_name_are_a_pair(make_pairs):
    pairs = all_pairs(make_pairs(10))
    assert sorted(pair.name for pair in pairs) == [f"note_{i:02}" for i in range(10)]
    assert all(pair.name in pair.input.path and pair.name in pair.target.path for pair in pairs)


def test_suffixes_may_differ_and_folders_may_nest(make_pairs):
    root = make_pairs(5)
    for side, suffix in [("input", "flac"), ("target", "wav")]:
        (root / side / "more").mkdir()
        soundfile.write(root / side / "more" / f"a.{suffix}", np.full(100, 0.1), 22050)
    assert "more/a" in [pair.name for pair in all_pairs(root)]


def test_only_audio_files_of_the_user_are_found_in_a_folder(make_pairs):
    root = make_pairs(5)
    expected = sorted(pair.name for pair in all_pairs(root))
    for side in ("input", "target"):
        (root / side / "note_00.wav").rename(root / side / "note_00.WAV")
        for name in ("._note_01.wav", "Thumbs.db", "desktop.ini", ".DS_Store", "__MACOSX/a.wav", "@eaDir/b.wav"):
            (root / side / name).parent.mkdir(exist_ok=True)
            (root / side / name).write_bytes(b"no audio")
        (root / side / "reel.wav").mkdir()
        (root / side / "loop").symlink_to(root / side)
        (root / side / "loop.wav").symlink_to("loop.wav")
        assert [path.stem for path in audio_files(root / side)] == expected
    assert sorted(pair.name for pair in all_pairs(root)) == expected


def test_the_random_split_depends_on_the_seed_only_and_contains_every_pair_once(make_pairs):
    root = make_pairs(20)
    names = {seed: {s: [p.name for p in ps] for s, ps in find_pairs(str(root), seed).items()} for seed in (0, 1)}
    again = {s: [p.name for p in ps] for s, ps in find_pairs(str(root), 0).items()}
    assert names[0] == again and names[0] != names[1]
    assert {split: len(names[0][split]) for split in SPLITS} == {"train": 16, "validation": 2, "test": 2}
    assert len({name for split in SPLITS for name in names[0][split]}) == 20


def manifest(root, *rows: str) -> None:
    (root / "manifest.csv").write_text("\n".join(["name,split,input,target", *rows]) + "\n")


def test_a_manifest_names_pairs_and_splits(make_pairs):
    root = make_pairs(3)
    manifest(root, *(f"n{i},{split},input/note_0{i}.wav,target/note_0{i}.wav" for i, split in enumerate(SPLITS)))
    assert {split: [pair.name for pair in pairs] for split, pairs in find_pairs(str(root)).items()} == {
        "train": ["n0"],
        "validation": ["n1"],
        "test": ["n2"],
    }


def test_rows_of_a_manifest_are_selected_by_patterns_and_val_is_short_for_validation(make_pairs):
    root = make_pairs(5)
    splits = ["train", "val", "test", "train", "train"]
    manifest(root, *(f"n{i},{split},input/note_0{i}.wav,target/note_0{i}.wav" for i, split in enumerate(splits)))
    found = find_pairs(str(root), rows={"name": "n[0-3]", "target": "*.wav"})
    assert [len(found[split]) for split in SPLITS] == [2, 1, 1]
    with pytest.raises(DataError, match="has no row that is {'name': 'other'}"):
        find_pairs(str(root), rows={"name": "other"})
    with pytest.raises(DataError, match="no column speaker"):
        find_pairs(str(root), rows={"speaker": "anna"})
    (root / "manifest.csv").unlink()
    with pytest.raises(DataError, match="no manifest.csv whose rows"):
        find_pairs(str(root), rows={"name": "n0"})


@pytest.mark.parametrize(
    "rows, message",
    [
        (["a,training,input/note_00.wav,target/note_00.wav"], "line 2: split 'training'"),
        (["a,train,input/nothing.wav,target/note_00.wav"], "nothing.wav: no such file"),
        (["a,train,input/note_00.wav,target/note_00.wav"], "none for validation"),
        ([], "0 pairs, and none for train"),
    ],
)
def test_a_manifest_with_a_fault_is_refused(make_pairs, rows, message):
    root = make_pairs(3)
    manifest(root, *rows)
    with pytest.raises(DataError) as error:
        find_pairs(str(root))
    assert message in str(error.value)


def test_a_manifest_without_its_columns_is_refused(make_pairs):
    root = make_pairs(3)
    (root / "manifest.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no column input, split, target"):
        find_pairs(str(root))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_pairs_for_three_splits_are_refused(make_pairs, count):
    with pytest.raises(DataError, match=f"has {count} pairs, and none for"):
        find_pairs(str(make_pairs(count)))


def test_a_folder_that_is_missing_or_has_no_sides_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        find_pairs(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="neither manifest.csv nor a folder input"):
        find_pairs(str(tmp_path))


def test_a_file_without_a_partner_is_named(make_pairs):
    root = make_pairs(5)
    (root / "target" / "note_03.wav").unlink()
    with pytest.raises(DataError, match=r"note_03.wav has no partner in .*target$"):
        find_pairs(str(root))


@pytest.mark.parametrize(
    "samples, sample_rate, fault",
    [(100, 22050, "lengths, 11025 and 100"), (11025, 44100, "rates, 22050 and 44100 Hz")],
)
def test_a_pair_that_does_not_match_is_named(make_pairs, samples, sample_rate, fault):
    root = make_pairs(5)
    soundfile.write(root / "target" / "note_03.wav", np.full(samples, 0.1), sample_rate)
    with pytest.raises(DataError, match="note_03") as error:
        find_pairs(str(root))
    assert fault in str(error.value)


def test_a_file_that_is_not_audio_is_named(make_pairs):
    root = make_pairs(5)
    (root / "input" / "note_02.wav").write_text("no audio")
    with pytest.raises(DataError, match="note_02.wav is not an audio file"):
        find_pairs(str(root))


def test_silence_and_nan_are_found_in_every_file_and_the_first_is_named(make_pairs):
    root = make_pairs(5)
    check_audio(all_pairs(root))
    audio = np.full(11025, 0.1, dtype=np.float32)
    soundfile.write(root / "target" / "note_01.wav", 0 * audio, 22050)
    with pytest.raises(DataError, match="note_01.wav is silent"):
        check_audio(all_pairs(root))
    audio[5000] = np.nan
    soundfile.write(root / "input" / "note_00.wav", audio, 22050, subtype="FLOAT")
    with pytest.raises(DataError, match="(note_00.wav holds samples that are not finite|silent).*1 more files"):
        check_audio(all_pairs(root))
