"""Prefix caching: keys and values of a prefix that several prompts share are computed once.

Questions about one medium share its keys and values, and so do in-context examples that come before every question.
Answers are the same as without a cache. Axes: b prompts, h different prefixes, t tokens, d width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..context import Context
from ..data.collator import Collator
from ..errors import InputError, TooLong
from ..generation.decoding import Answer, Decoding, decode
from ..model import Magma
from ..system.memory import BatchMapper
from ..values import BatchLayout, Cache, Example, Media, Segment, Text, Tokens


def segment_key(segment: Segment) -> Hashable:
    """A key that is equal for equal segments. A medium that is not a path, text or bytes equals only itself."""
    if isinstance(segment, Text):
        return segment.text, segment.control
    if isinstance(segment, Tokens):
        return tuple(segment.ids.tolist())
    value = segment.value
    return segment.name, value if isinstance(value, Path | str | bytes) else id(value)


def drop_empty_texts(prompt: Sequence[Segment]) -> list[Segment]:
    """The prompt without empty texts."""
    return [segment for segment in prompt if not isinstance(segment, Text) or segment.text]


def prompt_error(collator: Collator, prompt: Sequence[Segment], name: str) -> InputError | None:
    """The error of a prompt that cannot be read or is too long (`TooLong`); None if nothing is wrong."""
    try:
        collator.encode_example(Example(prompt, name), truncate=False)
    except InputError as error:
        return error
    return None


def unreadable_error(collator: Collator, prompt: Sequence[Segment], name: str) -> InputError | None:
    """The error of a prompt that cannot be read; None if it can be read, even if it is too long."""
    found = prompt_error(collator, prompt, name)
    return None if isinstance(found, TooLong) else found


@dataclass(frozen=True)
class _Prompt:
    """A prompt, split into the two parts that are computed separately."""

    number: int
    prefix: tuple[Segment, ...]
    """Up to the last medium; other questions may share it."""
    suffix: tuple[Segment, ...]
    name: str
    inputs: frozenset[str] = frozenset()
    """Its inputs that decide which adapters act. They act on the whole prompt, so only prompts that have the same ones
    share a prefix."""

    @property
    def prefix_key(self) -> tuple[Hashable, ...]:
        return tuple(map(segment_key, self.prefix))

    @property
    def key(self) -> tuple[Hashable, ...]:
        return self.prefix_key, *map(segment_key, self.suffix)

    def piece(self, segments: tuple[Segment, ...]) -> _Piece:
        """Some of its segments."""
        return _Piece(segments, self.name, self.inputs)


@dataclass(frozen=True)
class _Start:
    """Positions in a cache that others follow."""

    cache: Cache
    length: Tensor
    """[b], the number of positions."""
    context: Context | None = None
    """For adapters that use the media among them."""

    def select(self, cache: Cache, rows: Tensor) -> _Start:
        """These rows [b'] with their cache."""
        return _Start(cache, self.length[rows], None if self.context is None else self.context.select(rows))


class _Piece(NamedTuple):
    """Segments that are computed together."""

    segments: tuple[Segment, ...]
    name: str
    """Their name in errors."""
    inputs: frozenset[str]
    """As those of the whole prompt."""


class PrefixCachedGenerator:
    """Generates answers to prompts in batches, with prefix caching.

    Keys and values of the segments that all prompts of a call have in common at the start are kept for the next call.
    """

    def __init__(self, model: Magma, decoding: Decoding, batch_size: int = 64) -> None:
        self.model, self.decoding, self.batch_size = model, decoding, batch_size
        self._in_batches = BatchMapper(batch_size)
        self.collator = model.collator()
        self._common: Hashable = None
        self._kept: _Piece | None = None  # its media stay alive: keys may be their ids
        self._start: _Start | None = None

    def answers(
        self,
        prompts: Sequence[Sequence[Segment]],
        names: Sequence[str] | None = None,
        refuse: Callable[[int, InputError], None] | None = None,
    ) -> Iterator[list[tuple[int, str]]]:
        """Generate an answer to each prompt. Equal prompts are computed once.

        Args:
            prompts: Lists of segments.
            names: Names of the prompts, for errors.
            refuse: Called with the index of a prompt that cannot be read or is too long, and the error.

        Yields:
            Batches of (index of the prompt, answer).

        Raises:
            InputError: A prompt cannot be read or is too long, and there is no `refuse`.
        """
        for batch in self._decoded(prompts, names, refuse):
            yield [(i, answer.text) for i, answer in batch]

    def tokens(self, prompts: Sequence[Sequence[Segment]]) -> Iterator[list[tuple[int, list[int]]]]:
        """The same with token ids; no tokenizer is needed."""
        for batch in self._decoded(prompts, None):
            yield [(i, answer.tokens) for i, answer in batch]

    @torch.no_grad()
    def _decoded(
        self,
        prompts: Sequence[Sequence[Segment]],
        names: Sequence[str] | None,
        refuse: Callable[[int, InputError], None] | None = None,
    ) -> Iterator[list[tuple[int, Answer]]]:
        if self.model.head is not None:
            raise InputError("this model has a classification head: use classify()")
        names = names or [f"prompt {i}" for i in range(len(prompts))]
        parts = [self._split(i, prompt, names[i]) for i, prompt in enumerate(prompts)]
        duplicates: dict[Hashable, list[int]] = {}
        for part in parts:
            duplicates.setdefault(part.key, []).append(part.number)
        order = _group_by_prefix([parts[numbers[0]] for numbers in duplicates.values()])
        with self.model.eval_mode():
            for batch, common in _batches_by_inputs(order, self.batch_size):
                try:
                    found = self._answers(batch, common)
                except InputError:
                    if refuse is None:
                        raise
                    kept = self._readable(batch, duplicates, names, refuse)
                    if len(kept) == len(batch):
                        raise
                    batch = kept
                    found = self._answers(batch, common) if batch else []
                yield [(i, answer) for part, answer in zip(batch, found, strict=True) for i in duplicates[part.key]]

    def _readable(
        self,
        batch: Sequence[_Prompt],
        duplicates: Mapping[Hashable, Sequence[int]],
        names: Sequence[str],
        refuse: Callable[[int, InputError], None],
    ) -> list[_Prompt]:
        """The prompts of a batch that can be read and fit; `refuse` is called for the others."""
        kept = []
        for part in batch:
            prompt = [*part.prefix, *part.suffix]
            if prompt_error(self.collator, prompt, part.name) is None:
                kept.append(part)
                continue
            for number in duplicates[part.key]:  # with its own name
                if error := prompt_error(self.collator, prompt, names[number]):
                    refuse(number, error)
        return kept

    def _split(self, number: int, prompt: Sequence[Segment], name: str) -> _Prompt:
        prompt = drop_empty_texts(prompt)
        last = max((i for i, segment in enumerate(prompt) if isinstance(segment, Media)), default=-1)
        cut = last if last + 1 == len(prompt) else last + 1  # the suffix must not be empty: its last position is scored
        inputs = self.model.lm.adapter_inputs.intersection(one.name for one in prompt if isinstance(one, Media))
        return _Prompt(number, tuple(prompt[:cut]), tuple(prompt[cut:]), name, inputs)

    def _answers(self, batch: Sequence[_Prompt], common: int) -> list[Answer]:
        """The answers of one batch, or of smaller ones if memory runs out."""
        return self._in_batches(batch, lambda some: self._answer(some, common))

    def _answer(self, batch: Sequence[_Prompt], common: int) -> list[Answer]:
        """The answers of one batch: the common segments, then each different prefix, then the suffixes."""
        prefixes = {part.prefix_key: part for part in reversed(batch)}
        row_of = {key: i for i, key in enumerate(prefixes)}
        suffixes = [part.piece(part.suffix) for part in batch]
        shared = batch[0].piece(batch[0].prefix[:common])
        if len(prefixes) < len(batch) and all(len(part.prefix) > common for part in prefixes.values()):
            first = [part.piece(part.prefix[common:]) for part in prefixes.values()]
            start = self._prefill(self._common_start(shared, len(first)), first)
            rows = torch.tensor([row_of[part.prefix_key] for part in batch], device=self.model.device)
            start = start.select(start.cache.select(rows), rows)
        else:
            suffixes = [part.piece((*part.prefix[common:], *part.suffix)) for part in batch]
            start = self._common_start(shared, len(batch))
        embeddings, layout = self._embed(start, suffixes)
        *_, answers = decode(self.model.lm, embeddings, layout, self.decoding, start.cache)
        return answers

    def _common_start(self, shared: _Piece, rows: int) -> _Start:
        """A start of `rows` rows with these segments."""
        lm, device = self.model.lm, self.model.device
        if not shared.segments:
            return _Start(lm.new_cache(), torch.zeros(rows, dtype=torch.long, device=device))
        key = shared.inputs, *map(segment_key, shared.segments)
        if self._common != key:
            nothing = _Start(lm.new_cache(), torch.zeros(1, dtype=torch.long, device=device))
            self._start = self._prefill(nothing, [shared._replace(name="the common start of all prompts")])
            self._common, self._kept = key, shared
        assert self._start is not None
        first = torch.zeros(rows, dtype=torch.long, device=device)
        return self._start.select(self._start.cache.expand(rows), first)

    def _prefill(self, start: _Start, rows: Sequence[_Piece]) -> _Start:
        """The start with these segments appended to its cache."""
        embeddings, layout = self._embed(start, rows)
        self.model.lm(embeddings, layout, start.cache)
        return _Start(start.cache, start.length + layout.lengths, layout.context)

    def _embed(self, start: _Start, rows: Sequence[_Piece]) -> tuple[Tensor, BatchLayout]:
        """Embeddings [b, t, d] and layout of rows that follow a start. The last position of each row is scored."""
        at_start = not bool(start.length.any())
        encoded = [
            self.collator.encode_example(
                Example(row.segments, row.name), truncate=False, at_start=at_start, other_inputs=row.inputs
            )
            for row in rows
        ]
        batch = self.collator.pad(encoded, score_last=True).to(self.model.device, self.model.dtype)
        ends = start.length + batch.layout.lengths
        limit = self.model.lm.context
        for row, end in zip(rows, ends.tolist(), strict=True):
            if limit is not None and end > limit:
                raise TooLong(f"{row.name} needs {end} positions, and {limit} fit: use fewer or shorter segments")
        embeddings, layout = self.model.lm_inputs(batch)
        context = layout.context
        if context is not None and start.context is not None:
            context = start.context.followed_by(context)
        positions = layout.positions + start.length[:, None]
        return embeddings, replace(layout, positions=positions, context=context)


def _group_by_prefix(parts: Sequence[_Prompt]) -> list[_Prompt]:
    """Prompts with the same prefix next to each other, in the order of the first prompt of each prefix."""
    groups: dict[Hashable, list[_Prompt]] = {}
    for part in parts:
        groups.setdefault(part.prefix_key, []).append(part)
    return [part for group in groups.values() for part in group]


def _batches_by_inputs(parts: Sequence[_Prompt], size: int) -> Iterator[tuple[list[_Prompt], int]]:
    """Batches of prompts with the same inputs, and the number of segments that they share with those of all batches."""
    kinds: dict[frozenset[str], list[_Prompt]] = {}
    for part in parts:
        kinds.setdefault(part.inputs, []).append(part)
    for kind in kinds.values():
        common = _count_common([part.prefix for part in kind])
        for batch in _batches(kind, size):
            yield batch, common


def _batches(parts: Sequence[_Prompt], size: int) -> Iterator[list[_Prompt]]:
    """Batches of at most `size`; prompts with the same prefix stay together where they fit."""
    batch: list[_Prompt] = []
    for _, group in itertools.groupby(parts, key=lambda part: part.prefix_key):
        together = list(group)
        for at in range(0, len(together), size):
            piece = together[at : at + size]
            if len(batch) + len(piece) > size:
                yield batch
                batch = []
            batch += piece
    if batch:
        yield batch


def _count_common(prefixes: Sequence[tuple[Segment, ...]]) -> int:
    """The number of segments that all prefixes have in common at the start; 0 for a single prefix.

    Texts that follow each other are not separated, because they are tokenized as one.
    """
    if len(prefixes) < 2:
        return 0
    count = 0
    for column in zip(*prefixes, strict=False):
        if len({segment_key(segment) for segment in column}) > 1:
            break
        count += 1
    following = [prefix[count] for prefix in prefixes if len(prefix) > count]
    if any(isinstance(segment, Text) for segment in following):
        while count and isinstance(prefixes[0][count - 1], Text):
            count -= 1
    return count
