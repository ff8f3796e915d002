"""Cross-entropy through a frozen head, chunk by chunk. Axes: m scored positions, d width, v vocabulary.

The head is frozen, so the gradient of the hidden states is computed in the forward pass and saved for the backward pass
instead of the logits [m, v].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_LOGITS = 2**24
"""The largest number of logits that exist at once; 64 MiB in float32."""
COPIES = 4
"""What autograd keeps for a head with a scale and a soft-cap, in multiples of the logits."""


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """Summed cross-entropy of a linear head, in float32. All of [m, v] is computed in place.

    Args:
        hidden: Hidden states, [m, d].
        weight: Weight of the frozen head, [v, d].
        bias: Its bias [v], or None.
        labels: The right tokens, [m].
    """
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, labels)
    return loss


def chunked_cross_entropy(head: Callable[[Tensor], Tensor], hidden: Tensor, labels: Tensor, vocab: int) -> Tensor:
    """Summed cross-entropy of any frozen head, in float32.

    Args:
        head: Hidden states [n, d] to logits [n, v], each row by itself. Its parameters get no gradient.
        hidden: Hidden states, [m, d].
        labels: The right tokens, [m].
        vocab: v.
    """
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden, head, labels, vocab)
    return loss


def _chunks(m: int, v: int) -> int:
    """The number of chunks of equal size with at most `MAX_LOGITS` logits each, or one row."""
    return max(1, min(m, -(-m * v // MAX_LOGITS)))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        count = _chunks(len(hidden), len(weight))
        loss = torch.zeros((), device=hidden.device)
        gradients = []
        for some, targets in zip(hidden.chunk(count), labels.chunk(count), strict=True):
            part, probs = _loss_and_gradient(F.linear(some, weight, bias).float(), targets, ctx.needs_input_grad[0])
            loss = loss + part
            if probs is not None:
                gradients.append(probs.to(weight.dtype) @ weight)
        if gradients:
            ctx.save_for_backward(_joined(gradients))
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _scaled(ctx, gradient), None, None, None


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Callable[[Tensor], Tensor], labels: Tensor, vocab: int) -> Tensor:
        count = _chunks(COPIES * len(hidden), vocab)
        loss = torch.zeros((), device=hidden.device)
        gradients: list[Tensor] = []
        for some, targets in zip(hidden.chunk(count), labels.chunk(count), strict=True):
            some = some.detach().requires_grad_(ctx.needs_input_grad[0])
            with torch.set_grad_enabled(some.requires_grad):
                logits = head(some)
            copy = logits.detach().to(torch.float32, copy=True)  # autograd may need the logits themselves
            part, probs = _loss_and_gradient(copy, targets, some.requires_grad)
            loss = loss + part
            if probs is not None:
                gradients += torch.autograd.grad(logits, some, probs.to(logits.dtype))
        if gradients:
            ctx.save_for_backward(_joined(gradients))
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _scaled(ctx, gradient), None, None, None


def _loss_and_gradient(logits: Tensor, labels: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """The summed cross-entropy and its gradient [n, v], which overwrites the logits [n, v].

    All in place: with GPT-2's vocabulary, allocating new memory takes a third of the time.
    """
    targets = labels[:, None]
    target_logits, max_logits = logits.gather(1, targets), logits.amax(-1, keepdim=True)
    exp_logits = logits.sub_(max_logits).exp_()
    total = exp_logits.sum(-1, keepdim=True)
    loss = (max_logits + total.log() - target_logits).sum()
    if not with_gradient:
        return loss, None
    probs = exp_logits.div_(total)
    probs.scatter_add_(1, targets, torch.full_like(targets, -1, dtype=probs.dtype))
    return loss, probs


def _scaled(ctx: Any, gradient: Tensor) -> Tensor:
    """The gradient of the hidden states that the forward pass has saved, times that of the loss."""
    (hidden_gradient,) = ctx.saved_tensors
    scaled: Tensor = hidden_gradient * gradient.to(hidden_gradient.dtype)
    return scaled


def _joined(gradients: list[Tensor]) -> Tensor:
    return gradients[0] if len(gradients) == 1 else torch.cat(gradients)
