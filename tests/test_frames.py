import itertools
from types import SimpleNamespace

import pytest
import torch

from dfx import distributed
from dfx.datasets import PairedAudio, Window
from dfx.datasets.frames import EvaluationLanes, Excerpts, TrainingLanes
from dfx.errors import DataError

LENGTHS = [5000, 1000, 12345, 300, 8000, 2600]
STEP = 500


def excerpts(**options) -> Excerpts:
    return Excerpts(LENGTHS, STEP, **{"excerpt_samples": 2000, "shuffle": True, "seed": 0, **options})


def test_the_window_contains_the_context_around_the_frame_and_the_delayed_target_before_it():
    for context, frame, latency in [(4096, 1024, 0), (1024, 4096, 0), (4096, 1023, 110), (512, 1024, 110), (1, 1, 0)]:
        window = Window(context, frame, latency)
        n = torch.arange(window.samples)
        context_part, rendered, target = window.context(n), window.step(n), window.delayed_step(n)
        assert len(context_part) == context and len(rendered) == len(target) == frame
        assert abs((context_part[0] + context_part[-1]) - (rendered[0] + rendered[-1])) <= 1
        assert rendered[0] - target[0] == latency


def test_an_excerpt_is_a_whole_number_of_frames_inside_its_file_or_one_that_is_padded():
    for excerpt in excerpts():
        assert excerpt.steps == max(1, min(LENGTHS[excerpt.pair], 2000) // STEP)
        assert excerpt.start >= 0
        if LENGTHS[excerpt.pair] >= STEP:
            assert excerpt.start + excerpt.steps * STEP <= LENGTHS[excerpt.pair]


def test_excerpts_of_a_file_do_not_overlap_and_cover_most_of_it():
    of_longest = sorted(e.start for e in excerpts() if e.pair == 2)
    assert len(of_longest) == 6
    assert all(later - earlier == 2000 for earlier, later in zip(of_longest, of_longest[1:]))


def test_the_order_depends_on_seed_and_epoch_only():
    one, two, other = excerpts(), excerpts(), excerpts(seed=1)
    assert list(one) == list(two) != list(other)
    two.set_epoch(1)
    assert list(one) != list(two)
    assert len(list(two)) == len(two) == len(one)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_lanes_continue_their_excerpt_until_the_next_begins_at_its_first_frame(batch_size):
    lanes = TrainingLanes(excerpts(), batch_size)
    batches = list(lanes)
    assert len(batches) == len(lanes) >= 1
    assert all(frame.number == 0 for frame in batches[0])
    for before, after in zip(batches, batches[1:]):
        assert len(after) == batch_size
        for old, new in zip(before, after):
            ended = old.number == old.excerpt.steps - 1
            assert new.number == 0 if ended else new == (old.excerpt, old.number + 1)


def test_an_epoch_has_as_many_batches_as_its_frames_fill():
    assert len(TrainingLanes(excerpts(), 4)) == sum(e.steps for e in excerpts()) // 4


def test_a_first_batch_skips_the_earlier_ones_in_one_epoch():
    whole, lanes = list(TrainingLanes(excerpts(), 3)), TrainingLanes(excerpts(), 3)
    lanes.first_batch = 4
    assert list(lanes) == whole[4:]
    assert list(lanes) == whole


# --- draws -------------------------------------------------------------------------------------------


def test_excerpts_drawn_with_replacement_come_from_all_pairs_alike_and_from_all_places():
    drawn = list(itertools.islice(excerpts().draw(), 6000))
    counts = [sum(excerpt.pair == pair for excerpt in drawn) for pair in range(len(LENGTHS))]
    assert all(abs(count - 1000) < 150 for count in counts)
    starts = [excerpt.start for excerpt in drawn if excerpt.pair == 2]
    assert min(starts) < 200 and max(starts) > 10345 - 200 and max(starts) <= 10345
    assert all(excerpt.steps == min(4, max(1, LENGTHS[excerpt.pair] // STEP)) for excerpt in drawn)
    assert len({excerpt.seed for excerpt in drawn}) == 6000


def test_an_epoch_of_drawn_excerpts_has_the_given_batches_and_depends_on_seed_and_epoch_only():
    one, two, other = (TrainingLanes(excerpts(seed=seed), 3, batches=40) for seed in (0, 0, 1))
    first = list(one)
    assert len(first) == len(one) == 40 and first == list(two) != list(other)
    two.sampler.set_epoch(1)
    assert list(two) != first
    one.first_batch = 17
    assert list(one) == first[17:]


def test_ranks_share_the_lanes_of_drawn_excerpts():
    whole, *parts = (TrainingLanes(excerpts(), 4, rows, 30) for rows in (slice(None), slice(0, 2), slice(2, 4)))
    assert [a + b for a, b in zip(*parts)] == list(whole)


def test_a_batch_that_ranks_cannot_share_evenly_is_rounded_down_and_said_once(make_pairs, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "_rank", lambda: 0)
    module = validation(make_pairs(), batch_size=100)
    module.setup("fit")
    assert capsys.readouterr().err.count("data.batch_size is rounded down to 99") == 1
    batches = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "_rank", lambda rank=rank: rank)
        module.setup("fit")
        batches.append(len(next(iter(module.train_dataloader().batch_sampler))))
    assert batches == [33, 33, 33] and not capsys.readouterr().err
    assert module.arguments["batch_size"] == 100
    with pytest.raises(DataError, match="2, less than one lane for each of 3 processes"):
        validation(make_pairs(folder="others"), batch_size=2)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_are_in_page_locked_memory_where_a_gpu_trains(make_pairs, device):
    module = validation(make_pairs())
    module.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    for loader in (module.train_dataloader(), module.val_dataloader()):
        assert loader.pin_memory == (device == "cuda")


def validation(root, **options) -> PairedAudio:
    options = {"batch_size": 4, "excerpt_seconds": 10.0, "check_audio": False, **options}
    module = PairedAudio(str(root), 22050, 1, Window(4096, 1024), **options)
    module.setup("fit")
    return module


def steps_of(loader) -> list:
    return [step for batch in loader.batch_sampler for step in batch]


def test_a_validation_draws_steps_from_all_pairs_and_all_of_their_frames(make_pairs):
    module = validation(make_pairs(30, seconds=2.0), validation_steps=3)
    loader = module.val_dataloader()
    assert [len(batch) for batch in loader.batch_sampler] == [4, 4, 4]
    places = {}
    for seed in range(40):
        module.seed = seed
        drawn = [step.excerpt for step in steps_of(module.val_dataloader())]
        assert len(set(drawn)) == 4
        for excerpt in drawn:
            places.setdefault(excerpt.pair, []).append(excerpt.start)
    assert set(places) == set(range(3))
    # The notes are 43 frames long: the draw reaches the first as well as the last of them.
    assert all(min(starts) < 3 * 1024 and max(starts) > 38 * 1024 for starts in places.values())


def test_every_validation_has_the_same_draw_in_every_process(make_pairs, monkeypatch):
    root = make_pairs(12, seconds=2.0)
    one, two = (validation(root, validation_steps=5) for _ in range(2))
    monkeypatch.setattr(distributed, "rank_rows", lambda rows: slice(0, rows // 2))
    two.train_dataloader()
    first = one.val_dataloader()
    assert steps_of(first) == steps_of(first) == steps_of(two.val_dataloader())


def test_a_validation_of_more_steps_than_there_are_contains_every_excerpt_once(make_pairs):
    module = validation(make_pairs(12), validation_steps=1000)
    steps = steps_of(module.val_dataloader())
    module.validation_steps = None
    places = [
        {(step.excerpt.pair, step.number) for step in some} for some in (steps, steps_of(module.val_dataloader()))
    ]
    assert places[0] == places[1] and len(steps) == len(places[0])


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_evaluation_contains_every_frame_once_in_lanes_that_only_end(batch_size):
    lanes = EvaluationLanes(excerpts(shuffle=False), batch_size)
    batches = list(lanes)
    assert len(batches) == len(lanes)
    seen = [frame for batch in batches for frame in batch]
    assert len(seen) == len(set(seen)) == excerpts().total_steps
    for before, after in zip(batches, batches[1:]):
        for old, new in zip(before, after):
            assert new.number == 0 or new == (old.excerpt, old.number + 1)


@pytest.fixture
def data(make_pairs) -> PairedAudio:
    module = PairedAudio(str(make_pairs(20)), 22050, 1, Window(4096, 1024, 100), batch_size=4, excerpt_seconds=0.2)
    module.setup("fit")
    return module


def test_frames_of_a_lane_join_without_a_seam(data):
    batches = list(data.train_dataloader())
    window = data.window
    for before, after in zip(batches, batches[1:]):
        for lane in range(4):
            if not after["restart"][lane]:
                for side in ("input", "target"):
                    old, new = before[side][lane], after[side][lane]
                    assert torch.equal(old[..., window.step_samples :], new[..., : -window.step_samples])


def test_a_batch_contains_the_samples_of_the_files(data):
    batch = next(iter(data.val_dataloader()))
    assert batch["input"].shape == batch["target"].shape == (4, 1, data.window.samples)
    pair = data.splits["validation"][0]
    expected = pair.input.read(0, 1024, 22050, 1)
    assert any(torch.equal(data.window.step(lane), expected) for lane in batch["input"])


def test_the_target_has_the_delay_of_the_output_of_the_chain(data):
    batch = next(iter(data.val_dataloader()))
    late, on_time = data.window.delayed_step(batch["target"]), data.window.step(batch["target"])
    assert torch.equal(late[..., 100:], on_time[..., :-100])


def test_worker_processes_change_nothing(data):
    here = list(data.train_dataloader())
    data.num_workers = 2
    there = list(data.train_dataloader())
    assert all(torch.equal(a["target"], b["target"]) for a, b in zip(here, there))


def test_files_shorter_than_a_context_are_padded_and_counted_on_stdout(make_pairs, capsys):
    root = make_pairs(5, seconds=0.1, folder="short")
    module = PairedAudio(str(root), 22050, 1, Window(40960, 44100), batch_size=2)
    module.setup("fit")
    assert "3 of 3 train pairs are shorter than the encoder's context (1.86 s)" in capsys.readouterr().out
    batch = next(iter(module.train_dataloader()))
    assert batch["input"].shape[-1] == 44100 and not batch["input"][..., 3000:].any()


def test_other_rates_are_resampled_and_test_pairs_are_whole(make_pairs):
    module = PairedAudio(str(make_pairs(5, sample_rate=44100)), 22050, 1, Window(4096, 1024))
    module.setup("test")
    (pair,) = list(module.test_dataloader())
    assert pair["input"].shape == pair["target"].shape == (1, 11025)
    assert pair["name"].startswith("note_")


@pytest.mark.parametrize("frames", [1, 3])
def test_a_window_of_several_frames_contains_those_of_each(frames):
    for context, frame, latency in [(4096, 1024, 0), (1024, 4096, 0), (4096, 1023, 110), (512, 1024, 110)]:
        one, several = Window(context, frame, latency), Window(context, frame, latency, frames)
        n = torch.arange(several.samples)
        assert several.samples == one.samples + (frames - 1) * frame
        for i in range(frames):
            of_frame = n[i * frame :][: one.samples]
            assert torch.equal(several.context(n)[i * frame :][:context], one.context(of_frame))
            for part in ("step", "delayed_step"):
                assert torch.equal(getattr(several, part)(n)[i * frame :][:frame], getattr(one, part)(of_frame))


def test_steps_of_several_frames_join_without_a_seam_and_shorter_pairs_are_padded(make_pairs):
    module = PairedAudio(str(make_pairs(12)), 22050, 1, Window(4096, 1024, 100, 3), batch_size=2, excerpt_seconds=0.3)
    module.setup("fit")
    batches, window = list(module.train_dataloader()), module.window
    for before, after in zip(batches, batches[1:]):
        for lane in (0, 1):
            if not after["restart"][lane]:
                old, new = before["input"][lane], after["input"][lane]
                assert torch.equal(old[..., window.step_samples :], new[..., : -window.step_samples])
    assert sum(int(batch["restart"].sum()) for batch in batches) == 10
    module.window = Window(4096, 1024, 100, 15)
    assert all(batch["restart"].all() for batch in module.val_dataloader())
