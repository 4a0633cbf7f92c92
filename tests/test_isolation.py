"""Effects that crash, hang or return invalid audio, and the state of a run after that."""

import gc
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from dfx.blackbox import EffectLayer, GradientOptions, RenderingOptions, adaptive, isolation
from dfx.blackbox.isolation import IsolatedLanes
from dfx.callbacks.run_folder import RunFolder
from dfx.datasets import PairedAudio
from dfx.effects import ChainSpec, EffectError, EffectSpec, RenderError, lilv
from dfx.encoder import EncoderOptions
from dfx.errors import UserError
from dfx.losses import LossOptions
from dfx.tasks import TubeAmp
from tests.known_effects import SAMPLE_RATE, Gain, known
from tests.misbehaving import SPIN_SECONDS

ROOT = Path(__file__).parent.parent
TIMEOUT_SECONDS = 1.0
TUBE = [
    EffectSpec("pedalboard:Distortion", train={"drive_db": (0, 20)}),
    EffectSpec("pedalboard:PeakFilter", train={"gain_db": None, "cutoff_frequency_hz": None}),
    known("Leaky"),
    EffectSpec("pedalboard:Compressor"),
]


def misbehaving(effect: str, **options) -> EffectSpec:
    return EffectSpec(f"python:tests.misbehaving.{effect}", name="it", **options)


def lanes_with(effect: EffectSpec) -> IsolatedLanes:
    """Return lanes of a chain with ``effect`` between two others."""
    spec = ChainSpec([known("Gain", name="before"), effect, known("Gain", name="after")], SAMPLE_RATE)
    return IsolatedLanes(spec, 1, RenderingOptions(workers=1, isolate=True, timeout_seconds=TIMEOUT_SECONDS))


def render(lanes: IsolatedLanes, value: float, restart: bool = False) -> np.ndarray:
    """Render two frames of three lanes; in the second frame of one of them, the effect renders at ``value``."""
    values = np.full((3, 1, 2, 3), 0.25)
    values[1, 0, 1, 1] = value
    return lanes.render(np.ones((3, 1, 64), np.float32), values, np.full(3, restart))


def check_that_it_is_survived_and_named(effect: EffectSpec, message: str) -> None:
    lanes = lanes_with(effect)
    np.testing.assert_array_equal(render(lanes, 0.25), np.full((3, 1, 1, 64), 0.0625))
    start = time.monotonic()
    with pytest.raises(RenderError, match=rf"^it at \(it\.gain=0\.75\) {message}$") as error:
        render(lanes, 0.75)
    assert time.monotonic() - start < TIMEOUT_SECONDS + 1
    assert error.value.effect == "it" and error.value.values == {"it.gain": 0.75}
    assert multiprocessing.active_children() == []


CRASHED = r"crashed its process \(SIGSEGV\)"
LATE = "did not answer within 1 s"
NOT_FINITE = "returned audio that is not finite or wildly large"


# --- rendering -----------------------------------------------------------------------------------------


def layers() -> tuple:
    """Return a layer in threads and one in processes."""
    spec, gradient = ChainSpec(TUBE, SAMPLE_RATE), GradientOptions(sides=2)
    return tuple(EffectLayer(spec, gradient, RenderingOptions(2, isolate)) for isolate in (False, True))


def frames(batch: int, samples: int = 512, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed))


def step(layer: EffectLayer, k: int, restart: list) -> tuple:
    """Return output and gradient of frame ``k`` of every lane, each at different parameters."""
    generator = torch.Generator().manual_seed(k)
    parameters = torch.rand(len(restart), len(layer.chain.parameters), generator=generator).requires_grad_()
    output = layer(frames(len(restart), seed=k), parameters, torch.tensor(restart))
    output.square().sum().backward()
    return output.detach(), parameters.grad


def test_processes_render_what_threads_render_to_the_bit():
    threads, processes = layers()
    for k in range(4):
        restart = [k == 0, k in (0, 2), k == 0]
        for expected, result in zip(step(threads, k, restart), step(processes, k, restart)):
            assert torch.equal(expected, result)


def test_batches_and_frames_of_any_size_are_rendered_to_the_bit():
    threads, processes = layers()
    sizes = [(2, 512, True), (5, 512, False), (1, 512, False), (5, 512, False), (3, 700, True)]
    for k, (batch, samples, restart) in enumerate(sizes):
        audio, flags = frames(batch, samples, seed=k), torch.full((batch,), restart)
        parameters = torch.full((batch, len(threads.chain.parameters)), 0.3)
        with torch.no_grad():
            assert torch.equal(threads(audio, parameters, flags), processes(audio, parameters, flags))


def test_a_checkpoint_of_threads_continues_in_processes_and_vice_versa(tmp_path):
    for saved, restored in (layers(), layers()[::-1]):
        for k in range(3):
            step(saved, k, [k == 0, k == 1, k == 0])
        torch.save(saved.streaming_state(), tmp_path / "state.pt")
        restored.load_streaming_state(torch.load(tmp_path / "state.pt", weights_only=True))
        for expected, result in zip(step(saved, 3, [False] * 3), step(restored, 3, [False] * 3)):
            assert torch.equal(expected, result)


# --- threads or processes, whichever are faster ---------------------------------------------------------

BUILT_IN = [effect for effect in TUBE if effect.effect.startswith("pedalboard:")]


def adaptive_layers(effects: list[EffectSpec] = BUILT_IN, restart: str = "excerpt") -> tuple[EffectLayer, EffectLayer]:
    """Return a layer that may move to processes, and one that may not."""
    spec, gradient = ChainSpec(effects, SAMPLE_RATE), GradientOptions(sides=2, restart=restart)
    return tuple(EffectLayer(spec, gradient, RenderingOptions(workers)) for workers in (2, 1))


def set_times(monkeypatch, threads: float, processes: float) -> None:
    """Let a step take these seconds for the choice of threads or processes, and a trial a few steps."""
    now = [0.0]

    def clock() -> float:
        now[0] += processes if multiprocessing.active_children() else threads
        return now[0]

    monkeypatch.setattr(adaptive, "time", SimpleNamespace(perf_counter=clock))
    monkeypatch.setattr(adaptive, "_TRIAL_SECONDS", 3 * threads)


def in_processes(layer: EffectLayer, other: EffectLayer, steps: int, restart_every: int = 3) -> list[bool]:
    """Return for each step whether processes rendered it, and check that output and gradient are those of ``other``."""
    moved = []
    for k in range(steps):
        restart = [k % restart_every == 0] * 3
        for result, expected in zip(step(layer, k, restart), step(other, k, restart)):
            assert torch.equal(result, expected)
        moved.append(bool(multiprocessing.active_children()))
    return moved


@pytest.mark.parametrize("threads, processes, remain", [(2, 1, True), (1, 2, False)])
def test_lanes_move_when_all_restart_and_remain_where_they_are_faster(threads, processes, remain, monkeypatch):
    set_times(monkeypatch, threads, processes)
    layer, other = adaptive_layers()
    moved = in_processes(layer, other, 18)
    first = moved.index(True)
    assert first % 3 == 0 and moved[first : first + 3] == [True] * 3
    assert moved[-6:] == [remain] * 6
    layer._training_lanes.close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("case", ["an effect of Python", "an excerpt that goes on", "restart: never"])
def test_lanes_remain_in_threads_where_processes_could_change_the_audio(case, monkeypatch):
    set_times(monkeypatch, 2, 1)
    effects = TUBE if case == "an effect of Python" else BUILT_IN
    layers = adaptive_layers(effects, "never" if case == "restart: never" else "excerpt")
    assert not any(in_processes(*layers, 12, restart_every=99 if case == "an excerpt that goes on" else 3))


def test_lanes_remain_in_threads_where_processes_cannot_start(monkeypatch):
    def fail(*_) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail, raising=False)
    set_times(monkeypatch, 2, 1)
    assert not any(in_processes(*adaptive_layers(), 12))


def test_a_checkpoint_of_lanes_that_have_moved_continues_to_the_bit(monkeypatch):
    set_times(monkeypatch, 2, 1)
    layer, other = adaptive_layers()
    assert in_processes(layer, other, 11)[-1]
    restored, _ = adaptive_layers()
    restored.load_streaming_state(layer.streaming_state())
    for result, expected in zip(step(restored, 11, [False] * 3), step(other, 11, [False] * 3)):
        assert torch.equal(result, expected)
    layer._training_lanes.close()


def test_an_effect_that_fails_in_processes_raises_what_it_raises_in_threads(monkeypatch):
    set_times(monkeypatch, 2, 1)
    layer, other = adaptive_layers()
    assert in_processes(layer, other, 11)[-1]
    not_finite = torch.full((3, 512), torch.nan)
    parameters, going_on = torch.full((3, len(layer.chain.parameters)), 0.5).requires_grad_(), torch.zeros(3) > 0
    messages = []
    for one in (layer, other):
        with pytest.raises(RenderError, match="was given audio that is not finite") as error:
            one(not_finite, parameters, going_on)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_the_cpu_time_of_processes_counts_also_after_they_have_ended():
    lanes = lanes_with(misbehaving("Spinning"))
    start = isolation.cpu_seconds()
    render(lanes, 0.75)
    lanes.close()
    assert isolation.cpu_seconds() - start >= SPIN_SECONDS


# --- misbehaving effects -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "effect, message",
    [
        ("Crashing", CRASHED),
        ("Hanging", LATE),
        ("Leaving", r"left its process \(exit code 3\)"),
        ("NotFinite", NOT_FINITE),
    ],
)
def test_an_effect_that_misbehaves_is_survived_and_named_with_its_values(effect, message):
    check_that_it_is_survived_and_named(misbehaving(effect), message)


@pytest.mark.parametrize("effect, message", [("Crashing", CRASHED), ("NotFinite", NOT_FINITE)])
def test_an_effect_without_trained_parameters_that_misbehaves_is_named(effect, message):
    spec = ChainSpec([known("Gain", name="before"), misbehaving(effect, train={}, fixed={"gain": 0.75})], SAMPLE_RATE)
    lanes = IsolatedLanes(spec, 1, RenderingOptions(workers=1, isolate=True))
    with pytest.raises(RenderError, match=rf"^it {message}$"):
        lanes.render(np.ones((1, 1, 64), np.float32), np.ones((1, 1, 1, 1)), np.ones(1, bool))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """Return a folder with the plugins of misbehaving.c."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("lv2")
    plugins = folder / "misbehaving.lv2"
    plugins.mkdir()
    source = ROOT / "tests" / "misbehaving.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", plugins / "misbehaving.so", source], check=True)
    ports = ", ".join(
        f'[ a lv2:{way}Port, lv2:{kind}Port ; lv2:index {index} ; lv2:symbol "{symbol}" ; lv2:name "{symbol}" {more} ]'
        for index, (way, kind, symbol, more) in enumerate(
            [
                ("Input", "Audio", "input", ""),
                ("Output", "Audio", "output", ""),
                ("Input", "Control", "gain", "; lv2:default 0.25 ; lv2:minimum 0.0 ; lv2:maximum 1.0"),
            ]
        )
    )
    (plugins / "manifest.ttl").write_text(
        "@prefix lv2: <http://lv2plug.in/ns/lv2core#> .\n@prefix doap: <http://usefulinc.com/ns/doap#> .\n"
        + "\n".join(
            f'<urn:test:{name}> a lv2:Plugin ; doap:name "{name}" ; lv2:binary <misbehaving.so> ; lv2:port {ports} .'
            for name in ("crash", "hang", "nan")
        )
    )
    return folder


@pytest.fixture
def plugins(bundle, monkeypatch):
    """Make them the only installed LV2 plugins, here and in new processes."""

    try:
        lilv.uris()
    except EffectError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("LV2_PATH", str(bundle))
    lilv.rescan()
    yield
    lilv.rescan()


@pytest.mark.parametrize("plugin, message", [("crash", CRASHED), ("hang", LATE), ("nan", NOT_FINITE)])
def test_a_plugin_that_misbehaves_is_survived_and_named_with_its_values(plugins, plugin, message):
    check_that_it_is_survived_and_named(EffectSpec(f"lv2:urn:test:{plugin}", name="it"), message)


@pytest.mark.parametrize("effect, restart", [("CrashingWhenBuilt", False), ("CrashingWhenReset", True)])
def test_an_effect_that_crashes_before_it_renders_is_named(effect, restart):
    lanes = lanes_with(misbehaving(effect))
    with pytest.raises(RenderError, match=rf"it.* {CRASHED}$"):
        render(lanes, 0.25, restart)


def test_an_effect_that_crashes_while_a_checkpoint_is_loaded_is_named():
    steps = [(torch.ones(1, 64), torch.full((1, 1, 3), value)) for value in (0.25, 0.75)]
    with pytest.raises(RenderError, match=rf"^it at \(it\.gain=0\.75\) {CRASHED}$"):
        lanes_with(misbehaving("Crashing")).load_state_dict({"history": [[], steps]})


def test_after_an_error_and_after_a_worker_was_killed_new_ones_start():
    lanes = lanes_with(misbehaving("NotFinite"))
    with pytest.raises(RenderError, match=NOT_FINITE):
        render(lanes, 0.75)
    render(lanes, 0.25)
    worker = multiprocessing.active_children()[0]
    worker.kill()
    worker.join()
    with pytest.raises(
        RenderError, match=r"a worker for before \+ it \+ after .*SIGKILL.* while none of them was active"
    ):
        render(lanes, 0.25)
    assert multiprocessing.active_children() == []


def test_a_timeout_of_zero_is_refused():
    with pytest.raises(UserError, match="timeout_seconds is 0; it must be above 0"):
        RenderingOptions(timeout_seconds=0)


# --- the main module -----------------------------------------------------------------------------------

UNGUARDED = """
import pickle
import torch
from dfx.blackbox import EffectLayer, RenderingOptions
from dfx.effects import ChainSpec, EffectSpec

print("the main module runs", flush=True)
spec = ChainSpec([EffectSpec("python:beside.Reporting")], 22050)
layer = EffectLayer(spec, rendering=RenderingOptions(workers=2, isolate=True))
print(layer(torch.ones(2, 64), torch.full((2, 1), 0.25), torch.ones(2, dtype=torch.bool)).unique().item())
print(layer.dead_parameters())

class Own:
    pass

assert isinstance(pickle.loads(pickle.dumps(Own())), Own)
"""

BESIDE = """
import sys
from tests.known_effects import Gain

class Reporting(Gain):
    def __init__(self, sample_rate, channels):
        # One write: workers share the stream.
        print(f"torch is imported: {'torch' in sys.modules}\\n", end="", flush=True)
"""


def test_a_script_without_a_guard_runs_once_and_its_workers_find_modules_beside_it_but_import_no_torch(tmp_path):
    (tmp_path / "script.py").write_text(UNGUARDED)
    (tmp_path / "beside.py").write_text(BESIDE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, tmp_path / "script.py"], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert (process.returncode, process.stderr) == (0, "")
    lines = process.stdout.splitlines()
    assert lines[0] == "the main module runs" and lines.count(lines[0]) == 1
    assert "0.5" in lines and "[]" in lines
    # Two workers.
    assert lines.count("torch is imported: False") >= 2


def test_an_effect_of_the_main_module_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "Own", Gain, raising=False)
    layer = EffectLayer(ChainSpec([EffectSpec("python:__main__.Own")], SAMPLE_RATE))
    with pytest.raises(EffectError, match=r"^python:__main__\.Own is in the main module.*: move the class to another"):
        EffectLayer(layer.chain, rendering=RenderingOptions(isolate=True))


# --- cleaning up ---------------------------------------------------------------------------------------


def test_shared_memory_has_no_name_that_could_remain_after_a_kill():
    lanes = IsolatedLanes(ChainSpec([known("Gain")], SAMPLE_RATE), 1, RenderingOptions(workers=2, isolate=True))
    names = set()
    for batch, samples in [(1, 64), (3, 64), (3, 32)]:
        audio = np.ones((batch, 1, samples), np.float32)
        np.testing.assert_array_equal(lanes.render(audio, np.full((batch, 1, 1, 1), 0.5), np.zeros(batch, bool)), 0.5)
        names.add(lanes._buffers[0].name)
    assert len(names) == 3 and len(multiprocessing.active_children()) == 2
    for name in names:
        with pytest.raises(FileNotFoundError):
            SharedMemory(name)
    lanes.close()


def test_memory_that_a_worker_never_opened_has_no_name_either(monkeypatch):
    created = []
    monkeypatch.setattr(
        isolation, "SharedMemory", lambda *args, **how: created.append(SharedMemory(*args, **how)) or created[-1]
    )
    lanes = lanes_with(misbehaving("Hanging"))
    render(lanes, 0.25)
    worker = multiprocessing.active_children()[0]
    worker.kill()
    worker.join()
    with pytest.raises(RenderError, match="SIGKILL"):
        lanes.render(np.ones((3, 1, 32), np.float32), np.full((3, 1, 1, 3), 0.25), np.zeros(3, bool))
    assert len(created) == 2
    for memory in created:
        with pytest.raises(FileNotFoundError):
            SharedMemory(memory.name)


def test_too_little_shared_memory_is_an_error_that_leaves_no_process_and_no_memory(monkeypatch):
    created = []

    def create(*args, **how) -> SharedMemory:
        created.append(SharedMemory(*args, **how))
        return created[-1]

    def fail(*_) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(isolation, "SharedMemory", create)
    monkeypatch.setattr(os, "posix_fallocate", fail, raising=False)
    lanes = lanes_with(misbehaving("Hanging"))
    with pytest.raises(UserError, match="there are no .* MiB of shared memory left: set `rendering.isolate` to false"):
        render(lanes, 0.25)
    assert multiprocessing.active_children() == [] and len(created) == 1
    with pytest.raises(FileNotFoundError):
        SharedMemory(created[0].name)


def test_lanes_that_are_collected_leave_no_process():
    lanes = lanes_with(misbehaving("Hanging"))
    render(lanes, 0.25)
    del lanes
    gc.collect()
    assert multiprocessing.active_children() == []


SCRIPT = """
import numpy as np
from dfx.blackbox.isolation import IsolatedLanes
from dfx.blackbox.lanes import RenderingOptions
from dfx.effects import ChainSpec, EffectSpec

spec = ChainSpec([EffectSpec("python:tests.misbehaving.Hanging")], 22050)
lanes = IsolatedLanes(spec, 1, RenderingOptions(workers=2, isolate=True))
for value in (0.25, VALUE):
    lanes.render(np.ones((2, 1, 64), np.float32), np.array([[[[0.25]]], [[[value]]]]), np.zeros(2, bool))
    print(lanes._buffers[0].name, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("value, end", [(0.25, None), (0.75, signal.SIGINT), (0.75, signal.SIGKILL)])
def test_a_process_that_ends_in_any_way_leaves_no_process_and_no_memory(tmp_path, value, end):
    (tmp_path / "script.py").write_text(SCRIPT.replace("VALUE", str(value)))
    process = subprocess.Popen(
        [sys.executable, tmp_path / "script.py"],
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    name = process.stdout.readline().strip()
    if end == signal.SIGINT:
        # As Ctrl-C does: to all processes of the session.
        os.killpg(process.pid, end)
    elif end:
        process.send_signal(end)
    # The workers hold the other ends of the pipes as well: this returns when the last has gone.
    _, err = process.communicate(timeout=20)
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)
    if end is None:
        assert (process.returncode, err) == (0, "")
    elif end == signal.SIGINT:
        assert err.count("Traceback") == 1 and "resource_tracker" not in err


def fit(root: Path, folder: Path, isolate: bool, *callbacks: pl.Callback, resume: bool = False):
    """Return the weights after four steps of training a :class:`Flagged` effect."""
    pl.seed_everything(0, verbose=False)
    model = TubeAmp(
        [misbehaving("Flagged", train={"gain": None})],
        context_samples=2048,
        frame_samples=1024,
        encoder=EncoderOptions(width=0.1),
        loss=LossOptions(fft_sizes=[512, 256]),
        rendering=RenderingOptions(workers=1, isolate=isolate),
    )
    data = PairedAudio(str(root), SAMPLE_RATE, 1, model.window, batch_size=2, excerpt_seconds=0.15, check_audio=False)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=4,
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
    )
    trainer.fit(model, datamodule=data, ckpt_path=str(folder / "last.ckpt") if resume else None)
    return torch.cat([value.float().flatten() for value in model.state_dict().values()])


class RaiseFlag(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == 2:
            Path(os.environ["FLAG"]).touch()


def test_a_run_that_a_plugin_crashed_keeps_the_values_and_resumes_to_the_same_weights(
    make_pairs, tmp_path, monkeypatch
):
    flag, folder = tmp_path / "flag", tmp_path / "run"
    monkeypatch.setenv("FLAG", str(flag))
    root = make_pairs(12)
    alone = fit(root, folder, False)

    folder.mkdir()
    saved = ModelCheckpoint(folder, "last", every_n_train_steps=1, enable_version_counter=False)
    with pytest.raises(RenderError, match=CRASHED):
        fit(root, folder, True, saved, RaiseFlag(), RunFolder(folder))
    failed = json.loads((folder / "failed_values.json").read_text())
    assert failed["effect"] == "it" and 0 < failed["values"]["it.gain"] < 2 and "SIGSEGV" in failed["message"]

    flag.unlink()
    assert torch.equal(fit(root, folder, True, resume=True), alone)


def test_values_are_kept_without_isolation_too(tmp_path):
    chain = ChainSpec([misbehaving("NotFinite")], SAMPLE_RATE).build()
    with pytest.raises(RenderError) as error:
        chain.render(np.ones((1, 64), np.float32), np.array([0.75]))
    RunFolder(tmp_path).on_exception(None, None, error.value)
    failed = json.loads((tmp_path / "failed_values.json").read_text())
    assert failed["message"] == f"it at (it.gain=0.75) {NOT_FINITE}"
    assert (failed["effect"], failed["values"]) == ("it", {"it.gain": 0.75})
