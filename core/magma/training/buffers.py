"""Tensors that training changes without a gradient, such as the running statistics of BatchNorm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..model import Magma
from ..system.distributed import DistributedContext


class Buffers:
    """The buffers that training changes; they are restored if a step is repeated or skipped."""

    def __init__(self, model: Magma) -> None:
        self.tensors = [t for t in model.trained_tensors().values() if not isinstance(t, nn.Parameter)]

    def copies(self) -> list[Tensor]:
        """Copies of their current values."""
        return [t.clone() for t in self.tensors]

    def restore(self, copies: Sequence[Tensor]) -> None:
        """Restore the values that `copies` gave."""
        for buffer, old in zip(self.tensors, copies, strict=True):
            buffer.copy_(old)


def average_buffers(model: Magma, world: DistributedContext) -> None:
    """Replace statistics by their mean over the processes: each BatchNorm has seen only its process's examples."""
    if world.size == 1:
        return
    for tensor in model.trained_tensors().values():
        if not isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
            torch.distributed.all_reduce(tensor)
            tensor /= world.size
