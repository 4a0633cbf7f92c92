import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest
import scipy.signal
import soundfile
import torch
import torchaudio

import dfx
from dfx.audio import reading
from dfx.audio.loudness import Loudness, lufs
from dfx.audio.reading import stream_array
from dfx.audio.writing import BIT_DEPTHS
from dfx.datasets import Treatment
from dfx.effects import EffectSpec
from dfx.errors import UserError, errors_in_one_line
from dfx.render import levelling, streaming
from dfx.render.__main__ import main
from dfx.render.model import Model
from dfx.render.streaming import StreamingOptions, render_stream
from dfx.writing import replacing
from tests.known_effects import SAMPLE_RATE, known
from tests.small_training import data, task, trainer

GAIN = [EffectSpec("pedalboard:Gain", train={"gain_db": (-24, 24)})]
LATE = [*GAIN, EffectSpec("pedalboard:BrickwallLimiter", train={"release_ms": None})]
CHANGING = [
    EffectSpec("pedalboard:Compressor", train={"threshold_db": (-40, 0), "ratio": None}),
    EffectSpec("pedalboard:PeakFilter", train={"gain_db": (-12, 12), "cutoff_frequency_hz": (100, 4000)}),
]


def resting(effects=GAIN, **options):
    """A task whose parameters stay at the defaults, whatever its input."""
    model = task(effects, **options)
    with torch.no_grad():
        model.encoder.head.weight.zero_()
        model.encoder.head.bias.copy_(torch.logit(model.defaults.double()).float())
    return Model(model)


def moving(effects=CHANGING, **options):
    """A task whose parameters follow the levels of the context's quarters, each parameter in a different way."""
    model = task(effects, **options)
    window = model.window

    def encode(context):
        contexts = context.mean(dim=1).unfold(1, window.context_samples, window.frame_samples)
        levels = contexts.unflatten(2, (4, -1)).square().mean(dim=3).clamp(min=1e-6).log10()
        mixed = torch.cos(torch.arange(4.0)[:, None] * torch.arange(1.0, 1 + len(model.chain.parameters)))
        return torch.sigmoid(levels @ mixed)

    model.encode = encode
    return Model(model)


def music(seconds=2.0, sample_rate=44100, channels=1, seed=0):
    """Noise over a tone whose level swings, ``(channels, samples)``."""
    n = np.arange(int(seconds * sample_rate))
    swing = 0.5 + 0.5 * np.sin(2 * np.pi * 1.7 * n / sample_rate)
    noise = 0.1 * np.random.default_rng(seed).standard_normal((channels, len(n)))
    return (swing * (noise + 0.2 * np.sin(2 * np.pi * 220 * n / sample_rate))).astype(np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A gain at 0 dB that stays there."""
    folder = tmp_path_factory.mktemp("checkpoint")
    root = folder / "pairs"
    for side in ("input", "target"):
        (root / side).mkdir(parents=True)
        for i in range(10):
            soundfile.write(root / side / f"{i}.wav", music(0.4, SAMPLE_RATE, seed=i).T, SAMPLE_RATE)
    model = resting().task.train()
    model.optimizer_options.learning_rate = 0.0
    fitted = trainer(folder, epochs=1)
    fitted.fit(model, datamodule=data(root, model))
    fitted.save_checkpoint(folder / "gain.ckpt")
    return str(folder / "gain.ckpt")


# --- an output equals its input if the effects change nothing -------------------------------------------


@pytest.mark.parametrize("effects", [GAIN, LATE], ids=["gain", "gain and limiter with look-ahead"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sample_rate, channels", [(22050, 1), (44100, 2), (48000, 5), (96000, 1), (8000, 1)])
def test_a_chain_at_rest_returns_its_input_sample_aligned(effects, causal, sample_rate, channels):
    audio = music(1.0, sample_rate, channels)
    rendering = resting(effects).render(audio, sample_rate, causal)
    assert rendering.audio.shape == audio.shape
    np.testing.assert_allclose(rendering.audio, audio, atol=1e-6)


@pytest.mark.parametrize(
    "name, subtype",
    [("a.wav", "PCM_16"), ("a.wav", "PCM_24"), ("a.wav", "FLOAT"), ("a.flac", "PCM_16"), ("a.flac", "PCM_24"),
     ("a.aiff", "PCM_16"), ("a.ogg", "VORBIS"), ("a.mp3", "MPEG_LAYER_III")],
)  # fmt: skip
def test_a_file_keeps_its_length_rate_channels_and_bit_depth(checkpoint, tmp_path, name, subtype):
    audio = music(1.0, 48000, 2)
    soundfile.write(tmp_path / name, audio.T, 48000, subtype)
    main([checkpoint, str(tmp_path / name), str(tmp_path / f"out_{name}"), "--quiet"])
    before, after = (soundfile.info(tmp_path / n) for n in (name, f"out_{name}"))
    assert [(i.samplerate, i.channels, i.frames, i.subtype, i.format) for i in (before, after)] == [
        (48000, 2, before.frames, subtype, before.format)
    ] * 2
    x, y = (soundfile.read(tmp_path / n, dtype="float32")[0] for n in (name, f"out_{name}"))
    lossy = name[-3:] in ("ogg", "mp3")
    if not lossy:
        np.testing.assert_allclose(y, x, atol=1e-6)
    else:
        shifted = [np.square(np.roll(y, shift, axis=0) - x).mean() for shift in range(-5, 6)]
        assert int(np.argmin(shifted)) == 5


def test_whole_numbers_come_back_to_the_bit(checkpoint, tmp_path):
    soundfile.write(tmp_path / "a.wav", music(0.5).T, 44100, "PCM_16")
    main([checkpoint, str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), "--quiet"])
    a, b = (soundfile.read(tmp_path / n, dtype="int16")[0] for n in ("a.wav", "b.wav"))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "source, name, depth, expected",
    [("FLOAT", "b.flac", None, "PCM_24"), ("PCM_16", "b.ogg", None, "VORBIS"), ("PCM_16", "b.wav", "float", "FLOAT"),
     ("PCM_U8", "b.flac", None, "PCM_S8"), ("PCM_24", "b.aiff", "16", "PCM_16")],
)  # fmt: skip
def test_another_format_gets_the_nearest_bit_depth(checkpoint, tmp_path, source, name, depth, expected):
    soundfile.write(tmp_path / "a.wav", music(0.2).T, 44100, source)
    chosen = ["--bit-depth", depth] if depth else []
    main([checkpoint, str(tmp_path / "a.wav"), str(tmp_path / name), "--quiet", *chosen])
    assert soundfile.info(tmp_path / name).subtype == expected


def test_pedalboard_reads_formats_that_soundfile_cannot(checkpoint, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", music(0.5, channels=2).T, 44100, "PCM_24")

    def unknown(path, name):
        raise soundfile.LibsndfileError(1)

    monkeypatch.setattr(reading, "_open_with_soundfile", unknown)
    main([checkpoint, str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), "--quiet"])
    assert soundfile.info(tmp_path / "b.wav").subtype == "PCM_24"
    a, b = (soundfile.read(tmp_path / name)[0] for name in ("a.wav", "b.wav"))
    np.testing.assert_allclose(a, b, atol=1e-6)


# --- chunks and memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("treatment", [Treatment(), Treatment(input_lufs=-25), Treatment(highpass_hz=100)], ids=str)
def test_rendering_in_chunks_equals_rendering_whole(causal, treatment):
    audio = music(4.0, 48000, 2)
    model = moving([*CHANGING, LATE[1]], treatment=treatment)
    outputs = []
    for chunk in (1024, 30_000, 10**9):
        parts = []
        options = StreamingOptions(causal=causal, chunk_samples=chunk)
        automation = render_stream(model.task, lambda: stream_array(audio, 48000), parts.append, options)
        outputs.append(np.concatenate(parts, axis=1))
    assert np.ptp(automation.parameters, axis=0).max() > 0.05
    assert outputs[0].shape == audio.shape and np.abs(outputs[0] - audio).max() > 0.01
    for output in outputs[:2]:
        np.testing.assert_allclose(output, outputs[2], atol=1e-6)


@pytest.mark.parametrize("interpolation", ["hold", "published"])
@pytest.mark.parametrize("sample_rate", [22050, 48000])
def test_no_interpolation_depends_on_the_chunks(interpolation, sample_rate):
    audio = music(4.0, sample_rate, 2)
    model = moving([*CHANGING, LATE[1]], frame_samples=3000)
    outputs, automations = [], []
    for chunk in (1024, 30_000, 10**9):
        parts = []
        options = StreamingOptions(interpolation, chunk_samples=chunk)
        automations.append(render_stream(model.task, lambda: stream_array(audio, sample_rate), parts.append, options))
        outputs.append(np.concatenate(parts, axis=1))
    assert outputs[2].shape == audio.shape and np.ptp(automations[2].parameters, axis=0).max() > 0.05
    for output, automation in zip(outputs[:2], automations):
        np.testing.assert_array_equal(output, outputs[2])
        np.testing.assert_array_equal(automation.parameters, automations[2].parameters)


@pytest.mark.parametrize("sample_rate", [22050, 44100, 48000])
def test_held_parameters_are_constant_over_each_frame(sample_rate):
    n = np.arange(sample_rate)
    audio = np.full(len(n), 0.1, np.float32)
    rendering = stepping(resting(), frame=10, low=0.25, high=0.75).render(audio, sample_rate, interpolation="hold")
    border = 10 * 1024 / SAMPLE_RATE
    expected = 0.1 * 10 ** (np.where(n / sample_rate < border - 1e-9, -12, 12) / 20)
    # pedalboard ramps its gain for some samples.
    ramp = np.abs(n / sample_rate - border) < 0.05
    np.testing.assert_allclose(rendering.audio[~ramp], expected[~ramp], rtol=1e-3)
    np.testing.assert_allclose(rendering.automation["gain_db"], np.where(rendering.automation.times < border, -12, 12))


def smoothed_as_published(parameters, samples):
    """The parameters of blocks of 64 samples, by the recipe of the paper's code, in its transfer-function form."""
    smooth = scipy.signal.filtfilt(*scipy.signal.butter(4, 0.5), parameters, axis=0)
    held = np.repeat(smooth, 1024, axis=0)[:samples]
    return np.clip(scipy.signal.sosfiltfilt(scipy.signal.butter(4, 0.001, output="sos"), held, axis=0)[::64], 0, 1)


@pytest.mark.parametrize("seconds", [2.0, 7.0])
def test_published_parameters_are_smoothed_as_in_the_papers_code(seconds):
    audio = music(seconds, SAMPLE_RATE)
    model = moving([known("Gain")])
    frames = model.render(audio, SAMPLE_RATE, interpolation="hold").automation
    rendering = model.render(audio, SAMPLE_RATE, interpolation="published")
    expected = smoothed_as_published(frames.parameters, audio.shape[1])
    np.testing.assert_allclose(rendering.automation.parameters, expected[::4], atol=1e-6)
    gains = frames.space.denormalize(expected).repeat(64, axis=0)[: audio.shape[1], 0]
    np.testing.assert_allclose(rendering.audio, gains * audio, atol=1e-5)


@pytest.mark.parametrize("samples", [1, 15, 1000, 20_000])
def test_the_shortest_recordings_are_smoothed_too(samples):
    audio = music(1.0, SAMPLE_RATE)[:, :samples]
    rendering = resting().render(audio, SAMPLE_RATE, interpolation="published")
    np.testing.assert_allclose(rendering.audio, audio, atol=1e-6)


def test_smoothing_without_phase_needs_look_ahead():
    with pytest.raises(UserError, match="'published' looks ahead"):
        resting().render(music(0.2), 44100, causal=True, interpolation="published")
    with pytest.raises(UserError, match="no interpolation 'lineal' .did you mean 'linear'"):
        resting().render(music(0.2), 44100, interpolation="lineal")


def test_the_command_line_chooses_the_interpolation(checkpoint, tmp_path):
    soundfile.write(tmp_path / "a.wav", music(0.3).T, 44100)
    for interpolation in ("hold", "linear", "published"):
        arguments = [checkpoint, str(tmp_path / "a.wav"), str(tmp_path / f"{interpolation}.wav"), "--quiet"]
        main([*arguments, "--automation", ".json", "--interpolation", interpolation])
        assert json.loads((tmp_path / f"{interpolation}.json").read_text())["interpolation"] == interpolation


def test_at_the_models_rate_frames_get_the_parameters_that_evaluation_gives_them():
    audio = torch.from_numpy(music(2.0, SAMPLE_RATE))
    model = moving()
    expected = model.task.render(audio).automation.values
    automation = model.render(audio.numpy(), SAMPLE_RATE).automation
    np.testing.assert_allclose(automation.values, expected[: len(automation.times)], rtol=1e-4)
    np.testing.assert_allclose(automation.times, (np.arange(len(automation.times)) + 0.5) * 1024 / SAMPLE_RATE)


def test_automation_does_not_depend_on_the_rate_of_the_file():
    n = np.arange(44100 * 2)
    seconds = n / 44100
    tones = [np.sin(2 * np.pi * hz * seconds) * np.cos(2 * np.pi * hz / 500 * seconds) for hz in (150, 900, 3000)]
    high = (0.1 * sum(tones)).astype(np.float32)
    model = moving()
    low = model.render(high[::2], SAMPLE_RATE).automation
    np.testing.assert_allclose(model.render(high, 44100).automation.parameters, low.parameters, atol=0.02)
    np.testing.assert_allclose(model.render(high, 44100).automation.times, low.times)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_recording():
    """A long recording needs no more memory than a short one."""
    model = resting(GAIN, frame_samples=4096, context_samples=8192)

    def most_kept(seconds: float) -> int:
        most = 0

        def open_stream():
            def read(samples):
                return np.full((2, samples), 0.1, np.float32)

            return reading.Stream("a recording", 44100, 2, int(seconds * 44100), read)

        read = reading.Recording._read_native

        def counted(self, start, stop):
            nonlocal most
            window = read(self, start, stop)
            most = max(most, self._kept.shape[1])
            return window

        reading.Recording._read_native = counted
        try:
            render_stream(model.task, open_stream, lambda audio: None, StreamingOptions())
        finally:
            reading.Recording._read_native = read
        return most

    assert most_kept(90) < 1.01 * most_kept(30) < 26 * 44100


def test_plugins_run_at_the_recordings_rate_in_chunks_too():
    plugins = [EffectSpec("lv2:urn:zamaudio:ZamComp", train={"thr": None}), EffectSpec("vst3:ZamTube")]
    audio = music(1.5, 44100, 2)
    model = moving(plugins)
    outputs = []
    for chunk in (2048, 10**9):
        parts = []
        options = StreamingOptions(chunk_samples=chunk)
        render_stream(model.task, lambda: stream_array(audio, 44100), parts.append, options)
        outputs.append(np.concatenate(parts, axis=1))
    assert outputs[0].shape == audio.shape and np.abs(outputs[0] - audio).max() > 0.01
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-6)


def test_a_channel_of_many_is_rendered_as_if_alone_with_the_automation_of_all():
    audio = music(1.0, 44100, 5)
    model = moving()
    rendering = model.render(audio, 44100)
    assert rendering.audio.shape == audio.shape
    mono = model.render(audio.mean(axis=0), 44100).automation
    np.testing.assert_allclose(rendering.automation.parameters, mono.parameters, atol=1e-4)


# --- time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("treatment", [Treatment(), Treatment(input_lufs=-25), Treatment(highpass_hz=100)], ids=str)
@pytest.mark.parametrize("sample_rate", [44100, 22050, 48000])
def test_causal_automation_does_not_depend_on_later_samples(treatment, sample_rate):
    audio = music(3.0, sample_rate)
    change = int(1.63 * sample_rate)
    other = audio.copy()
    other[:, change:] = music(3.0, sample_rate, seed=1)[:, change:] * 3
    model = moving(treatment=treatment)
    one, two = (model.render(x, sample_rate, causal=True).audio for x in (audio, other))
    np.testing.assert_array_equal(one[:, :change], two[:, :change])
    assert not np.allclose(one[:, change:], two[:, change:], atol=0.01)
    if treatment.highpass_hz is None:
        one, two = (model.render(x, sample_rate).automation.parameters for x in (audio, other))
        frame = change * SAMPLE_RATE // sample_rate // 1024
        # With look-ahead, the context is centred and includes later samples.
        assert np.abs(one - two)[frame - 1].max() > 1e-4


def stepping(model, frame, low, high):
    """Makes a model step from one parameter to another at a frame."""
    seen = 0

    def encode(context):
        nonlocal seen
        count = 1 + (context.shape[-1] - 4096) // 1024
        numbers = torch.arange(seen, seen + count)
        seen += count
        return torch.where(numbers < frame, low, high).reshape(1, -1, 1).float()

    model.task.encode = encode
    return model


def test_a_step_of_a_gain_makes_no_jump_above_that_of_a_straight_line():
    n = np.arange(44100)
    sine = 0.05 * np.sin(2 * np.pi * 1000 * n / 44100).astype(np.float32)
    model = stepping(resting(), frame=10, low=0.25, high=0.75)
    rendering = model.render(sine, 44100)
    decibels = np.interp(n / 44100, rendering.automation.times, rendering.automation["gain_db"])
    line = sine * 10 ** (decibels / 20)
    assert np.ptp(decibels) == pytest.approx(24)
    largest, of_line = (np.abs(np.diff(x)).max() for x in (rendering.audio, line))
    assert largest < 1.02 * of_line
    # The steps of held frames would be larger.
    steps = sine * 10 ** (np.where(n < 10 * 2048, -12, 12) / 20)
    assert np.abs(np.diff(rendering.audio - line)).max() < 0.1 * np.abs(np.diff(steps - line)).max()


# --- treatments ----------------------------------------------------------------------------------------


def test_a_mix_comes_out_as_loud_whatever_its_level():
    audio = music(3.0, 44100, 2)
    model = resting(treatment=Treatment(input_lufs=-25))
    outputs = [model.render(gain * audio, 44100).audio for gain in (1.0, 0.1)]
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-6)
    # The task has no audio above 11 kHz.
    output = torchaudio.functional.resample(torch.from_numpy(outputs[0]), 44100, SAMPLE_RATE)
    assert lufs(output, SAMPLE_RATE) == pytest.approx(-25, abs=0.1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("right", [-0.997, -1.0])
def test_channels_that_cancel_are_not_amplified_and_told(causal, right):
    left = music(2.0)
    audio = np.concatenate([left, right * left])
    model = resting(treatment=Treatment(input_lufs=-25))
    with pytest.warns(UserWarning, match="the audio: its channels nearly cancel"):
        output = model.render(audio, 44100, causal).audio
    gain_db = -25 - pyloudnorm.Meter(44100).integrated_loudness(audio.T)
    found_db = 20 * np.log10(np.abs(output[:, -9000:]).max() / np.abs(audio[:, -9000:]).max())
    assert found_db == pytest.approx(gain_db, abs=2.0)  # the task measures audio below 11 kHz


@pytest.mark.parametrize("causal", [False, True])
def test_the_treatments_gain_can_be_undone(causal):
    audio = music(3.0, 44100, 2)
    rendering = resting(LATE, treatment=Treatment(input_lufs=-25)).render(audio, 44100, causal, own_level=True)
    np.testing.assert_allclose(rendering.audio, audio, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_the_treatments_high_pass_is_in_the_output(causal):
    n = np.arange(44100)
    low, high = (0.3 * np.sin(2 * np.pi * hz * n / 44100).astype(np.float32) for hz in (40, 2000))
    model = resting(treatment=Treatment(highpass_hz=100))
    middle = slice(10_000, 30_000)
    assert np.abs(model.render(low, 44100, causal).audio[middle]).max() < 0.001
    assert np.abs(model.render(high, 44100, causal).audio[middle]).max() == pytest.approx(0.3, rel=0.01)


@pytest.mark.parametrize("seconds, channels", [(0.2, 1), (2.13, 2), (5.96, 1), (5.94, 5)])
def test_loudness_in_parts_is_that_of_the_whole(seconds, channels):
    audio = torch.from_numpy(music(seconds, SAMPLE_RATE, channels))
    loudness = Loudness(SAMPLE_RATE)
    for part in audio.split(777, dim=1):
        loudness.add(part)
    samples = np.pad(audio.numpy().astype(float), ((0, 0), (0, max(0, 8821 - audio.shape[1]))))
    expected = pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(samples.T)
    assert loudness.integrated() == pytest.approx(expected, abs=0.01)
    assert lufs(audio, SAMPLE_RATE) == pytest.approx(loudness.integrated(), abs=1e-6)


def test_silence_stays_silent():
    model = resting(treatment=Treatment(input_lufs=-25))
    for loudness in (None, -14):
        assert not model.render(np.zeros((2, 50_000), np.float32), 44100, loudness=loudness).audio.any()


@pytest.mark.parametrize("sample_rate", [1000, 2000, 2500, 3000])
def test_loudness_is_measured_at_rates_below_the_shelf_of_its_weighting_too(sample_rate):
    def tone(rate: int) -> torch.Tensor:
        return 0.1 * torch.sin(2 * torch.pi * 200 * torch.arange(2 * rate) / rate)[None]

    assert lufs(tone(sample_rate), sample_rate) == pytest.approx(lufs(tone(48000), 48000), abs=0.1)


@pytest.mark.parametrize("bytes_in_memory", [1, 2**26])
def test_an_output_gets_the_loudness_that_is_asked_for_by_one_gain(bytes_in_memory, monkeypatch):
    monkeypatch.setattr(levelling, "_BYTES_IN_MEMORY", bytes_in_memory)
    audio, model = music(3.5, 44100, 2), moving()
    plain, loud = model.render(audio, 44100), model.render(audio, 44100, loudness=-12.5)
    assert pyloudnorm.Meter(44100).integrated_loudness(loud.audio.T) == pytest.approx(-12.5, abs=0.01)
    gain = 10 ** (loud.automation.output_gain_db / 20)
    np.testing.assert_allclose(loud.audio, gain * plain.audio, rtol=1e-5, atol=1e-7)


def test_a_gain_that_lifts_pauses_above_the_absolute_gate_still_gives_the_loudness():
    noise = np.random.default_rng(0).standard_normal((1, 10 * 44100)).astype(np.float32)
    noise *= np.where(np.arange(noise.shape[1]) < 44100, 1e-3, 1.4e-4)
    output = resting().render(noise, 44100, loudness=-20).audio
    assert pyloudnorm.Meter(44100).integrated_loudness(output.T) == pytest.approx(-20, abs=0.05)


def test_a_loudness_and_the_inputs_own_level_exclude_each_other():
    with pytest.raises(UserError, match="exclude each other"):
        resting().render(music(0.1), 44100, own_level=True, loudness=-14)
    with pytest.raises(UserError, match="loudness is 3"):
        resting().render(music(0.1), 44100, loudness=3)


def test_the_command_tells_the_gain_and_the_clipping_of_a_loudness(checkpoint, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", music(1.0).T, 44100)
    options = ["--quiet", "--loudness", "-3", "--preset", ".py"]
    main([checkpoint, str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), *options])
    stderr = capsys.readouterr().err
    assert "dB after the chain for -3 LUFS, not part of --preset" in stderr and "samples are clipped" in stderr
    soundfile.write(tmp_path / "a.wav", np.zeros(44100), 44100)
    main([checkpoint, str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), *options, "--overwrite"])
    assert capsys.readouterr().err == f"{tmp_path / 'b.wav'}: the output is silent, and left as it is\n"


# --- the command line ----------------------------------------------------------------------------------


def test_a_folder_becomes_a_folder(checkpoint, tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("a.wav", "deep/b.flac"):
        soundfile.write(tmp_path / "in" / name, music(0.3).T, 44100)
    (tmp_path / "in" / "notes.txt").write_text("no audio")
    main([checkpoint, str(tmp_path / "in"), str(tmp_path / "out"), "--quiet", "--automation", ".json"])
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert found == ["a.json", "a.wav", "deep/b.flac", "deep/b.json"]


def test_an_output_folder_in_the_input_holds_no_inputs_and_one_around_it_changes_none(checkpoint, tmp_path):
    takes = tmp_path / "takes"
    takes.mkdir()
    soundfile.write(takes / "a.wav", music(0.3).T, 44100)
    for _ in range(2):
        main([checkpoint, str(takes), str(takes / "out"), "--quiet", "--overwrite"])
    main([checkpoint, str(takes / "out"), str(takes / "out" / ".." / ".."), "--quiet"])
    with pytest.raises(UserError, match=r"takes/a\.wav is the input, .*: write to another file"):
        main([checkpoint, str(takes), str(takes), "--quiet", "--overwrite"])
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.wav"))
    assert found == ["a.wav", "takes/a.wav", "takes/out/a.wav"]


def test_inputs_of_one_name_do_not_overwrite_each_others_automation(checkpoint, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / "in" / name, music(0.1).T, 44100)
    with pytest.raises(UserError, match=r"a\.csv would be written more than once"):
        main([checkpoint, str(tmp_path / "in"), str(tmp_path / "out"), "--quiet", "--automation", ".csv"])
    assert not (tmp_path / "out").exists()


EXTRAS = {"automation": "c.csv", "preset": "p.py", "project": "r.rpp", "page": "i.html"}


def test_files_beside_the_output_may_be_in_folders_that_do_not_exist(checkpoint, tmp_path):
    soundfile.write(tmp_path / "a.wav", music(0.1).T, 44100)
    extras = [part for kind, name in EXTRAS.items() for part in (f"--{kind}", str(tmp_path / kind / name))]
    main([checkpoint, str(tmp_path / "a.wav"), str(tmp_path / "out" / "b.wav"), "--quiet", *extras])
    assert all((tmp_path / kind / name).is_file() for kind, name in EXTRAS.items())


@pytest.mark.parametrize("kind", [None, *EXTRAS])
def test_a_folder_that_cannot_be_made_is_one_error_and_nothing_is_rendered(checkpoint, tmp_path, kind):
    soundfile.write(tmp_path / "a.wav", music(0.1).T, 44100)
    (tmp_path / "file").write_text("no folder")
    output = tmp_path / "b.wav" if kind else tmp_path / "file" / "b.wav"
    extra = [f"--{kind}", str(tmp_path / "file" / EXTRAS[kind])] if kind else []
    with pytest.raises(UserError, match="file: File exists$"):
        main([checkpoint, str(tmp_path / "a.wav"), str(output), "--quiet", *extra])
    assert not output.exists()


def test_two_options_that_would_write_one_file_are_named(checkpoint, tmp_path):
    soundfile.write(tmp_path / "a.wav", music(0.1).T, 44100)
    with pytest.raises(UserError, match=r"--preset and --automation would both write .*b\.json: give one of them"):
        paths = [str(tmp_path / "a.wav"), str(tmp_path / "b.wav")]
        main([checkpoint, *paths, "--quiet", "--automation", ".json", "--preset", ".json"])


def test_one_bad_file_of_a_folder_leaves_the_others_rendered(checkpoint, tmp_path):
    (tmp_path / "in").mkdir()
    bad = music(0.3)
    bad[0, 4410] = np.nan
    for name, audio in (("a.wav", bad), ("b.wav", music(0.3))):
        soundfile.write(tmp_path / "in" / name, audio.T, 44100, "FLOAT")
    with pytest.raises(UserError, match=r"1 of 2 files .*a\.wav.* not a number, or infinite, at 0\.100 s"):
        main([checkpoint, str(tmp_path / "in"), str(tmp_path / "out"), "--quiet"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.wav"]


def test_a_folder_renders_what_it_can_and_reports_the_rest(checkpoint, tmp_path):
    folder = tmp_path / "in"
    (folder / "reel.wav").mkdir(parents=True)
    (folder / "__MACOSX").mkdir()
    wav = io.BytesIO()
    soundfile.write(wav, music(0.3).T, 44100, format="WAV")
    files = {
        "a.wav": b"",
        "b.wav": wav.getvalue(),
        "c.wav": b"RIFF",
        "d.wav": b"no audio at all" * 99,
        "._b.wav": b"junk",
        ".DS_Store": b"junk",
        "Thumbs.db": b"junk",
        "__MACOSX/b.wav": b"junk",
        "reel.wav/e.wav": wav.getvalue(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=r"^3 of 5 files could not be rendered: .*a\.wav.*c\.wav.*d\.wav") as error:
        main([checkpoint, str(folder), str(tmp_path / "out"), "--quiet", "--automation", ".csv"])
    assert "junk" not in str(error.value) and "MACOSX" not in str(error.value)
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*v")}
    assert written == {"b.wav", "b.csv", "reel.wav", "reel.wav/e.wav", "reel.wav/e.csv"}


def nan_weights(model):
    with torch.no_grad():
        model.task.encoder.head.weight[0, 0] = torch.nan


@pytest.mark.parametrize(
    "fault, level",
    [(nan_weights, 1.0), (lambda model: None, 1e30), (lambda model: None, 1e38)],
    ids=["weights that are not finite", "1e30", "1e38"],
)
@pytest.mark.parametrize("interpolation", ["linear", "hold", "published"])
def test_parameters_that_are_not_finite_are_an_error_as_in_training(fault, level, interpolation):
    model = Model(task(GAIN))
    fault(model)
    audio = np.float32(level) * np.clip(music(), -1, 1)
    for render in (
        lambda: model.render(audio, 44100, interpolation=interpolation),
        lambda: model.task.render(torch.from_numpy(audio), interpolation),
    ):
        with pytest.raises(UserError, match="^the audio: the parameters are not finite at 0.00 s"):
            render()


SIGNALS = pytest.mark.parametrize(
    "signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda signum: signum.name
)


@SIGNALS
def test_a_signal_ends_any_command_with_one_line_and_removes_what_is_not_complete(tmp_path, capsys, signum):
    before = signal.getsignal(signum)
    interrupted = pytest.raises(SystemExit, match=f"^{128 + signum}$")
    with interrupted, errors_in_one_line(), replacing(tmp_path / "table.csv") as partial:
        partial.write_text("half a line")
        signal.raise_signal(signum)
    name = "Ctrl-C" if signum == signal.SIGINT else signum.name
    assert capsys.readouterr().err == f"stopped by {name}\n"
    assert not list(tmp_path.iterdir()) and signal.getsignal(signum) == before


@pytest.mark.slow
@SIGNALS
def test_a_signal_ends_rendering_with_one_line_and_leaves_nothing_behind(checkpoint, tmp_path, signum):
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-m", "dfx.render", checkpoint, "-", str(tmp_path / "out.wav"), "--quiet"]
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    wav = io.BytesIO()
    soundfile.write(wav, np.tile(music(60.0), 20).T, 44100, format="WAV")
    (tmp_path / "in.wav").write_bytes(wav.getvalue())
    with (tmp_path / "in.wav").open("rb") as file:
        process = subprocess.Popen(command, stdin=file, stderr=subprocess.PIPE, env=environment, text=True)
        partial = tmp_path / "out.wav.partial"
        while process.poll() is None and not (partial.exists() and partial.stat().st_size > 1e6):
            time.sleep(0.05)
        process.send_signal(signum)
        _, errors = process.communicate(timeout=60)
    name = "Ctrl-C" if signum == signal.SIGINT else signum.name
    assert (process.returncode, errors) == (128 + signum, f"stopped by {name}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.wav", "tmp"]
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("bytes_written", [0, 30_000, 500_000])
def test_a_full_disk_is_one_line_and_leaves_nothing_behind(checkpoint, tmp_path, bytes_written):
    resource = pytest.importorskip("resource")
    soundfile.write(tmp_path / "in.wav", music(10.0).T, 44100)
    limit = (bytes_written, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    try:
        with pytest.raises(UserError, match="out.wav.*(cannot be written|File too large)"):
            main([checkpoint, str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), "--quiet"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]


@pytest.mark.parametrize(
    "module, needless",
    [
        ("dfx.render.__main__", ["torch", "soundfile", "scipy"]),
        ("dfx.render.command", ["pytorch_lightning", "torchvision", "torchaudio", "torchmetrics", "scipy.signal"]),
    ],
)
def test_rendering_imports_only_what_it_needs(module, needless):
    code = f"import sys, {module}; print([name for name in {needless} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_command_line_offers_every_bit_depth(checkpoint, tmp_path):
    soundfile.write(tmp_path / "in.wav", music(0.1).T, 44100)
    for depth in BIT_DEPTHS:
        main([checkpoint, str(tmp_path / "in.wav"), str(tmp_path / f"{depth}.wav"), "--quiet", "--bit-depth", depth])
    assert len(list(tmp_path.iterdir())) == 1 + len(BIT_DEPTHS)


def test_pipes_carry_wav(checkpoint, tmp_path):
    wav = io.BytesIO()
    soundfile.write(wav, music(0.5, channels=2).T, 44100, "PCM_24", format="WAV")
    given = bytearray(wav.getvalue())
    # The header of a piped file does not contain its length.
    given[4:8] = given[40:44] = b"\xff" * 4
    done = subprocess.run(
        [sys.executable, "-m", "dfx.render", checkpoint, "-", "-", "--quiet"], input=bytes(given), capture_output=True,
        cwd=Path(dfx.__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    output, sample_rate = soundfile.read(io.BytesIO(done.stdout))
    assert sample_rate == 44100 and soundfile.info(io.BytesIO(done.stdout)).subtype == "PCM_24"
    np.testing.assert_allclose(output, soundfile.read(io.BytesIO(wav.getvalue()))[0], atol=1e-6)


def test_an_error_is_one_line_and_leaves_nothing_behind(checkpoint, tmp_path):
    (tmp_path / "a.wav").write_bytes(b"no audio at all")
    done = subprocess.run(
        [sys.executable, "-m", "dfx.render", checkpoint, str(tmp_path / "a.wav"), str(tmp_path / "b.wav")],
        capture_output=True, text=True, cwd=Path(dfx.__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "a.wav is not an audio file" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


@pytest.fixture
def refused(checkpoint, tmp_path):
    """Renders one file, to an error."""

    def refuse(audio, *arguments, subtype="FLOAT", sample_rate=44100, output="b.wav"):
        soundfile.write(tmp_path / "a.wav", audio.T, sample_rate, subtype)
        before = sorted(tmp_path.iterdir())
        with pytest.raises(UserError) as error:
            main([checkpoint, str(tmp_path / "a.wav"), str(tmp_path / output), "--quiet", *arguments])
        assert sorted(tmp_path.iterdir()) == before
        return str(error.value)

    return refuse


def test_errors_name_the_reason(refused, tmp_path):
    assert "holds no audio" in refused(np.zeros((1, 0), np.float32))
    assert "not a number" in refused(np.full((1, 999), np.nan, np.float32))
    assert "FLAC cannot hold 9 channels" in refused(music(0.1, channels=9), output="b.flac")
    assert "MP3 cannot hold 5 channels" in refused(music(0.1, channels=5), output="b.mp3")
    assert "MP3 cannot hold 1 channels at 96000 Hz" in refused(music(0.1), output="b.mp3", sample_rate=96000)
    assert "'.xyz' is no audio format" in refused(music(0.1), output="b.xyz")
    assert "FLAC does not come in a bit depth of float" in refused(music(0.1), "--bit-depth", "float", output="b.flac")
    assert "is the input" in refused(music(0.1), output="a.wav")
    assert "written as .csv or .json" in refused(music(0.1), "--automation", str(tmp_path / "a.txt"))
    (tmp_path / "b.wav").write_text("kept")
    assert "--overwrite" in refused(music(0.1))
    assert (tmp_path / "b.wav").read_text() == "kept"


def test_a_file_that_is_cut_short_is_named_and_leaves_nothing_behind(checkpoint, tmp_path):
    soundfile.write(tmp_path / "a.flac", music(5.0).T, 44100)
    whole = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.flac (ends before its header says|cannot be decoded)"):
        main([checkpoint, str(tmp_path / "a.flac"), str(tmp_path / "b.flac"), "--quiet"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.flac"]


def test_a_rate_too_low_for_the_chain_is_named():
    filters = [EffectSpec("pedalboard:PeakFilter", train={"cutoff_frequency_hz": (100, 8000)})]
    with pytest.raises(UserError, match="trained at 22050 Hz and cannot run at the 11025 Hz of the audio: .*8000"):
        resting(filters).render(music(0.5, 11025), 11025)
    with pytest.raises(UserError, match="Hz of the audio, 2 channels at once: "):
        resting(filters).render(music(0.5, 11025, 2), 11025)


def test_metadata_that_the_output_lacks_is_told_once(checkpoint, tmp_path, capsys):
    path = tmp_path / "a.wav"
    soundfile.write(path, music(0.1).T, 44100)
    data = path.read_bytes() + b"iXML\x04\0\0\0<a/>"
    path.write_bytes(data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8:])
    main([checkpoint, str(path), str(tmp_path / "b.wav"), "--quiet"])
    assert capsys.readouterr().err.count(f"warning: {tmp_path / 'b.wav'} lacks metadata of {path}: iXML\n") == 1


def test_clipping_is_reported_and_an_existing_output_replaced_where_asked(checkpoint, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", 2 * np.sin(np.arange(44100) / 10), 44100, "FLOAT")
    main([checkpoint, str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), "--quiet", "--bit-depth", "16"])
    assert "peaks at +6.0 dBFS: 2" in capsys.readouterr().err
    main([checkpoint, str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), "--quiet", "--overwrite"])
    assert "and is kept, in float" in capsys.readouterr().err
    assert np.abs(soundfile.read(tmp_path / "b.wav")[0]).max() == pytest.approx(2, abs=1e-3)


# --- from Python ---------------------------------------------------------------------------------------


def test_three_lines_of_python_render_an_array(checkpoint):
    model = dfx.load(checkpoint)
    rendering = model.render(music()[0], 44100)
    assert rendering.audio.shape == (88200,) and rendering.audio.dtype == np.float32
    np.testing.assert_allclose(rendering.automation["gain_db"], 0, atol=1e-4)
    assert rendering.automation.units == {"gain.gain_db": "dB"}


@pytest.mark.parametrize(
    "audio, message",
    [(np.zeros((100, 2)), "transpose"), (np.zeros(0), "shape"), (np.zeros((1, 1, 9)), "shape"),
     (np.zeros(9, np.int16), "floating point"), (np.full(9, np.inf), "not a number, or infinite")],
)  # fmt: skip
def test_arrays_of_another_form_are_refused(audio, message):
    with pytest.raises(UserError, match=message):
        resting().render(audio, 44100)


@pytest.mark.parametrize("rate", [44100.0, 0, "44100", -1])
def test_sample_rates_that_are_no_whole_number_of_hz_are_refused(rate):
    with pytest.raises(UserError, match=f"^sample_rate is {rate!r}; it must be a whole number from"):
        resting().render(music(0.1), rate)
    with pytest.raises(UserError, match=f"^reference_sample_rate is {rate!r}; it must be a whole number from"):
        resting().render(music(0.1), 44100, reference=music(), reference_sample_rate=rate, refine=9)


def test_another_bit_depth_is_refused_with_those_that_there_are(tmp_path):
    soundfile.write(tmp_path / "a.wav", music(0.1).T, 44100)
    with pytest.raises(UserError, match="bit_depth is '8'; it must be any of '16', '24', '32', 'float'"):
        resting().render_file(str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), bit_depth="8")


@pytest.mark.parametrize("samples", [1, 15, 1000])
def test_the_shortest_recordings_are_rendered(samples):
    audio = music(1.0)[:, :samples]
    np.testing.assert_allclose(resting(LATE).render(audio, 44100).audio, audio, atol=1e-6)


def test_the_latency_of_effects_in_python_is_compensated():
    audio = music(0.5)
    model = resting([known("Late"), known("Gain", name="other")])
    np.testing.assert_allclose(model.render(audio, 44100).audio, audio, atol=1e-6)
    assert streaming.chain_at_rate(model.task, 44100, 1).sample_rate == 44100
