"""Losses between output and target."""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import auraloss
import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dfx.alignment import align, find_delay
from dfx.errors import UserError, check_numbers


@dataclass
class LossOptions:
    """Which loss the encoder is trained on.

    Args:
        kind: ``mrstft``, auraloss' multi-resolution STFT loss (Yamamoto et al. 2020; Steinmetz and Reiss
            2020), which ignores polarity; or ``paper``, see :class:`PaperLoss`.
        fft_sizes: of ``mrstft``, in samples, 64 to 2048 in powers of two; a step, ``frames_per_step`` frames, must be
            longer than half of the largest.
        max_delay_samples: of ``paper``, the largest delay that is compensated; 0 compensates none.
        alignment: of ``paper``: ``signed`` compensates the delay; ``reversed`` does so with the wrong sign, as the
            paper's released code: a late output stays late, and an early one becomes twice as early; ``none`` ignores
            the delay.
        polarity: of ``paper``, the better of the two for each ``example``, or for the whole ``batch`` as in the
            paper's released code.
        time_weight: of ``paper``, weight of the distance in the time domain.
        magnitude_weight: of ``paper``, weight of the distance of the magnitudes.
        log_magnitude_weight: of ``paper``, weight of the distance of the logarithmic magnitudes.
    """

    kind: Literal["mrstft", "paper"] = "mrstft"
    fft_sizes: list[int] = field(default_factory=lambda: [1024, 2048, 512])
    max_delay_samples: int = 300
    alignment: Literal["signed", "reversed", "none"] = "signed"
    polarity: Literal["example", "batch"] = "example"
    time_weight: float = 10.0
    magnitude_weight: float = 1.0
    log_magnitude_weight: float = 1.0

    def __post_init__(self) -> None:
        check_numbers(vars(self), max_delay_samples="0..1000000000", fft_sizes="64..2048")
        check_numbers(vars(self), time_weight="[0, 1e6]", magnitude_weight="[0, 1e6]", log_magnitude_weight="[0, 1e6]")


def make_loss(options: LossOptions) -> Loss:
    """Return the loss that the options select."""
    return MultiResolutionSTFT(options.fft_sizes) if options.kind == "mrstft" else PaperLoss(options)


def loss_of_recordings(loss: Loss, output: Tensor, target: Tensor) -> float:
    """Return the loss of whole recordings, ``(batch, channels, samples)``; short ones are padded with silence."""
    return loss_against(loss, target)(output)


def loss_against(loss: Loss, target: Tensor) -> Callable[[Tensor], float]:
    """Return :func:`loss_of_recordings` as a function of the output alone; see :meth:`Loss.against`."""
    padding = max(0, loss.least_samples - target.shape[-1])

    def pad(audio: Tensor) -> Tensor:
        return nn.functional.pad(audio, (0, padding)).contiguous()

    compare = loss.against(pad(target))
    return lambda output: float(compare(pad(output)))


# FFT size: hop and window, in samples. Those of 512, 1024 and 2048 are auraloss' defaults.
_RESOLUTIONS = {64: (6, 30), 128: (12, 60), 256: (25, 120), 512: (50, 240), 1024: (120, 600), 2048: (240, 1200)}


class Loss(nn.Module):
    """A module ``(output, target) -> scalar`` that takes signals of at least ``least_samples``."""

    least_samples: int

    def against(self, target: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the loss as a function of the output alone, to compare many outputs with one target.

        Its values are those of the module to the last bit, without gradients. Outputs have the target's shape, type and
        device.
        """
        return torch.no_grad()(lambda output: self(output, target))


class MultiResolutionSTFT(Loss):
    """auraloss' multi-resolution STFT loss: spectral convergence and L1 of log magnitudes.

    auraloss is the definition. On a CPU, :class:`_SpectralDistance` computes the same in a fraction of the time.

    Args:
        fft_sizes: in samples, any of 64, 128, 256, 512, 1024 and 2048.

    Raises:
        UserError: for other sizes.
    """

    def __init__(self, fft_sizes: list[int]) -> None:
        super().__init__()
        unknown = [size for size in fft_sizes if size not in _RESOLUTIONS]
        if unknown or not fft_sizes:
            raise UserError(f"fft_sizes {fft_sizes}: choose any of {', '.join(map(str, _RESOLUTIONS))}")
        self.least_samples = max(fft_sizes) // 2 + 1
        self.fft_sizes = fft_sizes
        self.auraloss = auraloss.freq.MultiResolutionSTFTLoss(
            fft_sizes=fft_sizes,
            hop_sizes=[_RESOLUTIONS[size][0] for size in fft_sizes],
            win_lengths=[_RESOLUTIONS[size][1] for size in fft_sizes],
        )

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Compare two signals ``(batch, channels, samples)``.

        Raises:
            UserError: if the signals are too short for the largest FFT.
        """
        if output.shape[-1] < self.least_samples:
            raise UserError(
                f"{output.shape[-1]} samples are too few for an FFT of {2 * self.least_samples - 2}: "
                "lengthen the frame, take more `frames_per_step` or choose smaller `fft_sizes`"
            )
        if output.device.type != "cpu" or target.requires_grad:
            return self.auraloss(output, target)
        if output.dtype in (torch.float16, torch.bfloat16):
            output = output.float()
        return _SpectralDistance.apply(output, target.to(output.dtype), self.fft_sizes)

    def against(self, target: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the loss as a function of the output alone, as the base does.

        On a CPU, the target is analysed once. Its spectra take 56 bytes per sample with the default ``fft_sizes``.
        """
        if target.device.type != "cpu":
            return super().against(target)
        reach, groups = max(self.fft_sizes) // 2, _groups(target)
        targets = _extend(target, reach)
        kept = [_map(list, [_magnitudes(targets[group], size, reach) for group in groups]) for size in self.fft_sizes]

        @torch.no_grad()
        def compare(output: Tensor) -> Tensor:
            outputs, sums = _extend(output, reach), []
            for size, true_magnitudes in zip(self.fft_sizes, kept):
                spectra = [_analyse(outputs[group], size, reach) for group in groups]
                sums.append(np.sum(_map(_compare, spectra, true_magnitudes), axis=0))
            return output.new_tensor(_distance(sums))

        return compare


class _SpectralDistance(torch.autograd.Function):
    """auraloss' loss on a CPU, whose gradient is computed together with the value.

    Threads take groups of examples and go through them in blocks of frames. Groups and blocks depend on the shape
    alone, so the result does not depend on the number of threads.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, output: Tensor, target: Tensor, fft_sizes: list[int]) -> Tensor:
        reach, groups = max(fft_sizes) // 2, _groups(output)
        outputs, targets = (_extend(signals, reach) for signals in (output.detach(), target))
        gradient = torch.zeros_like(outputs) if ctx.needs_input_grad[0] else None
        all_sums = []
        for size in fft_sizes:
            spectra = [_analyse(outputs[group], size, reach) for group in groups]
            true_magnitudes = [_magnitudes(targets[group], size, reach) for group in groups]
            compared: list[list[_Compared] | None] = [None if gradient is None else [] for _ in groups]
            sums = np.sum(_map(_compare, spectra, true_magnitudes, compared), axis=0)
            if gradient is not None:
                differentiate = functools.partial(_differentiate, sums=sums, fft_size=size, reach=reach)
                _map(differentiate, compared, [gradient[group] for group in groups])
            all_sums.append(sums)
        if gradient is not None:
            ctx.gradient = _fold(gradient, reach).view_as(output) / len(fft_sizes)
        return output.new_tensor(_distance(all_sums))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        return slope * ctx.gradient, None, None


_FLOOR = 1e-4
"""auraloss' least magnitude of a bin."""

_GROUP_SAMPLES = 1 << 14
_BLOCK_BINS = 1 << 18

_Compared = tuple[Tensor, Tensor, Tensor]
"""The spectrum of a block of outputs, its magnitudes X and the differences X - Y, each ``(rows, frames, bins)``."""


_starting = threading.Lock()


@functools.cache
def _threads(process: int, count: int) -> ThreadPoolExecutor:
    """Return the threads of a process, which a fork does not inherit, as many as torch has.

    Each runs its operations alone. They are so small that dividing one costs more CPU time than the operation itself.
    """
    ready = threading.Barrier(count + 1)

    def start() -> None:
        torch.set_num_threads(1)
        # A new thread adopts the number of the process here, or else at its first operation.
        torch.get_num_threads()
        ready.wait()

    threads = ThreadPoolExecutor(count, thread_name_prefix="loss", initializer=start)
    for _ in range(count):
        threads.submit(int)
    ready.wait()
    # The number is that of the calling thread and of those that start later.
    torch.set_num_threads(count)
    return threads


def _groups(audio: Tensor) -> list[slice]:
    """Return the rows of each group of signals ``(batch, channels, samples)``."""
    count, rows = audio.shape[:2].numel(), max(1, _GROUP_SAMPLES // audio.shape[-1])
    return [slice(first, first + rows) for first in range(0, count, rows)]


def _map(function: Callable[..., Any], *groups: Iterable[Any]) -> list[Any]:
    """Apply a function to each group in the threads."""
    with _starting:
        threads = _threads(os.getpid(), torch.get_num_threads())
    return list(threads.map(function, *groups))


def _extend(audio: Tensor, reach: int) -> Tensor:
    """Reflect signals ``(batch, channels, samples)`` at either end: ``(rows, samples + 2 * reach)``."""
    return nn.functional.pad(audio.flatten(0, 1), (reach, reach), mode="reflect")


def _distance(sums: list[np.ndarray]) -> float:
    """Return the loss from the sums of each FFT size, those of :func:`_compare`."""
    squares, energies, log_ratios, bins = np.transpose(sums)
    return float(np.mean(np.sqrt(squares / energies) + log_ratios / bins))


def _first_sample(fft_size: int, reach: int) -> int:
    """Return where the first window begins: ``torch.stft`` centres windows, less the zeros that it puts around them."""
    return reach - _RESOLUTIONS[fft_size][1] // 2


_window = functools.cache(lambda length, dtype: torch.hann_window(length, dtype=dtype))


def _analyse(signals: Tensor, fft_size: int, reach: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield spectra and magnitudes, ``(rows, frames, bins)``, of blocks of frames; magnitudes are at least the floor.

    Args:
        signals: ``(rows, samples)``, extended by ``reach`` samples at either end.
    """
    hop, length = _RESOLUTIONS[fft_size]
    window = _window(length, signals.dtype)
    count = 1 + (signals.shape[-1] - 2 * reach) // hop
    frames = signals[:, _first_sample(fft_size, reach) :].unfold(-1, length, hop)[:, :count]
    size = max(1, _BLOCK_BINS // (len(signals) * (fft_size // 2 + 1)))
    padded = signals.new_zeros(len(signals), min(size, count), fft_size)
    for block in frames.split(size, dim=1):
        # A smaller last block leaves the zeros of its own frames in place.
        padded = padded[:, : block.shape[1]]
        torch.mul(block, window, out=padded[..., :length])
        spectra = torch.fft.rfft(padded)
        squares = torch.view_as_real(spectra).square()
        yield spectra, (squares[..., 0] + squares[..., 1]).sqrt_().clamp_(min=_FLOOR)


def _magnitudes(signals: Tensor, fft_size: int, reach: int) -> Iterator[Tensor]:
    """Yield the magnitudes of :func:`_analyse`."""
    return (magnitude for _, magnitude in _analyse(signals, fft_size, reach))


def _compare(
    spectra: Iterable[tuple[Tensor, Tensor]],
    true_magnitudes: Iterable[Tensor],
    compared: list[_Compared] | None = None,
) -> list[float]:
    """Sum ``(X - Y)^2``, ``Y^2``, ``|ln X - ln Y|`` and 1 over the bins of magnitudes X and Y.

    Args:
        spectra: of blocks of outputs, and X, of :func:`_analyse`.
        true_magnitudes: Y, of the same blocks.
        compared: to which the blocks are appended, for :func:`_differentiate`.
    """
    sums = np.zeros(4)
    for (spectrum, magnitude), true_magnitude in zip(spectra, true_magnitudes):
        difference = magnitude - true_magnitude
        log_ratio = (magnitude / true_magnitude).log_()
        if compared is not None:
            compared.append((spectrum, magnitude, difference))
        terms = difference.square(), true_magnitude.square(), log_ratio.abs_()
        sums += *(float(term.sum()) for term in terms), difference.numel()
    return sums.tolist()


def _differentiate(compared: list[_Compared], gradient: Tensor, sums: np.ndarray, fft_size: int, reach: int) -> None:
    """Add the gradient of the distance at one FFT size to ``gradient``, ``(rows, samples)``.

    Args:
        compared: blocks of :func:`_compare`.
        sums: of :func:`_compare`, over all rows.
    """
    hop, length = _RESOLUTIONS[fft_size]
    squares, energies, _, bins = sums
    # The root of an exact match has no slope: auraloss' is 0.
    of_difference = 1 / math.sqrt(squares * energies) if squares else 0.0
    window, start = _window(length, gradient.dtype), _first_sample(fft_size, reach)
    for spectrum, magnitude, difference in compared:
        # At the floor there is no slope: the inverse of infinity removes it.
        inverse = nn.functional.threshold(magnitude, _FLOOR, math.inf).reciprocal_()
        slope = (of_difference * difference).addcmul_(difference.sign(), inverse, value=1 / bins).mul_(inverse)
        audio = _transposed(spectrum * slope, window, hop)
        gradient[:, start : start + audio.shape[-1]] += audio[:, : gradient.shape[-1] - start]
        start += spectrum.shape[1] * hop


def _transposed(spectra: Tensor, window: Tensor, hop: int) -> Tensor:
    """Apply the transpose of windows and real FFTs: ``(..., rows, frames, bins)`` to ``(..., rows, samples)``."""
    length, steps = len(window), -(-len(window) // hop)
    # irfft counts each bin but the outer ones twice.
    spectra[..., :: spectra.shape[-1] - 1] *= 2
    frames = torch.fft.irfft(spectra, norm="forward")
    count, width = frames.shape[-2], steps * hop
    padded = frames.new_zeros(*frames.shape[:-2], count + 2 * (steps - 1), width)
    torch.mul(frames[..., :length], 0.5 * window, out=padded[..., steps - 1 : steps - 1 + count, :length])
    # Frame t - j has its samples from j hops in the place of frame t's first ones. Rows are j = steps - 1 to 0.
    overlapping = padded.as_strided(
        (*frames.shape[:-2], count + steps - 1, steps, hop),
        (*padded.stride()[:-1], width - hop, 1),
        (steps - 1) * hop,
    )
    return overlapping.sum(-2).flatten(-2)


def _fold(gradient: Tensor, reach: int) -> Tensor:
    """Add the ends of a gradient, ``(rows, samples)``, to the samples that they reflect."""
    inside = gradient[:, reach:-reach].contiguous()
    inside[:, 1 : reach + 1] += gradient[:, :reach].flip(-1)
    inside[:, -reach - 1 : -1] += gradient[:, -reach:].flip(-1)
    return inside


class PaperLoss(Loss):
    """The paper's loss, invariant to delay and polarity.

    ``10 |y - s yhat| + (|Y| - |Yhat|)^2 + (ln(|Y| + 1e-5) - ln(|Yhat| + 1e-5))^2``, each the mean over samples or bins,
    after both signals are cut to their common part. ``s`` is the better of the two polarities. Spectra are of Hann
    windows of 1024 samples that do not overlap, the last one padded with silence.
    """

    window: Tensor

    def __init__(self, options: LossOptions) -> None:
        super().__init__()
        self.options = options
        self.least_samples = 1
        self.register_buffer("window", torch.hann_window(_FFT_SAMPLES), persistent=False)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Compare two signals ``(batch, channels, samples)``."""
        options = self.options
        delay, _ = find_delay(output, target, 0 if options.alignment == "none" else options.max_delay_samples)
        if options.alignment == "reversed":
            delay = (-delay).clamp(min=0)
        output, target, shared = align(output, target, delay)
        same, inverted = ((target - sign * output).abs().sum(dim=(1, 2)) for sign in (1, -1))
        length = shared * output.shape[1]
        if options.polarity == "example":
            time = (torch.minimum(same, inverted) / length).mean()
        else:
            time = torch.minimum((same / length).mean(), (inverted / length).mean())

        estimated, true = self._magnitude(output), self._magnitude(target)
        magnitude = (true - estimated).square().mean()
        log_magnitude = ((true + 1e-5).log() - (estimated + 1e-5).log()).square().mean()
        return (
            options.time_weight * time
            + options.magnitude_weight * magnitude
            + options.log_magnitude_weight * log_magnitude
        )

    def _magnitude(self, audio: Tensor) -> Tensor:
        signals = nn.functional.pad(audio, (0, -audio.shape[-1] % _FFT_SAMPLES)).flatten(0, 1)
        spectrum = torch.stft(
            signals, _FFT_SAMPLES, _FFT_SAMPLES, window=self.window, center=False, return_complex=True
        ).transpose(1, 2)
        # The gradient of the root is infinite at 0.
        return (spectrum.real.square() + spectrum.imag.square() + 1e-12).sqrt()


_FFT_SAMPLES = 1024
