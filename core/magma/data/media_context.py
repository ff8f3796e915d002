"""Where the media of a batch are, for adapters that use the context of their positions.

Axes: b batch, t tokens, n embeddings of all media of a row, s media positions of one input in a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..context import Context
from .sequence import EncodedExample


def lay_out_context(
    names: Sequence[str], placed: Sequence[tuple[int, EncodedExample]], rows: int, width: int
) -> tuple[Context, Mapping[str, Tensor]]:
    """The context of a batch, with `media` of width 0, and where the embeddings of each input are in it.

    Args:
        names: The inputs of the model.
        placed: Each sequence with the flat index (row * t + column) of its first position, in order.
        rows: b.
        width: t.

    Returns:
        The context, and for each input [s] flat indices (row * n + column), in the order of the positions that it
        fills.
    """
    inputs = torch.full((rows, width), -1)
    first, last = torch.zeros(rows, width, dtype=torch.long), torch.full((rows, width), -1)
    numbers: list[list[tuple[int, int]]] = [[] for _ in range(rows)]  # medium and input of each embedding
    counts = [0] * rows
    cells: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    for start, sequence in placed:
        row, column = divmod(start, width)
        end = column + len(sequence)
        first[row, column:end], last[row, column:end] = counts[row], counts[row] - 1
        for name, _, at, size in sequence.media:
            here = column + at
            inputs[row, here : here + size] = names.index(name)
            last[row, here:end] = counts[row]
            cells[name] += [(row, len(numbers[row]) + i) for i in range(size)]
            numbers[row] += [(counts[row], names.index(name))] * size
            counts[row] += 1
    n = max(map(len, numbers), default=0)
    padded = torch.full((rows, n, 2), -1)
    for row, found in enumerate(numbers):
        if found:
            padded[row, : len(found)] = torch.tensor(found)
    index = {name: torch.tensor([row * n + i for row, i in found]) for name, found in cells.items() if found}
    return Context(tuple(names), inputs, first, last, torch.zeros(rows, n, 0), padded[..., 0], padded[..., 1]), index
