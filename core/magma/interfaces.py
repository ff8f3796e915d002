"""The abstract classes of all parts. With `part.py` and `values.py`, this is the whole contract of a plugin.

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

from .callbacks import Callback as Callback
from .deprecation import RenamedMember
from .errors import PartError
from .part import Module as Module
from .part import Part as Part
from .part import PartConfig as PartConfig
from .values import BatchLayout, Cache, Example, Features, Media, Prediction, Question, ScoreUnit, SourceState, collect
from .values import Prepared as Prepared

Sublayer = Literal["attention", "mlp"]
SUBLAYERS: tuple[Sublayer, ...] = ("attention", "mlp")


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


class Adapter(Module):
    """Wraps one frozen sublayer and owns only its own weights. Built as `Adapter(config, lm.dim)`.

    It must not mix positions: only the sublayer moves information along t.
    """

    kind = "adapter"
    passes_input_through: ClassVar[bool] = False
    """Whether `forward` calls the sublayer exactly once, with x itself. Unused computation can then be skipped."""

    @abstractmethod
    def __init__(self, config: PartConfig, dim: int) -> None:
        super().__init__(config)

    @abstractmethod
    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply the adapter.

        Args:
            x: The input of the sublayer, [b, t, d].
            sublayer: The frozen sublayer, [b, t, d] to [b, t, d].

        Returns:
            The replacement for the sublayer's output, [b, t, d].
        """

    keeps_input = RenamedMember("passes_input_through")


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


class FrozenLM(Module):
    """The language model. Its weights never change; adapters may be added to its sublayers.

    `__init__` sets `dim` (d), `context` (maximum t), `vocab` (v) and `eos` (id of the end-of-text token).
    """

    kind = "lm"
    dim: int
    """Width of the blocks: adapters are built with it."""
    context: int | None
    """Maximum number of positions of a sequence. None: the model has no limit."""
    vocab: int
    eos: int
    beginning: Sequence[int] = ()
    """Token ids before everything, media included: BOS, if the model was trained with it."""
    joins: bool = True
    """Whether adjacent texts are tokenized as one. False in checkpoints that were trained otherwise."""
    packing_problem: str | None = None
    """Why several examples cannot be packed into one row: the end of a message, such as "its recurrent state does not
    restart within a row". A recipe with `train.packing` is then refused. None: they can be packed."""

    def __init__(self, config: PartConfig) -> None:
        super().__init__(config)
        self.adapters: dict[Sublayer, list[Adapter]] = {}

    @property
    def embedding_dim(self) -> int:
        """Width of word embeddings: prefixes are built with it. Default: `dim`."""
        return self.dim

    @property
    def output_dim(self) -> int:
        """Width of what `forward` returns: heads are built with it. Default: `dim`."""
        return self.dim

    @property
    def num_embeddings(self) -> int:
        """Rows of the word embedding: ids from 0 to `num_embeddings` - 1 can be read. Default: `vocab`."""
        return self.vocab

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks in order, for activation checkpointing and compilation. Default: none."""
        return ()

    def site_blocks(self, sublayer: Sublayer) -> int:
        """Number of blocks that have this sublayer, for plans. Default: all `blocks`."""
        return len(self.blocks)

    @property
    def ends(self) -> Collection[int]:
        """Every token that ends an answer. Training uses only `eos`."""
        return (self.eos,)

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Tokens that templates may contain and plain text may not, such as "<|endoftext|>"."""
        return {}

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Tokenize a text at the beginning of a sequence. No token is added, and none is a control token."""

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids at the beginning of a sequence."""

    @cached_property
    def marks_beginning(self) -> bool:
        """Whether `encode` adds something before the first word, such as SentencePiece's space."""
        return self.encode("x\ny") != self.encode("x\n") + self.encode("y")

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]] | None]:
        """As `encode`, with the span of each token: its first character and the one after its last. None: unknown."""
        return self.encode(text), None

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Look up word embeddings [b, t, `embedding_dim`] of token ids [b, t]."""

    @abstractmethod
    def add_adapters(self, sublayer: Sublayer, make: Callable[[], Adapter]) -> None:
        """Add an adapter to every site of a sublayer, in the order of the blocks, and list them in `adapters`.

        A site is one module with this function. Usually every block has one; in hybrid models it exists in some blocks
        only, or several times in a block.

        Args:
            sublayer: "attention" or "mlp".
            make: Makes one adapter; called once for each site.

        Raises:
            PartError: No block has this sublayer, or it has adapters already.
        """

    @abstractmethod
    def remove_adapters(self) -> None:
        """Undo every `add_adapters`: the model without adapters, bit by bit."""

    @abstractmethod
    def new_cache(self) -> Cache:
        """An empty cache for `forward`, which fills it in place."""

    @abstractmethod
    def forward(self, embeddings: Tensor, layout: BatchLayout, cache: Cache | None = None) -> Tensor:
        """Run the blocks.

        Args:
            embeddings: Inputs, [b, t, `embedding_dim`], right-padded.
            layout: Positions, lengths, scored positions and token ids.
            cache: Keys and values of earlier positions, which the t positions follow; it is extended in place.

        Returns:
            Last hidden states [m, `output_dim`] of the scored positions.
        """

    @abstractmethod
    def lm_head(self, hidden: Tensor) -> Tensor:
        """Compute logits [m, v] from hidden states [m, `output_dim`]."""

    def cross_entropy(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of hidden states [m, `output_dim`] and the tokens [m] that follow them: summed, in float32."""
        return nn.functional.cross_entropy(self.lm_head(hidden).float(), labels, reduction="sum")

    def export(self, folder: Path) -> None:
        """Write the language model without adapters, and its tokenizer, in its own library's format."""
        raise PartError(f'lm: "{self.name}" cannot be exported: it does not implement `export`')

    def present_name(self, name: str) -> str:
        """Today's name of a tensor that checkpoints of earlier versions may name otherwise. Default: the same."""
        return name

    def freeze(self) -> None:
        """Freeze everything but the adapters."""
        super().freeze()
        for adapter in self.all_adapters():
            for part in reversed(adapter.all_parts().values()):  # the outer ones first
                part.requires_grad_(not part.frozen)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for adapter in self.all_adapters():
            adapter.train(mode)
        return self

    def all_adapters(self) -> list[Adapter]:
        """Every adapter, sublayer by sublayer, in the order of the blocks."""
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
