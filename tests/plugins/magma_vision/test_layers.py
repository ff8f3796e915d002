"""`layer` of timm's and open_clip's networks, compared with the libraries' own intermediate features."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from magma_vision.clip import Clip
from magma_vision.timm_features import Timm
from pydantic import ValidationError
from safetensors.torch import save_file

from magma import PartError

VIT: dict[str, Any] = {"layers": 4, "width": 16, "image_size": 32, "patch_size": 8, "head_width": 8}
RESNET: dict[str, Any] = {"layers": (1, 1, 1, 1), "width": 16, "image_size": 64}


def open_clip_network(fields: dict[str, Any]) -> Any:
    from open_clip.model import CLIP

    torch.manual_seed(5)
    text = {"width": 16, "heads": 2, "layers": 1, "vocab_size": 50}
    return CLIP(embed_dim=32, vision_cfg=fields, text_cfg=text).eval()


def intermediates(network: Any, x: torch.Tensor, output_fmt: str) -> list[torch.Tensor]:
    with torch.no_grad():
        found = network.forward_intermediates(x, intermediates_only=True, output_fmt=output_fmt)
    layers = found["image_intermediates"] if isinstance(found, dict) else found
    return [y.flatten(2).transpose(1, 2) if y.ndim == 4 else y for y in layers]


@pytest.mark.parametrize("layer", [-1, -2, 1, [-2, 1], [-1, -3, -1]])
def test_layers_of_a_clip_vit_from_a_file(tmp_path: Path, layer: int | list[int]) -> None:
    whole = open_clip_network(VIT)
    save_file(whole.state_dict(), tmp_path / "clip.safetensors")
    encoder = Clip.build(**VIT, weights=str(tmp_path / "clip.safetensors"), layer=layer).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = intermediates(whole.visual, x, "NLC")
    chosen = [layer] if isinstance(layer, int) else layer
    wanted = torch.cat([expected[index if index < 0 else index - 1] for index in chosen], dim=-1)
    with torch.no_grad():
        values = encoder(x).values
    assert values.shape == (2, encoder.length, encoder.dim)
    assert (values - wanted).abs().max() <= 1e-6
    last = max(index % 4 if index < 0 else index - 1 for index in chosen)
    assert len(encoder.network.trunk.transformer.resblocks) == last + 1  # later ones would never learn
    encoder.train()(x).values.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_layer_minus_two_is_that_of_transformers() -> None:
    """Hidden states of transformers' CLIP, with the same weights, count in the same way."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    theirs = CLIPVisionModel(CLIPVisionConfig(**sizes, intermediate_size=64, hidden_act="gelu")).eval()
    source = {name.removeprefix("vision_model."): tensor for name, tensor in theirs.state_dict().items()}
    encoder = Clip.build(**VIT, layer=-2).eval()
    trunk = encoder.network.trunk
    state = {
        "class_embedding": source["embeddings.class_embedding"],
        "positional_embedding": source["embeddings.position_embedding.weight"],
        "conv1.weight": source["embeddings.patch_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        state[f"ln_pre.{kind}"] = source[f"pre_layrnorm.{kind}"]
        for i in range(3):
            block, layer = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
            attention = [source[f"{layer}.self_attn.{one}_proj.{kind}"] for one in "qkv"]
            state[f"{block}.attn.in_proj_{kind}"] = torch.cat(attention)
            state[f"{block}.attn.out_proj.{kind}"] = source[f"{layer}.self_attn.out_proj.{kind}"]
            for ours, name in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1")):
                state[f"{block}.{ours}.{kind}"] = source[f"{layer}.{name}.{kind}"]
            state[f"{block}.mlp.c_proj.{kind}"] = source[f"{layer}.mlp.fc2.{kind}"]
    trunk.load_state_dict(state)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(x, output_hidden_states=True).hidden_states[-2][:, 1:]
        assert (encoder(x).values - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("layer", [-1, -2, 1])
def test_stages_of_a_clip_resnet(tmp_path: Path, layer: int) -> None:
    whole = open_clip_network({**RESNET, "head_width": 64})
    save_file(whole.state_dict(), tmp_path / "clip.safetensors")
    encoder = Clip.build(**RESNET, weights=str(tmp_path / "clip.safetensors"), layer=layer).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = intermediates(whole.visual, x, "NCHW")[layer if layer < 0 else layer - 1]
    assert (encoder(x).values - expected).abs().max() <= 1e-6
    assert encoder.dim == expected.shape[-1]


@pytest.mark.parametrize(("model", "layer"), [("test_vit", -2), ("test_vit", (2, -1)), ("test_convnext", -2)])
def test_layers_of_a_timm_network_from_a_file(tmp_path: Path, model: str, layer: int | tuple[int, ...]) -> None:
    import timm

    torch.manual_seed(3)
    whole = timm.create_model(model, **({"img_size": 64} if model == "test_vit" else {})).eval()
    save_file(whole.state_dict(), tmp_path / "timm.safetensors")
    encoder = Timm.build(model=model, image_size=64, weights=str(tmp_path / "timm.safetensors"), layer=layer).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = intermediates(whole, x, "NCHW")
    chosen = [layer] if isinstance(layer, int) else layer
    wanted = torch.cat([expected[index if index < 0 else index - 1] for index in chosen], dim=-1)
    assert (encoder(x).values - wanted).abs().max() <= 1e-6


def test_layers_that_do_not_exist_are_refused() -> None:
    with torch.device("meta"):
        with pytest.raises(PartError, match=r"layer: given -5; allowed: -4 to -1, or 1 to 4"):
            Clip(Clip.Config(**VIT, layer=[-1, -5]))
        with pytest.raises(
            PartError, match=r"different numbers of features: 4 in layer -1, 16 in layer -2; allowed: one"
        ):
            Clip(Clip.Config(**RESNET, layer=[-1, -2]))
    for bad in (0, [], [-1, 0]):
        with pytest.raises(ValidationError):
            Clip.Config(**VIT, layer=bad)


def open_clip_towers() -> dict[str, str]:
    """The first name of each kind of image tower of open_clip, by the names that share it, joined.

    Towers of open_clip's own classes that differ only in sizes are of one kind.
    """
    import open_clip

    found: dict[str, list[str]] = {}
    for name in open_clip.list_models():
        vision = open_clip.get_model_config(name)["vision_cfg"]
        sizes = {"image_size", "timm_drop_path"}
        if "timm_model_name" not in vision:
            sizes |= {"width", "head_width", "mlp_ratio", "patch_size"}
            vision["layers"] = type(vision["layers"])  # stages of a ResNet, or the depth of a ViT
        kind = {key: vision[key] for key in sorted(vision.keys() - sizes)}
        found.setdefault(repr(kind), []).append(name)
    return {" ".join(names): names[0] for names in found.values()}


@pytest.mark.slow
def test_every_image_tower_of_open_clip_has_layers() -> None:
    """On the meta device; several names share one tower."""
    no_values = mock.patch("timm.layers.weight_init._trunc_normal_", lambda tensor, *_: tensor)
    works, refused = 0, {}
    for names, first in open_clip_towers().items():
        with torch.device("meta"), no_values:
            try:
                encoder = Clip(Clip.Config(model=first, layer=-2))
            except PartError as error:
                refused[names] = str(error)
                continue
        assert encoder.length > 0
        assert encoder.dim > 0
        works += len(names.split())
    print(f"open_clip: layer = -2 works for {works} names; refused: {refused}")
    assert not refused
    assert works >= 144
