"""(IA)^3: learned scales of the activations of linear layers (Liu et al. 2022, section 3.3).

Axes: b batch, t tokens, i width of the layer's input, o width of its output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from magma import Adapter, PartConfig, Site

from .linear_layers import require_linear


class IA3(Adapter):
    """A linear layer whose output or input is multiplied by a trained vector, which starts as ones.

    In the paper, the outputs of the keys and values are scaled, and the input of the last feed-forward layer.
    """

    name = "ia3"

    class Config(PartConfig):
        """What is scaled."""

        scales: Literal["output", "input"] = "output"
        """Scale the output of the layer (bias included), or its input, as peft does in `feedforward_modules`."""

    config: Config

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        require_linear(self.name, site)
        self.ia3_l = nn.Parameter(torch.ones(site.in_features if config.scales == "input" else site.out_features))

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """[b, t, i] to [b, t, o]."""
        return sublayer(x * self.ia3_l) if self.config.scales == "input" else sublayer(x) * self.ia3_l

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Scale the columns of the weight, or its rows and the bias."""
        scale = self.ia3_l.to(weight.dtype)
        if self.config.scales == "input":
            return weight * scale, bias
        return weight * scale[:, None], None if bias is None else bias * scale
