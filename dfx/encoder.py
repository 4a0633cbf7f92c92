"""The network that predicts parameters from the context: log-mel front end, backbone, head."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torchaudio
import torchvision
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torchvision.ops.misc import Conv2dNormActivation

from dfx.audio.loudness import weight_power
from dfx.errors import UserError, check_numbers

FFT_SAMPLES = 1024
HOP_SAMPLES = 256
MEL_BANDS = 128
SPECTRUM_BANDS = 16
SUMMARY_FEATURES = 2 + SPECTRUM_BANDS
SILENT_POWER, USUAL_LEVEL = 0.02, 3.0
"""Power of a mel frame, over all bands, of white noise at -70 dBFS, and its logarithm for music at about -23 LUFS."""

_DB_PER_FEATURE = 10.0
"""With it, the features of a summary are about as large as those of a network."""

Backbone = Literal["inception", "mobilenet_v2", "conv", "summary"]


@dataclass
class EncoderOptions:
    """Which network predicts the parameters.

    Args:
        backbone: ``inception`` (Lee et al. 2020) and ``mobilenet_v2`` (Sandler et al. 2018) are the paper's
            and take every context separately. ``conv`` is smaller, and takes the contexts of
            consecutive frames in one pass. ``summary`` is no network: the logits of the parameters are a linear
            function of level, fluctuation and average spectrum of the context, and of the reference where there is
            one, for few recordings. Training starts where rendering shows how they change the balance, see
            :mod:`dfx.tasks.balance`.
        width: multiplies the numbers of channels, in (0, 16]; ``inception`` and ``summary`` have one size. At 1.0,
            ``inception`` has 2.8 million parameters, ``mobilenet_v2`` 2.2 million and ``conv`` 0.3 million;
            ``mobilenet_v2`` at 0.35 and ``conv`` train on a CPU.
        start_at_defaults: start with every parameter at its effect's default.
        dropout: dropout probability, in [0, 1), of the features between backbone and head, drawn for every example
            and step; it reduces overfitting to few recordings (Srivastava et al. 2014).
        conventions: ``keras`` gives ``inception`` and ``mobilenet_v2`` the initial weights, the batch normalization
            and the padding that they have in Keras, and thus in the paper's code; ``torch`` those of torchvision.

    Raises:
        UserError: if the backbone has no such width or conventions, or if the dropout probability is out of range.
    """

    backbone: Backbone = "mobilenet_v2"
    width: float = 1.0
    start_at_defaults: bool = True
    dropout: float = 0.0
    conventions: Literal["torch", "keras"] = "torch"

    def __post_init__(self) -> None:
        check_numbers(vars(self), width="(0, 16]", dropout="[0, 1)")
        if self.backbone in ("conv", "summary") and self.conventions == "keras":
            raise UserError(f"{self.backbone} is not a network of Keras: set the encoder's conventions to torch")
        if self.backbone in ("inception", "summary") and self.width != 1:
            fault = f"{self.backbone} has one size"
            raise UserError(f"{fault}: set the encoder's width to 1 instead of {self.width:g}")


class LogMel(nn.Module):
    """The paper's front end: ``log10(power + 1e-6)`` in 128 mel bands (HTK) from 0 Hz to Nyquist.

    Periodic Hann windows of 1024 samples, 256 apart, without padding: a context of 40 960 samples becomes
    157 mel frames. It has no trained weights.
    """

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.mel = torchaudio.transforms.MelSpectrogram(
            sample_rate, FFT_SAMPLES, hop_length=HOP_SAMPLES, n_mels=MEL_BANDS, center=False, mel_scale="htk"
        )

    def forward(self, context: Tensor) -> Tensor:
        """Return the spectrogram of ``(batch, samples)`` in [-1, 1] as ``(batch, 1, mel frames, 128)``."""
        # What `self.mel` computes, without the root of a power that is squared again and without transposing.
        spectrum = torch.fft.rfft(context.unfold(1, FFT_SAMPLES, HOP_SAMPLES) * self.mel.spectrogram.window)
        power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
        return torch.log10(power @ self.mel.mel_scale.fb + 1e-6)[:, None]


class Summarizer(nn.Module):
    """Level, fluctuation and average spectrum of a log-mel spectrogram, ``(..., frames, 128)``, in dB.

    Frames without sound do not count. The level is that of the mean power with the weighting of loudness (ITU-R
    BS.1770), relative to music at -23 LUFS. The fluctuation is the standard deviation of the level over time. The
    average spectrum, of 16 bands of eight mel bands, is relative to the level. The result is ``(..., 18)``, and NaN
    without sound.
    """

    weights: Tensor

    def __init__(self, log_mel: LogMel) -> None:
        super().__init__()
        filters = log_mel.mel.mel_scale.fb
        frequencies = np.linspace(0, log_mel.sample_rate / 2, len(filters))
        gains = torch.from_numpy(weight_power(frequencies, log_mel.sample_rate)).to(filters)
        # The narrowest filters, between two frequencies of the transform, are empty.
        self.register_buffer("weights", gains @ filters / filters.sum(0).clamp(min=1e-9), persistent=False)

    def forward(self, log_mel: Tensor) -> Tensor:
        mel_power = 10**log_mel
        power = mel_power.unflatten(-1, (SPECTRUM_BANDS, -1)).sum(-1)
        loudness = (mel_power * self.weights).sum(-1, keepdim=True)
        sounds = (power.sum(-1, keepdim=True) > SILENT_POWER).to(power)

        def mean(values: Tensor) -> Tensor:
            return (sounds * values).sum(-2) / sounds.sum(-2)

        level = mean(loudness).log10()
        fluctuation = mean((loudness.log10() - mean(loudness.log10())[..., None, :]).square()).sqrt()
        return 10 * torch.cat([level - USUAL_LEVEL, fluctuation, mean(power).log10() - level], dim=-1)


class Dropout(nn.Module):
    """Dropout with one mask for all frames of an example.

    Unlike PyTorch's, it draws from a seed that is saved with the weights, so that a resumed run draws the same masks.

    Args:
        probability: of dropping a feature, in [0, 1); the others are scaled by ``1 / (1 - probability)``.
        rand: draws uniform numbers, called as ``torch.rand(rows, ..., generator=generator)``.
    """

    seed: Tensor

    def __init__(self, probability: float, rand: Callable[..., Tensor] = torch.rand) -> None:
        super().__init__()
        self.probability = probability
        self._rand = rand
        self.register_buffer("seed", torch.randint(1 << 31, ()))

    def forward(self, features: Tensor) -> Tensor:
        """Drop features of ``(batch, frames, features)`` in training."""
        if not self.training:
            return features
        generator = torch.Generator().manual_seed(int(self.seed))
        self.seed += 1
        kept = self._rand(len(features), 1, features.shape[-1], generator=generator) >= self.probability
        return features * kept.to(features) / (1 - self.probability)


class Encoder(nn.Module):
    """Predicts the parameters of a chain for every frame from its context (the paper's deep encoder).

    Under autocast, the backbone runs in the lower precision, and its input and the parameters keep theirs.

    With ``takes_reference``, the last layer also gets the level of a reference and the difference between its summary
    and that of the context, see :class:`Summarizer`: few recordings suffice to learn how parameters follow from them.

    Args:
        defaults: the effects' defaults in [0, 1], one for each parameter.
        sample_rate: of the context, in Hz.
        options: which network.
        context_samples: length of the context of one frame; at least two mel frames, 1280 samples.
        frame_samples: distance between the contexts of consecutive frames.
        rand: draws the dropout masks, see :class:`Dropout`.
        takes_reference: predict parameters that make the audio of the context sound like a reference.

    Raises:
        UserError: if the context is too short, or if ``conv`` is given a frame that is no multiple of 256 samples.
    """

    def __init__(
        self,
        defaults: Sequence[float],
        sample_rate: int,
        options: EncoderOptions,
        context_samples: int = 40960,
        frame_samples: int = 1024,
        rand: Callable[..., Tensor] = torch.rand,
        takes_reference: bool = False,
    ) -> None:
        super().__init__()
        if context_samples < FFT_SAMPLES + HOP_SAMPLES:
            fault = f"a context of {context_samples} samples is too short: the encoder needs two mel frames"
            raise UserError(f"{fault}; set context_samples to {FFT_SAMPLES + HOP_SAMPLES} or more")
        self.context_samples = context_samples
        self.frame_samples = frame_samples
        self.takes_reference = takes_reference
        self.log_mel = LogMel(sample_rate)
        self.summarizer = Summarizer(self.log_mel)
        # As in the paper, one mean and one variance for all bands. A summary is in dB, which they would change.
        self.input_norm = nn.Identity() if options.backbone == "summary" else nn.BatchNorm2d(1)
        self.backbone, features = _make_backbone(options, self.summarizer, context_samples, frame_samples)
        # The layout with the fastest kernels of convolution and pooling. torch's stubs lack this form of `to`.
        self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if takes_reference:
            features += 1 + SUMMARY_FEATURES
        self.head = nn.Linear(features, len(defaults))
        if options.conventions == "keras":
            _follow_keras(self.input_norm, momentum=0.99)
            _follow_keras(self.head)
        if options.start_at_defaults:
            with torch.no_grad():
                self.head.weight.mul_(0.1)  # with small weights the bias dominates
                self.head.bias.copy_(clamped_logit(torch.tensor(defaults)))
        self.dropout = Dropout(options.dropout, rand) if options.dropout else nn.Identity()

    @torch.no_grad()
    def start_at_line(self, weight: Tensor, bias: Tensor, mean: Tensor) -> None:
        """Predict parameters whose logits are ``bias + weight @ features``, until training changes them.

        Args:
            weight: ``(P, F)``, per dB. The features are the summary of the context minus ``mean`` and, with a
                reference, its level and its summary minus that of the context; ``F`` is 18 or 37.
            bias: ``(P,)``.
            mean: summary of a mean context, ``(18,)``.
        """
        assert isinstance(self.backbone, Summary)
        self.backbone.mean.copy_(mean)
        self.head.weight.copy_(weight * _DB_PER_FEATURE)
        self.head.bias.copy_(bias)

    @torch.no_grad()
    def start_at(self, parameters: Tensor) -> None:
        """Predict these parameters, ``(P,)`` in [0, 1], for any context, until training changes the head."""
        self.head.weight.zero_()
        self.head.bias.copy_(clamped_logit(parameters))

    def summarize(self, audio: Tensor) -> Tensor:
        """Return the summaries ``(batch, 18)`` of recordings ``(batch, channels, samples)`` of 1280 samples or more.

        In dB, see :class:`Summarizer`.
        """
        with torch.autocast(audio.device.type, enabled=False):
            return self.summarizer(self.log_mel(audio.mean(dim=1)))[:, 0]

    def forward(self, context: Tensor, reference: Tensor | None = None) -> Tensor:
        """Predict parameters in (0, 1), ``(batch, frames, P)``.

        Args:
            context: of ``frames`` consecutive frames, ``(batch, channels, context_samples + (frames - 1) *
                frame_samples)``; channels are averaged. The parameters of a frame depend on its
                ``context_samples`` alone.
            reference: the summaries of the references, ``(batch, 18)`` or ``(1, 18)`` for all examples; see
                :meth:`summarize`.

        Raises:
            ValueError: for other lengths.
        """
        size, hop = context.shape[-1], self.frame_samples
        if size < self.context_samples or (size - self.context_samples) % hop:
            raise ValueError(f"{size} samples are no context of {self.context_samples} and whole frames of {hop} more")
        audio = context.mean(dim=1)
        if not isinstance(self.backbone, Conv):
            audio = audio.unfold(1, self.context_samples, hop).flatten(0, 1)
        # Autocast is for the backbone. In bfloat16, parameters would have steps of 0.004, near the estimator's epsilon.
        with torch.autocast(audio.device.type, enabled=False):
            log_mel = self.log_mel(audio)
        features = self.backbone(self.input_norm(log_mel)).to(self.head.weight)
        features = features.view(len(context), -1, features.shape[-1])
        with torch.autocast(audio.device.type, enabled=False):
            features = self.dropout(features)
            if reference is not None:
                features = torch.cat([features, self._compare(log_mel, reference, features.shape[1])], dim=-1)
            return torch.sigmoid(self.head(features))

    def _compare(self, log_mel: Tensor, reference: Tensor, frames: int) -> Tensor:
        """Return the level of the reference and its difference from the contexts, in bels, ``(batch, frames, 19)``."""
        if isinstance(self.backbone, Conv):
            size = 1 + (self.context_samples - FFT_SAMPLES) // HOP_SAMPLES
            log_mel = log_mel[:, 0].unfold(1, size, self.frame_samples // HOP_SAMPLES).transpose(2, 3)
        contexts = self.summarizer(log_mel).flatten(0, -2).unflatten(0, (-1, frames))
        references = reference[:, None].expand_as(contexts)
        # Without sound, there is no difference.
        return torch.cat([references[..., :1], references - contexts], dim=-1).nan_to_num(0.0) / _DB_PER_FEATURE


def clamped_logit(parameters: Tensor) -> Tensor:
    """Invert the sigmoid, in float32. Parameters at a bound are moved inside it, where the sigmoid has a slope."""
    return parameters.float().clamp(0.02, 0.98).logit()


def _make_backbone(
    options: EncoderOptions, summarizer: Summarizer, context_samples: int, frame_samples: int
) -> tuple[nn.Module, int]:
    """Return a network from ``(batch, 1, mel frames, 128)`` to ``(batch, features)``, and its number of features."""
    if options.backbone == "mobilenet_v2":
        return _mobilenet_v2(options.width, options.conventions == "keras")
    if options.backbone == "inception":
        return Inception(), 256
    if options.backbone == "summary":
        return Summary(summarizer), SUMMARY_FEATURES
    conv = Conv(options.width, context_samples, frame_samples)
    return conv, conv.out_features


class BatchNorm(nn.BatchNorm2d):
    """torch's batch normalization, with batch statistics that are more exact on a CPU, and faster.

    In the channels-last layout, torch adds up all values of a channel one after another.
    """

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        is_plain = x.device.type == "cpu" and x.dtype == self.weight.dtype
        if not (self.training and is_plain and x.is_contiguous(memory_format=torch.channels_last)):
            return super().forward(x)
        with torch.no_grad():
            values = x.permute(0, 2, 3, 1).flatten(0, 2)
            mean = values.mean(0)
            variance = (values - mean).square_().mean(0)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (len(values) / (len(values) - 1)), self.momentum)
            self.num_batches_tracked += 1
        return _Normalization.apply(x, self.weight, self.bias, mean, variance, self.eps)


class _Normalization(torch.autograd.Function):
    """Normalizes by the mean and variance of the batch, which depend on ``x``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.eps = eps
        return functional.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *statistics = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        gradients = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, *statistics, True, ctx.eps, [True, True, True]
        )
        return *gradients, None, None, None


class Inception(nn.Module):
    """The first of the paper's encoders, after Lee et al. 2020, with 2.8 million parameters.

    A 5x5 convolution, then six pairs of a reduction and an inception module, without normalization. The embedding of
    256 features has unit length.
    """

    def __init__(self) -> None:
        super().__init__()
        # Pooling before the ReLU gives the same maps and gradients for a quarter of the work.
        blocks = [nn.Sequential(nn.Conv2d(1, 64, 5, padding=2), nn.MaxPool2d(2)), nn.ReLU(inplace=True)]
        for channels in (64, 256, 256, 256, 256, 256):
            blocks += [_reduction(channels), _inception_module(channels + 144)]
        self.network = nn.Sequential(*blocks, _conv(256, 256, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, log_mel: Tensor) -> Tensor:
        return functional.normalize(self.network(log_mel))


def _conv(channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Module:
    """Keras' ``same`` convolution and a ReLU."""
    if stride == 1 or kernel == 1:
        return nn.Sequential(nn.Conv2d(channels, out_channels, kernel, stride, kernel // 2), nn.ReLU(inplace=True))
    return nn.Sequential(_SamePadding(), nn.Conv2d(channels, out_channels, kernel, stride), nn.ReLU(inplace=True))


class _SamePadding(nn.Module):
    """Keras' ``same`` padding for kernels of 3 and strides of 2: an even length is padded at its end only."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return functional.pad(x, (width % 2, 1, height % 2, 1))


class _SameMaxPool(nn.Module):
    """Keras' ``same`` max pooling, with kernels of 3 and strides of 2."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        # In ceil mode, the last window may lack its end, as if an even length was padded there.
        return functional.max_pool2d(x, 3, 2, (height % 2, width % 2), ceil_mode=True)


class _Branches(nn.Module):
    """Concatenates the channels of parallel branches."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def _reduction(channels: int) -> nn.Module:
    """Halve the size of the map, and append 144 channels to those of the input."""
    return _Branches(
        _conv(channels, 48, 1, stride=2),
        nn.Sequential(_conv(channels, 64, 1), _conv(64, 96, 3), _conv(96, 96, 3, stride=2)),
        _SameMaxPool(),
    )


def _inception_module(channels: int) -> nn.Module:
    """Keep the size of the map, and return 256 channels."""
    return _Branches(
        _conv(channels, 64, 1),
        nn.Sequential(_conv(channels, 48, 1), _conv(48, 64, 5)),
        nn.Sequential(_conv(channels, 64, 1), _conv(64, 96, 3), _conv(96, 96, 3)),
        nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), _conv(channels, 32, 1)),
    )


def _mobilenet_v2(width: float, keras: bool) -> tuple[nn.Module, int]:
    """Return torchvision's MobileNetV2 for one input channel, up to its pooled features."""
    network = torchvision.models.mobilenet_v2(width_mult=width, norm_layer=BatchNorm)
    stem = network.features[0]
    stem[0] = nn.Conv2d(1, stem[0].out_channels, kernel_size=3, stride=2, padding=1, bias=False)
    for module in network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = False  # Autograd keeps the input: in place, it would copy it first.
    if keras:
        _follow_keras(network.features, momentum=0.999)
    return nn.Sequential(network.features, nn.AdaptiveAvgPool2d(1), nn.Flatten()), network.last_channel


def _follow_keras(network: nn.Module, momentum: float = 0.99) -> None:
    """Change initial weights, batch normalization and strided convolutions of torchvision's form to those of Keras.

    Args:
        momentum: weight of the former moving averages of the batch normalization, in the sense of Keras.
    """
    for module in list(network.modules()):
        if isinstance(module, nn.BatchNorm2d):
            # torch's momentum is the weight of the new statistics.
            module.momentum, module.eps = 1 - momentum, 1e-3
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Conv2dNormActivation) and module[0].stride == (2, 2):
            module[0].padding = (0, 0)
            module.insert(0, _SamePadding())


class Summary(nn.Module):
    """Level, fluctuation and average spectrum of a context, see :class:`Summarizer`, in bels, relative to their mean.

    The mean is measured before training, see :mod:`dfx.tasks.balance`.
    """

    mean: Tensor

    def __init__(self, summarizer: Summarizer) -> None:
        super().__init__()
        self.summarizer = summarizer
        self.register_buffer("mean", torch.zeros(SUMMARY_FEATURES))

    def forward(self, log_mel: Tensor) -> Tensor:
        # Without sound, a context is taken to be like the mean.
        return (self.summarizer(log_mel)[:, 0] - self.mean).nan_to_num(0.0) / _DB_PER_FEATURE


class Conv(nn.Module):
    """Takes the contexts of consecutive frames in one pass: ``(batch, frames, out_features)``.

    Convolutions halve the number of bands five times. Over time they do not pad, and halve only while the distance
    between frames stays a whole number of steps, so that the features of a frame depend on its context alone. They are
    means over the whole context and over its middle, where the frame is.

    Args:
        width: multiplies 24, 48, 64, 96 and 128 channels.
        context_samples, frame_samples: as of the encoder.

    Raises:
        UserError: if ``frame_samples`` is no multiple of 256.
    """

    def __init__(self, width: float, context_samples: int, frame_samples: int) -> None:
        super().__init__()
        if frame_samples % HOP_SAMPLES:
            fault = f"conv takes mel frames {HOP_SAMPLES} samples apart"
            raise UserError(f"{fault}: make frame_samples a multiple of them, and not {frame_samples}")
        # Both in steps of the map, which are mel frames at first.
        context = 1 + (context_samples - FFT_SAMPLES) // HOP_SAMPLES
        hop = frame_samples // HOP_SAMPLES
        layers = []
        channels = 1
        for full in (24, 48, 64, 96, 128):
            out_channels = max(4, round(width * full))
            kernel = 3 if context >= 3 else 1
            stride = 2 if hop % 2 == 0 and context >= 4 else 1
            convolution = nn.Conv2d(channels, out_channels, (kernel, 3), (stride, 2), (0, 1), bias=False)
            layers += [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
            channels = out_channels
            context = (context - kernel) // stride + 1
            hop //= stride
        # The last layer spans the remaining bands.
        layers += [nn.Conv2d(channels, channels, (1, MEL_BANDS // 32)), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.out_features = 2 * channels
        self._context = context
        self._hop = hop
        self._middle = min(context, max(1, hop))

    def forward(self, log_mel: Tensor) -> Tensor:
        features = self.layers(log_mel)[..., 0]
        around = functional.avg_pool1d(features, self._context, self._hop)
        edge = self._context - self._middle
        last = features.shape[-1] - (edge - edge // 2)
        here = functional.avg_pool1d(features[..., edge // 2 : last], self._middle, self._hop)
        return torch.cat([around, here], dim=1).transpose(1, 2)
