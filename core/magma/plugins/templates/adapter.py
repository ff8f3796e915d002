"""The adapter newname. Axes: b batch, t tokens, d language-model width."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pydantic import Field
from torch import Tensor, nn

import magma

MAGMA_API = 1
"""The version of MAGMA's plugin API that this was written for."""


class NewPart(magma.Adapter):
    """What the sublayer gives, and a low-rank map of what it was given; at first the latter is nothing."""

    name = "newname"
    passes_input_through = True

    class Config(magma.PartConfig):
        """`rank` of the map."""

        rank: int = Field(8, ge=1)

    def __init__(self, config: Config, dim: int) -> None:
        super().__init__(config, dim)
        self.down, self.up = nn.Linear(dim, config.rank, bias=False), nn.Linear(config.rank, dim, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """[b, t, d] to [b, t, d]."""
        added: Tensor = self.up(self.down(x))
        return sublayer(x) + added


@magma.hookimpl
def magma_parts() -> Iterable[type[magma.Part]]:
    """The parts of this package."""
    return [NewPart]
