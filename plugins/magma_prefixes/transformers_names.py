"""Projectors of transformers' multimodal models as prefixes of this package: their keys and the names of their tensors.

`find_projector` reads the configuration of a model; nothing of transformers is imported. Tests compare the outputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor

from magma import PartError

from .projection import Activation


@dataclass(frozen=True)
class Projector:
    """A prefix of this package that computes what a projector of transformers does."""

    use: str
    """The name of the prefix, as in a recipe."""
    options: Mapping[str, Any]
    """Its keys."""
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of each tensor of the prefix, to the names in the model. Several tensors are joined along axis 0.

    A name in the model begins at the model itself: without "model.", which most files and classes prepend.
    """

    def tensors(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of the prefix.

        Args:
            state: Tensors of the whole model by name, with or without a leading "model.". Others are ignored.

        Raises:
            PartError: A tensor is missing. The message names all that are.
        """
        found = {name.removeprefix("model."): tensor for name, tensor in state.items()}
        missing = sorted({name for names in self.names.values() for name in names} - found.keys())
        if missing:
            raise PartError(f"the model lacks tensors of its projector: {', '.join(missing)}")
        return {
            ours: found[theirs[0]] if len(theirs) == 1 else torch.cat([found[name] for name in theirs])
            for ours, theirs in self.names.items()
        }


def find_projector(config: Any) -> Projector | None:
    """The prefix for the projector of a multimodal model.

    Args:
        config: transformers' configuration of the whole model: with `model_type`, `text_config` and so on.

    Returns:
        The prefix with its keys and names; None if no prefix of this package computes the same. The input of the prefix
        is what the model gives its projector: the hidden states of the layer that its configuration names, without
        those special tokens that it leaves out.
    """
    make = _PROJECTORS.get(config.model_type)
    return None if make is None else make(config)


def find_llava_projector(projector_type: str) -> Projector | None:
    """The prefix for `mm_projector` of an original LLaVA checkpoint.

    Args:
        projector_type: `mm_projector_type` in its config.json, such as `"linear"` or `"mlp2x_gelu"`.

    Returns:
        The prefix with its keys and names, or None for another type.
    """
    if projector_type == "linear":
        return _one_linear("mm_projector")
    found = re.fullmatch(r"mlp(\d+)x_gelu", projector_type)
    if found is None or (linears := int(found[1])) < 1:
        return None
    if linears == 1:
        return _one_linear("mm_projector.0")
    names: dict[str, tuple[str, ...]] = {}
    for i in range(linears):
        names |= _linear(f"mm_projector.{2 * i}", f"projection.{2 * i}")
    return Projector("mlp", {"layers": linears - 1}, names)


# Names of one layer


def _linear(theirs: str, ours: str = "projection", bias: bool = True) -> dict[str, tuple[str, ...]]:
    kinds = ("weight", "bias") if bias else ("weight",)
    return {f"{ours}.{kind}": (f"{theirs}.{kind}",) for kind in kinds}


def _two_layers(bias: bool, path: str = "multi_modal_projector") -> dict[str, tuple[str, ...]]:
    return _linear(f"{path}.linear_1", "projection.0", bias) | _linear(f"{path}.linear_2", "projection.2", bias)


_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "swish": "silu",
}


def _activation(name: str) -> Activation | None:
    """The key of a prefix for the name of an activation in transformers."""
    if name in _ACTIVATIONS:
        return _ACTIVATIONS[name]
    return next((one for one in get_args(Activation) if one == name), None)


# Projectors


def _mlp(config: Any, use: str = "mlp", bias: bool | None = None, **options: Any) -> Projector | None:
    """linear_1, activation, linear_2."""
    activation = _activation(config.projector_hidden_act)
    if activation is None:
        return None
    if bias is None:
        bias = bool(config.multimodal_projector_bias)
    keys = {"layers": 1, "hidden": config.text_config.hidden_size, "activation": activation, "bias": bias, **options}
    return Projector(use, keys, _two_layers(bias))


def _vip_llava(config: Any) -> Projector | None:
    found = _mlp(config, bias=True, input_norm="layernorm", norm_eps=config.projector_layernorm_eps)
    return found and _with_norm(found, "multi_modal_projector.projector_layernorm")


def _with_norm(projector: Projector, path: str) -> Projector:
    return Projector(projector.use, projector.options, {**projector.names, **_linear(path, "projection.norm")})


def _audio_flamingo(config: Any) -> Projector | None:
    return _mlp(config, bias=config.projector_bias)


def _one_linear(path: str = "multi_modal_projector.linear", bias: bool = True) -> Projector:
    return Projector("linear", {"bias": bias}, _linear(path, bias=bias))


def _frames(hidden: int = 1, bias: bool = False) -> Callable[[Any], Projector | None]:
    """Several frames, joined to the width of the feed-forward layers."""

    def make(config: Any) -> Projector | None:
        audio = config.audio_config
        factor = audio.intermediate_size // audio.hidden_size
        return _mlp(config, "stack", bias, factor=factor, hidden=hidden * config.text_config.hidden_size)

    return make


def _idefics3(config: Any) -> Projector:
    names = _linear("connector.modality_projection.proj", "projection.0", bias=False)
    return Projector("pixel_shuffle", {"factor": config.scale_factor, "bias": False}, names)


def _intern_vl(config: Any) -> Projector | None:
    factor = int(1 / config.downsample_ratio)
    found = _mlp(config, "pixel_shuffle", True, factor=factor, input_norm="layernorm", norm_eps=1e-5)
    return found and _with_norm(found, "multi_modal_projector.layer_norm")


def _cohere_vision(config: Any) -> Projector:
    """Two linear layers with SwiGLU; in Aya Vision after a LayerNorm."""
    aya = config.model_type == "aya_vision"
    wide = getattr(
        config, "alignment_intermediate_size", config.text_config.hidden_size
    )  # Aya's configuration has none
    options = {"factor": config.downsample_factor, "layers": 1, "hidden": wide // 2, "activation": "silu"}
    found = Projector("pixel_shuffle", {**options, "gated": True}, _two_layers(True))
    if not aya:
        return found
    normed = {**found.options, "input_norm": "layernorm", "norm_eps": config.adapter_layer_norm_eps}
    return _with_norm(Projector(found.use, normed, found.names), "multi_modal_projector.layernorm")


def _idefics2(config: Any) -> Projector | None:
    """A gated MLP to the width of the language model, then the Perceiver resampler."""
    text, perceiver = config.text_config, config.perceiver_config
    first, inner = _activation(text.hidden_act), _activation(perceiver.hidden_act)
    if first is None or inner is None or perceiver.hidden_size != text.hidden_size:
        return None
    projection = {"layers": 1, "hidden": text.intermediate_size, "activation": first, "gated": True, "bias": False}
    options = {
        "length": perceiver.resampler_n_latents,
        "layers": perceiver.resampler_depth,
        "heads": perceiver.resampler_n_heads,
        "kv_heads": perceiver.num_key_value_heads,
        "head_width": perceiver.resampler_head_dim,
        "activation": inner,
        "norm_eps": perceiver.rms_norm_eps,
        "projection": projection,
    }
    path = "connector.perceiver_resampler"
    names = _gated("connector.modality_projection", "projection")
    names |= {"latents": (f"{path}.latents",), "norm.weight": (f"{path}.norm.weight",)}
    for i in range(perceiver.resampler_depth):
        names |= _resampler_layer(f"{path}.layers.{i}", f"layers.{i}")
    return Projector("resampler", options, names)


def _gated(theirs: str, ours: str) -> dict[str, tuple[str, ...]]:
    """A gated MLP: our first linear layer has the values, then the gates."""
    return {
        f"{ours}.0.weight": (f"{theirs}.up_proj.weight", f"{theirs}.gate_proj.weight"),
        f"{ours}.2.weight": (f"{theirs}.down_proj.weight",),
    }


def _resampler_layer(theirs: str, ours: str) -> dict[str, tuple[str, ...]]:
    pairs = {
        "latents_norm": "input_latents_norm",
        "context_norm": "input_context_norm",
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "out": "self_attn.o_proj",
        "mlp_norm": "post_attention_layernorm",
    }
    names: dict[str, tuple[str, ...]] = {
        f"{ours}.{one}.weight": (f"{theirs}.{other}.weight",) for one, other in pairs.items()
    }
    return names | _gated(f"{theirs}.mlp", f"{ours}.mlp")


def _blip2(config: Any) -> Projector | None:
    options = _qformer_options(config.qformer_config)
    if options is None:
        return None
    names = {"queries": ("query_tokens",), **_linear("language_projection")}
    names |= _qformer_names(config.qformer_config, "qformer")
    return Projector("qformer", {**options, "length": config.num_query_tokens}, names)


def _granite_speech(config: Any) -> Projector | None:
    """A Q-Former on each window."""
    options = _qformer_options(config.projector_config)
    if options is None:
        return None
    names = {"queries": ("projector.query",), **_linear("projector.linear")}
    names |= _qformer_names(config.projector_config, "projector.qformer")
    window = config.window_size
    return Projector("qformer", {**options, "window": window, "length": window // config.downsample_rate}, names)


def _qformer_options(config: Any) -> dict[str, Any] | None:
    activation = _activation(config.hidden_act)
    if activation is None or config.use_qformer_text_input:
        return None
    return {
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "width": config.hidden_size,
        "hidden": config.intermediate_size,
        "cross_attention_every": config.cross_attention_frequency,
        "activation": activation,
        "norm_eps": config.layer_norm_eps,
        "layer_dropout": config.hidden_dropout_prob,
        "attention_dropout": config.attention_probs_dropout_prob,
    }


def _qformer_names(config: Any, path: str) -> dict[str, tuple[str, ...]]:
    names = _linear(f"{path}.layernorm", "norm")
    for i in range(config.num_hidden_layers):
        layer = f"{path}.encoder.layer.{i}"
        pairs = {"mlp.0": "intermediate_query.dense", "mlp.2": "output_query.dense", "norm": "output_query.LayerNorm"}
        attentions = {"self_attention": "attention"}
        if i % config.cross_attention_frequency == 0:
            attentions["cross_attention"] = "crossattention"
        for ours, theirs in attentions.items():
            pairs |= {f"{ours}.{one}": f"{theirs}.attention.{one}" for one in ("query", "key", "value")}
            pairs |= {f"{ours}.out": f"{theirs}.output.dense", f"{ours}.norm": f"{theirs}.output.LayerNorm"}
        for ours, theirs in pairs.items():
            names |= _linear(f"{layer}.{theirs}", f"layers.{i}.{ours}")
    return names


_PROJECTORS: Mapping[str, Callable[[Any], Projector | None]] = {
    "audioflamingo3": _audio_flamingo,
    "aya_vision": _cohere_vision,
    "blip-2": _blip2,
    "cohere2_vision": _cohere_vision,
    "fast_vlm": _mlp,
    "glmasr": _frames(hidden=2, bias=True),
    "granite_speech": _granite_speech,
    "idefics2": _idefics2,
    "idefics3": _idefics3,
    "internvl": _intern_vl,
    "llama4": lambda _: _one_linear("multi_modal_projector.linear_1", bias=False),
    "llava": _mlp,
    "llava_next": _mlp,
    "llava_next_video": _mlp,
    "llava_onevision": _mlp,
    "musicflamingo": _audio_flamingo,
    "paligemma": lambda _: _one_linear(),
    "qwen2_audio": lambda _: _one_linear(),
    "smolvlm": _idefics3,
    "video_llava": _mlp,
    "vipllava": _vip_llava,
    "voxtral": _frames(),
}
"""By `model_type`."""
