"""Video files of several formats, whose frames differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

SIZE = (48, 64)


def frame(i: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """[h, w, 3]: a colour that changes with `i`, and a bright corner at the top left."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[..., 0], pixels[..., 2] = i * 4 % 256, i // 8 * 30 % 256
    pixels[:12, :16, 1] = 255
    return pixels


def write(
    path: Path,
    codec: str = "libx264",
    count: int = 60,
    *,
    options: Mapping[str, str] | None = None,
    container: Mapping[str, str] | None = None,
    times: Sequence[int] | None = None,
    rotation: int = 0,
    size: tuple[int, int] = SIZE,
    pixels: str = "yuv420p",
) -> Path:
    """A video of `count` frames at 25 per second, or at `times` in milliseconds."""
    with av.open(path, "w", options=dict(container or {})) as file:
        stream: Any = file.add_stream(codec, rate=25, options=dict(options or {}))
        (stream.height, stream.width), stream.pix_fmt = size, pixels
        stream.codec_context.thread_count = 1
        if rotation:
            stream.set_display_rotation(rotation)
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(count):
            picture = av.VideoFrame.from_ndarray(frame(i, size), "rgb24").reformat(format=pixels, threads=1)
            if times:
                picture.pts, picture.time_base = times[i], Fraction(1, 1000)
            file.mux(stream.encode(picture))
        file.mux(stream.encode(None))
    return path


def decoded(path: Path) -> list[NDArray[np.uint8]]:
    """All frames of a file, one after another, as PyAV gives them."""
    with av.open(path) as file:
        return [np.asarray(one.to_image(threads=1)) for one in file.decode(video=0)]
