"""An encoder of newname inputs. Axes: b batch, s numbers of one input, n features, e width."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

import magma

MAGMA_API = 1
"""The version of MAGMA's plugin API that this was written for."""
FEATURES = 2


class NewPart(magma.Encoder):
    """A list of numbers, or a text file of them, to features: two layers, from scratch."""

    name = "newname"
    modality = "newname"

    class Config(magma.PartConfig):
        """`size` numbers come in; features have `width` channels."""

        size: int = Field(8, ge=1)
        width: int = Field(32, ge=1)

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.dim, self.length = config.width, FEATURES
        self.layers = nn.Sequential(nn.Linear(config.size, 64), nn.GELU(), nn.Linear(64, FEATURES * config.width))

    @classmethod
    def check_inputs(cls, folder: Path) -> magma.CheckInputs:
        """What `magma plugin check newname` tries: inputs that are read, and inputs that are refused."""
        written = folder / "one.newname"
        written.write_text("1 2 3 4", encoding="utf-8")
        bad = (folder / "none.newname", [1.0], ["a"] * 4, [float("nan")] * 4)
        good = (written, [1.0, 2.0, 3.0, 4.0], [0, -1, 0.5, 2])
        return magma.CheckInputs({"size": 4, "width": 8}, good, bad)

    def accepts(self, raw: Any) -> bool:
        """A list of numbers, or a path that ends in .newname."""
        return isinstance(raw, list) or (isinstance(raw, Path) and raw.suffix == ".newname")

    def prepare(self, raw: Any, rng: random.Random | None = None) -> Tensor:
        """To a tensor [s]; `rng` is there in training, for augmentation."""
        try:
            values = raw.read_text(encoding="utf-8").split() if isinstance(raw, Path) else raw
            item = torch.tensor([float(value) for value in values]).view(self.config.size)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise magma.InputError(f"given {raw!r}; allowed: {self.config.size} numbers: {error}") from error
        if not bool(item.isfinite().all()):
            raise magma.InputError(f"given {raw!r}; allowed: finite numbers")
        return item

    def dummy_item(self) -> Tensor:
        """Zeros [s]."""
        return torch.zeros(self.config.size)

    def forward(self, x: Tensor) -> magma.Features:
        """[b, s] to [b, n, e]."""
        return magma.Features(self.layers(x).view(-1, FEATURES, self.dim))


@magma.hookimpl
def magma_parts() -> Iterable[type[magma.Part]]:
    """The parts of this package."""
    return [NewPart]
