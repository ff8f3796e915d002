"""Few-shot examples: which completed questions come before a question."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from magma import InputError, Media, Text

from ..hashing import content_hash


@dataclass(frozen=True)
class TaskItem:
    """What is asked about an image, and what people answered."""

    id: str
    medium: Media
    prompt: Text
    answers: tuple[str, ...]
    group: str

    @property
    def answer(self) -> str:
        """What most of them said; "" where nobody said anything."""
        said = Counter(answer for answer in self.answers if answer)
        return said.most_common(1)[0][0] if said else ""


class ShotPool:
    """Completed examples, and which of them stand before a question.

    None has the question's id, none its medium: neither the same file nor another one with the same bytes.
    """

    def __init__(self, pool: Sequence[TaskItem], seed: int, fixed: bool, can_read: Callable[[Media], bool]) -> None:
        self.pool, self.seed, self.fixed, self.can_read = sorted(pool, key=lambda one: one.id), seed, fixed, can_read
        random.Random(f"{seed}").shuffle(self.pool)  # a small split is drawn from alike in every layout
        self.digests = [content_hash(one.medium.value) for one in self.pool]
        self.readable: dict[str, bool] = {}
        """Of the media that were drawn so far."""

    def draw(self, asked: TaskItem, count: int) -> list[TaskItem]:
        """`count` of them; where some of them cannot be read, all are drawn again without those."""
        if not count:
            return []
        own = content_hash(asked.medium.value)
        others = [i for i, one in enumerate(self.pool) if self.digests[i] != own and one.id != asked.id]
        unread = 0
        while True:
            if len(others) < count:
                raise InputError(
                    f"{count} shots: {len(others)} completed examples can stand before question {asked.id}"
                    f"{f' ({unread} others cannot be read)' if unread else ''}; "
                    "allowed: a `shots_split` with more answered rows about other images, or fewer shots"
                )
            drawn = others[:count] if self.fixed else random.Random(f"{self.seed} {asked.id}").sample(others, count)
            lost = [i for i in drawn if not self._check(i)]
            if not lost:
                return [self.pool[i] for i in drawn]
            others, unread = [i for i in others if i not in lost], unread + len(lost)

    def _check(self, i: int) -> bool:
        """Can this one be read? Each medium is read once for this."""
        found = self.readable.get(self.digests[i])
        if found is None:
            found = self.readable[self.digests[i]] = self.can_read(self.pool[i].medium)
        return found
