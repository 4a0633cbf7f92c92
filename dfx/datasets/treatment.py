"""Changes to a task's audio: the treatment always, the augmentation in training and validation only."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from dfx.audio.levels import REMOVED_DB, db_to_amplitude, level_frame_samples, rms
from dfx.audio.loudness import SILENCE_LUFS, lufs
from dfx.audio.reading import AudioSource
from dfx.datasets.degradation import Change
from dfx.datasets.pairs import Pair
from dfx.errors import UserError, check_numbers

Side = Literal["input", "target"]

LARGEST_GAIN_DB = 30.0
"""Limit of the gain that raises an input to its loudness: more would raise noise."""
_LEAD_IN_SECONDS = 0.5  # rendered ahead of a window, so that its filters and level detectors reach their steady state
_RINGING_PERIODS = 12  # of the cutoff, after which a filter of 4th order rings below the resolution of float32


@dataclass(frozen=True)
class Treatment:
    """Preprocessing of recordings, the same in training, evaluation and rendering.

    Args:
        highpass_hz: the cutoff of a zero-phase high-pass (Butterworth of 4th order, run forwards and backwards) for
            input and target; none by default.
        input_lufs: the integrated loudness (ITU-R BS.1770) to which one gain brings the whole input; none by
            default. Loudness is that of the file's channels, also where their mean is read. The gain is at most
            30 dB; an input below -70 LUFS has no loudness and is left unchanged.

    Raises:
        UserError: if a number is out of its range.
    """

    highpass_hz: float | None = None
    input_lufs: float | None = None

    def __post_init__(self) -> None:
        check_numbers(vars(self), highpass_hz="(0, 384000]", input_lufs="[-70, 0]")

    def __call__(self, audio: Tensor, sample_rate: int, side: Side = "input") -> Tensor:
        """Treat a whole recording, float ``(channels, samples)``, which is silent outside of its ends.

        Raises:
            UserError: if the cutoff is not below half of the sample rate.
        """
        margin = self._margin(sample_rate)
        audio = self._highpass(functional.pad(audio, (margin, margin)), sample_rate)
        return audio * self._gain(audio, sample_rate) if side == "input" else audio

    def read(self, file: AudioSource, start: int, samples: int, sample_rate: int, channels: int, side: Side) -> Tensor:
        """Read a window of the treated file, as :meth:`AudioSource.read` does; adjacent windows join without a seam."""
        audio = self.read_filtered(file, start, samples, sample_rate, channels)
        if side == "input" and self.input_lufs is not None:
            audio = audio * db_to_amplitude(self.gain_db(_loudness_of_file(self, file, sample_rate, channels)))
        return audio

    def read_changed(
        self, file: AudioSource, start: int, samples: int, sample_rate: int, channels: int, change: Change
    ) -> Tensor:
        """Read a window of an input that a change makes from a recording, and treat it.

        The loudness of the whole input is taken to be that of the recording, plus the change within the window.
        """
        window = start, samples, sample_rate, channels
        changed = self.read_filtered(file, *window, change)
        if self.input_lufs is None:
            return changed
        added_lu = lufs(changed, sample_rate) - lufs(self.read_filtered(file, *window), sample_rate)
        loudness = _loudness_of_file(self, file, sample_rate, channels) + added_lu
        return changed * db_to_amplitude(self.gain_db(loudness))

    def read_filtered(
        self,
        source: AudioSource,
        start: int,
        samples: int,
        sample_rate: int,
        channels: int,
        change: Change | None = None,
    ) -> Tensor:
        """Read as :meth:`read` does, but without the gain; a change is applied ahead of the high-pass."""
        margin, lead = self._margin(sample_rate), round(_LEAD_IN_SECONDS * sample_rate) if change else 0
        audio = source.read(start - lead - margin, lead + samples + 2 * margin, sample_rate, channels)
        audio = self._highpass(change(audio) if change else audio, sample_rate)[:, lead:]
        if margin or change:
            # Ringing outside of the file is cut off, as it is from a whole recording.
            n = torch.arange(start, start + samples)
            audio = audio * ((n >= 0) & (n < source.samples_at(sample_rate)))
        return audio

    def sections(self, sample_rate: int) -> np.ndarray:
        """Return the high-pass as second-order sections for ``scipy.signal.sosfilt``.

        Raises:
            UserError: if there is none, or its cutoff is not below half of the sample rate.
        """
        if self.highpass_hz is None:
            raise UserError("the treatment has no high-pass: set highpass_hz")
        if self.highpass_hz >= sample_rate / 2:
            raise UserError(f"highpass_hz is {self.highpass_hz:g}; at {sample_rate} Hz it must be below half of that")
        return scipy.signal.butter(4, self.highpass_hz, "highpass", fs=sample_rate, output="sos")

    def gain_db(self, loudness_lufs: float) -> float:
        """Return the gain for an input of some loudness."""
        if self.input_lufs is None or loudness_lufs <= SILENCE_LUFS:
            return 0.0
        return min(self.input_lufs - loudness_lufs, LARGEST_GAIN_DB)

    def _margin(self, sample_rate: int) -> int:
        return math.ceil(_RINGING_PERIODS * sample_rate / self.highpass_hz) if self.highpass_hz else 0

    def _highpass(self, audio: Tensor, sample_rate: int) -> Tensor:
        """Map ``(channels, margin + samples + margin)`` to ``(channels, samples)``."""
        if self.highpass_hz is None:
            return audio
        sections = self.sections(sample_rate)
        forwards = scipy.signal.sosfilt(sections, audio.double().numpy())
        backwards = scipy.signal.sosfilt(sections, forwards[:, ::-1])[:, ::-1]
        margin = self._margin(sample_rate)
        return torch.from_numpy(backwards[:, margin : backwards.shape[1] - margin].astype(np.float32))

    def _gain(self, audio: Tensor, sample_rate: int) -> float:
        return 1.0 if self.input_lufs is None else db_to_amplitude(self.gain_db(lufs(audio, sample_rate)))


@functools.cache
def _loudness_of_file(treatment: Treatment, file: AudioSource, sample_rate: int, channels: int) -> float:
    measured = file.channels if channels == 1 else channels
    return lufs(treatment.read_filtered(file, 0, file.samples_at(sample_rate), sample_rate, measured), sample_rate)


class TreatedPairs(Dataset):
    """Pairs of files, read with a treatment, at one sample rate (in Hz) and number of channels.

    Indexing returns whole pairs or, with ``seconds``, their beginnings of at most that length.

    Raises:
        UserError: if ``seconds`` is out of its range.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        treatment: Treatment,
        sample_rate: int,
        channels: int,
        seconds: float | None = None,
    ) -> None:
        check_numbers({"seconds": seconds}, seconds="[0.01, 86400]")
        self.pairs, self.treatment = pairs, treatment
        self.sample_rate, self.channels = sample_rate, channels
        self.samples = None if seconds is None else round(seconds * sample_rate)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a pair: ``input`` and ``target``, float32 ``(channels, samples)``, ``name`` and ``group``.

        A pair with a reference also has ``reference``, which is whole and not treated, ``(channels, samples)``, and
        ``reference_title``.
        """
        pair = self.pairs[index]
        samples = pair.input.samples_at(self.sample_rate)
        input, target = self.read(index, 0, min(samples, self.samples or samples))
        whole = {"input": input, "target": target, "name": pair.name, "group": pair.group}
        if pair.reference is not None:
            length = pair.reference.samples_at(self.sample_rate)
            whole["reference"] = pair.reference.read(0, length, self.sample_rate, self.channels)
            whole["reference_title"] = pair.reference.title
        return whole

    def read(
        self, pair: int, start: int, samples: int, change: Change | None = None, style: Change | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return a window of input and target, each ``(channels, samples)``.

        A ``style`` changes the target, and a ``change`` makes the input of it; without one, the input is real.
        """
        window = start, samples, self.sample_rate, self.channels
        files = self.pairs[pair]
        target = self.treatment.read_filtered(files.target, *window, style)
        if change:
            made = (lambda audio: change(style(audio))) if style else change
            return self.treatment.read_changed(files.target, *window, made), target
        return self.treatment.read(files.input, *window, "input"), target

    def read_reference(self, pair: int, start: int, samples: int, style: Change | None = None) -> Tensor:
        """Return a window of the reference, ``(channels, samples)``, treated as a target."""
        reference = self.pairs[pair].reference
        assert reference is not None
        return self.treatment.read_filtered(reference, start, samples, self.sample_rate, self.channels, style)


@dataclass(frozen=True)
class Augmentation:
    """Random changes to excerpts: drawn again in each epoch of training, fixed in validation.

    Args:
        noise_db: the lowest and highest signal-to-noise ratio, in dB, of white noise that is added to the input
            only; the signal level is the root mean square of the excerpt, without the context around it. None adds no
            noise.
        gain: the lowest and highest factor for input and target. None leaves them unchanged.
        deeper_db: attenuation, in dB, of the targets of training and validation wherever they already lie at least 3 dB
            below the input, measured in frames of 20 ms. The model learns to attenuate more than the data do.

    Raises:
        UserError: for a number out of its range, or a range that is not two ascending numbers.
    """

    noise_db: tuple[float, float] | None = None
    gain: tuple[float, float] | None = None
    deeper_db: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(vars(self), noise_db="[-200, 200]", gain="(0, 1000]", deeper_db="[0, 200]")
        for name in ("noise_db", "gain"):
            ends = getattr(self, name)
            if ends is not None and not (isinstance(ends, (list, tuple)) and len(ends) == 2 and ends[0] <= ends[1]):
                raise UserError(f"{name} is {ends!r}; it must be two numbers, the lower first")

    def __call__(
        self, input: Tensor, target: Tensor, sample_rate: int, seed: int, excerpt: slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """Augment the input and target of an excerpt, each ``(channels, samples)``; equal seeds give equal results.

        Args:
            excerpt: its samples among those of its context; by default all.
        """
        if self.deeper_db:
            target = _attenuate_further(target, input, self.deeper_db, sample_rate)
        generator = torch.Generator().manual_seed(seed)

        def uniform(low: float, high: float) -> float:
            return low + (high - low) * float(torch.rand((), generator=generator))

        if self.noise_db is not None:
            level = rms(input[..., excerpt]) * db_to_amplitude(-uniform(*self.noise_db))
            input = input + level * torch.randn(input.shape, generator=generator)
        if self.gain is not None:
            gain = uniform(*self.gain)
            input, target = gain * input, gain * target
        return input, target


def _attenuate_further(target: Tensor, input: Tensor, by_db: float, sample_rate: int) -> Tensor:
    """Lower the target in the frames where it lies well below the input, with linear fades in dB between frames."""
    frame = level_frame_samples(sample_rate)
    input_power, target_power = (
        functional.avg_pool1d(audio.square().mean(dim=0, keepdim=True), frame, frame, ceil_mode=True)
        for audio in (input, target)
    )
    removed = (target_power < input_power * 10 ** (-REMOVED_DB / 10)).to(target)
    gain_db = -by_db * functional.interpolate(removed[None], scale_factor=frame, mode="linear")[0, :, : target.shape[1]]
    return target * db_to_amplitude(gain_db)
