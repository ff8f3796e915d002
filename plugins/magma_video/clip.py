"""Opens videos of any form: files, their bytes, animated images, folders of frames, and frames in memory.

Axes: f frames, h height, w width.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from magma import InputError

from .animation import open_animation
from .container import open_file
from .timeline import Timeline, evenly_spaced

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".flv", ".wmv", ".asf", ".mpg", ".mpeg", ".m2v"),
    *(".ts", ".mts", ".m2ts", ".ogv", ".vob", ".mxf", ".y4m"),
)
"""Suffixes of video files, all of which FFmpeg reads."""
ANIMATED_SUFFIXES = (".gif", ".webp", ".apng")
FRAME_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""Suffixes of the pictures in a folder of frames."""
MAGIC = (
    *(b"\x1aE\xdf\xa3", bytes.fromhex("3026b2758e66cf11"), b"FLV", b"\0\0\x01\xba", b"\0\0\x01\xb3", b"YUV4MPEG2"),
    *(b"GIF87a", b"GIF89a"),
)
"""First bytes of Matroska and WebM, Windows Media, Flash, MPEG, Y4M and GIF files."""
AUDIO_BRANDS = (b"M4A ", b"M4B ", b"M4P ")
"""What an MPEG-4 file without video says in bytes 8 to 12."""
PACKET = 188
"""Bytes of a packet of an MPEG transport stream, which begins with G."""
ALLOWED = (
    "a video file or an animated GIF, WebP or APNG (a path, or its bytes), a folder of frames, uint8 frames "
    "[f, h, w, 3] (numpy) or [f, 3, h, w] (tensor), a list of images, or a pair of frames and frames per second"
)


class Clip(Protocol):
    """A video whose frames can be read one after another."""

    @property
    def name(self) -> str:
        """The beginning of every error message."""

    @property
    def timeline(self) -> Timeline:
        """When the frames are shown."""

    def read(self, indices: Sequence[int]) -> Iterator[Any]:
        """The frames with these increasing indices, each as an image encoder accepts it. Raises `InputError`."""


@dataclass(frozen=True)
class Frames:
    """Frames in memory, or the paths of their files."""

    name: str
    frames: Sequence[Any]
    timeline: Timeline

    def read(self, indices: Sequence[int]) -> Iterator[Any]:
        """The frames with these indices."""
        return (self.frames[i] for i in indices)


def looks_like_video(raw: Any) -> bool:
    """True for the path or bytes of a video, a folder, and for frames with or without a rate. Opens no file."""
    if isinstance(raw, Path):
        suffix = raw.suffix.lower()
        return suffix in SUFFIXES + ANIMATED_SUFFIXES or (not suffix and raw.is_dir())
    if isinstance(raw, bytes | bytearray):
        return is_animated(raw) or _is_container(raw)
    if isinstance(raw, tuple) and len(raw) == 2 and _is_number(raw[1]):
        return _are_frames(raw[0])
    return _are_frames(raw)


def open_clip(raw: Any, rate: float | None = None) -> Clip:
    """Open a video without decoding it.

    Args:
        raw: What `looks_like_video` accepts, or a still image in a file, which has one frame.
        rate: Frames per second of a folder, and of frames in memory without a rate.

    Raises:
        InputError: It cannot be read, or is no video.
    """
    if isinstance(raw, str | Path):
        return _open_path(Path(raw), rate)
    if isinstance(raw, bytes | bytearray):
        name = f"a video of {len(raw)} bytes"
        if not raw:
            raise InputError(f"{name}: it is empty")
        return (open_animation if _is_picture(raw) else open_file)(name, bytes(raw))
    if isinstance(raw, tuple) and len(raw) == 2 and _is_number(raw[1]):
        raw, rate = raw[0], float(raw[1])
        if not 0 < rate < float("inf"):
            raise InputError(f"given {rate:g} frames per second; allowed: a number above 0")
    if not _are_frames(raw):
        shape = f" {list(raw.shape)} of {raw.dtype}" if isinstance(raw, np.ndarray | Tensor) else ""
        raise InputError(f"given a {type(raw).__name__}{shape}; allowed: {ALLOWED}")
    return Frames("a video", raw, evenly_spaced(len(raw), rate))


def is_animated(raw: bytes | bytearray) -> bool:
    """Whether the bytes are a GIF, or a WebP or PNG file that says that it is animated."""
    if raw[:4] == b"RIFF" and raw[8:16] == b"WEBPVP8X":
        return bool(raw[20] & 2) if len(raw) > 20 else False
    if raw.startswith(b"\x89PNG\r\n\x1a\n"):
        head = bytes(raw[: raw.find(b"IDAT")])
        return b"acTL" in head
    return raw.startswith((b"GIF87a", b"GIF89a"))


def _is_picture(raw: bytes | bytearray) -> bool:
    return raw.startswith((b"GIF8", b"\x89PNG")) or (raw[:4] == b"RIFF" and raw[8:12] == b"WEBP")


def _is_container(raw: bytes | bytearray) -> bool:
    if raw[4:8] == b"ftyp":
        return bytes(raw[8:12]) not in AUDIO_BRANDS
    transport_stream = len(raw) > PACKET and raw[0] == raw[PACKET] == ord("G")
    return raw.startswith(MAGIC) or (raw[:4] == b"RIFF" and raw[8:12] == b"AVI ") or transport_stream


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _are_frames(raw: Any) -> bool:
    if isinstance(raw, np.ndarray):
        return raw.dtype == np.uint8 and raw.ndim == 4 and raw.shape[-1] == 3 and raw.size > 0
    if isinstance(raw, Tensor):
        return raw.dtype == torch.uint8 and raw.ndim == 4 and raw.shape[1] == 3 and raw.numel() > 0
    return isinstance(raw, list | tuple) and bool(raw) and all(isinstance(one, Image.Image) for one in raw)


def _open_path(path: Path, rate: float | None) -> Clip:
    if path.is_dir():
        frames = sorted(
            (one for one in path.iterdir() if one.suffix.lower() in FRAME_SUFFIXES and not one.name.startswith(".")),
            key=_natural_order,
        )
        if not frames:
            raise InputError(f"{path}: the folder has no frames; allowed: files with {', '.join(FRAME_SUFFIXES)}")
        return Frames(str(path), frames, evenly_spaced(len(frames), rate))
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a video: {error.strerror}") from error
    if not head:
        raise InputError(f"{path}: the file is empty (0 bytes)")
    return (open_animation if _is_picture(head) else open_file)(str(path), path)


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """A sort key for which 9.png comes before 10.png."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]
