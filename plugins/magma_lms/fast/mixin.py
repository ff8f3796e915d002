"""Gives a module another forward pass without another module: names, tensors and hooks stay."""

from __future__ import annotations

from typing import Any

from torch import nn

_mixed: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def mix_in(module: nn.Module, mixin: type[nn.Module], **attributes: Any) -> None:
    """Turn a module's class into a subclass with the same name in which a mixin comes first.

    Args:
        module: The module.
        mixin: A class whose forward pass uses that of the original class where its own does not apply.
        attributes: What the mixin needs.
    """
    original = type(module)
    if (mixin, original) not in _mixed:
        _mixed[mixin, original] = type(original.__name__, (mixin, original), {"__module__": original.__module__})
    vars(module).update(attributes)
    module.__class__ = _mixed[mixin, original]
