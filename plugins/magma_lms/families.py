"""Where each model family keeps its blocks, and how an adapter is put around a sublayer of one.

Axes: b batch, t tokens, p columns that a cache holds, h heads, w a head's width, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from magma import Adapter, Place


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


def _sliding(architecture: Any) -> int | None:
    width: int | None = architecture.sliding_window
    return width


def _local(architecture: Any) -> int | None:
    width: int = architecture.window_size
    return width if "local" in architecture.attention_layers else None


def _without_triangles(model: Any) -> None:
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
_SLIDING = replace(_LLAMA, window=_sliding)
FAMILIES = {
    "gpt2": _GPT,
    "gpt_neo": replace(_GPT, window=_local, adjust=_without_triangles),
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


class Adapted(nn.Module):
    """A sublayer with an adapter around it.

    The adapter sees hidden states [b, t, d] in and out; masks, positions, caches and whatever else the sublayer
    takes or returns pass by it.
    """

    def __init__(self, sublayer: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.sublayer = sublayer
        self.adapter = adapter

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the sublayer is called: hidden states first, or by keyword."""
        rest: tuple[Any, ...] = ()
        whole = True
        x = args[0] if args else kwargs.pop("hidden_states")

        def sublayer(h: Tensor) -> Tensor:
            nonlocal rest, whole
            out = self.sublayer(h, *args[1:], **kwargs)
            whole = isinstance(out, Tensor)
            if isinstance(out, Tensor):
                return out
            rest = tuple(out[1:])
            first: Tensor = out[0]
            return first

        if x.ndim == 2:  # OPT flattens [b, t, d] to [b * t, d] for its feed-forward
            return self.adapter(x[None], lambda h: sublayer(h[0])[None])[0]
        y = self.adapter(x, sublayer)
        return y if whole else (y, *rest)


class FeedForward(nn.Module):
    """A feed-forward sublayer made of a block's own three parts."""

    def __init__(self, fc1: nn.Module, activation: nn.Module, fc2: nn.Module) -> None:
        super().__init__()
        self.fc1, self.activation, self.fc2 = fc1, activation, fc2

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] to [..., d]."""
        out: Tensor = self.fc2(self.activation(self.fc1(x)))
        return out


def wrap(block: nn.Module, family: Family, place: Place, adapter: Adapter) -> Callable[[], None]:
    """Put an adapter around a block's sublayer; returns what undoes it."""
    path = family.attention if place == "attention" else family.mlp
    names: tuple[str, ...]
    if path == "fc1-activation-fc2":
        names = ("fc1", "activation_fn", "fc2")
        parts = [block.get_submodule(name) for name in names]
        replacements = [Adapted(FeedForward(*parts), adapter), nn.Identity(), nn.Identity()]
    else:
        names = (path,)
        parts = [block.get_submodule(path)]
        replacements = [Adapted(parts[0], adapter)]

    def put(modules: list[Any]) -> None:
        for name, module in zip(names, modules, strict=True):
            setattr(block, name, module)

    put(replacements)
    return lambda: put(parts)
