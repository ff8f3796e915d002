"""From examples to batches: decode media, tokenize texts, pad or pack rows.

Axes: b batch, t tokens (media positions included), m scored positions, s media positions of one input in a batch.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..context import Context
from ..errors import InputError, TooLong
from ..interfaces import Encoder, FrozenLM, Prefix
from ..presence import lay_out_presence
from ..values import BatchLayout, Example, Media, Prepared, Segment, Text, Tokens
from . import tokenization
from .media_context import lay_out_context
from .sequence import Batch, EncodedExample, MediaSlots

_TOO_LONG = (
    'shorten it, raise train.max_length up to the context, or leave such examples out with train.too_long = "skip"'
)
"""What helps in training."""


class Collator:
    """Turns examples into batches for one language model and its inputs.

    All slow work that needs no gradient is here (decoding media, tokenizing), so that worker processes can do it while
    the model computes.
    """

    def __init__(
        self,
        lm: FrozenLM,
        inputs: Mapping[str, tuple[Encoder, Prefix]],
        max_length: int | None = None,
        pad_to_multiple_of: int = 1,
        classes: Sequence[str] = (),
    ) -> None:
        """Set the limits and the classes.

        Args:
            lm: The language model, for its tokenizer and context.
            inputs: Encoder and prefix of each input.
            max_length: Maximum length of an example in positions. Default: the context. None, and no context: no limit.
            pad_to_multiple_of: Rows are padded to a multiple of this length.
            classes: The classes of a model that classifies; every training example needs one of them as its label.

        Raises:
            InputError: If `max_length` is larger than the context.
        """
        if max_length is not None and lm.context is not None and max_length > lm.context:
            raise InputError(
                f"max_length: given {max_length}; allowed: 1 to {lm.context}, the language model's context"
            )
        self.lm = lm
        self.inputs = inputs
        self.max_length = max_length or lm.context  # None: examples of any length fit
        self.pad_to_multiple_of = pad_to_multiple_of
        self.classes = {name: i for i, name in enumerate(classes)}

    def segment(self, value: Any) -> Segment:
        """Make a segment of a raw value of a prompt: text, token ids, or a medium of the one input that accepts it.

        Raises:
            InputError: If no input accepts the value, or several do.
        """
        if isinstance(value, Text | Tokens | Media):
            return value
        if isinstance(value, str):
            return Text(value)
        if isinstance(value, Tensor) and value.ndim == 1 and value.dtype in (torch.int64, torch.int32):
            return Tokens(value)
        accepting = [name for name, (encoder, _) in self.inputs.items() if encoder.accepts(value)]
        if len(accepting) == 1:
            return Media(accepting[0], value)
        what = f"a value of type {type(value).__name__}"
        known = ", ".join(self.inputs) or "none"
        if accepting:
            raise InputError(f"{what} fits several inputs ({', '.join(accepting)}): choose one with Media(name, value)")
        raise InputError(f"no input accepts {what}; inputs: {known}. To choose one, use Media(name, value)")

    def encode_example(
        self,
        example: Example,
        rng: random.Random | None = None,
        truncate: bool = True,
        at_start: bool = True,
        other_inputs: frozenset[str] = frozenset(),
    ) -> EncodedExample:
        """Tokens, targets and prepared media of one example.

        Texts that follow each other are tokenized as one. A token that belongs to several texts is a target if one of
        them is. If the last segment is a target, an end-of-text token follows, which is a target too.

        Args:
            example: The segments.
            rng: The source of randomness for augmentation; None: no augmentation.
            truncate: Cut text at the end to `max_length`, if there is one. False, for prompts: nothing may be cut, and
                U+FFFD replaces what cannot be encoded.
            at_start: Put the language model's `beginning` first. False: the positions follow others in a cache.
            other_inputs: Inputs that the sequence has before or after these positions.

        Raises:
            TooLong: If the example does not fit: cutting would split a medium or leave no target, or is not allowed.
            InputError: If the example is empty or cannot be read.
        """
        if example.problem is not None:
            raise InputError(example.problem)
        result = EncodedExample([], [], [], example.name, self._label(example), other_inputs)
        if at_start:
            self._add_beginning(result, example.segments)
        start = len(result)
        for is_text, group in itertools.groupby(example.segments, lambda one: isinstance(one, Text)):
            if is_text:
                self._add_texts(result, [s for s in group if isinstance(s, Text)], truncate, at_start, start)
                continue
            for segment in group:
                if isinstance(segment, Media):
                    self._add_medium(result, segment, rng)
                elif isinstance(segment, Tokens):
                    self._add_tokens(result, segment)
        if len(result) == start:
            raise InputError(f"{example.name} is empty: it has neither text nor media")
        has_target = any(isinstance(s, Text | Tokens) and s.target for s in example.segments)
        if isinstance(last := example.segments[-1], Text | Tokens) and last.target:
            result.tokens.append(self.lm.eos)
            result.targets.append(True)
        return self._truncate(result, has_target, truncate)

    def _label(self, example: Example) -> int | None:
        if example.label is None:
            return None
        if not self.classes:
            raise InputError(
                f"{example.name} has the label {example.label!r}, but this model has no classes: no [head]"
            )
        if example.label not in self.classes:
            raise InputError(f"{example.name}: label {example.label!r}; allowed: {', '.join(self.classes)}")
        return self.classes[example.label]

    def _add_beginning(self, result: EncodedExample, segments: Sequence[Segment]) -> None:
        """The tokens that start every sequence; token ids may have them already."""
        ids = list(self.lm.beginning)
        if not (segments and isinstance(first := segments[0], Tokens) and first.ids[: len(ids)].tolist() == ids):
            result.tokens += ids
            result.targets += [False] * len(ids)

    def _add_tokens(self, result: EncodedExample, segment: Tokens) -> None:
        ids = segment.ids.tolist()
        if ids and not 0 <= min(ids) <= max(ids) < self.lm.num_embeddings:
            raise InputError(
                f"{result.name}: token ids must be 0 to {self.lm.num_embeddings - 1}, got {min(ids)} to {max(ids)}"
            )
        result.tokens += ids
        result.targets += [segment.target] * len(ids)

    def _add_texts(self, result: EncodedExample, texts: list[Text], truncate: bool, at_start: bool, start: int) -> None:
        """Add texts that follow each other. `start` is the length of the sequence that has only its beginning."""
        if not truncate:
            texts = [replace(text, text=tokenization.replace_surrogates(text.text)) for text in texts]
        elif problem := next(filter(None, (tokenization.problem(text.text) for text in texts)), None):
            raise InputError(f"{result.name}: {problem}")
        pieces = itertools.groupby(
            tokenization.split_control_tokens(texts, self.lm.control_tokens), lambda part: isinstance(part[1], int)
        )
        for is_control, group in pieces:
            numbers, values = zip(*group, strict=True)
            ids, owners = list(values), [(i, i) for i in range(len(values))]
            if not is_control:
                ids, owners = tokenization.encode(self.lm, values, at_start and len(result) == start)
                self._check_vocabulary(result.name, ids)
            result.tokens += ids
            result.targets += [any(texts[numbers[i]].target for i in range(a, b + 1)) for a, b in owners]

    def _check_vocabulary(self, name: str, ids: Sequence[int]) -> None:
        """Raise `InputError` for a token that was added to the tokenizer but not to the language model."""
        limit = self.lm.num_embeddings
        if beyond := [token for token in ids if not 0 <= token < limit]:
            raise InputError(
                f"{name}: the tokenizer gives token {beyond[0]} ({self.lm.decode(beyond[:1])!r}), and the language "
                f"model has word embeddings for 0 to {limit - 1}: use the tokenizer it was trained with"
            )

    def _add_medium(self, result: EncodedExample, segment: Media, rng: random.Random | None) -> None:
        if segment.name not in self.inputs:
            known = ", ".join(self.inputs) or "none"
            raise InputError(f'{result.name}: no input is called "{segment.name}"; inputs: {known}')
        encoder, prefix = self.inputs[segment.name]
        try:
            prepared = encoder.prepare(segment.value, rng)
            size = prefix.num_embeddings(encoder.num_features(prepared))
        except InputError as error:
            where = f"{segment.where}: " if segment.where else ""
            raise InputError(f"{result.name}: {segment.name}: {where}{error}") from error
        result.media.append((segment.name, prepared, len(result), size))
        result.tokens += [0] * size
        result.targets += [False] * size

    def _truncate(self, result: EncodedExample, has_target: bool, allowed: bool) -> EncodedExample:
        limit = self.max_length
        if limit is None or len(result) <= limit:
            return result
        media_end = max((start + size for _, _, start, size in result.media), default=0)
        if not allowed or media_end > limit or (has_target and not any(result.targets[:limit])):
            raise TooLong(
                f"{result.name} needs {len(result)} positions ({media_end} up to its last medium), and at most {limit} "
                f"fit: {_TOO_LONG if allowed else 'use fewer or shorter segments'}"
            )
        return replace(result, tokens=result.tokens[:limit], targets=result.targets[:limit])

    def batch(self, examples: Sequence[Example], rng: random.Random | None = None) -> Batch:
        """A training batch. Targets are scored; if the model classifies, the last position of each row."""
        return self.pad([self.encode_example(example, rng) for example in examples])

    def pad(self, sequences: Sequence[EncodedExample], score_last: bool = False) -> Batch:
        """One sequence a row, padded on the right to the longest (rounded up to a multiple of `pad_to_multiple_of`).

        The positions before each target are scored, or with `score_last` the last position of every row, with labels
        0. If the model classifies, the last position of every row that has a label is scored.
        """
        return self._collate_rows([[sequence] for sequence in sequences], score_last)

    def pack(self, sequences: Sequence[EncodedExample], width: int) -> Batch:
        """Pack several sequences into rows of at most `width` positions. Attention does not cross sequences.

        The longest sequence comes first, each goes into the row that has most room, and the number of rows is the one
        that leaves the least padding. A sequence that is longer than `width` makes the rows longer.
        """
        longest_first = sorted(sequences, key=len, reverse=True)
        width = max(width, len(longest_first[0]))
        fewest = -(-sum(map(len, sequences)) // width)
        tries = [_pack_rows(longest_first, count) for count in range(fewest, 2 * fewest + 1)]
        fitting = [rows for rows in tries if _max_row_length(rows) <= width] or [[[one] for one in longest_first]]
        return self._collate_rows(min(fitting, key=lambda rows: len(rows) * _max_row_length(rows)))

    def _collate_rows(self, rows: Sequence[Sequence[EncodedExample]], score_last: bool = False) -> Batch:
        lengths = torch.tensor([sum(map(len, row)) for row in rows])
        width = -(-int(lengths.max()) // self.pad_to_multiple_of) * self.pad_to_multiple_of
        tokens = torch.zeros(len(rows), width, dtype=torch.long)
        targets = torch.zeros(len(rows), width, dtype=torch.bool)
        positions = torch.arange(width).repeat(len(rows), 1)
        segments = torch.full((len(rows), width), -1)
        placed: list[tuple[int, EncodedExample]] = []  # flat index of the first position
        for i, row in enumerate(rows):
            start = 0
            for number, sequence in enumerate(row):
                here = slice(start, start + len(sequence))
                tokens[i, here] = torch.tensor(sequence.tokens)
                targets[i, here] = torch.tensor(sequence.targets)
                targets[i, start] = False  # no position before the first one could predict it
                positions[i, here] = torch.arange(len(sequence))
                segments[i, here] = number
                placed.append((i * width + start, sequence))
                start += len(sequence)
        last = torch.tensor([start + len(sequence) - 1 for start, sequence in placed])
        if score_last:
            scored, labels = last, torch.zeros(len(last), dtype=torch.long)
        elif self.classes:
            labelled = [i for i, (_, sequence) in enumerate(placed) if sequence.label is not None]
            scored = last[labelled]
            labels = torch.tensor([placed[i][1].label for i in labelled], dtype=torch.long)
        else:
            target_index = targets.flatten().nonzero().squeeze(1)
            scored, labels = target_index - 1, tokens.flatten()[target_index]
        first = int((scored % width).min()) if len(scored) else width - 1
        packed = any(len(row) > 1 for row in rows)
        layout = BatchLayout(positions, lengths, scored, first, segments if packed else None, tokens)
        media, slots = self._stack_media(placed)
        if self.lm.uses_context:
            context, index = lay_out_context(list(self.inputs), placed, len(rows), width)
            layout = replace(layout, context=context)
            slots = {name: replace(one, context_index=index[name]) for name, one in slots.items()}
        if self.lm.adapter_inputs:
            presence = lay_out_presence(
                list(self.inputs), [[(len(one), one.inputs) for one in row] for row in rows], width
            )
            layout = replace(layout, context=replace(layout.context or Context.of_text(tokens), presence=presence))
        return Batch(tokens, layout, labels, media, slots, [sequence.name for _, sequence in placed])

    def _stack_media(
        self, placed: Sequence[tuple[int, EncodedExample]]
    ) -> tuple[dict[str, Prepared], dict[str, MediaSlots]]:
        media: dict[str, Prepared] = {}
        slots = {}
        for name, (encoder, _) in self.inputs.items():
            found = [
                (item, row_start + start, size)
                for row_start, sequence in placed
                for owner, item, start, size in sequence.media
                if owner == name
            ]
            if not found:
                continue
            media[name] = encoder.stack([item for item, _, _ in found])
            slots[name] = MediaSlots(
                positions=torch.cat([torch.arange(first, first + size) for _, first, size in found]),
                media_index=torch.arange(len(found)).repeat_interleave(torch.tensor([size for _, _, size in found])),
                embedding_index=torch.cat([torch.arange(size) for _, _, size in found]),
            )
        return media, slots


def _pack_rows(longest_first: Sequence[EncodedExample], count: int) -> list[list[EncodedExample]]:
    """Distribute sequences over `count` rows that are about equally full."""
    rows: list[list[EncodedExample]] = [[] for _ in range(min(count, len(longest_first)))]
    filled = [0] * len(rows)
    for sequence in longest_first:
        emptiest = filled.index(min(filled))
        rows[emptiest].append(sequence)
        filled[emptiest] += len(sequence)
    return rows


def _max_row_length(rows: Sequence[Sequence[EncodedExample]]) -> int:
    return max(sum(map(len, row)) for row in rows)
