import copy
import math

import numpy as np
import pytest
import scipy
import torch
from torch import nn
from torch.nn import functional

from dfx.audio.loudness import lufs
from dfx.encoder import BatchNorm, Conv, Dropout, Encoder, EncoderOptions, Inception, LogMel, _SameMaxPool, _SamePadding
from dfx.errors import UserError

DEFAULTS = [0.1, 0.5, 0.9, 1.0]
BACKBONES = ["inception", "mobilenet_v2", "conv"]


def encoder(backbone="mobilenet_v2", context_samples=20480, **options) -> Encoder:
    width = {"inception": 1.0, "mobilenet_v2": 0.35, "conv": 0.5}[backbone]
    return Encoder(DEFAULTS, 22050, EncoderOptions(backbone, width, **options), context_samples)


def keras_count(*parts: nn.Module) -> int:
    """As Keras counts: the moving mean and variance of a normalization are (untrained) parameters."""
    trained = sum(p.numel() for part in parts for p in part.parameters())
    return trained + sum(
        b.numel() for part in parts for name, b in part.named_buffers() if name.split(".")[-1].startswith("running_")
    )


def test_log_mel_has_157_frames_of_128_bands_for_the_papers_context():
    assert LogMel(22050)(torch.randn(2, 40960)).shape == (2, 1, 157, 128)


def test_log_mel_is_the_log_power_of_the_spectrum_in_htk_bands():
    context = 0.1 * torch.randn(1, 1024)
    power = torch.fft.rfft(context[0] * torch.hann_window(1024)).abs().square()
    hz = torch.linspace(0, 11025, 513)

    def mel(f):
        return 2595 * torch.log10(1 + torch.as_tensor(f) / 700)

    edges = 700 * (10 ** (torch.linspace(0, mel(11025.0), 130) / 2595) - 1)
    band = 60
    low, centre, high = edges[band : band + 3]
    triangle = torch.minimum((hz - low) / (centre - low), (high - hz) / (high - centre)).clamp(min=0)
    expected = torch.log10((triangle * power).sum() + 1e-6)
    torch.testing.assert_close(LogMel(22050)(context)[0, 0, 0, band], expected, atol=1e-3, rtol=1e-3)


def test_log_mel_is_torchaudios():
    log_mel, context = LogMel(22050).double(), 0.1 * torch.randn(2, 20480, dtype=torch.float64)
    expected = torch.log10(log_mel.mel(context) + 1e-6).transpose(1, 2)[:, None]
    torch.testing.assert_close(log_mel(context), expected)


def test_batch_statistics_are_as_exact_as_float32_allows():
    maps = 1 + torch.randn(4, 8, 128, 128, generator=torch.Generator().manual_seed(0))
    norm, reference = BatchNorm(8), nn.BatchNorm2d(8).double()
    norm(maps.to(memory_format=torch.channels_last))
    reference(maps.double())
    for name, statistics in reference.state_dict().items():
        torch.testing.assert_close(norm.state_dict()[name].to(statistics), statistics, rtol=1e-6, atol=0)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_channels_last_changes_nothing_but_the_memory_layout(backbone):
    contexts = torch.randn(2, 1, 20480, dtype=torch.float64)
    last = encoder(backbone, start_at_defaults=False).double()
    first = copy.deepcopy(last).to(memory_format=torch.contiguous_format)
    outputs, gradients, maps = [], [], {last: [], first: []}
    for network in (last, first):
        for module in network.backbone.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda *call, network=network: maps[network].append(call[-1]))
        outputs.append(network(contexts))
        outputs[-1].square().sum().backward()
        gradients.append([weight.grad for weight in network.parameters()])
    layouts = [
        [m.is_contiguous(memory_format=torch.channels_last) for m in maps[network] if m[0, 0].numel() > 1]
        for network in (last, first)
    ]
    assert all(layouts[0]) and not any(layouts[1])
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_inception_pools_before_its_first_relu_with_the_same_maps_and_gradients():
    network, log_mel = Inception().network, torch.randn(2, 1, 157, 128)
    convolution = network[0][0]
    expected = functional.max_pool2d(functional.relu(convolution(log_mel)), 2)
    weights = torch.randn_like(expected)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), convolution.weight)
    pooled = network[:2](log_mel)
    (gradient,) = torch.autograd.grad((pooled * weights).sum(), convolution.weight)
    assert torch.equal(pooled, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("height, width", [(78, 64), (39, 32), (5, 4), (3, 1)])
def test_a_max_pooling_with_a_stride_of_two_begins_where_keras_lets_it(height, width):
    maps = torch.randn(2, 3, height, width)
    padded = functional.pad(maps, (width % 2, 1, height % 2, 1), value=-torch.inf)
    assert torch.equal(_SameMaxPool()(maps), functional.max_pool2d(padded, 3, 2))


def test_silence_is_minus_six():
    torch.testing.assert_close(LogMel(22050)(torch.zeros(1, 2048)), torch.full((1, 1, 5, 128), -6.0))


@pytest.mark.parametrize(
    "outputs, trained, counted", [(17, 2_245_073, 2_279_185), (21, 2_250_197, 2_284_309), (50, 2_287_346, 2_321_458)]
)
def test_mobilenet_v2_has_as_many_parameters_as_the_papers(outputs, trained, counted):
    network = Encoder([0.5] * outputs, 22050, EncoderOptions())
    assert sum(p.numel() for part in (network.backbone, network.head) for p in part.parameters()) == trained
    # The scalar normalization of the input is not part of Keras' network, and has 4.
    assert keras_count(network.backbone, network.head) == counted
    assert keras_count(network.input_norm) == 4


@pytest.mark.parametrize("outputs, counted", [(17, 2_805_909), (21, 2_806_937), (50, 2_814_390)])
def test_inception_has_as_many_parameters_as_the_papers(outputs, counted):
    # Here, Keras' network has the normalization of the input inside.
    network = Encoder([0.5] * outputs, 22050, EncoderOptions("inception"))
    assert keras_count(network) == counted


def test_inception_halves_its_map_as_keras_does():
    sizes = []
    network = Inception().eval()
    for layer in network.network:
        layer.register_forward_hook(lambda layer, input, output: sizes.append(tuple(output.shape[1:])))
    embedding = network(torch.randn(2, 1, 157, 128))
    assert sizes[1] == (64, 78, 64)
    assert sizes[2:14] == [
        (208, 39, 32), (256, 39, 32), (400, 20, 16), (256, 20, 16), (400, 10, 8), (256, 10, 8),
        (400, 5, 4), (256, 5, 4), (400, 3, 2), (256, 3, 2), (400, 2, 1), (256, 2, 1),
    ]  # fmt: skip
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
    # Biases at 0 and He's uniform weights: the bound is the root of 6 over the fan-in.
    convolution = network.network[0][0]
    assert not convolution.bias.any()
    assert convolution.weight.abs().max().item() == pytest.approx((6 / 25) ** 0.5, rel=0.02)


@pytest.mark.parametrize("length, first", [(7, 0), (8, 1)])
def test_a_stride_of_two_begins_where_keras_lets_it(length, first):
    # tf.nn.conv2d pads one more at the end: of 8, a kernel of 3 is centred on 1, 3, 5 and 7; of 7, on 0, 2, 4, 6.
    from dfx.encoder import _conv

    layer = _conv(1, 1, 3, stride=2)
    with torch.no_grad():
        layer[1].weight.zero_()[0, 0, 1, 1] = 1
        layer[1].bias.zero_()
    n = torch.arange(float(length)).expand(length, length)[None, None]
    assert layer(n)[0, 0, 0].tolist() == list(range(first, length, 2))


# --- conventions of Keras ----------------------------------------------------------------------------


def keras(backbone: str, outputs: int = 21) -> Encoder:
    options = EncoderOptions(backbone, start_at_defaults=False, conventions="keras")
    return Encoder([0.5] * outputs, 22050, options)


def glorot_bound(shape: tuple[int, ...]) -> float:
    """The largest weight of Keras' glorot_uniform, for a kernel in the layout of Keras: (..., inputs, outputs)."""
    field = math.prod(shape[:-2])
    return (6 / (field * (shape[-2] + shape[-1]))) ** 0.5


def keras_shape(weight: torch.Tensor) -> tuple[int, ...]:
    # A depthwise kernel is (height, width, channels, 1) in Keras, and (channels, 1, height, width) here.
    outputs, inputs, *field = weight.shape
    return (*field, outputs, inputs) if inputs == 1 and outputs > 1 else (*field, inputs, outputs)


@pytest.mark.parametrize("backbone, counted", [("inception", 2_806_937), ("mobilenet_v2", 2_284_309)])
def test_conventions_of_keras_change_no_number_of_parameters(backbone, counted):
    network = keras(backbone)
    parts = [network.backbone, network.head] + ([network.input_norm] if backbone == "inception" else [])
    assert keras_count(*parts) == counted


@pytest.mark.parametrize("backbone", ["inception", "mobilenet_v2"])
def test_moving_averages_and_epsilons_are_those_of_keras(backbone):
    network = keras(backbone)
    norms = {name: m for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    # Keras' momentum is the weight of the former average.
    assert norms.pop("input_norm").momentum == pytest.approx(1 - 0.99)
    assert len(norms) == (52 if backbone == "mobilenet_v2" else 0)
    assert all(norm.momentum == pytest.approx(1 - 0.999) for norm in norms.values())
    assert {norm.eps for norm in (*norms.values(), network.input_norm)} == {1e-3}


def test_mobilenet_v2_and_the_heads_start_with_the_weights_of_keras():
    torch.manual_seed(0)
    network = keras("mobilenet_v2")
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for weight in [*(layer.weight for layer in layers), keras("inception").head.weight]:
        bound = glorot_bound(keras_shape(weight))
        assert 0.8 * bound < weight.abs().max() <= bound
    assert not network.head.bias.any() and not keras("inception").head.bias.any()


def test_inception_has_the_weights_of_keras_with_either_conventions():
    for options in (EncoderOptions("inception"), EncoderOptions("inception", conventions="keras")):
        convolution = Encoder(DEFAULTS, 22050, options).backbone.network[0][0]
        assert convolution.weight.abs().max().item() == pytest.approx((6 / 25) ** 0.5, rel=0.02)


def test_strided_convolutions_of_mobilenet_v2_begin_where_keras_lets_them():
    network = keras("mobilenet_v2").eval()
    strided, sizes = [], []
    for module in network.backbone.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.register_forward_hook(lambda module, inputs, _: strided.append(tuple(inputs[0].shape[2:])))
        if isinstance(module, _SamePadding):
            module.register_forward_hook(lambda module, inputs, _: sizes.append(tuple(inputs[0].shape[2:])))
    network(torch.zeros(1, 1, 40960))
    assert sizes == [(157, 128), (79, 64), (40, 32), (20, 16), (10, 8)]
    # An even length is padded at its end only, an odd one at both.
    assert strided == [tuple(n + 1 + n % 2 for n in size) for size in sizes]


def test_conv_has_no_conventions_of_keras():
    with pytest.raises(UserError, match="conv is not a network of Keras"):
        EncoderOptions("conv", conventions="keras")


@pytest.mark.parametrize("width, low, high", [(0.4, 40_000, 70_000), (1.0, 250_000, 300_000)])
def test_conv_is_small(width, low, high):
    assert low < sum(p.numel() for p in Conv(width, 40960, 1024).parameters()) < high


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(
    "context_samples, frame_samples",
    # An even and an odd number of mel frames apart, contexts that end between mel frames, and short ones.
    [(20480, 1024), (20480, 2048), (20479, 768), (4096, 256), (1280, 1024), (8192, 22528)],
)
def test_frames_encoded_in_one_pass_equal_frames_encoded_alone(backbone, context_samples, frame_samples):
    torch.manual_seed(0)
    width = 1.0 if backbone == "inception" else 0.35
    network = Encoder(
        DEFAULTS, 22050, EncoderOptions(backbone, width, start_at_defaults=False), context_samples, frame_samples
    )
    samples = context_samples + 4 * frame_samples
    audio = torch.randn(2, 1, samples) * torch.logspace(-3, 0, samples)
    # Normalization with the statistics of the audio, so that the output depends on it.
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network(audio)
    network.eval()
    together = network(audio)
    assert together.shape == (2, 5, len(DEFAULTS))
    for frame in range(5):
        alone = network(audio[..., frame * frame_samples :][..., :context_samples])
        torch.testing.assert_close(together[:, frame : frame + 1], alone, atol=1e-4, rtol=0)
    assert (together[:, 0] - together[:, -1]).abs().max() > 1e-3


def test_conv_refuses_frames_that_begin_between_mel_frames():
    with pytest.raises(UserError, match="multiple of them, and not 1000"):
        Encoder(DEFAULTS, 22050, EncoderOptions("conv"), 20480, 1000)


def test_inception_has_one_size():
    with pytest.raises(UserError, match="one size"):
        EncoderOptions("inception", width=0.5)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("training", [True, False])
def test_the_encoder_starts_at_the_defaults_and_inside_those_at_a_bound(backbone, training):
    parameters = encoder(backbone).train(training)(0.1 * torch.randn(4, 1, 20480))
    expected = torch.tensor([0.1, 0.5, 0.9, 0.98]).expand(4, 1, 4)
    torch.testing.assert_close(parameters, expected, atol=0.06, rtol=0)
    assert ((parameters > 0) & (parameters < 1)).all()


def test_the_encoder_can_start_away_from_the_defaults():
    assert (encoder(start_at_defaults=False).eval()(torch.zeros(1, 1, 20480)) - 0.5).abs().max() < 0.2


def test_dropout_draws_a_mask_for_every_step_and_keeps_the_mean_of_the_features():
    dropout = Dropout(0.25)
    features = torch.ones(50, 3, 400)
    first, second = dropout(features), dropout(features)
    assert first.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert first.mean() == pytest.approx(1.0, abs=0.02)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first[:, 0], first[:, 2])


def test_dropout_is_off_in_evaluation_and_adds_no_state_when_unused():
    context = 0.1 * torch.randn(3, 1, 20480)
    dropping = encoder("conv", dropout=0.5).eval()
    assert torch.equal(dropping(context), dropping(context))
    torch.testing.assert_close(dropping.dropout(context), context)
    assert "dropout.seed" not in encoder("conv").state_dict()


@pytest.mark.parametrize("probability", [-0.1, 1.0, float("nan")])
def test_a_dropout_probability_out_of_range_is_refused(probability):
    with pytest.raises(UserError, match="dropout is .*; it must be at least 0 and below 1"):
        EncoderOptions(dropout=probability)


def test_channels_are_averaged():
    network = encoder().eval()
    stereo = 0.1 * torch.randn(2, 2, 20480)
    torch.testing.assert_close(network(stereo), network(stereo.mean(dim=1, keepdim=True)))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_weight_gets_a_gradient(backbone):
    network = encoder(backbone)
    network(0.1 * torch.randn(4, 1, 20480 + 1024)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_log_mel_and_parameters_are_float32_under_autocast(backbone):
    network, contexts, inputs = encoder(backbone, start_at_defaults=False), 0.1 * torch.randn(2, 1, 20480), []
    network.input_norm.register_forward_hook(lambda module, arguments, _: inputs.append(arguments[0]))
    exact = network(contexts)
    with torch.autocast("cpu", torch.bfloat16):
        parameters = network(contexts)
    parameters.sum().backward()
    assert torch.equal(*inputs) and parameters.dtype == torch.float32
    assert (parameters != parameters.bfloat16()).any()
    torch.testing.assert_close(parameters, exact, atol=0.05, rtol=0)
    assert not torch.equal(parameters, exact)
    assert all(weight.grad.isfinite().all() for weight in network.parameters())


def test_contexts_of_other_lengths_are_refused():
    with pytest.raises(UserError, match="too short"):
        encoder(context_samples=1000)
    for samples in (20479, 20480 + 512):
        with pytest.raises(ValueError, match="no context of 20480"):
            encoder()(torch.zeros(1, 1, samples))


@pytest.mark.parametrize("cutoff_hz", [80, 1000, 8000])
def test_the_level_of_a_summary_follows_loudness_and_not_power(cutoff_hz):
    encoder = Encoder([0.5], 22050, EncoderOptions("summary"), 16384, 8192)
    white = 0.1 * np.random.default_rng(0).standard_normal((1, 88200))
    low = scipy.signal.sosfilt(scipy.signal.butter(4, cutoff_hz, fs=22050, output="sos"), white)
    white, low = (torch.from_numpy(audio).float() for audio in (white, low))
    levels = encoder.summarize(torch.stack([white, low]))[:, 0]
    assert levels[1] - levels[0] == pytest.approx(lufs(low, 22050) - lufs(white, 22050), abs=0.3)


def test_the_bands_of_a_summary_are_relative_to_its_level():
    encoder = Encoder([0.5], 22050, EncoderOptions("summary"), 16384, 8192)
    audio = 0.1 * torch.randn(1, 1, 22050)
    quiet, loud = encoder.summarize(torch.cat([audio, 2 * audio]))
    torch.testing.assert_close(loud - quiet, 6.0206 * torch.eye(18)[0], atol=1e-3, rtol=0)
