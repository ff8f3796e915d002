"""Values that parts exchange: segments of a prompt, examples, features, layouts of batches, questions, answers.

Axes, here and everywhere: b batch, n features, e encoder width, k prefix length, t tokens, d language-model width,
m scored positions.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor

from .context import Context
from .deprecation import RenamedMember, renamed_arguments


@dataclass(frozen=True)
class Text:
    """A piece of text. No separator is added between segments: write the leading space of a following word."""

    text: str
    target: bool = False
    """Whether the model is trained to generate it."""
    control: tuple[tuple[int, int], ...] = field(default=(), compare=False)
    """Spans (first character, and the one after the last) that may contain control tokens, as templates do."""

    @classmethod
    def fill(cls, template: str, **values: str) -> Text:
        """Fill in a template: each `{name}` is replaced by its value.

        Args:
            template: Text that may contain control tokens.
            values: Plain text by name; control tokens in it are tokenized as ordinary characters.
        """
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
        """Both texts as one, which is a target if the first one is."""
        moved = ((start + len(self.text), end + len(self.text)) for start, end in other.control)
        return Text(self.text + other.text, self.target, (*self.control, *moved))


@dataclass(frozen=True)
class Tokens:
    """A piece of text as token ids [n]."""

    ids: Tensor
    target: bool = False


@dataclass(frozen=True)
class Media:
    """A value for the input `name`: raw, as the encoder's `prepare` accepts it, or prepared."""

    name: str
    value: Any
    where: str = field(default="", compare=False)
    """Origin for error messages, if the value itself does not show it."""


Segment = Text | Tokens | Media


@dataclass(frozen=True)
class Example:
    """Segments in order, any number of each kind. Error messages use `name`."""

    segments: Sequence[Segment]
    name: str = "example"
    label: str | None = None
    """Its class, for a model with a classification head."""
    problem: str | None = None
    """Why its row cannot be read. Such an example has no segments; the recipe decides whether to skip it."""


Prepared = Any
"""A prepared item, or several in a batch: a tensor, or a tuple of them, which may be tuples again.

It is `Any` for type checkers, so that an encoder may declare the one that it has.
"""


class Features(NamedTuple):
    """Output of an encoder or a prefix. It is a tuple because ZeRO-3 finds tensors only in tuples."""

    values: Tensor
    """[b, n, e] from an encoder, [b, k, d] from a prefix."""
    lengths: Tensor | None = None
    """[b], the number of real features of each item; the rest is padding. None: there is no padding."""


@renamed_arguments(first="first_scored", segments="sequence_ids")
@dataclass(frozen=True)
class BatchLayout:
    """Positions and lengths of a right-padded batch of embeddings [b, t, d]."""

    positions: Tensor
    """[b, t], the position of each token in its sequence, for position embeddings."""
    lengths: Tensor
    """[b], the number of real positions of each row; nothing attends to the padding after them."""
    scored: Tensor
    """[m], flat indices (row * t + column) of the positions whose hidden states are needed."""
    first_scored: int = 0
    """The first column that may contain a scored position."""
    sequence_ids: Tensor | None = None
    """[b, t], the packed example of each position; attention does not cross examples. None: one example a row."""
    token_ids: Tensor | None = None
    """[b, t], the token id of each position, for language models that look up more than `embed` gives. Media and
    padding have id 0. None: unknown."""
    context: Context | None = None
    """For adapters that use it: the inputs of the positions, and the media before them. None: there are no media. A
    language model that computes other rows or columns runs its blocks with their context, in `adapter_state.use`."""

    first = RenamedMember("first_scored")
    segments = RenamedMember("sequence_ids")


class Cache(ABC):
    """The KV cache of a language model."""

    @abstractmethod
    def expand(self, repeats: int) -> Cache:
        """A cache with each row repeated `repeats` times, adjacent: one medium, several questions."""

    @abstractmethod
    def select(self, rows: Tensor) -> Cache:
        """A cache of only these rows [b'], for a batch without its finished rows."""


@dataclass
class Question:
    """One question of an evaluation."""

    id: str
    segments: Sequence[Segment | Any]
    """The prompt, as `Magma.generate` accepts it."""
    answer: str
    group: str = ""
    """The group of scores that it counts for."""
    extra: dict[str, Any] = field(default_factory=dict)
    """JSON that is passed on to `score` and `artifacts`."""
    answers: Sequence[str] = ()
    """Answers of several annotators, if the task has them. Empty: only `answer` counts."""
    shots: Sequence[str] = ()
    """Ids of the in-context examples before it."""
    shot_lengths: Sequence[int] = ()
    """Number of segments of each in-context example, in order. If it is given, a question that is too long can be asked
    with fewer examples. All examples have the same number of entries in `shots`."""
    continuation: str | None = None
    """A text after the prompt whose log-likelihood is measured. None: the model writes an answer."""


@dataclass
class Prediction:
    """A question with what the model answered."""

    question: Question
    text: str
    """The answer that counts."""
    baseline: str = ""
    """"": the model itself. "shuffled": media permuted among the questions. "blind": without media."""
    output: str = ""
    """The whole output of the model."""
    problem: str = ""
    """Why the question could not be asked: a medium is unreadable. It counts as wrong, and `text` is empty."""
    dropped_shots: int = 0
    """Number of in-context examples that were left out because the question does not fit with all of them."""
    log_likelihood: float | None = None
    """Of the question's `continuation`: the sum over its tokens in nats. None: the model wrote an answer."""
    num_tokens: int = 0
    """Number of tokens of the `continuation`."""
    uses_media: bool = True
    """Whether there was a medium in the question, or in one of the questions before a follow-up. Without, the controls
    have the answers of the model itself."""


@dataclass(frozen=True)
class CheckInputs:
    """Configuration and inputs with which `magma plugin check` and `magma.testing` check a part."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """Keys of a small configuration."""
    good: Sequence[Any] = ()
    """Raw inputs that an encoder accepts: at least two different ones. Of a prefix: two numbers of features that it
    accepts; it is built for the larger one. Default: 5 and 3."""
    bad: Sequence[Any] = ()
    """Raw inputs for which an encoder raises `InputError`. Of a prefix: numbers of features for which `num_embeddings`
    does."""
    widths: tuple[int, int] | None = None
    """Of a prefix: the width of the features and that of the embeddings. Default: it is built for any widths."""


def collect(items: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    """All values of each name, in order."""
    found: dict[str, list[float]] = {}
    for item in items:
        for name, value in item.items():
            found.setdefault(name, []).append(value)
    return found


ScoreUnit = Literal["fraction", "percent"]
"""Of a task's scores: fractions (0 to 1), or percentages (0 to 100, or a metric times 100)."""
SourceState = dict[str, Any]
"""Position of a data source: JSON that the source makes and gets back to resume."""


def map_tensors(change: Callable[[Tensor], Tensor], value: Prepared) -> Prepared:
    """The same tensor or tuples with every tensor changed."""
    return tuple(map_tensors(change, one) for one in value) if isinstance(value, tuple) else change(value)


def tensors_in(value: Prepared) -> list[Tensor]:
    """The tensors of a prepared item or a batch of them, in order."""
    return [tensor for one in value for tensor in tensors_in(one)] if isinstance(value, tuple) else [value]
