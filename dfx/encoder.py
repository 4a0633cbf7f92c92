"""What hears the context and moves the controls: log-mel front end, backbone, head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Sequence

import torch
import torchaudio
import torchvision
from torch import Tensor, nn

FFT_SAMPLES = 1024
HOP_SAMPLES = 256
MEL_BANDS = 128

Backbone = Literal["mobilenet_v2"]


@dataclass
class EncoderOptions:
    """Which network hears the context.

    Args:
        backbone: ``mobilenet_v2`` (Sandler et al. 2018), one of the paper's two (its section 3.2).
        width: of MobileNetV2, in (0, 1] as a rule: 1.0 is the paper's 2.2 million parameters, 0.35 trains
            on a CPU.
        start_at_defaults: begin with every parameter at its effect's default.
    """

    backbone: Backbone = "mobilenet_v2"
    width: float = 1.0
    start_at_defaults: bool = True


class LogMel(nn.Module):
    """The paper's front end: ``log10(power + 1e-6)`` in 128 mel bands (HTK) from 0 Hz to Nyquist.

    Periodic Hann windows of 1024 samples, 256 apart, without padding: a context of 40 960 samples becomes
    157 frames. Nothing in it is trained.
    """

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.mel = torchaudio.transforms.MelSpectrogram(
            sample_rate,
            n_fft=FFT_SAMPLES,
            hop_length=HOP_SAMPLES,
            n_mels=MEL_BANDS,
            center=False,
            power=2.0,
            norm=None,
            mel_scale="htk",
        )

    def forward(self, context: Tensor) -> Tensor:
        """``(batch, samples)`` in [-1, 1] to ``(batch, 1, frames, 128)``."""
        return torch.log10(self.mel(context) + 1e-6).transpose(1, 2)[:, None]


class Encoder(nn.Module):
    """Predicts the parameters of a chain from the context of a frame (the paper, section 2.1).

    Args:
        defaults: the effects' defaults in [0, 1], one for each parameter.
        sample_rate: of the context, in Hz.
        options: which network.
    """

    def __init__(self, defaults: Sequence[float], sample_rate: int, options: EncoderOptions) -> None:
        super().__init__()
        self.log_mel = LogMel(sample_rate)
        # One mean and one variance for the whole map, as the paper has it, and not one for each band.
        self.input_norm = nn.BatchNorm2d(1)
        self.backbone = _mobilenet_v2(options.width)
        self.head = nn.Linear(self.backbone.out_features, len(defaults))
        if options.start_at_defaults:
            self._start_at(torch.as_tensor(defaults, dtype=torch.float32))

    def forward(self, context: Tensor) -> Tensor:
        """``(batch, channels, samples)`` to parameters ``(batch, P)`` in (0, 1); channels are averaged.

        Raises:
            ValueError: if the context is shorter than one analysis window.
        """
        if context.shape[-1] < FFT_SAMPLES:
            raise ValueError(f"a context of {context.shape[-1]} samples is shorter than one window, {FFT_SAMPLES}")
        features = self.backbone(self.input_norm(self.log_mel(context.mean(dim=1))))
        return torch.sigmoid(self.head(features))

    @torch.no_grad()
    def _start_at(self, defaults: Tensor) -> None:
        # Small weights leave the bias to decide; a default at a bound starts a little inside, where the
        # sigmoid still has a slope.
        self.head.weight.mul_(0.1)
        self.head.bias.copy_(torch.logit(defaults.clamp(0.02, 0.98)))


def _mobilenet_v2(width: float) -> nn.Module:
    """torchvision's MobileNetV2 up to the pooled features, for one input channel."""
    network = torchvision.models.mobilenet_v2(width_mult=width)
    first = network.features[0][0]
    network.features[0][0] = nn.Conv2d(
        1, first.out_channels, first.kernel_size, first.stride, first.padding, bias=False
    )
    backbone = nn.Sequential(network.features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone.out_features = network.last_channel
    return backbone
