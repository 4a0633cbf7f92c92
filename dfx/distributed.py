"""Runs in several processes: each of them, a rank, has a part of the lanes.

The batch is that of all ranks together; rank ``r`` of ``n`` has the ``r``-th of ``n`` equal parts of its rows.
Directions, the loss, the control variate and the statistics of batch normalization depend on the whole batch: every
rank computes them from the rows of all ranks. The gradient therefore equals that of one process with the same batch.
In a run of one process, nothing here has an effect.
"""

import os
import socket
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


_sharing = 1


def ranks_on_cores() -> int:
    """Return the number of ranks that share the cores of this one, as :func:`count_ranks_on_cores` has found it."""
    return _sharing


def count_ranks_on_cores() -> None:
    """Count the ranks of this machine that may use the same cores as this one; all ranks call it together.

    A launcher may have bound each rank to cores of its own.
    """
    global _sharing
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    place = socket.gethostname(), cores
    _sharing = gather_list([place]).count(place)


def is_rank_zero() -> bool:
    """Return true on the rank that prints and writes for all."""
    return _rank() == 0


def rank_rows(rows: int) -> slice:
    """Return the part of ``rows``, the rows of all ranks, that belongs to this rank."""
    size = rows // world_size()
    return slice(_rank() * size, (_rank() + 1) * size)


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all ranks, in the order of ranks, with a gradient.

    The backward pass sums the gradients of all ranks. Where every rank computes the same loss of the result, its own
    rows receive their gradient times the number of ranks. DistributedDataParallel, which averages over ranks, thus
    arrives at the gradient of the whole batch.

    Args:
        rows: ``(rows, ...)``, of the same shape on every rank.

    Returns:
        ``(ranks * rows, ...)``.
    """
    if world_size() == 1:
        return rows
    # Some builds of PyTorch lack it.
    from torch.distributed.nn.functional import all_gather

    # NCCL moves tensors on GPUs only.
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return torch.cat(all_gather(rows.to(device))).to(rows.device)


def gather_array(rows: np.ndarray) -> np.ndarray:
    """Return the rows of all ranks as :func:`gather_rows`, without a gradient."""
    return gather_rows(torch.from_numpy(np.ascontiguousarray(rows))).numpy() if world_size() > 1 else rows


def gather_list(entries: list[Any]) -> list[Any]:
    """Return the entries of all ranks' lists, in the order of ranks; they must be picklable."""
    if world_size() == 1:
        return entries
    lists: list[list[Any]] = [[] for _ in range(world_size())]
    dist.all_gather_object(lists, entries)
    return [entry for of_rank in lists for entry in of_rank]


def rand_rows(rows: int, *shape: int, generator: torch.Generator) -> Tensor:
    """Draw as ``torch.rand(rows, *shape)``, for this rank's rows of the whole batch.

    Args:
        generator: seeded alike on every rank.
    """
    rows *= world_size()
    return torch.rand(rows, *shape, generator=generator)[rank_rows(rows)]


def synchronize_batch_norm(model: nn.Module) -> None:
    """Make a model's batch normalization use the rows of all ranks, on any device.

    PyTorch's ``SyncBatchNorm`` needs a GPU.
    """
    if world_size() == 1:
        return
    for module in model.modules():
        # Replacing the class keeps parameters, buffers and their names.
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = _BatchNorm2d


class _BatchNorm2d(nn.BatchNorm2d):
    """Normalizes by the mean and variance of all ranks' rows."""

    momentum: float
    num_batches_tracked: Tensor
    running_mean: Tensor
    running_var: Tensor

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        maps = input.to(self.weight)  # in float32 under autocast, as all that ranks exchange
        variance, mean = torch.var_mean(maps, dim=(0, 2, 3), correction=0)
        means, variances = gather_rows(torch.stack([mean, variance])[None]).unbind(dim=1)
        mean = means.mean(dim=0)
        variance = variances.mean(dim=0) + (means - mean).square().mean(dim=0)
        samples = world_size() * input.numel() // input.shape[1]
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (samples / max(1, samples - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (maps * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]).to(input)


def _rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0
