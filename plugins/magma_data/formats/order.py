"""The order of rows in an epoch: for data with random access, and for data that is read sequentially."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magma import SourceState

from .columns import DEFAULT_COLUMNS, Columns
from .row import Row


def iter_positions(state: SourceState, count: int) -> Iterator[tuple[int, SourceState]]:
    """The remaining positions of an epoch of `count`, each with the state after it; the last one starts a new epoch."""
    epoch = state["epoch"]
    for position in range(state["position"], count):
        last = position + 1 == count
        yield position, {"epoch": epoch + 1, "position": 0} if last else {"epoch": epoch, "position": position + 1}


class Rows(ABC):
    """Base class: all rows of a split."""

    columns: Columns = DEFAULT_COLUMNS
    """The mapping of fields to columns."""

    def rows_of(self, record: Row, list_field: str | None) -> list[Row]:
        """The rows of a record: see `Row.explode`."""
        return replace(record, columns=self.columns).explode(list_field)

    @abstractmethod
    def iterate(
        self, state: SourceState | None, seed: int, shuffle: bool, limit: int | None
    ) -> Iterator[tuple[Row, SourceState]]:
        """One epoch, from its start or from `state`, each row with the state after it: as `DataSource.iterate`.

        With `limit`, only the first rows, which are the same in every epoch. A row that cannot be read is returned,
        too; it raises its error when a field is used.
        """

    @abstractmethod
    def iter_in_stored_order(self) -> Iterator[Row]:
        """All rows in the stored order, but those of one medium are consecutive: for evaluations."""


class IndexedRows(Rows):
    """Rows with random access: an epoch is a permutation of all rows."""

    @abstractmethod
    def read(self, record: int) -> Row:
        """Read one record."""

    @abstractmethod
    def counts(self) -> NDArray[np.int64]:
        """[records]: number of rows of each record: the entries of its list `list_field`, or one."""

    def __init__(self, list_field: str | None) -> None:
        self.list_field = list_field

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """[records]: the index of the first row after each record."""
        return np.cumsum(self.counts())

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, i: int) -> Row:
        record = int(np.searchsorted(self.ends, i, side="right"))
        rows = self.rows_of(self.read(record), self.list_field)
        return rows[i - int(self.ends[record])]  # a negative index: the last row of the record is just before its end

    def iterate(
        self, state: SourceState | None, seed: int, shuffle: bool, limit: int | None
    ) -> Iterator[tuple[Row, SourceState]]:
        """One epoch, with a new permutation for each one. The state has the epoch and a position in it."""
        state = state or {"epoch": 0, "position": 0}
        epoch = state["epoch"]
        count = min(len(self), limit or len(self))
        order: NDArray[np.int64] = np.arange(count)
        if shuffle:
            order = np.random.default_rng([seed % 2**64, epoch]).permutation(count)
        for position, after in iter_positions(state, count):
            i = int(order[position])
            yield replace(self[i], seed=f"{seed} {epoch} {i}" if shuffle else None), after

    def iter_in_stored_order(self) -> Iterator[Row]:
        """All rows in stored order; rows with the same media file come together, at the place of the first one."""
        media: dict[Any, list[int]] = {}
        for i in range(len(self)):
            media.setdefault(self[i].file or i, []).append(i)
        for i in itertools.chain.from_iterable(media.values()):
            yield self[i]


_START: SourceState = {"shard": 0, "sample": 0, "rows": 0, "position": 0}


class StreamedRows(Rows):
    """Rows in shards that are read sequentially: an epoch has a random order of shards, and shuffles in blocks.

    A block has `buffer` consecutive samples, which are shuffled; it may continue in the next shard. A state has the
    beginning of a block and a position in it, so that at most one block is read again on resume.
    """

    def __init__(self, shards: Sequence[Any], list_field: str | None, buffer: int) -> None:
        self.shards, self.list_field, self.buffer = shards, list_field, buffer

    @abstractmethod
    def samples(self, shard: Any, skip: int) -> Iterator[Row]:
        """The samples of a shard after the first `skip` ones.

        If the shard is truncated, a last sample reports it, even if all others are skipped.
        """

    def iterate(
        self, state: SourceState | None, seed: int, shuffle: bool, limit: int | None
    ) -> Iterator[tuple[Row, SourceState]]:
        """One epoch. See the docstring of the class."""
        state = state or {"epoch": 0, **_START}
        epoch, position = state["epoch"], state["position"]
        shards = np.arange(len(self.shards))
        if shuffle and limit is None:
            shards = np.random.default_rng([seed % 2**64, epoch]).permutation(len(self.shards))
        for begin, block, following in self._iter_blocks(shards.tolist(), state, limit):
            order = np.arange(len(block))
            if shuffle:
                place = [seed % 2**64, epoch, begin["shard"], begin["sample"]]
                order = np.random.default_rng(place).permutation(len(block))
            for at in range(position, len(block)):
                i = int(order[at])
                after = {"epoch": epoch, **begin, "position": at + 1}
                if at + 1 == len(block):
                    after = {"epoch": epoch, **following} if following else {"epoch": epoch + 1, **_START}
                draw = f"{seed} {epoch} {begin['shard']} {begin['sample']} {i}" if shuffle else None
                yield replace(block[i], seed=draw), after
            position = 0

    def iter_in_stored_order(self) -> Iterator[Row]:
        """All rows in stored order; a sample has its medium and all rows about it."""
        for shard in self.shards:
            for sample in self.samples(shard, 0):
                yield from self.rows_of(sample, self.list_field)

    def _iter_blocks(
        self, shards: Sequence[int], state: SourceState, limit: int | None
    ) -> Iterator[tuple[SourceState, list[Row], SourceState | None]]:
        """Blocks from the one of a state on: (its start, its rows, the start of the next block)."""
        samples = self._iter_samples(shards, state["shard"], state["sample"])
        begin: SourceState | None = {**_START, "rows": state["rows"]}
        first = next(samples, None)
        while begin is not None and first is not None:
            shard, number, _ = first
            begin |= {"shard": shard, "sample": number}
            read_samples = [first, *itertools.islice(samples, self.buffer - 1)]
            block = [row for _, _, sample in read_samples for row in self.rows_of(sample, self.list_field)]
            read = begin["rows"] + len(block)
            if limit is not None and read >= limit:
                yield begin, block[: limit - begin["rows"]], None
                return
            first = next(samples, None)
            following = None if first is None else {**_START, "shard": first[0], "sample": first[1], "rows": read}
            yield begin, block, following
            begin = following

    def _iter_samples(self, shards: Sequence[int], shard: int, sample: int) -> Iterator[tuple[int, int, Row]]:
        """The samples from one on, each with the position of its shard in the epoch and its number in the shard."""
        for at in range(shard, len(shards)):
            for number, row in enumerate(self.samples(self.shards[shards[at]], sample), sample):
                yield at, number, row
            sample = 0
