"""The figure of a rendering."""

import numpy as np
import pytest
import torch

from dfx.effects import Parameter
from dfx.figures import draw_rendering

PARAMETERS = [
    Parameter("gate.threshold_db", "dB", -80, 0, -50),
    Parameter("gate.release_ms", "ms", 1, 300, 50, scale="log"),
]


def draw(samples: int = 22050, frames: int = 22, channels: int = 1, **options):
    audio = 0.1 * torch.randn(channels, samples, generator=torch.Generator().manual_seed(0))
    automation = np.stack([np.linspace(-60, -40, frames), np.geomspace(10, 100, frames)], axis=1)
    return draw_rendering(audio, 0.5 * audio, automation, PARAMETERS, 22050, 1024, **options)


def test_every_parameter_has_a_panel_with_its_name_unit_scale_and_values():
    figure = draw()
    for axis, parameter, (low, high) in zip(figure.axes[3:], PARAMETERS, [(-60, -40), (10, 100)]):
        assert axis.get_title(loc="left") == parameter.name and axis.get_ylabel() == parameter.unit
        assert axis.get_yscale() == parameter.scale
        bottom, top = axis.get_ylim()
        assert parameter.low < bottom < low and high < top < parameter.high
        values = axis.patches[0].get_data().values
        assert values[0] == pytest.approx(low) and values[-1] == pytest.approx(high)


def test_a_frame_is_drawn_at_its_time():
    edges = draw().axes[3].patches[0].get_data().edges
    assert edges[1] == pytest.approx(1024 / 22050) and len(edges) == 23


def test_levels_are_in_db_and_an_attenuated_output_is_below_the_input_by_its_attenuation():
    input, output = (line.get_ydata() for line in draw().axes[0].lines)
    assert np.median(input) == pytest.approx(-20, abs=0.5)
    np.testing.assert_allclose(input - output, 20 * np.log10(2), atol=1e-3)


def test_spans_are_marked_and_time_is_common_to_all_panels():
    figure = draw(marked=[(0.2, 0.4)])
    panels = figure.axes[:5]
    assert len({axis.get_xlim() for axis in panels}) == 1 and panels[0].get_xlim() == (0, 1)
    assert [len(axis.patches) for axis in panels] == [1, 0, 0, 2, 2]


@pytest.mark.parametrize("samples, frames, channels", [(100, 1, 1), (22050, 22, 2), (22528, 23, 1)])
def test_it_can_be_saved_whatever_the_length_and_the_channels(tmp_path, samples, frames, channels):
    draw(samples, frames, channels).savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_constant_parameters_and_silence_are_drawn():
    silence = torch.zeros(1, 22050)
    figure = draw_rendering(silence, silence, np.full((22, 2), [-50.0, 50.0]), PARAMETERS, 22050, 1024)
    bottom, top = figure.axes[3].get_ylim()
    assert top - bottom == pytest.approx(0.12 * 80)


def test_automation_of_other_parameters_is_refused():
    audio = torch.zeros(1, 2048)
    with pytest.raises(ValueError, match="3 columns for 2 parameters"):
        draw_rendering(audio, audio, np.zeros((2, 3)), PARAMETERS, 22050, 1024)
