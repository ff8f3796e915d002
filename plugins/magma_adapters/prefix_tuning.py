"""Prefix-tuning: learned keys and values before those of every sequence (Li and Liang 2021).

Axes: b batch, t tokens, d width, l length of the prefix, g key-value heads, w width of a head's keys, u of its values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor, nn

from magma import Adapter, PartConfig, PartError, Site


class PrefixTuning(Adapter):
    """At attention: every position also attends to learned keys and values (section 4.2), in each block to others.

    They are those of peft without its projection, one tensor for each block. Positions of the sequence stay as they
    are: they are counted from 0, where peft counts from the length of the prefix. A key has no position: it is what
    the library has in its cache, after rotary embeddings.
    """

    name = "prefix_tuning"
    passes_input_through = True

    class Config(PartConfig):
        """Size and start."""

        length: int = Field(16, ge=1)
        """Number l of learned keys and values of each block."""
        std: float = Field(0.02, ge=0)
        """Standard deviation of the random start. A new prefix takes a share of the attention: there is no start at
        which the language model is as it was."""

    config: Config

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        if site.key_values is None:
            raise PartError(
                f'"{self.name}": given the site {site.path}; allowed: attention, with keys and values that the '
                "language model gives access to"
            )
        shape = site.key_values.shape
        self.slot = site.key_values
        self.keys = nn.Parameter(torch.empty(shape.heads, config.length, shape.key_width))
        self.values = nn.Parameter(torch.empty(shape.heads, config.length, shape.value_width))
        for parameter in (self.keys, self.values):
            nn.init.normal_(parameter, std=config.std)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """[b, t, d] to [b, t, d]."""
        with self.slot.prepend(self.keys, self.values, self.acts_on(x)):
            return sublayer(x)
