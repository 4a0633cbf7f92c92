"""What evaluation reports: how far an output is from its target, one number a metric.

Every metric of :data:`METRICS` takes two signals of one length, ``(channels, samples)`` float tensors at 22.05
kHz, and returns a finite number for any finite signals, silent and very short ones included.
"""

from __future__ import annotations

import math
import warnings
from typing import Callable, Dict, List, Sequence, Tuple

import auraloss
import pyloudnorm
import torch
import torchaudio
from torch import Tensor

Span = Tuple[float, float]
"""From when to when, in seconds."""

METRIC_SAMPLE_RATE = 22050
"""The paper's rate: metrics that depend on the rate are taken at it."""

SILENCE_LUFS = -70.0
"""The absolute gate of BS.1770: what is quieter has no loudness."""


def compare(output: Tensor, target: Tensor, sample_rate: int) -> Dict[str, float]:
    """Every metric of one output.

    Args:
        output, target: ``(channels, samples)``, aligned: any latency already taken out.
        sample_rate: of both, in Hz.

    Returns:
        The metrics by name, in the order of :data:`METRICS`.

    Raises:
        ValueError: if the signals differ in shape, are empty, or are not finite.
    """
    if output.shape != target.shape or output.dim() != 2 or output.numel() == 0:
        raise ValueError(f"output {tuple(output.shape)} and target {tuple(target.shape)} cannot be compared")
    if not (output.isfinite().all() and target.isfinite().all()):
        raise ValueError("output or target is not finite")
    if sample_rate != METRIC_SAMPLE_RATE:
        output, target = (
            torchaudio.functional.resample(audio, sample_rate, METRIC_SAMPLE_RATE) for audio in (output, target)
        )
    return {name: metric(output, target) for name, metric in METRICS.items()}


def mrstft(output: Tensor, target: Tensor) -> float:
    """Multi-resolution STFT error with auraloss' defaults, at 22.05 kHz; 0 is equal."""
    # auraloss needs more samples than half of its largest FFT, and divides by the target's norm.
    padding = max(0, 2048 - output.shape[-1])
    output, target = (torch.nn.functional.pad(audio, (0, padding))[None].float() for audio in (output, target))
    return float(_MRSTFT(output, target))


def mrstft_level_matched(output: Tensor, target: Tensor) -> float:
    """:func:`mrstft` after the output has been brought to the target's root mean square."""
    level, wanted = (audio.square().mean().sqrt() for audio in (output, target))
    return mrstft(output * (wanted / level if level > 0 else 1.0), target)


def mfcc_cosine(output: Tensor, target: Tensor) -> float:
    """Cosine distance between MFCCs as the paper's code computes it, in [0, 2].

    The output is scaled to the target's mean magnitude. Of both, 13 MFCCs are taken (1024-sample
    windows, 256 apart; 128 mel bands in dB below each signal's maximum, at most 80 dB). The distance is
    that between the courses over time of one coefficient, averaged over the 13; see
    Martinez Ramirez et al. 2021, section 3.2, and its released evaluation.
    """
    output, target = output.mean(dim=0), target.mean(dim=0)
    output = output * (target.abs().mean() / output.abs().mean().clamp(min=1e-12))
    a, b = _mfcc(output), _mfcc(target)
    norms = a.norm(dim=1) * b.norm(dim=1)
    cosine = torch.where(norms > 0, (a * b).sum(dim=1) / norms.clamp(min=1e-30), 0.0)
    # A coefficient that is zero throughout has no direction; two of them are equal.
    cosine = torch.where((a == b).all(dim=1), 1.0, cosine)
    return float((1 - cosine).clamp(min=0).mean())


def lufs_difference(output: Tensor, target: Tensor) -> float:
    """The absolute difference in integrated loudness (ITU-R BS.1770-4), in LU."""
    return abs(lufs(output, METRIC_SAMPLE_RATE) - lufs(target, METRIC_SAMPLE_RATE))


def lufs(audio: Tensor, sample_rate: int) -> float:
    """Integrated loudness in LUFS (ITU-R BS.1770-4), -70 for what is quieter; padded to one 0.4 s block."""
    padding = max(0, int(0.4 * sample_rate) + 1 - audio.shape[-1])
    samples = torch.nn.functional.pad(audio, (0, padding)).double().T.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the logarithm of silence
        loudness = pyloudnorm.Meter(sample_rate).integrated_loudness(samples)
    return max(float(loudness), SILENCE_LUFS)


def level_change(input: Tensor, output: Tensor, spans: Sequence[Span], sample_rate: int) -> float:
    """How much louder some parts of the output are than of the input: the difference of median levels, in dB.

    Levels are those of frames of 20 ms. A median tells what most of a breath has become, whatever a gate lets through
    before it closes.

    Args:
        input, output: ``(channels, samples)``.
        spans: where the parts begin and end, in seconds; what lies outside of the signals, and what is shorter
            than a frame, is left out.
        sample_rate: of both, in Hz.

    Returns:
        Negative where the output is quieter; no level counts as less than -100 dBFS. 0 without any part.
    """
    frame = max(1, round(_LEVEL_SECONDS * sample_rate))
    parts = [slice(max(0, round(start * sample_rate)), max(0, round(end * sample_rate))) for start, end in spans]

    def median_level(audio: Tensor) -> float:
        frames = [audio[:, part].unfold(1, frame, frame) for part in parts if audio[:, part].shape[1] >= frame]
        if not frames:
            return 0.0
        levels = torch.cat(frames, dim=1).square().mean(dim=(0, 2)).sqrt().clamp(min=1e-5)
        return 20 * math.log10(float(levels.double().quantile(0.5)))

    return median_level(output) - median_level(input)


def outside(spans: Sequence[Span], seconds: float) -> List[Span]:
    """The parts of a recording that lie between the spans, which may overlap and come in any order."""
    gaps: List[Span] = []
    position = 0.0
    for start, end in sorted(spans):
        if start > position:
            gaps.append((position, min(start, seconds)))
        position = max(position, end)
    return [*gaps, (position, seconds)] if position < seconds else gaps


METRICS: Dict[str, Callable[[Tensor, Tensor], float]] = {
    "mrstft": mrstft,
    "mrstft_level_matched": mrstft_level_matched,
    "mfcc_cosine": mfcc_cosine,
    "lufs_difference": lufs_difference,
}
"""Metrics by name; less is better for each."""

_LEVEL_SECONDS = 0.02
_MRSTFT = auraloss.freq.MultiResolutionSTFTLoss()
_MEL = torchaudio.transforms.MelSpectrogram(
    METRIC_SAMPLE_RATE, n_fft=1024, hop_length=256, n_mels=128, norm="slaney", mel_scale="slaney"
).double()
_DCT = torchaudio.functional.create_dct(13, 128, norm="ortho").double()


def _mfcc(audio: Tensor) -> Tensor:
    """``(samples,)`` to ``(13, frames)``; what is shorter than a window is padded to one."""
    padding = max(0, 1024 - len(audio))
    mel = _MEL(torch.nn.functional.pad(audio, (0, padding)).double()).clamp(min=1e-10)
    decibels = 10 * torch.log10(mel / mel.max())
    return _DCT.T @ decibels.clamp(min=-80.0)
