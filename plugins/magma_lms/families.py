"""Where each model family keeps its blocks, and how an adapter is put around a sublayer of one.

Axes: b batch, t tokens, p columns that a cache holds, h heads, w a head's width, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor


@dataclass(frozen=True)
class Family:
    """Module paths inside a transformers model."""

    decoder: str
    """The model without its head."""
    blocks: str
    """The list of blocks."""
    attention: str
    mlp: str | Literal["fc1-activation-fc2"]
    """Inside a block; the latter where the feed-forward has no module of its own."""
    window: Callable[[Any], int | None] = lambda _: None
    """How many positions the narrowest attention of a config reaches over, itself included; None: all."""
    adjust: Callable[[Any], None] = lambda _: None
    """Changes a new model in place, so that `Causal`'s mask is the only one.

    A mask of the library's own counts columns of the batch. With padding these are more than a row's positions: they
    leave a window too early, and may be more than the context.
    """


def _sliding_window(architecture: Any) -> int | None:
    width: int | None = architecture.sliding_window
    return width


def _local_window(architecture: Any) -> int | None:
    width: int = architecture.window_size
    return width if "local" in architecture.attention_layers else None


def _remove_causal_buffers(model: Any) -> None:
    """GPT-Neo: no table [1, 1, context, context] of what each column sees, local or not."""
    for block in model.transformer.h:
        block.attn.attention.bias = None
        block.attn.attention._attn = _attend


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """[b, h, t, w], [b, h, p + t, w] twice and [b, 1, t, p + t] to what is gathered [b, h, t, w], and its weights.

    As the library computes it: scores in float32, not divided by anything.
    """
    scores = query.float() @ key.float().transpose(-1, -2) + mask
    weights = scores.softmax(-1).to(value.dtype)
    return weights @ value, weights


_GPT = Family("transformer", "transformer.h", "attn", "mlp")
_LLAMA = Family("model", "model.layers", "self_attn", "mlp")
_SLIDING = replace(_LLAMA, window=_sliding_window)
FAMILIES = {
    "gpt2": _GPT,
    "gpt_neo": replace(_GPT, window=_local_window, adjust=_remove_causal_buffers),
    "gpt_neox": Family("gpt_neox", "gpt_neox.layers", "attention", "mlp"),
    "gptj": _GPT,
    "llama": _LLAMA,
    "mistral": _SLIDING,
    "opt": Family("model.decoder", "model.decoder.layers", "self_attn", "fc1-activation-fc2"),
    "phi": _LLAMA,
    "qwen2": _SLIDING,
    "qwen3": _SLIDING,
}
"""By `model_type`. All position-independent but for attention. The context of a model whose attention slides ends
with the window (GPT-Neo: 256)."""
