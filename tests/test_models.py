"""The models that ship render as their cards say, and are found by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import dfx
from dfx.audio.reading import AudioSource
from dfx.datasets.halves import halve
from dfx.datasets.pairs import find_test_pairs
from dfx.datasets.treatment import TreatedPairs
from dfx.errors import UserError
from dfx.losses import loss_of_recordings
from dfx.render import pretrained
from dfx.render.__main__ import main
from dfx.render.pretrained import find_checkpoint, list_models, read_card
from dfx.render.reference import distance_from
from dfx.tasks import read_checkpoint
from dfx.tasks.loading import find_device, restore_degradation
from tests.refusals import refusal  # noqa: F401

ROOT = Path(__file__).parent.parent
MODELS = ["mastering", "nonspeech", "style", "tube_amp"]
FILES = 3  # of the test split, to which the loss is compared


def whole(source: AudioSource) -> np.ndarray:
    return source.read(0, source.samples, source.sample_rate, 1).numpy()[0]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_renders_test_files_with_the_loss_of_its_card(name):
    card, model = read_card(name), dfx.load(name)
    task, sample_rate = model.task, card["sample_rate"]
    pairs = find_test_pairs(str(ROOT / card["data"]))
    if model.takes_reference:
        degradation = restore_degradation(read_checkpoint(find_checkpoint(name)), name)
        pairs = halve(pairs, degradation, task.window.context_samples / sample_rate)
    assert {pair.name for pair in pairs} == set(card["loss_of_files"])
    for pair, treated in zip(pairs[:FILES], TreatedPairs(pairs, task.treatment, sample_rate, 1)):
        reference = pair.reference and whole(pair.reference)
        output = model.render(whole(pair.input), sample_rate, interpolation="hold", reference=reference).audio
        loss = float(loss_of_recordings(task.loss, torch.from_numpy(output)[None, None], treated["target"][None]))
        assert loss == pytest.approx(card["loss_of_files"][pair.name], rel=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_better_on_its_test_files_than_the_untrained_chain(name):
    loss = {method: metrics["loss"]["mean"] for method, metrics in read_card(name)["metrics"].items()}
    assert loss["output"] < 0.7 * min(loss["input"], loss["defaults"])


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_that_ships_has_tensors_and_plain_data_and_no_state_of_training(name):
    content = torch.load(find_checkpoint(name), weights_only=True)
    assert set(content) == {"state_dict", "dfx", "epoch", "global_step", "pytorch-lightning_version"}
    assert not content["dfx"]["streaming"]
    assert len(content["state_dict"]) == len(dfx.load(name).task.state_dict())


@pytest.mark.parametrize(
    "gpus, devices",
    [
        (0, {"auto": "cpu", "cpu": "cpu"}),
        (2, {"auto": "cuda", "cpu": "cpu", "cuda": "cuda", "cuda:1": "cuda:1"}),
    ],
)
def test_the_encoder_runs_on_a_gpu_if_there_is_one_and_on_no_device_that_is_missing(
    gpus, devices, monkeypatch, refusal, tmp_path
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert {name: str(find_device(name)) for name in devices} == devices
    for missing in ("cuda:2", "cuda:-1", "gpu"):
        with pytest.raises(UserError, match=f"device {missing}: PyTorch finds no such device here; choose auto, cpu"):
            dfx.load("tube_amp", device=missing)
    soundfile.write(tmp_path / "a.wav", [0.0] * 4096, 22050)
    with pytest.raises(UserError, match="device cuda:2: "):
        main(["tube_amp", str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), "--device", "cuda:2"])
    assert "device cuda:2: " in refusal("evaluate.py", ["a.ckpt", "--device", "cuda:2"], tmp_path)


def test_all_models_are_listed_and_fit_in_12_mb(capsys):
    assert list_models() == MODELS
    assert sum(path.stat().st_size for path in pretrained.FOLDER.rglob("*") if path.is_file()) < 12e6
    with pytest.raises(SystemExit, match="0"):
        main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == MODELS
    assert all(read_card(name)["summary"] in line for name, line in zip(MODELS, lines))


@pytest.mark.parametrize("name", MODELS)
def test_a_readers_card_states_what_the_other_states(name):
    card, text = read_card(name), (pretrained.FOLDER / name / "README.md").read_text(encoding="utf-8")
    config = ROOT / card["config"]
    assert config.is_file() and (ROOT / card["data"] / "manifest.csv").is_file()
    stated = [card[key] for key in ("summary", "config", "data", "command", "commit", "sha256", "licence")]
    assert [entry for entry in stated + card["data_licences"] if entry not in text] == []
    assert all(f"`{metric}`" in text for metric in card["metrics"]["output"])


def test_the_command_takes_a_name_where_it_takes_a_checkpoint(tmp_path):
    audio = 0.1 * np.random.default_rng(0).standard_normal((4410, 2))
    soundfile.write(tmp_path / "in.wav", audio, 44100)
    main(["tube_amp", str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), "--quiet"])
    main([find_checkpoint("tube_amp"), str(tmp_path / "in.wav"), str(tmp_path / "same.wav"), "--quiet"])
    output, same = (soundfile.read(tmp_path / file)[0] for file in ("out.wav", "same.wav"))
    assert output.shape == audio.shape and np.array_equal(output, same)
    assert np.abs(output - audio).max() > 0.01


def test_the_style_model_brings_a_recording_nearer_to_its_reference_and_needs_one(tmp_path):
    recordings = ROOT / "data" / "mastering"
    mix, songs, out = recordings / "input" / "sectoid_feelings_1.flac", recordings / "target", tmp_path / "out.wav"
    with pytest.raises(UserError, match=r"^this model needs a reference \(--reference\)"):
        main(["style", str(mix), str(out)])
    assert not out.exists()
    distances = []
    for reference in (songs / "muldjord_chaos_god_1.flac", songs / "sectoid_war_of_freedom_1.flac"):
        main(["style", str(mix), str(out), "--reference", str(reference), "--overwrite", "--quiet"])
        goal, *both = (torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in (reference, mix, out))
        distance = distance_from(goal[None], 22050)
        distances.append([distance(audio[None, None]) for audio in both])
    assert all(after < 0.5 * before for before, after in distances)


def test_a_file_comes_before_the_model_of_its_name_and_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mastering").write_text("mine")
    assert find_checkpoint("mastering") == "mastering"
    (tmp_path / "tube_amp").mkdir()
    assert Path(find_checkpoint("tube_amp")).parent == pretrained.FOLDER / "tube_amp"


@pytest.mark.parametrize(
    "name, advice",
    [("masterin", "did you mean 'mastering'?"), ("best.ckpt", "there are: mastering, nonspeech, style, tube_amp")],
)
def test_an_unknown_name_is_refused_with_advice(name, advice):
    with pytest.raises(UserError) as error:
        dfx.load(name)
    assert name in str(error.value) and advice in str(error.value)


@pytest.mark.parametrize("fault", ["changed", "missing"])
def test_a_damaged_model_is_refused_before_it_is_loaded(tmp_path, monkeypatch, fault):
    shutil.copytree(pretrained.FOLDER / "tube_amp", tmp_path / "tube_amp")
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    path = tmp_path / "tube_amp" / "model.ckpt"
    assert find_checkpoint("tube_amp") == str(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    if fault == "missing":
        path.unlink()
    with pytest.raises(UserError, match="SHA-256"):
        dfx.load("tube_amp")
