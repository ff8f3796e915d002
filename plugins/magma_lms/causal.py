"""Causal language models of transformers as frozen language models.

Axes: b batch, t tokens, p columns of the cache, d width, v vocabulary, m scored positions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from magma import (
    Adapter,
    BatchLayout,
    Cache,
    CheckInputs,
    Context,
    LocalPath,
    PartConfig,
    PartError,
    Site,
    Weights,
    did_you_mean,
)

from .attaching import attach
from .companions import Companions
from .decoder import Decoder, Head
from .decoding import ChosenCache, DecodingMode, LibraryCache
from .discovery import discover, prove
from .fast.attention import FastAttention
from .fast.cross_entropy import chunked_cross_entropy
from .fast.decoder import speed_up
from .fast.scored_columns import ScoredColumns, find_column_wise
from .fused_head import FusedHead, is_linear
from .loading import read_architecture
from .packing import unpack
from .placed_sites import PlacedSite, placed_sites
from .quantization import Quantize
from .structure import probe_ids
from .tokenization import Bos
from .tracing import first_tensor, trace
from .transformers_lm import TransformersLM
from .weights import WEIGHT_FILES, Source, describe_error, find_problems


class Causal(TransformersLM):
    """Any causal language model of transformers."""

    name = "causal"

    class Config(PartConfig):
        """Either pretrained `weights`, or an `architecture` with random weights."""

        weights: Weights | None = None
        """A hub name, a folder in transformers' format, a GGUF file, `"package:NAME"` or `"bundled:tiny"`."""
        architecture: dict[str, Any] | None = None
        """For random weights: fields of a transformers configuration, with its `model_type`."""
        tokenizer: Weights | None = None
        """A hub name, a folder or a GGUF file. Default: `weights`."""
        revision: str | None = None
        """Branch, tag or commit of the hub name in `weights`. Default: its main branch."""
        cache_dir: LocalPath | None = None
        """Folder of downloaded files. Default: that of `huggingface_hub`."""
        remote_code: bool = False
        """Whether Python code that comes with the weights is run. Only for code that you trust."""
        quantize: Quantize | None = None
        """Hold the matrices of the frozen blocks in 4 bits (`"nf4"`) or 8 bits (`"int8"`). Default: not quantized."""
        bos: Bos = "auto"
        """Whether BOS is put before everything, media included. `"auto"`: as the tokenizer itself does it."""

        @model_validator(mode="after")
        def _one_source(self) -> Self:
            if (self.weights is None) == (self.architecture is None):
                raise ValueError("either `weights` (a hub name or folder) or `architecture` (a table with model_type)")
            if self.weights is None and (self.revision or self.quantize):
                raise ValueError("`revision` and `quantize` only together with `weights`")
            if self.architecture is not None and not isinstance(self.architecture.get("model_type"), str):
                raise ValueError('an architecture with a model_type of transformers, such as "llama"')
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        source = _source(config)
        custom = config.architecture
        architecture = read_architecture(source) if custom is None else _custom_architecture(custom)
        super().__init__(config, source, architecture, config.bos)
        self.structure = discover(source, architecture, self.model)
        self.dim = self.structure.dim
        self.context = _context(architecture, self.structure.mode.offset or 0)
        self._columns = ScoredColumns([])
        self._connect()

    def load_weights(self) -> None:
        """Load the weights, or draw random ones, and show with a few tokens that they are used as in transformers.

        Raises:
            PartError: The weights cannot be loaded, or a result differs from that of transformers.
        """
        super().load_weights()
        self._connect()
        prove(self.model, self.structure)
        with torch.random.fork_rng(devices=[]):
            self._use_faster_modules()

    def _use_faster_modules(self) -> None:
        speed_up(self._decoder.module, self._probe)
        head = self.model.get_output_embeddings()
        if is_linear(self._head, head, self.output_dim):
            FusedHead.replace(head)
        exclude = list(self._unknown_columns())
        self._columns = ScoredColumns(find_column_wise(self.blocks[-1], self._probe, first=3, exclude=exclude))

    def _unknown_columns(self) -> Iterator[nn.Module]:
        """Modules that a few tokens do not show to be independent of other columns, or that belong to a span.

        Attention may select or compress positions, which only many tokens show. Its last projection does not.
        """
        calls = {call.module: call for call in trace(self.model, self._probe).everything_inside()}
        for place in self.structure.sublayers:
            entry, end = (self.model.get_submodule(path) for path in (place.entry, place.exit))
            if place.path == "attention" and not isinstance(entry, FastAttention) and entry in calls:
                output = first_tensor(calls[entry].output)
                last = [call.module for call in calls[entry].inner if first_tensor(call.output) is output]
                yield from (module for module in entry.modules() if module not in last)
            if place.is_span:
                yield from (entry, end)

    def _probe(self) -> Tensor:
        """Hidden states [2, 7, d] of a few words."""
        device = self.model.get_input_embeddings().weight.device
        ids = probe_ids(self.model, rows=2, columns=7).to(device)
        return self._decoder(self.embed(ids), ids)

    def _connect(self) -> None:
        """Use the decoder and the head of the present model."""
        self._decoder = Decoder(self.model, self.structure.decoder, self.structure.by_ids, self._use_context)
        self._sites = placed_sites(self.model, self.structure, self._probe)
        self._head = Head(self.model, self.structure.decoder, self.structure.output)

    def _use_context(self, context: Context | None) -> AbstractContextManager[None]:
        """Adapters get the context of what the decoder computes."""
        return self.adapter_state.use(context, self.adapter_state.disabled)

    @property
    def embedding_dim(self) -> int:
        """Width of word embeddings."""
        return self.structure.embedding_dim

    @property
    def output_dim(self) -> int:
        """Width of what `forward` returns."""
        return self.structure.output_dim

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks, in order."""
        return [self.model.get_submodule(path) for path in self.structure.blocks]

    def sites(self) -> Sequence[Site]:
        """The sublayers, the blocks and their linear layers."""
        return self._sites

    def lm_head(self, hidden: Tensor) -> Tensor:
        """Hidden states [m, d] to logits [m, v]."""
        head = self.model.get_output_embeddings()
        logits: Tensor = head(hidden) if isinstance(head, FusedHead) else self._head(hidden)
        return logits

    def cross_entropy(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Hidden states [m, d] and labels [m] to the summed cross-entropy, in float32."""
        head = self.model.get_output_embeddings()
        if isinstance(head, FusedHead):
            loss: Tensor = head(hidden, labels)
            return loss
        return chunked_cross_entropy(self._head, hidden, labels, self.vocab)

    def attach_adapter(self, site: Site, adapter: Adapter, name: str) -> Callable[[], None]:
        """Put an adapter around a site. Raises `PartError`."""
        assert isinstance(site, PlacedSite)
        place = site.place
        if (adapter.uses_context or adapter.only_with) and not place.rows_first:
            raise PartError(
                f"{type(adapter).__name__} uses the context or has `only_with`, but this language model computes "
                "positions in another order; allowed: adapters without both"
            )
        detach = attach(self.model, place, adapter, name)
        self._columns.add_adapter(self.model.get_submodule(place.entry), adapter)
        return detach

    def new_cache(self) -> LibraryCache:
        """An empty cache."""
        linear = any(site.linear is not None for sites in self.adapter_sites.values() for site in sites)
        if linear and self.structure.linear_mode != self.structure.mode:
            return ChosenCache(self._decoder, self.structure.mode, self._linear_mode, self.context)
        return LibraryCache.of(self._decoder, self.structure.mode, self.context)

    def _linear_mode(self) -> DecodingMode | None:
        """How to decode if the present batch needs adapters of linear layers. None: it needs none of them."""
        pairs = ((self.adapters[table], sites) for table, sites in self.adapter_sites.items())
        linear = [
            adapter
            for adapters, sites in pairs
            for adapter, site in zip(adapters, sites, strict=True)
            if site.linear is not None
        ]
        return self.structure.linear_mode if any(adapter.is_needed for adapter in linear) else None

    def forward(self, embeddings: Tensor, layout: BatchLayout, cache: Cache | None = None) -> Tensor:
        """[b, t, e] to [m, d]; a cache is filled in place."""
        self._columns.first = layout.first_scored if cache is None and layout.sequence_ids is None else 0
        if cache is not None:
            assert isinstance(cache, LibraryCache)
            hidden = cache.forward(embeddings, layout)
        elif layout.sequence_ids is None:
            hidden = self._forward_padded(embeddings, Companions.of(layout))
        else:
            hidden = self._forward_packed(embeddings, layout)
        return hidden.flatten(0, 1)[layout.scored]

    def _forward_padded(self, embeddings: Tensor, companions: Companions) -> Tensor:
        """Right-padded rows [b, t, e] to [b, t, d]. Causality is enough: nothing reads the padding after a row."""
        t = embeddings.shape[1]
        beyond = 0 if self.context is None else max(0, t - self.context)
        if beyond:
            embeddings = embeddings[:, : self.context]
            companions = companions.columns(slice(0, self.context))
        hidden = self._decoder(embeddings, companions.ids, context=companions.context)
        return F.pad(hidden, (0, 0, 0, beyond)) if beyond else hidden

    def _forward_packed(self, embeddings: Tensor, layout: BatchLayout) -> Tensor:
        """Packed rows [b, t, e] to [b, t, d]."""
        if embeddings.is_meta:  # positions have no values; the costs are about the same
            return self._forward_padded(embeddings, Companions.of(layout))
        if self.structure.packs:
            positions = layout.positions
            if self.context is not None:  # padding may lie beyond it
                positions = positions.clamp(max=self.context - 1)
            positions = positions + (self.structure.mode.offset or 0)
            return self._decoder(embeddings, layout.token_ids, positions=positions, context=layout.context)
        columns, back = unpack(layout)  # one row for each sequence
        companions = Companions.of(layout).of_sequences(columns)
        hidden = self._forward_padded(embeddings.flatten(0, 1)[columns], companions).flatten(0, 1)
        return hidden[back].view(*embeddings.shape[:2], -1)

    def present_name(self, name: str) -> str:
        """Today's name of a tensor: adapters used to be modules around their sublayers."""
        # OPT: model.decoder.layers.0.fc1.sublayer.fc2.weight; others: model.layers.0.mlp.sublayer.up_proj.weight
        name = re.sub(r"fc1\.sublayer\.(?=fc[12]\.)", "", name)
        return name.replace(".sublayer.", ".")

    @classmethod
    def problems(cls, config: Config) -> list[str]:
        """Missing folders, unknown bundled names and unavailable hub names."""
        return find_problems(_source(config), ("config.json",), WEIGHT_FILES)

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """A small GPT-2."""
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        vocabulary = {"vocab_size": 768, "bos_token_id": 0, "eos_token_id": 0}
        return CheckInputs({"architecture": {"model_type": "gpt2", **sizes, **vocabulary}, "tokenizer": "bundled:tiny"})


def _source(config: Causal.Config) -> Source:
    return Source(
        config.weights, config.tokenizer, config.revision, config.cache_dir, config.remote_code, config.quantize
    )


CONTEXT_KEYS = ("max_position_embeddings", "max_target_positions", "max_seq_len", "max_sequence_length", "seq_length")
"""Names of the maximum number of positions in configurations of transformers."""


def _context(architecture: Any, offset: int) -> int | None:
    """The maximum number of positions; None if the configuration has no limit."""
    config = architecture.get_text_config()
    found = next((value for key in CONTEXT_KEYS if (value := getattr(config, key, None))), None)
    return found - offset if isinstance(found, int) else None


def _custom_architecture(fields: dict[str, Any]) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    family = fields["model_type"]
    if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise PartError(
            f'lm.architecture: transformers has no causal language model of type "{family}".'
            f"{did_you_mean(family, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}"
        )
    try:
        default = AutoConfig.for_model(family)
        known = {*default.to_dict(), *default.attribute_map}
        for unknown in sorted(set(fields) - known):
            raise PartError(f'lm.architecture: {family} has no field "{unknown}".{did_you_mean(unknown, known)}')
        return AutoConfig.for_model(**fields)
    except PartError:
        raise
    except Exception as error:  # libraries raise errors of many types
        problem = describe_error(error)
        raise PartError(f"lm.architecture: a {family} with these fields cannot be built: {problem}") from error
