"""A temporal convolutional network that replaces the chain: the baseline ``network``."""

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dfx.datasets.excerpts import AudioPairs, draw_excerpts
from dfx.evaluation.options import BaselineOptions
from dfx.losses import Loss


class Network(nn.Module):
    """A temporal convolutional network, audio in and audio out (after Steinmetz and Reiss 2022).

    The input is added to the output of four dilated convolutions, which is zero at first. It has 28 000 parameters and
    a receptive field of 4 681 samples, 0.21 s at 22.05 kHz.

    Args:
        channels: of the audio.
    """

    _WIDTH, _KERNEL, _DILATIONS = 32, 9, (1, 8, 64, 512)

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [channels, *[self._WIDTH] * len(self._DILATIONS)]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, self._KERNEL, dilation=dilation, padding=(self._KERNEL // 2) * dilation)
            for before, after, dilation in zip(widths, widths[1:], self._DILATIONS)
        )
        self.activations = nn.ModuleList(nn.PReLU(self._WIDTH) for _ in self._DILATIONS)
        self.mix = nn.Conv1d(self._WIDTH, channels, 1)
        for parameter in self.mix.parameters():
            nn.init.zeros_(parameter)

    def forward(self, audio: Tensor) -> Tensor:
        """Return audio of the input's shape, ``(batch, channels, samples)``."""
        features = audio
        for convolution, activation in zip(self.convolutions, self.activations):
            deeper = activation(convolution(features))
            features = deeper if features is audio else features + deeper
        return audio + self.mix(features)


def train_network(
    pairs: AudioPairs, channels: int, loss: Loss, options: BaselineOptions = BaselineOptions()
) -> Network:
    """Train a network to map inputs to targets; torch's global generator is not used.

    Args:
        pairs: the training pairs.
        channels: of the audio.
        loss: to minimize: a module ``(output, target) -> scalar``.
        options: the number of steps, and the seed.
    """
    generator = torch.Generator().manual_seed(options.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = Network(channels)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.network_steps)
    progress = tqdm(range(options.network_steps), desc="Training the network", unit="step", leave=False, disable=None)
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
