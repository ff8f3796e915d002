"""The head newname. Axes: m rows, d language-model width, c classes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import Field
from torch import Tensor, nn

import magma

MAGMA_API = 1
"""The version of MAGMA's plugin API that this was written for."""


class NewPart(magma.Head):
    """A LayerNorm and a linear map to the classes."""

    name = "newname"

    class Config(magma.PartConfig):
        """`classes` are the labels that examples may have."""

        classes: tuple[str, ...] = Field(min_length=2)

    def __init__(self, config: Config, dim: int) -> None:
        super().__init__(config, dim)
        self.classes = config.classes
        self.layers = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, len(config.classes)))

    @classmethod
    def check_inputs(cls, folder: Path) -> magma.CheckInputs:
        """Two classes."""
        return magma.CheckInputs({"classes": ("yes", "no")})

    def forward(self, hidden: Tensor) -> Tensor:
        """[m, d] to [m, c]."""
        logits: Tensor = self.layers(hidden)
        return logits


@magma.hookimpl
def magma_parts() -> Iterable[type[magma.Part]]:
    """The parts of this package."""
    return [NewPart]
