"""What a prefix promises."""

from __future__ import annotations

import torch

from ...values import Features
from .subject import DIM, LENGTH, WIDTH, Check, PartUnderTest, features_of, require, same


def embeddings_have_their_sizes(subject: PartUnderTest) -> None:
    """Embeddings are [b, k, d], k up to `length`; n features give `num_embeddings(n)`, and their padding is not read."""
    prefix = subject.make()
    values = torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(7))
    lengths = torch.tensor([LENGTH, 3])
    found = []
    for padding in (0.0, 9.0):
        filled = values.clone()
        filled[1, 3:] = padding
        out = features_of(prefix(Features(filled, lengths)))
        rows, k, width = out.values.shape
        require((rows, width) == (2, DIM), f"embeddings are {list(out.values.shape)}; expected: [2, k, {DIM}]")
        require(k <= prefix.length, f"{k} embeddings; `length` says at most {prefix.length}")
        sizes = [prefix.num_embeddings(n) for n in lengths.tolist()]
        counts = [k, k] if out.lengths is None else out.lengths.tolist()
        require(counts == sizes, f"{lengths.tolist()} features gave {counts} embeddings; `num_embeddings` says {sizes}")
        found.append([out.values[row, :count] for row, count in enumerate(counts)])
    for row in range(2):
        same(found[0][row], found[1][row], "embeddings with other padding behind the features", 1e-5)


CHECKS: tuple[Check, ...] = (embeddings_have_their_sizes,)
