"""The adapter newname. Axes: b batch, t tokens, n embeddings of all media of a row, d width of the site."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

import magma

MAGMA_API = 1
"""The version of MAGMA's plugin API that this was written for."""


class NewPart(magma.Adapter):
    """Before the block, each position attends to the media before it; the gate is zero at first."""

    name = "newname"
    uses_context = True

    class Config(magma.PartConfig):
        """`width` of the queries, and whether only the last medium is read."""

        width: int = Field(16, ge=1)
        last_only: bool = False

    config: Config

    def __init__(self, config: Config, site: magma.Site) -> None:
        super().__init__(config, site)
        if site.path != "block":
            raise magma.PartError(f'"{self.name}": given the site {site.path}; allowed: block')
        self.query = nn.Linear(site.in_features, config.width, bias=False)
        self.key = nn.Linear(site.media_features, config.width, bias=False)
        self.value = nn.Linear(site.media_features, site.in_features, bias=False)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor], context: magma.Context) -> Tensor:
        """[b, t, d] to [b, t, d]."""
        mask = context.media_mask(self.config.last_only)  # [b, t, n]
        none = x.new_zeros(len(x), 1, self.key.in_features)  # a position without media attends to this embedding
        media = torch.cat([none, context.media], dim=1)
        mask = F.pad(mask, (1, 0), value=True)
        found = F.scaled_dot_product_attention(self.query(x), self.key(media), self.value(media), attn_mask=mask)
        return sublayer(x + self.gate.tanh() * found)


@magma.hookimpl
def magma_parts() -> Iterable[type[magma.Part]]:
    """The parts of this package."""
    return [NewPart]
