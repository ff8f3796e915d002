"""Projectors of transformers' multimodal models, and the prefixes that compute the same with their weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from magma_prefixes import magma_parts
from magma_prefixes.transformers_names import _PROJECTORS, find_llava_projector, find_projector
from torch import Tensor, nn

from magma import Features, PartError

DIM, LENGTH, WIDTH = 24, 16, 16
"""Width of the language model; number and width of the features."""
TEXT = {
    **dict.fromkeys(("num_hidden_layers", "num_key_value_heads"), 1),
    "hidden_size": DIM,
    "intermediate_size": 40,
    "num_attention_heads": 2,
    "head_dim": 12,
    "vocab_size": 64,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
}
TOWER = {
    **dict.fromkeys(("hidden_size", "d_model", "vision_output_dim", "num_mel_bins", "image_size"), WIDTH),
    **dict.fromkeys(("num_hidden_layers", "encoder_layers", "num_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "num_heads"), 2),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim"), 4 * WIDTH),
    "patch_size": 4,
}
QFORMER = {
    "model_type": "blip_2_qformer",
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "encoder_hidden_size": WIDTH,
}
PERCEIVER = {
    "hidden_size": DIM,
    "resampler_n_latents": 5,
    "resampler_depth": 2,
    "resampler_n_heads": 4,
    "num_key_value_heads": 2,
    "resampler_head_dim": 6,
    "rms_norm_eps": 1e-5,
}
OTHERS: dict[str, dict[str, Any]] = {
    "aya_vision": {"adapter_layer_norm_eps": 1e-4},
    "blip-2": {"qformer_config": QFORMER, "num_query_tokens": 5},
    "cohere2_vision": {"alignment_intermediate_size": 36},
    "granite_speech": {"projector_config": QFORMER, "window_size": 6, "downsample_rate": 3},
    "idefics2": {"perceiver_config": PERCEIVER},
    "llava": {"projector_hidden_act": "gelu_pytorch_tanh", "vision_feature_layer": -2},
    "llava_next": {"projector_hidden_act": "silu", "multimodal_projector_bias": False},
    "paligemma": {"projection_dim": DIM},
    "vipllava": {"vision_feature_layers": [-1], "projector_layernorm_eps": 1e-4},
}
"""More fields of a configuration."""


def configuration(name: str) -> Any:
    """A tiny one, with the default types of the towers and the language model."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    defaults = CONFIG_MAPPING[name]().to_dict()
    inner = {}
    for key in ("text_config", "vision_config", "audio_config", "encoder_config"):
        if key in defaults:
            inner[key] = {**(TEXT if key == "text_config" else TOWER), "model_type": defaults[key]["model_type"]}
    return AutoConfig.for_model(name, **inner, **OTHERS.get(name, {}))


def projector_module(config: Any) -> Any:
    """The model's own classes on meta, except its projector, which has random weights."""
    import transformers

    with torch.device("meta"):
        prefix = type(config).__name__.removesuffix("Config")
        kind = getattr(transformers, f"{prefix}Model", None) or getattr(
            transformers, f"{prefix}ForConditionalGeneration"
        )
        model = kind(config)
    model = getattr(model, "model", model)
    names = ("multi_modal_projector", "connector", "qformer", "language_projection", "projector")
    torch.manual_seed(0)
    for part in names:
        if isinstance(module := getattr(model, part, None), nn.Module):
            module.to_empty(device="cpu")
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.3)
    if hasattr(model, "query_tokens"):
        model.query_tokens = nn.Parameter(torch.randn(model.query_tokens.shape))
    return model.eval()


def project(name: str, model: Any, values: Tensor, lengths: Tensor) -> Tensor:
    """Features [b, n, e] to embeddings [b, k, d] as the model's own code does it."""
    b, n, e = values.shape
    mask = torch.arange(n) < lengths[:, None]
    if name == "internvl":
        grid = model.pixel_shuffle(values.view(b, 4, 4, e), scale_factor=model.config.downsample_ratio)
        return model.multi_modal_projector(grid.reshape(b, -1, grid.shape[-1]))
    if name in ("voxtral", "glmasr"):
        return model.multi_modal_projector(values.reshape(b, -1, model.config.audio_config.intermediate_size))
    if name == "idefics2":
        return model.connector(values, attention_mask=mask)
    if name in ("idefics3", "smolvlm"):
        return model.connector(values)
    if name == "blip-2":
        queries = model.query_tokens.expand(b, -1, -1)
        read = model.qformer(
            query_embeds=queries, encoder_hidden_states=values, encoder_attention_mask=mask, return_dict=True
        )
        return model.language_projection(read.last_hidden_state)
    if name == "granite_speech":
        return model.projector(values)
    found: Tensor = model.multi_modal_projector(values)
    return found.flatten(1, 2) if found.ndim == 4 else found  # Aya and Cohere keep the grid


@pytest.mark.parametrize("name", sorted(_PROJECTORS))
def test_prefix_equals_the_projector_of_transformers(name: str) -> None:
    config = configuration(name)
    model = projector_module(config)
    torch.manual_seed(1)
    values = torch.randn(2, LENGTH, WIDTH)
    masked = name in ("idefics2", "blip-2")
    lengths = torch.tensor([LENGTH, 11]) if masked else torch.tensor([LENGTH, LENGTH])
    found = find_projector(config)
    assert found is not None
    kind = next(part for part in magma_parts() if part.name == found.use)
    prefix: Any = kind(kind.Config(**found.options), WIDTH, LENGTH, DIM)
    prefix.load_state_dict(found.tensors({f"model.{key}": tensor for key, tensor in model.state_dict().items()}))
    with torch.no_grad():
        expected = project(name, model, values, lengths)
        given = prefix.eval()(Features(values, lengths if masked else None)).values
    assert given.shape == expected.shape
    assert given.shape[1:] == (prefix.length, DIM)
    assert expected.std() > 0.01
    assert (given - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_missing_tensors_are_named() -> None:
    found = find_projector(configuration("llava"))
    assert found is not None
    with pytest.raises(PartError, match=r"lacks tensors of its projector: multi_modal_projector.linear_2.weight$"):
        found.tensors({name: torch.zeros(1) for name in _names(found) if not name.endswith("2.weight")})


def _names(projector: Any) -> list[str]:
    return [name for names in projector.names.values() for name in names]


def test_other_models_have_no_native_prefix() -> None:
    assert find_projector(SimpleNamespace(model_type="mistral3")) is None
    odd = configuration("llava")
    odd.projector_hidden_act = "tanh"
    assert find_projector(odd) is None


@pytest.mark.parametrize(("kind", "linears"), [("linear", 1), ("mlp1x_gelu", 1), ("mlp2x_gelu", 2), ("mlp3x_gelu", 3)])
def test_projector_of_an_original_llava_checkpoint(kind: str, linears: int) -> None:
    """Its code: a linear layer, then N - 1 times GELU and a linear layer."""
    torch.manual_seed(0)
    first = nn.Linear(WIDTH, DIM)
    theirs = nn.Sequential(first, *(layer for _ in range(linears - 1) for layer in (nn.GELU(), nn.Linear(DIM, DIM))))
    source = first if kind == "linear" else theirs
    state = {f"model.mm_projector.{name}": tensor for name, tensor in source.state_dict().items()}
    found = find_llava_projector(kind)
    assert found is not None
    part = next(part for part in magma_parts() if part.name == found.use)
    prefix: Any = part(part.Config(**found.options), WIDTH, LENGTH, DIM)
    prefix.load_state_dict(found.tensors(state))
    x = torch.randn(2, 5, WIDTH)
    assert torch.equal(prefix(Features(x)).values, theirs(x))
    assert find_llava_projector("resampler") is None
