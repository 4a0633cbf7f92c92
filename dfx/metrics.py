"""Metrics of an output against its target.

Every metric of :data:`METRICS` takes two signals of equal length, float ``(channels, samples)`` at 22.05 kHz. It
returns a finite number, or raises :class:`Undefined` with the reason. A distance from silence is 0, 1 or huge by
convention only, so it is undefined; a signal is silent if its peak, without a constant offset, is below -100 dBFS.
Very short signals are valid.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import auraloss
import torch
import torchaudio
from torch import Tensor

from dfx.alignment import find_delay
from dfx.audio.hearing import specific_loudness
from dfx.audio.levels import (
    REMOVED_DB,
    SILENCE,
    amplitude_to_db,
    frame_levels_db,
    level_frame_samples,
    matching_gain,
    rms,
)
from dfx.audio.loudness import SILENCE_LUFS, lufs
from dfx.audio.resampling import resample
from dfx.audio.spectrogram import magnitude_spectrogram
from dfx.losses import LossOptions, loss_of_recordings, make_loss

Span = tuple[float, float]  # start and end in seconds
METRIC_SAMPLE_RATE = 22050  # the paper's, at which all metrics are computed


class Undefined(ValueError):
    """A metric has no value for these signals; the message gives the reason."""


class Comparison(NamedTuple):
    """Finite metrics of one output, in the order of :data:`COLUMNS`, and the reasons for those without a value."""

    metrics: dict[str, float]
    left_out: dict[str, str]


def compare(output: Tensor, target: Tensor, sample_rate: int) -> Comparison:
    """Compute all metrics of an output.

    Args:
        output, target: ``(channels, samples)``, aligned up to known latencies.
        sample_rate: of both, in Hz.

    Returns:
        :data:`METRICS`, ``latency_samples``, the remaining delay of the output at ``sample_rate``, and ``polarity``,
        -1 if it is inverted. Delay (at most 50 ms) and polarity are those of :func:`~dfx.alignment.find_delay` in
        the loudest 10 s of the target. All are left out if one of the signals is silent.

    Raises:
        ValueError: if the signals differ in shape, are empty, or are not finite.
    """
    if output.shape != target.shape or output.dim() != 2 or output.numel() == 0:
        raise ValueError(f"output {tuple(output.shape)} and target {tuple(target.shape)} cannot be compared")
    if not (output.isfinite().all() and target.isfinite().all()):
        raise ValueError("output or target is not finite")
    comparison = Comparison({}, {})
    native = output, target
    try:
        _check_sounding(output=output, target=target)
    except Undefined as reason:
        return Comparison({}, dict.fromkeys(COLUMNS, str(reason)))
    output, target = (resample(audio, sample_rate, METRIC_SAMPLE_RATE, _SINC_ZEROS) for audio in native)
    for name, metric in METRICS.items():
        try:
            comparison.metrics[name] = metric(output, target)
        except Undefined as reason:
            comparison.left_out[name] = str(reason)
    comparison.metrics.update(zip(ALIGNMENT, _alignment(*native, sample_rate)))
    return comparison


def mrstft(output: Tensor, target: Tensor) -> float:
    """Return auraloss' multi-resolution STFT error with its default options; 0 for equal signals.

    Raises:
        Undefined: if one of them is silent.
    """
    _check_sounding(output=output, target=target)
    return loss_of_recordings(_MRSTFT, output[None].float(), target[None].float())


def mrstft_level_matched(output: Tensor, target: Tensor) -> float:
    """Return :func:`mrstft` of the output scaled to the target's root mean square.

    Raises:
        Undefined: if one of them is silent.
    """
    _check_sounding(output=output, target=target)
    return mrstft(matching_gain(output, target) * output, target)


def mfcc_cosine(output: Tensor, target: Tensor) -> float:
    """Return the cosine distance between MFCCs as in the paper's code, in [0, 2].

    13 MFCCs are computed of each signal (1024-sample windows, hop 256; 128 mel bands in dB below the maximum, at most
    80 dB), which do not depend on its level. The distance is that between the time series of one coefficient, averaged
    over coefficients, as in the code of Martinez Ramirez et al. 2021.

    Raises:
        Undefined: if one of them, or the mean of its channels, is silent.
    """
    return _mfcc_distance(output, target, dim=1)


def mfcc_cosine_per_frame(output: Tensor, target: Tensor) -> float:
    """Return the cosine distance between the 13 MFCCs of a frame, averaged over frames, in [0, 2].

    This is the usual "MFCC distance". The MFCCs are those of :func:`mfcc_cosine`, but the values are much smaller and
    not comparable.

    Raises:
        Undefined: as there.
    """
    return _mfcc_distance(output, target, dim=0)


def esr(output: Tensor, target: Tensor) -> float:
    """Return the error-to-signal ratio, the energy of the difference over that of the target; 1 for a silent output.

    Differences of level, delay and polarity count as errors (Wright et al. 2020, without their pre-emphasis).

    Raises:
        Undefined: if the target is silent.
    """
    _check_sounding(target=target)
    return float(_ESR(output.double().flatten(), target.double().flatten()))


def lufs_difference(output: Tensor, target: Tensor) -> float:
    """Return the absolute difference of integrated loudness (ITU-R BS.1770-4), in LU.

    Raises:
        Undefined: if one of them has no loudness: it is silent, or below -70 LUFS.
    """
    _check_sounding(output=output, target=target)
    values = {"output": lufs(output, METRIC_SAMPLE_RATE), "target": lufs(target, METRIC_SAMPLE_RATE)}
    for name, value in values.items():
        if value <= SILENCE_LUFS:
            raise Undefined(f"the {name} is below {SILENCE_LUFS:g} LUFS, where it has no loudness")
    return abs(values["output"] - values["target"])


def crest_factor_difference_db(output: Tensor, target: Tensor) -> float:
    """Return the absolute difference of crest factors, peak over root mean square of all channels, in dB.

    Raises:
        Undefined: if one of them is silent.
    """
    _check_sounding(output=output, target=target)
    crest_factors = [amplitude_to_db(float(audio.abs().max() / rms(audio.double()))) for audio in (output, target)]
    return abs(crest_factors[0] - crest_factors[1])


def centroid_difference_hz(output: Tensor, target: Tensor) -> float:
    """Return the absolute difference of spectral centroids, in Hz.

    The centroid is the mean frequency of the average magnitude spectrum (2048-sample Hann windows, hop 512, of the
    mean of the channels), weighted by magnitude: loud frames count more than quiet ones.

    Raises:
        Undefined: if one of them, or the mean of its channels, is silent.
    """

    output, target = _means(output, target)

    def centroid_hz(audio: Tensor) -> float:
        spectrum = torch.from_numpy(magnitude_spectrogram(audio.numpy(), 2048, 512).mean(axis=-1))
        frequencies = torch.linspace(0, METRIC_SAMPLE_RATE / 2, len(spectrum), dtype=torch.float64)
        return float((spectrum * frequencies).sum() / spectrum.sum())

    return abs(centroid_hz(output) - centroid_hz(target))


def bark_spectral_distortion(output: Tensor, target: Tensor) -> float:
    """Return the energy of the difference of loudness patterns over that of the target's pattern; 0 if they are equal.

    This is the Bark spectral distortion of Wang, Sekey and Gersho 1992 with the loudness, in sones per band and frame,
    of :func:`~dfx.audio.hearing.specific_loudness`: a sine of full scale is taken to have 92 dB SPL. Differences below
    the threshold of hearing or masked by the target count little; differences of level and balance count. It is 1 for
    an inaudible output, and not bounded above.

    Raises:
        Undefined: if one of them is silent, or the target is below the threshold of hearing.
    """
    _check_sounding(output=output, target=target)
    reached, wanted = (specific_loudness(audio.numpy(), METRIC_SAMPLE_RATE) for audio in (output, target))
    if not wanted.any():
        raise Undefined("the target is below the threshold of hearing")
    return float(((reached - wanted) ** 2).sum() / (wanted**2).sum())


def level_change(input: Tensor, output: Tensor, spans: Sequence[Span], sample_rate: int) -> float:
    """Return the difference, output minus input, of the median levels in some spans, in dB.

    Levels are those of frames of 20 ms, at least -100 dBFS. The median describes most of a breath, even if a gate
    passes its beginning. The difference is negative for a quieter output, and 0 without any frame.

    Args:
        input, output: ``(channels, samples)``.
        spans: in seconds; parts outside of the signals or shorter than a frame are ignored.
        sample_rate: of both, in Hz.
    """
    before, after = (_levels_db(audio, spans, sample_rate) for audio in (input, output))
    return float(after.quantile(0.5)) - float(before.quantile(0.5)) if len(before) else 0.0


def damage(input: Tensor, output: Tensor, spans: Sequence[Span], sample_rate: int) -> float:
    """Return the mean absolute level difference, in dB, of the frames of spans that should be preserved.

    Arguments as in :func:`level_change`; unlike the median there, the mean reflects changes of a few frames, such as
    the beginnings of words. Frames whose input is below -80 dBFS are ignored.
    """
    before, after = (_levels_db(audio, spans, sample_rate) for audio in (input, output))
    audible = before > _INAUDIBLE_DB
    return float((after - before)[audible].abs().mean()) if audible.any() else 0.0


def attenuated(input: Tensor, target: Tensor, sample_rate: int) -> list[Span] | None:
    """Find the frames of 20 ms in which a target is at least 3 dB below its input.

    This is meaningful only for targets that preserve the rest. On the shipped nonspeech pairs it finds 97 % of the
    frames that are known to be removed, and no others.

    Returns:
        Spans in seconds. None if the target attenuates nothing, or is within 1 dB of the input for less than a third
        of the time in which the input is above -80 dBFS.
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
    """Return the parts of a recording between spans, which may overlap and have any order."""
    gaps: list[Span] = []
    position = 0.0
    for start, end in sorted(spans):
        if start > position:
            gaps.append((position, min(start, seconds)))
        position = max(position, end)
    return [*gaps, (position, seconds)] if position < seconds else gaps


METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {
    metric.__name__: metric
    for metric in (
        mrstft, mrstft_level_matched, mfcc_cosine, mfcc_cosine_per_frame,
        esr, lufs_difference, crest_factor_difference_db, centroid_difference_hz,
        bark_spectral_distortion,
    )
}  # fmt: skip
"""Metrics by name; lower is better."""

ALIGNMENT = ("latency_samples", "polarity")
COLUMNS = (*METRICS, *ALIGNMENT)
"""Names of all values that :func:`compare` returns."""

_INAUDIBLE_DB = -80.0
_MAX_DELAY_SECONDS = 0.05
_SINC_ZEROS = 6  # torchaudio's default
_ALIGNED_SECONDS = 10
_MRSTFT = make_loss(LossOptions(kind="mrstft"))
_ESR = auraloss.time.ESRLoss(eps=0.0)
_MEL = torchaudio.transforms.MelSpectrogram(
    METRIC_SAMPLE_RATE, n_fft=1024, hop_length=256, n_mels=128, norm="slaney", mel_scale="slaney"
).double()
_DCT = torchaudio.functional.create_dct(13, 128, norm="ortho").double()


def _check_sounding(described: str = "{} is silent", **signals: Tensor) -> None:
    """Raise :class:`Undefined` if a signal, ``(channels, samples)``, is silent but for a constant offset."""
    for name, audio in signals.items():
        offset = audio.mean(dim=1, keepdim=True) if audio.shape[1] > 1 else 0.0
        if (audio - offset).abs().max() < SILENCE:
            raise Undefined("the " + described.format(name))


def _means(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means of the channels, float64 ``(samples,)``, of signals that are not silent."""
    _check_sounding(output=output, target=target)
    means = output.double().mean(dim=0, keepdim=True), target.double().mean(dim=0, keepdim=True)
    _check_sounding("channels of the {} cancel in their mean", output=means[0], target=means[1])
    return means[0][0], means[1][0]


def _alignment(output: Tensor, target: Tensor, sample_rate: int) -> tuple[float, float]:
    # The loudest part gives the same delay as the whole recording, at bounded cost.
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


def _mfcc(audio: Tensor) -> Tensor:
    """Map ``(samples,)``, padded to one window, to ``(13, frames)``."""
    padding = max(0, 1024 - len(audio))
    mel = _MEL(torch.nn.functional.pad(audio, (0, padding)))
    return _DCT.T @ (10 * torch.log10((mel / mel.max()).clamp(min=1e-8)))


def _mfcc_distance(output: Tensor, target: Tensor, dim: int) -> float:
    """Return the mean of ``1 - cosine`` of the MFCCs along a dimension; equal vectors have the distance 0."""
    a, b = (_mfcc(audio) for audio in _means(output, target))
    norms = a.norm(dim=dim) * b.norm(dim=dim)
    cosine = torch.where(norms > 0, (a * b).sum(dim=dim) / norms.clamp(min=1e-30), 0.0)
    cosine = torch.where((a == b).all(dim=dim), 1.0, cosine)  # also for zero vectors
    return float((1 - cosine).clamp(min=0).mean())
