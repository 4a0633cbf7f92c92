import pytest
import torch

from dfx.alignment import align, find_delay
from tests.recordings import KINDS, delayed, planted


@pytest.mark.parametrize("delay", [-300, -37, -1, 0, 1, 110, 300])
@pytest.mark.parametrize("polarity", [1, -1])
def test_the_delay_is_positive_where_the_output_lags(delay, polarity):
    target = torch.randn(3, 1, 4096)
    found, sign = find_delay(polarity * delayed(target, delay), target, 300)
    assert found.tolist() == [delay] * 3 and sign.tolist() == [polarity] * 3


def test_delay_and_polarity_are_found_for_every_example():
    target = torch.randn(3, 2, 4096)
    output = torch.stack([delayed(target[0], 20), -delayed(target[1], -5), target[2]])
    delay, sign = find_delay(output, target, 100)
    assert delay.tolist() == [20, -5, 0] and sign.tolist() == [1, -1, 1]


def test_delays_beyond_the_largest_allowed_are_not_found():
    target = torch.randn(1, 1, 4096)
    delay, _ = find_delay(delayed(target, 200), target, 100)
    assert delay.abs() <= 100


def test_silence_and_single_samples_have_no_delay():
    silence = torch.zeros(2, 1, 512)
    for a, b in [(silence, silence), (silence, torch.randn(2, 1, 512)), (torch.ones(2, 1, 1), torch.ones(2, 1, 1))]:
        delay, sign = find_delay(a, b, 100)
        assert delay.tolist() == [0, 0] and sign.tolist() == [1, 1]


def test_aligned_signals_are_equal_and_silent_after_their_common_part():
    target = torch.randn(2, 1, 1000)
    output = torch.stack([delayed(target[0], 30), delayed(target[1], -7)])
    a, b, shared = align(output, target, torch.tensor([30, -7]))
    assert torch.equal(a, b) and shared.tolist() == [970, 993]
    assert not a[0, :, 970:].any() and not b[1, :, 993:].any()


def test_gradients_flow_to_the_samples_of_the_common_part():
    output = torch.randn(1, 1, 100, requires_grad=True)
    a, _, _ = align(output, torch.randn(1, 1, 100), torch.tensor([10]))
    a.sum().backward()
    assert output.grad[0, 0].tolist() == [0.0] * 10 + [1.0] * 90


@pytest.mark.parametrize("samples", [1024, 4096, 44100])
@pytest.mark.parametrize("kind", KINDS)
def test_planted_delays_and_polarities_are_found_in_99_of_100(kind, samples):
    output, target, planted_delay, planted_sign = planted(kind, samples)
    delay, sign = find_delay(output, target, 300)
    assert int(((delay == planted_delay) & (sign == planted_sign)).sum()) >= 99


def test_a_steady_tone_compared_with_itself_has_no_delay():
    tone = torch.sin(2 * torch.pi * torch.arange(2048) / 64)[None, None]
    delay, _ = find_delay(tone, tone, 300)
    assert delay == 0


def test_noise_after_a_click_is_no_evidence_for_a_delay():
    click = torch.zeros(1, 1, 1024)
    click[..., 10:20] = 1.0
    quiet = 1e-6 * torch.randn(1, 1, 1024)
    delay, sign = find_delay(click + quiet, click, 300)
    assert delay == 0 and sign == 1
