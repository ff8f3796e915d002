"""An image encoder on every frame of a video, with learned positions in time.

Axes: b batch, f frames, n features of a frame, e encoder width.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from magma import CheckInputs, Encoder, Features, InputError, PartConfig, PartError, PartOf, PiecewiseEncoder, Prepared

from .clip import looks_like_video, open_clip


class Frames(PiecewiseEncoder):
    """An image encoder on each of several frames.

    A learned vector for each position in time is added to the features of a frame (as in Flamingo, section 3.1 of its
    paper); it starts at zero. These vectors are the weights of this part, those of the image encoder belong to the part
    `of`: with `of.trainable = false`, only the positions in time are trained.

    In training, `augmentation` of the image encoder is the same for all frames of a video.
    """

    name = "frames"
    modality = "video"

    class Config(PartConfig):
        """The image encoder, and which frames it gets."""

        of: PartOf[Encoder]
        """The image encoder."""
        frames: int = Field(8, ge=1)
        """Maximum number of frames. A shorter video has fewer."""
        per_second: float | None = Field(None, gt=0)
        """Frames per second that are taken from the beginning on; a video with more than `frames` of them is sampled as
        by default. Default: `frames` moments that are evenly spaced over the video."""
        rate: float | None = Field(None, gt=0)
        """Frames per second of folders and arrays of frames, which `per_second` needs. Files have their own."""
        join: Literal["sequence", "channels"] = "sequence"
        """`"sequence"`: the features of the frames follow each other. `"channels"`: those of one place in all frames
        are concatenated, so a video has as many features as a frame, and `frames` times their width; missing frames
        are zeros."""
        positions: Literal["learned", "none"] = "learned"
        """`"learned"`: a vector for the first frame, one for the second, and so on. `"none"`: the features are those of
        the image encoder."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.of = config.of.build()
        if self.of.modality != "image":
            raise PartError(
                f"{self.name}: of: given {self.of.name}, which reads {self.of.modality}; allowed: an encoder of images"
            )
        self.set_sizes(config.frames)
        self.time: nn.Parameter | None = None
        if config.positions == "learned":
            self.time = nn.Parameter(torch.zeros(config.frames, self.dim))
        if config.join == "channels":
            self.dim, self.length = config.frames * self.dim, self.of.length

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """Three frames of a small image encoder; an animation, a folder and frames in memory, of several lengths."""
        colours = np.arange(5 * 40 * 60 * 3, dtype=np.uint32).reshape(5, 40, 60, 3)
        pixels = (colours // 29 % 256).astype(np.uint8)
        images = [Image.fromarray(one) for one in pixels]
        images[0].save(folder / "five.gif", save_all=True, append_images=images[1:], duration=40)
        (folder / "two").mkdir(exist_ok=True)
        for i in range(2):
            images[3 * i].save(folder / "two" / f"{i}.png")
        (folder / "empty").mkdir(exist_ok=True)
        (folder / "cut.gif").write_bytes((folder / "five.gif").read_bytes()[:900])
        (folder / "text.mp4").write_text("no video")
        of = {"use": "clip", "layers": 1, "width": 16, "image_size": 32, "patch_size": 16, "head_width": 8}
        good = (folder / "five.gif", folder / "two", pixels, images[:1])
        bad = (folder / "none.mp4", folder / "text.mp4", folder / "cut.gif", folder / "empty", pixels[:0], pixels[0])
        return CheckInputs({"of": of, "frames": 3}, good, bad)

    def accepts(self, raw: Any) -> bool:
        """True for a video file, an animated image, a folder, and for frames in memory."""
        return looks_like_video(raw)

    def prepare(self, raw: Any, rng: random.Random | None = None) -> tuple[Prepared, ...]:
        """The chosen frames, each prepared by the image encoder. Raises `InputError`."""
        clip, config = open_clip(raw, self.config.rate), self.config
        if config.per_second is not None and not clip.timeline.has_seconds:
            raise InputError(
                f"{clip.name}: its frames per second are unknown, which per_second needs; allowed: a pair of frames "
                "and frames per second, or the key `rate` of the encoder"
            )
        items = self.prepare_pieces(clip.read(clip.timeline.choose(config.frames, config.per_second)), rng)
        if config.join == "channels" and len(counts := set(map(self.of.num_features, items))) > 1:
            raise InputError(
                f"{clip.name}: its frames have {', '.join(map(str, sorted(counts)))} features; allowed with "
                'join = "channels": equal numbers'
            )
        return items

    def num_features(self, prepared: tuple[Prepared, ...]) -> int:
        """The sum over the frames, or with `join = "channels"` the number of one frame."""
        total = super().num_features(prepared)
        return total if self.config.join == "sequence" else total // len(prepared)

    def add_positions(self, values: Tensor) -> Tensor:
        """[b, f, n, e] plus the vector of each frame's position in time."""
        return values if self.time is None else values + self.time[: values.shape[1], None]

    def forward(self, x: tuple[Prepared, Tensor]) -> Features:
        """Frames [b, f, ...] to features [b, f * n, e], or with `join = "channels"` [b, n, frames * e]."""
        if self.config.join == "sequence":
            return super().forward(x)
        values, lengths = self.encode_pieces(x)
        values = self.add_positions(values) * (x[1] > 0.5)[..., None, None]
        missing = self.config.frames - values.shape[1]
        joined = nn.functional.pad(values, (0, 0, 0, 0, 0, missing)).transpose(1, 2).flatten(2)
        if lengths is None or bool((lengths[:, 0] == values.shape[2]).all()):
            return Features(joined)
        return Features(joined, lengths[:, 0])
