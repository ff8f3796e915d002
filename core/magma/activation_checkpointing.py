"""Activation checkpointing: modules keep only their input and are recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .adapters import AdapterState
from .errors import PartError
from .model import Magma

Which = Literal["none", "encoder", "lm", "all"]


def checkpoint_activations(model: Magma, which: Which) -> list[nn.Module]:
    """Enable activation checkpointing for encoders, for the language model's blocks, or for both.

    Losses and gradients do not change.

    Returns:
        The modules that keep only their input.

    Raises:
        PartError: The language model has an empty `blocks`.
    """
    modules: list[nn.Module] = []
    if which in ("encoder", "all"):
        modules += [input_module.encoder for input_module in model.input_modules().values()]
    if which in ("lm", "all"):
        modules += lm_blocks(model, "train.activation_checkpointing")
    for module in modules:
        _checkpoint_module(module, model.lm.adapter_state)
    return modules


def lm_blocks(model: Magma, key: str) -> list[nn.Module]:
    """The language model's blocks. Raises `PartError` if it does not name them."""
    if not (found := list(model.lm.blocks)):
        raise PartError(f'{key}: the language model "{model.lm.name}" does not name its blocks')
    return found


def _checkpoint_module(module: nn.Module, state: AdapterState) -> None:
    forward = module.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        now = state.context, state.disabled  # adapters get the same when they are run again
        contexts = lambda: (nullcontext(), _again(module, state.use(*now)))  # noqa: E731  # one line, next to its use
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    module.forward = run


@contextmanager
def _again(module: nn.Module, adapters: AbstractContextManager[None]) -> Iterator[None]:
    with adapters, _freeze_bn_stats(module):
        yield


@contextmanager
def _freeze_bn_stats(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of BatchNorm during recomputation: they include this batch already."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count
