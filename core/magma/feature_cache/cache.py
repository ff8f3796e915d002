"""The cache of one input: looks up media for a batch, and stores what the encoder computes.

Axes: b batch, n features, e encoder width.

The features of a medium may depend on the batch: kernels round differently for batches of another size. There are two
ways to deal with it.

- `batch`: the encoder gets whole batches, as it does without a cache. An entry is used only for a batch of the same
  size and item shape, so all features are those of a model without a cache. If one medium of a batch is not known, the
  whole batch is computed.
- `item`: the encoder gets one medium at a time. Entries fit every batch, and only what is not known is computed.
  Features are those of a batch of one.

Both need features that do not depend on the other media of the batch or on the place in it. The first batch of each
shape is computed twice to check that.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import PartError
from ..interfaces import Encoder
from ..values import Features, Prepared, map_tensors, tensors_in
from .entry import Entry
from .identity import encoder_identity, numerics, weights_version
from .media import (
    CachedMedia,
    CacheItem,
    Missing,
    WatchedRandom,
    join,
    key_of_prepared,
    key_of_source,
    sizes_of,
    split,
)
from .store import DEFAULT_MAX_BYTES, EntryStore, default_folder

EncodeBy = Literal["batch", "item"]
_log = logging.getLogger(__name__)


class FeatureCache:
    """The cached features of one frozen encoder."""

    def __init__(
        self, folder: str | Path | None = None, max_bytes: int = DEFAULT_MAX_BYTES, encode_by: EncodeBy = "batch"
    ) -> None:
        """Set the folder and how the encoder is called.

        Args:
            folder: The folder, which other encoders and processes may share. Default: `default_folder()`.
            max_bytes: The largest size of the folder.
            encode_by: What the encoder gets at once: a whole `"batch"`, or one `"item"`.
        """
        self.store = EntryStore(Path(folder) if folder else default_folder(), max_bytes)
        self.encode_by, self._folder = encode_by, folder
        self.hits, self.misses = 0, 0
        """Media whose features were read, and those that were computed, in this process."""
        self._identity = ""
        self._version: tuple[Any, ...] = ()
        self._numerics: dict[str, Any] = {}
        self._expected = 1
        """The size of the last batch; the next one is probably the same."""
        self._checked: set[tuple[Any, ...]] = set()

    def settings(self) -> dict[str, Any]:
        """What it was made with, as a table of a recipe. The default folder is left out: machines differ in it."""
        folder = {} if self._folder is None else {"folder": str(self._folder)}
        return {**folder, "max_bytes": self.store.max_bytes, "encode_by": self.encode_by}

    def attach(self, encoder: Encoder) -> None:
        """Identify the encoder as it is now. To be called before media are looked up, and after weights were loaded.

        Raises:
            PartError: The encoder is not frozen.
        """
        if not encoder.frozen:
            raise PartError(f"the encoder {encoder.name} is trained, so its features change; allowed: a frozen one")
        device = _device(encoder)
        settings, weights = numerics(device), weights_version(encoder)
        if (settings, weights) != (self._numerics, self._version):
            self._identity = encoder_identity(encoder, device)
            self._numerics, self._version = settings, weights
            self._checked.clear()

    # Lookup, in the process that collates

    def prepare(self, encoder: Encoder, raw: Any, rng: random.Random | None = None) -> CacheItem:
        """One medium: its entry, or if there is none, the prepared item.

        Raises:
            InputError: The medium cannot be read.
            PartError: The preparation draws random numbers.
        """
        source = key_of_source(raw)
        # Only entries of training show that the preparation in training is not random.
        use = "evaluation" if rng is None else "training"
        if source is not None:
            media_key = f"{use} {source}"
            key = self._key(media_key, self._expected)
            if entry := self.store.read(key):
                return CacheItem(media_key, raw, None, entry.num_features, entry, key)
        prepared = _prepare(encoder, raw, rng)
        media_key = f"{use} {source or key_of_prepared(prepared)}"
        return CacheItem(media_key, raw, prepared, encoder.num_features(prepared))

    def stack(self, encoder: Encoder, items: Sequence[CacheItem]) -> CachedMedia:
        """The media of a batch."""
        if self.encode_by == "item":
            return self._stack_items(encoder, items)
        self._expected = len(items)
        keys = tuple(self._key(item.media_key, len(items)) for item in items)
        entries = []
        for item, key in zip(items, keys, strict=True):
            entry = item.entry if item.entry_key == key else self.store.read(key)
            if entry is None:
                break
            entries.append(entry)
        if len(entries) == len(items) and len({(one.shape, one.strides) for one in entries}) == 1:
            rows = [(one.values, one.length) for one in entries]
            return CachedMedia(len(items), (), tuple(range(len(items))), join(rows, entries[0].strides))
        prepared = [_prepare(encoder, item.raw) if item.prepared is None else item.prepared for item in items]
        shapes = {sizes_of(one) for one in prepared}
        counts = tuple(item.num_features for item in items)
        keys = keys if len(shapes) == 1 else ()  # padding would be part of what decides the features
        everything = Missing(tuple(range(len(items))), encoder.stack(prepared), keys, counts, min(shapes))
        return CachedMedia(len(items), (everything,))

    def _stack_items(self, encoder: Encoder, items: Sequence[CacheItem]) -> CachedMedia:
        known: dict[int, Entry] = {}
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, item in enumerate(items):
            entry = item.entry or self.store.read(self._key(item.media_key, 1))
            if entry is not None:
                known[i] = entry
            else:
                groups.setdefault(sizes_of(item.prepared), []).append(i)
        missing = tuple(
            Missing(
                tuple(rows),
                encoder.stack([items[i].prepared for i in rows]),
                tuple(self._key(items[i].media_key, 1) for i in rows),
                tuple(items[i].num_features for i in rows),
                shape,
            )
            for shape, rows in groups.items()
        )
        features = join([(entry.values, entry.length) for entry in known.values()]) if known else None
        return CachedMedia(len(items), missing, tuple(known), features)

    def _key(self, media_key: str, size: int) -> str:
        facts = [self._identity, media_key, size if self.encode_by == "batch" else "item"]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    # Features, in the process that computes

    @torch.no_grad()
    def encode(self, encoder: Encoder, media: CachedMedia) -> Features:
        """The features of a batch [b, n, e]; those that were not known are stored.

        Raises:
            PartError: The features of a medium depend on the rest of the batch.
        """
        self.hits += len(media.known)
        self.misses += len(media) - len(media.known)
        if self.encode_by == "batch":
            if media.features is not None:
                return media.features
            (everything,) = media.missing
            features: Features = encoder(everything.prepared)
            self._store(encoder, everything, everything.prepared, features)
            return features
        rows: dict[int, tuple[Tensor, int | None]] = {}
        if media.features is not None:
            values, lengths = media.features
            real = [values.shape[1]] * len(values) if lengths is None else lengths.tolist()
            given = [None] * len(values) if lengths is None else real
            rows |= {i: (row[:n], length) for i, row, n, length in zip(media.known, values, real, given, strict=True)}
        for group in media.missing:
            rows |= self._encode_items(encoder, group)
        return join([rows[i] for i in range(len(media))])

    def _encode_items(self, encoder: Encoder, group: Missing) -> dict[int, tuple[Tensor, int | None]]:
        """The features of each medium, computed without the others."""
        rows = {}
        for place, row in enumerate(group.rows):
            single = map_tensors(partial(_row, place), group.prepared)
            features: Features = encoder(single)
            one = Missing((row,), single, (group.keys[place],), (group.num_features[place],), group.shape)
            self._store(encoder, one, single, features)
            n = features.values.shape[1] if features.lengths is None else int(features.lengths[0])
            rows[row] = features.values[0, :n], None if features.lengths is None else n
        return rows

    def _store(self, encoder: Encoder, missing: Missing, prepared: Prepared, features: Features) -> None:
        """Write the features of media, unless they were computed otherwise than the keys say."""
        tensors, device, dtype = tensors_in(prepared), _device(encoder), _dtype(encoder)
        as_the_keys_say = (
            missing.keys
            and numerics(device) == self._numerics
            and all(x.device == device for x in tensors)
            and all(x.dtype == dtype for x in tensors if x.is_floating_point() and dtype is not None)
            and all(len(x) == len(missing.rows) for x in (*tensors, features.values))
        )
        if not as_the_keys_say:
            return
        self._check(encoder, prepared, features)
        strides = _strides(features.values) if self.encode_by == "batch" else ()
        for key, (values, length), count in zip(missing.keys, split(features), missing.num_features, strict=True):
            kept = values if self.encode_by == "batch" or length is None else values[:length]
            self.store.write(key, Entry(kept, length, count, missing.shape, strides))

    def _check(self, encoder: Encoder, prepared: Prepared, features: Features) -> None:
        """Compute the first batch of each shape again, in another order and with other neighbours."""
        shape = tuple(tuple(x.shape) for x in tensors_in(prepared))
        if shape in self._checked:
            return
        size = len(features.values)
        order = torch.tensor([(i + 1) % size if i % 2 == 0 else 0 for i in range(size)], device=features.values.device)
        again: Features = encoder(map_tensors(lambda x: x[order], prepared))
        same = torch.equal(again.values, features.values[order])
        if features.lengths is not None:
            same = same and again.lengths is not None and torch.equal(again.lengths, features.lengths[order])
        if not same:
            other = ' or cache = { encode_by = "item" }' if size > 1 else ""
            raise PartError(
                f"the features that {encoder.name} computes of a medium depend on the other media of a batch, or "
                f"differ from one call to the next, so they cannot be cached; allowed: no cache{other}"
            )
        self._checked.add(shape)


def _prepare(encoder: Encoder, raw: Any, rng: random.Random | None = None) -> Prepared:
    if rng is None:
        return encoder.prepare(raw)
    watched = WatchedRandom()
    watched.setstate(rng.getstate())
    prepared = encoder.prepare(raw, watched)
    if watched.used:
        raise PartError(
            f"the encoder {encoder.name} prepares media with random changes (augmentation, random crops), so their "
            "features differ each time; allowed with cache = true: none"
        )
    return prepared


def _row(place: int, x: Tensor) -> Tensor:
    """One item as a batch [1, ...] in separate memory, whose alignment does not depend on the place."""
    return x[place : place + 1].clone()


def _device(encoder: Encoder) -> torch.device:
    return next((x.device for x in (*encoder.parameters(), *encoder.buffers())), torch.device("cpu"))


def _dtype(encoder: Encoder) -> torch.dtype | None:
    return next((p.dtype for p in encoder.parameters() if p.is_floating_point()), None)


def _strides(values: Tensor) -> tuple[int, ...]:
    """The strides of features, if they are not contiguous and no two elements share memory."""
    if values.is_contiguous() or 0 in values.stride():
        return ()
    return values.stride()
