"""Base class of `causal` and `gptj`: a causal language model of transformers as a frozen language model.

Axes: b batch, t tokens, p columns of the cache, d width, v vocabulary, m scored positions.
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
    """A causal language model of transformers whose family is in `FAMILIES`."""

    context: int

    def __init__(
        self, config: PartConfig, weights: str | None, tokenizer: str | None, architecture: Any, bos: Bos
    ) -> None:
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

        super().__init__(config)
        self._bos = bos
        self._weights, self._tokenizer_source, self._architecture = weights, tokenizer, architecture
        if architecture.model_type not in FAMILIES:
            raise PartError(
                f'lm: given a model of type "{architecture.model_type}", which is not supported. '
                f"Allowed: {', '.join(FAMILIES)}"
            )
        self.family = FAMILIES[architecture.model_type]
        window = self.family.window(architecture)
        self.context = min(architecture.max_position_embeddings, window or architecture.max_position_embeddings)
        self.vocab = architecture.vocab_size
        self.eos = _end_of_text_id(architecture)
        self._undo: list[Callable[[], None]] = []
        with torch.device("cpu"):  # this imports the module of the class and others, which create tensors
            MODEL_FOR_CAUSAL_LM_MAPPING[type(architecture)]
        try:
            with torch.device("meta"):
                self.model = self._random_model()
        except ValueError as error:
            raise PartError(
                f"lm: a {architecture.model_type} with this configuration cannot be built: {error}"
            ) from error
        self.dim = self.model.get_input_embeddings().embedding_dim
        if self.dim != architecture.hidden_size:
            raise PartError(
                f"lm: the width of its word embeddings is {self.dim} and of its blocks {architecture.hidden_size}; "
                "allowed: the same width"
            )

    def load_weights(self) -> None:
        """Load the weights in the precision of the file, or draw random ones in float32.

        Files are memory-mapped, and read shard by shard when they are used. Raises `PartError`.
        """
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        assert not self.adapters, "weights have to be loaded before adapters are added"
        if self._weights is None:
            self.model = self._random_model()
            return
        logging.disable_progress_bar()  # the caller reports progress
        model, report = load_pretrained(
            "weights",
            self._weights,
            AutoModelForCausalLM.from_pretrained,
            config=copy.deepcopy(self._architecture),
            dtype="auto",
            use_safetensors=has_safetensors(self._weights),
            output_loading_info=True,
        )
        # Old files may have unused buffers. An unused weight belongs to a block that this model lacks: an error.
        unexpected = {name for name in report["unexpected_keys"] if name.endswith(".weight")}
        if wrong := sorted(report["missing_keys"] | unexpected):
            raise PartError(
                f"lm.weights: given {self._weights!r}, whose tensors do not fit this model: {len(wrong)} are missing "
                f"or unexpected, the first is {wrong[0]}"
            )
        self.family.adjust(model)
        self.model = model

    def _random_model(self) -> Any:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(copy.deepcopy(self._architecture), dtype=torch.float32)
        self.family.adjust(model)
        return model

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Position tables are moved to another device, but stay in float32.
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
        """Number of rows of the word embedding."""
        rows: int = self.model.get_input_embeddings().num_embeddings
        return rows

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks, in order."""
        return list(self.model.get_submodule(self.family.blocks).children())

    @cached_property
    def _cache_argument(self) -> str:
        """Name of the argument for the KV cache: it was renamed in transformers 5.24."""
        known = inspect.signature(self.model.get_submodule(self.family.decoder).forward).parameters
        return "cache" if "cache" in known else "past_key_values"

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        source = self._tokenizer_source or self._weights
        if source is None:
            raise PartError(
                "lm: a model with random weights has no tokenizer; set lm.tokenizer to a hub name or a folder"
            )
        folder = Path(resolve_source(source))
        if folder.is_dir() and not any((folder / file).is_file() for file in TOKENIZER_FILES):
            raise PartError(
                f"lm: {folder} has no tokenizer ({' or '.join(TOKENIZER_FILES)}), so it can only read and write token "
                "ids; for text, put a tokenizer there, or set lm.tokenizer to a hub name or a folder"
            )
        return load_pretrained(
            "tokenizer" if self._tokenizer_source else "weights", source, AutoTokenizer.from_pretrained
        )

    @property
    def ends(self) -> Collection[int]:
        """`eos`, and the other end tokens of the architecture and of generation_config.json."""
        others = end_tokens(self._architecture, self.model.generation_config) - {_end_of_text_id(self._architecture)}
        return others | {self.eos}

    @cached_property
    def beginning(self) -> Sequence[int]:  # type: ignore[override]  # a checkpoint may set another one
        """BOS, if `lm.bos` requires it. Without a tokenizer, "auto" gives none."""
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
        """The tokenizer's special tokens that have a word embedding."""
        return special_tokens(self._tokenizer, self.num_embeddings)

    @cached_property
    def _plain_text_options(self) -> dict[str, bool]:
        return plain_text_options(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        return list(self._tokenizer.encode(text, **self._plain_text_options))

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]] | None]:
        """Token ids, and their character offsets if the tokenizer is a fast one."""
        if not getattr(self._tokenizer, "is_fast", False):
            return self.encode(text), None
        found = self._tokenizer(text, return_offsets_mapping=True, **self._plain_text_options)
        return list(found["input_ids"]), list(found["offset_mapping"])

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of the tokens, with special tokens and without cleaning."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids [b, t] to word embeddings [b, t, d]."""
        out: Tensor = self.model.get_input_embeddings()(tokens)
        return out

    def lm_head(self, hidden: Tensor) -> Tensor:
        """Hidden states [m, d] to logits [m, v]."""
        out: Tensor = self.model.get_output_embeddings()(hidden)
        return out

    def add_adapters(self, place: Sublayer, make: Callable[[], Adapter]) -> None:
        """Put an adapter around the attention or the feed-forward of every block. Raises `PartError`."""
        if place in self.adapters:
            raise PartError(
                f"adapters.{place}: this language model already has adapters there; call remove_adapters() first"
            )
        made = [make() for _ in self.blocks]
        pairs = zip(self.blocks, made, strict=True)
        self._undo += [wrap_sublayer(block, self.family, place, adapter) for block, adapter in pairs]
        self.adapters[place] = made

    def remove_adapters(self) -> None:
        """Remove all adapters."""
        for undo in reversed(self._undo):
            undo()
        self._undo, self.adapters = [], {}

    def export(self, folder: Path) -> None:
        """Save in transformers' format, with the tokenizer if there is one; missing word embeddings become zeros."""
        if self.adapters:
            raise PartError("lm: it has adapters; call remove_adapters() before the export")
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
        """An empty KV cache."""
        return KVCache.empty()

    def forward(self, embeddings: Tensor, layout: BatchLayout, cache: Cache | None = None) -> Tensor:
        """[b, t, d] to [m, d]; a cache is filled in place."""
        assert cache is None or isinstance(cache, KVCache)
        past = None if cache is None else cache.valid
        attended = attention_mask(embeddings, layout, past)
        if cache is not None:
            cache.valid = padding_mask(embeddings, layout, past)
        mask = to_additive_mask(attended, embeddings.dtype)
        out = self.model.get_submodule(self.family.decoder)(
            inputs_embeds=embeddings,
            attention_mask=mask[:, None],
            position_ids=layout.positions.clamp(max=self.context - 1),  # padding may lie beyond the context
            use_cache=cache is not None,
            **{self._cache_argument: None if cache is None else cache.cache},
        )
        hidden: Tensor = out.last_hidden_state
        return hidden.flatten(0, 1)[layout.scored]


def _end_of_text_id(architecture: Any) -> int:
    end = architecture.eos_token_id
    end = end[0] if isinstance(end, list) else end
    if end is None or not 0 <= end < architecture.vocab_size:
        raise PartError(f"lm: its eos_token_id is {end}; allowed: a token id, 0 to {architecture.vocab_size - 1}")
    return int(end)
