"""Puts adapters around modules of transformers, without another module between: names and export stay.

Axes: b batch, t tokens, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from magma import Adapter, PartError

from .sites import Place
from .tracing import Key, first_tensor, replace_first_tensor


def attach(model: nn.Module, place: Place, adapter: Adapter, name: str) -> Callable[[], None]:
    """Put an adapter around a site.

    Args:
        model: The model.
        place: Where the site is.
        adapter: The adapter.
        name: Its name in the module at which the site begins.

    Returns:
        A function that removes it.
    """
    entry = model.get_submodule(place.entry)
    if not place.is_span:
        return attach_module(entry, adapter, name, place.key)
    return _hold(entry, adapter, name, lambda: _attach_span(model, place, adapter))


def attach_module(module: nn.Module, adapter: Adapter, name: str, key: Key = 0) -> Callable[[], None]:
    """Put an adapter around a module whose argument `key` are the hidden states. Returns a function that removes it."""
    return _hold(module, adapter, name, lambda: _replace_forward(module, adapter, key))


def _hold(
    entry: nn.Module, adapter: Adapter, name: str, attach: Callable[[], Callable[[], None]]
) -> Callable[[], None]:
    """Make an adapter a submodule, and attach it."""
    if name in dict(entry.named_children()) or isinstance(entry, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        raise PartError(f"a {type(entry).__name__} cannot hold an adapter called {name}")
    entry.add_module(name, adapter)
    remove = attach()

    def undo() -> None:
        remove()
        delattr(entry, name)

    return undo


def _replace_forward(module: nn.Module, adapter: Adapter, key: Key) -> Callable[[], None]:
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = partial(_forward, module, adapter, key, before)

    def remove() -> None:
        del module.__dict__["forward"]
        if before is not None:
            module.__dict__["forward"] = before

    return remove


def _forward(
    module: nn.Module, adapter: Adapter, key: Key, before: Callable[..., Any] | None, *args: Any, **kwargs: Any
) -> Any:
    """The forward pass before, the module's own by default, with an adapter around it.

    Masks, caches and all other arguments bypass the adapter.
    """
    x = args[key] if isinstance(key, int) else kwargs[key]
    output: Any = None

    def sublayer(h: Tensor) -> Tensor:
        nonlocal output
        h = h.reshape(x.shape)
        new_args = [h if given is x else given for given in args]
        new_kwargs = {name: h if given is x else given for name, given in kwargs.items()}
        run = partial(type(module).forward, module) if before is None else before
        output = run(*new_args, **new_kwargs)
        return _in_rows_of(rows, first_tensor(output))

    rows = _as_rows(x)
    y = adapter(rows, sublayer)
    if output is None:
        raise PartError(f"{type(adapter).__name__}: an adapter has to call its sublayer")
    return replace_first_tensor(output, _like(y, output))


def _attach_span(model: nn.Module, place: Place, adapter: Adapter) -> Callable[[], None]:
    """An adapter around everything from the input of one module to the output of another one."""
    inputs: list[Tensor] = []
    chain = [model.get_submodule(path) for path in place.chain]
    inside = False

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not inside:
            inputs[:] = [args[place.key] if isinstance(place.key, int) else kwargs[place.key]]

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
                f"adapters.{place.path}: {type(adapter).__name__} changes the input of its sublayer, but in this "
                f"model the sublayer is not a module ({place.entry} to {place.exit}); allowed: adapters that pass the "
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
        model.get_submodule(place.entry).register_forward_pre_hook(note, with_kwargs=True),
        model.get_submodule(place.exit).register_forward_hook(adapt),
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
