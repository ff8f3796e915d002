"""Puts an adapter around a sublayer of `gptj`. Axes: b batch, t tokens, d width."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from magma import Adapter


class AdapterWrapper(nn.Module):
    """A sublayer with an adapter around it.

    The adapter only gets the hidden states [b, t, d]. Masks, positions and caches bypass it.
    """

    def __init__(self, sublayer: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.sublayer = sublayer
        self.adapter = adapter

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        """[b, t, d] to [b, t, d], with the other arguments of the sublayer."""
        out: Tensor = self.adapter(x, lambda h: self.sublayer(h, *others))
        return out
