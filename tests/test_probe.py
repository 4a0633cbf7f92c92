import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dfx.effects import ChainSpec, Control, EffectError, EffectSpec, RenderError
from dfx.effects import pedalboard as pedalboard_host
from dfx.effects.chain import load_chain
from dfx.effects.pedalboard import EFFECTS, PedalboardEffect
from dfx.effects.probe import as_text, dead_parameters, main, probe, probe_signal
from dfx.errors import errors_in_one_line
from tests.known_effects import SAMPLE_RATE, Gain, Late, known

SECONDS = 0.5
TUBE_AMP = str(Path(__file__).parent.parent / "configs" / "tube_amp.yaml")


class DeadControl(Gain):
    """A gain with a control that is dead, and one that is live only while another one is above 0."""

    controls = (
        Control("gain", 1.0, 0.0, 2.0),
        Control("nothing", 0.5),
        Control("drive", 0.0, 0.0, 1.0),
        Control("bend", 0.5),
    )

    def process(self, audio: np.ndarray, **values: float) -> np.ndarray:
        bent = values["drive"] * values["bend"] * audio**3
        return (values["gain"] * audio + bent).astype(np.float32)


class UnreportedLatency(Late):
    """A latency of 50 samples that is not reported."""

    def __init__(self, sample_rate: int, channels: int) -> None:
        super().__init__(sample_rate, channels)
        self.latency_samples = 0

    def reset(self) -> None:
        self.pending = np.zeros((self.channels, 50), dtype=np.float32)


class ReportedLatency(Late):
    """A reported latency of 50 samples that does not exist."""

    latency_samples = 50

    def process(self, audio: np.ndarray, gain: float) -> np.ndarray:
        return audio * np.float32(gain)


class Random(Gain):
    """A gain that adds other noise in every instance and every pass."""

    random = np.random.default_rng(0)

    def process(self, audio: np.ndarray, gain: float) -> np.ndarray:
        return (gain * audio + self.random.uniform(-1e-3, 1e-3, audio.shape)).astype(np.float32)


class Remembering(Gain):
    """A gain that keeps its state through a reset."""

    def __init__(self, sample_rate: int, channels: int) -> None:
        self.loudest = 0.0

    def process(self, audio: np.ndarray, gain: float) -> np.ndarray:
        output = audio * np.float32(gain / (1 + self.loudest))
        self.loudest = max(self.loudest, float(np.abs(audio).max()))
        return output


class BlockByBlock(Gain):
    """A gain that fades in with every block."""

    def process(self, audio: np.ndarray, gain: float) -> np.ndarray:
        return audio * np.linspace(0, gain, audio.shape[1], dtype=np.float32)


class Gliding(Gain):
    """A gain that is smoothed linearly, at 20 ms for its whole range."""

    def __init__(self, sample_rate: int, channels: int) -> None:
        self.step = 2.0 / (0.020 * sample_rate)
        self.gain = None

    def process(self, audio: np.ndarray, gain: float) -> np.ndarray:
        start = gain if self.gain is None else self.gain
        change = np.arange(1, audio.shape[1] + 1) * self.step
        gains = start + np.sign(gain - start) * np.minimum(change, abs(gain - start))
        self.gain = gains[-1]
        return (audio * gains).astype(np.float32)

    def reset(self) -> None:
        self.gain = None


class Inverting(Gain):
    def process(self, audio: np.ndarray, gain: float) -> np.ndarray:
        return -audio * np.float32(gain)


class Silent(Gain):
    def process(self, audio: np.ndarray, gain: float) -> np.ndarray:
        return 0 * audio


class Short(Gain):
    def process(self, audio: np.ndarray, gain: float) -> np.ndarray:
        return audio[:, 1:]


def spec_of(effect: str, **options: object) -> ChainSpec:
    return ChainSpec([EffectSpec(f"python:tests.test_probe.{effect}", **options)], SAMPLE_RATE)


def surprises(spec: ChainSpec) -> str:
    return "\n".join(probe(spec, SECONDS).surprises)


# --- dead parameters ---------------------------------------------------------------------------------


def test_a_control_that_does_nothing_is_dead_and_one_that_waits_for_another_is_not():
    spec = spec_of("DeadControl")
    assert dead_parameters(spec) == ["dead_control.nothing"]
    report = probe(spec, SECONDS)
    assert [parameter.name for parameter in report.parameters if parameter.dead] == ["dead_control.nothing"]
    assert any(surprise.startswith("dead parameter dead_control.nothing:") for surprise in report.surprises)


def test_a_control_is_dead_where_a_fixed_value_disables_it():
    spec = spec_of("DeadControl", fixed={"drive": 0.0, "nothing": 0.0})
    assert dead_parameters(spec) == ["dead_control.bend"]
    spec = ChainSpec([EffectSpec("pedalboard:Compressor", fixed={"ratio": 1.0})], SAMPLE_RATE)
    assert dead_parameters(spec) == [parameter.name for parameter in spec.parameters]


@pytest.mark.parametrize("sample_rate, channels", [(22050, 1), (44100, 2)])
@pytest.mark.parametrize("name", [name for name in EFFECTS if name != "Invert"])
def test_no_parameter_of_pedalboard_is_called_dead(name, sample_rate, channels):
    assert dead_parameters(ChainSpec([EffectSpec(f"pedalboard:{name}")], sample_rate, channels)) == []


def test_passes_that_differ_by_themselves_make_no_dead_parameter_live():
    assert dead_parameters(spec_of("Random", train={"gain": (1.0, 1.0 + 1e-7)})) == ["random.gain"]
    assert dead_parameters(spec_of("Random")) == []


def test_a_parameter_that_makes_the_effect_fail_is_not_dead():
    assert dead_parameters(ChainSpec([known("Raising"), known("NotFinite")], SAMPLE_RATE)) == []


# --- reports -----------------------------------------------------------------------------------------


def test_an_effect_without_surprises_has_none():
    report = probe(ChainSpec([EffectSpec("pedalboard:Gain")], SAMPLE_RATE), SECONDS)
    assert report.surprises == []
    (gain,) = report.parameters
    assert (gain.reads_back, gain.glide_ms, gain.dead) == (True, 0.0, False)
    # A twentieth of 72 dB to both sides of 0 dB: 3.6 dB up and down, relative to the upper end.
    assert gain.default_db == pytest.approx(20 * np.log10(1 - 10 ** (-7.2 / 20)), abs=0.01)
    assert report.level_db == pytest.approx(0, abs=1e-6)
    assert report.frame_microseconds > 0


@pytest.mark.parametrize(
    "spec, expected",
    [
        (EffectSpec("pedalboard:BrickwallLimiter"), 110),
        (EffectSpec("pedalboard:BrickwallLimiter", fixed={"lookahead_ms": 20.0}), 441),
        (EffectSpec("pedalboard:Compressor"), 0),
        (known("Late"), 50),
    ],
    ids=["limiter", "limiter_20_ms", "compressor", "late"],
)
def test_the_latency_that_is_measured_is_the_one_reported(spec, expected):
    report = probe(ChainSpec([spec], SAMPLE_RATE), SECONDS)
    assert (report.latency_reported, report.latency_measured) == (expected, expected)
    assert "latency" not in "\n".join(report.surprises)


@pytest.mark.parametrize(
    "effect, surprise",
    [
        ("UnreportedLatency", "latency reported 0 but measured 50 samples"),
        ("ReportedLatency", "latency reported 50 but measured 0 samples"),
        ("Random", "not deterministic: two new instances differ by 0.00"),
        ("Remembering", "restart not exact: the next pass differs from a new instance by 0."),
        ("Inverting", "output inverted"),
        ("Silent", "output silent at the defaults"),
        ("Gliding", "gliding.gain glides for about 2"),
    ],
)
def test_every_deviation_is_reported_as_a_sentence(effect, surprise):
    assert surprise in surprises(spec_of(effect))


def test_frames_that_differ_from_the_whole_are_reported_as_a_sentence():
    found = surprises(spec_of("BlockByBlock"))
    assert "frames of 1024 differ from the whole by 0." in found
    assert "frames of 1000 differ from the whole by 0." in found


@pytest.mark.parametrize("effect, why", [("NotFinite", "output not finite"), ("Raising", "too loud")])
def test_an_end_of_a_range_at_which_the_effect_fails_is_named(effect, why):
    found = surprises(ChainSpec([known(effect)], SAMPLE_RATE))
    assert why in found
    assert f"at the high end of {'not_finite' if effect == 'NotFinite' else 'raising'}.gain" in found


def test_an_effect_that_cannot_be_rendered_at_its_defaults_is_an_error():
    with pytest.raises(RenderError, match=r"shape \(1, 1024\) came back with shape \(1, 1023\)"):
        probe(spec_of("Short"))


def test_a_glide_is_measured_in_effects_with_filters_and_envelopes():
    # In a ladder filter the cutoff is smoothed over 50 ms, as its host declares, and the drive jumps.
    report = probe(ChainSpec([EffectSpec("pedalboard:LadderFilter")], SAMPLE_RATE), SECONDS)
    glides = {parameter.name.split(".")[1]: parameter.glide_ms for parameter in report.parameters}
    assert glides["cutoff_hz"] == pytest.approx(50, rel=0.25)
    assert glides["drive"] == 0
    compressor = probe(ChainSpec([EffectSpec("pedalboard:Compressor")], SAMPLE_RATE), SECONDS)
    assert {parameter.glide_ms for parameter in compressor.parameters} == {0.0}


def test_a_value_that_does_not_reach_the_effect_is_named(monkeypatch):
    spec = ChainSpec([EffectSpec("pedalboard:Gain")], SAMPLE_RATE)
    monkeypatch.setattr(PedalboardEffect, "read_values", lambda effect: np.array([3.0]))
    assert "gain.gain_db was set to -14.4 but reads back 3" in surprises(spec)


def test_the_probe_signal_has_all_frequencies_all_levels_and_silence():
    audio = probe_signal(SAMPLE_RATE, channels=2)
    assert audio.shape == (2, 2 * SAMPLE_RATE) and audio.dtype == np.float32
    assert np.abs(audio).max() == pytest.approx(1, abs=0.01)
    assert not np.array_equal(audio[0], audio[1])
    assert not audio[:, -SAMPLE_RATE // 10 :].any()
    power = np.abs(np.fft.rfft(audio[0])) ** 2
    hz = np.fft.rfftfreq(audio.shape[1], 1 / SAMPLE_RATE)
    edges = 14 * 2.0 ** np.arange(0, 9.6, 0.5)
    octaves = [power[(low <= hz) & (hz < high)].sum() for low, high in zip(edges, edges[1:])]
    assert min(octaves) > 1e-2 * max(octaves)


# --- the command line --------------------------------------------------------------------------------


def test_the_table_names_every_parameter_and_every_surprise(capsys):
    main([TUBE_AMP, "--seconds", "0.3"])
    printed = capsys.readouterr().out
    for parameter in load_chain(TUBE_AMP).parameters:
        assert parameter.name in printed
    assert "at 22050 Hz, channels: 1" in printed
    assert "no surprises" in printed
    report = probe(spec_of("DeadControl"), SECONDS)
    assert f"! {report.surprises[0]}" in as_text(report)


def test_json_is_one_object_of_the_same():
    code = "from dfx.effects.probe import main; import sys; main(); sys.exit('torch' in sys.modules)"
    options = ["pedalboard:Phaser", "--json", "--seconds", "0.3", "--channels", "2"]
    command = [sys.executable, "-c", code, *options]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert (report["sample_rate"], report["channels"], report["effects"]) == (44100, 2, ["pedalboard:Phaser"])
    assert {"name", "unit", "range_db", "glide_ms", "reads_back"} <= report["parameters"][0].keys()


@pytest.fixture
def installed(monkeypatch):
    """Let one plugin of each format be installed."""
    monkeypatch.setattr("dfx.effects.lv2.list_plugins", lambda: {"urn:a": "An Effect\x1b"})
    paths = {"Comp": "/plugins/Comp.vst3", "Unit": "/plugins/Unit.component"}
    monkeypatch.setattr("dfx.effects.vst3.installed", lambda: paths)


def test_the_list_names_the_effects_of_every_host_as_a_config_does(installed, capsys):
    main(["--list", "--json"])
    effects = json.loads(capsys.readouterr().out)
    assert effects["vst3:Comp"] == "/plugins/Comp.vst3" and effects["au:Unit"] == "/plugins/Unit.component"
    assert effects["lv2:urn:a"].startswith("An Effect")
    built_in = [effect for effect in effects if effect.startswith("pedalboard:")]
    assert {"pedalboard:Compressor", "pedalboard:MultibandGate"} <= {*built_in} and len(effects) == len(built_in) + 3
    for effect in built_in:
        pedalboard_host.controls(effect.partition(":")[2], 44100, 1)
    main(["--list"])
    printed = capsys.readouterr().out
    assert all(effect in printed for effect in effects) and "\x1b" not in printed
    assert f"pedalboard {len(built_in)}, lv2 1, vst3 1, au 1" in printed


def test_the_list_goes_without_lv2_where_liblilv_is_missing(installed, capsys, monkeypatch):
    def refuse():
        raise EffectError("liblilv is not installed")

    monkeypatch.setattr("dfx.effects.lv2.list_plugins", refuse)
    main(["--list"])
    printed = capsys.readouterr()
    assert "vst3:Comp" in printed.out and printed.err == "LV2 plugins are not listed: liblilv is not installed\n"


@pytest.mark.parametrize(
    "spec, message",
    [
        ("pedalboard:Compresor", "error: pedalboard has no effect 'Compresor' (did you mean 'Compressor'?)"),
        ("Compressor", "error: 'Compressor' names no host; write for instance 'pedalboard:Compressor'"),
        ("no/such/file.yaml", "error: no/such/file.yaml cannot be read: No such file or directory"),
        ("python:tests.test_probe.Silent2", "error: python:tests.test_probe.Silent2 cannot be imported"),
        ("pedalboard:Gain --seconds 0.1", "error: a probe signal of 0.1 s is too short: give it 0.2 s or more"),
    ],
)
def test_an_error_of_the_user_is_one_line_and_status_1(spec, message):
    with pytest.raises(SystemExit) as ended, errors_in_one_line():
        main(spec.split())
    assert str(ended.value.code).startswith(message)
    assert "\n" not in str(ended.value.code)


def test_a_config_is_read_with_its_ranges_fixed_values_and_numbers(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        """
        model:
          init_args:
            sample_rate: 32000
            effects:
              - effect: pedalboard:Compressor
                name: first
                train:
                  threshold_db: {range: [-3e1, -1e+0], default: -2e1}
                  ratio:
                fixed: {attack_ms: 1e-1}
        """
    )
    spec = load_chain(str(config))
    threshold, ratio = spec.parameters
    assert (threshold.low, threshold.high, threshold.default) == (-30, -1, -20)
    assert (threshold.name, ratio.name) == ("first.threshold_db", "first.ratio")
    assert spec.recipes[0].fixed == {"attack_ms": 0.1}
    assert (spec.sample_rate, spec.channels) == (32000, 1)
    assert load_chain(str(config), 48000, 2).sample_rate == 48000


@pytest.mark.parametrize(
    "text, message",
    [
        ("model: {}", "has no 'init_args': effects are listed under model.init_args.effects"),
        (
            "model: {init_args: {effects: [{efect: pedalboard:Gain}]}}",
            "an effect is a mapping with `effect: host:name`",
        ),
        ("a: [", "is not the config of a chain"),
        ("just words", "is not the config of a chain"),
        ("model: {init_args: {effects: [{effect: 'pedalboard:Gain', train: [gain_db]}]}}", "`train` is a mapping"),
    ],
)
def test_a_file_that_is_not_the_config_of_a_chain_is_refused(text, message, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(text)
    with pytest.raises(EffectError, match=message):
        load_chain(str(config))
