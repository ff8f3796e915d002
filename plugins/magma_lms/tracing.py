"""Records the calls of a model's modules in one forward pass.

Axes: b batch, t tokens, d width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

Key = int | str
"""Where a tensor is among the arguments of a call: the index of a positional argument, or a name."""


@dataclass(eq=False)
class Call:
    """One call of a module: its arguments and output, and the calls inside it."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None
    inner: list[Call] = field(default_factory=list)

    def everything_inside(self) -> Iterator[Call]:
        """The calls inside this one, in the order of their start."""
        for call in self.inner:
            yield call
            yield from call.everything_inside()

    def tensors(self) -> dict[Key, Tensor]:
        """The arguments that are tensors."""
        given: list[tuple[Key, Any]] = [*enumerate(self.args), *self.kwargs.items()]
        return {key: value for key, value in given if isinstance(value, Tensor)}

    def again(self, change: Callable[[Tensor], Tensor]) -> Any:
        """The output of the same call with changed tensors, and without a cache."""
        from transformers.cache_utils import Cache

        def new(given: Any) -> Any:
            if isinstance(given, Tensor):
                return change(given)
            return None if isinstance(given, Cache) else given

        return self.module(*map(new, self.args), **{name: new(given) for name, given in self.kwargs.items()})

    def hidden_key(self, width: int | None = None) -> Key | None:
        """Where the hidden states are among the arguments: the first tensor, if the output has its size and width."""
        output = first_tensor(self.output)
        if output is None or not output.is_floating_point() or output.ndim < 2 or width not in {None, output.shape[-1]}:
            return None
        key, given = next(iter(self.tensors().items()), (None, output))
        return key if given.shape[-1] == output.shape[-1] and given.numel() == output.numel() else None

    @cached_property
    def mixes(self) -> bool:
        """Whether later positions of the output depend on the first position of the inputs."""
        key = self.hidden_key()
        assert key is not None
        shape = self.tensors()[key].shape
        # The traced batch has fewer rows than positions, and XLNet has positions first.
        axis = int(len(shape) > 2 and shape[1] > shape[0])

        def disturb(x: Tensor) -> Tensor:
            first = x.narrow(axis, 0, 1)
            return torch.cat([first + 1 + torch.rand_like(first), x.narrow(axis, 1, x.shape[axis] - 1)], axis)

        before = first_tensor(self.again(lambda x: x))
        after = first_tensor(self.again(lambda x: disturb(x) if x.shape == shape else x))
        assert before is not None
        assert after is not None
        before, after = (out.narrow(axis, 1, out.shape[axis] - 1) for out in (before, after))
        return not torch.allclose(before, after, rtol=1e-4, atol=1e-4 * float(before.abs().max()))


def trace(model: nn.Module, run: Callable[[], Any]) -> Call:
    """The calls of a model's modules while `run` runs, as a tree whose root is the call of the model."""
    root = Call("", model, (), {})
    stack = [root]
    handles = []

    def hook(path: str, module: nn.Module) -> None:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = Call(path, module, args, kwargs)
            stack[-1].inner.append(call)
            stack.append(call)

        def after(_: nn.Module, __: Any, output: Any) -> None:
            stack.pop().output = output

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))

    for path, module in model.named_modules():
        if path:
            hook(path, module)
    try:
        with torch.no_grad():
            root.output = run()
    finally:
        for handle in handles:
            handle.remove()
    return root


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor of an output: a tensor, a tuple or list, or a mapping of transformers."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return next((found for one in value if (found := first_tensor(one)) is not None), None)
    return None


def replace_first_tensor(value: Any, new: Tensor) -> Any:
    """The same output with another first tensor."""
    if isinstance(value, Tensor):
        return new
    if isinstance(value, dict):
        changed = copy.copy(value)
        key = next(key for key, one in value.items() if first_tensor(one) is not None)
        changed[key] = replace_first_tensor(value[key], new)
        return changed
    items = list(value)
    at = next(i for i, one in enumerate(items) if first_tensor(one) is not None)
    items[at] = replace_first_tensor(items[at], new)
    if isinstance(value, list):
        return items
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
