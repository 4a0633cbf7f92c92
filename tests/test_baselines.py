import sys
import types

import numpy as np
import pytest
import soundfile
import torch

from dfx.audio.levels import rms
from dfx.datasets.excerpts import draw_excerpts
from dfx.effects import ChainSpec
from dfx.errors import UserError
from dfx.evaluation.baselines import make_baselines
from dfx.evaluation.options import ALL, BaselineOptions
from dfx.evaluation.tcn import Network, train_network
from dfx.losses import LossOptions, make_loss
from dfx.render.automation import Automation
from dfx.render.search import Search
from tests.known_effects import SAMPLE_RATE, known

LOSS = make_loss(LossOptions(fft_sizes=[512, 256]))
PAPER = make_loss(LossOptions(kind="paper"))
QUICK = BaselineOptions(evaluations=60, excerpts=4, excerpt_seconds=0.1, network_steps=3)


def pair(gain: float, name: str = "a", samples: int = 4000) -> dict:
    input = 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(len(name)))
    return {"input": input, "target": gain * input, "name": name}


def chain(*effects) -> ChainSpec:
    return ChainSpec([known(effect, **options) for effect, options in effects], SAMPLE_RATE)


GAIN = ("Gain", {})


def automation(*gains: float, frame_samples: int = 2000) -> Automation:
    space = chain(GAIN).space
    times = np.arange(len(gains)) * frame_samples / SAMPLE_RATE
    return Automation(space, times, space.normalize(np.array(gains)[:, None]))


def test_a_search_finds_the_setting_that_made_the_target():
    spec = chain(GAIN, ("Quadratic", {}))
    wanted = np.array([0.9, 0.2, 0.6, 0.4])
    input = pair(1.0)["input"]
    target = torch.from_numpy(spec.build().render_whole(input.numpy(), spec.space.denormalize(wanted)))
    found = Search(spec, PAPER, evaluations=150)(input[None], target[None])
    assert found.loss < 0.01 * PAPER(input[None], target[None])


@pytest.mark.parametrize("gain", [0.1, 0.5, 2.0])
def test_the_best_gain_is_found_also_at_the_end_of_its_range(gain):
    input = pair(1.0)["input"]
    search = Search(chain(GAIN), LOSS, evaluations=100)
    found = search(input[None], gain * input[None])
    assert search.chain.space.values_by_name(found.parameters)["gain.gain"] == pytest.approx(gain, abs=0.02)


def test_a_search_repeats_itself_from_the_seed_and_leaves_the_global_one_alone():
    input = pair(1.0)["input"][None]
    np.random.seed(5)
    results = [
        Search(chain(("Quadratic", {})), LOSS, evaluations=30, seed=seed)(input, 0.7 * input) for seed in (0, 0, 1)
    ]
    after = np.random.random()
    np.random.seed(5)
    assert after == np.random.random()
    assert np.array_equal(results[0].parameters, results[1].parameters)
    assert not np.array_equal(results[0].parameters, results[2].parameters)


@pytest.mark.parametrize("evaluations, tried", [(1, 8), (2, 8), (7, 8), (8, 8), (9, 15), (15, 15), (16, 22)])
def test_a_search_tries_the_settings_asked_for_rounded_up_to_a_whole_generation(evaluations, tried):
    input = pair(1.0)["input"][None]
    assert Search(chain(("Quadratic", {})), LOSS, evaluations)(input, 0.7 * input).evaluations == tried


def test_settings_that_fail_count_as_the_worst():
    input = pair(1.0)["input"][None]
    search = Search(chain(("NotFinite", {})), LOSS, evaluations=60)
    assert search.chain.space.values_by_name(search(input, 2 * input).parameters)["not_finite.gain"] <= 1.5
    with pytest.raises(UserError, match="no setting"):
        Search(chain(("NotFinite", {"train": {"gain": (1.6, 2.0)}})), LOSS, evaluations=60)(input, input)


def test_the_latency_of_the_chain_is_taken_out():
    search = Search(chain(("Late", {})), LOSS)
    input = pair(1.0)["input"]
    assert torch.equal(search.render(input, np.array([0.5])), input)


@pytest.fixture(scope="module")
def baselines() -> dict:
    training = [pair(gain, "t" * i) for i, gain in enumerate([0.4, 0.6])]
    return make_baselines(ALL, chain(GAIN), LOSS, training, QUICK)


def test_every_baseline_gives_what_its_name_says(baselines):
    evaluated = pair(1.7, "file")
    output = {name: baseline(evaluated, automation(1.5, 1.7)) for name, baseline in baselines.items()}
    assert tuple(output) == ALL
    gains = {name: float((audio / evaluated["input"]).mean()) for name, audio in output.items() if name != "network"}
    assert gains["input"] == gains["defaults"] == 1.0
    assert 0.35 < gains["fixed"] < 0.65
    assert gains["levelled"] == pytest.approx(0.49, abs=0.02)  # of the training pairs, 0.4 and 0.6
    assert gains["per_file"] == pytest.approx(1.7, abs=0.02)
    assert gains["per_file_warm"] == pytest.approx(1.7, abs=0.02)
    torch.testing.assert_close(output["matched"], evaluated["target"])
    assert output["network"].shape == evaluated["input"].shape


def test_a_reference_takes_the_place_of_the_target(baselines):
    evaluated = {**pair(1.7, samples=20_000), "reference": 0.5 * pair(1.0, "other", samples=30_000)["input"]}
    for name in ("matched", "per_reference"):
        output = baselines[name](evaluated, automation(1.0))
        assert float(rms(output) / rms(evaluated["input"])) == pytest.approx(0.5, abs=0.03)


def test_matchering_matches_two_channels_and_is_named_if_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "matchering", None)
    with pytest.raises(UserError, match="pip install matchering"):
        make_baselines(["matchering"], chain(GAIN), LOSS)

    def process(target, reference, results, config):
        audio, sample_rate = soundfile.read(target)
        assert audio.shape[1] == 2 and sample_rate == config["internal_sample_rate"] == SAMPLE_RATE
        if len(audio) < 4096:
            raise RuntimeError("too short")
        soundfile.write(results[0][0], 0.5 * audio, sample_rate, results[0][1])

    fake = types.SimpleNamespace(process=process, Config=dict, Result=lambda path, subtype: (path, subtype))
    monkeypatch.setitem(sys.modules, "matchering", fake)
    matchering = make_baselines(["matchering"], chain(GAIN), LOSS)["matchering"]
    evaluated = pair(1.0, samples=5000)
    torch.testing.assert_close(matchering(evaluated, automation(1.0)), 0.5 * evaluated["input"])
    with pytest.raises(UserError, match="matchering cannot process a file: too short"):
        matchering(pair(1.0, samples=4000), automation(1.0))


def test_settings_are_values_in_units_by_name(baselines):
    baselines["per_file"](pair(0.3, "quiet"), automation(1.0))
    assert baselines["defaults"].settings == {"gain.gain": 1.0}
    assert baselines["fixed"].settings.keys() == {"gain.gain"}
    assert baselines["per_file"].settings["quiet"]["gain.gain"] == pytest.approx(0.3, abs=0.02)
    assert not baselines["input"].settings and not baselines["network"].settings


def test_the_warm_search_begins_at_the_mean_of_the_automation():
    one = BaselineOptions(evaluations=1)
    warm = make_baselines(["per_file_warm"], chain(GAIN), LOSS, options=one)["per_file_warm"]
    warm(pair(1.5, "a"), automation(1.4, 1.6))
    assert warm.settings["a"]["gain.gain"] == pytest.approx(1.5, abs=1e-6)


def test_the_refined_baseline_shifts_the_whole_automation():
    given = pair(1.0, "a")
    given["target"] = given["input"] * torch.tensor([0.6, 1.6]).repeat_interleave(2000)
    refined = make_baselines(["refined"], chain(GAIN), LOSS, options=QUICK)["refined"]
    output = refined(given, automation(0.9, 1.9))
    torch.testing.assert_close(output, given["target"], rtol=0.03, atol=0)


def test_files_shorter_than_the_loss_needs_can_be_searched():
    baseline = make_baselines(["per_file"], chain(GAIN), LOSS, options=QUICK)["per_file"]
    assert baseline(pair(0.5, "short", samples=40), automation(1.0)).shape == (1, 40)


def test_the_network_begins_with_the_input_and_learns_the_target():
    training = [pair(0.3, "t" * i, samples=6000) for i in range(4)]
    loss = make_loss(LossOptions(fft_sizes=[512]))
    networks = [train_network(training, 1, loss, BaselineOptions(network_steps=steps)) for steps in (6, 6)]
    evaluated = pair(0.3, "file")
    with torch.no_grad():
        assert torch.equal(Network(1)(evaluated["input"][None])[0], evaluated["input"])
        outputs = [network(evaluated["input"][None]) for network in networks]
    assert torch.equal(*outputs)
    assert loss(outputs[0], evaluated["target"][None]) < loss(evaluated["input"][None], evaluated["target"][None])


def test_excerpts_are_of_different_pairs_and_padded_with_silence():
    pairs = [pair(0.5, "t" * i, samples=samples) for i, samples in enumerate([50, 500, 700])]
    input, target = draw_excerpts(pairs, 3, 100, torch.Generator().manual_seed(0))
    assert input.shape == (3, 1, 100) and torch.equal(target, 0.5 * input)
    assert sorted(int((excerpt != 0).sum()) for excerpt in input) == [50, 100, 100]
    again, _ = draw_excerpts(pairs, 3, 100, torch.Generator().manual_seed(0))
    assert torch.equal(input, again)


@pytest.mark.parametrize(
    "names, message", [(["per_fil"], "did you mean 'per_file'"), (["fixed"], "needs training pairs")]
)
def test_baselines_that_cannot_be_made_are_refused(names, message):
    with pytest.raises(UserError, match=message):
        make_baselines(names, chain(GAIN), LOSS)


def test_budgets_are_positive():
    with pytest.raises(UserError, match="evaluations is 0"):
        BaselineOptions(evaluations=0)
