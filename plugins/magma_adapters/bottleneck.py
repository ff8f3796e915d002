"""Bottleneck adapters (Houlsby et al. 2019, He et al. 2021), as MAGMA uses them: equations 1 and 2 of the paper.

Axes: b batch, t tokens, d width of the site's input, d' width of its output; they differ only at linear layers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from magma import Adapter, PartConfig, PartError, Site

INIT_STD = 1e-3


class _Bottleneck(Adapter):
    """Base of both adapters: f(h) = W_up relu(W_down h), times `scale`. Subclasses add it in different places."""

    passes_input_through = True

    class Config(PartConfig):
        """Sizes and options of the bottleneck. `scale` is lambda in the paper's equations."""

        downsample: int = Field(4, ge=1)
        """The bottleneck has the width of what it reads divided by this number."""
        scale: Literal[1, "learned"] = 1
        """Factor on the adapter's output: 1, or a learned scalar that starts at 1."""
        layernorm: bool = False
        """Apply LayerNorm before the bottleneck."""

    def __init__(self, config: Config, site: Site | int) -> None:
        super().__init__(config, site)
        dim, out_features = self.widths(self.site)
        width = dim // config.downsample
        if width < 1:
            raise PartError(f"adapter downsample: given {config.downsample}; allowed for width {dim}: 1 to {dim}")
        self.norm = nn.LayerNorm(dim) if config.layernorm else nn.Identity()
        self.down = nn.Linear(dim, width)
        self.up = nn.Linear(width, out_features)
        self.scale = nn.Parameter(torch.ones(1)) if config.scale == "learned" else None
        for linear in (self.down, self.up):
            for parameter in linear.parameters():  # the authors' code treats biases like weights
                nn.init.normal_(parameter, std=INIT_STD)
                parameter.data.clamp_(-2 * INIT_STD, 2 * INIT_STD)

    @staticmethod
    @abstractmethod
    def widths(site: Site) -> tuple[int, int]:
        """Widths of the input and the output of the bottleneck."""

    def bottleneck(self, h: Tensor) -> Tensor:
        """Hidden states [b, t, d] to the adapter's output [b, t, d'], which the caller adds."""
        out: Tensor = self.up(torch.relu(self.down(self.norm(h))))
        return out if self.scale is None else self.scale * out

    @abstractmethod
    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """[b, t, d] to [b, t, d']."""


class Sequential(_Bottleneck):
    """An adapter after the sublayer B: h = B(x), output h + scale * f(h)."""

    name = "sequential"

    @staticmethod
    def widths(site: Site) -> tuple[int, int]:
        """It reads the output of the site."""
        return site.out_features, site.out_features

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """[b, t, d] to [b, t, d']: equation 2, "seq."."""
        h = sublayer(x)
        return h + self.bottleneck(h)


class Parallel(_Bottleneck):
    """An adapter parallel to the sublayer B: output B(x) + scale * f(x)."""

    name = "parallel"

    @staticmethod
    def widths(site: Site) -> tuple[int, int]:
        """It reads the input of the site."""
        return site.in_features, site.out_features

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """[b, t, d] to [b, t, d']: equation 2, "parallel". As in the authors' code, x is not added a second time."""
        return sublayer(x) + self.bottleneck(x)
