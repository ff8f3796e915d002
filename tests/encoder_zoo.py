"""A tiny model with random weights of every model of transformers that reads images, videos, audio or series.

`python tests/encoder_zoo.py [NAME ...]` prints one line for each: the name, and "ok" or the reason against it.
"""

from __future__ import annotations

from typing import Any

import torch

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
    **dict.fromkeys(("image_size", "img_size"), 32),
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
    **{
        name: {"prediction_length": 4, "num_time_features": 2, "context_length": 16}
        for name in ("autoformer", "informer", "time_series_transformer")
    },
    "timm_backbone": {"backbone": "resnet18", "out_indices": [4]},
    "timm_wrapper": {"architecture": "test_vit"},
    "gemma3n_vision": {"architecture": "test_vit"},
    "whisper": {"vocab_size": 51865},
    "bridgetower_vision_model": {"hidden_size": 64},
    **{name: {"conv_dim": [8] * 13} for name in ("sew", "sew-d")},
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32, "downsample_hidden_size": 8},
    "clap_audio_model": {
        "spec_size": 128,
        "num_mel_bins": 64,
        "patch_embeds_hidden_size": 8,
        "hidden_size": 32,
        "depths": [1, 1, 1],
        "num_attention_heads": [1, 1, 1],
    },
    **{
        f"{name}_sam_vision_model": {"downsample_channels": [16, 32], "global_attn_indexes": [1], "image_size": 64}
        for name in ("deepseek_ocr2", "unlimited_ocr")
    },
    "janus_vqgan": {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "latent_channels": 32},
    "efficientnet": {"image_size": 64},
    "timesfm2_5": {"context_length": 256},
    **{name: {"window_size": 2} for name in ("swin", "maskformer-swin")},
    "yolos": {"image_size": [64, 64]},
    "textnet": {"image_size": [64, 64]},
    "pvt_v2": {"image_size": 64},
    "phi4_multimodal_audio": {
        "num_blocks": 2,
        "ext_pw_out_channel": 32,
        "depthwise_separable_out_channel": 32,
        "nemo_conv_channels": 8,
    },
    "sam2_hiera_det_model": {
        "hidden_size": 96,
        "num_attention_heads": 1,
        "image_size": [64, 64],
        "patch_stride": [4, 4],
    },
    "donut-swin": {"image_size": [64, 64], "window_size": 2},
    "granite_speech5_encoder": {"context_size": 16},
    "depth_pro": {"patch_size": 32},
    "dots3_note_vision_encoder": {
        "num_hidden_layers": 2,
        "mlp_layer_types": ["dense", "dense"],
        "adapter_in_dim": 32,
        "adapter_out_dim": 32,
    },
    "llama4_vision_model": {
        "intermediate_size": 128,
        "vision_output_dim": 32,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
    },
    "mllama_vision_model": {"intermediate_layers_indices": [0], "num_global_layers": 1, "image_size": 32},
    "vibevoice_acoustic_tokenizer": {"num_filters": 4, "depths": [1] * 7},
    **{name: {"num_blocks": 1} for name in ("eomt", "eomt_dinov3")},
    "levit": {"image_size": 224, "patch_size": 16},
    "lw_detr_vit": {"image_size": 64, "num_windows": 4, "patch_size": 8},
}
"""What else a type needs."""


_NO_TINY = "no tiny model of it is made, so that it is not tested"
IMPOSSIBLE: dict[str, str] = {
    "depth_pro": _NO_TINY,
    "vibevoice_acoustic_tokenizer": _NO_TINY,
    "vjepa2": _NO_TINY,
    "wavtokenizer_encoder": _NO_TINY,
    "nemotron3_5_transcribe_audio": "sizes of its parts have to agree, and only its default ones do",
    "dinat": "it needs the package natten",
    "efficientloftr": "it compares two images",
}
"""Types without a tiny model, and why."""

_BATCH = "its features depend on the other rows of a batch"
_LENGTHS = "it needs all recordings of a batch as one, with their lengths"
REFUSED: dict[str, str] = {
    "autoformer": _BATCH,
    "bridgetower_vision_model": "its output has the sequence before the rows",
    "pp_lcnet": "features of a small copy with random weights do not depend on the input: it is not verified",
    "informer": "its attention draws positions at random, so that its features are not repeatable",
    "higgs_audio_v2_tokenizer": "it needs a length that is a multiple of both of its encoders",
    "inkling2_vision": "it puts class tokens between the images of a batch",
    "inkling_vision": "it encodes each patch by itself, and its input does not say to which image a patch belongs",
    "qwen2_5_omni_audio_encoder": _LENGTHS,
    "qwen3_omni_moe_audio_encoder": _LENGTHS,
    "encodec": "how its encoder reads a waveform is not found",
    "qwen3_asr_encoder": "it reads only lengths that are multiples of its window",
    "xcodec": "it has two encoders, and none of them reads a waveform by itself",
    "xcodec2": "it needs a waveform and a spectrogram of it at once",
    "xclip_vision_model": "it reads the frames of a video as rows of a batch",
    "neucodec": "it needs a waveform and a spectrogram of it at once",
    "seggpt": "it needs a second image with a mask",
    "videomt": _BATCH,
    "univnet": "it makes a waveform of a spectrogram, and has no features",
}
"""Types with a tiny model that cannot be an encoder, and why."""

ROUNDING = {"mobilenet_v1": 1e-3}
"""How far a row may differ in a batch, relative to the largest feature, where many layers amplify the rounding."""
WITHOUT_GRADIENTS = ("flava_image_codebook",)
"""Types that the library computes without gradients."""
ONLY_INSIDE = ("timm_backbone",)
"""Types whose weights the library reads only inside a whole model."""

REASONS = {**IMPOSSIBLE, **REFUSED}


def towers() -> dict[str, Any]:
    """The tower in every type of the installed transformers that has one."""
    from magma_hf.towers import find_tower
    from transformers import CONFIG_MAPPING

    found = {}
    for name in CONFIG_MAPPING:
        try:
            found[name] = find_tower(_default(CONFIG_MAPPING[name]), None)
        except Exception:  # of the library, for types that it cannot import or build
            continue
    return found


def all_names() -> list[str]:
    """Every type that is a tower: its own model reads media."""
    return sorted(name for name, tower in towers().items() if not tower.path)


def candidates() -> dict[str, str]:
    """Every type whose own model has a main input of pixels, sound or series: the type of the tower that is taken."""
    from magma_hf.towers import main_argument, model_classes
    from transformers import CONFIG_MAPPING

    return {
        name: tower.architecture.model_type
        for name, tower in towers().items()
        if not tower.path or any(main_argument(kind) for kind in model_classes(CONFIG_MAPPING[name])[:1])
    }


def inside() -> dict[str, tuple[str, str]]:
    """Every type of a whole model with a tower in it: the type of the tower, and the field of the configuration."""
    return {
        name: (tower.architecture.model_type, ".".join(tower.path)) for name, tower in towers().items() if tower.path
    }


def names() -> list[str]:
    """Every type that works. A type of a new release is one of them."""
    return [name for name in all_names() if name not in REASONS]


def _default(kind: Any) -> Any:
    try:
        return kind()
    except Exception:  # a field without a default
        return kind(**OTHERS.get(kind.model_type, {}))


STAGES = ("depths", "layer_depths")
"""Fields with the number of layers of each stage: one is enough."""
STAGED = {"hidden_size", "embed_dim", "num_heads", "num_attention_heads", "num_hidden_layers", "dim", "projection_dim"}
STAGED |= {"patch_size", "image_size"}
"""Fields that follow from the widths of stages, or that decide how many stages an image is enough for."""


def tiny_fields(kind: Any) -> dict[str, Any]:
    """Fields of a tiny configuration of a class, with its `model_type`."""
    others = OTHERS.get(kind.model_type, {})
    default = _default(kind)
    written = default.to_dict()
    stages = {key: [1] * len(written[key]) for key in STAGES if _is_list(written.get(key))}
    staged = STAGED if any(_is_list(written.get(key)) for key in (*STAGES, "hidden_sizes", "embed_dims")) else ()
    known = {key: getattr(default, key, None) for key in TINY if key in written or key in default.attribute_map}
    found = {key: _like(value, TINY[key]) for key, value in known.items() if key not in staged}
    parts = {key: getattr(default, key, None) for key in kind.sub_configs if key not in others}
    return {
        "model_type": default.model_type,
        **{key: value for key, value in found.items() if value is not None},
        **stages,
        **({"image_size": 64} if staged and isinstance(known.get("image_size"), int) else {}),
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


def image_size(architecture: Any) -> int | None:
    """Side of images for a tower without a size; None if it has one."""
    from magma_hf import sizes

    if architecture.model_type == "depth_pro":
        return 128
    return None if sizes.image_size(architecture) else 64


def build(name: str, seed: int = 0) -> Any:
    """The library's model in eval mode and float32, with every weight random."""
    from magma_hf.loading import override
    from magma_hf.towers import find_tower

    architecture = configuration(name)
    override(architecture)
    torch.manual_seed(seed)
    model = find_tower(architecture, None).model_class._from_config(architecture, dtype=torch.float32).eval()
    randomise(model)
    return model


@torch.no_grad()
def randomise(model: torch.nn.Module) -> None:
    """Matrices become random; vectors and scalars change a little, so that norms stay near 1."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            fan = max(1, parameter[0].numel())
            parameter.normal_(std=min(0.5, (2 / fan) ** 0.5))
        else:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            module.running_var.fill_(0.25)  # so that a signal passes many layers
