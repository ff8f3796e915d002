"""Tensors that training changes and no gradient does, such as the statistics of BatchNorm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..model import Magma
from ..system.world import World


class Buffers:
    """The buffers that training changes, to be put back where a step is repeated or skipped."""

    def __init__(self, model: Magma) -> None:
        self.tensors = [t for t in model.trained_tensors().values() if not isinstance(t, nn.Parameter)]

    def copies(self) -> list[Tensor]:
        """What they hold now."""
        return [t.clone() for t in self.tensors]

    def restore(self, copies: Sequence[Tensor]) -> None:
        """Back to what `copies` gave."""
        for buffer, old in zip(self.tensors, copies, strict=True):
            buffer.copy_(old)


def average_buffers(model: Magma, world: World) -> None:
    """Each process's BatchNorm saw its own share: the model's statistics are their mean."""
    if world.size == 1:
        return
    for tensor in model.trained_tensors().values():
        if not isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
            torch.distributed.all_reduce(tensor)
            tensor /= world.size
