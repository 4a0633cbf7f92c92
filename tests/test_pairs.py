import os
import shutil
import sys
import unicodedata

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


def test_a_manifest_may_group_pairs_and_a_pair_without_a_group_is_one_by_itself(make_pairs):
    root = make_pairs(4)
    assert all(pair.group == pair.name for pair in all_pairs(root))
    rows = [f"n{i},{split},input/note_0{i}.wav,target/note_0{i}.wav" for i, split in enumerate(["train", *SPLITS])]
    groups = ["anna", "anna", "ben", ""]
    lines = ["name,split,input,target,Group", *(f"{row},{group}" for row, group in zip(rows, groups))]
    (root / "manifest.csv").write_text("\n".join(lines))
    assert [pair.group for pair in all_pairs(root)] == ["anna", "anna", "ben", "n3"]


def grouped(root, count: int, split: str = "") -> None:
    """Write a manifest of groups of two pairs."""
    rows = [f"n{i},{split},input/note_{i:02}.wav,target/note_{i:02}.wav,g{i // 2}" for i in range(count)]
    (root / "manifest.csv").write_text("\n".join(["name,split,input,target,group", *rows]))


@pytest.mark.parametrize("count, split", [(2, ""), (3, "train"), (5, "")])
def test_folds_test_every_pair_once_divide_no_group_and_depend_on_the_seed_only(make_pairs, count, split):
    root = make_pairs(10)
    grouped(root, 10, split)
    folds = {
        seed: [find_pairs(str(root), seed, fold=(number, count)) for number in range(1, count + 1)] for seed in (0, 1)
    }
    assert folds[0] == [find_pairs(str(root), 0, fold=(number, count)) for number in range(1, count + 1)] != folds[1]
    for splits in folds[0]:
        groups = {split: {pair.group for pair in splits[split]} for split in SPLITS}
        assert sum(map(len, splits.values())) == 10 and sum(map(len, groups.values())) == 5
        assert len(groups["validation"]) == 1
    assert sorted(pair.name for splits in folds[0] for pair in splits["test"]) == [f"n{i}" for i in range(10)]


@pytest.mark.parametrize(
    "count, message", [(6, "has 5 groups of pairs, and no fold 1 of 6: take 2 to 5 folds"), (1, "no fold 1 of 1")]
)
def test_folds_that_there_are_no_groups_for_are_refused(make_pairs, count, message):
    root = make_pairs(10)
    grouped(root, 10)
    with pytest.raises(DataError, match=message):
        find_pairs(str(root), fold=(1, count))


def test_folds_of_a_manifest_with_splits_and_without_groups_are_refused(make_pairs):
    root = make_pairs(3)
    manifest(root, *(f"n{i},{split},input/note_0{i}.wav,target/note_0{i}.wav" for i, split in enumerate(SPLITS)))
    with pytest.raises(DataError, match="gives splits and no groups, .*: add a column group"):
        find_pairs(str(root), fold=(1, 3))


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


ROWS = "Name, Split ,INPUT,target\n" + "".join(
    f"n{i},{split},input/note_0{i}.wav, target\\note_0{i}.wav \n\n,,,\n" for i, split in enumerate(SPLITS)
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_a_manifest_is_read_in_the_forms_that_spreadsheets_write(make_pairs, encoding, separator, ending):
    root = make_pairs(3, seconds=0.01)
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    for head in ("", "\n", f"sep={separator}\n"):
        text = mark + head + ROWS.replace(",", separator).replace("\n", ending)
        (root / "MANIFEST.CSV").write_bytes(text.encode(encoding))
        assert {split: [pair.name for pair in pairs] for split, pairs in find_pairs(str(root)).items()} == {
            "train": ["n0"],
            "validation": ["n1"],
            "test": ["n2"],
        }


@pytest.mark.parametrize(
    "content, message",
    [
        (b"PK\x03\x04\0\0", "not a text file"),
        (b"\xff\xfea", "not a text file"),
        (b"a,a,input,target,split\n", "two columns a"),
        (b"input,target,split\na, b.wav,c.wav,train\n", "line 2 has more values .* quotes"),
        (b"input,target,split\n\n,target/note_00.wav,train\n", "line 3: .*no such file"),
        (b"input,target,split\ninput/caf\xe9.wav,target/note_00.wav,train\n", "line 2: .* not in UTF-8: save it"),
        (b"input,target,split\n" + 200_000 * b"a", "line 2 is not CSV: field larger"),
    ],
)
def test_a_file_that_is_no_such_table_is_refused_in_one_line(make_pairs, content, message):
    root = make_pairs(3, seconds=0.01)
    (root / "manifest.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        find_pairs(str(root))


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
@pytest.mark.parametrize("listed", [None, "NFC", "NFD"])
def test_names_are_one_whether_accents_are_composed_or_not(make_pairs, forms, listed):
    root = make_pairs(4, seconds=0.01)
    for side, form in zip(("input", "target"), forms):
        (root / side / "note_00.wav").rename(root / side / unicodedata.normalize(form, "café.wav"))
    if listed:
        name = unicodedata.normalize(listed, "café")
        names = [name, "note_01", "note_02"]
        manifest(root, *(f"{name},{split},input/{name}.wav,target/{name}.wav" for name, split in zip(names, SPLITS)))
    assert "café" in {unicodedata.normalize("NFC", pair.name) for pair in all_pairs(root)}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is Unicode")
@pytest.mark.parametrize("listed", [False, True])
def test_names_that_are_not_utf_8_are_found_and_can_be_printed(make_pairs, listed):
    root, name = make_pairs(5, seconds=0.01), os.fsdecode(b"caf\xe9\n1")
    for side in ("input", "target"):
        (root / side / "note_00.wav").rename(root / side / f"{name}.wav")
    if listed:
        names = zip([name, "note_01", "note_02"], SPLITS)
        rows = [f'"{name}",{split},"input/{name}.wav","target/{name}.wav"' for name, split in names]
        (root / "manifest.csv").write_bytes(os.fsencode("\n".join(["name,split,input,target", *rows])))
    pairs = {pair.name: pair for pair in all_pairs(root)}
    assert os.fsencode(pairs["caf\\udce9\\n1"].input.path).endswith(b"caf\xe9\n1.wav")
    check_audio(list(pairs.values()))


def test_no_two_pairs_have_one_name(make_pairs):
    root = make_pairs(6, seconds=0.01)
    for i, place in enumerate(["anna/001", "bob/001", "carl/001", "carl/002"]):
        for side in ("input", "target"):
            (root / side / place).parent.mkdir(exist_ok=True)
            (root / side / f"note_0{i}.wav").rename(root / side / f"{place}.wav")
    assert {"anna/001", "bob/001"} < {pair.name for pair in all_pairs(root)}
    rows = [
        "001,train,input/anna/001.wav,target/anna/001.wav",
        "001,train,input/bob/001.wav,target/bob/001.wav",
        ",validation,input/carl/001.wav,target/carl/001.wav",
        "twice,validation,input/carl/001.wav,target/carl/002.wav",
        ",test,input/note_04.wav,target/note_04.wav",
        ",test,input/note_04.wav,target/note_05.wav",
    ]
    manifest(root, *rows)
    assert [pair.name for pair in all_pairs(root)] == [
        "input/anna/001",
        "input/bob/001",
        "input/carl/001.wav and target/carl/001.wav",
        "twice",
        "input/note_04.wav and target/note_04.wav",
        "input/note_04.wav and target/note_05.wav",
    ]


def _as_it_is(root):
    return "input/note_00.wav"


def _with_a_dot(root):
    return "input/../input/./note_00.wav"


def _absolute(root):
    return root / "input" / "note_00.wav"


def _symbolic_link(root):
    (root / "other.wav").symlink_to(root / "input" / "note_00.wav")
    return "other.wav"


def _hard_link(root):
    os.link(root / "input" / "note_00.wav", root / "other.wav")
    return "other.wav"


def _in_a_linked_folder(root):
    (root / "other").symlink_to(root / "input")
    return "other/note_00.wav"


SAME_FILE = [_as_it_is, _with_a_dot, _absolute, _symbolic_link, _hard_link, _in_a_linked_folder]


@pytest.mark.parametrize("spell", SAME_FILE)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_manifest_with_one_file_in_two_splits_is_refused(make_pairs, spell, split):
    root = make_pairs(4, seconds=0.01)
    path = spell(root)
    rows = [f"n{i},{name},input/note_0{i}.wav,target/note_0{i}.wav" for i, name in enumerate(SPLITS)]
    for again in (f"{path},target/note_03.wav", f"input/note_03.wav,{path}"):
        manifest(root, *rows, f"again,{split},{again}")
        with pytest.raises(DataError, match=f"is in the split {split}, and in train.*: list a file in one split only"):
            find_pairs(str(root))
        manifest(root, *rows, f"again,train,{again}")
        assert len(find_pairs(str(root))["train"]) == 2


@pytest.mark.parametrize("spell", SAME_FILE[:4])
def test_a_pair_that_a_manifest_lists_twice_is_refused_with_both_lines(make_pairs, spell):
    root = make_pairs(3, seconds=0.01)
    rows = [f"n{i},{name},input/note_0{i}.wav,target/note_0{i}.wav" for i, name in enumerate(SPLITS)]
    manifest(root, *rows, f"again,train,{spell(root)},target/note_00.wav")
    with pytest.raises(DataError, match="manifest.csv, lines 2 and 5 list the same pair: remove one"):
        find_pairs(str(root))


def test_pairs_that_share_a_file_are_not_split_at_random(make_pairs):
    root = make_pairs(4, seconds=0.01)
    for i in range(1, 4):
        (root / "target" / f"note_0{i}.wav").unlink()
        (root / "target" / f"note_0{i}.wav").symlink_to("note_00.wav")
    with pytest.raises(DataError, match="which is the same file"):
        find_pairs(str(root))


def test_names_that_differ_in_case_only_are_two_files(make_pairs):
    root = make_pairs(3, seconds=0.01)
    for side in ("input", "target"):
        shutil.copy(root / side / "note_00.wav", root / side / "NOTE_00.wav")
    if len(list((root / "input").iterdir())) == 3:
        pytest.skip("the file system ignores case")
    assert len(all_pairs(root)) == 4


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
