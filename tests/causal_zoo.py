"""A tiny language model with random weights of every causal family of the installed transformers.

`python tests/causal_zoo.py [NAME ...]` prints one line for each: the name, and "ok" or why it cannot be built.
"""

from __future__ import annotations

import sys
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
    "index_n_heads": 2,
    # windows
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_chunk_size"), 8),
    "use_sliding_window": True,
    "max_window_layers": 1,
    # experts
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 16),
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
    # tokens, and the decoders of models that are something else by default
    **dict(bos_token_id=0, eos_token_id=1, pad_token_id=2, is_decoder=True),
}
"""Fields of a tiny model; each family takes those that it knows."""

OTHERS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        },
    },
    "codegen": {"rotary_dim": 4},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dory": {
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "n_input_layers": 2,
        "n_output_layers": 2,
        "n_recurrent_layers": 2,
    },
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
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
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
    "roc_bert": {
        "pronunciation_embed_dim": 16,
        "pronunciation_vocab_size": 16,
        "shape_embed_dim": 16,
        "shape_vocab_size": 16,
    },
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
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2, "num_key_value_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
}
"""What else a family needs, and what replaces its defaults so that it has every kind of layer."""

IMPOSSIBLE: dict[str, str] = {}
"""Why the library builds no causal language model of a family."""

LAYER_LISTS = ("layer_types", "mlp_layer_types")


def names() -> list[str]:
    """Every family that the installed transformers has and that can be built."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in IMPOSSIBLE]


def fields(name: str) -> dict[str, Any]:
    """Fields of a tiny configuration, with its `model_type`."""
    from transformers import AutoConfig

    default = AutoConfig.for_model(name)
    return _tiny_fields(type(default))


def _tiny_fields(kind: Any) -> dict[str, Any]:
    default = kind()
    name, written = default.model_type, default.to_dict()
    others = OTHERS.get(name, {})
    tiny = {key: value for key, value in TINY.items() if key in written or key in default.attribute_map}
    for key, part in kind.sub_configs.items():
        if getattr(default, key, None) is not None and key not in others:
            tiny[key] = _tiny_fields(type(getattr(default, key)))
    if "kv_lora_rank" in tiny:  # all heads share the low-rank keys
        tiny["num_key_value_heads"] = tiny["num_attention_heads"]
    layers = {key: list(dict.fromkeys(written[key])) for key in LAYER_LISTS if written.get(key) and key not in others}
    count = others.get("num_hidden_layers", max([2, *map(len, layers.values())]))
    if count > 2:
        tiny["num_hidden_layers"] = count
    each = {key: (kinds * count)[:count] for key, kinds in layers.items()}
    return {"model_type": name, **tiny, **each, **others}


def build(name: str, seed: int = 0, **overrides: Any) -> Any:
    """The library's model in eval mode and float32, with every weight random."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**{**fields(name), **overrides}), dtype=torch.float32
    ).eval()
    randomise(model)
    return model


@torch.no_grad()
def randomise(model: torch.nn.Module) -> None:
    """Matrices become random; vectors and scalars change a little, so that norms stay near 1, and decays are sane."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.2)
        else:
            parameter += 0.1 * torch.randn_like(parameter)


def check_size(f):
    from transformers import AutoConfig, AutoModelForCausalLM
    with torch.device("meta"):
        m = AutoModelForCausalLM.from_config(AutoConfig.for_model(**f))
    n = sum(p.numel() for p in m.parameters())
    if n > 5e6: raise ValueError(f"too big {n}")


def main(wanted: list[str]) -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    tokens = torch.randint(3, 96, (1, 20), generator=torch.Generator().manual_seed(1))
    for name in wanted or names():
        try:
            config_fields = fields(name)
            check_size(config_fields)
            model = build(name)
            size = sum(p.numel() for p in model.parameters())
            with torch.no_grad():
                logits = model(input_ids=tokens).logits
            state = "ok" if logits.isfinite().all() and logits.shape[:2] == (1, 20) else f"BAD {logits.shape}"
            print(name, state, size, f"std {logits.std():.2g}", config_fields.get("layer_types") or config_fields.get("layers_block_type") or "", config_fields.get("mlp_layer_types", ""), flush=True)
        except Exception as error:
            print(name, type(error).__name__, str(error).replace("\n", " ")[:200], flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
