"""The latency of a chain, measured: not every plugin reports how late its output is."""

import contextlib
import warnings

import numpy as np

from dfx.effects.chain import Chain, ChainSpec
from dfx.effects.effect import RenderError

TOLERANCE_MS = 1.0  # phase shifts of filters stay below this; a longer delay is latency


def measure_delay(input: np.ndarray, output: np.ndarray) -> tuple[int, bool] | None:
    """Measure how late an output is by its cross-correlation with the input, broadband noise.

    Args:
        input, output: ``(channels, samples)``; delays up to half of the samples are found.

    Returns:
        The delay in samples, and whether the output is inverted; None if the output resembles the input nowhere.
    """
    samples = input.shape[1]
    # Padded to twice the length, the circular correlation is the linear one.
    spectra = [np.fft.rfft(audio, 2 * samples) for audio in (input, output)]
    correlation = np.fft.irfft((spectra[0].conj() * spectra[1]).sum(axis=0))[: samples // 2]
    correlation /= np.sqrt(np.square(input).sum() * np.square(output).sum()) + 1e-30
    delay = int(np.abs(correlation).argmax())
    return (delay, bool(correlation[delay] < 0)) if abs(correlation[delay]) >= 0.1 else None


def warn_of_latency(spec: ChainSpec, chain: Chain) -> None:
    """Warn if the output of a new chain, for a second of noise at the defaults, is later or earlier than reported."""
    if all(recipe.host == "pedalboard" for recipe in spec.recipes):
        return  # this host measures what it reports
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (spec.channels, spec.sample_rate)).astype(np.float32)
    with contextlib.suppress(RenderError):
        measured = measure_delay(noise, chain.render(noise, spec.space.denormalize(spec.space.defaults)))
        if measured and abs(measured[0] - chain.latency_samples) > TOLERANCE_MS / 1000 * spec.sample_rate:
            names = ", ".join(recipe.name for recipe in spec.recipes)
            warnings.warn(
                f"{names}: the latency is reported as {chain.latency_samples} samples but measured as {measured[0]}: "
                "output and target are compared that far apart, and renderings come that late",
                stacklevel=2,
            )
