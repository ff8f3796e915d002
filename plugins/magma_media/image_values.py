"""Recognises images without opening files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")
"""First bytes of image files; WebP is recognised separately."""


def looks_like_image(raw: Any) -> bool:
    """True for a PIL image, an image's path or bytes, and an array or tensor with the shape of an image."""
    if isinstance(raw, Image.Image):
        return True
    if isinstance(raw, Path):
        return raw.suffix.lower() in SUFFIXES
    if isinstance(raw, bytes | bytearray):
        return raw.startswith(MAGIC) or (raw[:4] == b"RIFF" and raw[8:12] == b"WEBP")
    if isinstance(raw, np.ndarray):
        return raw.dtype == np.uint8 and (raw.ndim == 2 or (raw.ndim == 3 and raw.shape[-1] == 3))
    return isinstance(raw, Tensor) and raw.ndim == 3 and raw.shape[0] == 3
