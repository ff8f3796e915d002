"""Random changes of training images."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from magma_vision.augmentation import Augmentation, augment
from magma_vision.clip import Clip
from PIL import Image, ImageEnhance, ImageOps
from pydantic import ValidationError
from torchvision.transforms import RandomResizedCrop

EVERYTHING = {"crop": [0.5, 1.0], "flip": 0.5, "rotation": 20, "brightness": 0.3, "contrast": 0.3, "hue": 0.1}
SMALL: dict[str, Any] = {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64}
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8))


def changed(image: Image.Image, seed: int = 0, **fields: Any) -> Image.Image:
    return augment(image, Augmentation(**fields), 64, (255, 255, 255), random.Random(seed))


def test_only_training_images_are_changed_and_the_generator_decides_how() -> None:
    plain, encoder = Clip(Clip.Config(**SMALL)), Clip(Clip.Config(**SMALL, augmentation=EVERYTHING))
    assert torch.equal(encoder.prepare(PHOTO), plain.prepare(PHOTO))
    before = random.getstate(), torch.get_rng_state()
    first, again, other = (encoder.prepare(PHOTO, random.Random(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (3, 64, 64)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert torch.equal(plain.prepare(PHOTO, random.Random(1)), plain.prepare(PHOTO))


def test_each_change_is_the_one_of_pillow() -> None:
    assert changed(PHOTO, flip=1) == ImageOps.mirror(PHOTO)
    factor = random.Random(3)
    factor.random()  # the flip
    expected = ImageEnhance.Brightness(PHOTO).enhance(factor.uniform(0.5, 1.5))
    assert changed(PHOTO, seed=3, brightness=0.5) == expected
    turned = np.asarray(changed(Image.new("RGB", (40, 40)), rotation=45))
    assert (turned[0, 0] == 255).all()  # a corner has the background colour
    assert (turned[20, 20] == 0).all()
    assert changed(PHOTO) == PHOTO


def test_crops_are_distributed_as_those_of_torchvision() -> None:
    """A gradient shows which part of the image a crop has: its area is drawn as `RandomResizedCrop` draws it."""
    wide = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (256, 1, 3)))

    def widths(crops: list[Image.Image]) -> list[float]:
        return sorted(float(np.ptp(np.asarray(crop)[..., 0])) / 255 for crop in crops)

    ours = widths([changed(wide, seed, crop=[0.2, 0.8]) for seed in range(400)])
    torch.manual_seed(0)
    theirs = widths([RandomResizedCrop(64, (0.2, 0.8), antialias=True)(wide) for _ in range(400)])
    assert np.abs(np.array(ours) - np.array(theirs)).mean() < 0.03
    assert ours[0] > 0.3
    assert ours[-1] > 0.9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop": [0.8, 0.5]}, "in ascending order"),
        ({"crop": [0.5, 1.5]}, "at most 1"),
        ({"flip": 2}, "less than or equal to 1"),
        ({"mirror": 1}, "Extra inputs are not permitted"),
    ],
)
def test_values_that_are_not_allowed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Clip.Config(**SMALL, augmentation=fields)
