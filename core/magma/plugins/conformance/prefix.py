"""Checks of a prefix."""

from __future__ import annotations

import torch

from ...errors import InputError
from ...values import Features
from .subject import Check, PartUnderTest, features_of, require, same


def embeddings_have_their_sizes(subject: PartUnderTest) -> None:
    """Embeddings are [b, k, d], k at most `length`; n features give `num_embeddings(n)`. Padding is not read."""
    prefix = subject.make()
    lengths = torch.tensor(subject.feature_counts)
    given, dim = subject.widths
    values = torch.randn(2, max(subject.feature_counts), given, generator=torch.Generator().manual_seed(7))
    found = []
    for padding in (0.0, 9.0):
        filled = values.clone()
        for row, count in zip(filled, subject.feature_counts, strict=True):
            row[count:] = padding
        out = features_of(prefix(Features(filled, lengths)))
        rows, k, width = out.values.shape
        require((rows, width) == (2, dim), f"embeddings are {list(out.values.shape)}; expected: [2, k, {dim}]")
        require(k <= prefix.length, f"{k} embeddings; `length` is {prefix.length}")
        sizes = [prefix.num_embeddings(n) for n in lengths.tolist()]
        counts = [k, k] if out.lengths is None else out.lengths.tolist()
        require(
            counts == sizes, f"{lengths.tolist()} features gave {counts} embeddings; `num_embeddings` gives {sizes}"
        )
        found.append([out.values[row, :count] for row, count in enumerate(counts)])
    for row in range(2):
        same(found[0][row], found[1][row], "embeddings with other padding after the features", 1e-5)


def unequal_items_do_not_mix(subject: PartUnderTest) -> None:
    """The embeddings of an item in a padded batch are those of the item without padding."""
    prefix = subject.make()
    counts = subject.feature_counts
    values = torch.randn(2, max(counts), subject.widths[0], generator=torch.Generator().manual_seed(7))
    padded = features_of(prefix(Features(values, torch.tensor(counts)))).values
    for row, count in enumerate(counts):
        single = features_of(prefix(Features(values[row : row + 1, :count]))).values[0]
        same(padded[row, : len(single)], single, f"an item of {count} features, padded and not", 1e-5)


def bad_counts_are_refused(subject: PartUnderTest) -> None:
    """`num_embeddings` raises `InputError` for the numbers of features that `check_inputs` names as bad."""
    prefix = subject.make()
    for count in subject.inputs_to_check.bad:
        try:
            found = prefix.num_embeddings(count)
        except InputError as error:
            require(bool(str(error)), f"the InputError for {count} features has no message")
        else:
            raise AssertionError(f"`num_embeddings({count})` is {found}; expected: magma.InputError")


CHECKS: tuple[Check, ...] = (embeddings_have_their_sizes, unequal_items_do_not_mix, bad_counts_are_refused)
