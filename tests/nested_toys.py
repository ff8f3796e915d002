"""Toy parts that contain other parts, as a stranger's package would have them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn
from toys import RECIPE, ToyEncoder

from magma import (
    Adapter,
    DataSource,
    Example,
    Features,
    PartConfig,
    PartError,
    PartOf,
    Prefix,
    SourceState,
    Weights,
    hookimpl,
)


class Scaled(Prefix):
    """Another prefix, and a factor for each channel."""

    name = "scaled"

    class Config(PartConfig):
        """The prefix inside."""

        renamed_keys = MappingProxyType({"prefix": "inner"})

        inner: PartOf[Prefix] = Field({"use": "plain"}, validate_default=True)
        """The prefix whose embeddings are scaled."""
        start: float = 1.0
        """The factors before training."""

    def __init__(self, config: Config, encoder_dim: int, encoder_length: int, dim: int) -> None:
        super().__init__(config, encoder_dim, encoder_length, dim)
        self.inner = config.inner.build(encoder_dim, encoder_length, dim)
        self.length = self.inner.length
        self.factors = nn.Parameter(torch.full((dim,), config.start))

    def num_embeddings(self, features: int) -> int:
        return self.inner.num_embeddings(features)

    def forward(self, features: Features) -> Features:
        values, lengths = self.inner(features)
        return Features(values * self.factors, lengths)


class Several(Adapter):
    """Adapters by name, one around the other."""

    name = "several"

    class Config(PartConfig):
        """The adapters inside."""

        inner: dict[str, PartOf[Adapter]]
        """The adapters, the innermost one first."""

    def __init__(self, config: Config, dim: int) -> None:
        super().__init__(config, dim)
        self.inner = nn.ModuleDict({name: one.build(dim) for name, one in config.inner.items()})

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        for adapter in self.inner.values():
            sublayer = _around(adapter, sublayer)
        return sublayer(x)


def _around(adapter: nn.Module, sublayer: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: adapter(x, sublayer)


class Twice(DataSource):
    """Every example of another source two times."""

    name = "twice"

    class Config(PartConfig):
        """The other source."""

        source: PartOf[DataSource]
        """The source whose examples are repeated."""

    def __init__(self, config: Config, seed: int) -> None:
        super().__init__(config, seed)
        self.source = config.source.build(seed)

    def iterate(self, state: SourceState | None = None) -> Iterator[tuple[Example, SourceState]]:
        for example, after in self.source.iterate(state):
            yield from [(example, after)] * 2


class FileEncoder(ToyEncoder):
    """The toy encoder with weights in a file, and keys of several ages."""

    name = "filed"

    class Config(ToyEncoder.Config):
        """A file."""

        legacy_defaults = MappingProxyType({"sharp": True})
        renamed_keys = MappingProxyType({"file": "weights"})

        weights: Weights
        """A file of weights."""
        sharp: bool = False
        """A key that was added later."""

    config: Config

    def load_weights(self) -> None:
        try:
            self.load_state_dict(load_file(self.config.weights))
        except OSError as error:
            raise PartError(f"weights: {self.config.weights} cannot be read: {error}") from error

    @classmethod
    def problems(cls, config: Any) -> list[str]:
        return [] if Path(config.weights).is_file() else [f"weights: {config.weights} is not a file"]


def fused_recipe(*members: dict[str, Any], **encoder: Any) -> dict[str, Any]:
    """The toy recipe with several encoders."""
    found = copy.deepcopy(RECIPE)
    of = list(members) or [{"use": "fingers"}, {"use": "fingers", "dim": 5}]
    found["inputs"]["number"]["encoder"] = {"use": "fused", "of": of, **encoder}
    return found


@hookimpl
def magma_parts() -> list[type]:
    return [Scaled, Several, Twice, FileEncoder]
