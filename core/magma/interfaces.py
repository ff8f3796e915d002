"""The parts of a model and of its training. A plugin author needs only this file and `values.py`.

Axes, here and everywhere: b batch, n features, e encoder width, k prefix length, t tokens, d language-model width,
v vocabulary, m scored positions.
"""

from __future__ import annotations

import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator
from torch import Tensor, nn

from .errors import PartError
from .values import (
    BatchLayout,
    Cache,
    CheckInputs,
    Example,
    Features,
    Media,
    Prediction,
    Question,
    ScoreUnit,
    SourceState,
)

Sublayer = Literal["attention", "mlp"]
SUBLAYERS: tuple[Sublayer, ...] = ("attention", "mlp")


class PartConfig(BaseModel):
    """Base of every part's `Config`: frozen, and a key it does not know is an error.

    TOML has no null: `false` unsets a key whose default is None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    legacy_defaults: ClassVar[Mapping[str, Any]] = {}
    """What keys that were added later stand for in a checkpoint that lacks them, where that is not their default."""
    renamed_keys: ClassVar[Mapping[str, str]] = {}
    """Former to current name of a key. A recipe may still use the former one, with a `DeprecationWarning`."""

    @classmethod
    def rename_keys(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The same values under the current names; of two names of one key, the one that was given last counts."""
        return {cls.renamed_keys.get(key, key): value for key, value in given.items()}

    @model_validator(mode="before")
    @classmethod
    def _false_unsets(cls, given: Any, info: ValidationInfo) -> Any:
        if not isinstance(given, dict):
            return given
        warn = not (info.context or {}).get("checkpoint")  # nobody edits the recipe of a checkpoint
        for key in sorted(given.keys() & cls.renamed_keys.keys()) if warn else ():
            warnings.warn(f"the key `{key}` is now called `{cls.renamed_keys[key]}`", DeprecationWarning, stacklevel=2)
        optional = {
            name
            for name, field in cls.model_fields.items()
            if not field.is_required() and field.default is None and bool not in get_args(field.annotation)
        }
        return {k: v for k, v in cls.rename_keys(given).items() if v is not False or k not in optional}


class Part(ABC):
    """Something a recipe can name.

    A concrete part sets `name`, what a recipe's `use = "..."` says, and a `Config` whose fields are the rest of
    the recipe's table. `kind` is set by the abstract classes below.
    """

    kind: ClassVar[str]
    name: ClassVar[str]
    Config: ClassVar[type[PartConfig]] = PartConfig
    config: PartConfig

    @classmethod
    def problems(cls, config: Any) -> list[str]:
        """What is missing on this machine before `config` can be used (files, packages), without loading anything."""
        return []

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """What to try this part with; files that it needs are written into `folder`. By default: no field set."""
        return CheckInputs()


class Module(Part, nn.Module):
    """A part with weights.

    `__init__` builds the structure and must work under `torch.device("meta")`; `load_weights` then fills in what
    the config names. A frozen module stays in eval mode whatever `train()` is told.
    """

    def __init__(self, config: PartConfig) -> None:
        super().__init__()
        self.config = config
        self.frozen = False

    @classmethod
    def build(cls, *context: Any, **fields: Any) -> Self:
        """A ready instance from config fields, weights loaded: `Lidar.build(width=32)`.

        `context` are the sizes that the class takes after its config, such as a prefix's three.
        """
        part = cls(cls.Config(**fields), *context)
        part.load_weights()
        return part

    def load_weights(self) -> None:  # optional: a part that starts from scratch has nothing to load
        """Load the pretrained weights that the config names. Called once, never on meta."""

    def init_weights(self) -> None:  # optional: most parts leave nothing on meta
        """Called in place of `load_weights` where better weights will follow: fills what `__init__` left on meta."""

    def freeze(self) -> None:
        """No gradient, and eval mode for good."""
        self.frozen = True
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.frozen)


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
    def add_adapters(self, place: Sublayer, make: Callable[[], Adapter]) -> None:
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
        raise PartError(f'lm: "{self.name}" has no format of its own to be written in')

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
        A row that cannot be read is an `Example` with a `problem`; the recipe decides whether to skip it.
        """


class Task(Part):
    """An evaluation. Built as `Task(config, seed)`."""

    kind = "task"
    primary_metric: ClassVar[str]
    """The one of its scores that a table of runs shows first."""
    score_unit: ClassVar[ScoreUnit] = "fraction"
    """Fractions (0 to 1), or percentages (a metric times 100): a table shows one decimal of these, three of those."""
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


KINDS: dict[str, type[Part]] = {
    kind.kind: kind for kind in (Encoder, Prefix, Adapter, FrozenLM, Head, DataSource, Task)
}
