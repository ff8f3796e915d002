"""The last block computes only the columns that are needed. Axes: b batch, t columns, d width.

Columns before the first scored one are read by nothing after the last block. Inside the block, attention needs their
keys and values. Everything that follows from a column by itself (queries, output projection, feed-forward) can be left
out for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one call of a module."""


class ScoredColumns:
    """Modules of a block that are computed from column `first` on; their output is zero before it.

    `first` holds until it is set again: activation checkpointing repeats the forward pass later.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self.first = 0
        self.modules = modules
        self._handles = [
            handle
            for module in modules
            for handle in (
                module.register_forward_pre_hook(self._cut, with_kwargs=True),
                module.register_forward_hook(self._pad),
            )
        ]

    def _cut(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        if not self._active:
            return None
        x, put = _input(args, kwargs)
        return put(x[:, self.first :].contiguous())

    def _pad(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        return F.pad(output, (0, 0, self.first, 0)) if self._active else None

    @property
    def _active(self) -> bool:
        return self.first > 0 and not torch.compiler.is_compiling()

    def remove(self) -> None:
        """Compute all columns again."""
        for handle in self._handles:
            handle.remove()


@torch.no_grad()
def find_column_wise(block: nn.Module, run: Callable[[], object], *, first: int) -> list[nn.Module]:
    """The largest modules of the last block that need not compute the columns before `first`.

    A module is one of them if it takes and returns one tensor [b, t, *], if it gives the same for a part of the
    columns, and if the block's output from `first` on does not change by a bit when the module's output before `first`
    is replaced by something else. A module without a matrix costs little and is not looked at.

    Args:
        block: The last block, in evaluation mode.
        run: Runs the decoder on a few columns, without a cache.
        first: A column of this run that is not the first one.
    """
    calls, counts = _record(block, run)
    if counts[block] != 1:
        return []
    args, kwargs = calls[block][0]

    def output() -> Tensor | None:
        out = block(*args, **kwargs)
        out = out[0] if isinstance(out, tuple) else out
        return out[:, first:] if isinstance(out, Tensor) and out.ndim == 3 else None

    expected = output()
    if expected is None or not torch.equal(expected, _not_none(output())):
        return []
    found: list[nn.Module] = []
    for module in _outermost(block, lambda m: counts[m] == 1 and _is_column_wise(m, calls[m], output, expected, first)):
        found.append(module)
    return found


def _record(block: nn.Module, run: Callable[[], object]) -> tuple[dict[nn.Module, Any], Counter[nn.Module]]:
    """For each module of the block its last call with the output, and the number of its calls."""
    calls: dict[nn.Module, tuple[Call, Any]] = {}
    counts: Counter[nn.Module] = Counter()

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls[module] = ((args, kwargs), output)
        counts[module] += 1

    handles = [module.register_forward_hook(note, with_kwargs=True) for module in block.modules()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return calls, counts


def _outermost(module: nn.Module, accept: Callable[[nn.Module], bool]) -> Iterator[nn.Module]:
    for child in module.children():
        if accept(child):
            yield child
        else:
            yield from _outermost(child, accept)


def _is_column_wise(
    module: nn.Module, recorded: tuple[Call, Any], output: Callable[[], Tensor | None], expected: Tensor, first: int
) -> bool:
    (args, kwargs), out = recorded
    if not any(p.ndim > 1 for p in module.parameters()) or len(args) + len(kwargs) != 1:
        return False
    x, put = _input(args, kwargs)
    if not all(isinstance(one, Tensor) and one.ndim == 3 for one in (x, out)) or x.shape[:2] != out.shape[:2]:
        return False
    part_args, part_kwargs = put(x[:, first:])
    part = module(*part_args, **part_kwargs)
    scale = float(out.abs().max())
    if not isinstance(part, Tensor) or not torch.allclose(part, out[:, first:], rtol=1e-4, atol=1e-5 * scale):
        return False
    return all(
        torch.equal(_disturbed(place, run, first), kept)
        for place, run, kept in ((module, lambda: _not_none(output()), expected),)
    )


def _disturbed(module: nn.Module, run: Callable[[], Tensor], first: int) -> Tensor:
    """The result of `run` when the module's output before `first` is something else."""

    def replace(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        noise = torch.randn(out[:, :first].shape, generator=torch.Generator().manual_seed(0)).to(out)
        return torch.cat([10 * noise * (1 + out.abs().max()), out[:, first:]], dim=1)

    handle = module.register_forward_hook(replace)
    try:
        return run()
    finally:
        handle.remove()


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Callable[[Any], Call]]:
    """The only argument of a call, and a function that puts another value in its place."""
    if args:
        return args[0], lambda x: ((x,), {})
    name, value = next(iter(kwargs.items()))
    return value, lambda x: ((), {name: x})


def _not_none(out: Tensor | None) -> Tensor:
    assert out is not None
    return out
