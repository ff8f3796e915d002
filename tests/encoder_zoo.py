"""A tiny model with random weights of every model of transformers that reads images, videos, audio or series.

`python tests/encoder_zoo.py [NAME ...]` prints one line for each: the name, and "ok" or the reason against it.
"""

from __future__ import annotations

from typing import Any

TINY: dict[str, Any] = {
    # widths and numbers of layers
    **dict.fromkeys(("hidden_size", "d_model", "embed_dim", "projection_dim", "dim", "embedding_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "depth", "n_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads", "num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "mlp_dim"), 64),
    **dict.fromkeys(("out_hidden_size", "output_dim", "out_dim"), 32),
    "head_dim": 8,
    "max_position_embeddings": 64,
    "vocab_size": 96,
    # images
    **dict.fromkeys(("image_size", "img_size", "input_size"), 32),
    "patch_size": 8,
    "spatial_merge_size": 2,
    "num_frames": 4,
    # recordings
    **dict.fromkeys(("num_mel_bins", "n_mels"), 16),
    "max_source_positions": 50,
    **dict.fromkeys(("conv_dim",), [16] * 7),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "layerdrop": 0.0,
}
"""Fields of a tiny model; each type takes those that it knows."""

OTHERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("autoformer", "informer", "time_series_transformer"), {"prediction_length": 4}),
    "timm_backbone": {"backbone": "resnet18", "out_indices": [4]},
    "timm_wrapper": {"architecture": "test_vit"},
    "gemma3n_vision": {"architecture": "test_vit"},
    "whisper": {"vocab_size": 51865},
    "bridgetower_vision_model": {"hidden_size": 64},
    **dict.fromkeys(("sew", "sew-d"), {"conv_dim": [8] * 13}),
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32, "downsample_hidden_size": 8},
    "lw_detr_vit": {"image_size": 64, "num_windows": 4, "patch_size": 8},
}
"""What else a type needs."""


def all_names() -> list[str]:
    """Every type of the installed transformers in which a tower is found."""
    from transformers import CONFIG_MAPPING

    return list(CONFIG_MAPPING.keys())


LISTS: dict[str, tuple[int, ...]] = {
    "depths": (1, 1, 1, 1, 1),
    "hidden_sizes": (8, 16, 24, 32, 48),
    "embed_dims": (8, 16, 24, 32, 48),
    "layer_depths": (1, 1, 1, 1, 1),
}
"""Fields that have an entry for each stage; as many as the default has are taken."""


def tiny_fields(kind: Any) -> dict[str, Any]:
    """Fields of a tiny configuration of a class, with its `model_type`."""
    default = kind(**OTHERS.get(kind.model_type, {}))
    written = default.to_dict()
    others = OTHERS.get(default.model_type, {})
    known = {key: getattr(default, key, None) for key in TINY if key in written or key in default.attribute_map}
    tiny = {key: _like(value, TINY[key]) for key, value in known.items() if _like(value, TINY[key]) is not None}
    stages = {key: list(short[: len(written[key])]) for key, short in LISTS.items() if _is_list(written.get(key))}
    parts = {key: getattr(default, key, None) for key in kind.sub_configs if key not in others}
    return {
        "model_type": default.model_type,
        **tiny,
        **stages,
        **{key: tiny_fields(type(part)) for key, part in parts.items() if part is not None},
        **others,
    }


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(one, int) for one in value)


def _like(default: Any, tiny: Any) -> Any:
    """The tiny value in the form of the default; None if it has none."""
    if _is_list(default):
        if isinstance(tiny, list) and len(tiny) >= len(default):
            return tiny[: len(default)]
        return [tiny] * len(default) if len(set(default)) == 1 and isinstance(tiny, int) else None
    return tiny if not isinstance(tiny, list) else None


def configuration(name: str, **overrides: Any) -> Any:
    """A tiny configuration of the library."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[name]
    return kind(**{key: value for key, value in {**tiny_fields(kind), **overrides}.items() if key != "model_type"})
