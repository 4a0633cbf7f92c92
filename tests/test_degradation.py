import numpy as np
import pytest
import soundfile
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from dfx import distributed
from dfx.audio.loudness import lufs
from dfx.datasets import Degradation, PairedAudio, Treatment, Window
from dfx.datasets.degradation import Degrader
from dfx.effects import ChainSpec, EffectSpec
from dfx.errors import UserError
from tests import small_training
from tests.known_effects import SAMPLE_RATE
from tests.small_training import STEPS_IN_EPOCH, task, trainer, weights
from tests.test_task import Crash

EXPANDER = "python:dfx.effects.expander.Expander"
EFFECTS = [
    {
        "effect": "pedalboard:PeakFilter",
        "draw": {"gain_db": {"deviation": 4, "range": [-12, 12]}, "cutoff_frequency_hz": [100, 1000]},
    },
    {"effect": EXPANDER, "draw": {"expansion_ratio": [1, 1.5]}, "fixed": {"threshold_db": -30}},
    {"effect": "pedalboard:Gain", "draw": {"gain_db": [-3, 3]}},
]
NEUTRAL = [
    {"effect": "pedalboard:LowShelfFilter", "draw": {"gain_db": {"deviation": 0}}},
    {"effect": "pedalboard:PeakFilter", "draw": {"gain_db": {"deviation": 0}}},
    {"effect": EXPANDER, "draw": {"expansion_ratio": {"deviation": 0}}},
    {"effect": "pedalboard:BrickwallLimiter", "draw": {"release_ms": None}},
]
WINDOW = Window(4096, 1024, frames=2)


def data(folder, effects=EFFECTS, treatment=Treatment(), num_workers=0, **degradation) -> PairedAudio:
    made = Degradation(effects, **degradation) if effects else None
    options = {"batch_size": 2, "excerpt_seconds": 0.2, "check_audio": False, "num_workers": num_workers}
    module = PairedAudio(str(folder), SAMPLE_RATE, 1, WINDOW, treatment=treatment, degradation=made, **options)
    module.setup("fit")
    return module


def sides(module: PairedAudio, epoch: int = 0) -> dict[str, torch.Tensor]:
    loader = module.train_dataloader()
    loader.batch_sampler.sampler.set_epoch(epoch)
    batches = list(loader)
    return {side: torch.cat([batch[side] for batch in batches]) for side in ("input", "target")}


def test_degraded_excerpts_depend_on_seed_and_epoch_only_and_not_on_workers_and_ranks(make_pairs, monkeypatch):
    root = make_pairs(12)
    module = data(root)
    first = sides(module)["input"]
    module.seed = 1
    assert not torch.equal(first, sides(module)["input"])
    assert torch.equal(first, sides(data(root))["input"])
    assert torch.equal(first, sides(data(root, num_workers=2))["input"])
    assert not torch.equal(first, sides(data(root), epoch=1)["input"])
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank_rows", lambda rows, rank=rank: slice(rank, rank + 1))
        assert torch.equal(first[rank::2], sides(data(root))["input"])


def test_excerpts_of_the_same_place_are_degraded_by_other_values_in_each_epoch(make_pairs):
    loader = data(make_pairs(12)).train_dataloader()
    (step, *_), steps = next(iter(loader.batch_sampler)), loader.dataset
    one, other = (steps._read_excerpt(step.excerpt._replace(seed=seed)) for seed in (1, 2))
    assert torch.equal(one[1], other[1]) and not torch.allclose(one[0], other[0], atol=1e-3)


def test_targets_and_validation_pairs_stay_as_they_are(make_pairs):
    root = make_pairs(12)
    module, plain = data(root), data(root, effects=None)
    assert torch.equal(sides(module)["target"], sides(plain)["target"])
    for ours, theirs in zip(module.val_dataloader(), plain.val_dataloader()):
        assert torch.equal(ours["input"], theirs["input"])
    assert torch.equal(module.whole_pairs("test")[0]["input"], plain.whole_pairs("test")[0]["input"])


@pytest.mark.parametrize("treatment", [Treatment(), Treatment(highpass_hz=100)])
def test_a_neutral_chain_returns_the_recording_with_its_context(make_pairs, treatment):
    found = sides(data(make_pairs(12), NEUTRAL, treatment))
    torch.testing.assert_close(found["input"], found["target"], atol=1e-5, rtol=0)


def test_the_share_of_excerpts_is_made_and_the_others_are_real(make_pairs):
    root = make_pairs(12)
    (pair, *_) = data(root).splits["train"]
    for share in (0.0, 0.25, 1.0):
        degrader = Degrader(Degradation(EFFECTS, share), SAMPLE_RATE, 1)
        made = sum(degrader.draw(pair, seed) is not None for seed in range(2000))
        assert made / 2000 == pytest.approx(share, abs=0.03 if 0 < share < 1 else 0)
    assert torch.equal(sides(data(root, share=0.0))["input"], sides(data(root, effects=None))["input"])


def test_the_target_of_a_real_input_stays_as_it_is(make_pairs):
    root = make_pairs(12)
    found, plain = sides(data(root, share=0.5, style_share=1.0)), sides(data(root, effects=None))
    same = {side: (found[side] == plain[side]).flatten(1).all(dim=1) for side in found}
    assert torch.equal(same["input"], same["target"]) and 0 < same["input"].sum() < len(same["input"])


def test_values_are_drawn_from_their_distributions(make_pairs):
    (pair, *_) = data(make_pairs(12)).splits["train"]
    degrader = Degrader(Degradation(EFFECTS), SAMPLE_RATE, 1)
    drawn = np.array([degrader.draw(pair, seed).keywords["values"] for seed in range(2000)])
    gains, cutoffs, ratios, levels = drawn.T
    assert gains.std() == pytest.approx(4, rel=0.1) and abs(gains.mean()) < 0.4 and np.abs(gains).max() <= 12
    assert np.median(cutoffs) == pytest.approx(np.sqrt(100 * 1000), rel=0.1)
    assert [ratios.min(), ratios.max()] == pytest.approx([1, 1.5], abs=0.01)
    assert levels.std() == pytest.approx(6 / np.sqrt(12), rel=0.1)


def test_a_degraded_input_has_the_loudness_of_its_treatment(make_pairs):
    louder = [{"effect": "pedalboard:Gain", "draw": {"gain_db": {"deviation": 0, "default": 9}}}]
    root, treatment = make_pairs(12, seconds=1.0), Treatment(input_lufs=-25)
    module = data(root, louder, treatment)
    pair = module.splits["train"][0]
    change = Degrader(module.degradation, SAMPLE_RATE, 1).draw(pair, seed=0)
    made = treatment.read_changed(pair.target, 0, SAMPLE_RATE, SAMPLE_RATE, 1, change)
    assert lufs(made, SAMPLE_RATE) == pytest.approx(-25, abs=0.05)
    torch.testing.assert_close(made, treatment.read(pair.target, 0, SAMPLE_RATE, SAMPLE_RATE, 1, "input"))


def test_further_recordings_need_no_input_and_are_always_degraded(make_pairs, tmp_path):
    root, further = make_pairs(12), tmp_path / "further"
    further.mkdir()
    noise = 0.1 * np.random.default_rng(0).standard_normal(5 * SAMPLE_RATE)
    soundfile.write(further / "song.wav", noise, SAMPLE_RATE)
    module, plain = data(root, share=0.0, root=str(further)), data(root, effects=None)
    dataset = module.train_dataloader().dataset
    assert len(dataset.pairs) == len(module.splits["train"]) + 1
    assert len(list(module.val_dataloader())) == len(list(plain.val_dataloader()))
    recording = dataset.pairs.pairs[-1]
    module.restore(module.arguments, resumes=True)
    with pytest.raises(UserError, match="recordings of data.degradation.root are not those of the run"):
        module.restore({**module.arguments, "recordings": []}, resumes=True)
    assert dataset.degrader.draw(recording, seed=0) and not dataset.degrader.draw(dataset.pairs.pairs[0], seed=0)
    (further / "test.wav").hardlink_to(module.splits["test"][0].target.path)
    with pytest.raises(UserError, match="in the split test, and in train as"):
        data(root, root=str(further))
    with pytest.raises(UserError, match="no such folder, or no audio"):
        data(root, root=str(tmp_path / "absent"))


def test_a_killed_run_with_degraded_inputs_resumes_to_the_bit(make_pairs, tmp_path):
    root, degradation = make_pairs(20, seconds=0.6), Degradation(EFFECTS, share=0.5)

    def fit(model, *callbacks, **options):
        module = small_training.data(root, model, degradation=degradation)
        trainer(tmp_path, epochs=1, callbacks=callbacks).fit(model, datamodule=module, **options)
        return weights(model)

    uninterrupted = fit(task())
    saved = ModelCheckpoint(tmp_path, "last", every_n_train_steps=1, enable_version_counter=False)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(task(), saved, Crash(STEPS_IN_EPOCH // 2))
    last = str(tmp_path / "last.ckpt")
    assert torch.equal(fit(task(), ckpt_path=last), uninterrupted)
    degradation = Degradation(EFFECTS, share=0.4)
    with pytest.raises(UserError, match="the run began with other options: data.degradation"):
        fit(task(), ckpt_path=last)


def test_the_expander_undoes_the_static_curve_of_a_compressor():
    chain = ChainSpec([EffectSpec(EXPANDER, train={"expansion_ratio": None}, fixed={"threshold_db": -20})], SAMPLE_RATE)
    seconds = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    tone = np.sqrt(2) * np.sin(2 * np.pi * 1000 * seconds).astype(np.float32)[None]
    for level_db, expected_db in [(-30, -30), (-20, -20), (-10, -5)]:
        audio = (10 ** (level_db / 20) * tone).astype(np.float32)
        output = chain.build().render_whole(audio, np.array([1.5]))[:, SAMPLE_RATE:]
        assert 10 * np.log10(np.square(output).mean()) == pytest.approx(expected_db, abs=0.1)
        assert np.array_equal(chain.build().render_whole(audio, np.array([1.0])), audio)
    live, blocks = chain.build(), np.array_split(tone, 7, axis=1)
    joined = np.concatenate([live.render(block, np.array([1.3])) for block in blocks], axis=1)
    np.testing.assert_allclose(joined, chain.build().render_whole(tone, np.array([1.3])), rtol=1e-6)


def test_the_gain_of_the_expander_does_not_jump_with_its_time():
    fixed = {"threshold_db": -20, "expansion_ratio": 2}
    chain = ChainSpec([EffectSpec(EXPANDER, train={"time_ms": None}, fixed=fixed)], SAMPLE_RATE).build()
    constant = np.full((1, SAMPLE_RATE), 0.5, np.float32)
    for time_ms in (1.0, 1000.0, 50.0):
        output = chain.render(constant, np.array([time_ms]))
    np.testing.assert_allclose(output, 2.5, rtol=1e-4)


@pytest.mark.parametrize(
    "effects, message",
    [
        ([{"effect": "pedalboard:Gain", "train": None}], "rename `train` to `draw`"),
        ([{"effect": "pedalboard:Gain", "draw": {"gain_db": {"deviation": -1}}}], "deviation: gain_db is -1"),
        ([{"effect": "pedalboard:Gain", "draw": {"gain": [0, 1]}}], "has no parameter 'gain'"),
        ([{"effect": "lv2:urn:reverb"}], "main process only: set data.num_workers to 0"),
        ([], "has no effects"),
    ],
)
def test_a_chain_that_cannot_degrade_is_refused_by_name(effects, message):
    with pytest.raises(UserError, match=message) as error:
        Degrader(Degradation(effects), SAMPLE_RATE, 1, num_workers=1)
    assert str(error.value).startswith("data.degradation: ")
