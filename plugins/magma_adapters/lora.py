"""Low-rank adaptation of linear layers: LoRA (Hu et al. 2021), rsLoRA (Kalajdzievski 2023), DoRA (Liu et al. 2024).

Axes: b batch, t tokens, i width of the layer's input, o width of its output, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from magma import Adapter, PartConfig, PartError, Site

from .linear_layers import require_linear


class LoRA(Adapter):
    """A linear layer plus a trained matrix of low rank: W x + s B A x, where s = alpha / rank.

    The parameters are those of peft, with its names and start: A is uniform (Kaiming), B is zero.
    """

    name = "lora"
    passes_input_through = True

    class Config(PartConfig):
        """Size and variant of the update. The defaults are those of peft."""

        rank: int = Field(8, ge=1)
        """Rank r of the update B A."""
        alpha: float = Field(8.0, gt=0)
        """The update is multiplied by alpha / rank."""
        dropout: float = Field(0.0, ge=0, lt=1)
        """Dropout on the input of A. The frozen layer reads its input without dropout, also with `dora`."""
        rslora: bool = False
        """Multiply by alpha / sqrt(rank) instead (rank-stabilized LoRA)."""
        dora: bool = False
        """Also train the norm of each row of the weight (DoRA). It needs a frozen weight that is not quantized."""

    config: Config

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        require_linear(self.name, site)
        if config.rank > (most := min(site.in_features, site.out_features)):
            raise PartError(
                f"rank: given {config.rank} at {site.path} of block {site.block}; allowed: at most {most}, because its "
                f"weight is [{site.out_features}, {site.in_features}]"
            )
        self.scaling = config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)
        self.dropout = nn.Dropout(config.dropout)
        # Parameters of this module, not of children: ZeRO-3 gathers them together, and DoRA reads all of them.
        self.lora_A = nn.Parameter(torch.empty(config.rank, site.in_features))
        self.lora_B = nn.Parameter(torch.zeros(site.out_features, config.rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        # The size is that of the frozen weight, which is refused here if it is quantized.
        self.lora_magnitude_vector = nn.Parameter(torch.ones(len(site.weight))) if config.dora else None

    def load_weights(self) -> None:
        """The magnitudes of DoRA start as the norms of the frozen rows."""
        if self.lora_magnitude_vector is not None:
            with torch.no_grad():
                self.lora_magnitude_vector.copy_(self._row_norms())

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """[b, t, i] to [b, t, o]: equation 3 of LoRA; with magnitudes, equation 5 of DoRA."""
        base = sublayer(x)
        low = self.scaling * F.linear(self.dropout(x), self.lora_A)
        factor = self._factor()
        if factor is None:
            return base + F.linear(low, self.lora_B)
        bias = self.site.bias
        product = base if bias is None else base - bias
        return base + torch.addcmul(F.linear(low, factor[:, None] * self.lora_B), factor - 1, product)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Add the update to the weight; with magnitudes, also scale its rows. Bias of the frozen layer stays."""
        new = weight + self.scaling * (self.lora_B.to(weight.dtype) @ self.lora_A.to(weight.dtype))
        factor = self._factor()
        if factor is None:
            return new, bias
        factor, frozen = factor.to(weight.dtype), self.site.bias
        if bias is not None and frozen is not None:  # an adapter inside this one may have changed it
            bias = torch.lerp(frozen.to(bias.dtype), bias, factor)
        return factor[:, None] * new, bias

    def _factor(self) -> Tensor | None:
        """What DoRA multiplies each row by, [o]: the magnitude over the row's norm. None: LoRA."""
        if self.lora_magnitude_vector is None:
            return None
        return self.lora_magnitude_vector / self._row_norms().to(self.lora_magnitude_vector.dtype)

    @torch.no_grad()
    def _row_norms(self) -> Tensor:
        """The norm of each row of W + s B A, [o], in float32 at least.

        It is a constant for the gradient (section 4.3 of DoRA). The sum is never formed, because it has the size of W:
        |w + s b A|^2 = |w|^2 + 2 s b (A w) + s^2 b (A A^T) b^T for a row w of W and b of B.
        """
        weight = self.site.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        squares = torch.linalg.vector_norm(weight, dim=1, dtype=dtype).square()
        cross = (weight @ self.lora_A.to(weight.dtype).T).to(dtype)
        scaled, b = self.scaling * self.lora_A.to(dtype), self.lora_B.to(dtype)
        squares = squares + ((2 * self.scaling * cross + b @ (scaled @ scaled.T)) * b).sum(1)
        norms: Tensor = squares.clamp_min(torch.finfo(dtype).tiny).sqrt()
        return norms
