"""Outputs of other systems in an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from dfx.commands.evaluate import _parser
from dfx.datasets.pairs import find_test_pairs
from dfx.datasets.treatment import TreatedPairs, Treatment
from dfx.errors import DataError
from dfx.evaluation.clips import PairsWithClips
from dfx.evaluation.evaluate import evaluate
from dfx.loggers.evaluation import log_evaluation
from tests.known_effects import SAMPLE_RATE, known
from tests.small_training import task
from tests.wandb_records import merged, records

DELAY = 220  # samples at SAMPLE_RATE


@pytest.fixture
def made(tmp_path):
    """Write three pairs of noise, and the targets as clips that lag 220 samples, at twice the rate, in stereo."""
    random = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        spectrum = np.fft.rfft(random.standard_normal(2 * SAMPLE_RATE))
        spectrum[len(spectrum) // 3 :] = 0  # nothing that resampling could change
        clip = 0.1 * np.fft.irfft(spectrum, 2 * SAMPLE_RATE)
        target = clip[::2]
        for side, audio, rate in (("input", 2 * target, SAMPLE_RATE), ("target", target, SAMPLE_RATE)):
            (tmp_path / "pairs" / side).mkdir(parents=True, exist_ok=True)
            soundfile.write(tmp_path / "pairs" / side / f"{name}.wav", audio, rate, "FLOAT")
        late = np.concatenate([np.zeros(2 * DELAY), clip])[: len(clip)]
        (tmp_path / "clips").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "clips" / f"{name}.flac", np.stack([late, late], 1), 2 * SAMPLE_RATE, "PCM_24")
    return tmp_path


def pairs_of(folder: Path, **clips: str) -> PairsWithClips:
    pairs = TreatedPairs(find_test_pairs(str(folder / "pairs")), Treatment(), SAMPLE_RATE, 1)
    return PairsWithClips(pairs, {name: folder / path for name, path in clips.items()})


def test_a_clip_is_aligned_and_at_the_rate_and_length_of_its_pair(made):
    pair = pairs_of(made, rival="clips")[1]
    output = pair["outputs"]["rival"]
    assert output.shape == pair["target"].shape == pair["input"].shape
    assert output.shape[-1] == SAMPLE_RATE - DELAY
    inside = slice(100, -100)
    assert torch.allclose(output[:, inside], pair["target"][:, inside], atol=2e-3)


def test_a_clip_that_leads_begins_with_silence_and_loses_nothing_else(made):
    audio, rate = soundfile.read(made / "clips" / "a.flac")
    skipped = 2 * 3 * DELAY
    soundfile.write(
        made / "clips" / "a.flac", np.concatenate([audio[skipped:], np.zeros((skipped, 2))]), rate, "PCM_24"
    )
    pair = pairs_of(made, rival="clips")[0]
    lead, output = 2 * DELAY, pair["outputs"]["rival"]
    assert output.shape[-1] == SAMPLE_RATE and not output[:, : lead - 100].any()
    assert torch.allclose(output[:, lead + 100 : -800], pair["target"][:, lead + 100 : -800], atol=2e-3)


def test_another_system_has_its_metrics_differences_audio_and_track(made):
    results = evaluate(task([known("Gain")]), pairs_of(made, rival="clips"), made / "out")
    assert list(results) == ["input", "defaults", "rival", "output"]
    assert results["rival"]["esr"] < 0.02 and results["rival"]["latency_samples"] == 0
    assert results.differences["rival"]["loss"].low > 0
    assert (made / "out" / "audio" / "b_rival.flac").is_file()
    assert json.loads((made / "out" / "evaluation.json").read_text())["methods"] == list(results)
    assert 'id="audio-1-rival"' in (made / "out" / "report.html").read_text()


@pytest.mark.slow
def test_another_system_is_in_weights_and_biases(made):
    results = evaluate(task([known("Gain")]), pairs_of(made, rival="clips"), made / "out")
    log_evaluation(made / "out", "offline")
    logged = merged(records(made / "out"))
    assert logged["test/rival/loss"] == pytest.approx(results["rival"]["loss"])
    assert logged["difference/rival/loss"] == pytest.approx(results.differences["rival"]["loss"])
    assert [one["caption"] for one in logged["audio/a.audio"]] == ["input", "defaults", "rival", "output", "target"]
    (files,) = (made / "out" / "wandb").glob("offline-run-*/files")
    columns = json.loads((files / logged["tables/evaluation.path"]).read_text())["columns"]
    assert columns == ["kind", "method", "metric", "mean", "low", "high", "files", "groups"]


def test_missing_short_and_ambiguous_clips_are_named(made):
    (made / "clips" / "b.flac").rename(made / "clips" / "other.flac")
    with pytest.raises(DataError, match="no clips for 1 of 3 test pairs: b; name them as the inputs"):
        pairs_of(made, rival="clips")
    soundfile.write(made / "clips" / "b.wav", np.full(round(0.4 * SAMPLE_RATE), 0.1), SAMPLE_RATE)
    with pytest.raises(DataError, match=r"b.wav ends after 0.\d\d s of 1.00 s"):
        pairs_of(made, rival="clips")[1]
    (made / "clips" / "b.aiff").write_bytes((made / "clips" / "b.wav").read_bytes())
    with pytest.raises(DataError, match="have one name, but for their suffix"):
        pairs_of(made, rival="clips")


@pytest.mark.parametrize("argument", ["output=.", "input=.", "=.", "a b=.", "rival", "rival=nowhere"])
def test_a_system_needs_a_name_of_its_own_and_a_folder(argument, capsys):
    with pytest.raises(SystemExit, match="2"):
        _parser().parse_args(["best.ckpt", "--compare", argument])
    assert "--compare" in capsys.readouterr().err


def test_several_systems_may_be_given_at_once_or_one_by_one(tmp_path):
    given = ["best.ckpt", "--compare", f"a={tmp_path}", f"b={tmp_path}", "--compare", f"c={tmp_path}"]
    assert [name for name, _ in _parser().parse_args(given).compare] == ["a", "b", "c"]
