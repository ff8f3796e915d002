"""A frozen output projection and its cross-entropy in one step. Axes: m scored positions, d width, v vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FusedHead(nn.Module):
    """The head of transformers, with the same names, and the cross-entropy loss in one step.

    The head is frozen, so the gradient of the hidden states [m, d] is computed in the forward pass. It is saved for the
    backward pass instead of the logits [m, v].
    """

    def __init__(self, original: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = original.weight, original.bias

    def forward(self, hidden: Tensor, labels: Tensor | None = None) -> Tensor:
        """Hidden states [m, d] to logits [m, v]; with labels [m] to the summed cross-entropy, in float32."""
        if labels is None:
            return F.linear(hidden, self.weight, self.bias)
        loss: Tensor = _CrossEntropy.apply(hidden, self.weight, self.bias, labels)
        return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        logits = F.linear(hidden, weight, bias).float()
        targets = labels[:, None]
        target_logits, max_logits = logits.gather(1, targets), logits.amax(-1, keepdim=True)
        # All in place: with GPT-2's vocabulary, allocating new memory takes a third of the time.
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
        (hidden_gradient,) = ctx.saved_tensors
        return hidden_gradient * gradient.to(hidden_gradient.dtype), None, None, None
