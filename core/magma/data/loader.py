"""The loader of one process: draws examples in order; worker processes decode and collate them before they are used."""

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
from .sequence import Batch, EncodedExample

T = TypeVar("T")
PREFETCH_FACTOR = 2
"""Steps that each worker prepares before they are needed."""
Numbered = list[tuple[int, Example]]
"""Examples, each with its number in the run."""


class SkippedExample(NamedTuple):
    """An example that is left out because its row or one of its media cannot be read."""

    example: int
    """Its number in the run."""
    name: str
    reason: str


@dataclass
class RankBatch:
    """The part of a global batch that one process computes."""

    batches: list[Batch]
    """One for each accumulation step."""
    samples: int
    """Examples of the global batch."""
    too_long: int
    """Examples of this process that did not fit."""
    unreadable: list[SkippedExample]
    """Examples of this process that could not be read."""
    state: dict[str, Any]
    """The state of the mixture after this step; JSON."""

    def pin_memory(self) -> RankBatch:
        """In memory that a GPU can copy from while it computes."""
        self.batches = [batch.pin_memory() for batch in self.batches]
        return self


@dataclass(frozen=True)
class RankLoader:
    """Loads the batches of one of `size` processes. The examples of a global batch are distributed round-robin."""

    collator: Collator
    seed: int
    batch_size: int
    """Examples of a global batch."""
    samples: int
    """Examples of the whole training; the last batch has the remaining ones."""
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
    """The largest number of examples of an evaluation set that are used; None: all."""
    workers: int
    pin: bool

    def training(self, mixture: Mixture, step: int) -> Iterator[RankBatch]:
        """This process's batches of the steps after `step`, to the end of the run."""

        def draw() -> Iterator[tuple[Numbered, int, dict[str, Any]]]:
            for first in range(step * self.batch_size, self.samples, self.batch_size):
                examples = mixture.take(min(self.batch_size, self.samples - first))
                yield self._rank_examples(examples, first), len(examples), mixture.state_dict()

        def collate(drawn: tuple[Numbered, int, dict[str, Any]]) -> RankBatch:
            examples, samples, state = drawn
            encoded = [self.encode(example, random.Random(f"{self.seed} {i}")) for i, example in examples]
            fitting = sort_by_length([one for one in encoded if isinstance(one, EncodedExample)])
            chunks = [fitting[i * self.micro : (i + 1) * self.micro] for i in range(self.accumulation)]
            unreadable = _unreadable(examples, encoded)
            too_long = len(examples) - len(fitting) - len(unreadable)
            return RankBatch([self.batch(chunk) for chunk in chunks], samples, too_long, unreadable, state)

        return prefetch(draw(), collate, self.workers, self.pin)

    def evaluation(self, source: DataSource) -> Iterator[RankBatch]:
        """One pass over a source, one micro-batch at a time, with the same number of batches on every process."""

        def draw() -> Iterator[tuple[Numbered, int]]:
            examples = (example for example, _ in itertools.islice(source.iterate(), self.evaluate_samples))
            for first in itertools.count(0, self.micro * self.size):
                if not (chunk := list(itertools.islice(examples, self.micro * self.size))):
                    return
                yield self._rank_examples(chunk, first), len(chunk)

        def collate(drawn: tuple[Numbered, int]) -> RankBatch:
            examples, samples = drawn
            encoded = [self.encode(example) for _, example in examples]
            fitting = [one for one in encoded if isinstance(one, EncodedExample)]
            unreadable = _unreadable(examples, encoded)
            too_long = len(examples) - len(fitting) - len(unreadable)
            return RankBatch([self.batch(fitting)], samples, too_long, unreadable, {})

        return prefetch(draw(), collate, self.workers, self.pin)

    def _rank_examples(self, examples: Sequence[Example], first: int) -> Numbered:
        """This process's examples among some of the run; `first` is the number of the first one."""
        return [(first + i, examples[i]) for i in range(self.rank, len(examples), self.size)]

    def encode(self, example: Example, rng: random.Random | None = None) -> EncodedExample | InputError:
        """One example, or why it is left out: it does not fit or cannot be read, and the recipe skips such examples."""
        try:
            return self.collator.encode_example(example, rng)
        except InputError as error:
            if not (self.skip_too_long if isinstance(error, TooLong) else self.skip_unreadable):
                raise
            return error

    def batch(self, encoded: Sequence[EncodedExample]) -> Batch:
        """A micro-batch. Without examples it has no targets, so that all processes compute the same operations."""
        encoded = encoded or [EncodedExample([self.collator.lm.eos], [False], [], "filler")]
        return self.collator.pack(encoded, self.packing) if self.packing else self.collator.pad(encoded)


def _unreadable(examples: Numbered, encoded: Sequence[EncodedExample | InputError]) -> list[SkippedExample]:
    """The examples that could not be read, and why."""
    return [
        SkippedExample(i, example.name, str(one))
        for (i, example), one in zip(examples, encoded, strict=True)
        if not isinstance(one, EncodedExample | TooLong)
    ]


def sort_by_length(encoded: Sequence[EncodedExample]) -> list[EncodedExample]:
    """Put examples of similar length into the same micro-batch, so that it has little padding.

    The global batch stays the same, and so does a loss over its targets.
    """
    return sorted(encoded, key=len)


# Workers


class _MapDataset:
    """A function as a map-style dataset of torch's DataLoader; an index is the function's argument."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __getitem__(self, argument: Any) -> Any:
        try:
            return self.function(argument)
        except MagmaError as error:  # DataLoader would wrap it in a worker's traceback
            return error


class _IteratorSampler:
    """An iterable as a sampler: its values, in order."""

    def __init__(self, values: Iterable[Any]) -> None:
        self.values = values

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)


def prefetch(values: Iterable[Any], function: Callable[[Any], T], workers: int, pin: bool) -> Iterator[T]:
    """Apply a function to each value, in order, in worker processes.

    Args:
        values: Drawn in this process.
        function: Called in a worker; its result is sent to this process.
        workers: Worker processes, each of which prepares up to `PREFETCH_FACTOR` results before they are needed. With 0
            the function is called in this process when its result is needed.
        pin: Whether results are put into pinned memory.

    Raises:
        MagmaError: Whatever the function raises of this kind.
    """
    import torch
    from torch.utils.data import DataLoader

    parent = os.getpid()

    def init_worker(_: int) -> None:
        ignore_stop_signals()
        end_with_parent(parent)

    loader: Any = DataLoader(
        _MapDataset(function),  # type: ignore[arg-type]  # its indices are not numbers
        batch_size=None,
        sampler=_IteratorSampler(values),
        num_workers=workers,
        prefetch_factor=PREFETCH_FACTOR if workers else None,
        pin_memory=pin,
        worker_init_fn=init_worker if workers else None,
        multiprocessing_context="fork" if workers else None,
        generator=torch.Generator(),  # otherwise the loader draws from the global generator
    )
    for result in loader:
        if isinstance(result, MagmaError):
            raise result
        yield result
