"""Examples on their way to the model: drawn in order, decoded and collated ahead of it by worker processes."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from ..errors import InputError, MagmaError, TooLong
from ..interfaces import DataSource
from ..system.signals import end_with_parent, ignore_stop_signals
from ..values import Example
from .collator import Collator
from .mixture import Mixture
from .sequence import Batch, Encoded

T = TypeVar("T")
AHEAD = 2
"""Steps that each worker prepares before they are asked for."""


class Unreadable(NamedTuple):
    """An example that is left out because its row or a medium of it cannot be read."""

    example: int
    """Its number in the run."""
    name: str
    reason: str


@dataclass
class Share:
    """One process's share of a global batch."""

    batches: list[Batch]
    """One for each accumulation step."""
    samples: int
    """Examples of the global batch."""
    too_long: int
    """Those of this share that did not fit."""
    unreadable: list[Unreadable]
    """Those of this share that could not be read."""
    state: dict[str, Any]
    """Where the mixture stands behind this step; JSON."""

    def pin_memory(self) -> Share:
        """In memory that a GPU copies from while it computes."""
        self.batches = [batch.pin_memory() for batch in self.batches]
        return self


@dataclass(frozen=True)
class Feed:
    """What one of `size` processes computes on: a global batch is dealt out among them, one example each in turn."""

    collator: Collator
    seed: int
    batch_size: int
    """Examples of a global batch."""
    samples: int
    """Examples of the whole training; the last batch has what is left."""
    rank: int
    size: int
    micro: int
    """Examples of a micro-batch."""
    accumulation: int
    """Micro-batches of a step."""
    packing: int | None
    """Positions of a row that several examples share; None: one example a row."""
    skip_too_long: bool
    """Leave out an example that does not fit; otherwise it is an error."""
    skip_unreadable: bool
    """Leave out an example that cannot be read; otherwise it is an error."""
    evaluate_samples: int | None
    """Most examples of an evaluation set; None: all."""
    workers: int
    pin: bool

    def training(self, mixture: Mixture, step: int) -> Iterator[Share]:
        """The shares of the steps behind `step`, to the end of the run."""

        def work() -> Iterator[tuple[list[tuple[int, Example]], int, dict[str, Any]]]:
            for first in range(step * self.batch_size, self.samples, self.batch_size):
                examples = mixture.take(min(self.batch_size, self.samples - first))
                yield self._mine(examples, first), len(examples), mixture.state()

        def share(given: tuple[list[tuple[int, Example]], int, dict[str, Any]]) -> Share:
            mine, samples, state = given
            read = [self.encode(example, random.Random(f"{self.seed} {i}")) for i, example in mine]
            fitting = by_length([one for one in read if isinstance(one, Encoded)])
            chunks = [fitting[i * self.micro : (i + 1) * self.micro] for i in range(self.accumulation)]
            unreadable = _unreadable(mine, read)
            too_long = len(mine) - len(fitting) - len(unreadable)
            return Share([self.batch(chunk) for chunk in chunks], samples, too_long, unreadable, state)

        return ahead(work(), share, self.workers, self.pin)

    def evaluation(self, source: DataSource) -> Iterator[Share]:
        """A pass over a source, as many batches on every process, one a share."""

        def work() -> Iterator[tuple[list[tuple[int, Example]], int]]:
            examples = (example for example, _ in itertools.islice(source.iterate(), self.evaluate_samples))
            for first in itertools.count(0, self.micro * self.size):
                if not (chunk := list(itertools.islice(examples, self.micro * self.size))):
                    return
                yield self._mine(chunk, first), len(chunk)

        def share(given: tuple[list[tuple[int, Example]], int]) -> Share:
            mine, samples = given
            read = [self.encode(example) for _, example in mine]
            fitting = [one for one in read if isinstance(one, Encoded)]
            unreadable = _unreadable(mine, read)
            return Share([self.batch(fitting)], samples, len(mine) - len(fitting) - len(unreadable), unreadable, {})

        return ahead(work(), share, self.workers, self.pin)

    def _mine(self, examples: Sequence[Example], first: int) -> list[tuple[int, Example]]:
        """This process's of some examples, each with its number in the run; `first` is that of the first."""
        return [(first + i, examples[i]) for i in range(self.rank, len(examples), self.size)]

    def encode(self, example: Example, rng: random.Random | None = None) -> Encoded | InputError:
        """One example, or why it is left out: it does not fit or cannot be read, and those are skipped."""
        try:
            return self.collator.sequence(example, rng)
        except InputError as error:
            if not (self.skip_too_long if isinstance(error, TooLong) else self.skip_unreadable):
                raise
            return error

    def batch(self, encoded: Sequence[Encoded]) -> Batch:
        """A micro-batch; of no examples one without targets, so that all processes do the same."""
        encoded = encoded or [Encoded([self.collator.lm.eos], [False], [], "filler")]
        return self.collator.pack(encoded, self.packing) if self.packing else self.collator.pad(encoded)


def _unreadable(examples: Sequence[tuple[int, Example]], read: Sequence[Encoded | InputError]) -> list[Unreadable]:
    """Those of some examples that could not be read, and why."""
    return [
        Unreadable(i, example.name, str(one))
        for (i, example), one in zip(examples, read, strict=True)
        if not isinstance(one, Encoded | TooLong)
    ]


def by_length(encoded: Sequence[Encoded]) -> list[Encoded]:
    """Examples of about one length beside each other, so that little of a micro-batch is padding.

    The global batch is the same, and with it a loss over its targets.
    """
    return sorted(encoded, key=len)


# Workers


class _Work:
    """A function as the map that torch's DataLoader reads: an index is the work itself."""

    def __init__(self, do: Callable[[Any], Any]) -> None:
        self.do = do

    def __getitem__(self, work: Any) -> Any:
        try:
            return self.do(work)
        except MagmaError as error:  # DataLoader would wrap it in a worker's traceback
            return error


class _Order:
    """Work in order, as a sampler."""

    def __init__(self, work: Iterable[Any]) -> None:
        self.work = work

    def __iter__(self) -> Iterator[Any]:
        return iter(self.work)


def ahead(work: Iterable[Any], do: Callable[[Any], T], workers: int, pin: bool) -> Iterator[T]:
    """`do` of each, in order, up to `AHEAD` for each worker before it is asked for; no worker: when it is."""
    import torch
    from torch.utils.data import DataLoader

    trainer = os.getpid()

    def begin(_: int) -> None:
        ignore_stop_signals()
        end_with_parent(trainer)

    loader: Any = DataLoader(
        _Work(do),  # type: ignore[arg-type]  # a map from work, not from numbers
        batch_size=None,
        sampler=_Order(work),
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        pin_memory=pin,
        worker_init_fn=begin if workers else None,
        multiprocessing_context="fork" if workers else None,
        generator=torch.Generator(),  # the training's own generator is left alone
    )
    for done in loader:
        if isinstance(done, MagmaError):
            raise done
        yield done
