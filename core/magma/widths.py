"""Check that the widths of a model's parts match. The check is done on meta, without computation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from .errors import PartError
from .inputs import Input
from .interfaces import FrozenLM, Head
from .values import Features


def check_widths(lm: FrozenLM, inputs: Mapping[str, Input], head: Head | None) -> None:
    """Run every prefix and the head on meta, so that a wrong width is found before training.

    Raises:
        PartError: Widths do not match.
    """
    for name, input_module in inputs.items():
        features = torch.empty(1, input_module.encoder.length, input_module.encoder.dim, device="meta")
        try:
            out: Features = _on_meta(input_module.prefix)(Features(features))
        except RuntimeError as error:
            raise PartError(
                f"inputs.{name}: the prefix cannot take the encoder's "
                f"[b, {input_module.encoder.length}, {input_module.encoder.dim}]: {error}"
            ) from error
        wanted = (1, input_module.prefix.length, lm.embedding_dim)
        if tuple(out.values.shape) != wanted:
            raise PartError(
                f"inputs.{name}: the prefix gives {list(out.values.shape)}; expected from its length and the "
                f"width of word embeddings: {list(wanted)}"
            )
    if head is not None:
        scores = _on_meta(head)(torch.empty(1, lm.output_dim, device="meta"))
        if tuple(scores.shape) != (1, len(head.classes)):
            raise PartError(f"head: it gives {list(scores.shape)}; expected for its classes: [1, {len(head.classes)}]")


def _on_meta(module: nn.Module) -> Callable[[Any], Any]:
    """The module as a function with parameters and buffers on meta: it gives shapes without computation or memory."""
    state = {
        name: torch.empty_like(t, device="meta", dtype=torch.float32 if t.is_floating_point() else t.dtype)
        for name, t in [*module.named_parameters(), *module.named_buffers()]
    }
    return lambda *args: torch.func.functional_call(module, state, args)
