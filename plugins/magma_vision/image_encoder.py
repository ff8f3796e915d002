"""The base class of image encoders: preparation of images and loading of weights.

Axes: h height, w width, s the encoder's image size, b batch, n features, e width.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from magma_media.image_file import ALLOWED, example_images, open_image
from magma_media.image_values import looks_like_image
from magma_media.preprocessing import check_opaque_colour, convert_mode, resize_and_crop, to_displayed_rgb
from PIL import ImageColor
from pydantic import field_validator, model_validator
from torch import Tensor, nn

from magma import CheckInputs, Encoder, Features, InputError, PartConfig, PartError

from .augmentation import Augmentation, augment

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ImageConfig(PartConfig):
    """Keys of every image encoder."""

    legacy_defaults = MappingProxyType({"preparation": "published"})
    preparation: Literal["displayed", "published"] = "displayed"
    """`"displayed"`: the pixels that an image viewer shows (EXIF orientation, transparency over `background`, 16- and
    32-bit greyscale scaled to 8 bits). `"published"`: the pixels as stored, as the authors' code reads them."""
    background: str = "white"
    """Colour that transparent pixels are placed over, as Pillow names it: `"white"`, `"#808080"`."""
    augmentation: Augmentation | None = None
    """Random changes of training images, such as `{ crop = [0.6, 1.0], flip = 0.5 }`. Default: none (the paper)."""

    @field_validator("background")
    @classmethod
    def _opaque_colour(cls, given: str) -> str:
        return check_opaque_colour(given)

    @model_validator(mode="after")
    def _background_is_used(self) -> Self:
        if self.preparation == "published" and self.background != "white":
            raise ValueError('`background` only with preparation = "displayed", because "published" drops transparency')
        return self


def flatten_grid(grid: Tensor) -> Tensor:
    """A grid [b, e, h, w] to features [b, n, e], row by row; tokens [b, n, e] are returned unchanged."""
    return grid.flatten(2).transpose(1, 2) if grid.ndim == 4 else grid


class ImageEncoder(Encoder):
    """Base class of image encoders: prepares images as the published code does, and gets sizes from a dry run.

    The shorter side is resized (bicubic) to the image size, and the centre is cropped. Pixels are scaled to 0..1 and
    normalised by mean and standard deviation per channel.
    """

    modality = "image"
    config: ImageConfig
    image_size: int
    allow_smaller = False
    """Whether prepared tensors may be smaller than `image_size`."""
    check_config: ClassVar[Mapping[str, Any]]
    """Config of a small encoder for the conformance checks."""
    mean: Sequence[float]
    std: Sequence[float]

    def __init__(
        self,
        config: ImageConfig,
        build: Callable[[], nn.Module],
        image_size: int,
        dry_run: tuple[nn.Module, Tensor] | None = None,
    ) -> None:
        """`build` creates the network. It stays on the meta device until weights are loaded.

        `dry_run` is a network on the meta device and its features [1, n, e], if the caller has them already.
        """
        super().__init__(config)
        self.image_size = image_size
        self._build = build
        if dry_run:
            self.network = dry_run[0]
            _, self.length, self.dim = dry_run[1].shape
        else:
            with torch.device("meta"):
                self.network = build()
            try:
                self.length, self.dim = self._grid(self.network, image_size, image_size)
            except (RuntimeError, AssertionError) as error:
                raise PartError(
                    f"image_size: given {image_size}, which this network does not support: {error}"
                ) from error
        self._lengths = {(image_size, image_size): self.length}

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """A small configuration of the encoder, and images of several shapes."""
        return CheckInputs(cls.check_config, *example_images(folder))

    @classmethod
    def augments(cls, config: ImageConfig) -> bool:
        """Whether training images are changed at random."""
        return config.augmentation is not None

    def _grid(self, network: nn.Module, height: int, width: int) -> tuple[int, int]:
        """n and e for an image of this size, from a network on the meta device."""
        with torch.device("meta"), torch.no_grad():
            _, n, e = self.features(network.eval(), torch.empty(1, 3, height, width)).shape
        network.train()
        return n, e

    def _length(self, height: int, width: int) -> int | None:
        """n of a prepared image; None if the network does not support its size, or it exceeds `image_size`."""
        if (height, width) not in self._lengths and not self.allow_smaller:
            return None
        if (height, width) not in self._lengths:
            try:
                with torch.device("meta"):
                    network = self._build()
                self._lengths[height, width] = self._grid(network, height, width)[0]
            except (RuntimeError, AssertionError):
                self._lengths[height, width] = 0
        length = self._lengths[height, width]
        return length if 0 < length <= self.length else None

    def init_weights(self) -> None:
        """Draw random weights, as the network's library does."""
        self.network = self._build().train(self.training)

    def load_state(self, state: dict[str, Tensor], where: str) -> None:
        """Load a state dict. Raises `PartError` for missing and unexpected tensors and wrong shapes."""
        wanted = self.network.state_dict()
        problems = [f"{name} is missing" for name in sorted(wanted.keys() - state.keys())]
        problems += [f"{name} is not part of this network" for name in sorted(state.keys() - wanted.keys())]
        problems += [
            f"{name} has the shape {list(state[name].shape)}, in the network {list(wanted[name].shape)}"
            for name in sorted(wanted.keys() & state.keys())
            if wanted[name].shape != state[name].shape
        ]
        if problems:
            shown = "\n".join(f"  - {problem}" for problem in problems[:8])
            raise PartError(f"{where}: {len(problems)} tensors do not fit the network:\n{shown}")
        self.network.load_state_dict(state, assign=True)
        if any(buffer.is_meta for buffer in self.network.buffers()):  # buffers that are not in the file
            self.init_weights()
            self.network.load_state_dict(state)

    @staticmethod
    @abstractmethod
    def features(network: nn.Module, x: Tensor) -> Tensor:
        """Images [b, 3, s, s] to features [b, n, e]."""

    def forward(self, x: Tensor) -> Features:
        """Images [b, 3, s, s] to features [b, n, e], row by row."""
        if x.is_cuda:  # faster with tensor cores; on a CPU, large networks get slower
            x = x.contiguous(memory_format=torch.channels_last)
        return Features(self.features(self.network, x))

    def accepts(self, raw: Any) -> bool:
        """True for a PIL image, an image's path or bytes, and an array or tensor with the shape of an image."""
        return looks_like_image(raw)

    def prepare(self, raw: Any, rng: random.Random | None = None) -> Tensor:
        """An image to [3, s, s] float32; with `rng`, after `augmentation`. Raises `InputError`."""
        size = self.image_size
        allowed = f"{ALLOWED}, or a prepared float tensor [3, {size}, {size}]"
        if isinstance(raw, Tensor) and raw.is_floating_point():
            fits = raw.shape == (3, size, size) or (
                raw.ndim == 3 and raw.shape[0] == 3 and self._length(*raw.shape[1:])
            )
            if not fits or not bool(raw.isfinite().all()):
                finite = "" if bool(raw.isfinite().all()) else " with NaN or infinity"
                raise InputError(f"given a float tensor {list(raw.shape)}{finite}; allowed: {allowed}")
            return raw.float()
        image = open_image(raw, allowed)
        try:
            published = self.config.preparation == "published"
            background = ImageColor.getrgb(self.config.background)[:3]
            image = convert_mode(image) if published else to_displayed_rgb(image, background)
        except InputError as error:
            raise InputError(f"{raw}: {error}") if isinstance(raw, str | Path) else error from error
        if rng is not None and self.config.augmentation is not None:
            image = augment(image, self.config.augmentation, size, background, rng)
        image = resize_and_crop(image, size)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (pixels - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]

    def num_features(self, prepared: Tensor) -> int:
        """Number of features of this image."""
        return self._length(*prepared.shape[1:]) or self.length

    def stack(self, items: Sequence[Tensor]) -> Tensor:
        """Images of one size to [b, 3, h, w]. Raises `InputError` for several sizes."""
        if len(sizes := {tuple(item.shape) for item in items}) > 1:
            raise InputError(
                f"prepared images of several sizes in a batch: {', '.join(map(str, sorted(sizes)))}; allowed: one"
            )
        return torch.stack(list(items))

    def dummy_item(self) -> Tensor:
        """An image [3, s, s] of zeros, which is the mean colour."""
        return torch.zeros(3, self.image_size, self.image_size)
