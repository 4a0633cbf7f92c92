"""A temporal convolutional network in place of the chain."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dfx.evaluation.search import BaselineOptions, Pair, draw_excerpts


class Network(nn.Module):
    """A temporal convolutional network, audio in and audio out (after Steinmetz and Reiss 2022).

    The input is added to what four dilated convolutions make of it, at first nothing. It has 28 000 parameters,
    and hears 4 681 samples for each one that it says, 0.21 s at 22.05 kHz.

    Args:
        channels: of the audio.
    """

    _WIDTH = 32
    _KERNEL = 9
    _DILATIONS = (1, 8, 64, 512)

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [channels, *[self._WIDTH] * len(self._DILATIONS)]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, self._KERNEL, dilation=dilation, padding=(self._KERNEL // 2) * dilation)
            for before, after, dilation in zip(widths, widths[1:], self._DILATIONS)
        )
        self.activations = nn.ModuleList(nn.PReLU(self._WIDTH) for _ in self._DILATIONS)
        self.mix = nn.Conv1d(self._WIDTH, channels, 1)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)

    def forward(self, audio: Tensor) -> Tensor:
        """``(batch, channels, samples)`` to the same."""
        features = audio
        for convolution, activation in zip(self.convolutions, self.activations):
            deeper = activation(convolution(features))
            features = deeper if features is audio else features + deeper
        return audio + self.mix(features)


def train_network(
    pairs: Sequence[Pair], channels: int, loss: nn.Module, options: BaselineOptions = BaselineOptions()
) -> Network:
    """A network that makes targets of inputs with little loss; torch's global seed is left alone."""
    generator = torch.Generator().manual_seed(options.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = Network(channels)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.network_steps)
    progress = tqdm(range(options.network_steps), desc="Training the network", unit="step", leave=False)
    for _ in progress:
        input, target = draw_excerpts(pairs, 4, 16384, generator)
        error = loss(network(input), target)
        optimizer.zero_grad()
        error.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{error.item():.4g}")
    return network.eval()
