"""The MLP on each feature that several prefixes have.

Axes: n features, e encoder width, h hidden width, d language-model width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from magma import PartConfig

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"]


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), OpenAI's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x * (1.702 * x).sigmoid()


class Gated(nn.Module):
    """A gated linear unit (Shazeer 2020): the second half of the channels, after the activation, times the first."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """[..., 2h] to [..., h]."""
        values, gate = x.chunk(2, dim=-1)
        out: Tensor = self.activation(gate) * values
        return out


ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "quick_gelu": QuickGELU,
    "silu": nn.SiLU,
    "relu": nn.ReLU,
}


class ProjectionConfig(PartConfig):
    """Sizes of an MLP on each feature."""

    layers: int = Field(1, ge=0)
    """Number of hidden layers; without any, the map is linear."""
    hidden: int | None = Field(None, ge=1)
    """Width of the hidden layers. Default: the width of the language model."""
    activation: Activation = "gelu"
    """Activation after each hidden layer. `"gelu_tanh"` and `"quick_gelu"` are approximations of GELU."""
    gated: bool = False
    """Use gated linear units: each hidden layer is twice as wide, and one half gates the other (SwiGLU with
    `"silu"`)."""
    bias: bool = True
    """Whether the linear layers have biases."""
    input_norm: Literal["none", "layernorm", "rmsnorm"] = "none"
    """Normalisation before the first linear layer."""
    norm_eps: float = Field(1e-5, gt=0)
    """Epsilon of this normalisation."""


def make_projection(in_dim: int, out_dim: int, config: ProjectionConfig) -> nn.Sequential:
    """A map [..., in_dim] to [..., out_dim].

    Its modules are named as in `nn.Sequential`: "0" is the first linear layer, "1" its activation. The normalisation
    before them is "norm".
    """
    made = nn.Sequential()
    if config.input_norm != "none":
        norm = nn.LayerNorm if config.input_norm == "layernorm" else nn.RMSNorm
        made.add_module("norm", norm(in_dim, eps=config.norm_eps))
    steps: list[nn.Module] = []
    width = in_dim
    hidden = config.hidden or out_dim
    for _ in range(config.layers):
        activation = ACTIVATIONS[config.activation]()
        steps += [
            nn.Linear(width, hidden * (2 if config.gated else 1), config.bias),
            Gated(activation) if config.gated else activation,
        ]
        width = hidden
    for i, step in enumerate([*steps, nn.Linear(width, out_dim, config.bias)]):
        made.add_module(str(i), step)
    return made
