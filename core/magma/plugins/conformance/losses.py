"""The auxiliary losses of a part under test."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...auxiliary import losses_problem
from ...interfaces import Encoder, Head, Module, Prefix
from ...losses import LossContext
from ...values import Features, Prepared, map_tensors, tensors_in
from .subject import DIM, Check, PartUnderTest, features_of, require

_INPUT = "input"
_TARGETS = 3
"""Targets of each sequence."""


def auxiliary_losses(subject: PartUnderTest, module: Module, given: Prepared) -> dict[str, Tensor]:
    """What `auxiliary_loss` gives after a forward pass over `given`. Fails if it is not what the part declares."""
    if not module.auxiliary_losses:
        return {}
    values = subject.call(module, given)
    losses = module.auxiliary_loss(_context(module, given, values))
    problem = losses_problem(module, losses)
    require(not problem, problem)
    return losses


def _context(module: Any, given: Any, values: Tensor) -> LossContext:
    """A sequence for each item of `given`, whose output has these `values`."""
    draw = torch.Generator().manual_seed(11)
    items = len(values)
    words = torch.randn(items * _TARGETS, DIM, generator=draw).to(values.dtype)
    features, embeddings = Features(values), Features(words.view(items, _TARGETS, DIM))
    if isinstance(module, Prefix):
        features, embeddings = Features(given), features_of(module(Features(given)))
    is_input = isinstance(module, Encoder | Prefix)
    targets = torch.arange(items).repeat_interleave(_TARGETS)
    return LossContext(
        input=_INPUT if is_input else "",
        features={_INPUT: features} if is_input else {},
        embeddings={_INPUT: embeddings} if is_input else {},
        media_sequences={_INPUT: torch.arange(items)} if is_input else {},
        hidden=given if isinstance(module, Head) else words,
        labels=torch.zeros(items if isinstance(module, Head) else len(words), dtype=torch.long),
        target_sequences=torch.arange(items) if isinstance(module, Head) else targets,
        target_embeddings=None if isinstance(module, Head) else words,
    )


def auxiliary_losses_are_scalars(subject: PartUnderTest) -> None:
    """`auxiliary_loss` gives a finite scalar for each of `auxiliary_losses`, for a single item and in bfloat16, too."""
    module = subject.make()
    (given,) = subject.inputs(module)
    for dtype in (torch.float32, torch.bfloat16):
        module.to(dtype)
        for items in (given, map_tensors(lambda x: x[:1], given)):
            converted = map_tensors(partial(_converted, dtype=dtype), items)
            for name, value in auxiliary_losses(subject, module, converted).items():
                what = f"for {len(tensors_in(items)[0])} items in {str(dtype).removeprefix('torch.')}"
                require(bool(value.isfinite()), f"the loss {name} is not finite {what}")


def _converted(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x


CHECKS: tuple[Check, ...] = (auxiliary_losses_are_scalars,)
