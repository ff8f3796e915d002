"""Opens and decodes images."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from magma import InputError

ALLOWED = (
    "an image file (a path, or its bytes), a PIL image, uint8 pixels [h, w] or [h, w, 3] (numpy) or [3, h, w] (tensor)"
)


def open_image(raw: Any, allowed: str = ALLOWED) -> Image.Image:
    """Open and decode an image. Raises `InputError`; for other types it says what is `allowed`."""
    if isinstance(raw, Image.Image):
        image = decode_image(raw, "the opened image")
    elif isinstance(raw, bytes | bytearray):
        image = decode_image(io.BytesIO(raw), f"a file of {len(raw)} bytes")
    elif isinstance(raw, str | Path):
        image = decode_image(raw, str(raw))
    elif (
        isinstance(raw, np.ndarray) and raw.dtype == np.uint8 and raw.size and (raw.ndim == 2 or raw.shape[2:] == (3,))
    ):
        image = Image.fromarray(raw)
    elif isinstance(raw, Tensor) and raw.dtype == torch.uint8 and raw.numel() and raw.ndim == 3 and raw.shape[0] == 3:
        image = Image.fromarray(raw.permute(1, 2, 0).cpu().numpy())
    else:
        shape = f" {list(raw.shape)} of {raw.dtype}" if isinstance(raw, np.ndarray | Tensor) else ""
        raise InputError(f"given a {type(raw).__name__}{shape}; allowed: {allowed}")
    if min(image.size) < 1:
        raise InputError(f"given an empty image of {image.size[0]} x {image.size[1]} pixels")
    return image


def decode_image(source: Any, name: str) -> Image.Image:
    """Decode a file, or an image that is open. Pillow refuses more than 178,956,970 pixels. Raises `InputError`."""
    try:
        if isinstance(source, Image.Image):
            source.load()
            return source
        with warnings.catch_warnings():
            # Pillow warns about metadata, and from half of the maximum number of pixels on; such images are valid.
            warnings.simplefilter("ignore")
            with Image.open(source) as image:
                image.load()
    except Exception as error:  # Pillow's decoders raise many kinds
        reason = "its format is unknown" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(f"{name} cannot be read as an image: {reason}") from error
    return image


def example_images(folder: Path) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Images of several shapes for the conformance checks, and what is refused: no file, half a file, no pixels."""
    colours = np.arange(40 * 60 * 3, dtype=np.uint32).reshape(40, 60, 3)
    photo, drawing = (colours // 29 % 256).astype(np.uint8), (colours[..., 0] // 7 % 256).astype(np.uint8)
    written = folder / "photo.png"
    Image.fromarray(photo).save(written)
    cut = folder / "cut.png"
    cut.write_bytes(written.read_bytes()[:60])
    good = (written, Image.fromarray(photo[:, :30]), drawing)
    return good, (folder / "none.png", cut, photo[:0])
