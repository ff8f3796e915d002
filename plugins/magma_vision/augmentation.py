"""Random changes of training images: crop, flip, rotation and colour, as torchvision defines them.

All random numbers are drawn from the generator of the example, so that a resumed run sees the same images.
"""

from __future__ import annotations

import math
import random
from typing import Annotated

from PIL import Image
from pydantic import AfterValidator, Field
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from magma import PartConfig

Colour = tuple[int, int, int]
_CROP_ATTEMPTS = 10


def _ordered(given: tuple[float, float]) -> tuple[float, float]:
    if not 0 < given[0] <= given[1] <= 1:
        raise ValueError("two numbers in ascending order, larger than 0 and at most 1, such as [0.6, 1.0]")
    return given


class Augmentation(PartConfig):
    """How training images are changed at random. Images of evaluations are never changed."""

    crop: Annotated[tuple[float, float], AfterValidator(_ordered)] | None = None
    """Smallest and largest area of a random crop, as fractions of the image. Its aspect ratio is 3/4 to 4/3, and it is
    resized to the encoder's image size (RandomResizedCrop of torchvision)."""
    flip: float = Field(0.0, ge=0, le=1)
    """Probability that left and right are exchanged."""
    rotation: float = Field(0.0, ge=0, le=180)
    """Largest rotation in either direction, in degrees. Corners are filled with the background colour."""
    brightness: float = Field(0.0, ge=0, le=1)
    """Largest relative change of the brightness: 0.3 draws a factor from 0.7 to 1.3."""
    contrast: float = Field(0.0, ge=0, le=1)
    """Largest relative change of the contrast."""
    saturation: float = Field(0.0, ge=0, le=1)
    """Largest relative change of the saturation."""
    hue: float = Field(0.0, ge=0, le=0.5)
    """Largest shift of the hue, as a fraction of the colour circle."""


def augment(image: Image.Image, settings: Augmentation, size: int, fill: Colour, rng: random.Random) -> Image.Image:
    """Change an RGB image at random.

    Args:
        image: The image, in RGB.
        settings: What may change, and by how much.
        size: Pixels per side of a crop after it was resized.
        fill: Colour of the corners of a rotated image.
        rng: The only source of randomness.
    """
    if settings.rotation:
        angle = rng.uniform(-settings.rotation, settings.rotation)
        image = tv.rotate(image, angle, InterpolationMode.BILINEAR, fill=list(fill))
    if settings.crop is not None:
        box = _draw_crop(image, settings.crop, rng)
        image = tv.resized_crop(image, *box, [size, size], InterpolationMode.BICUBIC)
    if rng.random() < settings.flip:
        image = tv.hflip(image)
    for adjust, strength in (
        (tv.adjust_brightness, settings.brightness),
        (tv.adjust_contrast, settings.contrast),
        (tv.adjust_saturation, settings.saturation),
    ):
        if strength:
            image = adjust(image, rng.uniform(1 - strength, 1 + strength))
    return tv.adjust_hue(image, rng.uniform(-settings.hue, settings.hue)) if settings.hue else image


def _draw_crop(image: Image.Image, areas: tuple[float, float], rng: random.Random) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop. The largest square in the centre, if no drawn shape fits."""
    width, height = image.size
    for _ in range(_CROP_ATTEMPTS):
        area = width * height * rng.uniform(*areas)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.randint(0, height - h), rng.randint(0, width - w), h, w
    side = min(width, height)
    return (height - side) // 2, (width - side) // 2, side, side
