"""A frozen output projection and its cross-entropy in one step. Axes: m scored positions, d width, v vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .fast.cross_entropy import linear_cross_entropy


class FusedHead(nn.Linear):
    """The head of transformers, with the same names, and the cross-entropy loss in one step."""

    @classmethod
    def replace(cls, head: nn.Linear) -> None:
        """Turn a frozen head into this class. Its tensors and hooks stay."""
        head.__class__ = cls

    def forward(self, hidden: Tensor, labels: Tensor | None = None) -> Tensor:
        """Hidden states [m, d] to logits [m, v]; with labels [m] to the summed cross-entropy, in float32."""
        if labels is None:
            return super().forward(hidden)
        return linear_cross_entropy(hidden, self.weight, self.bias, labels)


@torch.no_grad()
def is_linear(head: Callable[[Tensor], Tensor], projection: nn.Module | None, width: int) -> bool:
    """Whether logits [m, v] are the output of this projection, without a scale, a soft-cap or anything else.

    It is tried with small and with large hidden states [m, d], where d is `width`.
    """
    if type(projection) is not nn.Linear or projection.weight.is_meta or projection.in_features != width:
        return False
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, width, generator=draw).to(projection.weight)
    return all(torch.equal(head(scale * hidden), projection(scale * hidden)) for scale in (1.0, 1000.0))
