"""Pixel shuffle (space to depth): blocks of a grid of features become one embedding each.

Axes: b batch, n features, e encoder width, k prefix length, f side of a block, d language-model width.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from magma import CheckInputs, Features, Prefix

from .dropout_norm import DropoutNorm, DropoutNormConfig
from .projection import ProjectionConfig, make_projection
from .windows import Grid


class PixelShuffle(Prefix):
    """Each block of `factor` x `factor` features of a grid becomes one embedding: k = n / factor².

    The features of a block are joined along channels, row by row, and mapped to an embedding. The default is the linear
    map of Idefics3 and SmolVLM with a bias; with `input_norm = "layernorm"` and `layers = 1` it is that of InternVL.
    """

    name = "pixel_shuffle"

    class Config(DropoutNormConfig, ProjectionConfig):
        """The blocks, and the map to the embeddings."""

        layers: int = Field(0, ge=0)
        """Number of hidden layers; without any, the map is linear."""
        factor: int = Field(2, ge=1)
        """Side of a block. It has to divide both sides of the grid."""
        grid: tuple[int, int] | None = None
        """Rows and columns of the grid. Default: it is square, and its size is read off the number of features."""

    config: Config

    def __init__(self, config: Config, encoder_dim: int, encoder_length: int, dim: int) -> None:
        super().__init__(config, encoder_dim, encoder_length, dim)
        self.grid = Grid(config.factor, config.grid)
        self.grid.check(encoder_length)
        self.length = self.num_embeddings(encoder_length)
        self.projection = make_projection(encoder_dim * config.factor**2, dim, config)
        self.finish = DropoutNorm(dim, config.dropout, config.layernorm)

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """Two square grids."""
        return CheckInputs(good=(16, 4), bad=(3, 6, 9))

    def num_embeddings(self, features: int) -> int:
        """Number of blocks. Raises `InputError` for features that are not a grid of such blocks."""
        return self.grid.num_blocks(features)

    def forward(self, features: Features) -> Features:
        """[b, n, e] to [b, n / f², d]."""
        blocks, lengths = self.grid.blocks(features)
        return Features(self.finish(self.projection(blocks.values.flatten(2))), lengths)
