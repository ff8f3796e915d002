"""The last block computes only the columns that are needed. Axes: b batch, t columns, d width.

Nothing reads columns before the first scored one after the last block. Inside the block, attention needs their keys and
values. Everything that follows from a column by itself (queries, output projection, feed-forward) can be left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from magma import Adapter

from .attention import FastAttention

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a call."""


class ScoredColumns:
    """Makes modules of the last block compute only columns from `first` on; their output is zero before it.

    The number holds until it is set again: activation checkpointing repeats the forward pass later. Compiled blocks
    compute all columns.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """`modules`: those that `find_column_wise` found."""
        self._first = 0
        modules = list(modules)
        self._attention = [module for module in modules if isinstance(module, FastAttention)]
        for module in modules:
            if not isinstance(module, FastAttention):
                module.register_forward_pre_hook(self._cut, with_kwargs=True)
                module.register_forward_hook(self._pad)

    @property
    def first(self) -> int:
        """The first column that is computed."""
        return self._first

    @first.setter
    def first(self, column: int) -> None:
        self._first = column
        for module in self._attention:
            module.first_column = column

    def add_adapter(self, sublayer: nn.Module, adapter: Adapter) -> None:
        """Include an adapter around a sublayer: it does not mix columns.

        An adapter around any other module than attention is part of the module's call already. One that changes the
        input of its sublayer has to compute all columns.
        """
        if any(sublayer is one for one in self._attention) and adapter.passes_input_through:
            adapter.register_forward_pre_hook(self._cut_adapter)
            adapter.register_forward_hook(self._pad)

    def _cut(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        if not self._active:
            return None
        return _with_input(args, kwargs, _input(args, kwargs)[:, self.first :].contiguous())

    def _cut_adapter(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self._active:
            return None
        x, sublayer, *context = args
        columns = x.shape[1] - self.first
        shorter = (one.from_end(columns) for one in context)
        return x[:, self.first :], lambda _: sublayer(x)[:, self.first :], *shorter

    def _pad(self, _: nn.Module, __: Any, output: Tensor) -> Tensor | None:
        return F.pad(output, (0, 0, self.first, 0)) if self._active else None

    @property
    def _active(self) -> bool:
        return self.first > 0 and not torch.compiler.is_compiling()


@torch.no_grad()
def find_column_wise(
    block: nn.Module, run: Callable[[], Tensor], first: int, exclude: Collection[nn.Module] = ()
) -> list[nn.Module]:
    """The largest modules of the last block that need not compute the columns before `first`.

    A module is one of them if it computes a part of the columns by itself, and if the block's output from `first` on
    does not change by a bit when the module's output before `first` is replaced by something else. The same is asked of
    the decoder's output and the block. Modules without a matrix cost little and are not looked at.

    Args:
        block: The last block, in evaluation mode, without adapters.
        run: Runs the decoder on a few columns, without a cache, and returns its output [b, t, d].
        first: A column of this run, not the first one.
        exclude: Modules that are left as they are, and all that contain them.
    """
    calls, hidden = _record(block, run)
    if block not in calls or calls[block].count != 1:
        return []
    other = _disturb(block, run, first)
    if other is None or not torch.equal(other[:, first:], hidden[:, first:]):
        return []

    def output() -> Tensor | None:
        args, kwargs = calls[block].arguments
        out = _first_tensor(block(*args, **kwargs))
        return None if out is None else out[:, first:]

    expected = output()
    again = output()
    if expected is None or again is None or not torch.equal(expected, again):
        return []

    def accept(module: nn.Module) -> bool:
        call = calls.get(module)
        if call is None or call.count != 1 or not any(p.ndim > 1 for p in module.parameters()):
            return False
        if any(part in exclude for part in module.modules()):
            return False
        if not isinstance(module, FastAttention) and not _is_column_wise(module, call, first):
            return False
        disturbed = _disturb(module, output, first)
        return disturbed is not None and torch.equal(disturbed, expected)

    return list(_outermost(block, accept))


@dataclass
class _Call:
    """The last call of a module in a run, and the number of its calls."""

    arguments: Arguments
    output: Any
    count: int


def _record(block: nn.Module, run: Callable[[], Tensor]) -> tuple[dict[nn.Module, _Call], Tensor]:
    """The calls of the block's modules in a run, and its result."""
    calls: dict[nn.Module, _Call] = {}
    counts: Counter[nn.Module] = Counter()

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        counts[module] += 1
        calls[module] = _Call((args, kwargs), output, counts[module])

    handles = [module.register_forward_hook(note, with_kwargs=True) for module in block.modules()]
    try:
        return calls, run()
    finally:
        for handle in handles:
            handle.remove()


def _outermost(module: nn.Module, accept: Callable[[nn.Module], bool]) -> Iterator[nn.Module]:
    for child in module.children():
        if accept(child):
            yield child
        else:
            yield from _outermost(child, accept)


def _is_column_wise(module: nn.Module, call: _Call, first: int) -> bool:
    """Whether the module takes and returns one tensor [b, t, *] and gives the same for a part of the columns."""
    args, kwargs = call.arguments
    if len(args) + len(kwargs) != 1:
        return False
    x, out = _input(args, kwargs), call.output
    if not all(isinstance(one, Tensor) and one.ndim == 3 for one in (x, out)) or x.shape[:2] != out.shape[:2]:
        return False
    args, kwargs = _with_input(args, kwargs, x[:, first:].contiguous())
    try:
        part = module(*args, **kwargs)
    except Exception:  # the library's code may raise anything when it gets fewer columns
        return False
    tolerance = 1e-5 * float(out.abs().max())
    return isinstance(part, Tensor) and torch.allclose(part, out[:, first:], rtol=1e-4, atol=tolerance)


def _disturb(module: nn.Module, run: Callable[[], Tensor | None], first: int) -> Tensor | None:
    """The result of `run` when the module's output before `first` is something else."""

    def replace(_: nn.Module, __: Any, output: Any) -> Any:
        out = _first_tensor(output)
        if out is None:
            return None
        noise = torch.randn(out[:, :first].shape, generator=torch.Generator().manual_seed(0)).to(out)
        other = torch.cat([10 * noise * (1 + out.abs().max()), out[:, first:]], dim=1)
        return (other, *output[1:]) if isinstance(output, tuple) else other

    handle = module.register_forward_hook(replace)
    try:
        return run()
    finally:
        handle.remove()


def _first_tensor(output: Any) -> Tensor | None:
    """The hidden states [b, t, d] that a module returns, by themselves or first of several values."""
    out = output[0] if isinstance(output, tuple) and output else output
    return out if isinstance(out, Tensor) and out.ndim == 3 else None


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The only argument of a call."""
    return args[0] if args else next(iter(kwargs.values()))


def _with_input(args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> Arguments:
    """The arguments with another only argument."""
    return ((x,), {}) if args else ((), dict.fromkeys(kwargs, x))
