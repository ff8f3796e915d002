"""Converts images to 8-bit RGB, resizes and crops them.

`to_displayed_rgb` returns the pixels that an image viewer shows. `convert_mode` returns those that the published code
reads: Pillow's conversion of the stored pixels. The two are the same for opaque images with 8 bits per channel and no
EXIF orientation.
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
"""EXIF orientation to the operation that corrects it."""
MAX_RESIZED_PIXELS = 2**24
"""Maximum size of a resized image (64 MiB). Of a larger one, only the centre is resized."""


def to_displayed_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Correct the orientation, blend with the background, scale to 8 bits. Raises `InputError`."""
    transpose = _exif_transpose(image)
    image = _blend_with_background(_scale_to_8_bits(image), background)
    return image if transpose is None else image.transpose(transpose)


def convert_mode(image: Image.Image, mode: str = "RGB") -> Image.Image:
    """Pillow's conversion to another mode. Raises `InputError` if Pillow cannot convert the image."""
    try:
        return image.convert(mode)
    except ValueError as error:
        raise InputError(f"given an image of mode {image.mode}: {error}; allowed: one that Pillow converts") from error


def _exif_transpose(image: Image.Image) -> Image.Transpose | None:
    with warnings.catch_warnings(), suppress(Exception):  # damaged EXIF raises many kinds, and is ignored
        warnings.simplefilter("ignore")
        return EXIF_TRANSPOSES.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return None


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale greyscale with 16 or 32 bits, or of floats, to 8 bits; return other images unchanged."""
    sixteen = image.mode.startswith("I;16")
    if not sixteen and image.mode not in ("I", "F"):
        return image
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise InputError("given a float image with NaN or infinity; allowed: 0 to 1")
    minimum, maximum = values.min(), values.max()
    if image.mode == "F":
        full_scale, allowed = 1, "0 to 1"
    elif sixteen or image.format in ("PNG", "PPM"):  # Pillow opens 16 bits of these formats as mode I
        full_scale, allowed = 65535, "0 to 65535"
    else:
        full_scale, allowed = 255 if maximum <= 255 else 65535, "0 to 255, or 0 to 65535"
    if minimum < 0 or maximum > full_scale:
        kind = "a float image" if image.mode == "F" else "a greyscale image"
        raise InputError(f"given {kind} with values from {minimum:g} to {maximum:g}; allowed: {allowed}")
    grey = Image.fromarray(np.rint(values.astype(np.float32) * (255 / full_scale)).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # the transparent value, before scaling
        grey = Image.merge("LA", (grey, Image.fromarray((values != transparent).astype(np.uint8) * 255)))
    return grey


def _blend_with_background(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Convert to RGB; transparent pixels get the colour of the background."""
    if not image.has_transparency_data:
        return convert_mode(image)
    if image.mode == "La":  # premultiplied alpha
        image = convert_mode(image, "LA")
    canvas = Image.new("RGBA", image.size, background)
    return Image.alpha_composite(canvas, convert_mode(image, "RGBA")).convert("RGB")


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` (bicubic) and crop the centre: torchvision's `Resize` and `CenterCrop`.

    A long, thin image is cropped first to limit the memory; its pixels may differ from torchvision's by one level.
    """
    scale = size / min(image.size)
    # as in torchvision, the longer side is rounded down
    width, height = (int(side * scale) if side != min(image.size) else size for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    if width * height > MAX_RESIZED_PIXELS:
        return _resize_centre(image, size, (width, height), (left, top))
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return image.crop((left, top, left + size, top + size))


def _resize_centre(
    image: Image.Image, size: int, resized_size: tuple[int, int], corner: tuple[int, int]
) -> Image.Image:
    """The square at `corner` of the image resized to `resized_size`, without computing the rest."""
    box, window = [], []
    for side, resized, offset in zip(image.size, resized_size, corner, strict=True):
        step = side / resized
        begin, end = offset * step, (offset + size) * step
        support = math.ceil(2 * max(step, 1)) + 1  # of the bicubic filter, in pixels of the original image
        low, high = max(0, math.floor(begin) - support), min(side, math.ceil(end) + support)
        window.append((low, high))
        # Pillow stores them as float32, in which small numbers are exact.
        box.append((begin - low, min(end, side) - low))
    (left, right), (top, bottom) = window
    (x0, x1), (y0, y1) = box
    middle = image.crop((left, top, right, bottom))
    return middle.resize((size, size), Image.Resampling.BICUBIC, box=(x0, y0, x1, y1))
