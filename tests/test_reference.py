"""Reference recordings: how they are read, the distance from one, and refinement towards it."""

import functools

import numpy as np
import pytest
import soundfile
import torch

import dfx
from dfx.audio.levels import amplitude_to_db, rms
from dfx.audio.reading import stream_array
from dfx.datasets import Treatment
from dfx.errors import UserError
from dfx.render import reference as references
from dfx.render.__main__ import main
from dfx.render.reference import measure_character, read_reference
from tests.known_effects import SAMPLE_RATE
from tests.test_render import checkpoint, moving, music, resting  # noqa: F401
from tests.test_render_page import data_of, tracks_of


def read(audio, rate, channels=1):
    return read_reference(functools.partial(stream_array, audio, rate, "song"), SAMPLE_RATE, channels).audio


def tones(rate, seconds=4.0, channels=1):
    """Tones that fade in and out, the same at every rate."""
    t = np.arange(int(seconds * rate)) / rate
    waves = [
        np.sin(2 * np.pi * hz * t) * np.sin(2 * np.pi * swing * t) for hz, swing in ((90, 0.7), (700, 0.5), (6e3, 2))
    ]
    return np.tile(0.1 * np.sum(waves, axis=0), (channels, 1)).astype(np.float32)


# --- reading --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate, channels", [(44100, 2), (48000, 1), (96000, 5)])
def test_a_reference_of_any_rate_and_channels_has_one_character(rate, channels):
    expected = measure_character(torch.from_numpy(tones(SAMPLE_RATE))[None], SAMPLE_RATE)
    for model_channels in (1, 2):
        audio = read(tones(rate, channels=channels), rate, model_channels)
        assert audio.shape == (model_channels, 4 * SAMPLE_RATE)
        found = measure_character(audio[None, :1], SAMPLE_RATE)
        assert found.distance(expected) < 0.1


def test_of_a_long_reference_excerpts_are_read_from_beginning_to_end(monkeypatch):
    monkeypatch.setattr(references, "_EXCERPTS", 3)
    monkeypatch.setattr(references, "_EXCERPT_SECONDS", 0.5)
    ramp = np.linspace(-1, 1, 10 * SAMPLE_RATE, dtype=np.float32)[None]
    audio = read(ramp, SAMPLE_RATE)[0]
    assert len(audio) == 3 * (SAMPLE_RATE // 2) and audio[0] == -1 and audio[-1] == 1
    assert audio[SAMPLE_RATE // 2] == pytest.approx(-0.05, abs=0.001)


@pytest.mark.parametrize(
    "audio, message",
    [
        (np.zeros((1, 2 * SAMPLE_RATE), np.float32), "song is silent"),
        (music(0.5, SAMPLE_RATE), "song lasts 0.50 s: a reference needs at least 1 s"),
        (music(2, SAMPLE_RATE) * np.nan, "song holds a sample that is not a number"),
    ],
)
def test_a_reference_that_cannot_be_used_is_refused_by_name(audio, message):
    with pytest.raises(UserError, match=message):
        read(audio, SAMPLE_RATE)


# --- the distance ---------------------------------------------------------------------------------------


def character(audio):
    return measure_character(torch.from_numpy(audio)[None], SAMPLE_RATE)


def test_a_gain_changes_the_distance_by_its_decibels():
    audio = music(4, SAMPLE_RATE)
    assert character(0.25 * audio).distance(character(audio)) == pytest.approx(12.04, abs=0.01)
    assert character(audio).distance(character(audio)) == 0


def test_the_distance_needs_no_alignment_and_excerpts_count_as_one_recording():
    noise = np.random.default_rng(0).standard_normal((1, 20 * SAMPLE_RATE)).astype(np.float32)
    whole, late = character(noise), character(noise[:, 7 * SAMPLE_RATE :])
    excerpts = measure_character(torch.from_numpy(noise).unflatten(1, (5, -1)).transpose(0, 1), SAMPLE_RATE)
    assert whole.distance(late) < 0.5 and whole.distance(excerpts) < 0.1


def test_bands_are_third_octaves_relative_to_the_loudness():
    tone = character(tones(SAMPLE_RATE, 4)).bands_db
    loudest = np.sort(np.argsort(tone)[-3:])
    # Third octaves from 1 kHz: 90 Hz is the 10th or 11th below, 700 Hz the 2nd below, 6 kHz the 8th above.
    assert loudest.tolist() == [15 - 10, 15 - 2, 15 + 8] and tone.min() == -60


def test_a_limited_recording_differs_in_its_crest_factor():
    audio = music(4, SAMPLE_RATE)
    clipped = character(np.clip(audio, -0.1, 0.1))
    assert character(audio).crest_db - clipped.crest_db > 3
    assert character(np.zeros((1, 4 * SAMPLE_RATE), np.float32)).distance(clipped) > 10


# --- refinement -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"treatment": Treatment(60, -30)}])
def test_a_gain_is_refined_to_the_loudness_of_the_reference(options):
    audio, model = music(2.0, channels=2), resting(**options)
    reference = 0.5 * model.render(audio, 44100).audio[:, 4410:]
    rendering = model.render(audio, 44100, refine=60, reference=reference)
    assert rendering.automation["gain.gain_db"][0] == pytest.approx(-6.0, abs=0.5)
    found = rendering.refinement
    assert found.measure == "distance from the reference" and found.loss_after < 0.2 * found.loss_before


def test_a_moving_automation_comes_nearer_to_a_reference_of_another_rate():
    model, song = moving(), music(2.0, 48000, seed=1)
    found = model.render(music(2.0), 44100, refine=100, reference=0.3 * song, reference_sample_rate=48000).refinement
    assert found.loss_after < 0.9 * found.loss_before


AUDIO = music(1.0, channels=2)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"reference": AUDIO}, "this model takes no reference; style and models of configs/style.yaml do"),
        ({"reference": AUDIO, "target": AUDIO, "refine": 9}, "give one of them"),
        ({"reference": AUDIO.astype(int), "refine": 9}, "the reference is of int64"),
        ({"reference": 0 * AUDIO, "refine": 9}, "the reference is silent"),
    ],
)
def test_references_that_cannot_be_refined_towards_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        resting().render(AUDIO, 44100, **options)


def test_the_command_refines_a_folder_towards_one_reference_and_keeps_it(checkpoint, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        soundfile.write(tmp_path / "in" / f"{name}.wav", music(0.5).T, 44100)
    song = tmp_path / "song.flac"
    soundfile.write(song, 0.25 * music(1.5, 48000, 2).T, 48000)
    paths = [str(tmp_path / name) for name in ("in", "out")]
    main([checkpoint, *paths, "--quiet", "--refine", "40", "--reference", str(song)])
    assert capsys.readouterr().err.count("distance from the reference ") == 2
    for name in ("a", "b"):
        assert np.abs(soundfile.read(tmp_path / "out" / f"{name}.wav")[0]).max() < 0.5 * np.abs(music(0.5)).max()
    with pytest.raises(UserError, match=r"song.flac is the input, its target or the reference"):
        refining = ["--quiet", "--overwrite", "--refine", "20", "--reference", str(song)]
        main([checkpoint, str(tmp_path / "in" / "a.wav"), str(song), *refining])


# --- models that take a reference -----------------------------------------------------------------------


def following():
    """A model that takes a reference, and whose gain is the level of the reference above -20 dBFS."""
    model, gains_db = resting(), []
    task, encode = model.task, model.task.encode

    def set_reference(audio):
        gains_db.append(20 + float(amplitude_to_db(rms(audio))))

    task.set_reference = set_reference
    task.encode = lambda context: torch.full_like(encode(context), (gains_db[-1] + 24) / 48)
    return model


@pytest.mark.parametrize("rate, channels, gain", [(44100, 2, 1), (48000, 1, 1), (96000, 5, 1), (48000, 2, 0.5)])
def test_a_reference_of_any_rate_sets_the_same_parameters(rate, channels, gain):
    audio, model = music(0.5), following()
    level_db = float(amplitude_to_db(rms(tones(SAMPLE_RATE))))
    rendering = model.render(audio, 44100, reference=gain * tones(rate, channels=channels), reference_sample_rate=rate)
    expected_db = 20 + level_db + 20 * np.log10(gain)
    np.testing.assert_allclose(rendering.automation["gain.gain_db"], expected_db, atol=0.02)


def test_a_model_that_takes_a_reference_is_refined_towards_it_or_a_target_from_its_prediction():
    audio, model, reference = music(1.0), following(), tones(44100)
    plain = model.render(audio, 44100, reference=reference)
    for goal in ({}, {"target": 0.5 * plain.audio}):
        refined = model.render(audio, 44100, reference=reference, refine=40, **goal)
        assert refined.refinement.measure == ("training loss" if goal else "distance from the reference")
        expected = plain.automation.parameters + refined.refinement.offsets
        np.testing.assert_allclose(refined.automation.parameters, expected, atol=1e-6)


def test_the_command_renders_a_folder_with_one_reference_and_the_page_holds_it(tmp_path, monkeypatch):
    monkeypatch.setattr(dfx, "load", lambda *arguments: following())
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        soundfile.write(tmp_path / "in" / f"{name}.wav", music(0.3, channels=2).T, 44100)
    soundfile.write(tmp_path / "so <ng>.flac", tones(48000, 1.5).T, 48000)
    paths = [str(tmp_path / name) for name in ("in", "out")]
    main(["style", *paths, "--reference", str(tmp_path / "so <ng>.flac"), "--page", ".html", "--preset", ".json"])
    assert len(list((tmp_path / "out").iterdir())) == 6
    page = (tmp_path / "out" / "b.html").read_text()
    assert "The reference is the middle of so &lt;ng&gt;.flac." in page
    assert list(tracks := tracks_of(page)) == ["input", "output", "reference"] == data_of(page)["shared"]["tracks"]
    assert tracks["reference"].shape == (len(tracks["input"]),)


@pytest.mark.parametrize(
    "options, message",
    [
        ([], r"needs a reference \(--reference\)"),
        (["--reference", "absent.wav"], "absent.wav: no such file"),
        (["--reference", "text.wav"], "text.wav is not an audio file"),
        (["--reference", "short.wav"], "short.wav lasts 0.30 s"),
        (["--reference", "short.wav", "--refine", "9", "--causal"], "not causally"),
    ],
)
def test_a_reference_that_cannot_be_used_is_refused_before_any_work(options, message, tmp_path, monkeypatch):
    monkeypatch.setattr(dfx, "load", lambda *arguments: following())
    monkeypatch.chdir(tmp_path)
    soundfile.write("short.wav", music(0.3).T, 44100)
    (tmp_path / "text.wav").write_text("not audio")
    with pytest.raises(UserError, match=message):
        main(["style", "short.wav", "out/out.wav", *options])
    assert not (tmp_path / "out").exists()
