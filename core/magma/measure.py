"""FLOPs and activations of one forward and backward pass on meta, counted operation by operation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from .data.sequence import Batch
from .errors import PartError
from .model import Magma
from .values import Features

EXAMPLES = 2
"""Of the batch that is measured: BatchNorm takes no batch of one."""


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention as a GPU computes it: queries, keys, values and what comes out are kept, no scores.

    Without it the unfused operations would be counted, which is what runs on meta.
    """
    plain = F.scaled_dot_product_attention
    kernel = torch.ops.aten._scaled_dot_product_flash_attention

    def fused(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **more: Any,
    ) -> Tensor:
        if more.get("enable_gqa"):
            out: Tensor = plain(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more)
        else:
            out = kernel(query, key, value, dropout_p, is_causal, scale=scale)[0]
        return out

    setattr(F, "scaled_dot_product_attention", fused)  # noqa: B010  # mypy holds an assignment to its whole signature
    try:
        yield
    finally:
        setattr(F, "scaled_dot_product_attention", plain)  # noqa: B010  # as above


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Adds up the FLOPs of what runs, by torch's own formulas. Autograd has taken compound operations apart before.

    Blocks repeat: what an operation gives for inputs of the same shapes is remembered, since finding it out on meta
    takes up to milliseconds.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.flops = 0
        self._known: dict[Any, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable or any(returned.alias_info for returned in func._schema.returns):
            out = func(*args, **kwargs)  # of a view, or in place
        else:
            key = (func, _likeness(args), _likeness(kwargs))
            if key in self._known:
                out = tree_map_only(_Like, _Like.make, self._known[key])
            else:
                out = func(*args, **kwargs)
                self._known[key] = tree_map_only(Tensor, _Like.of, out)
        if formula := flop_registry.get(func._overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=out)
        return out


@dataclass(frozen=True)
class _Like:
    """What is known of a tensor on meta."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)

    def make(self) -> Tensor:
        """Such a tensor."""
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)


def _likeness(value: Any) -> Any:
    """The arguments of an operation as a key."""
    if isinstance(value, Tensor):
        return _Like.of(value)
    if isinstance(value, list | tuple):
        return tuple(map(_likeness, value))
    if isinstance(value, dict):
        return tuple((name, _likeness(one)) for name, one in value.items())
    return type(value), value


@dataclass(frozen=True)
class Measured:
    """FLOPs of forward and backward an example, and the bytes that forward keeps for backward."""

    flops: int
    per_medium: dict[str, int]
    """An input's share of the FLOPs."""
    activations: int


def measure(model: Magma, batch: Batch, kept_inputs: Sequence[nn.Module]) -> Measured | None:
    """One pass over a batch, forward and backward; None where a part cannot run on meta.

    `kept_inputs` are modules that keep what they are given, and no more.
    """
    own = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # held, so that no other storage takes its number
        return tensor

    for module in kept_inputs:
        module.register_forward_pre_hook(lambda _, given: (keep(given[0]), None)[1])
    counter = _Counter()
    try:
        with counter, _fused_attention():
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                model.train()
                per_medium, cuts = _cut(model, counter)
                loss = model(batch)
            saved = sum(t.untyped_storage().nbytes() for number, t in kept.items() if number not in own)
            if loss.requires_grad:
                torch.autograd.backward(loss)
            for name, embeddings, leaf in cuts:
                before = counter.flops
                torch.autograd.backward(embeddings, leaf.grad)
                per_medium[name] += counter.flops - before
    except (RuntimeError, ValueError, IndexError) as error:
        if "meta" in str(error):  # a part asks for a value, and there is none
            return None
        raise PartError(f"the parts of this recipe do not fit together: {error}") from error
    return Measured(
        counter.flops // EXAMPLES,
        {name: count // EXAMPLES for name, count in per_medium.items()},
        saved // EXAMPLES,
    )


def _cut(model: Magma, counter: _Counter) -> tuple[dict[str, int], list[tuple[str, Tensor, Tensor]]]:
    """Separate inputs from the language model: FLOPs of each input, which are counted from now on, and where
    each was cut: its embeddings, and the leaf in their place whose gradient is theirs.
    """
    per_medium = dict.fromkeys(model.input_modules(), 0)
    cuts: list[tuple[str, Tensor, Tensor]] = []
    for name, input_module in model.input_modules().items():

        def begin(_way: nn.Module, _given: Any, name: str = name) -> None:
            per_medium[name] -= counter.flops

        def end(_way: nn.Module, _given: Any, out: Features, name: str = name) -> Features:
            per_medium[name] += counter.flops
            leaf = out.values.detach().requires_grad_(out.values.requires_grad)
            if leaf.requires_grad:
                cuts.append((name, out.values, leaf))
            return out._replace(values=leaf)

        input_module.register_forward_pre_hook(begin)
        input_module.register_forward_hook(end)
    return per_medium, cuts
