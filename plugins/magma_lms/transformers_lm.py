"""Base class of `causal` and `gptj`: a causal language model of transformers as a frozen language model.

Axes: b batch, t tokens, e width of the word embeddings, d width, v vocabulary, m scored positions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from magma import FrozenLM, PartConfig, PartError, Site

from .loading import build_model, import_model_class, load_model, load_tokenizer
from .tokenization import Bos, beginning_tokens, end_tokens, plain_text_options, special_tokens
from .weights import Source, describe_error


class TransformersLM(FrozenLM):
    """A causal language model of transformers, without what is special to its blocks."""

    def __init__(self, config: PartConfig, source: Source, architecture: Any, bos: Bos) -> None:
        super().__init__(config)
        self._bos = bos
        self._source, self._architecture = source, architecture
        with torch.device("cpu"):  # this imports the module of the class and others, which create tensors
            import_model_class(source, architecture)
        try:
            with torch.device("meta"):
                self.model = build_model(source, architecture)
        except Exception as error:  # libraries raise errors of many types
            raise PartError(
                f"lm: a {architecture.model_type} with this configuration cannot be built: {describe_error(error)}"
            ) from error
        self.vocab = self._head_rows()
        self.eos = _end_of_text_id(architecture, self.vocab)

    def load_weights(self) -> None:
        """Load the weights in the precision of the file, or draw random ones in float32.

        Files are memory-mapped, and read shard by shard when they are used. Raises `PartError`.
        """
        assert not self.adapters, "weights have to be loaded before adapters are added"
        if self._source.weights is None:
            self.model = build_model(self._source, self._architecture)
        else:
            self.model = load_model(self._source, self._architecture)

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
        weight = self.model.get_input_embeddings().weight
        return int(getattr(weight, "ds_shape", weight.shape)[0])  # ZeRO-3 leaves the shape of what it has partitioned

    def _head_rows(self) -> int:
        """Number of logits."""
        head = self.model.get_output_embeddings()
        return int(head.weight.shape[0] if head is not None else self._architecture.get_text_config().vocab_size)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._source)

    @property
    def ends(self) -> Collection[int]:
        """`eos`, and the other end tokens of the architecture and of generation_config.json."""
        others = end_tokens(self._architecture, self.model.generation_config)
        return others - {_end_of_text_id(self._architecture, self.vocab)} | {self.eos}

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
        """Token ids [b, t] to word embeddings [b, t, e]."""
        out: Tensor = self.model.get_input_embeddings()(tokens)
        return out

    def exported_path(self, site: Site) -> str:
        """Path of a site's linear layer in the library's model."""
        paths: dict[nn.Module, str] = {module: path for path, module in self.model.named_modules()}
        assert site.linear is not None
        return paths[site.linear]

    def export(self, folder: Path) -> None:
        """Save in transformers' format, with the tokenizer if there is one; missing word embeddings become zeros."""
        if self.adapters:
            raise PartError("lm: it has adapters; call remove_adapters() before the export")
        state = self.model.state_dict(keep_vars=True)
        words = self.model.get_input_embeddings().weight
        if (padding := self.vocab - len(words)) > 0:
            name = next(name for name, tensor in state.items() if tensor is words)
            state[name] = nn.functional.pad(words.detach(), (0, 0, 0, padding))
        self.model.save_pretrained(folder, state_dict=state, max_shard_size="5GB")
        try:
            tokenizer = self._tokenizer
        except PartError:
            return
        tokenizer.save_pretrained(folder)


def _end_of_text_id(architecture: Any, vocab: int) -> int:
    end = getattr(architecture.get_text_config(), "eos_token_id", None)  # some configurations lack it
    end = end[0] if isinstance(end, list) else end
    if end is None or not 0 <= end < vocab:
        raise PartError(f"lm: its eos_token_id is {end}; allowed: a token id, 0 to {vocab - 1}")
    return int(end)
