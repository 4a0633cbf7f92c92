"""Refinement: a model's parameters are shifted towards a known target."""

import numpy as np
import pytest
import soundfile

from dfx.datasets import Treatment
from dfx.errors import UserError
from dfx.render import refinement
from dfx.render.__main__ import main
from dfx.render.model import Model
from dfx.render.refinement import ShiftedPredictor
from tests.known_effects import SAMPLE_RATE
from tests.test_render import LATE, checkpoint, moving, music, resting  # noqa: F401


@pytest.mark.parametrize("excerpt_seconds", [2.0, 0.1])
@pytest.mark.parametrize("options", [{}, {"effects": LATE}, {"treatment": Treatment(60, -30)}])
def test_a_constant_setting_is_brought_to_that_of_the_target(options, excerpt_seconds, monkeypatch):
    monkeypatch.setattr(refinement, "_EXCERPT_SECONDS", excerpt_seconds)
    audio, model = music(1.5, channels=2), resting(**options)
    target = 0.5 * model.render(audio, 44100).audio
    rendering = model.render(audio, 44100, refine=80, target=target)
    found_db = rendering.automation["gain.gain_db"]
    assert np.ptp(found_db) == 0 and found_db[0] == pytest.approx(-6.02, abs=0.2)
    assert rendering.refinement.loss_after < 0.1 * rendering.refinement.loss_before
    assert np.abs(rendering.audio - target).max() < 0.05 * np.abs(target).max()


def test_a_moving_automation_is_shifted_as_a_whole_and_clipped():
    audio, model = music(1.5, SAMPLE_RATE), moving()
    shift = np.array([0.3, -0.2, 0.25, 0.4])
    target = Model(ShiftedPredictor(model.task, shift)).render(audio, SAMPLE_RATE, interpolation="hold").audio
    plain = model.render(audio, SAMPLE_RATE)
    refined = model.render(audio, SAMPLE_RATE, refine=150, target=target)
    expected = np.clip(plain.automation.parameters + refined.refinement.offsets, 0, 1)
    np.testing.assert_allclose(refined.automation.parameters, expected, atol=1e-6)
    assert refined.refinement.loss_after < 0.5 * refined.refinement.loss_before


def test_where_nothing_improves_the_search_ends_early_and_changes_nothing():
    audio, model = music(0.5, SAMPLE_RATE), moving()
    target = model.render(audio, SAMPLE_RATE, interpolation="hold").audio
    found = model.render(audio, SAMPLE_RATE, refine=10_000, target=target).refinement
    assert not found.offsets.any() and found.loss_before == found.loss_after < 1e-3
    assert 11 <= found.renderings < 200


def test_long_recordings_are_compared_in_excerpts_and_short_ones_whole():
    frames, samples = zip(*refinement._excerpts(100 * SAMPLE_RATE, 1024, SAMPLE_RATE))
    assert len(frames) == 8 and set(samples) == {43 * 1024} and {len(each) for each in frames} == {43}
    assert frames[0].start == 0 and 98 * SAMPLE_RATE < frames[-1].stop * 1024 <= 100 * SAMPLE_RATE
    assert refinement._excerpts(1025, 1024, SAMPLE_RATE) == [(range(2), 1025)]


AUDIO = music(0.2, channels=2)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"refine": 100}, "needs a target"),
        ({"target": AUDIO}, "a target needs a number of renderings"),
        ({"refine": 1, "target": AUDIO}, "refine is 1; it must be a whole number from 2"),
        ({"refine": 9, "target": AUDIO[:, 1:]}, "the target has 8819 samples .* must have the form of the audio, 8820"),
        ({"refine": 9, "target": AUDIO[0]}, "in 1 channels"),
        ({"refine": 9, "target": AUDIO, "causal": True}, "not causally"),
        ({"refine": 9, "target": AUDIO, "own_level": True}, "nor at own level"),
        ({"refine": 9, "target": AUDIO * np.nan}, "the target holds a sample that is not a number"),
    ],
)
def test_what_cannot_be_refined_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        resting().render(AUDIO, 44100, **options)


def test_the_command_refines_a_folder_with_targets_of_the_same_names_and_tells_the_cost(checkpoint, tmp_path, capsys):
    for folder, gain in (("in", 1.0), ("wanted", 0.5)):
        (tmp_path / folder / "deep").mkdir(parents=True)
        soundfile.write(tmp_path / folder / "deep" / "a.wav", gain * music(0.3).T, 44100)
    paths = [str(tmp_path / name) for name in ("in", "out", "wanted")]
    main([checkpoint, *paths[:2], "--quiet", "--refine", "40", "--target", paths[2]])
    output, wanted = (soundfile.read(f"{path}/deep/a.wav")[0] for path in paths[1:])
    assert np.abs(output - wanted).max() < 0.1 * np.abs(wanted).max()
    with pytest.raises(UserError, match=r"wanted/deep/a.wav is the input, its target or the reference"):
        main([checkpoint, paths[0], paths[2], "--quiet", "--refine", "40", "--target", paths[2], "--overwrite"])
    assert "deep/a.wav: training loss " in (stderr := capsys.readouterr().err) and " renderings of 0.3 s" in stderr
