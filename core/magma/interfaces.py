"""The abstract classes of all parts. Those of adapters and language models are in files of their own.

With `part.py` and `values.py`, this is the whole contract of a plugin.

Axes, here and everywhere: b batch, n features, e encoder width, k prefix length, t tokens, d language-model width,
v vocabulary, m scored positions.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from .adapters import Adapter as Adapter
from .callbacks import Callback as Callback
from .deprecation import RenamedMember
from .language_model import FrozenLM as FrozenLM
from .part import Module as Module
from .part import Part as Part
from .part import PartConfig as PartConfig
from .sites import SUBLAYERS as SUBLAYERS
from .sites import Sublayer as Sublayer
from .values import Example, Features, Media, Prediction, Question, ScoreUnit, SourceState, collect
from .values import Prepared as Prepared


class Encoder(Module):
    """Raw input to features."""

    kind = "encoder"
    modality: ClassVar[str]
    """The modality that it reads, in one word: "lidar"."""
    dim: int
    """e, the width of a feature; set by `__init__`."""
    length: int
    """Maximum n; set by `__init__`."""

    @abstractmethod
    def accepts(self, raw: Any) -> bool:
        """Whether `raw` looks like an input of this encoder. It has to be cheap; no file is opened."""

    @abstractmethod
    def prepare(self, raw: Any, rng: random.Random | None = None) -> Prepared:
        """Read one item.

        Args:
            raw: The item as a user has it: a `Path` or `bytes` from data files, anything else from Python code.
            rng: Given only in training; the only source of randomness for augmentation.

        Returns:
            The prepared item [...], which `stack` accepts: a tensor. An encoder that contains others may return a tuple
            with what each of them prepares.

        Raises:
            InputError: The item cannot be read. The message names it.
        """

    @classmethod
    def augments(cls, config: Any) -> bool:
        """Whether `prepare` draws from `rng` with this config, as augmentation and random crops do. Default: no.

        The features of such an encoder differ each time, so they cannot be cached.
        """
        return False

    @abstractmethod
    def dummy_item(self) -> Prepared:
        """The smallest prepared item [...], of zeros: it is used for a batch that lacks this input."""

    def max_size_item(self) -> Prepared:
        """A prepared item [...] with `length` features, of which a plan computes the costs. Default: `dummy_item()`."""
        return self.dummy_item()

    def stack(self, items: Sequence[Prepared]) -> Prepared:
        """Stack prepared items to one model input [b, ...]. Items of unequal size have to be padded here."""
        return torch.stack(list(items))

    def num_features(self, prepared: Prepared) -> int:
        """Number of features of a prepared item, at most `length`. Default: `length`."""
        return self.length

    @abstractmethod
    def forward(self, x: Prepared) -> Features:
        """Encode inputs [b, ...] to features [b, n, e]; pooled features have n = 1."""

    blank = RenamedMember("dummy_item")
    largest = RenamedMember("max_size_item")
    size = RenamedMember("num_features")


class Prefix(Module):
    """Features to word-embedding space. Built as `Prefix(config, encoder.dim, encoder.length, lm.embedding_dim)`."""

    kind = "prefix"
    length: int
    """Maximum k, the number of positions that one medium takes; set by `__init__`."""

    @abstractmethod
    def __init__(self, config: PartConfig, encoder_dim: int, encoder_length: int, dim: int) -> None:
        super().__init__(config)

    def num_embeddings(self, features: int) -> int:
        """Number of embeddings for `features` features, at most `length`. Default: `length`."""
        return self.length

    @abstractmethod
    def forward(self, features: Features) -> Features:
        """Map features [b, n, e] to embeddings [b, k, d]. Padding (`features.lengths`) must not be read."""

    size = RenamedMember("num_embeddings")


class Head(Module):
    """Replaces the language model's own head: hidden states to classes. Built as `Head(config, lm.output_dim)`.

    Its input is the last layer's hidden state of the last token (section 4.1.3 of the paper).
    """

    kind = "head"
    classes: tuple[str, ...]
    """The c names of the classes; set by `__init__`."""

    @abstractmethod
    def __init__(self, config: PartConfig, dim: int) -> None:
        super().__init__(config)

    @abstractmethod
    def forward(self, hidden: Tensor) -> Tensor:
        """Compute logits [m, c] from hidden states [m, d]."""


class DataSource(Part):
    """Examples, in a deterministic order, from any point. Built as `DataSource(config, seed)`."""

    kind = "data"

    @abstractmethod
    def __init__(self, config: PartConfig, seed: int) -> None:
        self.config = config

    @abstractmethod
    def iterate(self, state: SourceState | None = None) -> Iterator[tuple[Example, SourceState]]:
        """One epoch over the data.

        Args:
            state: Resume after the example that came with this state. None: start at the beginning.

        Yields:
            An example and the state to resume after it. The state after the last example starts the next epoch, in a
            new order if the source shuffles. An unreadable row is yielded as an `Example` with a `problem`: an
            exception would end the epoch, and the recipe decides whether to skip the row.
        """


class Task(Part):
    """An evaluation. Built as `Task(config, seed)`."""

    kind = "task"
    primary_metric: ClassVar[str]
    """The score that tables of runs show first."""
    score_unit: ClassVar[ScoreUnit] = "fraction"
    """Fractions (0 to 1), shown with three decimals, or percentages (a metric times 100), shown with one."""
    max_tokens: ClassVar[int] = 16
    """Maximum length of an answer in tokens."""
    stop: ClassVar[tuple[str, ...]] = ()
    """Strings that end an answer. They are not part of it."""
    can_read: Callable[[Media], bool] = staticmethod(lambda _: True)
    """Whether the model can read a medium. Set by the evaluation, so that a task can draw other in-context examples."""

    @abstractmethod
    def __init__(self, config: PartConfig, seed: int) -> None:
        self.config = config

    @abstractmethod
    def questions(self, split: str, shots: int, seed: int) -> Iterator[Question]:
        """The questions of a split, each after `shots` in-context examples that are drawn with `seed`."""

    def follow_up(self, prediction: Prediction) -> Question | None:
        """The next question after this answer (multi-step prompting, figure 6 of the paper). None: there is none."""
        return None

    def postprocess(self, question: Question, output: str) -> str:
        """The part of the model's output that counts as the answer. Default: all of it."""
        return output

    def score_one(self, prediction: Prediction) -> tuple[str, float] | None:
        """The answer as it is compared, and its score. None: the metric is defined only for all answers together."""
        return None

    def item_scores(self, prediction: Prediction) -> dict[str, float]:
        """What one answer contributes to scores that are means over answers, by name. They get confidence intervals."""
        return {}

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Scores of all predictions of the model or of one control, by name. Default: the means of `item_scores`."""
        found = collect(map(self.item_scores, predictions))
        return {name: sum(values) / len(values) for name, values in found.items()}

    def measures(self, predictions: Sequence[Prediction]) -> dict[str, str]:
        """A few words about a score that needs them: how it was measured, or its limits. Default: none."""
        return {}

    def artifacts(self, folder: Path, predictions: Sequence[Prediction]) -> list[Path]:
        """Write files to look at, such as plots, into `folder` and return their paths. Default: none."""
        return []

    primary = RenamedMember("primary_metric")
    examples = RenamedMember("questions")
    extract = RenamedMember("postprocess")
    judge = RenamedMember("score_one")


KINDS: dict[str, type[Part]] = {
    kind.kind: kind for kind in (Encoder, Prefix, Adapter, FrozenLM, Head, DataSource, Task, Callback)
}
