"""Puts an adapter around a sublayer of a block. Axes: b batch, t tokens, d width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from magma import Adapter, Sublayer

from .families import Family


class AdapterWrapper(nn.Module):
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


def wrap_sublayer(block: nn.Module, family: Family, place: Sublayer, adapter: Adapter) -> Callable[[], None]:
    """Put an adapter around a block's sublayer; returns what undoes it."""
    path = family.attention if place == "attention" else family.mlp
    names: tuple[str, ...]
    if path == "fc1-activation-fc2":
        names = ("fc1", "activation_fn", "fc2")
        parts = [block.get_submodule(name) for name in names]
        replacements = [AdapterWrapper(FeedForward(*parts), adapter), nn.Identity(), nn.Identity()]
    else:
        names = (path,)
        parts = [block.get_submodule(path)]
        replacements = [AdapterWrapper(parts[0], adapter)]

    def put(modules: list[Any]) -> None:
        for name, module in zip(names, modules, strict=True):
            setattr(block, name, module)

    put(replacements)
    return lambda: put(parts)
