"""Selection of few-shot examples for a question."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from magma import InputError, Media, Text

from ..hashing import content_hash


@dataclass(frozen=True)
class TaskItem:
    """A question about an image, with its reference answers."""

    id: str
    medium: Media
    prompt: Text
    answers: tuple[str, ...]
    group: str
    kind: str = ""
    """What is asked: few-shot examples are of the same kind."""
    subject: str = ""
    """What the image shows, if it is known: no few-shot example has the same subject."""
    is_shown: bool = True
    """Whether the image is part of the prompt."""
    shown_answer: str = ""
    """The answer in a few-shot example. "": `answer`."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """`Question.extra`."""

    @property
    def answer(self) -> str:
        """The most frequent answer; "" if there is none."""
        counts = Counter(answer for answer in self.answers if answer)
        return counts.most_common(1)[0][0] if counts else ""

    def segments(self, ending: Text | None = None) -> list[Media | Text]:
        """The prompt, or with `ending` a few-shot example: the prompt, its answer and the ending."""
        answer = self.shown_answer or self.answer
        space = " " if self.prompt.text else ""  # a caption directly after the image, as in training
        text = self.prompt if ending is None else self.prompt + Text(f"{space}{answer}") + ending
        return [self.medium, text] if self.is_shown else [text]


class ShotPool:
    """Draws few-shot examples from a pool, of the kind of the question.

    None has the id or the subject of the question, and none has its medium, neither the same file nor one with the same
    bytes.
    """

    def __init__(self, pool: Sequence[TaskItem], seed: int, fixed: bool, can_read: Callable[[Media], bool]) -> None:
        self.pool, self.seed, self.fixed, self.can_read = sorted(pool, key=lambda one: one.id), seed, fixed, can_read
        # So that the draw from a small split does not depend on the file format.
        random.Random(f"{seed}").shuffle(self.pool)
        self.digests = [content_hash(one.medium.value) for one in self.pool]
        self.readable_by_hash: dict[str, bool] = {}
        """Whether a medium can be read, for media that were drawn."""

    def draw(self, item: TaskItem, count: int) -> list[TaskItem]:
        """Draw `count` examples. If some cannot be read, all are drawn again without them. Raises `InputError`."""
        if not count:
            return []
        own = content_hash(item.medium.value)
        others = [
            i
            for i, one in enumerate(self.pool)
            if (self.digests[i] != own and one.id != item.id and one.kind == item.kind)
            and not (one.subject and one.subject == item.subject)
        ]
        unread = 0
        while True:
            if len(others) < count:
                raise InputError(
                    f"{count} shots: {len(others)} few-shot examples are available for question {item.id}"
                    f"{f' ({unread} others cannot be read)' if unread else ''}; "
                    "allowed: a `shots_split` with more answered rows about other images, or fewer shots"
                )
            drawn = others[:count] if self.fixed else random.Random(f"{self.seed} {item.id}").sample(others, count)
            unreadable = [i for i in drawn if not self._is_readable(i)]
            if not unreadable:
                return [self.pool[i] for i in drawn]
            others, unread = [i for i in others if i not in unreadable], unread + len(unreadable)

    def _is_readable(self, i: int) -> bool:
        """Whether example i can be read. The result is cached by hash."""
        found = self.readable_by_hash.get(self.digests[i])
        if found is None:
            found = self.readable_by_hash[self.digests[i]] = self.can_read(self.pool[i].medium)
        return found
