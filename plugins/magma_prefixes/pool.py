"""Pooling: windows of features become one embedding each.

Axes: b batch, n features, e encoder width, k prefix length, w features of a window, d language-model width.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from magma import Features, Prefix

from .dropout_norm import DropoutNorm, DropoutNormConfig
from .projection import ACTIVATIONS, ProjectionConfig, make_projection
from .windows import Grid, Windows, sequence_windows


class Pool(Prefix):
    """Windows of features, averaged or after a convolution, become one embedding each.

    The default averages two successive features, as Qwen2-Audio does, and maps them linearly. With `dimensions = 2`,
    windows are blocks of a grid.
    """

    name = "pool"

    class Config(DropoutNormConfig, ProjectionConfig):
        """The windows, and the map to the embeddings."""

        layers: int = Field(0, ge=0)
        """Number of hidden layers; without any, the map is linear."""
        mode: Literal["average", "convolution"] = "average"
        """The mean of the window, or a convolution to the width of the features, with bias and activation."""
        kernel: int = Field(2, ge=1)
        """Features of a window; of a grid: its side."""
        stride: int | None = Field(None, ge=1)
        """Features from one window to the next. Default: `kernel`. Of a grid, it is always `kernel`."""
        dimensions: Literal[1, 2] = 1
        """1: features are a sequence. 2: they are a grid, row by row."""
        grid: tuple[int, int] | None = None
        """Rows and columns of the grid. Default: it is square, and its size is read off the number of features."""

        @model_validator(mode="after")
        def _keys_fit_dimensions(self) -> Self:
            if self.dimensions == 1 and self.grid is not None:
                raise ValueError("`grid` only with dimensions = 2")
            if self.dimensions == 2 and self.stride not in (None, self.kernel):
                raise ValueError("no `stride` with dimensions = 2, because blocks do not overlap")
            return self

    config: Config

    def __init__(self, config: Config, encoder_dim: int, encoder_length: int, dim: int) -> None:
        super().__init__(config, encoder_dim, encoder_length, dim)
        self.stride = config.stride or config.kernel
        self.grid = None
        if config.dimensions == 2:
            self.grid = Grid(config.kernel, config.grid)
            self.grid.check(encoder_length)
        self.length = self.num_embeddings(encoder_length)
        self.convolution = None
        if config.mode == "convolution":
            size = config.kernel**config.dimensions
            self.convolution = nn.Sequential(
                nn.Linear(size * encoder_dim, encoder_dim), ACTIVATIONS[config.activation]()
            )
        self.projection = make_projection(encoder_dim, dim, config)
        self.finish = DropoutNorm(dim, config.dropout, config.layernorm)

    def num_embeddings(self, features: int) -> int:
        """Number of whole windows, at least 1. Raises `InputError` for features that are not a grid of such blocks."""
        if self.grid is not None:
            return self.grid.num_blocks(features)
        return max(0, features - self.config.kernel) // self.stride + 1

    def forward(self, features: Features) -> Features:
        """[b, n, e] to [b, k, d]. An input that is shorter than a window is one window."""
        if self.grid is not None:
            windows, lengths = self.grid.blocks(features)
        else:
            count = self.num_embeddings(features.values.shape[1])
            windows = sequence_windows(features, count, self.config.kernel, self.stride)
            lengths = features.lengths
            if lengths is not None:
                lengths = (lengths - self.config.kernel).clamp(min=0) // self.stride + 1
        return Features(self.finish(self.projection(self._reduce(windows))), lengths)

    def _reduce(self, windows: Windows) -> Tensor:
        """[b, k, w, e] to [b, k, e]."""
        if self.convolution is not None:
            out: Tensor = self.convolution(windows.values.flatten(2))
            return out
        count = windows.valid.sum(-1, keepdim=True).clamp(min=1)
        return windows.values.sum(2) / count.to(windows.values.dtype)
