"""The encoder `hf`: which tower and features are taken, and what is refused. test_every_encoder.py has every type."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from magma_hf.encoder import HF, HFAudio, HFVision
from PIL import Image
from transformers.utils import logging

import magma
from magma import Example, InputError, Media, PartError, Text
from magma.recipe.recipe import Recipe

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
PIXELS = {"image_size": 32, "patch_size": 8}
DINO = {"model_type": "dinov2_with_registers", **SIZES, **PIXELS}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The library prints at length what it saves."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    yield
    logging.set_verbosity(before)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 40, 3), np.uint8))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A tiny LLaVA of the library, and its folder."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(**SIZES, **PIXELS, projection_dim=16)
    text = LlamaConfig(**{**SIZES, "num_hidden_layers": 1}, vocab_size=96)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text)).eval()
    folder = tmp_path_factory.mktemp("llava")
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize("layer", [None, -2, 1])
def test_the_tower_of_a_whole_model(llava: tuple[Any, Path], photo: Image.Image, layer: int | None) -> None:
    model, folder = llava
    encoder = HFVision.build(weights=str(folder), layer=layer).eval()
    x = encoder.stack([encoder.prepare(photo)])
    with torch.no_grad():
        output = model.model.vision_tower(x, output_hidden_states=True)
        expected = output.last_hidden_state if layer is None else output.hidden_states[layer]
        assert torch.equal(encoder(x).values, expected[:, 1:])
    assert (encoder.length, encoder.dim, encoder.modality) == (16, 32, "image")


def test_several_layers_are_joined_along_the_channels(llava: tuple[Any, Path], photo: Image.Image) -> None:
    model, folder = llava
    encoder = HF.build(weights=str(folder), layer=(-1, -3), features="cls").eval()
    x = encoder.stack([encoder.prepare(photo)])
    with torch.no_grad():
        states = model.model.vision_tower(x, output_hidden_states=True).hidden_states
        assert torch.equal(encoder(x).values, torch.cat([states[-1], states[-3]], dim=2)[:, :1])
    assert (encoder.length, encoder.dim) == (1, 64)


def test_only_what_the_features_depend_on_is_trained(llava: tuple[Any, Path]) -> None:
    encoder = HFVision(HFVision.Config(weights=str(llava[1]), layer=-2))
    frozen = {name for name, parameter in encoder.named_parameters() if not parameter.requires_grad}
    assert all("layers.2." in name or "post_layernorm" in name for name in frozen)
    assert len(frozen) == 18


@pytest.mark.parametrize(("features", "length"), [("patches", 16), ("cls", 1), ("all", 21)])
def test_special_tokens_are_separated(features: str, length: int) -> None:
    encoder = HF(HF.Config(config=DINO, features=features))
    assert encoder.length == length


def test_the_processor_beside_the_weights_prepares(llava: tuple[Any, Path], photo: Image.Image, tmp_path: Path) -> None:
    from transformers import CLIPImageProcessor

    folder = tmp_path / "model"
    llava[0].save_pretrained(folder)
    processor = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3]
    )
    processor.save_pretrained(folder)
    expected = processor(images=[photo], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(HF(HF.Config(weights=str(folder))).prepare(photo), expected)


def test_images_of_any_size_share_a_batch(photo: Image.Image, tmp_path: Path) -> None:
    """Qwen2-VL's tower: patches with their grid; the library computes the images one after the other."""
    from transformers import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

    config = Qwen2VLVisionConfig(depth=2, embed_dim=32, hidden_size=32, num_heads=4, patch_size=8, mlp_ratio=2)
    model = Qwen2VisionTransformerPretrainedModel(config).eval()
    model.save_pretrained(tmp_path)
    processor = Qwen2VLImageProcessor(patch_size=8, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64})
    processor.save_pretrained(tmp_path)
    encoder = HFVision.build(weights=str(tmp_path), features="all").eval()
    images = [photo, photo.resize((80, 30)), photo.resize((33, 33))]
    items = [encoder.prepare(image) for image in images]
    assert len({item[0].shape for item in items}) == 3
    with torch.no_grad():
        found = encoder(encoder.stack(items))
        for row, (image, item) in enumerate(zip(images, items, strict=True)):
            given = processor(images=[image], return_tensors="pt")
            expected = model(given["pixel_values"], grid_thw=given["image_grid_thw"]).last_hidden_state
            n = encoder.num_features(item)
            assert found.lengths is not None
            assert int(found.lengths[row]) == n == len(expected)
            assert torch.allclose(found.values[row, :n], expected, atol=1e-5)


def test_recordings_of_any_duration_share_a_batch(tmp_path: Path) -> None:
    """HuBERT normalises the first convolution over time: padding must not be a part of it."""
    from transformers import HubertConfig, HubertModel

    sizes = {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    model = HubertModel(HubertConfig(**{**SIZES, **sizes}, feat_extract_norm="group")).eval()
    model.save_pretrained(tmp_path)
    encoder = HFAudio.build(weights=str(tmp_path), seconds=1).eval()
    draw = np.random.default_rng(0)
    waves = [(draw.standard_normal(length) * 0.1).astype(np.float32) for length in (4000, 9000, 16000)]
    items = [encoder.prepare((wave, 16000)) for wave in waves]
    with torch.no_grad():
        found = encoder(encoder.stack(items))
        for row, item in enumerate(items):
            expected = model(item[None]).last_hidden_state[0]
            n = encoder.num_features(item)
            assert found.lengths is not None
            assert int(found.lengths[row]) == n == len(expected)
            assert torch.allclose(found.values[row, :n], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "hf: given neither; allowed: `weights`, or `config`"),
        ({"config": {"model_type": "no_such"}}, "hf: config.model_type: given 'no_such'; allowed: a type of"),
        ({"config": {"model_type": "bert"}}, 'hf: given a model of type "bert", in which no tower'),
        ({"config": DINO, "layer": 9}, "hf: layer: given 9; allowed: -4 to 3"),
        ({"config": DINO, "modality": "audio"}, "no tower for audio"),
        ({"config": {"model_type": "resnet"}, "features": "cls"}, 'features: given "cls", but it has no class token'),
        ({"weights": "/no/such"}, "hf: weights: given '/no/such', which is not a folder"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PartError) as raised:
        HF(HF.Config(**fields))
    assert message in str(raised.value)


def test_missing_tensors_are_reported(llava: tuple[Any, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    llava[0].save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    lost = next(name for name in state if "vision" in name and name.endswith("layers.0.mlp.fc1.weight"))
    save_file({name: x for name, x in state.items() if name != lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        PartError, match=r"hf\.weights: .*1 tensors do not fit the tower:\n  - .*fc1\.weight is missing"
    ):
        HF.build(weights=str(folder))


def test_a_broken_image_is_reported(tmp_path: Path) -> None:
    encoder = HF(HF.Config(config=DINO))
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError, match=r"cut\.png cannot be read as an image"):
        encoder.prepare(tmp_path / "cut.png")


@pytest.mark.parametrize("trainable", [False, True])
def test_a_language_model_learns_from_a_tower(photo: Image.Image, trainable: bool) -> None:
    table = {"encoder": {"use": "hf", "config": DINO}, "prefix": {"use": "linear"}, "trainable": trainable}
    recipe = {"name": "seeing", "lm": {"use": "gptj", "weights": "bundled:tiny"}, "inputs": {"image": table}}
    model = magma.assemble(recipe)
    examples = [Example([Media("image", photo), Text(text, target=True)]) for text in (" a", " b")]
    batch = model.collator().batch(examples)
    loss = model.train().loss(batch)
    loss.backward()
    learning = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in learning)
    encoder = model.input_modules()["image"].encoder
    assert any(p.requires_grad for p in encoder.parameters()) is trainable


def test_a_classifier_without_the_pooler_is_read(photo: Image.Image, tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    model = ViTForImageClassification(ViTConfig(**SIZES, **PIXELS)).eval()
    model.save_pretrained(tmp_path)
    encoder = HF.build(weights=str(tmp_path)).eval()
    x = encoder.stack([encoder.prepare(photo)])
    with torch.no_grad():
        assert torch.equal(encoder(x).values, model.vit(x).last_hidden_state[:, 1:])


def test_a_checkpoint_has_the_tower(photo: Image.Image, tmp_path: Path) -> None:
    vit = {"model_type": "vit", **SIZES, **PIXELS}
    table = {"encoder": {"use": "hf", "config": vit, "layer": -2}, "prefix": {"use": "linear"}, "trainable": True}
    recipe = {"name": "seeing", "lm": {"use": "gptj", "weights": "bundled:tiny"}, "inputs": {"image": table}}
    model = magma.assemble(recipe).eval()
    folder = magma.save(model, tmp_path / "model", Recipe.load(recipe))
    assert torch.equal(magma.load(folder).eval().logits([photo, "A"]), model.logits([photo, "A"]))
