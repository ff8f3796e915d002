"""Small models of several modalities with random weights, of any type that the library has."""

from __future__ import annotations

from typing import Any

import torch

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "d_model": 32,
    "embed_dim": 32,
    "num_hidden_layers": 2,
    "depth": 2,
    "num_attention_heads": 4,
    "num_heads": 4,
    "attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "mlp_hidden_size": 64,
    "max_position_embeddings": 64,
    "vocab_size": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "image_size": 32,
    "patch_size": 8,
    "sliding_window": 16,
    "projection_dim": 32,
    "out_hidden_size": 32,
    "qk_layernorm": False,
}
"""What the parts of a configuration have in common, under any of its names."""
SPECIAL: dict[str, dict[str, dict[str, Any]]] = {
    "gemma3": {"": {"mm_tokens_per_image": 4}},
    "gemma3n": {
        "text_config": {
            "layer_types": ["sliding_attention", "full_attention"],
            "num_kv_shared_layers": 0,
            "intermediate_size": [64, 64],
            "activation_sparsity_pattern": [0.0, 0.0],
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 96,
            "laurel_rank": 4,
        },
        "vision_config": {"hidden_size": 2048},
    },
    "mllama": {
        "text_config": {"cross_attention_layers": [1]},
        "vision_config": {"num_global_layers": 1, "vision_output_dim": 64, "intermediate_layers_indices": [0]},
    },
    "paligemma": {"text_config": {"num_image_tokens": 16}},
    "qwen2_vl": {"text_config": {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}},
    "qwen2_5_vl": {
        "text_config": {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        "vision_config": {"fullatt_block_indexes": [0]},
    },
    "qwen3_vl": {
        "text_config": {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
        "vision_config": {"deepstack_visual_indexes": [0]},
    },
}
"""What a type needs beside `SIZES`; "" is the outer configuration."""


def configuration(model_type: str) -> Any:
    """A small configuration; ids of special tokens are at the end of the vocabulary."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    default = kind()
    special = SPECIAL.get(model_type, {})
    fields: dict[str, Any] = {}
    for name in default.sub_configs:
        part = getattr(default, name)
        if part is not None:
            own = special.get(name, {})
            fields[name] = {"model_type": part.model_type, **_small(part), **own}
            if "layer_types" in part.to_dict() and "layer_types" not in own:
                fields[name]["layer_types"] = part.layer_types[:2]
    tokens = {name: 90 + i for i, name in enumerate(sorted(default.to_dict())) if name.endswith("token_id")}
    tokens = {name: 90 + i % 6 for i, name in enumerate(sorted(tokens)) if isinstance(getattr(default, name), int)}
    return kind(**{**_small(default), **fields, **tokens, **special.get("", {})})


def _small(part: Any) -> dict[str, Any]:
    known = {**part.to_dict(), **dict.fromkeys(part.attribute_map)}
    return {name: value for name, value in SIZES.items() if name in known and not _is_list(known[name])}


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def build(model_type: str, seed: int = 0) -> Any:
    """The library's whole model in eval mode, with random matrices of a size that makes logits differ."""
    from magma_lms.text_models import whole_model_class

    config = configuration(model_type)
    torch.manual_seed(seed)
    model = whole_model_class(config)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return model
