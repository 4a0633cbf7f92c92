"""What evaluation reports: how far an output is from its target, one number a metric.

Every metric of :data:`METRICS` takes two signals of one length, ``(channels, samples)`` float tensors at 22.05
kHz, and returns a finite number, or raises :class:`Undefined` with the reason why there is none: silence has no crest
factor. Silent, very short and one-sided signals are no errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import auraloss
import torch
import torchaudio
from torch import Tensor

from dfx.alignment import find_delay
from dfx.audio.levels import REMOVED_DB, amplitude_to_db, frame_levels_db, level_frame_samples, matching_gain, rms
from dfx.audio.loudness import lufs
from dfx.audio.spectrogram import magnitude_spectrogram

Span = tuple[float, float]
"""From when to when, in seconds."""

METRIC_SAMPLE_RATE = 22050
"""The paper's rate: metrics that depend on the rate are taken at it."""


class Undefined(ValueError):
    """A metric has no value for these signals; the message says why."""


class Comparison(NamedTuple):
    """One output beside its target.

    Args:
        metrics: by name, in the order of :data:`COLUMNS`; finite, all of them.
        left_out: the metrics that have no value, and why.
    """

    metrics: dict[str, float]
    left_out: dict[str, str]


def compare(output: Tensor, target: Tensor, sample_rate: int) -> Comparison:
    """Every metric of one output, and how late and which way up it is.

    Args:
        output, target: ``(channels, samples)``, aligned: any latency that is known already taken out.
        sample_rate: of both, in Hz.

    Returns:
        :data:`METRICS`, ``latency_samples``, by how much the output still comes late at ``sample_rate``, and
        ``polarity``, -1 where it is inverted; both from :func:`~dfx.alignment.find_delay`, up to
        50 ms either way, in the loudest 10 s of the target.

    Raises:
        ValueError: if the signals differ in shape, are empty, or are not finite.
    """
    if output.shape != target.shape or output.dim() != 2 or output.numel() == 0:
        raise ValueError(f"output {tuple(output.shape)} and target {tuple(target.shape)} cannot be compared")
    if not (output.isfinite().all() and target.isfinite().all()):
        raise ValueError("output or target is not finite")
    comparison = Comparison({}, {})
    at_their_rate = output, target
    if sample_rate != METRIC_SAMPLE_RATE:
        output, target = (
            torchaudio.functional.resample(audio, sample_rate, METRIC_SAMPLE_RATE) for audio in (output, target)
        )
    for name, metric in METRICS.items():
        try:
            comparison.metrics[name] = metric(output, target)
        except Undefined as reason:
            comparison.left_out[name] = str(reason)
    try:
        comparison.metrics.update(zip(ALIGNMENT, _alignment(*at_their_rate, sample_rate)))
    except Undefined as reason:
        comparison.left_out.update(dict.fromkeys(ALIGNMENT, str(reason)))
    return comparison


def mrstft(output: Tensor, target: Tensor) -> float:
    """Multi-resolution STFT error with auraloss' defaults, at 22.05 kHz; 0 is equal."""
    # auraloss needs more samples than half of its largest FFT, and divides by the target's norm.
    padding = max(0, 2048 - output.shape[-1])
    output, target = (torch.nn.functional.pad(audio, (0, padding))[None].float() for audio in (output, target))
    return float(_MRSTFT(output, target))


def mrstft_level_matched(output: Tensor, target: Tensor) -> float:
    """:func:`mrstft` after the output has been brought to the target's root mean square."""
    return mrstft(matching_gain(output, target) * output, target)


def mfcc_cosine(output: Tensor, target: Tensor) -> float:
    """Cosine distance between MFCCs as the paper's code computes it, in [0, 2].

    The output is scaled to the target's mean magnitude. Of both, 13 MFCCs are taken (1024-sample
    windows, 256 apart; 128 mel bands in dB below each signal's maximum, at most 80 dB). The distance is
    that between the courses over time of one coefficient, averaged over the 13; see
    Martinez Ramirez et al. 2021, section 3.2, and its released evaluation.
    """
    return _cosine_distance(*_mfccs(output, target), dim=1)


def mfcc_cosine_per_frame(output: Tensor, target: Tensor) -> float:
    """Cosine distance between the 13 MFCCs of one frame, averaged over frames, in [0, 2].

    The usual reading of an "MFCC distance". The MFCCs are those of :func:`mfcc_cosine`; the two numbers are not
    comparable, and this is much the smaller.
    """
    return _cosine_distance(*_mfccs(output, target), dim=0)


def esr(output: Tensor, target: Tensor) -> float:
    """Error-to-signal ratio: the energy of the difference over that of the target; 1 is as far off as silence.

    Of the waveform itself, so it counts level, delay and polarity as errors (Wright et al. 2020; without
    their pre-emphasis).

    Raises:
        Undefined: if the target is silent.
    """
    target = _sounding(target, "target")
    return float(_ESR(output.double().flatten(), target.flatten()))


def lufs_difference(output: Tensor, target: Tensor) -> float:
    """The absolute difference in integrated loudness (ITU-R BS.1770-4), in LU."""
    return abs(lufs(output, METRIC_SAMPLE_RATE) - lufs(target, METRIC_SAMPLE_RATE))


def crest_factor_difference_db(output: Tensor, target: Tensor) -> float:
    """The absolute difference of crest factors, peak over root mean square of all channels, in dB.

    Raises:
        Undefined: if one of them is silent.
    """

    def crest_factor_db(audio: Tensor) -> float:
        return amplitude_to_db(float(audio.abs().max() / rms(audio)))

    return abs(crest_factor_db(_sounding(output, "output")) - crest_factor_db(_sounding(target, "target")))


def centroid_difference_hz(output: Tensor, target: Tensor) -> float:
    """The absolute difference of spectral centroids, in Hz.

    A centroid is the mean frequency of the average magnitude spectrum (2048-sample Hann windows, 512 apart, of the
    mean of the channels), each frequency weighed by its magnitude: loud frames count more than quiet ones.

    Raises:
        Undefined: if one of them, or the mean of its channels, is silent.
    """

    def centroid_hz(audio: Tensor, name: str) -> float:
        spectrum = magnitude_spectrogram(_sounding(audio.mean(dim=0), name), 2048, 512).mean(dim=-1)
        frequencies = torch.linspace(0, METRIC_SAMPLE_RATE / 2, len(spectrum), dtype=torch.float64)
        return float((spectrum * frequencies).sum() / spectrum.sum())

    return abs(centroid_hz(output, "output") - centroid_hz(target, "target"))


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
    levels = [_levels_db(audio, spans, sample_rate) for audio in (input, output)]
    if not len(levels[0]):
        return 0.0
    before, after = (float(of.quantile(0.5)) for of in levels)
    return after - before


def damage(input: Tensor, output: Tensor, spans: Sequence[Span], sample_rate: int) -> float:
    """How far the level of the output is from that of the input in parts that should be kept: the mean over frames
    of the absolute difference, in dB.

    As :func:`level_change`, but it hears what happens to a few frames, the beginnings of words for instance.
    Frames in which the input is under -80 dBFS do not count.
    """
    before, after = (_levels_db(audio, spans, sample_rate) for audio in (input, output))
    audible = before > _INAUDIBLE_DB
    return float((after - before)[audible].abs().mean()) if audible.any() else 0.0


def attenuated(input: Tensor, target: Tensor, sample_rate: int) -> list[Span] | None:
    """Where a target takes something away: the frames of 20 ms in which it is at least 3 dB under the input.

    It is a fair question only of targets that leave the rest alone. On the nonspeech pairs that ship this finds 97
    of 100 frames that are known to be removed, and no others.

    Returns:
        Spans in seconds; none if the target is not within 1 dB of the input for at least a third of the time that
        the input is above -80 dBFS, or if it attenuates nothing.
    """
    seconds = input.shape[-1] / sample_rate
    before, after = (_levels_db(audio, [(0.0, seconds)], sample_rate) for audio in (input, target))
    audible = before > _INAUDIBLE_DB
    kept = audible & ((after - before).abs() < 1)
    removed = audible & (after - before <= -REMOVED_DB)
    if not removed.any() or 3 * int(kept.sum()) < int(audible.sum()):
        return None
    frame_seconds = level_frame_samples(sample_rate) / sample_rate
    return [(i * frame_seconds, (i + 1) * frame_seconds) for i in removed.nonzero()[:, 0].tolist()]


def outside(spans: Sequence[Span], seconds: float) -> list[Span]:
    """The parts of a recording that lie between the spans, which may overlap and come in any order."""
    gaps: list[Span] = []
    position = 0.0
    for start, end in sorted(spans):
        if start > position:
            gaps.append((position, min(start, seconds)))
        position = max(position, end)
    return [*gaps, (position, seconds)] if position < seconds else gaps


METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "mrstft": mrstft,
    "mrstft_level_matched": mrstft_level_matched,
    "mfcc_cosine": mfcc_cosine,
    "mfcc_cosine_per_frame": mfcc_cosine_per_frame,
    "esr": esr,
    "lufs_difference": lufs_difference,
    "crest_factor_difference_db": crest_factor_difference_db,
    "centroid_difference_hz": centroid_difference_hz,
}
"""Metrics by name; less is better for each."""

ALIGNMENT = ("latency_samples", "polarity")

COLUMNS = (*METRICS, *ALIGNMENT)
"""All that :func:`compare` reports."""

_INAUDIBLE_DB = -80.0
_SILENCE = 1e-8
"""Peak under which a signal has no shape: the rounding of 24 bits is above it."""
_MAX_DELAY_SECONDS = 0.05
_ALIGNED_SECONDS = 10
_MRSTFT = auraloss.freq.MultiResolutionSTFTLoss()
_ESR = auraloss.time.ESRLoss(eps=0.0)
_MEL = torchaudio.transforms.MelSpectrogram(
    METRIC_SAMPLE_RATE, n_fft=1024, hop_length=256, n_mels=128, norm="slaney", mel_scale="slaney"
).double()
_DCT = torchaudio.functional.create_dct(13, 128, norm="ortho").double()


def _sounding(audio: Tensor, name: str) -> Tensor:
    """In float64, since the squares of what is just audible would round to nothing."""
    if audio.abs().max() < _SILENCE:
        raise Undefined(f"the {name} is silent")
    return audio.double()


def _alignment(output: Tensor, target: Tensor, sample_rate: int) -> tuple[float, float]:
    for audio, name in ((output, "output"), (target, "target")):
        _sounding(audio, name)
    # The loudest part of the target tells it as well as the whole of an hour does, and sooner.
    part = _ALIGNED_SECONDS * sample_rate
    if target.shape[1] > part:
        start = part * int(target.square().sum(dim=0).unfold(0, part, part).sum(dim=1).argmax())
        output, target = (audio[:, start : start + part] for audio in (output, target))
    delay, polarity = find_delay(output[None], target[None], round(_MAX_DELAY_SECONDS * sample_rate))
    return float(delay), float(polarity)


def _levels_db(audio: Tensor, spans: Sequence[Span], sample_rate: int) -> Tensor:
    """Return the levels in dBFS of the whole frames of 20 ms in some spans, float64 ``(frames,)``."""
    parts = [slice(max(0, round(start * sample_rate)), max(0, round(end * sample_rate))) for start, end in spans]
    return torch.cat([torch.zeros(0).double(), *(frame_levels_db(audio[:, part], sample_rate) for part in parts)])


def _mfccs(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Of both, the output brought to the target's mean magnitude."""
    output, target = output.mean(dim=0), target.mean(dim=0)
    output = output * (target.abs().mean() / output.abs().mean().clamp(min=1e-12))
    return _mfcc(output), _mfcc(target)


def _cosine_distance(a: Tensor, b: Tensor, dim: int) -> float:
    """The mean of ``1 - cosine`` of the vectors along a dimension."""
    norms = a.norm(dim=dim) * b.norm(dim=dim)
    cosine = torch.where(norms > 0, (a * b).sum(dim=dim) / norms.clamp(min=1e-30), 0.0)
    # What is zero throughout has no direction; two of them are equal.
    cosine = torch.where((a == b).all(dim=dim), 1.0, cosine)
    return float((1 - cosine).clamp(min=0).mean())


def _mfcc(audio: Tensor) -> Tensor:
    """``(samples,)`` to ``(13, frames)``; what is shorter than a window is padded to one."""
    padding = max(0, 1024 - len(audio))
    mel = _MEL(torch.nn.functional.pad(audio, (0, padding)).double()).clamp(min=1e-10)
    decibels = 10 * torch.log10(mel / mel.max())
    return _DCT.T @ decibels.clamp(min=-80.0)
