"""One row of a model's table of parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

ALWAYS_STORED = ("prefix", "adapter", "head")
"""Kinds of parts whose weights are in every checkpoint, even if they are frozen: they have no other file."""


@dataclass(frozen=True)
class PartSummary:
    """One row of a model's table of parts."""

    path: str
    name: str
    parameters: int
    trained: int

    @property
    def frozen(self) -> int:
        """Number of frozen parameters."""
        return self.parameters - self.trained


def summarize(path: str, name: str, parameters: Sequence[nn.Parameter]) -> PartSummary:
    """The summary of one part. What ZeRO-3 has partitioned away counts too."""
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in parameters]
    return PartSummary(path, name, sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained))
