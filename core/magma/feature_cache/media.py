"""Media of a batch whose features are cached, or are computed and then cached.

Axes: b batch, n features, e encoder width.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..hashing import tensor_sha256
from ..values import Features, Prepared, map_tensors, tensors_in
from .entry import Entry


@dataclass
class CacheItem:
    """One medium, between preparation and batch."""

    media_key: str
    """What identifies the medium."""
    raw: Any
    prepared: Prepared | None
    """None: its entry was found, so it is not prepared."""
    num_features: int
    entry: Entry | None = None
    entry_key: str = ""
    """The key under which the entry was found."""


@dataclass(frozen=True)
class Missing:
    """Media that the encoder has to compute."""

    rows: tuple[int, ...]
    """Their places in the batch."""
    prepared: Prepared
    """[len(rows), ...], stacked."""
    keys: tuple[str, ...]
    """Keys of their entries. Empty: they are not stored."""
    num_features: tuple[int, ...]
    shape: tuple[int, ...]
    """`sizes_of` each of them."""


@dataclass(frozen=True)
class CachedMedia:
    """The media of one input in a batch, in place of the stacked prepared items."""

    size: int
    """b."""
    missing: tuple[Missing, ...] = ()
    known: tuple[int, ...] = ()
    """Places in the batch of the media whose features are known."""
    features: Features | None = None
    """The features of the known ones [len(known), n, e], on their way to the encoder's device. None: there are none."""

    def __len__(self) -> int:
        return self.size

    def map(self, change: Callable[[Tensor], Tensor], move: Callable[[Tensor], Tensor]) -> CachedMedia:
        """The same with every prepared tensor changed and all features moved, whose precision stays as it is."""
        features = self.features
        if features is not None:
            features = Features(move(features.values), None if features.lengths is None else move(features.lengths))
        missing = tuple(replace(one, prepared=map_tensors(change, one.prepared)) for one in self.missing)
        return replace(self, missing=missing, features=features)


def sizes_of(prepared: Prepared) -> tuple[int, ...]:
    """The sizes of the tensors of a prepared item, each after its number of axes."""
    return tuple(size for one in tensors_in(prepared) for size in (one.ndim, *one.shape))


def count_media(media: Any) -> int:
    """The number of media in a batch of one input."""
    return len(media) if isinstance(media, CachedMedia) else len(tensors_in(media)[0])


def key_of_source(raw: Any) -> str | None:
    """A key of a file's content and suffix, or of bytes. None for other values, and for files that cannot be read."""
    if isinstance(raw, bytes | bytearray):
        return f"bytes {hashlib.sha256(raw).hexdigest()}"
    if isinstance(raw, Path) and raw.is_file():
        try:
            with raw.open("rb") as file:
                return f"file {raw.suffix.lower()} {hashlib.file_digest(file, 'sha256').hexdigest()}"
        except OSError:
            return None
    return None


def key_of_prepared(prepared: Prepared) -> str:
    """A key of the tensors of a prepared item."""
    return "prepared " + " ".join(map(tensor_sha256, tensors_in(prepared)))


class WatchedRandom(random.Random):
    """A generator that notes whether a number was drawn."""

    used = False

    def random(self) -> float:
        self.used = True
        return super().random()

    def getrandbits(self, k: int, /) -> int:
        self.used = True
        return super().getrandbits(k)


# Features


def split(features: Features) -> list[tuple[Tensor, int | None]]:
    """Features [b, n, e] as a copy of each row [n, e] on the CPU with its length."""
    values = features.values.detach().cpu()
    lengths = [None] * len(values) if features.lengths is None else features.lengths.tolist()
    return [(row.clone(), length) for row, length in zip(values, lengths, strict=True)]


def join(rows: Sequence[tuple[Tensor, int | None]], strides: Sequence[int] = ()) -> Features:
    """Rows [n_i, e] as features [b, n, e], padded with zeros.

    Args:
        rows: Values and length of each medium.
        strides: The strides of the result. Default: it is contiguous.
    """
    sizes = [len(values) for values, _ in rows]
    n, e = max(sizes), rows[0][0].shape[1]
    like = rows[0][0]
    if strides:
        values = torch.empty_strided((len(rows), n, e), tuple(strides), dtype=like.dtype, device=like.device)
        values.zero_()
    else:
        values = like.new_zeros(len(rows), n, e)
    for i, (row, _) in enumerate(rows):
        values[i, : len(row)] = row
    if all(length is None for _, length in rows) and len(set(sizes)) == 1:
        return Features(values)
    lengths = [size if length is None else length for (_, length), size in zip(rows, sizes, strict=True)]
    return Features(values, torch.tensor(lengths, device=like.device))
