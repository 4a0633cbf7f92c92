"""Many processes for one run: each of them, a rank, has its share of the lanes.

A batch is that of all ranks together, and rank ``r`` of ``n`` has the ``r``-th of ``n`` equal parts of its rows. What
depends on the batch as a whole is worked out by every rank from the rows of all: directions, the loss, the
control variate, the statistics of batch normalization. So the gradient is that of one process with the same batch.
Everything here has no effect in a run of one process.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn


def count() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if _together() else 1


def is_first() -> bool:
    """Whether this is rank 0, which speaks and writes for all."""
    return _rank() == 0


def own_rows(rows: int) -> slice:
    """Which of the rows of all ranks are this rank's."""
    size = rows // count()
    return slice(_rank() * size, (_rank() + 1) * size)


def all_rows(own: Tensor) -> Tensor:
    """The rows of all ranks, in their order, with a gradient.

    Args:
        own: ``(rows, ...)``, of one shape on every rank.

    Returns:
        ``(ranks * rows, ...)``. Of the gradient of a function that every rank computes of it, a rank receives what
        belongs to its own rows, as many times as there are ranks: DistributedDataParallel takes the mean over ranks,
        where the gradient is the sum of all rows' shares.
    """
    return _AllRows.apply(own) if count() > 1 else own


def gather(own: np.ndarray) -> np.ndarray:
    """The rows of all ranks, in their order: ``(rows, ...)`` to ``(ranks * rows, ...)``."""
    return _gather(torch.from_numpy(np.ascontiguousarray(own))).numpy() if count() > 1 else own


def join(own: list[Any]) -> list[Any]:
    """The entries of all ranks' lists, in the order of ranks; of anything that can be pickled."""
    if count() == 1:
        return own
    lists: list[list[Any]] = [[] for _ in range(count())]
    dist.all_gather_object(lists, own)
    return [entry for entries in lists for entry in entries]


def normalize_all_rows(model: nn.Module) -> None:
    """Lets a model's batch normalization see the rows of all ranks, on any device (PyTorch's own: on GPUs alone)."""
    if count() == 1:
        return
    for module in model.modules():
        # The class and not the module: its parameters, buffers and name stay what they are.
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _BatchNorm2d


class _BatchNorm2d(nn.BatchNorm2d):
    """Normalizes by the mean and variance of all ranks' rows."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        mean, variance = self._statistics(input)
        samples = count() * input.numel() // input.shape[1]
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (samples / max(1, samples - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return input * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]

    def _statistics(self, input: Tensor) -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(input, dim=(0, 2, 3), correction=0)
        means, variances = _SumsOfAllRanks.apply(torch.stack([mean, variance])[None]).unbind(dim=1)
        total = means.mean(dim=0)
        return total, variances.mean(dim=0) + (means - total).square().mean(dim=0)


class _AllRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return _gather(own)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return count() * grad[own_rows(len(grad))]


class _SumsOfAllRanks(torch.autograd.Function):
    """The rows of all ranks, each of which computes something else of them: their gradients add up."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return _gather(own)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[own_rows(len(grad))]


def _rank() -> int:
    return dist.get_rank() if _together() else 0


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def _gather(own: Tensor) -> Tensor:
    # NCCL moves what is on a GPU only.
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    moved = own.detach().to(device).contiguous()
    parts = [torch.empty_like(moved) for _ in range(count())]
    dist.all_gather(parts, moved)
    return torch.cat(parts).to(own.device)
