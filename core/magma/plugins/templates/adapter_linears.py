"""The adapter newname. Axes: b batch, t tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from pydantic import Field
from torch import Tensor, nn

import magma

MAGMA_API = 1
"""The version of MAGMA's plugin API that this was written for."""


class NewPart(magma.Adapter):
    """A linear layer plus a low-rank matrix, which is zero at first, with a learned scale of each output channel."""

    name = "newname"
    passes_input_through = True

    class Config(magma.PartConfig):
        """`rank` of the matrix."""

        rank: int = Field(8, ge=1)

    def __init__(self, config: Config, site: magma.Site) -> None:
        super().__init__(config, site)
        if site.linear is None:
            raise magma.PartError(f'"{self.name}": given the site {site.path}; allowed: linear layers')
        self.down = nn.Linear(site.in_features, config.rank, bias=False)
        self.up = nn.Linear(config.rank, site.out_features, bias=False)
        nn.init.zeros_(self.up.weight)
        self.scale = nn.Parameter(torch.ones(site.out_features))

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """[b, t, in_features] to [b, t, out_features]."""
        added: Tensor = self.up(self.down(x))
        return self.scale * (sublayer(x) + added)


@magma.hookimpl
def magma_parts() -> Iterable[type[magma.Part]]:
    """The parts of this package."""
    return [NewPart]
