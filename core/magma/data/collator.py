"""Examples to batches: media are decoded, texts are tokenized, rows are padded or packed.

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

from ..errors import InputError, TooLong
from ..interfaces import Encoder, FrozenLM, Prefix
from ..values import BatchLayout, Example, Media, Segment, Text, Tokens
from . import tokenization
from .sequence import Batch, Encoded, Slots


class Collator:
    """Turns examples into batches for one language model and its inputs.

    Everything slow that needs no gradient happens here (decoding media, tokenizing), so that it can run beside the
    model.
    """

    def __init__(
        self,
        lm: FrozenLM,
        inputs: Mapping[str, tuple[Encoder, Prefix]],
        max_length: int | None = None,
        multiple: int = 1,
        classes: Sequence[str] = (),
    ) -> None:
        """`classes` are those of a model that classifies: every training example needs one of them as its label."""
        if max_length is not None and max_length > lm.context:
            raise InputError(f"max_length is {max_length}, but the language model's context is {lm.context} tokens")
        self.lm = lm
        self.inputs = inputs
        self.max_length = max_length or lm.context
        self.multiple = multiple
        self.classes = {name: i for i, name in enumerate(classes)}

    def segment(self, value: Any) -> Segment:
        """A raw value of a prompt as a segment: text, token ids, or a medium of the one input that accepts it."""
        if isinstance(value, Text | Tokens | Media):
            return value
        if isinstance(value, str):
            return Text(value)
        if isinstance(value, Tensor) and value.ndim == 1 and value.dtype in (torch.int64, torch.int32):
            return Tokens(value)
        takers = [name for name, (encoder, _) in self.inputs.items() if encoder.accepts(value)]
        if len(takers) == 1:
            return Media(takers[0], value)
        what = f"a value of type {type(value).__name__}"
        known = ", ".join(self.inputs) or "none"
        if takers:
            raise InputError(f"{what} fits several inputs ({', '.join(takers)}): say which with Media(name, value)")
        raise InputError(f"no input accepts {what}; inputs: {known}. To choose one, use Media(name, value)")

    def sequence(
        self, example: Example, rng: random.Random | None = None, whole: bool = False, begins: bool = True
    ) -> Encoded:
        """Tokens, targets and prepared media of one example, cut to `max_length`.

        The language model's `beginning` stands before everything, unless something was read before (`begins` is
        False). Texts that follow each other are tokenized as one; a token of several texts is a target where one of
        them is. An end-of-text token follows where the last segment is a target, and is a target itself. Text is cut at
        the end; where that would split a medium or leave no target, `TooLong` names the example. Of a `whole` example,
        such as a prompt, nothing may be cut, and U+FFFD takes the place of what cannot be encoded.
        """
        if example.problem is not None:
            raise InputError(example.problem)
        result = Encoded([], [], [], example.name, self._label(example))
        if begins:
            self._begin(result, example.segments)
        nothing = len(result)
        for is_text, group in itertools.groupby(example.segments, lambda one: isinstance(one, Text)):
            if is_text:
                self._add_texts(result, [s for s in group if isinstance(s, Text)], whole, begins, nothing)
                continue
            for segment in group:
                if isinstance(segment, Media):
                    self._add_medium(result, segment, rng)
                elif isinstance(segment, Tokens):
                    self._add_tokens(result, segment)
        if len(result) == nothing:
            raise InputError(f"{example.name} is empty: it has neither text nor media")
        wanted = any(isinstance(s, Text | Tokens) and s.target for s in example.segments)
        if isinstance(last := example.segments[-1], Text | Tokens) and last.target:
            result.tokens.append(self.lm.eos)
            result.targets.append(True)
        return self._cut(result, wanted, whole)

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

    def _begin(self, result: Encoded, segments: Sequence[Segment]) -> None:
        """What stands before everything; token ids may bring it themselves."""
        ids = list(self.lm.beginning)
        if not (segments and isinstance(first := segments[0], Tokens) and first.ids[: len(ids)].tolist() == ids):
            result.tokens += ids
            result.targets += [False] * len(ids)

    def _add_tokens(self, result: Encoded, segment: Tokens) -> None:
        ids = segment.ids.tolist()
        if ids and not 0 <= min(ids) <= max(ids) < self.lm.num_embeddings:
            raise InputError(
                f"{result.name}: token ids must be 0 to {self.lm.num_embeddings - 1}, got {min(ids)} to {max(ids)}"
            )
        result.tokens += ids
        result.targets += [segment.target] * len(ids)

    def _add_texts(self, result: Encoded, texts: list[Text], whole: bool, begins: bool, nothing: int) -> None:
        """Texts that follow each other. `nothing` is how long the sequence is while it has only its beginning."""
        if whole:
            texts = [replace(text, text=tokenization.without_halves(text.text)) for text in texts]
        elif problem := next(filter(None, (tokenization.problem(text.text) for text in texts)), None):
            raise InputError(f"{result.name}: {problem}")
        pieces = itertools.groupby(
            tokenization.parts(texts, self.lm.control_tokens), lambda part: isinstance(part[1], int)
        )
        for is_control, group in pieces:
            numbers, values = zip(*group, strict=True)
            ids, owners = list(values), [(i, i) for i in range(len(values))]
            if not is_control:
                ids, owners = tokenization.encode(self.lm, values, begins and len(result) == nothing)
                self._check_readable(result.name, ids)
            result.tokens += ids
            result.targets += [any(texts[numbers[i]].target for i in range(a, b + 1)) for a, b in owners]

    def _check_readable(self, name: str, ids: Sequence[int]) -> None:
        """A tokenizer may have tokens that were added to it and not to the language model."""
        readable = self.lm.num_embeddings
        if beyond := [token for token in ids if not 0 <= token < readable]:
            raise InputError(
                f"{name}: the tokenizer gives token {beyond[0]} ({self.lm.decode(beyond[:1])!r}), and the language "
                f"model has word embeddings for 0 to {readable - 1}: use the tokenizer it was trained with"
            )

    def _add_medium(self, result: Encoded, segment: Media, rng: random.Random | None) -> None:
        if segment.name not in self.inputs:
            known = ", ".join(self.inputs) or "none"
            raise InputError(f'{result.name}: no input is called "{segment.name}"; inputs: {known}')
        encoder, prefix = self.inputs[segment.name]
        try:
            prepared = encoder.prepare(segment.value, rng)
        except InputError as error:
            where = f"{segment.where}: " if segment.where else ""
            raise InputError(f"{result.name}: {segment.name}: {where}{error}") from error
        size = prefix.num_embeddings(encoder.num_features(prepared))
        result.media.append((segment.name, prepared, len(result), size))
        result.tokens += [0] * size
        result.targets += [False] * size

    def _cut(self, result: Encoded, wanted: bool, whole: bool) -> Encoded:
        limit = self.max_length
        if len(result) <= limit:
            return result
        media_end = max((start + size for _, _, start, size in result.media), default=0)
        if whole or media_end > limit or (wanted and not any(result.targets[:limit])):
            raise TooLong(
                f"{result.name} needs {len(result)} positions ({media_end} up to its last medium), "
                f"and at most {limit} fit: use fewer or shorter segments"
            )
        return replace(result, tokens=result.tokens[:limit], targets=result.targets[:limit])

    def batch(self, examples: Sequence[Example], rng: random.Random | None = None) -> Batch:
        """A training batch: targets are scored, or the last position of each row where the model classifies."""
        return self.pad([self.sequence(example, rng) for example in examples])

    def pad(self, sequences: Sequence[Encoded], score_last: bool = False) -> Batch:
        """One sequence a row, padded on the right to the longest (rounded up to `multiple`).

        Scored are the positions before each target, or with `score_last` the last position of every row, whose
        labels are 0 then. Of a model that classifies, the last position of every row that has a label is scored.
        """
        return self._rows([[sequence] for sequence in sequences], score_last)

    def pack(self, sequences: Sequence[Encoded], width: int) -> Batch:
        """Several sequences a row, each of which sees itself alone, in rows of at most `width` positions.

        As many rows as leave the least padding: the longest sequence first, each into the emptiest row. A sequence
        that is longer than `width` makes the rows longer.
        """
        longest_first = sorted(sequences, key=len, reverse=True)
        width = max(width, len(longest_first[0]))
        fewest = -(-sum(map(len, sequences)) // width)
        tries = [_spread(longest_first, count) for count in range(fewest, 2 * fewest + 1)]
        fitting = [rows for rows in tries if _longest(rows) <= width] or [[[one] for one in longest_first]]
        return self._rows(min(fitting, key=lambda rows: len(rows) * _longest(rows)))

    def _rows(self, rows: Sequence[Sequence[Encoded]], score_last: bool = False) -> Batch:
        lengths = torch.tensor([sum(map(len, row)) for row in rows])
        width = -(-int(lengths.max()) // self.multiple) * self.multiple
        tokens = torch.zeros(len(rows), width, dtype=torch.long)
        targets = torch.zeros(len(rows), width, dtype=torch.bool)
        positions = torch.arange(width).repeat(len(rows), 1)
        segments = torch.full((len(rows), width), -1)
        placed: list[tuple[int, Encoded]] = []  # flat index of the first position
        for i, row in enumerate(rows):
            start = 0
            for number, sequence in enumerate(row):
                here = slice(start, start + len(sequence))
                tokens[i, here] = torch.tensor(sequence.tokens)
                targets[i, here] = torch.tensor(sequence.targets)
                targets[i, start] = False  # nothing stands before the first position that could predict it
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
            wanted = targets.flatten().nonzero().squeeze(1)
            scored, labels = wanted - 1, tokens.flatten()[wanted]
        first = int((scored % width).min()) if len(scored) else width - 1
        packed = any(len(row) > 1 for row in rows)
        layout = BatchLayout(positions, lengths, scored, first, segments if packed else None)
        media, slots = self._gather(placed)
        return Batch(tokens, layout, labels, media, slots, [sequence.name for _, sequence in placed])

    def _gather(self, placed: Sequence[tuple[int, Encoded]]) -> tuple[dict[str, Tensor], dict[str, Slots]]:
        media, slots = {}, {}
        for name, (encoder, _) in self.inputs.items():
            found = [
                (item, begins + start, size)
                for begins, sequence in placed
                for owner, item, start, size in sequence.media
                if owner == name
            ]
            if not found:
                continue
            media[name] = encoder.stack([item for item, _, _ in found])
            slots[name] = Slots(
                positions=torch.cat([torch.arange(first, first + size) for _, first, size in found]),
                media=torch.arange(len(found)).repeat_interleave(torch.tensor([size for _, _, size in found])),
                steps=torch.cat([torch.arange(size) for _, _, size in found]),
            )
        return media, slots


def _spread(longest_first: Sequence[Encoded], count: int) -> list[list[Encoded]]:
    """Sequences over so many rows, about equally full."""
    rows: list[list[Encoded]] = [[] for _ in range(min(count, len(longest_first)))]
    filled = [0] * len(rows)
    for sequence in longest_first:
        emptiest = filled.index(min(filled))
        rows[emptiest].append(sequence)
        filled[emptiest] += len(sequence)
    return rows


def _longest(rows: Sequence[Sequence[Encoded]]) -> int:
    return max(sum(map(len, row)) for row in rows)
