"""FLOPs and activations of one forward and backward pass on meta, counted operation by operation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from .data.sequence import Batch
from .errors import PartError
from .io import error_summary
from .meta import GROUPED_MM, RunOnMeta
from .model import Magma
from .values import Features, tensors_in

EXAMPLES = 2
"""Number of examples in the measured batch: BatchNorm does not accept one."""


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Measure attention as a GPU computes it: queries, keys, values and outputs are kept, but no scores.

    On meta, unfused operations would run and be counted.
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
        shared_heads = bool(more.get("enable_gqa")) and not _can_count_shared_heads()
        if shared_heads or query.ndim != 4:  # the kernel takes [b, h, t, w] only
            out: Tensor = plain(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more)
        else:
            out = kernel(query, key, value, dropout_p, is_causal, scale=scale)[0]
        return out

    setattr(F, "scaled_dot_product_attention", fused)  # noqa: B010  # mypy holds an assignment to its whole signature
    try:
        yield
    finally:
        setattr(F, "scaled_dot_product_attention", plain)  # noqa: B010  # as above


@cache
def _can_count_shared_heads() -> bool:
    """Whether torch's formula takes fewer heads of keys and values than of queries: not in older versions."""
    try:
        sdpa_flop_count((1, 2, 1, 1), (1, 1, 1, 1), (1, 1, 1, 1))  # type: ignore[no-untyped-call]  # torch's
    except AssertionError:
        return False
    return True


class _Counter(RunOnMeta):  # type: ignore[no-untyped-call]  # torch's
    """Adds up FLOPs by torch's own formulas. Autograd has already decomposed compound operations.

    Blocks repeat, so results are cached by the shapes of the inputs: an operation on meta takes up to milliseconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.failed = ""
        """The operation that needs values."""
        self._known: dict[Any, Any] = {}

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One operation, whose FLOPs are added."""
        try:
            if func._schema.is_mutable or any(returned.alias_info for returned in func._schema.returns):
                out = super().run(func, args, kwargs)  # of a view, or in place
            else:
                out = self._run_once(func, args, kwargs)
        except NotImplementedError:
            self.failed = str(func._overloadpacket)
            raise
        if func._overloadpacket is GROUPED_MM:
            self.flops += _grouped_mm_flops(*args[:2])
        elif formula := flop_registry.get(func._overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=out)
        return out

    def _run_once(self, func: Any, args: Any, kwargs: Any) -> Any:
        key = (func, _cache_key(args), _cache_key(kwargs))
        if key in self._known:
            return tree_map_only(_TensorKey, _TensorKey.make, self._known[key])
        out = super().run(func, args, kwargs)
        tensors = [one for one in tree_leaves(out) if isinstance(one, Tensor)]
        if tensors and all(tensor.is_meta for tensor in tensors):  # others have values
            self._known[key] = tree_map_only(Tensor, _TensorKey.of, out)
        return out


def _grouped_mm_flops(one: Tensor, other: Tensor) -> int:
    """Each position is computed once, by its own group. torch has no formula for it."""
    groups = one.shape[0] if one.ndim == other.ndim == 3 else 1
    return 2 * groups * one.shape[-2] * one.shape[-1] * other.shape[-1]


@dataclass(frozen=True)
class _TensorKey:
    """The properties of a tensor on meta that decide the result of an operation."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)

    def make(self) -> Tensor:
        """A tensor on meta with these properties."""
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)


def _cache_key(value: Any) -> Any:
    """The arguments of an operation as a key of a dictionary."""
    if isinstance(value, Tensor):
        return _TensorKey.of(value)
    if isinstance(value, list | tuple):
        return tuple(map(_cache_key, value))
    if isinstance(value, dict):
        return tuple((name, _cache_key(one)) for name, one in value.items())
    return type(value), value


class NotMeasurable(Exception):
    """A part needs values, which tensors on meta do not have. The message is the reason, for plans."""


@dataclass(frozen=True)
class ExampleCosts:
    """FLOPs of the forward and backward pass per example, and bytes kept for the backward pass."""

    flops: int
    per_medium: dict[str, int]
    """FLOPs of each input."""
    activation_bytes: int


def measure(model: Magma, batch: Batch, kept_inputs: Sequence[nn.Module]) -> ExampleCosts:
    """Measure a forward and backward pass over a batch.

    Args:
        model: The model on meta.
        batch: The batch on meta.
        kept_inputs: Modules with activation checkpointing, which keep only their inputs.

    Raises:
        NotMeasurable: A part cannot run on meta.
        PartError: Shapes of the parts do not match.
    """
    own = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # kept alive, so that no other storage gets its number
        return tensor

    for module in kept_inputs:
        module.register_forward_pre_hook(lambda _, given: ([keep(x) for x in tensors_in(given[0])], None)[1])
    counter = _Counter()
    try:
        with counter, _fused_attention():
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                model.train()
                per_medium, cuts = _separate_inputs(model, counter)
                loss = model(batch)
            saved = sum(t.untyped_storage().nbytes() for number, t in kept.items() if number not in own)
            if loss.requires_grad:
                torch.autograd.backward(loss)
            for name, embeddings, leaf in cuts:
                before = counter.flops
                torch.autograd.backward(embeddings, leaf.grad)
                per_medium[name] += counter.flops - before
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        if isinstance(error, NotImplementedError) or "meta" in str(error):
            reason = counter.failed or error_summary(error).partition(". ")[0]
            raise NotMeasurable(f"a part needs values, which only a real run has ({reason})") from error
        if isinstance(error, TypeError):  # a mistake in the code of a part
            raise
        raise PartError(f"the parts of this recipe do not fit together: {error}") from error
    return ExampleCosts(
        counter.flops // EXAMPLES,
        {name: count // EXAMPLES for name, count in per_medium.items()},
        saved // EXAMPLES,
    )


def _separate_inputs(model: Magma, counter: _Counter) -> tuple[dict[str, int], list[tuple[str, Tensor, Tensor]]]:
    """Separate the inputs from the language model.

    Returns:
        FLOPs of each input, which are counted from now on; and for each input its embeddings and the leaf tensor that
        replaces them and receives their gradient.
    """
    per_medium = dict.fromkeys(model.input_modules(), 0)
    cuts: list[tuple[str, Tensor, Tensor]] = []
    for name, input_module in model.input_modules().items():

        def begin(_module: nn.Module, _given: Any, name: str = name) -> None:
            per_medium[name] -= counter.flops

        def end(_module: nn.Module, _given: Any, out: Features, name: str = name) -> Features:
            per_medium[name] += counter.flops
            leaf = out.values.detach().requires_grad_(out.values.requires_grad)
            if leaf.requires_grad:
                cuts.append((name, out.values, leaf))
            return out._replace(values=leaf)

        input_module.register_forward_pre_hook(begin)
        input_module.register_forward_hook(end)
    return per_medium, cuts
