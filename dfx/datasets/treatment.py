"""What a task does to its audio: always (a treatment), and in training and validation only (an augmentation)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.signal
import torch
from torch import Tensor
from torch.nn import functional

from dfx.audio.levels import REMOVED_DB, db_to_amplitude, level_frame_samples, rms
from dfx.audio.loudness import SILENCE_LUFS, lufs
from dfx.audio.reading import AudioFile, AudioSource
from dfx.datasets.pairs import Pair
from dfx.errors import UserError

Side = Literal["input", "target"]

# After so many periods of the cutoff, what a filter of 4th order still rings with is lost in float32.
_RINGING_PERIODS = 12


@dataclass(frozen=True)
class Treatment:
    """What is done to a recording before anything hears it, the same in training, evaluation and rendering.

    Args:
        highpass_hz: the cutoff of a Butterworth high-pass of 4th order, run forwards and backwards and so
            without phase, on input and target; none by default.
        input_lufs: the integrated loudness (ITU-R BS.1770) that the whole input is brought to by one gain; none
            by default. An input below -70 LUFS, or silent, has no loudness and is left as it is.

    Raises:
        UserError: for a cutoff that is not positive.
    """

    highpass_hz: float | None = None
    input_lufs: float | None = None

    def __post_init__(self) -> None:
        if self.highpass_hz is not None and not self.highpass_hz > 0:
            raise UserError(f"highpass_hz is {self.highpass_hz:g}; it must be above 0")

    def __call__(self, audio: Tensor, sample_rate: int, side: Side = "input") -> Tensor:
        """A whole recording, ``(channels, samples)``; beyond its ends it counts as silent.

        Raises:
            UserError: if the cutoff is not below half of the sample rate.
        """
        margin = self._margin(sample_rate)
        audio = self._highpass(torch.nn.functional.pad(audio, (margin, margin)), sample_rate)
        return audio * self._gain(audio, sample_rate) if side == "input" else audio

    def read(self, file: AudioFile, start: int, samples: int, sample_rate: int, channels: int, side: Side) -> Tensor:
        """A window of the treated file, as :meth:`AudioFile.read`: the same whether read whole or in parts."""
        audio = self.read_filtered(file, start, samples, sample_rate, channels)
        if side == "input" and self.input_lufs is not None:
            audio = audio * _gain_of_file(self, file, sample_rate, channels)
        return audio

    def read_filtered(self, file: AudioSource, start: int, samples: int, sample_rate: int, channels: int) -> Tensor:
        """As :meth:`read`, but at the file's own level."""
        margin = self._margin(sample_rate)
        audio = self._highpass(file.read(start - margin, samples + 2 * margin, sample_rate, channels), sample_rate)
        if margin:
            # What rings beyond the ends of a file is cut off there, as it is from a whole recording.
            n = torch.arange(start, start + samples)
            audio = audio * ((n >= 0) & (n < file.samples_at(sample_rate)))
        return audio

    def _margin(self, sample_rate: int) -> int:
        return math.ceil(_RINGING_PERIODS * sample_rate / self.highpass_hz) if self.highpass_hz else 0

    def _highpass(self, audio: Tensor, sample_rate: int) -> Tensor:
        """``(channels, margin + samples + margin)`` to ``(channels, samples)``."""
        if self.highpass_hz is None:
            return audio
        sections = self.sections(sample_rate)
        forwards = scipy.signal.sosfilt(sections, audio.double().numpy())
        backwards = scipy.signal.sosfilt(sections, forwards[:, ::-1])[:, ::-1]
        margin = self._margin(sample_rate)
        return torch.from_numpy(backwards[:, margin : backwards.shape[1] - margin].astype(np.float32))

    def sections(self, sample_rate: int) -> np.ndarray:
        """The high-pass at a sample rate, as ``scipy.signal.sosfilt`` takes it.

        Raises:
            UserError: if the cutoff is not below half of the sample rate.
        """
        if self.highpass_hz >= sample_rate / 2:
            raise UserError(f"highpass_hz is {self.highpass_hz:g}; at {sample_rate} Hz it must be below half of that")
        return scipy.signal.butter(4, self.highpass_hz, "highpass", fs=sample_rate, output="sos")

    def _gain(self, audio: Tensor, sample_rate: int) -> float:
        if self.input_lufs is None:
            return 1.0
        loudness = lufs(audio, sample_rate)
        return db_to_amplitude(self.input_lufs - loudness) if loudness > SILENCE_LUFS else 1.0


@functools.cache
def _gain_of_file(treatment: Treatment, file: AudioFile, sample_rate: int, channels: int) -> float:
    audio = treatment.read_filtered(file, 0, file.samples_at(sample_rate), sample_rate, channels)
    return treatment._gain(audio, sample_rate)


class TreatedPairs:
    """Pairs of files as a task hears them.

    Args:
        pairs: the files.
        treatment: what is done to them.
        sample_rate, channels: of what is returned.
    """

    def __init__(self, pairs: Sequence[Pair], treatment: Treatment, sample_rate: int, channels: int) -> None:
        self.pairs = pairs
        self.treatment = treatment
        self.sample_rate = sample_rate
        self.channels = channels

    def __len__(self) -> int:
        return len(self.pairs)

    def samples(self, pair: int) -> int:
        """The length of a pair."""
        return self.pairs[pair].input.samples_at(self.sample_rate)

    def read(self, pair: int, start: int, samples: int) -> tuple[Tensor, Tensor]:
        """A window of input and target, each ``(channels, samples)``."""
        files = self.pairs[pair]
        read = functools.partial(
            self.treatment.read, start=start, samples=samples, sample_rate=self.sample_rate, channels=self.channels
        )
        return read(files.input, side="input"), read(files.target, side="target")


@dataclass(frozen=True)
class Augmentation:
    """What is done to every excerpt of training, anew each time, and of validation, always alike.

    Args:
        noise_db: the signal-to-noise ratio, from which to which, of white noise in the input only; the signal
            counts as loud as it is in the root mean square over the excerpt. None adds none.
        gain: the factor, from which to which, on input and target alike. None is 1.
        deeper_db: by how much the target is lowered further where it takes something away, which is where it is at
            least 3 dB under the input in a frame of 20 ms. What is trained so removes more than its targets.

    Raises:
        UserError: for a range that is not two numbers, the lower first, gains that are not positive, or a
            ``deeper_db`` that is negative or not finite.
    """

    noise_db: tuple[float, float] | None = None
    gain: tuple[float, float] | None = None
    deeper_db: float = 0.0

    def __post_init__(self) -> None:
        for name in ("noise_db", "gain"):
            ends = getattr(self, name)
            if ends is not None and not (len(ends) == 2 and ends[0] <= ends[1]):
                raise UserError(f"{name} is {list(ends)}; it must be two numbers, the lower first")
        if self.gain is not None and not self.gain[0] > 0:
            raise UserError(f"gain begins at {self.gain[0]:g}; it must be above 0")
        if not 0 <= self.deeper_db < math.inf:
            raise UserError(f"deeper_db is {self.deeper_db:g}; it must be at least 0, and finite")

    def __call__(self, input: Tensor, target: Tensor, sample_rate: int, seed: int) -> tuple[Tensor, Tensor]:
        """An excerpt, input and target ``(channels, samples)``; the same for the same seed."""
        if self.deeper_db:
            target = _deepened(target, input, self.deeper_db, sample_rate)
        generator = torch.Generator().manual_seed(seed)

        def uniform(low: float, high: float) -> float:
            return low + (high - low) * float(torch.rand((), generator=generator))

        if self.noise_db is not None:
            level = rms(input) * db_to_amplitude(-uniform(*self.noise_db))
            input = input + level * torch.randn(input.shape, generator=generator)
        if self.gain is not None:
            gain = uniform(*self.gain)
            input, target = gain * input, gain * target
        return input, target


def _deepened(target: Tensor, input: Tensor, by_db: float, sample_rate: int) -> Tensor:
    """The target, quieter still where it is well under the input, with fades from frame to frame."""
    frame = level_frame_samples(sample_rate)
    before, after = (
        functional.avg_pool1d(audio.square().mean(dim=0, keepdim=True), frame, frame, ceil_mode=True)
        for audio in (input, target)
    )
    falls = (after < before * 10 ** (-REMOVED_DB / 10)).to(target)
    gain_db = -by_db * functional.interpolate(falls[None], scale_factor=frame, mode="linear")[0, :, : target.shape[1]]
    return target * db_to_amplitude(gain_db)
