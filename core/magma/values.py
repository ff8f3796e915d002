"""What parts exchange: segments of a prompt, examples, features, layouts of batches, questions and answers.

Axes, here and everywhere: b batch, n features, e encoder width, k prefix length, t tokens, d language-model width,
m scored positions.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Text:
    """A stretch of text. Nothing is put between segments: a following word brings its own leading space."""

    text: str
    target: bool = False
    """The model is trained to say this."""
    control: tuple[tuple[int, int], ...] = field(default=(), compare=False)
    """Stretches (first character, and the one after the last) that may hold control tokens, as a template's do."""

    @classmethod
    def fill(cls, template: str, **values: str) -> Text:
        """A template with each `{name}` replaced. The template may hold control tokens, the values are plain text."""
        names = "|".join(map(re.escape, values)) or "(?!)"
        text, control, at = "", [], 0
        for found in re.finditer(rf"\{{({names})\}}", template):
            control.append((len(text), len(text) + found.start() - at))
            text += template[at : found.start()] + values[found.group(1)]
            at = found.end()
        control.append((len(text), len(text) + len(template) - at))
        text += template[at:]
        return cls(text, control=tuple((start, end) for start, end in control if end > start))

    def __add__(self, other: Text) -> Text:
        """One text of both, a target if the first is one."""
        moved = ((start + len(self.text), end + len(self.text)) for start, end in other.control)
        return Text(self.text + other.text, self.target, (*self.control, *moved))


@dataclass(frozen=True)
class Tokens:
    """A stretch of token ids [n], for who has them already."""

    ids: Tensor
    target: bool = False


@dataclass(frozen=True)
class Media:
    """A value for the input called `name`: raw, as its encoder's `prepare` takes it, or prepared."""

    name: str
    value: Any
    where: str = field(default="", compare=False)
    """For errors: where it is from, if the value itself does not say it."""


Segment = Text | Tokens | Media


@dataclass(frozen=True)
class Example:
    """Segments in order, any number of each. `name` is how errors speak of it."""

    segments: Sequence[Segment]
    name: str = "example"
    label: str | None = None
    """Its class, for a model that classifies."""
    problem: str | None = None
    """Why its row cannot be read: a source gives it in its turn, without segments, and the recipe says what then."""


class Features(NamedTuple):
    """What flows from encoder to prefix to language model. A tuple: ZeRO-3 looks for tensors in those."""

    values: Tensor
    """[b, n, e] from an encoder, [b, k, d] from a prefix."""
    lengths: Tensor | None = None
    """[b]: how many of the n are real, the rest is padding; None: all are."""


@dataclass(frozen=True)
class BatchLayout:
    """Where everything stands in a right-padded batch of embeddings [b, t, d]."""

    positions: Tensor
    """[b, t] position of each token in its own sequence, for position embeddings."""
    lengths: Tensor
    """[b] real positions in each row; the rest is padding that nothing attends to."""
    scored: Tensor
    """[m] flat indices (row * t + column) of the positions whose hidden states are wanted."""
    first: int = 0
    """No column before this one is scored."""
    segments: Tensor | None = None
    """[b, t] which packed example a position belongs to; it attends to its own alone. None: one example a row."""


class Cache(ABC):
    """Keys and values of what a language model has read, with two verbs: one prefix for many, and rows."""

    @abstractmethod
    def expand(self, repeats: int) -> Cache:
        """A cache in which each row stands `repeats` times in a row: one medium, many questions."""

    @abstractmethod
    def select(self, rows: Tensor) -> Cache:
        """A cache of these rows [b'] alone: finished ones leave the batch."""


@dataclass
class Question:
    """One thing to ask a model in an evaluation."""

    id: str
    segments: Sequence[Segment | Any]
    """The prompt, as `Magma.generate` takes it."""
    answer: str
    group: str = ""
    """Which of the task's figures it counts for."""
    extra: dict[str, Any] = field(default_factory=dict)
    """JSON that `score` and `artifacts` want to see again."""
    answers: Sequence[str] = ()
    """Several people's answers, where a task has those; `answer` alone where it is empty."""
    shots: Sequence[str] = ()
    """Which completed examples stand before it."""
    shot_lengths: Sequence[int] = ()
    """How many segments each completed example has, from the first segment on. Where this is given, a question that is
    too long can be asked with fewer of them. Each has equally many entries in `shots`."""


@dataclass
class Prediction:
    """A question with what the model answered."""

    question: Question
    text: str
    """What counts as its answer."""
    baseline: str = ""
    """"" for the model itself; "shuffled": media permuted among the questions; "blind": media taken away."""
    output: str = ""
    """All that it wrote."""
    problem: str = ""
    """Why the question could not be asked: a medium of it cannot be read. It counts as wrong; `text` is empty."""
    dropped_shots: int = 0
    """Completed examples that were left out because the question does not fit with all of them."""


@dataclass(frozen=True)
class CheckInputs:
    """What a part is tried with by `magma plugin check` and `magma.testing`."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a small configuration."""
    good: Sequence[Any] = ()
    """Raw inputs of an encoder: two or more that differ."""
    bad: Sequence[Any] = ()
    """Raw inputs that an encoder refuses."""


ScoreUnit = Literal["fraction", "percent"]
"""Of a task's scores: fractions (0 to 1), or percentages (0 to 100, or a metric times 100)."""
SourceState = dict[str, Any]
"""Where a data source stands: JSON, made by the source and handed back to it."""
