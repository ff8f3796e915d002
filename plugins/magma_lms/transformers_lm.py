"""A causal language model of transformers as a frozen language model: what `causal` and `gptj` share.

Axes: b batch, t tokens, p columns that a cache holds, d width, v vocabulary, m scored positions.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from magma import Adapter, BatchLayout, Cache, FrozenLM, PartConfig, PartError, Sublayer

from .adapter_wrapper import wrap_sublayer
from .attention_masks import attention_mask, padding_mask, to_additive_mask
from .families import FAMILIES
from .kv_cache import KVCache
from .tokenization import Bos, beginning_tokens, end_tokens, plain_text_options, special_tokens
from .weights import TOKENIZER_FILES, has_safetensors, load_pretrained, resolve_source


class TransformersLM(FrozenLM):
    """Any model of transformers of a family that the plugin can name."""

    def __init__(
        self, config: PartConfig, weights: str | None, tokenizer: str | None, architecture: Any, bos: Bos
    ) -> None:
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

        super().__init__(config)
        self._bos = bos
        self._weights, self._tokenizer_source, self._architecture = weights, tokenizer, architecture
        if architecture.model_type not in FAMILIES:
            raise PartError(
                f'lm: given a model of type "{architecture.model_type}"; its blocks are not known. '
                f"Allowed: {', '.join(FAMILIES)}"
            )
        self.family = FAMILIES[architecture.model_type]
        window = self.family.window(architecture)
        self.context = min(architecture.max_position_embeddings, window or architecture.max_position_embeddings)
        self.vocab = architecture.vocab_size
        self.eos = _end_of_text(architecture)
        self._undo: list[Callable[[], None]] = []
        with torch.device("cpu"):  # the class's module is imported when it is asked for, and others that make tensors
            MODEL_FOR_CAUSAL_LM_MAPPING[type(architecture)]
        try:
            with torch.device("meta"):
                self.model = self._random()
        except ValueError as error:
            raise PartError(f"lm: no {architecture.model_type} can be built like this: {error}") from error
        self.dim = self.model.get_input_embeddings().embedding_dim
        if self.dim != architecture.hidden_size:
            raise PartError(
                f"lm: its word embeddings are {self.dim} wide and its blocks {architecture.hidden_size}; "
                "allowed: one width for both"
            )

    def load_weights(self) -> None:
        """The weights that the config names in the file's own precision, or random ones in float32.

        Files are mapped into memory and read when they are used, shard by shard.
        """
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        assert not self.adapters, "weights come before adapters"
        if self._weights is None:
            self.model = self._random()
            return
        logging.disable_progress_bar()  # whoever assembles the model says what is going on
        model, report = load_pretrained(
            "weights",
            self._weights,
            AutoModelForCausalLM.from_pretrained,
            config=copy.deepcopy(self._architecture),
            dtype="auto",
            use_safetensors=has_safetensors(self._weights),
            output_loading_info=True,
        )
        # Buffers of old files may be left over; a weight may not, it would be of a block that is not there.
        left = {name for name in report["unexpected_keys"] if name.endswith(".weight")}
        if wrong := sorted(report["missing_keys"] | left):
            raise PartError(
                f"lm.weights: given {self._weights!r}, whose tensors are not this model's: {len(wrong)} are missing or "
                f"left over, the first is {wrong[0]}"
            )
        self.family.adjust(model)
        self.model = model

    def _random(self) -> Any:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(copy.deepcopy(self._architecture), dtype=torch.float32)
        self.family.adjust(model)
        return model

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Tables of positions are no weights: they move, and stay in float32.
        tables = [
            (module, name, module._buffers[name])
            for module in self.model.modules()
            for name in module._non_persistent_buffers_set
        ]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own
        for module, name, table in tables:
            now = module._buffers[name]
            if table is not None and now is not None and now.dtype != table.dtype:
                module._buffers[name] = table.to(now.device)
        return self

    @property
    def num_embeddings(self) -> int:
        """Rows of the word embedding."""
        rows: int = self.model.get_input_embeddings().num_embeddings
        return rows

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Its layers."""
        return list(self.model.get_submodule(self.family.blocks).children())

    @cached_property
    def _cache_argument(self) -> str:
        """As the library calls it from 5.24 on, or before."""
        known = inspect.signature(self.model.get_submodule(self.family.decoder).forward).parameters
        return "cache" if "cache" in known else "past_key_values"

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        source = self._tokenizer_source or self._weights
        if source is None:
            raise PartError("lm: a model of random weights has no tokenizer; give lm.tokenizer, a hub name or a folder")
        folder = Path(resolve_source(source))
        if folder.is_dir() and not any((folder / file).is_file() for file in TOKENIZER_FILES):
            raise PartError(
                f"lm: {folder} has no tokenizer ({' or '.join(TOKENIZER_FILES)}), so that only token ids can be "
                "read and written; for text put one there, or give lm.tokenizer, a hub name or a folder"
            )
        return load_pretrained(
            "tokenizer" if self._tokenizer_source else "weights", source, AutoTokenizer.from_pretrained
        )

    @property
    def ends(self) -> Collection[int]:
        """`eos`, and the others of its architecture and of generation_config.json."""
        others = end_tokens(self._architecture, self.model.generation_config) - {_end_of_text(self._architecture)}
        return others | {self.eos}

    @cached_property
    def beginning(self) -> Sequence[int]:  # type: ignore[override]  # a checkpoint may set another one
        """BOS, if `lm.bos` asks for it. Without a tokenizer "auto" gives none: only token ids are read."""
        if self._bos is False:
            return ()
        try:
            tokenizer = self._tokenizer
        except PartError:
            if self._bos == "auto":
                return ()
            raise
        return beginning_tokens(tokenizer, self._bos, self.num_embeddings)

    @cached_property
    def control_tokens(self) -> Mapping[str, int]:
        """The tokenizer's special tokens that the model can read."""
        return special_tokens(self._tokenizer, self.num_embeddings)

    @cached_property
    def _plain(self) -> dict[str, bool]:
        return plain_text_options(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        return list(self._tokenizer.encode(text, **self._plain))

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]] | None]:
        """The same, with the offsets that a fast tokenizer knows."""
        if not getattr(self._tokenizer, "is_fast", False):
            return self.encode(text), None
        found = self._tokenizer(text, return_offsets_mapping=True, **self._plain)
        return list(found["input_ids"]), list(found["offset_mapping"])

    def decode(self, tokens: Sequence[int]) -> str:
        """Their text, as it is."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def embed(self, tokens: Tensor) -> Tensor:
        """[b, t] to [b, t, d]."""
        out: Tensor = self.model.get_input_embeddings()(tokens)
        return out

    def lm_head(self, hidden: Tensor) -> Tensor:
        """[m, d] to [m, v]."""
        out: Tensor = self.model.get_output_embeddings()(hidden)
        return out

    def add_adapters(self, place: Sublayer, make: Callable[[], Adapter]) -> None:
        """An adapter around every block's attention or feed-forward."""
        if place in self.adapters:
            raise PartError(f"adapters.{place}: this language model has adapters there already")
        made = [make() for _ in self.blocks]
        pairs = zip(self.blocks, made, strict=True)
        self._undo += [wrap_sublayer(block, self.family, place, adapter) for block, adapter in pairs]
        self.adapters[place] = made

    def remove_adapters(self) -> None:
        """The bare model again."""
        for undo in reversed(self._undo):
            undo()
        self._undo, self.adapters = [], {}

    def export(self, folder: Path) -> None:
        """In transformers' format, with the tokenizer where there is one. Missing word embeddings are zeros there."""
        if self.adapters:
            raise PartError("lm: adapters are around its sublayers; call remove_adapters() before it is exported")
        state = self.model.state_dict(keep_vars=True)
        words = self.model.get_input_embeddings().weight
        if padding := self.vocab - len(words):
            name = next(name for name, tensor in state.items() if tensor is words)
            state[name] = nn.functional.pad(words.detach(), (0, 0, 0, padding))
        self.model.save_pretrained(folder, state_dict=state, max_shard_size="5GB")
        try:
            tokenizer = self._tokenizer
        except PartError:
            return
        tokenizer.save_pretrained(folder)

    def new_cache(self) -> KVCache:
        """An empty one."""
        return KVCache.empty()

    def forward(self, embeddings: Tensor, layout: BatchLayout, cache: Cache | None = None) -> Tensor:
        """[b, t, d] to [m, d]; a cache is filled in place."""
        assert cache is None or isinstance(cache, KVCache)
        past = None if cache is None else cache.valid
        seen = attention_mask(embeddings, layout, past)
        if cache is not None:
            cache.valid = padding_mask(embeddings, layout, past)
        mask = to_additive_mask(seen, embeddings.dtype)
        out = self.model.get_submodule(self.family.decoder)(
            inputs_embeds=embeddings,
            attention_mask=mask[:, None],
            position_ids=layout.positions.clamp(max=self.context - 1),  # padding may lie beyond the context
            use_cache=cache is not None,
            **{self._cache_argument: None if cache is None else cache.cache},
        )
        hidden: Tensor = out.last_hidden_state
        return hidden.flatten(0, 1)[layout.scored]


def _end_of_text(architecture: Any) -> int:
    end = architecture.eos_token_id
    end = end[0] if isinstance(end, list) else end
    if end is None or not 0 <= end < architecture.vocab_size:
        raise PartError(
            f"lm: its eos_token_id is {end}; allowed: a token of its vocabulary, 0 to {architecture.vocab_size - 1}"
        )
    return int(end)
