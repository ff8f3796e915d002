"""Rows, and in which order they come: a pass over what can be read anywhere, and over what is read in sequence."""

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


def positions(state: SourceState, count: int) -> Iterator[tuple[int, SourceState]]:
    """What is left of a pass of `count`, each position with the state behind it; the last one opens the next pass."""
    epoch = state["epoch"]
    for position in range(state["position"], count):
        last = position + 1 == count
        yield position, {"epoch": epoch + 1, "position": 0} if last else {"epoch": epoch, "position": position + 1}


class Rows(ABC):
    """All rows of a split."""

    columns: Columns = DEFAULT_COLUMNS
    """Which column holds which field."""

    def rows_of(self, record: Row, list_field: str | None) -> list[Row]:
        """What one place of the files gives: see `Row.explode`."""
        return replace(record, columns=self.columns).explode(list_field)

    @abstractmethod
    def iterate(
        self, state: SourceState | None, seed: int, shuffle: bool, limit: int | None
    ) -> Iterator[tuple[Row, SourceState]]:
        """One pass, from the start or from just after `state`: as `DataSource.iterate`, and from as deep in a pass.

        `limit`: the first rows alone, the same ones every pass. A row that cannot be read comes in its turn, and
        says so when it is asked.
        """

    @abstractmethod
    def iter_in_stored_order(self) -> Iterator[Row]:
        """All rows as they are stored, those of one medium beside each other: for evaluations."""


class IndexedRows(Rows):
    """Rows that can be read in any order: a pass is a permutation of all."""

    @abstractmethod
    def read(self, record: int) -> Row:
        """What stands in one place of the files."""

    @abstractmethod
    def counts(self) -> NDArray[np.int64]:
        """[records] how many rows each of them is: the entries of its list `list_field`, or one."""

    def __init__(self, list_field: str | None) -> None:
        self.list_field = list_field

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """[records] the number of the first row behind each."""
        return np.cumsum(self.counts())

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, i: int) -> Row:
        record = int(np.searchsorted(self.ends, i, side="right"))
        rows = self.rows_of(self.read(record), self.list_field)
        return rows[i - int(self.ends[record])]  # from the back: the record's last row stands just before its end

    def iterate(
        self, state: SourceState | None, seed: int, shuffle: bool, limit: int | None
    ) -> Iterator[tuple[Row, SourceState]]:
        """In an order of its own each pass; the state is a pass and a position in it."""
        state = state or {"epoch": 0, "position": 0}
        epoch = state["epoch"]
        count = min(len(self), limit or len(self))
        order: NDArray[np.int64] = np.arange(count)
        if shuffle:
            order = np.random.default_rng([seed % 2**64, epoch]).permutation(count)
        for position, after in positions(state, count):
            i = int(order[position])
            yield replace(self[i], seed=f"{seed} {epoch} {i}" if shuffle else None), after

    def iter_in_stored_order(self) -> Iterator[Row]:
        """Rows that name one file of a medium come together, where the first of them stands."""
        media: dict[Any, list[int]] = {}
        for i in range(len(self)):
            media.setdefault(self[i].file or i, []).append(i)
        for i in itertools.chain.from_iterable(media.values()):
            yield self[i]


_START: SourceState = {"shard": 0, "sample": 0, "rows": 0, "position": 0}


class StreamedRows(Rows):
    """Rows in shards that are read from their beginning: a pass has its own order of shards, block by block.

    The samples of a block follow each other on disk and are shuffled among themselves; a block goes on into the next
    shard. A state names the beginning of a block and a position in it, so that going on reads one block again at most.
    """

    def __init__(self, shards: Sequence[Any], list_field: str | None, buffer: int) -> None:
        self.shards, self.list_field, self.buffer = shards, list_field, buffer

    @abstractmethod
    def samples(self, shard: Any, skip: int) -> Iterator[Row]:
        """What stands in a shard behind its first `skip` samples.

        Where it breaks off there is a last sample that says so, whatever was skipped before it.
        """

    def iterate(
        self, state: SourceState | None, seed: int, shuffle: bool, limit: int | None
    ) -> Iterator[tuple[Row, SourceState]]:
        """A pass as described above."""
        state = state or {"epoch": 0, **_START}
        epoch, position = state["epoch"], state["position"]
        shards = np.arange(len(self.shards))
        if shuffle and limit is None:
            shards = np.random.default_rng([seed % 2**64, epoch]).permutation(len(self.shards))
        for begin, block, following in self._blocks(shards.tolist(), state, limit):
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
        """A sample holds its medium, and with it all rows about it."""
        for shard in self.shards:
            for sample in self.samples(shard, 0):
                yield from self.rows_of(sample, self.list_field)

    def _blocks(
        self, shards: Sequence[int], state: SourceState, limit: int | None
    ) -> Iterator[tuple[SourceState, list[Row], SourceState | None]]:
        """Blocks from where a state's begins: (its beginning, rows, the next one's beginning)."""
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
        """The samples behind one of them, each with its shard's place in the pass and its number there."""
        for at in range(shard, len(shards)):
            for number, row in enumerate(self.samples(self.shards[shards[at]], sample), sample):
                yield at, number, row
            sample = 0
