"""Puts adapters around sublayers of transformers, without another module between: names and export stay.

Axes: b batch, t tokens, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from magma import Adapter, PartError

from .sites import Site
from .tracing import Key, first_tensor, replace_first_tensor

NAME = "adapter"
"""The name of an adapter in the module at which its sublayer begins."""


def attach(model: nn.Module, site: Site, adapter: Adapter) -> Callable[[], None]:
    """Put an adapter around a sublayer. Returns a function that removes it."""
    entry = model.get_submodule(site.entry)
    if NAME in dict(entry.named_children()) or isinstance(entry, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        raise PartError(f"adapters.{site.sublayer}: {site.entry} cannot hold an adapter")
    entry.add_module(NAME, adapter)
    remove = _attach_span(model, site, adapter) if site.is_span else _replace_forward(entry, adapter, site.key)

    def undo() -> None:
        remove()
        delattr(entry, NAME)

    return undo


def _replace_forward(module: nn.Module, adapter: Adapter, key: Key) -> Callable[[], None]:
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = partial(_forward, module, adapter, key)

    def remove() -> None:
        del module.__dict__["forward"]
        if before is not None:
            module.__dict__["forward"] = before

    return remove


def _forward(module: nn.Module, adapter: Adapter, key: Key, *args: Any, **kwargs: Any) -> Any:
    """The module's own forward pass with an adapter around it. Masks, caches and all others bypass the adapter."""
    x = args[key] if isinstance(key, int) else kwargs[key]
    output: Any = None

    def sublayer(h: Tensor) -> Tensor:
        nonlocal output
        h = h.reshape(x.shape)
        new_args = [h if given is x else given for given in args]
        new_kwargs = {name: h if given is x else given for name, given in kwargs.items()}
        output = type(module).forward(module, *new_args, **new_kwargs)
        return _in_rows_of(rows, first_tensor(output))

    rows = _as_rows(x)
    y = adapter(rows, sublayer)
    if output is None:
        raise PartError(f"{type(adapter).__name__}: an adapter has to call its sublayer")
    return replace_first_tensor(output, _like(y, output))


def _attach_span(model: nn.Module, site: Site, adapter: Adapter) -> Callable[[], None]:
    """An adapter around everything from the input of one module to the output of another one."""
    inputs: list[Tensor] = []
    chain = [model.get_submodule(path) for path in site.chain]
    inside = False

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not inside:
            inputs[:] = [args[site.key] if isinstance(site.key, int) else kwargs[site.key]]

    def adapt(_: nn.Module, __: Any, output: Any) -> Any:
        if inside:
            return output
        x, y = _as_rows(inputs.pop()), first_tensor(output)

        def sublayer(h: Tensor) -> Tensor:
            return _in_rows_of(x, y if h is x else again(h))

        return replace_first_tensor(output, _like(adapter(x, sublayer), output))

    def again(h: Tensor) -> Tensor:
        """The sublayer's output for another input."""
        nonlocal inside
        if not chain:
            raise PartError(
                f"adapters.{site.sublayer}: {type(adapter).__name__} changes the input of its sublayer, but in this "
                f"model the sublayer is not a module ({site.entry} to {site.exit}); allowed: adapters that pass the "
                "input through"
            )
        inside = True
        try:
            for module in chain:
                h = module(h)
        finally:
            inside = False
        return h

    handles = [
        model.get_submodule(site.entry).register_forward_pre_hook(note, with_kwargs=True),
        model.get_submodule(site.exit).register_forward_hook(adapt),
    ]

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


def _in_rows_of(rows: Tensor, y: Tensor | None) -> Tensor:
    """An output in the shape of its input [b, t, d]; some sublayers return [b * t, d]."""
    assert y is not None
    return y.reshape(*rows.shape[:-1], -1)


def _like(y: Tensor, output: Any) -> Tensor:
    """An adapter's output in the shape of the sublayer's."""
    found = first_tensor(output)
    assert found is not None
    return y.reshape(found.shape)


def _as_rows(x: Tensor | None) -> Tensor:
    """Hidden states as an adapter expects them, [b, t, d]; some sublayers get them as [b * t, d]."""
    assert x is not None
    return x[None] if x.ndim == 2 else x
