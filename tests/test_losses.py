import copy

import pytest
import torch
from torch import nn

from dfx.alignment import align
from dfx.errors import UserError
from dfx.losses import LossOptions, loss_against, make_loss
from tests.recordings import KINDS, delayed, planted

PAPER = LossOptions(kind="paper")


def music(batch: int = 4, samples: int = 8192) -> torch.Tensor:
    return 0.1 * torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(0))


def differentiated(compare, output, target):
    """Return the value and the gradient with respect to the output."""
    output = output.clone().requires_grad_()
    value = compare(output, target)
    return value.detach(), torch.autograd.grad(value, output)[0]


@pytest.mark.parametrize("options", [PAPER, LossOptions()])
def test_equal_signals_have_no_loss_and_others_have(options):
    loss = make_loss(options)
    assert loss(music(), music()) == pytest.approx(0, abs=1e-6)
    assert loss(0.5 * music(), music()) > 0.1


@pytest.mark.parametrize("delay", [-300, -20, 0, 20, 300])
def test_the_papers_loss_ignores_a_delay(delay):
    loss = make_loss(PAPER)
    apart = loss(0.5 * music(), music())
    assert loss(delayed(music(), delay), music()) == pytest.approx(0, abs=1e-3)
    assert loss(delayed(0.5 * music(), delay), music()) == pytest.approx(float(apart), rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_papers_loss_of_a_planted_delay_is_that_of_the_common_part(kind):
    output, target, delay, _ = planted(kind, 1024)
    loss = make_loss(PAPER)
    shifted, shared, lengths = align(output, target, delay)
    assert loss(output, target) == pytest.approx(0, abs=1e-4)
    for i, length in enumerate(lengths[:20].tolist()):
        alone = loss(0.3 * shifted[i : i + 1, :, :length], shared[i : i + 1, :, :length])
        assert loss(-0.3 * output[i : i + 1], target[i : i + 1]) == pytest.approx(float(alone), rel=1e-3)


@pytest.mark.parametrize("options", [{"max_delay_samples": 0}, {"alignment": "none"}])
def test_a_delay_counts_where_it_is_not_compensated(options):
    loss = make_loss(LossOptions(kind="paper", **options))
    assert loss(delayed(music(), 20), music()) > 0.5


@pytest.mark.parametrize("delay", [-20, -300, 20, 300])
def test_reversed_a_late_output_stays_late_and_an_early_one_becomes_twice_as_early(delay):
    output, target = delayed(music(), delay), music()
    found = make_loss(LossOptions(kind="paper", alignment="reversed"))(output, target)
    if delay > 0:
        as_is, expected = (output, target), LossOptions(kind="paper", alignment="none")
    else:
        as_is, expected = (output[..., -delay:], target[..., :delay]), LossOptions(kind="paper", alignment="none")
    assert found > 0.5
    assert found == pytest.approx(float(make_loss(expected)(*as_is)), rel=0.1)


def test_polarity_batch_chooses_one_polarity_for_all_examples():
    loss = make_loss(LossOptions(kind="paper", polarity="batch"))
    mixed = music() * torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None, None]
    assert loss(-music(), music()) == pytest.approx(0, abs=1e-6)
    assert loss(mixed, music()) > 0.1


def test_polarity_is_chosen_example_by_example():
    mixed = music() * torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None, None]
    assert make_loss(PAPER)(mixed, music()) == pytest.approx(0, abs=1e-6)


def test_the_papers_terms_have_the_papers_weights():
    target = music(1, 1024)
    output = 0.5 * target
    spectrum = torch.fft.rfft(target[0, 0] * torch.hann_window(1024)).abs()
    time = 0.5 * target.abs().mean()
    magnitude = (0.5 * spectrum).square().mean()
    log_magnitude = ((spectrum + 1e-5).log() - (0.5 * spectrum + 1e-5).log()).square().mean()
    assert make_loss(PAPER)(output, target) == pytest.approx(float(10 * time + magnitude + log_magnitude), rel=1e-3)


@pytest.mark.parametrize(
    "batch, channels, samples, fft_sizes",
    [
        (4, 1, 8192, [1024, 2048, 512]),
        (1, 2, 40000, [1024, 2048, 512]),
        (2, 1, 1025, [2048]),
        (30, 2, 1000, [64, 128, 256]),
        (3, 1, 33, [64]),
    ],
)
def test_mrstft_is_that_of_auraloss_in_value_and_gradient(batch, channels, samples, fft_sizes):
    loss = make_loss(LossOptions(fft_sizes=fft_sizes))
    signals = 0.1 * torch.randn(2, batch, channels, samples, generator=torch.Generator().manual_seed(0))
    signals[1, 0] = 0
    signals[0, -1, :, samples // 2 :] = 0
    exact = copy.deepcopy(loss.auraloss)
    for resolution in exact.stft_losses:
        resolution.window = torch.hann_window(resolution.win_length, dtype=torch.float64)
    value, gradient = differentiated(exact, *signals.double())
    found, errors = [], []
    for compare in (loss, loss.auraloss):
        found.append(differentiated(compare, *signals))
        errors.append((found[-1][1] - gradient).norm() / gradient.norm())
    assert found[0][0] == pytest.approx(float(value), rel=1e-6)
    # Rounding decides on the sign of ln X - ln Y in single bins, here as there.
    assert errors[0] < 1.5 * errors[1] + 5e-5
    torch.testing.assert_close(differentiated(loss, *signals.double()), (value, gradient))


@pytest.mark.parametrize("output", ["music", "silence"])
@pytest.mark.parametrize("target", ["music", "silence"])
def test_mrstft_of_equal_and_of_silent_signals_is_that_of_auraloss(output, target):
    loss = make_loss(LossOptions())
    signals = {"music": music(), "silence": torch.zeros_like(music())}
    ours, theirs = (differentiated(compare, signals[output], signals[target]) for compare in (loss, loss.auraloss))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_mrstft_without_gradients_is_the_same_to_the_last_bit():
    loss = make_loss(LossOptions())
    output, target = music(), music().roll(1, 0)
    assert loss(output, target) == differentiated(loss, output, target)[0]


@pytest.mark.parametrize("options", [LossOptions(), PAPER])
@pytest.mark.parametrize("batch, channels, samples", [(4, 1, 8192), (1, 2, 40000), (3, 1, 900)])
def test_a_target_that_is_analysed_once_gives_each_output_the_same_loss_to_the_last_bit(
    options, batch, channels, samples
):
    loss = make_loss(options)
    target, *outputs = music(4 * batch * channels, samples).view(4, batch, channels, samples)
    outputs.append(torch.zeros_like(target))
    compare = loss_against(loss, target)
    padded = [nn.functional.pad(audio, (0, max(0, loss.least_samples - samples))) for audio in (target, *outputs)]
    assert [compare(output) for output in outputs] == [float(loss(output, padded[0])) for output in padded[1:]]


def test_mrstft_of_bfloat16_is_computed_in_float32():
    loss = make_loss(LossOptions())
    output, target = 0.5 * music().bfloat16(), music()
    with torch.autocast("cpu", torch.bfloat16):
        value, gradient = differentiated(loss, output, target)
        in_float32 = differentiated(loss, output.float(), target)
    assert value == in_float32[0] and gradient.dtype == torch.bfloat16
    torch.testing.assert_close(in_float32, differentiated(loss, output.float(), target), rtol=0, atol=0)


def test_a_target_that_requires_a_gradient_gets_one():
    target = (0.5 * music()).requires_grad_()
    make_loss(LossOptions())(music(), target).backward()
    assert target.grad.abs().max() > 0


@pytest.mark.parametrize("options", [PAPER, LossOptions()])
def test_gradients_are_finite_also_for_silence(options):
    for target in (music(), torch.zeros_like(music())):
        output = torch.zeros_like(target).requires_grad_()
        make_loss(options)(output, target).backward()
        assert output.grad.isfinite().all()


def test_frames_too_short_for_the_transform_are_refused():
    loss = make_loss(LossOptions())
    with pytest.raises(UserError, match="FFT of 2048"):
        loss(music(1, 1024), music(1, 1024))
    assert make_loss(LossOptions(fft_sizes=[1024, 512, 256]))(music(1, 1024), music(1, 1024)) == 0
    with pytest.raises(UserError, match="1000"):
        make_loss(LossOptions(fft_sizes=[1000]))
