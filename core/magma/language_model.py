"""The base class of language models.

Axes: b batch, t tokens, d language-model width, v vocabulary, m scored positions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

from torch import Tensor, nn

from .adapters import Adapter, AdapterState, make_adapter
from .deprecation import RenamedMember, renamed_arguments
from .errors import PartError
from .merging import PlacedAdapter, merge
from .meta import RunOnMeta
from .part import Module, PartConfig
from .sites import SUBLAYERS, Site, choose_blocks, match_sites, table_name_problem
from .values import BatchLayout, Cache


class FrozenLM(Module):
    """The language model. Its weights never change; adapters may be added to its sites.

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
        self.adapters: dict[str, list[Adapter]] = {}
        """The adapters of each table, by its name."""
        self.adapter_sites: dict[str, list[Site]] = {}
        """The sites of these adapters."""
        self.adapter_state = AdapterState()
        self._detach: list[Callable[[], None]] = []

    def __call__(self, embeddings: Tensor, layout: BatchLayout, cache: Cache | None = None) -> Tensor:
        """Run `forward`; adapters get the context of the layout meanwhile."""
        with self.adapter_state.use(layout.context, self.adapter_state.disabled):
            out: Tensor = super().__call__(embeddings, layout, cache)
        return out

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

    def sites(self) -> Sequence[Site]:
        """Every place where an adapter can act: "attention", "mlp", "block", and the linear layers of each block.

        The same objects each time, in the order of the blocks for each path. A class without this method, and with its
        own `add_adapters` and `remove_adapters`, only has adapters around all attention or all feed-forward sublayers.
        """
        return ()

    def site_blocks(self, sublayer: str) -> int:
        """Number of blocks that have this site, for plans. Default: as `sites` lists them, otherwise all `blocks`."""
        sites = self.sites()
        return len({site.block for site in sites if site.path == sublayer}) if sites else len(self.blocks)

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

    def attach_adapter(self, site: Site, adapter: Adapter, name: str) -> Callable[[], None]:
        """Put an adapter around a site. A site may get several: each one wraps those before it.

        Args:
            site: One of `sites()`.
            adapter: The adapter. It is called as `adapter(x, sublayer)`; the rest is done by its class.
            name: The name of the adapter as a submodule of the site, by which checkpoints know its tensors.

        Returns:
            A function that removes it. It is called in the reverse order.
        """
        raise PartError(f'lm: "{self.name}" takes no adapters: it does not implement `attach_adapter`')

    @renamed_arguments(sublayer="site")
    def add_adapters(
        self,
        site: str,
        make: Callable[..., Adapter],
        blocks: str | Sequence[int] | None = None,
        *,
        name: str | None = None,
        only_with: Sequence[str] = (),
    ) -> None:
        """Add an adapter to every site that is meant, and list them in `adapters`.

        A site is one module with this function. Usually every block has one; in hybrid models it exists in some blocks
        only, or several times in a block. An adapter wraps those that were added to its site before it. An adapter of a
        linear layer acts inside those of the sublayer, and these inside those of the block.

        Args:
            site: "attention", "mlp", "block", "linears" (all linear layers), the path of a linear layer within a block,
                or a glob over these paths.
            make: Makes one adapter. It is called with the `Site` if it requires an argument, otherwise without one.
            blocks: Indices of blocks, or "all", "first 6", "last 6" or "every 4". None: all.
            name: The table of the adapters. Default: `site`.
            only_with: Inputs. The adapters act only on sequences (rows, or the sequences of packed rows) that have one
                of them, at all positions; all other sequences are computed as without the adapters, bit by bit. A
                batch without such a sequence does not run them. Empty: they act on all sequences.

        Raises:
            PartError: Nothing is meant, an adapter cannot act there, or the table has adapters there already.
        """
        name = site if name is None else name
        try:
            if problem := table_name_problem(name):
                raise PartError(f"given {name!r} as the name of the table; allowed: {problem}")
            found = self._find_sites(name, site, blocks)
            if any(one is other for one in found for other in self.adapter_sites.get(name, ())):
                raise PartError("this language model already has adapters there; call remove_adapters() first")
            with RunOnMeta():  # what a site knows may come from a run of a language model on meta
                made = [_make_at(make, one, site) for one in found]
            for one, adapter in zip(found, made, strict=True):
                adapter.join(name, self.adapter_state, only_with)
                self._detach.append(self.attach_adapter(one, adapter, _module_name(one, name)))
                self.adapters.setdefault(name, []).append(adapter)
                self.adapter_sites.setdefault(name, []).append(one)
        except PartError as error:
            path = f"adapters.{name}"
            raise error if str(error).startswith(path) else PartError(f"{path}: {error}") from error

    def _find_sites(self, name: str, site: str, blocks: str | Sequence[int] | None) -> list[Site]:
        """The sites that a table means. Raises `PartError`, which names the key of the table."""
        path = f"adapters.{name}"
        try:
            everywhere = match_sites(self.sites(), site)
        except PartError as error:
            default = f'not given, so it is "{site}", the name of the table'
            problem = str(error).replace(f'given "{site}"', default, 1) if site == name else str(error)
            raise PartError(f"{path}.at: {problem}") from error
        if blocks is None:
            return everywhere
        try:
            return match_sites(everywhere, site, choose_blocks(blocks, len(self.blocks)))
        except PartError as error:
            raise PartError(f"{path}.blocks: {error}") from error

    def remove_adapters(self) -> None:
        """Undo every `add_adapters`: the model without adapters, bit by bit."""
        for detach in reversed(self._detach):
            detach()
        self._detach, self.adapters, self.adapter_sites = [], {}, {}

    def merge_adapters(self) -> None:
        """Fold every adapter into the weights of the linear layer that it wraps, then remove all adapters.

        The outputs stay the same up to rounding. The weights are no longer those that the model was loaded with.

        Raises:
            PartError: An adapter cannot be folded; nothing has changed then. The message names its table.
        """
        placed = [
            PlacedAdapter(table, site, adapter)
            for table, adapters in self.adapters.items()
            for site, adapter in zip(
                self.adapter_sites.get(table) or [adapter.site for adapter in adapters], adapters, strict=True
            )
        ]
        merge(self, placed)
        self.remove_adapters()

    @property
    def uses_context(self) -> bool:
        """Whether an adapter uses the context of its positions."""
        return any(adapter.uses_context for adapter in self.all_adapters())

    @property
    def adapter_inputs(self) -> frozenset[str]:
        """The inputs that decide which sequences adapters act on: those in `only_with` of any adapter."""
        return frozenset(name for adapter in self.all_adapters() for name in adapter.only_with)

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

    def exported_path(self, site: Site) -> str:
        """Path of a site's linear layer in the model that `export` writes; other libraries know it by this name."""
        raise PartError(f'lm: "{self.name}" has no paths of exported modules: it does not implement `exported_path`')

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
        """Every adapter, table by table, in the order of the blocks."""
        # nn.Module.__init__ may call train() through a subclass before `adapters` is set.
        return [adapter for group in self.__dict__.get("adapters", {}).values() for adapter in group]

    readable = RenamedMember("num_embeddings")
    adapt = RenamedMember("add_adapters")
    head = RenamedMember("lm_head")


def _make_at(make: Callable[..., Adapter], site: Site, at: str) -> Adapter:
    """An adapter for one of the sites that `at` means. Raises `PartError`, which names both if they differ."""
    try:
        return make_adapter(make, site)
    except PartError as error:
        if at == site.path:
            raise
        raise PartError(f'{error}. The table has at = "{at}", which means {site.path} and others like it') from error


def _module_name(site: Site, table: str) -> str:
    """The name of an adapter as a submodule. That of a sublayer's own table is older than other tables."""
    return "adapter" if site.path == table and table in SUBLAYERS else f"adapter_{table}"
