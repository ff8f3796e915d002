"""Writes the data set: MP4 clips, and rows with a question and its answer."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magma import InputError, atomic_write

from ..container import missing_package
from .draw import DIRECTIONS, OPPOSITE, RATE, MovingShape

QUESTION = "Which way does it move?"
SPLITS = ("train", "test")
FORWARD, REVERSED = "forward", "reversed"
"""Groups of the held-out rows. Each clip of the first is in the second with its frames in the opposite order."""


def make(out: Path, train: int, test: int, seed: int, progress: Callable[[str], None] = lambda _: None) -> None:
    """Write `train.jsonl` and `test.jsonl` with their clips; the same arguments give the same clips.

    Args:
        out: The folder.
        train: Number of training clips.
        test: Number of held-out clips. Each is written a second time, reversed in time.
        seed: Seed of the random numbers.
        progress: Called with a line of text.

    Raises:
        InputError: PyAV is not installed, or the folder contains something else.
    """
    if problem := missing_package():
        raise InputError(problem.replace("reading", "writing"))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out: given {out}, which exists; allowed: a new or an empty folder")
    for split, count in zip(SPLITS, (train, test), strict=True):
        (out / split).mkdir(parents=True, exist_ok=True)
        rows = []
        for i, row in enumerate(_write_clips(out, split, count, seed)):
            rows.append(json.dumps(row))
            if i % 500 == 499:
                progress(f"{split}: {i + 1:,} clips")
        atomic_write(out / f"{split}.jsonl", "".join(f"{row}\n" for row in rows))


def _write_clips(out: Path, split: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    for i in range(count):
        draw = random.Random(f"{seed} {split} {i}")
        direction = list(DIRECTIONS)[i % len(DIRECTIONS)]  # each of them equally often
        clip = MovingShape.random(direction, draw)
        frames = clip.frames()
        groups = [(FORWARD, direction, frames)]
        if split == "test":
            groups.append((REVERSED, OPPOSITE[direction], frames[::-1]))
        for group, answer, shown in groups:
            file = f"{split}/{i:05}{'' if group == FORWARD else '_reversed'}.mp4"
            write_video(out / file, shown)
            yield {
                "id": Path(file).stem,
                "video": file,
                "question": QUESTION,
                "answer": answer,
                "group": group,
                "shape": clip.shape,
            }


def write_video(path: Path, frames: NDArray[np.uint8]) -> None:
    """Write frames [f, h, w, 3] as an MP4 file."""
    import av

    with av.open(path, "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=RATE, options={"qscale": "3"})
        stream.codec_context.qscale, stream.codec_context.thread_count = True, 1
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", threads=1)))
        container.mux(stream.encode(None))
