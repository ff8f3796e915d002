"""Which inputs the sequences of a batch have, for adapters that act only with some inputs.

Axes: b batch, t tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Presence:
    """Which inputs the sequence of each position has, anywhere: before the position or after it."""

    names: tuple[str, ...]
    """The inputs of the model."""
    inputs: Tensor
    """[b, t], integers: bit i is 1 if the position's sequence has the input `names[i]`."""
    sequences: tuple[tuple[int, ...], ...]
    """The same for each sequence of each row, on the CPU: decisions about the batch wait for no device. Rows that were
    left out since may still be listed."""
    runs_all: bool = False
    """Whether adapters run for batches that do not need them. Other processes may have batches that do."""

    def bits(self, names: Collection[str]) -> int:
        """The bits of these inputs."""
        return sum(1 << i for i, name in enumerate(self.names) if name in names)

    def is_needed(self, names: Collection[str]) -> bool:
        """Whether an adapter that acts only with these inputs has to run."""
        wanted = self.bits(names)
        return self.runs_all or any(one & wanted for one in self._kinds)

    def mask(self, names: Collection[str]) -> Tensor | None:
        """Whether the sequence of each position has one of these inputs, [b, t] boolean. None: all sequences do."""
        wanted = self.bits(names)
        if all(one & wanted for one in self._kinds):
            return None
        return (self.inputs & wanted) != 0

    @cached_property
    def _kinds(self) -> frozenset[int]:
        return frozenset(one for row in self.sequences for one in row)

    def map(self, change: Callable[[Tensor], Tensor]) -> Presence:
        """The same with the tensor [b, t] changed."""
        return replace(self, inputs=change(self.inputs))

    def select(self, rows: Tensor) -> Presence:
        """Only these rows [b'], which may repeat."""
        return replace(self, inputs=self.inputs[rows], sequences=tuple(self.sequences[i] for i in rows.tolist()))

    def followed_by(self, later: Presence) -> Presence:
        """The presence at later positions of the same rows, each of which is one sequence."""
        pairs = zip(self.sequences, later.sequences, strict=True)
        sequences = tuple(tuple(one | old[0] for one in new) for old, new in pairs)
        return replace(later, inputs=later.inputs | self.inputs[:, :1], sequences=sequences)

    def followed_by_text(self) -> Presence:
        """The presence at one more text token in each row."""
        return self.map(lambda x: x[:, :1])


def lay_out_presence(
    names: Sequence[str], rows: Sequence[Sequence[tuple[int, Collection[str]]]], width: int
) -> Presence:
    """The presence in a batch on the CPU.

    Args:
        names: The inputs of the model.
        rows: Length and inputs of each sequence of each row.
        width: t. The padding of a row belongs to its last sequence.
    """
    inputs = torch.zeros(len(rows), width, dtype=torch.long)
    found = []
    for i, row in enumerate(rows):
        start = 0
        bits = [sum(1 << names.index(name) for name in set(present)) for _, present in row]
        for (length, _), one in zip(row, bits, strict=True):
            inputs[i, start:] = one
            start += length
        found.append(tuple(bits))
    return Presence(tuple(names), inputs, tuple(found))
