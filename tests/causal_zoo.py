"""A tiny language model with random weights of every causal family of the installed transformers.

`python tests/causal_zoo.py [NAME ...]` prints one line for each: the name, and "ok" or the reason against it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

TINY: dict[str, Any] = {
    # sizes
    **dict.fromkeys(("vocab_size", "n_token", "vocab_size_per_layer_input", "unpadded_vocab_size"), 96),
    **dict.fromkeys(("hidden_size", "d_model", "embedding_size", "embedding_dim", "lru_width", "dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "n_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads", "num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "swa_num_key_value_heads", "cla_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "attention_head_dim", "attention_head_size", "swa_head_dim", "kv_channels"), 8),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "d_inner", "dim_ff"), 64),
    "max_position_embeddings": 64,
    # low-rank attention, and attention to the best positions
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "index_head_dim", "index_topk"), 8),
    "index_n_heads": 16,  # with few heads, scores of several positions are exactly 0, and the choice is arbitrary
    # windows
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_chunk_size"), 8),
    "use_sliding_window": True,
    "max_window_layers": 1,
    # experts
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 16),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "shared_experts_intermediate_size"), 16),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "first_k_dense_replace", "n_shared_experts"), 1),
    "num_nextn_predict_layers": 0,
    # recurrent layers
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "mamba_d_head", "mamba_head_dim", "mamba_d_state"), 8),
    **dict.fromkeys(("state_size", "ssm_state_size", "chunk_size", "mamba_chunk_size", "block_size"), 8),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 4),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "mamba_ngroups"), 1),
    "mamba_d_ssm": 64,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    # scales, so that a wrapper that forgets them is wrong
    "embedding_multiplier": 2.0,
    "logits_scaling": 3.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.2,
    # tokens, and the decoders of models that are something else by default
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "is_decoder": True,
    # other tokens that a model must not find in a text: see `WORDS`
    **dict.fromkeys(
        ("image_token_id", "image_token_index", "boi_token_id", "eoi_token_id", "vision_start_token_id"), 90
    ),
    **dict.fromkeys(("video_token_id", "boa_token_id", "eoa_token_id", "eoa_token_index", "vision_end_token_id"), 91),
    "audio_token_id": 92,
}
"""Fields of a tiny model; each family takes those that it knows."""

WORDS = (3, 90)
"""Tests take token ids from this range."""

_WINDOWED = (
    "num_attention_heads",
    "q_lora_rank",
    "kv_lora_rank",
    "head_dim",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
)
_WINDOW_IS_OPTIONAL = ("dots1", "laguna", "mellum", "qwen2", "qwen2_moe", "qwen3", "smollm3")
OTHERS: dict[str, dict[str, Any]] = {
    **{name: {"layer_types": ["full_attention", "sliding_attention"]} for name in _WINDOW_IS_OPTIONAL},
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        },
    },
    "blt": {"encoder_hash_byte_group_vocab": 32},
    "blt_local_decoder": {"hidden_size_global": 32},
    "blt_local_encoder": {"hidden_size_global": 32},
    "codegen": {"rotary_dim": 4},
    "cpmant": {"dim_head": 8, "dim_ff": 64},
    "ctrl": {"dff": 64},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v4": {
        "o_groups": 2,
        "o_lora_rank": 8,
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
    },
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32, "downsample_hidden_size": 8},
    "dots3_note_text": {
        "layer_types": ["indexed_attention", "sliding_attention"],
        **{f"swa_{key}": TINY[key] for key in _WINDOWED},
        "swa_num_key_value_heads": 4,
        "swa_head_dim": 16,
    },
    "dots3_note_vision_encoder": {"adapter_in_dim": 32, "adapter_out_dim": 32},
    "dory": {
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "n_input_layers": 2,
        "n_output_layers": 2,
        "n_recurrent_layers": 2,
    },
    "emu3": {"vocabulary_map": {"<image>": 90}},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
        "altup_num_inputs": 2,
    },
    "gemma4_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "global_head_dim": 16,
        "final_logit_softcapping": 30.0,
    },
    "got_ocr2_vision": {"mlp_dim": 64, "output_channels": 8, "image_size": 64},
    "gemma4_unified_text": {"global_head_dim": 16},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "inkling2_loop_text": {
        "num_hidden_layers": 4,
        "layer_types": ["hybrid_sliding", "hybrid"] * 2,
        "n_layers_per_attn_res_block": 1,
        "loop_layer_index_start": 1,
        "loop_layer_index_end": 3,
        "loop_num_passes": 2,
        "loop_gate_rank": 8,
        "rel_extent": 16,
    },
    "inkling2_text": {"n_layers_per_attn_res_block": 1, "rel_extent": 16},
    "inkling_text": {"rel_extent": 16},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 4, "attn_layer_offset": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {
        "attn_layers": ["local", "local"],
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "feed_forward_size": 64,
        "local_attn_chunk_length": 8,
    },
    "rembert": {"input_embedding_size": 24, "output_embedding_size": 40},
    "roc_bert": {
        "eos_token_id": 1,  # it has none by default
        "pronunciation_embed_dim": 16,
        "pronunciation_vocab_size": 16,
        "shape_embed_dim": 16,
        "shape_vocab_size": 16,
    },
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"],
        "mlp_layer_types": ["dense", "sparse"],
        "dense_intermediate_size": 64,
        "rotary_dim": 4,
        "index_n_heads": 2,  # as many as key heads
        "index_block_size": 4,
        "index_topk_blocks": 2,
    },
    "phi4_multimodal_audio": {
        "num_blocks": 2,
        "ext_pw_out_channel": 32,
        "depthwise_separable_out_channel": 32,
        "nemo_conv_channels": 8,
    },
    "prophetnet": {"num_decoder_layers": 2, "num_decoder_attention_heads": 4},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "hc_count": 2,
        "hc_lowrank": 8,
        "ple_layer_ids": [1],
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 32,
        "make_ngram_vocab_size_divisible_by": 8,
        "split_ngram_parts": 1,
    },
    "xlm": {"causal": True},
    "xlnet": {"d_head": 8},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "num_heads": 4},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
        "n_mamba_heads": 2,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_key_value_heads": 4,
    },
    "zaya": {"layer_types": ["hybrid", "hybrid_sliding"], "num_experts_per_tok": 1, "router_hidden_size": 16},
}
"""What else a family needs, and what replaces its defaults so that it has every kind of layer."""

_DRAFTS = "it drafts for another model, whose hidden states and keys it needs"
_CODES = "it writes audio codes, and the library makes no decoder from its configuration"
IMPOSSIBLE: dict[str, str] = {
    "gemma3n": "its image encoder has no tiny size; its text model is gemma3n_text",
    "gemma4_assistant": _DRAFTS,
    "gemma4_unified_assistant": _DRAFTS,
    "musicgen": _CODES,
    "musicgen_melody": _CODES,
}
"""Families without a tiny model, and why."""

UNSUPPORTED: dict[str, str] = {
    "blt": "it cuts a text into patches by its bytes, which media do not have",
    "cpmant": "not causal: each position attends to all positions",
    "prophetnet": "not causal: the library exchanges axes of its relative positions, so that the length matters",
    "reformer": "its backward pass needs training mode, and a frozen model is in eval mode",
    "xlnet": "not causal: each position attends to all positions",
}
"""Families with a tiny model that cannot be a causal language model in front of media, and why."""

REASONS = {**IMPOSSIBLE, **UNSUPPORTED}
LAYER_LISTS = ("layer_types", "mlp_layer_types")


def all_names() -> list[str]:
    """Every causal family of the installed transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def names() -> list[str]:
    """Every causal family that has a tiny model here. A family of a new release is one of them."""
    return [name for name in all_names() if name not in REASONS]


def fields(name: str) -> dict[str, Any]:
    """Fields of a tiny configuration, with its `model_type`."""
    from transformers import AutoConfig

    return _tiny_fields(type(AutoConfig.for_model(name)))


def _tiny_fields(kind: Any) -> dict[str, Any]:
    default = kind()
    written = default.to_dict()
    others = OTHERS.get(default.model_type, {})
    tiny = {key: value for key, value in TINY.items() if key in written or key in default.attribute_map}
    if "kv_lora_rank" in tiny:  # the low-rank keys are not grouped
        tiny["num_key_value_heads"] = tiny["num_attention_heads"]
    # one layer of each kind, in the order of the default configuration
    layers = {key: list(dict.fromkeys(written[key])) for key in LAYER_LISTS if written.get(key) and key not in others}
    count = others.get("num_hidden_layers", max([2, *map(len, layers.values())]))
    if count > 2:
        tiny["num_hidden_layers"] = count
    parts = {key: getattr(default, key, None) for key in kind.sub_configs if key not in others}
    return {
        "model_type": default.model_type,
        **tiny,
        **{key: (kinds * count)[:count] for key, kinds in layers.items()},
        **{key: _tiny_fields(type(part)) for key, part in parts.items() if part is not None},
        **others,
    }


def configuration(name: str, **overrides: Any) -> Any:
    """A tiny configuration of the library."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**{**fields(name), **overrides})


def build(name: str, seed: int = 0, **overrides: Any) -> Any:
    """The library's model in eval mode and float32, with every weight random."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(configuration(name, **overrides), dtype=torch.float32).eval()
    randomise(model)
    return model


NEEDS_IMAGES = {"llama4"}
"""Families whose whole model cannot run on text only."""


def save(name: str, folder: Path) -> Any:
    """Save a tiny checkpoint as a user has it, with all modalities if the family has several, and read it again."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    model = build(name)
    config = configuration(name)
    if type(model.config) is not type(config):  # only the text model of a whole
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        randomise(model)
    model.save_pretrained(folder)
    kind = AutoModelForCausalLM if name in NEEDS_IMAGES else type(model)
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def randomise(model: torch.nn.Module) -> None:
    """Matrices become random; vectors and scalars change a little, so that norms stay near 1, and decays are sane."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.2)
        else:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


def main(wanted: list[str]) -> None:
    """Build and run each family."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    for name in wanted or all_names():
        print(name, _outcome(name), flush=True)


@torch.no_grad()
def _outcome(name: str) -> str:
    if name in REASONS:
        return REASONS[name]
    tokens = torch.randint(3, 96, (1, 20), generator=torch.Generator().manual_seed(1))
    try:
        logits = build(name)(input_ids=tokens).logits
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "ok" if logits.isfinite().all() and logits.shape == (1, 20, 96) else f"wrong logits {tuple(logits.shape)}"


if __name__ == "__main__":
    main(sys.argv[1:])
