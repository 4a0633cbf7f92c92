import pytest
import torch

from dfx.encoder import Encoder, EncoderOptions, LogMel

DEFAULTS = [0.1, 0.5, 0.9, 1.0]


def test_log_mel_has_157_frames_of_128_bands_for_the_papers_context():
    assert LogMel(22050)(torch.randn(2, 40960)).shape == (2, 1, 157, 128)


def test_log_mel_is_the_log_power_of_the_spectrum_in_htk_bands():
    context = 0.1 * torch.randn(1, 1024)
    power = torch.fft.rfft(context[0] * torch.hann_window(1024)).abs().square()
    hz = torch.linspace(0, 11025, 513)
    mel = lambda f: 2595 * torch.log10(1 + torch.as_tensor(f) / 700)  # noqa: E731
    edges = 700 * (10 ** (torch.linspace(0, mel(11025.0), 130) / 2595) - 1)
    band = 60
    low, centre, high = edges[band : band + 3]
    triangle = torch.minimum((hz - low) / (centre - low), (high - hz) / (high - centre)).clamp(min=0)
    expected = torch.log10((triangle * power).sum() + 1e-6)
    torch.testing.assert_close(LogMel(22050)(context)[0, 0, 0, band], expected, atol=1e-3, rtol=1e-3)


def test_silence_is_minus_six():
    torch.testing.assert_close(LogMel(22050)(torch.zeros(1, 2048)), torch.full((1, 1, 5, 128), -6.0))


@pytest.mark.parametrize("outputs, trained", [(17, 2_245_073), (21, 2_250_197), (50, 2_287_346)])
def test_mobilenet_v2_has_as_many_parameters_as_the_papers(outputs, trained):
    encoder = Encoder([0.5] * outputs, 22050, EncoderOptions())
    assert sum(p.numel() for part in (encoder.backbone, encoder.head) for p in part.parameters()) == trained


@pytest.mark.parametrize("training", [True, False])
def test_it_starts_at_the_defaults_and_inside_where_they_lie_on_a_bound(training):
    encoder = Encoder(DEFAULTS, 22050, EncoderOptions(width=0.35)).train(training)
    parameters = encoder(0.1 * torch.randn(4, 1, 20480))
    torch.testing.assert_close(parameters, torch.tensor([0.1, 0.5, 0.9, 0.98]).expand(4, 4), atol=0.05, rtol=0)
    assert ((parameters > 0) & (parameters < 1)).all()


def test_it_need_not_start_at_the_defaults():
    encoder = Encoder(DEFAULTS, 22050, EncoderOptions(width=0.35, start_at_defaults=False)).eval()
    assert (encoder(torch.zeros(1, 1, 20480)) - 0.5).abs().max() < 0.2


def test_channels_are_averaged():
    encoder = Encoder(DEFAULTS, 22050, EncoderOptions(width=0.35)).eval()
    stereo = 0.1 * torch.randn(2, 2, 20480)
    torch.testing.assert_close(encoder(stereo), encoder(stereo.mean(dim=1, keepdim=True)))


def test_every_weight_gets_a_gradient():
    encoder = Encoder(DEFAULTS, 22050, EncoderOptions(width=0.35))
    encoder(0.1 * torch.randn(4, 1, 20480)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_a_context_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match="shorter than one window"):
        Encoder(DEFAULTS, 22050, EncoderOptions(width=0.35))(torch.zeros(1, 1, 1000))
