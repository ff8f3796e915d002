"""One row of a model's table of parts."""

from __future__ import annotations

from dataclasses import dataclass

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
