"""Image encoders with a feature cache: losses are those without one, bit by bit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import magma
from magma import Example, Magma, Media, RecipeError, Text

ENCODERS: dict[str, dict[str, Any]] = {
    "clip": {"use": "clip", "layers": [1, 1, 1, 1], "width": 16, "image_size": 64},
    "vit": {"use": "clip", "layers": 1, "width": 16, "patch_size": 16, "head_width": 8, "image_size": 64},
    "timm": {"use": "timm", "model": "tf_efficientnet_lite0", "weights": False, "image_size": 64},
    "fused": {
        "use": "fused",
        "of": [
            {"use": "clip", "layers": 1, "width": 16, "patch_size": 16, "head_width": 8, "image_size": 64},
            {"use": "clip", "layers": 1, "width": 8, "patch_size": 32, "head_width": 8, "image_size": 128},
        ],
    },
}


def model(encoder: str, cache: Any) -> Magma:
    recipe = {
        "name": "cached",
        "lm": {"use": "gptj", "weights": "bundled:tiny"},
        "inputs": {
            "image": {
                "trainable": False,
                "cache": cache,
                "encoder": ENCODERS[encoder],
                "prefix": {"use": "linear"},
            }
        },
    }
    return magma.assemble(recipe)


def epochs(one: Magma, files: list[Path]) -> list[float]:
    """Losses of three epochs, each in another order, packed."""
    collator, losses = one.collator(), []
    for epoch in range(3):
        order = random.Random(epoch).sample(files, len(files))
        for first in range(0, len(order), 6):
            examples = [
                Example([Media("image", file), Text(f"picture {file.stem}", target=True)], file.name)
                for file in order[first : first + 6]
            ]
            batch = collator.pack([collator.encode_example(example, random.Random(0)) for example in examples], 64)
            losses.append(float(one.loss(batch).detach()))
    return losses


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    numbers = np.random.default_rng(0)
    found = [folder / f"{i}.png" for i in range(12)]
    for i, file in enumerate(found):
        Image.fromarray(numbers.integers(0, 256, (40 + 5 * i, 60, 3), np.uint8)).save(file)
    return found


@pytest.mark.parametrize("encoder", ENCODERS)
def test_losses_are_those_without_a_cache(encoder: str, files: list[Path], tmp_path: Path) -> None:
    cached = model(encoder, {"folder": str(tmp_path)})
    plain = epochs(model(encoder, False), files)
    assert epochs(cached, files) == plain
    cache = cached.input_modules()["image"].cache
    assert cache is not None
    assert (cache.hits, cache.misses) == (24, 12)


def test_augmentation_is_refused() -> None:
    for encoder in (
        {**ENCODERS["clip"], "augmentation": {"flip": 0.5}},
        {"use": "fused", "of": [ENCODERS["vit"], {**ENCODERS["vit"], "augmentation": {"flip": 0.5}}]},
    ):
        table = {"trainable": False, "cache": True, "encoder": encoder, "prefix": {"use": "linear"}}
        with pytest.raises(RecipeError, match=r"inputs.image.cache: given for an encoder that changes media at random"):
            magma.Recipe.load({"name": "cached", "lm": {"use": "gptj"}, "inputs": {"image": table}})
