"""A small whole model with random weights of every multimodal type of transformers that has a causal text model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from vision_language import SIZES as COMMON

SIZES: dict[str, Any] = {
    **COMMON,
    "max_position_embeddings": 512,
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_layers", "n_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "mlp_dim", "moe_intermediate_size"), 64),
    **dict.fromkeys(("encoder_hidden_size", "projection_hidden_size", "dim", "output_dim"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "spatial_merge_size", "moe_topk"), 2),
    **dict.fromkeys(("num_mel_bins", "n_mels"), 16),
    "shared_expert_intermediate_size": 64,
    "max_source_positions": 100,
    "layerdrop": 0.0,
}
"""What the parts of a configuration have in common, under any of its names."""
MIXED = ["linear_attention", "full_attention"]
TILES = [[32, 64], [64, 32], [64, 64]]
WIDTHS_OF_EXPERTS = {"text_config.moe_intermediate_size": 64}
QWEN3_5 = {
    "text_config.layer_types": MIXED,
    **dict.fromkeys(("text_config.linear_key_head_dim", "text_config.linear_value_head_dim"), 8),
    **dict.fromkeys(("text_config.linear_num_key_heads", "text_config.linear_num_value_heads"), 4),
    "text_config.rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2, 1, 1],
        "partial_rotary_factor": 1.0,
    },
}
GEMMA3 = {"mm_tokens_per_image": 4}
LATENT = {
    "text_config.num_key_value_heads": 4,
    **dict.fromkeys(("text_config.kv_lora_rank", "text_config.q_lora_rank"), 16),
    **dict.fromkeys(("text_config.v_head_dim", "text_config.qk_nope_head_dim"), 8),
    "text_config.qk_rope_head_dim": 8,
    "text_config.qk_head_dim": 16,
}
NEMOTRON = {
    "text_config.layers_block_type": ["linear_attention", "full_attention"],
    "text_config.ssm_state_size": 8,
    "text_config.mamba_num_heads": 8,
    "text_config.mamba_head_dim": 8,
    "text_config.n_groups": 2,
    "text_config.chunk_size": 8,
    "text_config.moe_shared_expert_intermediate_size": 64,
}
GRANITE = {
    **{f"encoder_config.{key}": 160 for key in ("input_dim", "num_mel_bins")},
    "encoder_config.dim_head": 8,
    "encoder_config.output_dim": 42,
}
INKLING2 = {
    "text_config.unpadded_vocab_size": 96,
    "vision_config.patch_size": 20,
    **{
        f"text_config.swa_{key}": value
        for key, value in {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}.items()
    },
    "vision_config.text_hidden_size": 32,
    "vision_config.projection_hidden_dim": 64,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "apertus1p5": {
        **{f"audio_config.{key}": 32 for key in ("hidden_size", "codebook_dim")},
        **{f"{part}_config.codebook_size": 16 for part in ("audio", "vision")},
        **{f"vision_config.{key}": 16 for key in ("embed_dim", "latent_channels")},
        "vision_config.base_channels": 32,
        "image_token_offset": 40,
        "audio_token_offset": 56,
    },
    "aria": {
        "vision_config.image_size": 490,
        "vision_config.patch_size": 70,
        "projector_patch_to_query_dict": {49: 4, 196: 8},
        "max_value_projector_patch_to_query_dict": 8,
        "text_config.moe_num_experts": 4,
    },
    "blip-2": {"num_query_tokens": 8},
    "cohere2_vision": {"alignment_intermediate_size": 64},
    "cohere_compass": {
        "text_config.layer_types": ["full_attention", "full_attention"],
        "text_config.rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
        },
        "vision_config.deepstack_visual_indexes": [0],
    },
    "deepseek_vl_hybrid": {
        **{
            f"high_res_vision_config.{key}": value
            for key, value in {
                "image_size": 64,
                "patch_size": 8,
                "output_channels": 8,
                "window_size": 4,
                "global_attn_indexes": [1],
                "num_pos_feats": 16,
                "mlp_dim": 64,
            }.items()
        }
    },
    "dots3_note": {
        **LATENT,
        **{key.replace("text_config.", "text_config.swa_"): value for key, value in LATENT.items()},
        **{f"text_config.{key}": value for key, value in {"swa_num_attention_heads": 4, "swa_head_dim": 16}.items()},
        "text_config.layer_types": ["indexed_attention", "sliding_attention"],
        "text_config.index_topk": 8,
        **{f"audio_config.{key}": 32 for key in ("adapter_input_size", "adapter_out_dim")},
        "audio_config.downsample_hidden_size": 8,
        **{f"vision_config.{key}": 32 for key in ("adapter_in_dim", "adapter_out_dim")},
    },
    "fast_vlm": {"vision_config.architecture": "fastvit_t8", "vision_config.hidden_size": 768},
    "gemma3": GEMMA3,
    "shieldgemma2": GEMMA3,
    "gemma4": {
        "text_config.vocab_size_per_layer_input": 96,
        "text_config.hidden_size_per_layer_input": 8,
        "text_config.per_layer_config": {0: {"head_dim": 8}},
        "vision_config": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "intermediate_size": 64,
        },
    },
    "gemma3n": {
        "text_config.layer_types": ["sliding_attention", "full_attention"],
        "text_config.num_kv_shared_layers": 0,
        "text_config.intermediate_size": [64, 64],
        "text_config.activation_sparsity_pattern": [0.0, 0.0],
        "text_config.hidden_size_per_layer_input": 8,
        "text_config.vocab_size_per_layer_input": 96,
        "text_config.laurel_rank": 4,
        "vision_config.architecture": "test_vit",
        "vision_config.hidden_size": 64,
    },
    "granite_speech": GRANITE,
    "granite_speech_plus": GRANITE,
    "inkling2": INKLING2,
    "inkling_mm_model": {"vision_config.patch_size": 40},
    "inkling2_loop": INKLING2,
    "fun_asr_nano": {"adaptor_config.intermediate_size": 8},
    "kimi_k25": LATENT,
    "llava_next": {"image_grid_pinpoints": TILES},
    "llava_next_video": {"image_grid_pinpoints": TILES},
    "llava_onevision": {"image_grid_pinpoints": TILES},
    "lfm2_vl": {"vision_config.num_patches": 16},
    "lfm3_vl": {"text_config.layer_types": ["conv", "full_attention"]},
    "llama4": {
        "vision_config.vision_output_dim": 64,
        "vision_config.projector_input_dim": 64,
        "vision_config.projector_output_dim": 64,
        "vision_config.intermediate_size": 128,
    },
    "minicpm_ocr": QWEN3_5,
    "minicpmv4_6": QWEN3_5,
    "minicpmv4_7": QWEN3_5,
    "nemotron_h_omni": {
        **NEMOTRON,
        "vision_config.video_temporal_patch_size": 2,
        "projector_hidden_size": 32,
        "vision_hidden_size": 32,
        "image_token_id": 90,
    },
    "nemo_speechlm": {**NEMOTRON, "audio_config.diarization_config.head_config.audio_hidden_size": 32},
    "perception_lm": {
        "vision_config.architecture": "test_vit",
        "vision_config.model_args": {"embed_dim": 64},
        "vision_use_cls_token": False,
    },
    "qwen3_5": QWEN3_5,
    "qwen3_5_moe": QWEN3_5,
    "qwen4_exp": {"text_config.layer_types": MIXED},
    "vipllava": {"vision_feature_layers": [-1, -2]},
    "glmasr": {"text_config.eos_token_id": 2},
    "omniasr": {
        "audio_config.conv_dim": [8] * 7,
        "audio_config.num_conv_pos_embeddings": 16,
        "audio_config.num_conv_pos_embedding_groups": 4,
    },
    "qwen3_asr": {"audio_config.downsample_hidden_size": 8, "pad_token_id": 0, "eos_token_id": 2},
    "janus": {"vq_config.base_channels": 32, "vq_config.num_embeddings": 16},
    "vibevoice_asr": {
        f"{part}_tokenizer_encoder_config.{key}": value
        for part in ("acoustic", "semantic")
        for key, value in {"num_filters": 4, "depths": [1] * 7}.items()
    },
}
"""What a type needs beside `SIZES`; keys with a dot are of an inner configuration."""
PIXELS = {"size": {"shortest_edge": 256, "longest_edge": 4096}}
ONE_TILE = {"do_image_splitting": False}
PROCESSORS: dict[str, dict[str, Any]] = {
    "aria": {"max_image_size": 490, "min_image_size": 336},
    "cohere2_vision": {"crop_to_patches": False},
    "deepseek_vl_hybrid": {"size": {"height": 32, "width": 32}, "high_res_size": {"height": 64, "width": 64}},
    "fast_vlm": {
        "use": "CLIPImageProcessor",
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 256, "width": 256},
    },
    "perception_lm": {"tile_size": 160, "max_num_tiles": 1},
    "gemma4": {"max_soft_tokens": 70},
    "idefics2": {"size": {"shortest_edge": 32, "longest_edge": 64}},
    "idefics3": {**ONE_TILE, "size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32}},
    "smolvlm": {**ONE_TILE, "size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32}},
    "lfm2_vl": {
        "encoder_patch_size": 8,
        "tile_size": 32,
        "do_image_splitting": False,
        "max_image_tokens": 16,
        "min_image_tokens": 4,
    },
    "minicpm_ocr": {"scale_resolution": 32},
    "minicpmv4_6": {"scale_resolution": 32},
    "minicpmv4_7": {"scale_resolution": 32},
}
"""What the image processor of a type needs: fields, and with `use` another class."""
POSITIONS = "its positions have 3 coordinates"
BOTH_DIRECTIONS = "positions of a medium attend to each other in both directions"
NO_FUNCTION = "it has no function for the features of images or audio"
IMPORTED: dict[str, dict[str, str]] = {
    "aria": {"image": "hf_projector"},
    "aya_vision": {"image": "pixel_shuffle"},
    "blip-2": {"image": "hf_projector"},
    "cohere2_vision": {"image": "pixel_shuffle"},
    "deepseek_vl": {"image": "hf_projector"},
    "deepseek_vl_hybrid": {"image": "hf_projector"},
    "exaone4_5": {"image": "identity"},
    "fast_vlm": {"image": "mlp"},
    "fun_asr_nano": {"audio": "identity"},
    "gemma4": {"image": "hf_projector"},
    "glmasr": {"audio": "identity"},
    "got_ocr2": {"image": "hf_projector"},
    "granite_speech": {"audio": "qformer"},
    "granite_speech_plus": {"audio": "hf_projector"},
    "hyperclovax_vision_v2": {"image": "hf_projector"},
    "idefics2": {"image": "hf_projector"},
    "idefics3": {"image": "pixel_shuffle"},
    "inkling2": {"image": "hf_projector"},
    "inkling2_loop": {"image": "hf_projector"},
    "inkling_mm_model": {"image": "identity"},
    "internvl": {"image": "hf_projector"},
    "janus": {"image": "hf_projector"},
    "kimi_k25": {"image": "identity"},
    "lfm2_vl": {"image": "identity"},
    "lfm3_vl": {"image": "identity"},
    "lighton_ocr": {"image": "hf_projector"},
    "llava": {"image": "mlp"},
    "llava_next": {"image": "identity"},
    "llava_next_video": {"image": "identity"},
    "llava_onevision": {"image": "identity"},
    "minicpm_ocr": {"image": "identity"},
    "minimax_m3_vl": {"image": "identity"},
    "mistral3": {"image": "hf_projector"},
    "moss_transcribe_diarize": {"audio": "hf_projector"},
    "omniasr": {"audio": "hf_projector"},
    "ovis2": {"image": "identity"},
    "perception_lm": {"image": "identity"},
    "pp_chart2table": {"image": "hf_projector"},
    "qianfan_ocr": {"image": "hf_projector"},
    "qwen3_asr": {"audio": "hf_projector"},
    "smolvlm": {"image": "pixel_shuffle"},
    "video_llama_3": {"image": "hf_projector"},
    "video_llava": {"image": "mlp"},
    "vipllava": {"image": "mlp"},
    "voxtral": {"audio": "hf_projector"},
}
"""For each modality that a type reads, the prefix that its projector becomes."""
REFUSED: dict[str, str] = {
    "apertus1p5": "its features cannot be counted: `get_input_embeddings` not auto",
    "cohere_compass": POSITIONS,
    "florence2": "it has 0 modules BartDecoderWrapper and one head",
    "fuyu": "its image processor does not give pixel_values, which get_image_features needs",
    "gemma3": BOTH_DIRECTIONS,
    "gemma4_unified": NO_FUNCTION,
    "git": NO_FUNCTION,
    "instructblip": "its image processor does not give qformer_input_ids, which get_image_features needs",
    "instructblipvideo": NO_FUNCTION,
    "llama4": "'MoeCausalLMOutputWithPast' object has no attribute 'image_outputs'",
    "minicpmv4_6": "the features of a medium depend on the other media in its batch",
    "minicpmv4_7": POSITIONS,
    "paligemma": "it is not causal: positions depend on later ones",
    "phi4_multimodal": NO_FUNCTION,
    "qwen2_audio": NO_FUNCTION,
    "qwen3_5": POSITIONS,
    "qwen3_5_moe": POSITIONS,
    "shieldgemma2": "29 tensors are missing",
    "vibevoice_asr": "its features are drawn at random",
    "vision-encoder-decoder": NO_FUNCTION,
}
"""Why a type is refused, as the error says it."""
UNTRIED: tuple[str, ...] = ("dots3_note", "gemma3n", "nemo_speechlm", "nemotron_h_omni", "qwen4_exp")
"""Types without a small configuration here."""
LIMITS: dict[Any, float] = {"image": 64, "audio": 1.0}


def names() -> list[str]:
    """Every multimodal type of transformers whose text configuration has its own causal class."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

    return [
        name
        for name in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
        if type(CONFIG_MAPPING[name]().get_text_config(decoder=True)) in MODEL_FOR_CAUSAL_LM_MAPPING
    ]


def configuration(name: str, **others: Any) -> Any:
    """A small configuration; ids of special tokens are at the end of the vocabulary.

    Args:
        name: The type.
        others: Further fields, as in `SPECIAL`.
    """
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[name]
    default = kind()
    special = {**SPECIAL.get(name, {}), **others}
    fields = _fields(default, special, "")
    tokens = [key for key in {*default.to_dict(), *default.attribute_map} if key.endswith(("token_id", "token_index"))]
    for i, key in enumerate(sorted(tokens)):
        if key not in special and key not in ("pad_token_id", "bos_token_id", "eos_token_id"):
            fields[key] = 90 + i % 6
    return kind(**fields)


def _fields(part: Any, special: dict[str, Any], path: str) -> dict[str, Any]:
    known = {**part.to_dict(), **{alias: getattr(part, alias, None) for alias in part.attribute_map}}
    found = {key: _like(known[key], value) for key, value in SIZES.items() if key in known}
    if isinstance(layers := known.get("layer_types"), list):
        found["layer_types"] = layers[:2]
    for key in part.sub_configs:
        inner = getattr(part, key, None)
        if inner is not None:
            found[key] = {"model_type": inner.model_type, **_fields(inner, special, f"{path}{key}.")}
    own = {key.removeprefix(path): value for key, value in special.items() if key.startswith(path)}
    return {**found, **{key: value for key, value in own.items() if "." not in key}}


def _like(default: Any, value: Any) -> Any:
    """The value in the form of the default: once for each axis."""
    return [value] * len(default) if isinstance(default, list | tuple) else value


def save(name: str, folder: Path, **others: Any) -> Any:
    """Write a small model of a type with its processor. Returns it, in eval mode."""
    from magma_hf.whole_model import whole_class

    config = configuration(name, **others)
    torch.manual_seed(0)
    model = whole_class(config)._from_config(copy.deepcopy(config), dtype=torch.float32).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    if name in PROCESSORS:
        processor(name, config).save_pretrained(folder)
    return model


def processor(name: str, config: Any) -> Any:
    """The image processor of a type, for small images."""
    import transformers
    from magma_hf.whole_inputs import default_processor

    fields = dict(PROCESSORS.get(name, {}))
    if "use" in fields:
        return getattr(transformers, fields.pop("use"))(**fields)
    found = default_processor("image", config)
    return type(found)(**{**found.to_dict(), **fields})
