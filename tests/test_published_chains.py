"""The chains of the paper, and the measured behaviour of every plugin that the documents name."""

import ctypes
import gc
import re
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import get_loader

from dfx.blackbox import EffectLayer, GradientOptions
from dfx.effects import ChainSpec, EffectError, EffectSpec, lv2
from dfx.effects.chain import load_chain
from dfx.effects.probe import ProbeReport, dead_parameters, probe
from tests.known_effects import SAMPLE_RATE

CONFIGS = Path(__file__).parent.parent / "configs"
CALF = "lv2:http://calf.sourceforge.net/plugins/"
LSP = "lv2:http://lsp-plug.in/plugins/lv2/"
BANDS = range(4)
SWITCHED_ON = {f"bypass{band}": False for band in BANDS}
TASKS = ("tube_amp", "nonspeech", "mastering")
CHAINS = (*TASKS, "tube_amp_limiter")


def or_skip(make):
    """Return the result of ``make``; skip if a plugin is not installed, with the package to install."""
    try:
        return make()
    except EffectError as error:
        if "install" in str(error):
            pytest.skip(str(error))
        raise


def paper_chain(task: str) -> ChainSpec:
    return or_skip(lambda: load_chain(str(CONFIGS / "paper" / f"{task}.yaml")))


def config_of(path: str) -> dict:
    return get_loader("yaml")((CONFIGS / path).read_text())


# --- the published tables: name, range, and the default in [0, 1] -------------------------------------

COMPRESSOR_BAND = [
    ("threshold{}", 0.000976563, 1, 0.2493),
    ("ratio{}", 1, 20, 0.0526),
    ("makeup{}", 1, 64, 0.0),
    ("knee{}", 1, 8, 0.2612),
]
GATE_BAND = [
    ("range{}", 1.5849e-05, 1, 0.0612),
    ("threshold{}", 0.000976563, 1, 0.2493),
    ("ratio{}", 1, 20, 0.0526),
]
MASTERING_BAND = [*COMPRESSOR_BAND[:2], ("makeup{}", 1, 5, 0.0)]


def of_bands(rows):
    return [(name.format(band), *numbers) for band in BANDS for name, *numbers in rows]


PUBLISHED = {
    "tube_amp": [
        *of_bands(COMPRESSOR_BAND),
        ("freq0", 10, 400, 0.2821),
        ("freq1", 300, 3000, 0.2593),
        ("freq2", 3000, 8000, 0.6),
        ("level_in", 0.015625, 2, 0.4961),
        ("level_out", 0.015625, 2, 0.4961),
    ],
    "nonspeech": [
        *of_bands(GATE_BAND),
        ("freq0", 10, 300, 0.3793),
        ("freq1", 300, 3000, 0.2593),
        ("freq2", 3000, 10000, 0.4286),
        ("level_in", 0.015625, 2, 0.4961),
        ("level_out", 0.015625, 2, 0.4961),
    ],
    "mastering": [
        *of_bands(MASTERING_BAND),
        ("freq0", 10, 400, 0.2821),
        ("freq1", 400, 3000, 0.2308),
        ("freq2", 3000, 10000, 0.4286),
        ("level_in", 0.015625, 4, 0.2471),
        *((f"g_{band}", 0.01585, 5, 0.1975) for band in range(32)),
        ("g_out", 0, 4, 0.25),
        ("th", 0.00398, 1, 1.0),
    ],
}
PUBLISHED["tube_amp_limiter"] = [*PUBLISHED["tube_amp"], PUBLISHED["mastering"][-1]]


@pytest.mark.parametrize("task", CHAINS)
def test_the_parameters_are_those_of_the_published_tables(task):
    spec = paper_chain(task)
    assert len(spec.parameters) == {"tube_amp": 21, "nonspeech": 17, "mastering": 50, "tube_amp_limiter": 22}[task]
    assert [p.name.split(".")[1] for p in spec.parameters] == [name for name, *_ in PUBLISHED[task]]
    assert {p.scale for p in spec.parameters} == {"linear"}
    for parameter, default, row in zip(spec.parameters, spec.space.defaults, PUBLISHED[task]):
        # LSP's metadata have one digit more now.
        assert (parameter.low, parameter.high) == pytest.approx(row[1:3], rel=3e-4), row
        assert default == pytest.approx(row[3], abs=6e-5), row


@pytest.mark.parametrize("task", CHAINS)
def test_fixed_values_are_the_published_ones(task):
    recipes = paper_chain(task).recipes
    times = {f"{time}{band}": 0.01 for time in ("attack", "release") for band in BANDS}
    fixed = {"multiband_compressor": SWITCHED_ON | times, "multiband_gate": SWITCHED_ON | times}
    fixed["graph_equalizer_x32_mono"] = {"slope": "BT96"}
    # The switch that LSP 1.1.19 lacks is off where it is.
    has_alr = "limiter_mono" in (r.name for r in recipes) and "alr" in lv2.controls(f"{LSP}limiter_mono"[4:], 22050, 1)
    fixed["limiter_mono"] = {"alr": False} if has_alr else {}
    assert {recipe.name: recipe.fixed for recipe in recipes} == {recipe.name: fixed[recipe.name] for recipe in recipes}


def test_the_two_encoders_of_a_task_differ_by_nothing_else():
    overlays = ("tube_amp_mobilenet_v2", "nonspeech_inception", "mastering_mobilenet_v2")
    for task, overlay in zip(TASKS, overlays):
        backbone = overlay.removeprefix(f"{task}_")
        assert config_of(f"paper/{overlay}.yaml") == {
            "run": {"name": f"paper_{overlay}"}, "model": {"init_args": {"encoder": {"backbone": backbone}}},
        }  # fmt: skip
        assert config_of(f"paper/{task}.yaml")["model"]["init_args"]["encoder"]["backbone"] != backbone


@pytest.mark.parametrize("task", TASKS)
def test_training_options_are_the_published_ones(task):
    config = config_of(f"paper/{task}.yaml")
    arguments = config["model"]["init_args"]
    assert (arguments["sample_rate"], arguments["context_samples"], arguments["frame_samples"]) == (
        22050, 40960, 1024,
    )  # fmt: skip
    assert arguments["gradient"] == {
        "directions": "rademacher", "sides": 2, "draws": 1, "redraw": "frame", "epsilon": 0.01,
    }  # fmt: skip
    assert arguments["loss"] == {"kind": "paper", "max_delay_samples": 300 if task == "mastering" else 100}
    assert arguments["stages"] == {
        "pretraining_epochs": 100, "pretraining_learning_rate": 1e-3, "pretraining_patience": 4, "progressive": True,
    }  # fmt: skip
    assert arguments["optimizer"] == {
        "learning_rate": 1e-4,
        "schedule": "plateau",
        "patience": 25,
        "adam_epsilon": 1e-7,
    }
    backbone = "mobilenet_v2" if task == "nonspeech" else "inception"
    assert arguments["encoder"] == {"backbone": backbone, "start_at_defaults": False, "conventions": "keras"}
    treated = {"nonspeech": {"highpass_hz": 100}, "mastering": {"input_lufs": -25}}
    augmented = {"nonspeech": {"noise_db": [30, 50], "gain": [0.1, 1]}}
    assert arguments.get("treatment") == treated.get(task)
    assert arguments.get("augmentation") == augmented.get(task)
    data = {name: config["data"][name] for name in ("batch_size", "steps_per_epoch", "validation_steps")}
    assert data == {"batch_size": 100, "steps_per_epoch": 1000, "validation_steps": 100}
    assert config["trainer"] == {"max_epochs": 1000}


@pytest.mark.parametrize("task", CHAINS)
def test_the_chain_trains(task):
    train(paper_chain(task))


def train(spec: ChainSpec) -> None:
    """Ten steps of two examples through the effect layer."""
    layer = EffectLayer(spec, GradientOptions(directions="rademacher", sides=2, redraw="frame"))
    logits = torch.nn.Parameter(torch.from_numpy(spec.space.defaults).clamp(0.02, 0.98).logit())
    optimizer = torch.optim.Adam([logits], lr=0.1)
    start = logits.detach().clone()
    noise = torch.randn(10, 2, 1024, generator=torch.Generator().manual_seed(0))
    for step, audio in enumerate(0.2 * noise):
        output = layer(audio, logits.sigmoid().expand(2, -1), torch.tensor([step == 0] * 2))
        optimizer.zero_grad()
        (output - 0.5 * audio).square().mean().backward()
        optimizer.step()
        assert torch.isfinite(output).all() and torch.isfinite(logits.grad).all()
    assert (logits != start).any()


@pytest.mark.parametrize("task", TASKS)
def test_only_bands_above_nyquist_are_dead(task):
    # In LSP 1.2 the last of the three is a shelf that still reaches down to 10 kHz.
    above = {f"graph_equalizer_x32_mono.g_{band}" for band in (29, 30, 31)}
    dead = set(dead_parameters(paper_chain(task)))
    if task == "mastering":
        assert {"graph_equalizer_x32_mono.g_29", "graph_equalizer_x32_mono.g_30"} <= dead <= above
    else:
        assert not dead


def test_the_published_gate_amplifies_by_6_db():
    spec = paper_chain("nonspeech")
    sine = 0.9 * np.sin(2 * np.pi * 300 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    values = spec.space.denormalize(spec.space.defaults)
    values[[p.name.endswith("threshold0") or p.name.endswith("threshold1") for p in spec.parameters]] = 1e-3
    output = spec.build().render_whole(sine[None].astype(np.float32), values)
    assert 20 * np.log10(output[:, 5000:].std() / sine.std()) == pytest.approx(6, abs=0.5)


# --- a third party's VST3 -----------------------------------------------------------------------------


def test_the_vst3_config_is_the_tube_amplifiers_but_for_its_effects():
    ours, theirs = config_of("tube_amp.yaml"), config_of("vst3/tube_amp.yaml")
    for config in (ours, theirs):
        del config["run"]["name"], config["model"]["init_args"]["effects"]
    assert theirs == ours


def test_the_vst3_chain_is_alive_and_trains():
    spec = or_skip(lambda: load_chain(str(CONFIGS / "vst3" / "tube_amp.yaml")))
    assert len(spec.parameters) == 15
    assert dead_parameters(spec) == []
    train(spec)


# --- every plugin that the documents name -------------------------------------------------------------


def report_of(effect: str, train: list, **fixed: object) -> ProbeReport:
    train = dict.fromkeys(train) or None
    spec = or_skip(lambda: ChainSpec([EffectSpec(effect, train=train, fixed=fixed)], SAMPLE_RATE))
    return probe(spec, seconds=1.0)


@pytest.mark.parametrize(
    "effect, train, fixed, expected",
    [
        # By default the bands of Calf's multiband effects are bypassed, and those of ZaMultiComp off.
        (f"{CALF}MultibandCompressor", ["threshold0", "ratio3"], {}, ["dead .*threshold0, .*ratio3"]),
        (f"{CALF}MultibandCompressor", ["threshold0", "ratio3"], SWITCHED_ON, []),
        (f"{CALF}MultibandGate", ["range1", "threshold2"], {}, ["dead .*range1, .*threshold2"]),
        (f"{CALF}MultibandGate", ["range1", "threshold2"], SWITCHED_ON, []),
        (f"{CALF}Equalizer8Band", ["p1_level", "level_out"], {}, ["dead .*p1_level"]),
        (f"{CALF}Equalizer8Band", ["p1_level", "level_out"], {"p1_active": "ON"}, []),
        # Its latency is its attack time, and is not reported.
        (f"{CALF}Limiter", ["limit"], {}, ["latency reported 0 but measured 1[01][0-9] samples"]),
        (f"{LSP}graph_equalizer_x32_mono", ["g_0", "g_20", "g_30"], {}, ["dead .*g_30"]),
        (f"{LSP}limiter_mono", ["th"], {}, ["frames of 1000 differ"]),
        (f"{LSP}limiter_mono", ["th", "lk"], {}, ["latency went from 110 .* of .*lk"]),
        # Its ratios are 1 until they are set.
        (f"{LSP}mb_compressor_mono", ["al_0", "mk_2"], {"envb": "None"}, ["dead .*al_0"]),
        (f"{LSP}mb_gate_mono", ["gt_0", "mk_2"], {"envb": "None"}, ["frames of 1000 differ"]),
        # It smooths a new value over a whole block.
        (
            "lv2:http://invadarecords.com/plugins/lv2/tube/mono",
            ["drive", "mix"],
            {},
            ["drive glides for about [45]", "mix glides for about [45]"],
        ),
        ("vst3:ZaMultiComp", ["threshold_1_db", "makeup_3_db"], {}, ["dead .*threshold_1_db, .*makeup_3_db"]),
        ("vst3:ZaMultiComp", [], {f"zamcomp_{band}_on": True for band in (1, 2, 3)}, []),
        ("vst3:ZamTube", ["tube_drive", "bass"], {}, ["output inverted"]),
        ("vst3:ZamGate", [], {}, []),
        ("vst3:ZamGEQ31", ["32hz_db", "12662hz_db"], {}, ["dead .*12662hz_db"]),
    ],
)
def test_the_probe_reports_the_known_surprises(effect, train, fixed, expected):
    report = report_of(effect, train, **fixed)
    for sentence in expected:
        assert any(re.search(sentence, surprise) for surprise in report.surprises), report.surprises
    if expected == []:
        assert not any("dead" in surprise for surprise in report.surprises)
    assert report.difference_of_instances == report.restart_error == report.frame_errors[1024] == 0
    assert report.latency_reported == (110 if effect == f"{LSP}limiter_mono" else 0)
    assert all(parameter.reads_back for parameter in report.parameters)


def resident_mb() -> float:
    """Return the resident memory of this process after the allocator has returned its free memory."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs Linux with glibc to measure memory")
def test_the_mastering_chain_frees_its_memory_and_does_not_grow():
    spec = paper_chain("mastering")
    frame = np.zeros((1, 1024), dtype=np.float32)
    values = spec.space.denormalize(spec.space.defaults)

    def build_and_render() -> list:
        chains = [spec.build() for _ in range(100)]
        for chain in chains:
            chain.render(frame, values)
        return chains

    build_and_render()
    before = resident_mb()
    for _ in range(3):
        build_and_render()
    assert resident_mb() - before < 20
    chains = build_and_render()
    before = resident_mb()
    for step in range(1000):
        chains[step % len(chains)].render(frame, values)
    assert resident_mb() - before < 5
