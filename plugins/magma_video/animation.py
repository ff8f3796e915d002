"""Reads frames of animated images (GIF, WebP, APNG) through Pillow, with memory for one frame."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from magma import InputError

from .timeline import Timeline

FORMATS = ("GIF", "WEBP", "PNG")
"""Pillow's names of formats that can be animated."""
DEFAULT_DURATION = 100
"""Milliseconds of a frame without a duration, as in browsers."""


@dataclass(frozen=True)
class Animation:
    """An animated image. A still image has one frame."""

    name: str
    """The beginning of every error message."""
    source: Path | bytes
    timeline: Timeline
    first: int
    """Pillow's number of the first frame: 1 if an APNG has a picture that is not part of the animation."""

    def read(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        """The frames with these increasing indices, each with what was drawn before it. Raises `InputError`."""
        with _open(self.name, self.source) as image:
            for i in indices:
                with _errors_of_pillow(self.name):
                    image.seek(self.first + i)
                    frame = image.copy()
                yield frame


def open_animation(name: str, source: Path | bytes) -> Animation:
    """Read the times of the frames. Raises `InputError`."""
    durations = []
    with _open(name, source) as image, _errors_of_pillow(name):
        first = int(bool(image.info.get("default_image")))
        for i in range(first, image.n_frames):
            image.seek(i)
            image.load()  # Pillow reads the duration of WebP with the picture
            durations.append(round(image.info.get("duration") or DEFAULT_DURATION))
    *times, end = accumulate(durations, initial=0)
    return Animation(name, source, Timeline(times, end, Fraction(1, 1000)), first)


def _open(name: str, source: Path | bytes) -> Any:
    """An image of Pillow, with its attribute `n_frames`. Raises `InputError`."""
    with _errors_of_pillow(name):
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


@contextmanager
def _errors_of_pillow(name: str) -> Iterator[None]:
    """Inside, exceptions of Pillow become `InputError`s, and its warnings about metadata are not shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # Pillow's decoders raise many kinds
        reason = "its format is unknown" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(f"{name}: cannot be read as an animated image: {reason}") from error
