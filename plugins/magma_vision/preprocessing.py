"""Opened images to 8-bit RGB, and the square in their middle at an encoder's size.

`to_displayed_rgb` gives what an image viewer shows, `convert_mode` what the published code reads: Pillow's conversion
of the pixels as they are stored. Both give the same for opaque images with 8 bits a channel and no EXIF orientation.
"""

from __future__ import annotations

import math
import warnings
from contextlib import suppress

import numpy as np
from PIL import ExifTags, Image

from magma import InputError

EXIF_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientations, and what brings each upright."""
MAX_RESIZED_PIXELS = 2**24
"""Pixels of a whole resized image (64 MiB). Only the middle of a larger one is resized."""


def to_displayed_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Upright, over a background, and scaled to 8 bits. Raises `InputError` for values with no known range."""
    turn = _exif_transpose(image)
    image = _blend_with_background(_scale_to_8_bits(image), background)
    return image if turn is None else image.transpose(turn)


def convert_mode(image: Image.Image, mode: str = "RGB") -> Image.Image:
    """Pillow's conversion, with an `InputError` where it has none."""
    try:
        return image.convert(mode)
    except ValueError as error:
        raise InputError(f"given an image of mode {image.mode}: {error}; allowed: one that Pillow converts") from error


def _exif_transpose(image: Image.Image) -> Image.Transpose | None:
    with warnings.catch_warnings(), suppress(Exception):  # damaged EXIF raises many kinds; the pixels stay as they are
        warnings.simplefilter("ignore")
        return EXIF_TRANSPOSES.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return None


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Greyscale with 16 or 32 bits, or of floats, to 8 bits; other images as they are."""
    sixteen = image.mode.startswith("I;16")
    if not sixteen and image.mode not in ("I", "F"):
        return image
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise InputError("given a float image with NaN or infinity; allowed: 0 to 1")
    lowest, highest = values.min(), values.max()
    if image.mode == "F":
        whole, allowed = 1, "0 to 1"
    elif sixteen or image.format in ("PNG", "PPM"):  # Pillow has opened 16 bits of these as mode I
        whole, allowed = 65535, "0 to 65535"
    else:
        whole, allowed = 255 if highest <= 255 else 65535, "0 to 255, or 0 to 65535"
    if lowest < 0 or highest > whole:
        kind = "a float image" if image.mode == "F" else "a greyscale image"
        raise InputError(f"given {kind} with values from {lowest:g} to {highest:g}; allowed: {allowed}")
    grey = Image.fromarray(np.rint(values.astype(np.float32) * (255 / whole)).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # the value that is transparent, before scaling
        grey = Image.merge("LA", (grey, Image.fromarray((values != clear).astype(np.uint8) * 255)))
    return grey


def _blend_with_background(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """To RGB; what is transparent shows the background."""
    if not image.has_transparency_data:
        return convert_mode(image)
    if image.mode == "La":  # multiplied by alpha
        image = convert_mode(image, "LA")
    paper = Image.new("RGBA", image.size, background)
    return Image.alpha_composite(paper, convert_mode(image, "RGBA")).convert("RGB")


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """The shorter side to `size`, bicubic, and the middle cut out: torchvision's `Resize` and `CenterCrop`.

    A long, thin image is cut first, which bounds the memory; its pixels may differ from torchvision's by one level.
    """
    scale = size / min(image.size)
    # torchvision's rule: the longer side is cut, not rounded
    width, height = (int(side * scale) if side != min(image.size) else size for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    if width * height > MAX_RESIZED_PIXELS:
        return _resize_middle(image, size, (width, height), (left, top))
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return image.crop((left, top, left + size, top + size))


def _resize_middle(image: Image.Image, size: int, whole: tuple[int, int], corner: tuple[int, int]) -> Image.Image:
    """The square at `corner` of the image resized to `whole`, without the rest of it."""
    box, window = [], []
    for side, resized, first in zip(image.size, whole, corner, strict=True):
        step = side / resized
        begin, end = first * step, (first + size) * step
        reach = math.ceil(2 * max(step, 1)) + 1  # of the bicubic filter, in pixels of the image
        low, high = max(0, math.floor(begin) - reach), min(side, math.ceil(end) + reach)
        window.append((low, high))
        box.append((begin - low, min(end, side) - low))  # Pillow holds them as float32: small numbers are exact
    (left, right), (top, bottom) = window
    (x0, x1), (y0, y1) = box
    middle = image.crop((left, top, right, bottom))
    return middle.resize((size, size), Image.Resampling.BICUBIC, box=(x0, y0, x1, y1))
