"""Puts adapters around a sublayer or a block of `gptj`. Axes: b batch, t tokens, d width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from magma import Adapter


class AdapterWrapper(nn.Module):
    """A module with adapters around it, each around those before it.

    Adapters only get the hidden states [b, t, d]. Masks, positions and caches bypass them.
    """

    def __init__(self, sublayer: nn.Module) -> None:
        super().__init__()
        self.sublayer = sublayer
        self.adapters: tuple[Adapter, ...] = ()
        """From the innermost to the outermost."""

    def forward(self, x: Tensor, *others: Any, first: int = 0) -> Tensor:
        """[b, t, d] to [b, t - first, d], with the other arguments of the module.

        An adapter does not mix positions, so it only computes those from `first` on; the module reads all. An adapter
        that changes the input of its sublayer needs all positions. The choice does not depend on the batch, because
        under ZeRO-3 all processes have to run the same modules.
        """
        return self._run(len(self.adapters), x, others, first)

    def _run(self, count: int, x: Tensor, others: tuple[Any, ...], first: int) -> Tensor:
        """The module with the first `count` adapters around it."""
        if not count:
            out: Tensor = self.sublayer(x, *others, first) if first else self.sublayer(x, *others)
            return out
        adapter, inner = self.adapters[count - 1], count - 1
        if not first:
            return adapter(x, lambda h: self._run(inner, h, others, 0))
        if adapter.passes_input_through or adapter.is_disabled:
            return adapter(x[:, first:], lambda _: self._run(inner, x, others, first))
        return self._run(count, x, others, 0)[:, first:]


def wrap(parent: nn.Module, child: str, adapter: Adapter, name: str) -> Callable[[], None]:
    """Put an adapter around a child of a module. Returns a function that removes it."""
    wrapper = parent.get_submodule(child)
    if not isinstance(wrapper, AdapterWrapper):
        wrapper = AdapterWrapper(wrapper)
        setattr(parent, child, wrapper)
    wrapper.add_module(name, adapter)
    wrapper.adapters += (adapter,)

    def undo() -> None:
        wrapper.adapters = tuple(other for other in wrapper.adapters if other is not adapter)
        delattr(wrapper, name)
        if not wrapper.adapters:
            setattr(parent, child, wrapper.sublayer)

    return undo
