"""Where training starts with the backbone ``summary``: parameters that bring the balance nearer to the targets'.

Few songs are not enough to learn how the parameters depend on a mix, but rendering measures how the average spectrum
depends on the parameters. The logits of the parameters start at

    z(x) = z0 + W (share * (m - x) + l(x)),    W = (J^T J + ridge)^-1 J^T

where x is the average spectrum of the input in dB, relative to its loudness, m that of the targets, and J are the
slopes of the levels of the output's bands by each logit, measured at the setting to begin with. With a share of 1,
every output would have the spectrum of the mean target. The share with the least training loss is less: inputs differ
less from their own targets than from the mean one.

A limiter attenuates the peaks of an input that fluctuates, so its output is quieter than others. Thus l(x) is
proportional to the fluctuation of the input's level, relative to that of the mean input, and is added to all bands. It
and z0 are such that the effects raise the loudness of all inputs alike, and outputs are as loud as the targets on
average.

For a task that takes a reference, m is the spectrum of the reference. Its loudness, relative to that of the mean
reference, is added to l(x), and outputs are brought to the loudness of their own targets.
"""

import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dfx.audio.loudness import SILENCE_LUFS, lufs
from dfx.datasets.excerpts import draw_excerpts
from dfx.datasets.treatment import TreatedPairs
from dfx.effects import ChainSpec
from dfx.encoder import Encoder, clamped_logit
from dfx.losses import Loss, loss_against
from dfx.tasks.start import Start

_EXCERPTS, _RENDERED = 64, 16
_STEP = 0.2
"""Of a logit, to both sides: at most 0.05 of a parameter's range."""
_RIDGE = 0.05
"""Relative to the mean square response of a parameter: parameters with little response stay where they are."""
_LOUDNESS_STEPS = 3
_SHARES = np.linspace(0, 1, 11)
_FLUCTUATION, _BANDS = 1, slice(2, None)
"""Of :class:`dfx.encoder.Summarizer`. The level of the input is left to training."""


class Line(NamedTuple):
    """Logits as a linear function of summaries; see :meth:`dfx.encoder.Encoder.start_at_line`.

    Args:
        weight: ``(P, 18)`` or, with a reference, ``(P, 37)``, per dB.
        bias: ``(P,)``.
        mean: of the training inputs, ``(18,)`` in dB.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor


def find_balance(
    chain: ChainSpec,
    encoder: Encoder,
    loss: Loss,
    pairs: TreatedPairs,
    parameters: Tensor,
    seed: int,
    progress: bool | None = None,
) -> tuple[Start, Line]:
    """Return the setting z0, at which outputs are as loud as the targets, and the line around it. On the main thread.

    Spectra are those of 64 excerpts as long as the encoder's context. 16 of them are rendered, and at the end all.

    Args:
        chain: whose parameters to predict.
        encoder: whose context and summary to use.
        loss: decides the share.
        pairs: for training.
        parameters: to begin with, ``(P,)`` in [0, 1].
        seed: of the excerpts.
        progress: show a bar on stderr; by default if that is a terminal.

    Raises:
        RenderError: if an effect fails.
    """
    encoder, loss = copy.deepcopy(encoder).cpu(), copy.deepcopy(loss).cpu()
    longest = max(pair.input.samples_at(chain.sample_rate) for pair in pairs.pairs)
    samples = min(encoder.context_samples, longest)
    sides = ("input", "target", "reference") if encoder.takes_reference else ("input", "target")
    inputs, targets, *references = draw_excerpts(pairs, _EXCERPTS, samples, torch.Generator().manual_seed(seed), sides)
    compare = loss_against(loss, targets[:_RENDERED])
    live = chain.build()
    hides = None if progress is None else not progress

    def render(logits: Tensor) -> Tensor:
        values = chain.space.denormalize(logits.sigmoid().double().numpy())
        return torch.stack([torch.from_numpy(live.render_whole(x.numpy(), v)) for x, v in zip(inputs, values)])

    def summarize(audio: Tensor) -> Tensor:
        return encoder.summarize(audio).double()

    def respond(logits: Tensor) -> Tensor:
        """Return the mean level of each band of the output, ``(16,)`` in dB."""
        summaries = summarize(render(logits.expand(_RENDERED, -1)))
        # A summary has them relative to the level of the whole.
        return (summaries[:, _BANDS] + summaries[:, :1]).nanmean(0).nan_to_num(0.0)

    logits = clamped_logit(parameters).double()
    steps = tqdm(_STEP * torch.eye(len(logits)).double(), "Measuring", unit="parameter", leave=False, disable=hides)
    slopes = [(respond(logits + step) - respond(logits - step)) / (2 * _STEP) for step in steps]
    jacobian = torch.stack(slopes, dim=1)
    square = jacobian.T @ jacobian
    ridge = _RIDGE * square.trace() / len(square) * torch.eye(len(square))
    by_band = torch.linalg.solve(square + ridge, jacobian.T)
    by_level = by_band.sum(1)

    summaries = summarize(inputs)
    wanted = summarize(references[0]) if references else summarize(targets).nanmean(0).expand_as(summaries)
    mean, mean_wanted = (each.nanmean(0).nan_to_num(0.0) for each in (summaries, wanted))
    # Without sound, there is nothing to change.
    changes = (wanted - summaries)[:, _BANDS].nan_to_num(0.0) @ by_band.T
    levels = (wanted - mean_wanted)[:, :1].nan_to_num(0.0) * by_level
    fluctuations = (summaries[:, _FLUCTUATION] - mean[_FLUCTUATION]).nan_to_num(0.0)
    terms = torch.stack([torch.ones_like(fluctuations), fluctuations], dim=1)

    def follow(loudness: Tensor, share: float) -> Tensor:
        """Return the logits of all excerpts with the offset and the slope of l(x), ``(2,)``."""
        return logits + (terms @ loudness)[:, None] * by_level + levels + share * changes

    input_lufs, target_lufs = _loudness(inputs, chain.sample_rate), _loudness(targets, chain.sample_rate)
    sounds = torch.minimum(input_lufs, target_lufs) > SILENCE_LUFS
    wanted_lufs = target_lufs
    if not references:
        wanted_lufs = input_lufs + (target_lufs - input_lufs)[sounds].mean()

    # Inputs that fluctuate alike, within about a decibel, do not determine a slope.
    prior = torch.diag(torch.tensor([1e-9, _EXCERPTS])).double()

    def find_loudness(loudness: Tensor, share: float, count: int) -> Tensor:
        """Return the offset and the slope at which the first excerpts are as loud as wanted."""
        for _ in range(_LOUDNESS_STEPS):
            rendered_lufs = _loudness(render(follow(loudness, share)[:count]), chain.sample_rate)
            counts = sounds[:count] & (rendered_lufs > SILENCE_LUFS)
            used, missing = terms[:count][counts], (wanted_lufs[:count] - rendered_lufs)[counts]
            loudness = loudness + torch.linalg.solve(used.T @ used + prior, used.T @ missing)
        return loudness

    loudness = find_loudness(torch.zeros(2).double(), 0.0, _RENDERED)
    losses: dict[float, float] = {}
    for share in _SHARES:
        losses[share] = compare(render(follow(loudness, share)[:_RENDERED]))
        if losses[share] > min(losses.values()):
            break
    share = min(losses, key=losses.__getitem__)
    loudness = find_loudness(loudness, share, _EXCERPTS)
    logits = logits + loudness[0] * by_level
    setting = logits.sigmoid()
    start = Start(
        parameters=setting.tolist(),
        values=chain.space.values_by_name(setting.numpy()),
        loss=losses[share],
        loss_of_defaults=losses[0],
        evaluations=len(losses),
        share=float(share),
    )
    by_summary = torch.zeros(len(logits), len(mean)).double()
    by_summary[:, _BANDS] = share * by_band
    by_input = torch.zeros_like(by_summary)
    by_input[:, _FLUCTUATION] = loudness[1] * by_level
    if references:
        bias = logits - mean_wanted[0] * by_level
        weight = torch.cat([by_input, by_level[:, None], by_summary], dim=1)
    else:
        bias, weight = logits + by_summary @ (mean_wanted - mean), by_input - by_summary
    return start, Line(weight.float(), bias.float(), mean.float())


def _loudness(excerpts: Tensor, sample_rate: int) -> Tensor:
    """Return the integrated loudness in LUFS of each excerpt of ``(batch, channels, samples)``."""
    return torch.tensor([lufs(excerpt, sample_rate) for excerpt in excerpts]).double()
