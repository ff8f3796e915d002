"""Prompts that begin alike: what they share is read once.

Questions about one medium share its keys and values, and completed examples that stand before every question are read a
single time. Answers are those of the plain loop. Axes: b prompts, h different beginnings, t tokens, d width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..data.collator import Collator
from ..errors import InputError, TooLong
from ..generation.decoding import Answer, Decoding, decode
from ..model import Magma
from ..system.memory import BatchMapper
from ..values import Cache, Example, Layout, Media, Segment, Text, Tokens


def identity(segment: Segment) -> Hashable:
    """Equal for segments that are known to be the same; a medium that is no file is the same as itself alone."""
    if isinstance(segment, Text):
        return segment.text, segment.control
    if isinstance(segment, Tokens):
        return tuple(segment.ids.tolist())
    value = segment.value
    return segment.name, value if isinstance(value, Path | str | bytes) else id(value)


def not_empty(prompt: Sequence[Segment]) -> list[Segment]:
    """Without texts that say nothing."""
    return [segment for segment in prompt if not isinstance(segment, Text) or segment.text]


def refusal(collator: Collator, prompt: Sequence[Segment], name: str) -> InputError | None:
    """Why a prompt cannot be read, or that it is too long (`TooLong`); None where nothing is wrong."""
    try:
        collator.encode_example(Example(prompt, name), truncate=False)
    except InputError as error:
        return error
    return None


def unreadable(collator: Collator, prompt: Sequence[Segment], name: str) -> InputError | None:
    """Why a prompt cannot be read; None where it can, even if it is too long."""
    found = refusal(collator, prompt, name)
    return None if isinstance(found, TooLong) else found


@dataclass(frozen=True)
class _Prompt:
    """A prompt in the two parts that are read apart."""

    number: int
    head: tuple[Segment, ...]
    """Up to its last medium: what other questions may share."""
    tail: tuple[Segment, ...]
    name: str

    @property
    def beginning(self) -> tuple[Hashable, ...]:
        return tuple(map(identity, self.head))

    @property
    def whole(self) -> tuple[Hashable, ...]:
        return self.beginning, *map(identity, self.tail)


Named = tuple[tuple[Segment, ...], str]
"""Segments, and how errors speak of them."""


class PrefixCachedGenerator:
    """Answers prompts in batches of `batch_size` rows, greedily or as `how` says.

    Keys and values of the segments that all prompts of a call begin with are kept from call to call.
    """

    def __init__(self, model: Magma, how: Decoding, batch_size: int = 64) -> None:
        self.model, self.how, self.batch_size = model, how, batch_size
        self._pieces = BatchMapper(batch_size)
        self.collator = model.collator()
        self._common: tuple[Segment, ...] | None = None
        self._cache: Cache | None = None
        self._length = torch.zeros(1, dtype=torch.long)

    def answers(
        self,
        prompts: Sequence[Sequence[Segment]],
        names: Sequence[str] | None = None,
        refuse: Callable[[int, InputError], None] | None = None,
    ) -> Iterator[list[tuple[int, str]]]:
        """Batch by batch, (number of the prompt, answer) of each. Prompts that are equal are answered once.

        `refuse` is called with the number of a prompt that cannot be read or is too long, and why; without it that
        error is raised.
        """
        for batch in self._decoded(prompts, names, refuse):
            yield [(i, answer.text) for i, answer in batch]

    def tokens(self, prompts: Sequence[Sequence[Segment]]) -> Iterator[list[tuple[int, list[int]]]]:
        """The same with token ids, which need no tokenizer."""
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
            raise InputError("this model has a [head]: it classifies, use classify")
        names = names or [f"prompt {i}" for i in range(len(prompts))]
        parts = [self._split(i, prompt, names[i]) for i, prompt in enumerate(prompts)]
        twins: dict[Hashable, list[int]] = {}
        for part in parts:
            twins.setdefault(part.whole, []).append(part.number)
        order = _group_by_prefix([parts[numbers[0]] for numbers in twins.values()])
        common = _shared([part.head for part in order])
        with self.model.evaluating():
            for batch in _batches(order, self.batch_size):
                try:
                    found = self._answers(batch, common)
                except InputError:
                    if refuse is None:
                        raise
                    kept = self._readable(batch, twins, names, refuse)
                    if len(kept) == len(batch):
                        raise
                    batch = kept
                    found = self._answers(batch, common) if batch else []
                yield [(i, answer) for part, answer in zip(batch, found, strict=True) for i in twins[part.whole]]

    def _readable(
        self,
        batch: Sequence[_Prompt],
        twins: Mapping[Hashable, Sequence[int]],
        names: Sequence[str],
        refuse: Callable[[int, InputError], None],
    ) -> list[_Prompt]:
        """Those of a batch that can be read and fit, after `refuse` was called with the others."""
        kept = []
        for part in batch:
            prompt = [*part.head, *part.tail]
            if refusal(self.collator, prompt, part.name) is None:
                kept.append(part)
                continue
            for number in twins[part.whole]:  # each is named for itself
                if error := refusal(self.collator, prompt, names[number]):
                    refuse(number, error)
        return kept

    def _split(self, number: int, prompt: Sequence[Segment], name: str) -> _Prompt:
        prompt = not_empty(prompt)
        last = max((i for i, segment in enumerate(prompt) if isinstance(segment, Media)), default=-1)
        cut = last if last + 1 == len(prompt) else last + 1  # something has to be left that the answer stands behind
        return _Prompt(number, tuple(prompt[:cut]), tuple(prompt[cut:]), name)

    def _answers(self, batch: Sequence[_Prompt], common: int) -> list[Answer]:
        """One batch, or smaller ones where memory runs out."""
        return self._pieces(batch, lambda some: self._answer(some, common))

    def _answer(self, batch: Sequence[_Prompt], common: int) -> list[Answer]:
        """One batch that fits: the common beginning, then each different one, then what follows it."""
        heads = {part.beginning: part for part in reversed(batch)}
        place = {beginning: i for i, beginning in enumerate(heads)}
        tails = [part.tail for part in batch]
        names = [part.name for part in batch]
        if len(heads) < len(batch) and all(len(part.head) > common for part in heads.values()):
            first = [(part.head[common:], part.name) for part in heads.values()]
            cache, length = self._begin(batch[0].head[:common], len(first))
            ends = self._read(cache, length.expand(len(first)), first)[2]
            rows = torch.tensor([place[part.beginning] for part in batch], device=self.model.device)
            cache, start = cache.select(rows), ends[rows]
        else:
            tails = [(*part.head[common:], *part.tail) for part in batch]
            cache, length = self._begin(batch[0].head[:common], len(batch))
            start = length.expand(len(batch))
        embeddings, layout, _ = self._embed(start, list(zip(tails, names, strict=True)))
        *_, answers = decode(self.model.lm, embeddings, layout, self.how, cache)
        return answers

    def _begin(self, segments: tuple[Segment, ...], rows: int) -> tuple[Cache, Tensor]:
        """A cache of so many rows that has read these segments, and how many positions they fill [1]."""
        nothing = torch.zeros(1, dtype=torch.long, device=self.model.device)
        if not segments:
            return self.model.lm.new_cache(), nothing
        if self._common is None or tuple(map(identity, self._common)) != tuple(map(identity, segments)):
            cache = self.model.lm.new_cache()
            _, _, self._length = self._read(cache, nothing, [(segments, "what all prompts begin with")])
            self._common, self._cache = segments, cache
        assert self._cache is not None
        return self._cache.expand(rows), self._length

    def _read(self, cache: Cache, start: Tensor, rows: Sequence[Named]) -> tuple[Tensor, Layout, Tensor]:
        """Put rows into a cache, behind what it holds of each; what `_embed` gives."""
        found = self._embed(start, rows)
        self.model.lm(*found[:2], cache)
        return found

    def _embed(self, start: Tensor, rows: Sequence[Named]) -> tuple[Tensor, Layout, Tensor]:
        """Embeddings [b, t, d] of rows that begin at positions `start` [b], and the position behind each one's end [b].

        The last position of each row is scored.
        """
        begins = not bool(start.any())
        encoded = [self.collator.encode_example(Example(segments, name), None, True, begins) for segments, name in rows]
        batch = self.collator.pad(encoded, score_last=True).to(self.model.device, self.model.dtype)
        ends = start + batch.layout.lengths
        context = self.model.lm.context
        for (_, name), end in zip(rows, ends.tolist(), strict=True):
            if end > context:
                raise TooLong(f"{name} needs {end} positions, and {context} fit: use fewer or shorter segments")
        layout = replace(batch.layout, positions=batch.layout.positions + start[:, None])
        return self.model.embed(batch), layout, ends


def _group_by_prefix(parts: Sequence[_Prompt]) -> list[_Prompt]:
    """Those that share a beginning beside each other, in the order of each beginning's first one."""
    groups: dict[Hashable, list[_Prompt]] = {}
    for part in parts:
        groups.setdefault(part.beginning, []).append(part)
    return [part for group in groups.values() for part in group]


def _batches(parts: Sequence[_Prompt], size: int) -> Iterator[list[_Prompt]]:
    """At most `size` each; those that share a beginning stay together, where they fit."""
    batch: list[_Prompt] = []
    for _, group in itertools.groupby(parts, key=lambda part: part.beginning):
        together = list(group)
        for at in range(0, len(together), size):
            piece = together[at : at + size]
            if len(batch) + len(piece) > size:
                yield batch
                batch = []
            batch += piece
    if batch:
        yield batch


def _shared(heads: Sequence[tuple[Segment, ...]]) -> int:
    """How many segments all of them begin with; of a single one none, for nothing would be saved.

    Texts that follow each other stay together, for they are tokenized as one.
    """
    if len(heads) < 2:
        return 0
    count = 0
    for column in zip(*heads, strict=False):
        if len({identity(segment) for segment in column}) > 1:
            break
        count += 1
    following = [head[count] for head in heads if len(head) > count]
    if any(isinstance(segment, Text) for segment in following):
        while count and isinstance(heads[0][count - 1], Text):
            count -= 1
    return count
