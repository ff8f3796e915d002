"""The parts that a model and its training are made of: the whole contract of a plugin, with `part.py` and `values.py`.

Axes, here and everywhere: b batch, n features, e encoder width, k prefix length, t tokens, d language-model width,
v vocabulary, m scored positions.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from .deprecation import RenamedMember
from .errors import PartError
from .part import Module as Module
from .part import Part as Part
from .part import PartConfig as PartConfig
from .values import BatchLayout, Cache, Example, Features, Media, Prediction, Question, SourceState

Sublayer = Literal["attention", "mlp"]
SUBLAYERS: tuple[Sublayer, ...] = ("attention", "mlp")


class Encoder(Module):
    """Raw input to features."""

    kind = "encoder"
    modality: ClassVar[str]
    """What it reads, in one word: "lidar"."""
    dim: int
    """e, set by `__init__`."""
    length: int
    """The largest n, set by `__init__`."""

    @abstractmethod
    def accepts(self, raw: Any) -> bool:
        """Does this value look like one of mine? Cheap; no file is opened."""

    @abstractmethod
    def prepare(self, raw: Any, rng: random.Random | None = None) -> Tensor:
        """One item as a user holds it (at least a `Path`) to model input [...].

        `rng` is given in training alone and is the only source of randomness for augmentation. Raises
        `InputError` that names the item where it cannot be read.
        """

    @abstractmethod
    def dummy_item(self) -> Tensor:
        """A prepared item [...] of zeros, the smallest one: stands in where a batch has none."""

    def max_size_item(self) -> Tensor:
        """A prepared item [...] with `length` features: what a plan is made for."""
        return self.dummy_item()

    def stack(self, items: Sequence[Tensor]) -> Tensor:
        """Prepared items to one model input [b, ...]. Items of unequal size are padded here."""
        return torch.stack(list(items))

    def num_features(self, prepared: Tensor) -> int:
        """How many features this prepared item will have; at most `length`."""
        return self.length

    @abstractmethod
    def forward(self, x: Tensor) -> Features:
        """[b, ...] to features of width e; pooled features are n = 1."""

    blank = RenamedMember("dummy_item")
    largest = RenamedMember("max_size_item")
    size = RenamedMember("num_features")


class Prefix(Module):
    """Features to word-embedding space. Built as `Prefix(config, encoder.dim, encoder.length, lm.dim)`."""

    kind = "prefix"
    length: int
    """k, set by `__init__`: how many positions of the sequence a medium fills at most."""

    @abstractmethod
    def __init__(self, config: PartConfig, encoder_dim: int, encoder_length: int, dim: int) -> None:
        super().__init__(config)

    def num_embeddings(self, features: int) -> int:
        """How many embeddings come out of this many features; at most `length`."""
        return self.length

    @abstractmethod
    def forward(self, features: Features) -> Features:
        """[b, n, e] to [b, k, d]."""

    size = RenamedMember("num_embeddings")


class Adapter(Module):
    """Wraps one frozen sublayer and owns only its own weights. Built as `Adapter(config, lm.dim)`.

    Nothing it does may mix positions: the sublayer alone moves information along t.
    """

    kind = "adapter"
    passes_input_through: ClassVar[bool] = False
    """Does `forward` give the sublayer x itself, once? Then what nobody reads need not be computed."""

    @abstractmethod
    def __init__(self, config: PartConfig, dim: int) -> None:
        super().__init__(config)

    @abstractmethod
    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """x [b, t, d] is what the sublayer would have got; returns what takes the place of its output [b, t, d]."""

    keeps_input = RenamedMember("passes_input_through")


class Head(Module):
    """Takes the place of the language model's own head: hidden states to classes. Built as `Head(config, lm.dim)`.

    It sees the last layer's hidden state of the last token (section 4.1.3 of the paper).
    """

    kind = "head"
    classes: tuple[str, ...]
    """c names, set by `__init__`."""

    @abstractmethod
    def __init__(self, config: PartConfig, dim: int) -> None:
        super().__init__(config)

    @abstractmethod
    def forward(self, hidden: Tensor) -> Tensor:
        """[m, d] to logits [m, c]."""


class FrozenLM(Module):
    """The language model. Its weights never change; adapters may be put around its sublayers."""

    kind = "lm"
    dim: int
    context: int
    vocab: int
    eos: int
    beginning: Sequence[int] = ()
    """Token ids that stand before all that it reads, media included: BOS, where it was trained with one."""
    joins: bool = True
    """Are texts that follow each other tokenized as one? False in checkpoints that were trained otherwise."""

    def __init__(self, config: PartConfig) -> None:
        super().__init__(config)
        self.adapters: dict[Sublayer, list[Adapter]] = {}

    @property
    def num_embeddings(self) -> int:
        """How many tokens it can read: the first of its vocabulary, those that have a word embedding."""
        return self.vocab

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Its blocks, the first one first: what can be recomputed or compiled one by one. None are named by default."""
        return ()

    @property
    def ends(self) -> Collection[int]:
        """Every token that ends an answer; `eos` is the one that it is trained to write."""
        return (self.eos,)

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Tokens that a template may contain, and a text that somebody typed does not: "<|endoftext|>"."""
        return {}

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The token ids of a text that begins a sequence. No token is added, and none is a control token."""

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """Token ids that begin a sequence to text."""

    @cached_property
    def marks_beginning(self) -> bool:
        """Does `encode` put something before a text's first word, such as SentencePiece's space?"""
        return self.encode("x\ny") != self.encode("x\n") + self.encode("y")

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]] | None]:
        """As `encode`, and where each token stands: its first character and the one after its last; None: not known."""
        return self.encode(text), None

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """[b, t] ids to word embeddings [b, t, d]."""

    @abstractmethod
    def add_adapters(self, sublayer: Sublayer, make: Callable[[], Adapter]) -> None:
        """Put a new adapter around this sublayer of every block, first block first, and list them in `adapters`."""

    @abstractmethod
    def remove_adapters(self) -> None:
        """Undo every `add_adapters`: the bare language model is back, bit for bit."""

    @abstractmethod
    def new_cache(self) -> Cache:
        """An empty cache for `forward`, which fills it in place."""

    @abstractmethod
    def forward(self, embeddings: Tensor, layout: BatchLayout, cache: Cache | None = None) -> Tensor:
        """Embeddings [b, t, d] to the last hidden states [m, d] of the scored positions.

        With a cache, the t positions follow the ones that it holds.
        """

    @abstractmethod
    def lm_head(self, hidden: Tensor) -> Tensor:
        """[m, d] hidden states to logits [m, v]."""

    def cross_entropy(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Of hidden states [m, d] and the tokens [m] that follow them: summed, in float32."""
        return nn.functional.cross_entropy(self.lm_head(hidden).float(), labels, reduction="sum")

    def export(self, folder: Path) -> None:
        """Write the bare language model, weights and tokenizer, in its own library's format."""
        raise PartError(f'lm: "{self.name}" cannot be exported: it does not implement `export`')

    def freeze(self) -> None:
        """Freeze everything but the adapters."""
        super().freeze()
        for adapter in self.all_adapters():
            adapter.requires_grad_(not adapter.frozen)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for adapter in self.all_adapters():
            adapter.train(mode)
        return self

    def all_adapters(self) -> list[Adapter]:
        """Every adapter, place by place, first block first."""
        # nn.Module.__init__ may call train() through a subclass before `adapters` is set.
        return [adapter for group in self.__dict__.get("adapters", {}).values() for adapter in group]

    readable = RenamedMember("num_embeddings")
    adapt = RenamedMember("add_adapters")
    head = RenamedMember("lm_head")


class DataSource(Part):
    """Examples, in a deterministic order, from any point. Built as `DataSource(config, seed)`."""

    kind = "data"

    @abstractmethod
    def __init__(self, config: PartConfig, seed: int) -> None:
        self.config = config

    @abstractmethod
    def iterate(self, state: SourceState | None = None) -> Iterator[tuple[Example, SourceState]]:
        """One pass over the data, from the start or from just after `state`.

        Each example comes with the state that goes on behind it. The state of a pass's last example opens the next
        pass (in a new order, where the source shuffles), so that a trainer loops for ever and an evaluation stops.
        A row that cannot be read is an `Example` with a `problem`, in its turn: an exception would end the pass and
        lose its place, and whether the run goes on without the row is the recipe's to say.
        """


class Task(Part):
    """An evaluation. Built as `Task(config, seed)`."""

    kind = "task"
    primary_metric: ClassVar[str]
    """The one of its scores that a table of runs shows first."""
    max_tokens: ClassVar[int] = 16
    """How long an answer may be."""
    stop: ClassVar[tuple[str, ...]] = ()
    """Strings that end an answer; they are not part of it."""
    can_read: Callable[[Media], bool] = staticmethod(lambda _: True)
    """Can the model read this medium? Set by who asks, so that a task can draw other completed examples."""

    @abstractmethod
    def __init__(self, config: PartConfig, seed: int) -> None:
        self.config = config

    @abstractmethod
    def questions(self, split: str, shots: int, seed: int) -> Iterator[Question]:
        """The questions of a split, each behind `shots` completed ones, drawn with `seed`."""

    def follow_up(self, prediction: Prediction) -> Question | None:
        """What to ask next, now that this was answered (multi-step prompting, figure 6 of the paper); None: nothing."""
        return None

    def postprocess(self, question: Question, output: str) -> str:
        """What counts as the answer in all that the model wrote: by default everything."""
        return output

    def score_one(self, prediction: Prediction) -> tuple[str, float] | None:
        """One answer as it was compared, and its score; None where a task scores all of them together alone."""
        return None

    @abstractmethod
    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Named figures of one baseline's predictions."""

    def measures(self, predictions: Sequence[Prediction]) -> dict[str, str]:
        """How `score` measured these, or why a figure says little: a few words for each figure that needs them."""
        return {}

    def artifacts(self, folder: Path, predictions: Sequence[Prediction]) -> list[Path]:
        """Write what a person wants to look at into `folder` and return the files."""
        return []

    primary = RenamedMember("primary_metric")
    examples = RenamedMember("questions")
    extract = RenamedMember("postprocess")
    judge = RenamedMember("score_one")


KINDS: dict[str, type[Part]] = {
    kind.kind: kind for kind in (Encoder, Prefix, Adapter, FrozenLM, Head, DataSource, Task)
}
