"""Where training starts with the backbone ``summary``: parameters that bring the balance nearer to the targets'.

Few songs are not enough to learn how the parameters depend on a mix, but rendering measures how the average spectrum
depends on the parameters. The logits of the parameters start at

    z(x) = z0 + W (share * S (m - x) + l(x)),    W = (J^T J + ridge)^-1 J^T

where x is the average spectrum of the input in dB, relative to its loudness, m that of the targets, and J are the
slopes of the levels of the output's bands by each logit, measured at the setting to begin with. S smooths over three
bands: neighbouring bands have much the same balance, and where they differ it is mostly by the music. With a share of
1, every output would have the smoothed spectrum of the mean target. The share with the least training loss is less:
inputs differ less from their own targets than from the mean one.

A limiter attenuates the peaks of an input that fluctuates, so its output is quieter than others. Thus l(x) is
proportional to the fluctuation of the input's level, relative to that of the mean input, and is added to all bands. It
and z0 are such that the effects raise the loudness of all inputs alike, and outputs are as loud as the targets on
average.

For a task that takes a reference, m is the spectrum of the reference. Its level, relative to that of the mean
reference, is added to l(x), and outputs are brought to the loudness of their own targets. The level is that of the mean
power, but quiet passages do not count in loudness (ITU-R BS.1770), so a reference that fluctuates is louder than its
level: l(x) is also proportional to how much more it fluctuates than the input.
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
from dfx.encoder import SUMMARY_FEATURES, Encoder, clamped_logit
from dfx.losses import Loss, loss_against
from dfx.tasks.start import Start

_EXCERPTS, _RENDERED = 64, 16
_STEP = 0.2
"""Of a logit, to both sides: at most 0.05 of a parameter's range."""
_RIDGE = 0.005
"""Relative to the mean square response of a parameter: parameters with little response stay where they are."""
_LOUDNESS_STEPS = 3
_SHARES = np.linspace(0, 1, 11)
_LEVEL, _FLUCTUATION, _SPECTRUM = 0, 1, 2
"""Of :class:`dfx.encoder.Summarizer`. The level of the input is left to training."""


class Line(NamedTuple):
    """Logits as a linear function of features; see :meth:`dfx.encoder.Encoder.start_at_line`.

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
    most = _RENDERED * (2 * len(parameters) + _LOUDNESS_STEPS + len(_SHARES)) + _EXCERPTS * _LOUDNESS_STEPS
    hides = None if progress is None else not progress
    with tqdm(total=most, desc="Measuring", unit="rendering", leave=False, disable=hides) as bar:
        excerpts = _Excerpts(chain, encoder, loss, pairs, seed, bar)
        lines = _Lines(excerpts, clamped_logit(parameters).double())
        loudness = lines.find_loudness(0.0, torch.zeros(1 + len(lines.fluctuations)).double(), _RENDERED)
        losses: dict[float, float] = {}
        for share in _SHARES:
            losses[share] = excerpts.compare(excerpts.render(lines.logits(share, loudness, _RENDERED)))
            if losses[share] > min(losses.values()):
                break
        share = min(losses, key=losses.__getitem__)
        loudness = lines.find_loudness(share, loudness, _EXCERPTS)
    setting = lines.setting(loudness).sigmoid()
    start = Start(
        parameters=setting.tolist(),
        values=chain.space.values_by_name(setting.numpy()),
        loss=losses[share],
        loss_of_defaults=losses[0],
        evaluations=len(losses),
        share=float(share),
    )
    weight, bias = lines.draw(share, loudness)
    return start, Line(weight.float(), (bias - weight @ excerpts.origin).float(), excerpts.mean.float())


class _Excerpts:
    """Excerpts of training pairs: the features that the encoder takes from them, and what the effects make of them.

    Args:
        chain, encoder, loss, pairs, seed: as of :func:`find_balance`.
        bar: counts renderings.
    """

    def __init__(
        self, chain: ChainSpec, encoder: Encoder, loss: Loss, pairs: TreatedPairs, seed: int, bar: tqdm
    ) -> None:
        self._chain, self._live, self._encoder, self._bar = chain, chain.build(), encoder, bar
        longest = max(pair.input.samples_at(chain.sample_rate) for pair in pairs.pairs)
        samples = min(encoder.context_samples, longest)
        self.takes_reference = encoder.takes_reference
        sides = ("input", "target", "reference") if self.takes_reference else ("input", "target")
        generator = torch.Generator().manual_seed(seed)
        self._inputs, targets, *references = draw_excerpts(pairs, _EXCERPTS, samples, generator, sides)
        self.compare = loss_against(loss, targets[:_RENDERED])

        summaries = self._summarize(self._inputs)
        wanted = self._summarize(references[0] if references else targets)
        self.mean, self.mean_wanted = (each.nanmean(0).nan_to_num(0.0) for each in (summaries, wanted))
        features = [summaries - self.mean]
        self.origin = torch.zeros(SUMMARY_FEATURES).double()
        """Of the encoder's features, what the features here are relative to."""
        if references:
            features += [(wanted - self.mean_wanted)[:, [_LEVEL]], wanted - summaries]
            self.origin = torch.cat([self.origin, self.mean_wanted[[_LEVEL]], self.origin])
        # Without sound, there is nothing to change.
        self.features = torch.cat(features, dim=1).nan_to_num(0.0)

        input_lufs, target_lufs = self.lufs(self._inputs), self.lufs(targets)
        self.sounds = torch.minimum(input_lufs, target_lufs) > SILENCE_LUFS
        self.wanted_lufs = target_lufs
        if not references:
            self.wanted_lufs = input_lufs + (target_lufs - input_lufs)[self.sounds].mean()

    def _summarize(self, audio: Tensor) -> Tensor:
        return self._encoder.summarize(audio).double()

    def lufs(self, audio: Tensor) -> Tensor:
        """Return the integrated loudness of each of ``(batch, channels, samples)``."""
        return torch.tensor([lufs(each, self._chain.sample_rate) for each in audio]).double()

    def render(self, logits: Tensor) -> Tensor:
        """Return the outputs of as many excerpts as there are rows, ``(count, P)``."""
        outputs = []
        for input, values in zip(self._inputs, self._chain.space.denormalize(logits.sigmoid().numpy())):
            outputs.append(torch.from_numpy(self._live.render_whole(input.numpy(), values)))
            self._bar.update()
        return torch.stack(outputs)

    def respond(self, logits: Tensor) -> Tensor:
        """Return the mean level of each band of the outputs at a setting, ``(16,)`` in dB."""
        summaries = self._summarize(self.render(logits.expand(_RENDERED, -1)))
        # A summary has them relative to the level of the whole.
        return (summaries[:, _SPECTRUM:] + summaries[:, [_LEVEL]]).nanmean(0).nan_to_num(0.0)


class _Lines:
    """The lines around a setting, each with its share and its loudness.

    The loudness is an offset in dB and the slopes of l(x), ``(1 + slopes,)``: by the fluctuation of the input and, with
    a reference, by how much more that fluctuates.

    Args:
        excerpts: to measure with.
        setting: logits, ``(P,)``.
    """

    def __init__(self, excerpts: _Excerpts, setting: Tensor) -> None:
        self._excerpts, self._setting = excerpts, setting
        steps = _STEP * torch.eye(len(setting)).double()
        slopes = [(excerpts.respond(setting + step) - excerpts.respond(setting - step)) / (2 * _STEP) for step in steps]
        jacobian = torch.stack(slopes, dim=1)
        square = jacobian.T @ jacobian
        ridge = _RIDGE * square.trace() / len(square) * torch.eye(len(square))
        by_band = torch.linalg.solve(square + ridge, jacobian.T)
        self._by_level = by_band.sum(1)
        by_band = by_band @ smooth_bands(len(jacobian))

        self._by_feature = torch.zeros(len(setting), excerpts.features.shape[1]).double()
        """Of the whole way to the wanted spectrum."""
        self._level = torch.zeros(excerpts.features.shape[1]).double()
        self.fluctuations = [_FLUCTUATION]
        if excerpts.takes_reference:
            difference = SUMMARY_FEATURES + 1
            self._by_feature[:, difference + _SPECTRUM :] = by_band
            self._offset = torch.zeros_like(setting)
            self._level[SUMMARY_FEATURES] = 1
            self.fluctuations += [difference + _FLUCTUATION]
        else:
            self._by_feature[:, _SPECTRUM:] = -by_band
            self._offset = by_band @ (excerpts.mean_wanted - excerpts.mean)[_SPECTRUM:]

    def setting(self, loudness: Tensor) -> Tensor:
        """Return the logits z0, ``(P,)``."""
        return self._setting + loudness[0] * self._by_level

    def draw(self, share: float, loudness: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight, ``(P, F)`` per dB, and the bias, ``(P,)``."""
        level = self._level.clone()
        level[self.fluctuations] = loudness[1:]
        weight = share * self._by_feature + torch.outer(self._by_level, level)
        return weight, self.setting(loudness) + share * self._offset

    def logits(self, share: float, loudness: Tensor, count: int) -> Tensor:
        """Return those of the first excerpts, ``(count, P)``."""
        weight, bias = self.draw(share, loudness)
        return bias + self._excerpts.features[:count] @ weight.T

    def find_loudness(self, share: float, loudness: Tensor, count: int) -> Tensor:
        """Return the loudness with which the first excerpts are as loud as wanted, from one to begin with."""
        excerpts = self._excerpts
        terms = torch.cat([torch.ones(count, 1), excerpts.features[:count, self.fluctuations]], dim=1).double()
        # Inputs that fluctuate alike, within about a decibel, do not determine a slope.
        prior = torch.diag(torch.tensor([1e-9] + [_EXCERPTS] * len(self.fluctuations))).double()
        for _ in range(_LOUDNESS_STEPS):
            rendered_lufs = excerpts.lufs(excerpts.render(self.logits(share, loudness, count)))
            counts = excerpts.sounds[:count] & (rendered_lufs > SILENCE_LUFS)
            used, missing = terms[counts], (excerpts.wanted_lufs[:count] - rendered_lufs)[counts]
            loudness = loudness + torch.linalg.solve(used.T @ used + prior, used.T @ missing)
        return loudness


def smooth_bands(bands: int) -> Tensor:
    """Return the matrix ``(bands, bands)`` that gives a band half of the weight, and its neighbours the other half."""
    kernel = torch.eye(bands) + (torch.diag(torch.ones(bands - 1), 1) + torch.diag(torch.ones(bands - 1), -1)) / 2
    return (kernel / kernel.sum(dim=1, keepdim=True)).double()
