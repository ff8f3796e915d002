"""Writes a small Llama of the library as a GGUF file, as llama.cpp's converter does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from magma_lms.weights import BUNDLED_FOLDER


def write_gguf(model: Any, path: Path, type_name: str = "F32") -> None:
    """Write the model, with the tokenizer of the bundled language model.

    Args:
        model: A Llama with the vocabulary of the bundled language model.
        path: The file.
        type_name: How matrices are stored: "F32", "F16" or "Q8_0". Vectors are stored in float32.
    """
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("a small Llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        array = tensor.float().numpy()
        if (projection := name.split(".")[-2]) in heads:
            array = _interleave_halves(array, heads[projection])
        kind = gguf.GGMLQuantizationType[type_name if array.ndim > 1 else "F32"]
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        writer.add_tensor(target, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleave_halves(array: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """llama.cpp rotates neighbouring dimensions of a head, transformers the two halves."""
    return array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)


def _add_tokenizer(writer: Any) -> None:
    import gguf

    fields = json.loads((BUNDLED_FOLDER / "tiny" / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = sorted(fields["model"]["vocab"], key=fields["model"]["vocab"].__getitem__)
    special = {token["content"] for token in fields["added_tokens"]}
    control, normal = int(gguf.TokenType.CONTROL), int(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([control if token in special else normal for token in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in fields["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
