"""The adapter newname. Axes: b batch, t tokens, d width of the site."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pydantic import Field
from torch import Tensor, nn

import magma

MAGMA_API = 1
"""The version of MAGMA's plugin API that this was written for."""


class NewPart(magma.Adapter):
    """The sublayer's output plus a low-rank map of its input, which is zero at first."""

    name = "newname"
    passes_input_through = True

    class Config(magma.PartConfig):
        """`rank` of the map."""

        rank: int = Field(8, ge=1)

    def __init__(self, config: Config, site: magma.Site) -> None:
        super().__init__(config, site)
        self.down = nn.Linear(site.in_features, config.rank, bias=False)
        self.up = nn.Linear(config.rank, site.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """[b, t, d] to [b, t, d]."""
        added: Tensor = self.up(self.down(x))
        return sublayer(x) + added


@magma.hookimpl
def magma_parts() -> Iterable[type[magma.Part]]:
    """The parts of this package."""
    return [NewPart]
