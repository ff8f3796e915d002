"""Small tokenizers of the Llama kind: SentencePiece's space before a text, byte fallback, BOS before all.

`KINDS` are the forms in which transformers has them. Mistral's own are there where `mistral-common` and `sentencepiece`
are installed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from magma_lms.causal import Causal
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast

CORPUS = (
    "A: seven Q: which digit is this? A: three The answer is two, and so on. x y a b seven eight nine one two three",
    "The picture shows a seven. What is it? It is a seven, not an eight. </ s> ab abc the so on and is it :",
)
END = "</s>"
CONTROL = {"<unk>": 0, "<s>": 1, END: 2}


@cache
def trained() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of byte-pair encoding over words that begin with their space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=[*CONTROL, *bytes_], show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    made = json.loads(tokenizer.to_str())["model"]
    return made["vocab"], [(one, other) for one, other in made["merges"]]


def first() -> Any:
    """The space stands at the start of a sequence only."""
    vocab, merges = trained()
    return LlamaTokenizer(vocab=vocab, merges=merges, legacy=False, add_bos_token=True)


def always() -> Any:
    """After each control token, too."""
    vocab, merges = trained()
    return LlamaTokenizer(vocab=vocab, merges=merges, legacy=True, add_bos_token=True)


def prepend() -> Any:
    """As the files of Llama 2 have it: put there by a normalizer, also before a text that begins with a space."""
    vocab, merges = trained()
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token=END, add_bos_token=True
    )


class SlowTokenizer(PreTrainedTokenizer):
    """The same in Python, which knows no offsets."""

    vocab_files_names: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, **how: Any) -> None:
        self.fast = prepend()
        super().__init__(unk_token="<unk>", bos_token="<s>", eos_token=END, **how)

    @property
    def vocab_size(self) -> int:
        return len(self.fast)

    def get_vocab(self) -> dict[str, int]:
        found: dict[str, int] = self.fast.get_vocab()
        return found

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        ids = self.fast.encode(text, add_special_tokens=False, split_special_tokens=True)
        found: list[str] = self.fast.convert_ids_to_tokens(ids)
        return found

    def _convert_token_to_id(self, token: str) -> int:
        return int(self.fast.convert_tokens_to_ids(token))

    def _convert_id_to_token(self, index: int) -> str:
        return str(self.fast.convert_ids_to_tokens(index))

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return str(self.fast.convert_tokens_to_string(tokens))

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        return [1, *token_ids_0, *(token_ids_1 or [])]


def mistral() -> Any:
    """The tokenizer of Mistral 7B, a real SentencePiece model."""
    import mistral_common

    model = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    with TemporaryDirectory() as folder:
        shutil.copy(model, Path(folder) / "tokenizer.model")
        return LlamaTokenizer.from_pretrained(folder, add_bos_token=True)


KINDS: dict[str, Callable[[], Any]] = {"first": first, "always": always, "prepend": prepend, "slow": SlowTokenizer}
if find_spec("mistral_common") and find_spec("sentencepiece"):
    KINDS["mistral"] = mistral


def language_model(tokenizer: Any, **fields: Any) -> Causal:
    """A small Llama of random weights that reads and writes with a tokenizer."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 256}
    torch.manual_seed(3)
    lm = Causal.build(architecture={"model_type": "llama", **sizes, **special}, **fields)
    lm.__dict__["_tokenizer"] = tokenizer
    return lm
