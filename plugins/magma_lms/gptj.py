"""GPT-J (Wang and Komatsuzaki 2021) with the published weights and a faster forward pass.

It differs from the one of transformers as follows, with the same results. Attention is one fused kernel, without a mask
if rows are padded on the right. Sines and cosines are looked up once for all blocks. The activation is one kernel. The
last block computes only the positions that are needed.

Axes: b batch, t tokens, p columns of the cache, h heads, r rotary dimension, d width, m scored positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from magma import (
    Adapter,
    BatchLayout,
    Cache,
    CheckInputs,
    KeyValueShape,
    KeyValueSlot,
    PartConfig,
    PartError,
    Site,
    Weights,
)

from .adapter_wrapper import AdapterWrapper, wrap
from .attaching import attach_module
from .attention_masks import attention_mask, causal_mask, padding_mask, to_additive_mask
from .fused_head import FusedHead
from .rotary import apply_rope, rope_table
from .shared_prefix_cache import SharedPrefixCache
from .tokenization import Bos
from .transformers_lm import TransformersLM
from .weights import WEIGHT_FILES, Source, find_problems, resolve_source, unreadable_message


class Attention(nn.Module):
    """Fused attention with the projections of transformers, under the same names."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = original.q_proj, original.k_proj, original.v_proj
        self.out_proj = original.out_proj
        self.heads, self.rotary, self.layer = original.num_attention_heads, original.rotary_dim, original.layer_idx
        width = original.head_dim
        self.key_value_slot = KeyValueSlot(KeyValueShape(self.heads, width, width))

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: Any = None, first: int = 0
    ) -> Tensor:
        """[b, t, d] to [b, t - first, d]: attention of the positions from `first` on.

        `rope` has sines and cosines of the positions [b, t, 1, r / 2]. `mask` [b, 1, t, p + t] is an attention mask,
        additive if there is a shared prefix. Without a mask, attention is causal.
        """
        sines, cosines = rope
        queries = apply_rope(
            self._split_heads(self.q_proj(x[:, first:])), sines[:, first:], cosines[:, first:], self.rotary
        )
        keys = apply_rope(self._split_heads(self.k_proj(x)), sines, cosines, self.rotary)
        queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, self._split_heads(self.v_proj(x))))
        if mask is not None:
            mask = mask[:, :, first:]
        elif first:
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()[first:]
        if cache is not None:
            keys, values = cache.cache.update(keys, values, self.layer)

        def attend(keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
            if cache is not None and cache.shared_prefix is not None:
                out: Tensor = cache.shared_prefix.attend(queries, keys, values, mask, self.layer)
                return out
            mask = causal_mask(queries.shape[2], keys) if mask is None else mask
            return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=mask is None)

        out = self.key_value_slot.attend(attend, keys, values, mask)
        projected: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return projected

    def _split_heads(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        return x.view(b, t, self.heads, d // self.heads)


class Block(nn.Module):
    """The block of transformers, with the same names: attention and feed-forward in parallel."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.ln_1, self.attn, self.mlp = original.ln_1, Attention(original.attn), original.mlp

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: Any = None, first: int = 0
    ) -> Tensor:
        """[b, t, d] to [b, t - first, d]."""
        y = self.ln_1(x)
        attention = self.attn
        if isinstance(attention, AdapterWrapper):
            attended = attention(y, rope, mask, cache, first=first)
        else:
            attended = attention(y, rope, mask, cache, first)
        out: Tensor = attended + self.mlp(y[:, first:]) + x[:, first:]
        return out


class GPTJ(TransformersLM):
    """GPT-J, the language model of the paper. The default sizes are those of the 6B model."""

    name = "gptj"

    class Config(PartConfig):
        """Weights and sizes. A config.json beside `weights` overrides the sizes; without `weights` they are random."""

        renamed_keys = MappingProxyType({"words": "num_embeddings"})

        weights: Weights | None = None
        """A hub name, a folder with `config.json` and safetensors, or `"bundled:tiny"`."""
        tokenizer: Weights | None = None
        """A hub name or a folder. Default: `weights`."""
        bos: Bos = "auto"
        """Whether BOS is put before everything, media included. `"auto"`: as the tokenizer itself does it."""
        layers: int = Field(28, ge=1)
        """Number of blocks. This and the sizes below are ignored if there is a `config.json` beside the weights."""
        dim: int = Field(4096, ge=1)
        """Width of the hidden states."""
        heads: int = Field(16, ge=1)
        """Attention heads per block."""
        rotary_dim: int = Field(64, ge=2)
        """Dimensions of a head that get rotary position embeddings."""
        context: int = Field(2048, ge=1)
        """Maximum number of positions."""
        vocab: int = Field(50400, ge=1)
        """Rows of the head."""
        num_embeddings: int | None = Field(None, ge=1)
        """Rows of the word embedding, if it has fewer than the head. Default: `vocab`."""
        eos: int = Field(50256, ge=0)
        """Id of the end-of-text token."""

        @model_validator(mode="after")
        def _sizes_fit(self) -> Self:
            if self.dim % self.heads:
                raise ValueError(f"a width ({self.dim}) that is a multiple of the number of heads ({self.heads})")
            if self.rotary_dim % 2 or self.rotary_dim > self.dim // self.heads:
                raise ValueError(f"an even rotary_dim of at most {self.dim // self.heads}, the width of a head")
            rows, key = (self.num_embeddings, "num_embeddings") if self.num_embeddings else (self.vocab, "vocab")
            if self.eos >= rows:
                raise ValueError(f"an eos below {key} ({rows})")
            return self

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config, Source(config.weights, config.tokenizer), _gptj_architecture(config), config.bos)
        self.dim, self.context = self._architecture.n_embd, self._architecture.n_positions
        if config.num_embeddings is not None and config.num_embeddings > self.vocab:
            raise PartError(
                f"lm.num_embeddings: given {config.num_embeddings}; allowed: at most {self.vocab}, the rows of the head"
            )
        self._replace_blocks()

    def load_weights(self) -> None:
        """Load the weights, as for every model of transformers, and replace the blocks."""
        super().load_weights()
        self._replace_blocks()

    def _replace_blocks(self) -> None:
        """Replace the blocks by faster ones with the same tensors; remove the padding rows of the word embedding."""
        if self.config.num_embeddings is not None:
            embedding = self.model.get_input_embeddings()
            embedding.weight = nn.Parameter(embedding.weight.detach()[: self.config.num_embeddings].clone())
            embedding.num_embeddings = self.config.num_embeddings
        FusedHead.replace(self.model.lm_head)
        decoder = self.model.transformer
        table = rope_table(self._architecture.n_positions, self._architecture.rotary_dim, decoder.ln_f.weight.device)
        decoder.register_buffer("rope_table", table, persistent=False)
        decoder.h = nn.ModuleList(Block(original) for original in decoder.h)
        for block in decoder.h:
            if self._architecture.activation_function == "gelu_new":
                block.mlp.act = nn.GELU(approximate="tanh")
        self._bare_blocks = list(decoder.h)  # without adapters
        self._sites = _find_sites(self._bare_blocks, self.dim)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks, in order."""
        return list(self.model.transformer.h)

    def sites(self) -> Sequence[Site]:
        """The sublayers, the blocks and their linear layers."""
        return self._sites

    def attach_adapter(self, site: Site, adapter: Adapter, name: str) -> Callable[[], None]:
        """Put an adapter around a site."""
        if site.linear is not None:
            return attach_module(site.linear, adapter, name)
        if site.path == "block":
            return wrap(self.model.transformer.h, str(site.block), adapter, name)
        return wrap(self._bare_blocks[site.block], "attn" if site.path == "attention" else "mlp", adapter, name)

    def lm_head(self, hidden: Tensor) -> Tensor:
        """Hidden states [m, d] to logits [m, v]."""
        out: Tensor = self.model.lm_head(hidden)
        return out

    def cross_entropy(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Hidden states [m, d] and labels [m] to the summed cross-entropy, in float32."""
        loss: Tensor = self.model.lm_head(hidden, labels)
        return loss

    def new_cache(self) -> SharedPrefixCache:
        """An empty KV cache."""
        return SharedPrefixCache.empty()

    def forward(self, embeddings: Tensor, layout: BatchLayout, cache: Cache | None = None) -> Tensor:
        """[b, t, d] to [m, d]; a cache is filled in place. The last block only computes scored positions."""
        assert cache is None or isinstance(cache, SharedPrefixCache)
        past = None if cache is None else cache.valid
        mask = None
        if past is not None or layout.sequence_ids is not None:
            mask = attention_mask(embeddings, layout, past)[:, None]
        if cache is not None and cache.shared_prefix is not None:
            assert mask is not None
            mask = to_additive_mask(mask, embeddings.dtype)  # once for all blocks
        if cache is not None:
            cache.valid = padding_mask(embeddings, layout, past)
        decoder: Any = self.model.transformer
        table = decoder.rope_table[layout.positions.clamp(max=len(decoder.rope_table) - 1)].to(embeddings.dtype)
        sines, cosines = table[:, :, None].chunk(2, -1)
        x, first = embeddings, 0
        for i, block in enumerate(decoder.h):
            first = layout.first_scored if i + 1 == len(decoder.h) else 0
            rest = (sines, cosines), mask, cache
            x = block(x, *rest, first=first) if isinstance(block, AdapterWrapper) else block(x, *rest, first)
        hidden: Tensor = decoder.ln_f(x)
        t = embeddings.shape[1]
        scored = layout.scored - first * (layout.scored // t + 1)  # [m] into rows that are `first` columns shorter
        return hidden.flatten(0, 1)[scored]

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """The bundled weights."""
        return CheckInputs({"weights": "bundled:tiny"})

    @classmethod
    def problems(cls, config: Config) -> list[str]:
        """Missing folders, unknown bundled names and unavailable hub names."""
        return find_problems(Source(config.weights, config.tokenizer), WEIGHT_FILES)


def _find_sites(blocks: Sequence[nn.Module], dim: int) -> list[Site]:
    """The sites of blocks without adapters."""
    whole = [(path, i, dim, dim, None) for path in ("attention", "mlp", "block") for i in range(len(blocks))]
    linears = [
        (path, i, module.in_features, module.out_features, module)
        for i, block in enumerate(blocks)
        for path, module in block.named_modules()
        if isinstance(module, nn.Linear)
    ]
    slots: list[Any] = [block.get_submodule("attn").key_value_slot for block in blocks]
    return [
        Site(*one, media_features=dim, key_values=slots[one[1]] if one[0] == "attention" else None)
        for one in (*whole, *linears)
    ]


def _gptj_architecture(config: GPTJ.Config) -> Any:
    """config.json beside the weights if it is on this machine, else the config's sizes. Downloads nothing."""
    from transformers import GPTJConfig

    if config.weights is not None:
        where = resolve_source(config.weights)
        try:
            found = GPTJConfig.get_config_dict(where, local_files_only=True)[0]
        except OSError as error:
            if (Path(where) / "config.json").is_file():  # it exists, but is not JSON
                raise PartError(unreadable_message("weights", config.weights, error)) from error
            found = {}
        if found and found.get("model_type") != "gptj":
            raise PartError(
                f'lm.weights: {config.weights} is a "{found.get("model_type")}", not a "gptj"; use = "causal" loads it'
            )
        if found:
            end = found.get("eos_token_id")
            return GPTJConfig.from_dict({**found, "eos_token_id": config.eos if end is None else end})
    return GPTJConfig(
        vocab_size=config.vocab,
        n_positions=config.context,
        n_embd=config.dim,
        n_layer=config.layers,
        n_head=config.heads,
        rotary_dim=config.rotary_dim,
        bos_token_id=config.eos,
        eos_token_id=config.eos,
        tie_word_embeddings=False,
    )
