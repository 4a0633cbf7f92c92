"""Listening tests: the set for webMUSHRA, and the ratings of many listeners."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from dfx.audio.loudness import lufs
from dfx.errors import DataError, UserError
from dfx.evaluation.evaluate import evaluate
from dfx.listening.__main__ import main
from dfx.listening.ratings import average, find_unreliable, read_ratings
from dfx.listening.webmushra import ExportOptions, export_webmushra
from dfx.tasks import Mastering, NonSpeech, TubeAmp
from tests.known_effects import SAMPLE_RATE, known
from tests.small_training import task


def evaluation(folder: Path, kind=TubeAmp, gain: float = 0.3, level: float = 0.1) -> Path:
    """Write the evaluation of two files of a second."""
    inputs = [level * torch.randn(1, SAMPLE_RATE, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    pairs = [{"input": x, "target": gain * x, "name": name} for x, name in zip(inputs, ("one", "two"))]
    evaluate(task([known("Gain")], kind), pairs, folder)
    return folder


@pytest.fixture(scope="module")
def tube(tmp_path_factory) -> Path:
    return evaluation(tmp_path_factory.mktemp("evaluation"))


def read(path: Path) -> np.ndarray:
    audio, sample_rate = soundfile.read(path, always_2d=True)
    assert sample_rate == SAMPLE_RATE
    return audio


def loudness(audio: np.ndarray) -> float:
    return lufs(torch.from_numpy(audio.T), SAMPLE_RATE)


def test_the_config_has_the_fields_that_webmushra_documents(tube, tmp_path):
    config = yaml.safe_load(export_webmushra(tube, tmp_path).read_text())
    assert config["testId"] == "tubeamp" and config["remoteService"] == "service/write.php"
    assert config["bufferSize"] in (256, 512, 1024, 2048, 4096, 8192, 16384)
    instructions, volume, (random, *pages), finish = config["pages"]
    assert (instructions["type"], volume["type"], random, finish["type"]) == ("generic", "volume", "random", "finish")
    assert finish["writeResults"] and finish["questionnaire"][0]["name"] == "listener"
    assert [page["id"] for page in pages] == ["one", "two"]
    for page in pages:
        assert page["type"] == "mushra" and page["reference"] == f"configs/tubeamp/{page['id']}/target.wav"
        assert list(page["stimuli"]) == ["input", "output", "mid_anchor"]
        assert {type(page[name]) for name in ("showWaveform", "enableLooping", "createAnchor35")} == {bool}
        shapes = {read(tmp_path / path).shape for path in (page["reference"], *page["stimuli"].values())}
        assert shapes == {(SAMPLE_RATE, 1)}


def test_conditions_have_the_loudness_of_the_reference_or_their_own_level(tube, tmp_path):
    for own_levels in (False, True):
        export_webmushra(tube, tmp_path, ExportOptions("test", own_levels=own_levels))
        of = {path.stem: loudness(read(path)) for path in (tmp_path / "configs" / "test" / "one").glob("*.wav")}
        expected = 20 * np.log10(1 / 0.3) if own_levels else 0
        assert of["input"] - of["target"] == pytest.approx(expected, abs=0.1)


def test_items_have_an_offset_a_length_and_short_fades(tube, tmp_path):
    export_webmushra(
        tube, tmp_path, ExportOptions(items={"two": 0.25}, seconds=0.5, methods=["defaults"], own_levels=True)
    )
    assert [path.name for path in (tmp_path / "configs" / "tubeamp").iterdir()] == ["two"]
    written, whole = read(tmp_path / "configs/tubeamp/two/defaults.wav"), read(tube / "audio" / "two_defaults.flac")
    start, fade = round(0.25 * SAMPLE_RATE), round(0.005 * SAMPLE_RATE)
    assert len(written) == round(0.5 * SAMPLE_RATE) and abs(written[0, 0]) < 1e-4
    assert written[fade:-fade] == pytest.approx(whole[start + fade : start + len(written) - fade], abs=1e-4)


def test_the_mid_anchor_is_that_of_the_task(tube, tmp_path):
    export_webmushra(tube, tmp_path, ExportOptions(own_levels=True))
    input, anchor = (read(tmp_path / "configs/tubeamp/one" / f"{name}.wav") for name in ("input", "mid_anchor"))
    middle = slice(200, -200)
    assert anchor[middle] == pytest.approx(np.tanh(10 ** (8 / 20) * input[middle]), abs=2e-3)

    speech = evaluation(tmp_path / "speech", NonSpeech)
    export_webmushra(speech, tmp_path, ExportOptions(own_levels=True))
    assert read(tmp_path / "configs/nonspeech/one/mid_anchor.wav")[middle] == pytest.approx(
        read(speech / "audio" / "one_defaults.flac")[middle], abs=1e-4
    )

    song = evaluation(tmp_path / "song", Mastering)
    export_webmushra(song, tmp_path, ExportOptions(own_levels=True))
    assert abs(read(tmp_path / "configs/mastering/one/mid_anchor.wav")).max() == pytest.approx(
        10 ** (-1 / 20), abs=0.01
    )
    config = yaml.safe_load(export_webmushra(song, tmp_path).read_text())
    assert "mid_anchor" not in config["pages"][2][1]["stimuli"]  # a gain alone is the input at equal loudness


@pytest.mark.parametrize("own_levels", [False, True])
def test_an_excerpt_that_is_silent_in_all_stimuli_is_written_as_silence(tmp_path, own_levels):
    silent = evaluation(tmp_path / "silent", level=0.0)
    export_webmushra(silent, tmp_path, ExportOptions(own_levels=own_levels))
    stimuli = list((tmp_path / "configs" / "tubeamp" / "one").iterdir())
    assert len(stimuli) == 4 and not any(read(path).any() for path in stimuli)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"items": {"three": 0}}, "has no 'three'"),
        ({"items": {"one": 2.0}}, "one ends before its offset of 2 s"),
        ({"methods": ["fixed"]}, "has no 'fixed'"),
        ({"seconds": 13}, "seconds is 13"),
        ({"name": "../x"}, "cannot name a test"),
    ],
)
def test_a_test_that_cannot_be_made_is_refused(tube, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        export_webmushra(tube, tmp_path, ExportOptions(**options))


PAGE = """evaluation,task,listener,file,place,method,rating,rated_at
e,TubeAmp,anna,one,A,hidden_reference,100,0
e,TubeAmp,anna,one,B,output,80,0
e,TubeAmp,anna,one,C,input,20,0
e,TubeAmp,,one,A,hidden_reference,95,0
e,TubeAmp,,one,B,output,70,0
e,TubeAmp,,one,C,input,30,0
"""
WEBMUSHRA = """session_test_id,listener,session_uuid,trial_id,rating_stimulus,rating_score,rating_time,rating_comment
t,ben,1,one,reference,100,5,
t,ben,1,one,output,60,5,
t,ben,1,one,output,90,5,
t,ben,1,one,input,10,5,
t,eve,2,one,reference,40,5,
t,eve,2,one,output,1,5,
"""


@pytest.fixture
def files(tmp_path) -> list[Path]:
    paths = [tmp_path / "page.csv", tmp_path / "mushra.csv"]
    for path, text in zip(paths, (PAGE, WEBMUSHRA)):
        path.write_text(text)
    return paths


def test_ratings_of_the_page_and_of_webmushra_are_read_and_the_last_one_counts(files):
    ratings = read_ratings(files)
    assert {rating.listener for rating in ratings} == {"anna", str(files[0]), "1", "2"}
    assert {rating.condition for rating in ratings} == {"hidden_reference", "output", "input"}
    assert [rating.score for rating in ratings if rating.listener == "1"] == [100, 90, 10]


def test_earlier_versions_of_webmushra_name_a_listener_by_the_answers(tmp_path):
    text = WEBMUSHRA.replace("session_uuid,", "").replace(",1,one", ",one").replace(",2,one", ",one")
    (tmp_path / "mushra.csv").write_text(text)
    assert {rating.listener for rating in read_ratings([tmp_path / "mushra.csv"])} == {"ben", "eve"}


def test_a_listener_who_misses_the_hidden_reference_is_left_out(files):
    assert find_unreliable(read_ratings(files)) == ["2"]


def test_means_have_known_values_and_intervals_over_listeners(files):
    ratings = [rating for rating in read_ratings(files) if rating.listener != "2"]
    means = {of.condition: of.mean for of in average(ratings)}
    assert list(means) == ["hidden_reference", "output", "input", "output - hidden_reference", "output - input"]
    assert means["output"] == 80 and means["output - input"] == 60
    half = 4.302653 * 10 / np.sqrt(3)  # Student's t of two degrees of freedom; standard deviation 10
    assert (means["output"].low, means["output"].high) == pytest.approx((80 - half, 80 + half))
    assert means["output"].groups == 3


def test_two_items_of_one_listener_are_not_two_listeners(tmp_path):
    rows = [f"e,{listener},{item},output,{50 + 10 * number}" for number, listener in enumerate("ab") for item in "xyz"]
    (tmp_path / "ratings.csv").write_text("\n".join(["evaluation,listener,file,method,rating", *rows]))
    (mean,) = average(read_ratings([tmp_path / "ratings.csv"]))
    assert (mean.mean, mean.mean.count, mean.mean.groups) == (55, 6, 2)
    assert mean.mean.high - 55 == pytest.approx(12.7062 * 5, abs=1e-3)


@pytest.mark.parametrize(
    "text, message",
    [("a,b\n1,2\n", "has neither the columns"), (PAGE.replace("80,0", "800,0"), "line 3: the rating '800' is not")],
)
def test_a_file_without_ratings_is_refused(tmp_path, text, message):
    (tmp_path / "ratings.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_ratings([tmp_path / "ratings.csv"])


def test_the_command_writes_table_and_figure_and_names_who_is_left_out(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dfx.listening", "pool", *map(str, files), "--output", str(tmp_path / "out")])
    main()
    printed = capsys.readouterr().out
    assert "left out, for ratings of the hidden reference below 90: 2" in printed
    assert "3 ratings of 3 listeners" in printed
    rows = {row["condition"]: row for row in csv.DictReader((tmp_path / "out" / "means.csv").open())}
    assert float(rows["output"]["mean"]) == 80 and rows["output"]["listeners"] == "3"
    assert (tmp_path / "out" / "ratings.png").stat().st_size > 5000
    files[0].write_text("\n".join(PAGE.splitlines()[:3]))
    monkeypatch.setattr(sys, "argv", [*sys.argv[:2], str(files[0]), *sys.argv[4:]])
    main()
    assert "1 rating of 1 listener\n" in capsys.readouterr().out


def test_the_command_takes_names_with_offsets(tube, tmp_path, monkeypatch, capsys):
    arguments = ["export", str(tube), str(tmp_path), "--name", "mine", "--items", "one=0.5", "two"]
    monkeypatch.setattr(sys, "argv", ["dfx.listening", *arguments])
    main()
    assert "/?config=mine.yaml" in capsys.readouterr().out
    lengths = [len(read(tmp_path / "configs" / "mine" / item / "target.wav")) for item in ("one", "two")]
    assert lengths == [SAMPLE_RATE - round(0.5 * SAMPLE_RATE), SAMPLE_RATE]
