"""Causal language models of transformers as frozen language models.

Axes: b batch, t tokens, p columns of the cache, d width, v vocabulary, m scored positions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from magma import CheckInputs, LocalPath, PartConfig, PartError, Weights, did_you_mean

from .families import FAMILIES
from .loading import read_architecture
from .quantization import Quantize
from .tokenization import Bos
from .transformers_lm import TransformersLM
from .weights import WEIGHT_FILES, Source, find_problems


class Causal(TransformersLM):
    """Any causal language model of transformers whose family is known (see `families.py`)."""

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
            if self.architecture is not None and self.architecture.get("model_type") not in FAMILIES:
                raise ValueError(f"an architecture with model_type one of {', '.join(FAMILIES)}")
            return self

    def __init__(self, config: Config) -> None:
        source = _source(config)
        custom = config.architecture
        architecture = read_architecture(source) if custom is None else _custom_architecture(custom)
        super().__init__(config, source, architecture, config.bos)

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


def _custom_architecture(fields: dict[str, Any]) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    family = fields["model_type"]
    default = AutoConfig.for_model(family)
    known = {*default.to_dict(), *default.attribute_map}
    for unknown in sorted(set(fields) - known):
        raise PartError(f'lm.architecture: {family} has no field "{unknown}".{did_you_mean(unknown, known)}')
    try:
        return AutoConfig.for_model(**fields)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise PartError(f"lm.architecture: a {family} with these fields cannot be built: {error}") from error
