"""Rotary attention with few operations, for every attention that computes the same as it.

Four projections; rotary positions in two halves; several query heads for one key-value head; optionally a norm of
queries and keys; the kernel of torch. Compared with the library's code it copies no keys and values for grouped
queries, rotates with half of the passes, and calls fewer operations for a token. It can leave out the queries of
columns that nothing reads.

Axes: b batch, t tokens, p columns of the cache, d width, h query heads, g key-value heads, w width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from magma import KeyValueSlot

from .rotation import Angles, rotate


@dataclass(frozen=True)
class Plan:
    """How an attention module computes: names of its submodules, and numbers."""

    query: str
    key: str
    value: str
    out: str
    norms: tuple[str, str] | None
    """Norms of queries and keys."""
    norms_whole: bool
    """Whether they normalise all heads together, [b, t, h * w], and not each head."""
    width: int
    """w."""
    scale: float
    """Factor on the scores."""
    layer: int
    """The layer of the cache."""


class FastAttention(nn.Module):
    """Mixed into the class of an attention module; uses the original forward pass where the fast one does not apply."""

    fast_plan: Plan
    first_column = 0
    """Output is computed from this column on, and is zero before it."""
    is_fast = True
    """False: the original forward pass is used."""
    key_value_slot: KeyValueSlot | None = None
    """Where further keys and values come from."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the library calls it: hidden states [b, t, d], `position_embeddings`, `attention_mask`, a cache."""
        mask, cache = kwargs.get("attention_mask"), kwargs.get("cache", kwargs.get("past_key_values"))
        if not self._applies(args, kwargs, mask, cache):
            return super().forward(*args, **kwargs)
        x = args[0] if args else kwargs["hidden_states"]
        angles = _angles(kwargs["position_embeddings"])
        return self.attend(x, angles, mask, cache, self.first_column), None

    def _applies(self, args: tuple[Any, ...], kwargs: dict[str, Any], mask: Any, cache: Any) -> bool:
        if not self.is_fast or self.training or torch.compiler.is_compiling():
            return False
        if len(args) > 1 or kwargs.get("output_attentions"):
            return False
        if kwargs.get("position_embeddings") is None or kwargs.get("is_causal") is not None:
            return False
        if mask is not None:
            return isinstance(mask, Tensor) and mask.ndim == 4
        x = args[0] if args else kwargs["hidden_states"]
        return x.shape[1] == 1 or cache is None or cache.get_seq_length(self.fast_plan.layer) == 0

    def attend(self, x: Tensor, angles: Angles, mask: Tensor | None, cache: Any, first: int = 0) -> Tensor:
        """[b, t, d] to [b, t, d].

        Args:
            x: Hidden states, [b, t, d].
            angles: The rotary angles of the positions.
            mask: [b or 1, h or 1, t, p + t], boolean or additive. None: causal.
            cache: The library's cache, which is extended, or None.
            first: The first column whose output is needed.
        """
        plan = self.fast_plan
        queries = self._heads(x[:, first:].contiguous() if first else x, plan.query, 0)
        keys = self._heads(x, plan.key, 1)
        values = self._heads(x, plan.value, None)
        queries, keys = rotate(queries, angles.from_column(first)), rotate(keys, angles)
        if cache is not None:
            keys, values = cache.update(keys, values, plan.layer)
        if mask is None and 1 < x.shape[1] < keys.shape[2]:  # a cache of fixed size gives all its columns
            keys, values = keys[:, :, : x.shape[1]], values[:, :, : x.shape[1]]
        if first and mask is not None:
            mask = mask[:, :, first:]

        def run(keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
            return grouped_attention(queries, keys, values, mask, plan.scale)

        slot = self.key_value_slot
        out = run(keys, values, mask) if slot is None else slot.attend(run, keys, values, mask)
        projected: Tensor = self._modules[plan.out](out.transpose(1, 2).flatten(2))  # type: ignore[misc]
        return F.pad(projected, (0, 0, first, 0)) if first else projected

    def _heads(self, x: Tensor, name: str, norm: int | None) -> Tensor:
        """A projection of x [b, t, d], split into heads [b, heads, t, w]."""
        plan = self.fast_plan
        y: Tensor = self._modules[name](x)  # type: ignore[misc]
        if plan.norms is None or norm is None:
            return y.view(*y.shape[:2], -1, plan.width).transpose(1, 2)
        normalise: Any = self._modules[plan.norms[norm]]
        if plan.norms_whole:
            y = normalise(y)
        y = y.view(*y.shape[:2], -1, plan.width)
        return (y if plan.norms_whole else normalise(y)).transpose(1, 2)


_last: tuple[tuple[Tensor, Tensor], Angles] | None = None


def _angles(rope: tuple[Tensor, Tensor]) -> Angles:
    """The angles from what the library gives; all layers of a step get the same object, so it is converted once."""
    global _last
    last = _last
    if last is None or last[0] is not rope:
        _last = last = rope, Angles.of(*rope)
    return last[1]


def grouped_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention of queries [b, h, t, w] to keys and values [b, g, p, w]: [b, h, t, w].

    Without a mask it is causal: the last query is at the last key.
    """
    t, p = queries.shape[2], keys.shape[2]
    if mask is None and 1 < t < p:
        mask = torch.ones(t, p, dtype=torch.bool, device=queries.device).tril(p - t)
    grouped = queries.shape[1] != keys.shape[1]
    if grouped and mask is not None and queries.device.type != "cpu":  # other devices have no fused kernel for it
        keys, values = (part.repeat_interleave(queries.shape[1] // part.shape[1], dim=1) for part in (keys, values))
        grouped = False
    return F.scaled_dot_product_attention(
        queries, keys, values, mask, 0.0, mask is None and t > 1, scale=scale, enable_gqa=grouped
    )
