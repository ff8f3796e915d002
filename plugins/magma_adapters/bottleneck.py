"""Bottleneck adapters (Houlsby et al. 2019, He et al. 2021), as MAGMA uses them: equations 1 and 2 of the paper.

Axes: b batch, t tokens, d language-model width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from magma import Adapter, PartConfig, PartError

INIT_STD = 1e-3


class _Bottleneck(Adapter):
    """scale * W_up relu(W_down h), and where it is added."""

    passes_input_through = True

    class Config(PartConfig):
        """`downsample` is d over the bottleneck's width. `scale` is lambda: 1, or learned from 1."""

        downsample: int = Field(4, ge=1)
        scale: Literal[1, "learned"] = 1
        layernorm: bool = False
        """Normalise h before the bottleneck."""

    def __init__(self, config: Config, dim: int) -> None:
        super().__init__(config, dim)
        width = dim // config.downsample
        if width < 1:
            raise PartError(f"adapter downsample: given {config.downsample}; allowed for width {dim}: 1 to {dim}")
        self.norm = nn.LayerNorm(dim) if config.layernorm else nn.Identity()
        self.down = nn.Linear(dim, width)
        self.up = nn.Linear(width, dim)
        self.scale = nn.Parameter(torch.ones(1)) if config.scale == "learned" else None
        for linear in (self.down, self.up):
            for parameter in linear.parameters():  # the authors' code treats biases like weights
                nn.init.normal_(parameter, std=INIT_STD)
                parameter.data.clamp_(-2 * INIT_STD, 2 * INIT_STD)

    def bottleneck(self, h: Tensor) -> Tensor:
        """[b, t, d] to what is added, [b, t, d]."""
        out: Tensor = self.up(torch.relu(self.down(self.norm(h))))
        return out if self.scale is None else self.scale * out

    @abstractmethod
    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """[b, t, d] to [b, t, d]."""


class Sequential(_Bottleneck):
    """Behind the sublayer B: h = B(x), h + scale * f(h)."""

    name = "sequential"

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Equation 2, "seq."."""
        h = sublayer(x)
        return h + self.bottleneck(h)


class Parallel(_Bottleneck):
    """Beside the sublayer B: B(x) + scale * f(x)."""

    name = "parallel"

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Equation 2, "parallel"; as in the authors' code, x itself is not added a second time."""
        return sublayer(x) + self.bottleneck(x)
