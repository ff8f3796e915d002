"""Toy parts with auxiliary losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys import ToyAdapter, ToyHead, ToyPrefix

from magma import LossContext, PartConfig, hookimpl


class Near(ToyPrefix):
    """Embeddings near the caption's words. A parameter of the part itself scales the distance."""

    name = "near"
    auxiliary_losses = ("distance",)

    def __init__(self, config: PartConfig, encoder_dim: int, encoder_length: int, dim: int) -> None:
        super().__init__(config, encoder_dim, encoder_length, dim)
        self.scale = nn.Parameter(torch.ones(3))
        self.projection = nn.Linear(dim, dim)

    def auxiliary_loss(self, context: LossContext) -> dict[str, Tensor]:
        caption = context.caption_embeddings()
        found = self.projection(context.embeddings[context.input].values.mean(1))
        return {"distance": F.mse_loss(found, caption) * self.scale.square().sum()}


class Quiet(ToyAdapter):
    """Its last output is small: a loss from what `forward` has kept."""

    name = "quiet"
    auxiliary_losses = ("size",)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        h = sublayer(x)
        self.last = self.up(self.down(h).relu())
        return h + self.last

    def auxiliary_loss(self, context: LossContext) -> dict[str, Tensor]:
        return {"size": self.last.square().mean()}


class SmallWeights(ToyHead):
    name = "small_weights"
    auxiliary_losses = ("norm",)

    def auxiliary_loss(self, context: LossContext) -> dict[str, Tensor]:
        return {"norm": self.linear.weight.square().sum() + 0 * context.hidden.sum()}


class Wrong(ToyPrefix):
    """Returns what it is configured to return."""

    name = "wrong"
    auxiliary_losses = ("one", "two")

    class Config(PartConfig):
        fault: str

    def auxiliary_loss(self, context: LossContext) -> Any:
        one = self.linear.weight.sum()
        faults = {"list": [one], "missing": {"one": one}, "vector": {"one": one, "two": self.linear.bias}}
        return {**faults, "number": {"one": one, "two": 1.0}}[self.config.fault]


@hookimpl
def magma_parts() -> list[type]:
    return [Near, Quiet, SmallWeights, Wrong]
