"""A frozen output projection and its cross-entropy in one step. Axes: m scored positions, d width, v vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FusedHead(nn.Module):
    """The library's head, under its names, and the loss behind it in one step.

    The head is frozen, so that the loss's gradient is known as soon as the logits are: [m, d] of it are kept for the
    backward pass, and none of the logits [m, v].
    """

    def __init__(self, original: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = original.weight, original.bias

    def forward(self, hidden: Tensor, labels: Tensor | None = None) -> Tensor:
        """[m, d] to logits [m, v]; with labels [m] to their cross-entropy, summed, in float32."""
        if labels is None:
            return F.linear(hidden, self.weight, self.bias)
        loss: Tensor = _Loss.apply(hidden, self.weight, self.bias, labels)
        return loss


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        logits = F.linear(hidden, weight, bias).float()
        targets = labels[:, None]
        target_logits, max_logits = logits.gather(1, targets), logits.amax(-1, keepdim=True)
        # In place throughout: at GPT-2's vocabulary fresh memory costs a third.
        exp_logits = logits.sub_(max_logits).exp_()
        total = exp_logits.sum(-1, keepdim=True)
        loss = (max_logits + total.log() - target_logits).sum()
        if ctx.needs_input_grad[0]:
            probs = exp_logits.div_(total)
            probs.scatter_add_(1, targets, torch.full_like(targets, -1, dtype=probs.dtype))
            ctx.save_for_backward(probs.to(weight.dtype) @ weight)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (kept,) = ctx.saved_tensors
        return kept * gradient.to(kept.dtype), None, None, None
