"""Module paths of each model family of transformers: its blocks, and their sublayers.

Axes: b batch, t tokens, p columns of the cache, h heads, w width of a head, d width.
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
    """The decoder, without the head."""
    blocks: str
    """The module list of the blocks."""
    attention: str
    """The attention sublayer, inside a block."""
    mlp: str | Literal["fc1-activation-fc2"]
    """The feed-forward sublayer, inside a block; the literal if it is not one module but these three."""
    window: Callable[[Any], int | None] = lambda _: None
    """Size of the smallest attention window of a configuration, in positions; None: full attention."""
    adjust: Callable[[Any], None] = lambda _: None
    """Changes a new model in place, so that `Causal`'s mask is the only one.

    A mask inside the library counts columns of the batch. With padding there are more columns than positions of a row:
    a window would end too early, and columns could exceed the context.
    """


def _sliding_window(architecture: Any) -> int | None:
    width: int | None = architecture.sliding_window
    return width


def _local_window(architecture: Any) -> int | None:
    width: int = architecture.window_size
    return width if "local" in architecture.attention_layers else None


def _remove_causal_buffers(model: Any) -> None:
    """GPT-Neo: removes the causal masks [1, 1, context, context], local and global."""
    for block in model.transformer.h:
        block.attn.attention.bias = None
        block.attn.attention._attn = _attend


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """Attention of the query [b, h, t, w] to key and value [b, h, p + t, w], with an additive mask [b, 1, t, p + t].

    Returns the output [b, h, t, w] and the weights. As in the library, scores are in float32 and not scaled.
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
"""By `model_type`. In all families only attention depends on positions. With sliding-window attention, the context is
limited to the window (GPT-Neo: 256)."""
