"""Measurements of the recordings of a pair, and sentences about what looks wrong in a data set."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from dfx.audio.levels import SILENCE, amplitude_to_db, frame_levels_db
from dfx.audio.loudness import Loudness
from dfx.audio.reading import AudioSource
from dfx.datasets.pairs import Pair
from dfx.datasets.splits import first_of

_BLOCK_SECONDS = 10
_QUIET_DB = -60.0  # level of a frame of 20 ms that counts as silent
_FULL_SCALE = 0.999
_CLIPPED_RUN = 3  # consecutive samples at full scale
_MAX_OFFSET_SECONDS = 0.5
_OFFSET_MS = 2.0  # the phase of filters moves the peak by less
_WHITENING = 0.8  # 1 is the phase transform, 0 the plain correlation, which finds the periods of notes instead
_RELATED = 7.0  # least sharpness: above 11 for the shipped pairs, mostly below 6 for unrelated speech and music
_EQUAL = 1e-4  # peak of the difference, -80 dBFS
_SILENT_SHARE = 0.9
_UNUSUAL_DB = 12.0
_GLANCED_PAIRS = 8


@dataclass(frozen=True)
class Side:
    """Measurements of one file, at its own sample rate.

    Args:
        path, sample_rate, channels, seconds: of the file.
        peak_db, lufs: peak in dBFS and integrated loudness in LUFS, at least -100 and -70.
        silent: share of the frames of 20 ms below -60 dBFS.
        clipped: number of samples in runs of at least three at full scale.
    """

    path: str
    sample_rate: int
    channels: int
    seconds: float
    peak_db: float
    lufs: float
    silent: float
    clipped: int


@dataclass(frozen=True)
class Look:
    """Measurements of a pair.

    Args:
        name, split: of the pair.
        input, target: of its files.
        offset_ms: delay of the target, positive where it is late; None if one of the files is silent.
        sharpness: height of the whitened cross-correlation at that delay, relative to its root mean square; noise that
            is unrelated has about 5.
        inverted: the correlation is negative there.
        unchanged: target and input are equal there, up to -80 dBFS.
    """

    name: str
    split: str
    input: Side
    target: Side
    offset_ms: float | None = None
    sharpness: float | None = None
    inverted: bool = False
    unchanged: bool = False

    @property
    def gain_db(self) -> float:
        """The loudness of the target relative to the input, in LU."""
        return self.target.lufs - self.input.lufs


def glance(pairs: Sequence[Pair]) -> list[str]:
    """Return :func:`describe_oddities` for a few pairs, from 10 s in the middle of each.

    Raises:
        DataError: if a file cannot be decoded.
    """
    step = max(1, len(pairs) // _GLANCED_PAIRS)
    return describe_oddities([inspect_pair(pair, whole=False) for pair in pairs[::step][:_GLANCED_PAIRS]])


def inspect_pair(pair: Pair, split: str = "", whole: bool = True) -> Look:
    """Measure a pair from its whole files, or from 10 s in their middle.

    Offset, sharpness and polarity are those of the 10 s in which the target is loudest.

    Raises:
        DataError: if a file cannot be decoded.
    """
    samples, block = pair.input.samples, _BLOCK_SECONDS * pair.input.sample_rate
    starts = range(0, samples, block) if whole else [max(0, (samples - block) // 2)]
    input, _ = _measure(pair.input, starts, block)
    target, loudest = _measure(pair.target, starts, block)
    if min(input.peak_db, target.peak_db) <= amplitude_to_db(SILENCE):
        return Look(pair.name, split, input, target)
    channels = input.channels if input.channels == target.channels else 1
    window = loudest, min(block, samples - loudest), input.sample_rate, channels
    sides = pair.input.read(*window), pair.target.read(*window)
    return Look(pair.name, split, input, target, *_compare(*sides, input.sample_rate))


def _measure(file: AudioSource, starts: Iterable[int], block: int) -> tuple[Side, int]:
    """Measure a file, and return the start of its loudest block too."""
    loudness = Loudness(file.sample_rate)
    peak, clipped, loudest = 0.0, 0, (-1.0, 0)
    levels: list[Tensor] = []
    for start in starts:
        audio = file.read(start, min(block, file.samples - start), file.sample_rate, file.channels)
        loudness.add(audio)
        peak = max(peak, float(audio.abs().max()))
        clipped += _count_clipped(audio)
        levels.append(frame_levels_db(audio, file.sample_rate))
        loudest = max(loudest, (float(audio.square().sum()), start))
    of_frames = torch.cat(levels)
    silent = float((of_frames < _QUIET_DB).double().mean()) if len(of_frames) else 0.0
    measured = amplitude_to_db(peak), loudness.integrated(), silent, clipped
    return Side(file.path, file.sample_rate, file.channels, file.seconds, *measured), loudest[1]


def _count_clipped(audio: Tensor) -> int:
    """Return how many samples of ``(channels, samples)`` are in runs at one end of full scale."""
    count = 0
    for is_full in (audio >= _FULL_SCALE, audio <= -_FULL_SCALE):
        if audio.shape[1] >= _CLIPPED_RUN and is_full.any():
            in_run = is_full.unfold(1, _CLIPPED_RUN, 1).all(dim=2)
            member = torch.nn.functional.pad(in_run, (_CLIPPED_RUN - 1,) * 2).unfold(1, _CLIPPED_RUN, 1).any(dim=2)
            count += int(member.sum())
    return count


def _compare(input: Tensor, target: Tensor, sample_rate: int) -> tuple[float | None, float | None, bool, bool]:
    """Return offset in ms, sharpness, whether the target is inverted, and whether it equals the input.

    The offset is that of the generalized cross-correlation (Knapp and Carter, 1976), also of distorted targets.
    """
    if min(float(audio.abs().max()) for audio in (input, target)) < SILENCE:
        return None, None, False, False
    samples = input.shape[1]
    reach = min(round(_MAX_OFFSET_SECONDS * sample_rate), samples // 2)
    size = 1 << (samples + reach - 1).bit_length()
    spectra = [torch.fft.rfft(audio.double(), size) for audio in (input, target)]
    cross = (spectra[0].conj() * spectra[1]).sum(dim=0)
    cross = cross / cross.abs().clamp(min=1e-6 * float(cross.abs().max())) ** _WHITENING
    lags = torch.arange(-reach, reach + 1)
    correlation = torch.fft.irfft(cross, size)[lags]
    best = int(correlation.abs().argmax())
    sharpness = float(correlation[best].abs() / correlation.square().mean().sqrt())
    unchanged = bool((target - input).abs().max() < _EQUAL) if target.shape == input.shape else False
    return 1000 * float(lags[best]) / sample_rate, sharpness, bool(correlation[best] < 0), unchanged


def describe_oddities(looks: Sequence[Look]) -> list[str]:
    """Return a sentence for every fault in how targets belong to inputs, with the names of some pairs."""
    related = [look for look in looks if look.sharpness is not None and look.sharpness >= _RELATED]
    unrelated = [look for look in looks if look.sharpness is not None and look.sharpness < _RELATED]
    late = [look for look in related if abs(look.offset_ms or 0) > _OFFSET_MS]
    typical = median(look.offset_ms or 0 for look in late) if late else 0.0
    clipped = [look for look in looks if look.input.clipped or look.target.clipped]
    found = [
        _sentence(
            late,
            "is early or late, by {} in the median: shift it, since the loss compares it with the same "
            "moment of the output".format(f"{typical:+.1f} ms"),
            lambda look: f"{look.offset_ms:+.1f} ms",
            looks,
        ),
        _sentence(
            [look for look in related if look.inverted],
            "has the opposite polarity of its input: invert it, or expect an output that keeps that of the input",
            None,
            looks,
        ),
        _sentence(
            unrelated,
            "does not resemble its input: is it the right partner, and at most 0.5 s early or late?",
            None,
            looks,
        ),
        _sentence([look for look in looks if look.unchanged], "equals its input, in its loudest 10 s", None, looks),
    ]
    if clipped:
        shown = _list(clipped, lambda look: f"{look.input.clipped} and {look.target.clipped} samples")
        found.append(f"{_count(clipped, looks)} clip, in input and target: {shown}")
    return [sentence for sentence in found if sentence]


def describe_levels(looks: Sequence[Look]) -> list[str]:
    """Return a sentence for silence and for levels that differ from those of the other pairs, from whole files."""
    found = []
    silent = [look for look in looks if max(look.input.silent, look.target.silent) > _SILENT_SHARE]
    if silent:
        shown = _list(silent, lambda look: f"{look.input.silent:.0%} and {look.target.silent:.0%}")
        found.append(
            f"{_count(silent, looks)} are silent for more than {_SILENT_SHARE:.0%} of input or target: {shown}"
        )
    sounding = [look for look in looks if look.sharpness is not None]
    usual = median(look.gain_db for look in sounding) if sounding else 0.0
    if unusual := [look for look in sounding if abs(look.gain_db - usual) > _UNUSUAL_DB]:
        shown = _list(unusual, lambda look: f"{look.gain_db:+.1f} LU")
        found.append(f"the target changes the loudness by {usual:+.1f} LU in the median, but elsewhere: {shown}")
    return found


def describe_conversion(files: Sequence[AudioSource], sample_rate: int, channels: int) -> list[str]:
    """Return a sentence for every way in which training changes files as it reads them, and for what they lack."""
    found = []
    for rate, count in sorted(Counter(file.sample_rate for file in files if file.sample_rate != sample_rate).items()):
        lack = f"; there is nothing above {rate / 2:g} Hz in them" if rate < sample_rate else ""
        found.append(f"{count} of {len(files)} files are resampled from {rate} to {sample_rate} Hz{lack}")
    folded = sum(file.channels > 1 for file in files)
    if channels == 1 and folded:
        found.append(f"{folded} of {len(files)} files have several channels, of which training takes the mean")
    repeated = sum(file.channels == 1 for file in files)
    if channels > 1 and repeated:
        found.append(f"{repeated} of {len(files)} files are mono: training repeats them on {channels} channels")
    return found


def _sentence(
    looks: Sequence[Look], fault: str, detail: Callable[[Look], str] | None, of: Sequence[Look]
) -> str | None:
    return f"{_count(looks, of)}: the target {fault} ({_list(looks, detail)})" if looks else None


def _count(looks: Sequence[Look], of: Sequence[Look]) -> str:
    return f"{len(looks)} of {len(of)} pairs"


def _list(looks: Sequence[Look], detail: Callable[[Look], str] | None = None) -> str:
    return first_of([f"{look.name} {detail(look)}" if detail else look.name for look in looks])
