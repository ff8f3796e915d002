"""Reads frames of video files through PyAV (FFmpeg), with memory for one frame.

A file is read twice: first the times of its packets, without decoding them, then the groups of pictures that have the
chosen frames. Packets between those groups are not decoded.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from magma import InputError

from .timeline import Timeline, evenly_spaced

INSTALL = "pip install 'magma-multimodal[video]'"
CONSTANT_RATE = {"avi"}
"""FFmpeg's names of formats that store no times: their frames have a constant rate and are numbered."""
COUNTED = {"mp4", "avi"}
"""FFmpeg's names of formats whose header has the number of frames."""
MISSING_END = Fraction(1, 5)
"""Seconds. A file whose frames end so much before the end in its header is truncated."""
OPTIONS = {"protocol_whitelist": "file"}
"""A file may be a playlist that names others: nothing is read from the network."""


def missing_package() -> str | None:
    """Why no video file can be read here."""
    return None if find_spec("av") else f"reading video files needs the package av (PyAV); {INSTALL} installs it"


@dataclass(frozen=True)
class VideoFile:
    """A video file. It is opened again for each reading."""

    name: str
    """The beginning of every error message."""
    source: Path | bytes
    timeline: Timeline
    is_numbered: bool
    """Whether the times are the numbers of the frames."""
    keyframes: tuple[Sequence[int], Sequence[int]]
    """Times of the keyframes, and the numbers of their packets. Decoding can begin there."""

    def read(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        """The frames with these increasing indices, as a player shows them. Raises `InputError`."""
        with _open(self.name, self.source) as (container, stream):
            decoder = _Decoder(container, stream, self.is_numbered)
            for i in indices:
                time = self.timeline.times[i]
                frame = decoder.shown_at(time, self._first_packet(time))
                if frame is None or frame.is_corrupt:
                    seconds = float((time - self.timeline.times[0]) * self.timeline.unit)
                    raise InputError(f"{self.name}: the frame at {seconds:.6g} s cannot be decoded")
                yield _to_displayed(frame)

    def _first_packet(self, time: int) -> int:
        """Where decoding has to begin for a frame: at the last keyframe before it."""
        times, numbers = self.keyframes
        before = bisect_right(times, time)
        return numbers[before - 1] if before else 0


class _Decoder:
    """The frames of a stream in the order of display, and jumps to later keyframes."""

    def __init__(self, container: Any, stream: Any, is_numbered: bool) -> None:
        self.container, self.stream, self.is_numbered = container, stream, is_numbered
        self.first_packet = self.packet = 0
        self.frames = self._decode()
        self.next = next(self.frames, None)
        self.shown: Any = None

    def shown_at(self, time: int, first_packet: int) -> Any:
        """The frame that is shown at a time, later than the last one; None if there is none."""
        if first_packet > self.packet:
            self.first_packet, self.shown = first_packet, None
            self.next = next(self.frames, None)
        while self.next is not None and self.next[0] <= time:
            self.shown = self.next[1]
            self.next = next(self.frames, None)
        return self.shown

    def _decode(self) -> Iterator[tuple[int, Any]]:
        """Frames with their times, from `first_packet` on."""
        codec, count = self.stream.codec_context, 0
        flush = False
        for number, packet in enumerate(self.container.demux(self.stream)):
            self.packet = number
            if number < self.first_packet and packet.size:
                flush = True
                continue
            if flush:
                codec.flush_buffers()
                flush = False
            for frame in codec.decode(packet if packet.size else None):
                if self.is_numbered or frame.pts is not None:
                    yield count if self.is_numbered else frame.pts, frame
                count += 1
                if self.first_packet > number:
                    break


def open_file(name: str, source: Path | bytes) -> VideoFile:
    """Read the times of the frames. Raises `InputError` for files that are broken or truncated."""
    with _open(name, source) as (container, stream):
        index = _index(name, container, stream)
        _check_complete(name, container, stream, index)
        if len(index.times) == index.packets and container.format.name not in CONSTANT_RATE:
            timeline = Timeline(sorted(index.times), index.end, stream.time_base)
            return VideoFile(name, source, timeline, False, index.keyframes)
        rate = stream.average_rate or stream.guessed_rate
    with _open(name, source) as (container, stream):
        count = sum(1 for _ in container.decode(stream))
    if not count:
        raise InputError(f"{name}: it has no frames")
    return VideoFile(name, source, evenly_spaced(count, rate), True, ([], []))


@dataclass
class _Index:
    """What the packets say about a stream."""

    packets: int
    """Number of packets with frames to show."""
    times: set[int]
    end: int
    keyframes: tuple[list[int], list[int]]


def _index(name: str, container: Any, stream: Any) -> _Index:
    """Read all packets. Raises `InputError` if there is none, or a damaged one."""
    index = _Index(0, set(), 0, ([], []))
    for number, packet in enumerate(container.demux(stream)):
        if packet.is_corrupt:
            raise InputError(f"{name}: the file is truncated or damaged after {index.packets} frames")
        if not packet.size or packet.is_discard:
            continue
        index.packets += 1
        if packet.pts is None:
            continue
        index.times.add(packet.pts)
        index.end = max(index.end, packet.pts + max(packet.duration or 0, 1))
        if packet.is_keyframe and (not index.keyframes[0] or packet.pts > index.keyframes[0][-1]):
            index.keyframes[0].append(packet.pts)
            index.keyframes[1].append(number)
    if not index.packets:
        raise InputError(f"{name}: it has no frames")
    return index


def _check_complete(name: str, container: Any, stream: Any, index: _Index) -> None:
    """Compare with what the header says. Raises `InputError` if the end of the file is missing."""
    if stream.frames > index.packets and COUNTED & set(container.format.name.split(",")):
        raise InputError(f"{name}: the file is truncated: it has {index.packets} of {stream.frames} frames")
    promised = _seconds(stream.metadata.get("DURATION", ""))  # of Matroska and WebM
    found = index.end * stream.time_base
    if promised is not None and index.times and found < promised - MISSING_END:
        raise InputError(
            f"{name}: the file is truncated: it has {float(found):.4g} of {float(promised):.4g} s of video"
        )


def _seconds(given: str) -> Fraction | None:
    """The seconds of "00:00:02.400000000"."""
    try:
        hours, minutes, seconds = given.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
    except ValueError:
        return None


@contextmanager
def _open(name: str, source: Path | bytes) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream that is not a cover picture. Errors of PyAV become `InputError`s."""
    if problem := missing_package():
        raise InputError(f"{name}: {problem}")
    import av
    from av.stream import Disposition

    file = io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}"
    try:
        with av.open(file, options=OPTIONS, metadata_errors="replace") as container:
            streams = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
            if not streams:
                raise InputError(f"{name}: it has no video stream")
            if streams[0].codec_context is None:
                raise InputError(f"{name}: FFmpeg has no decoder for its video stream")
            yield container, streams[0]
    except av.FFmpegError as error:
        reason = (error.strerror or str(error)).rstrip(".")
        raise InputError(f"{name}: cannot be read as a video: {reason}") from error


TRANSPOSES = {
    # whether the axes are exchanged, whether the new x axis is reversed, and the new y axis
    (False, True, False): Image.Transpose.FLIP_LEFT_RIGHT,
    (False, False, True): Image.Transpose.FLIP_TOP_BOTTOM,
    (False, True, True): Image.Transpose.ROTATE_180,
    (True, False, False): Image.Transpose.TRANSPOSE,
    (True, False, True): Image.Transpose.ROTATE_90,
    (True, True, False): Image.Transpose.ROTATE_270,
    (True, True, True): Image.Transpose.TRANSVERSE,
}
"""What a display matrix does to the stored picture."""


def _to_displayed(frame: Any) -> Image.Image:
    """A frame in RGB, rotated and mirrored by its display matrix."""
    image: Image.Image = frame.to_image(threads=1)  # starting threads takes longer than converting a frame
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    # x' = a x + c y and y' = b x + d y; FFmpeg's libavutil/display.h
    (a, b), (c, d) = np.frombuffer(bytes(matrix), np.int32).reshape(3, 3)[:2, :2].tolist()
    exchanged = abs(a) + abs(d) < abs(b) + abs(c)
    transpose = TRANSPOSES.get((exchanged, (c if exchanged else a) < 0, (b if exchanged else d) < 0))
    return image if transpose is None else image.transpose(transpose)
