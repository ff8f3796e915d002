"""Images as users hold them, to what an encoder reads. Axes: h height, w width, s the encoder's image size."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from PIL import Image, ImageColor
from pydantic import field_validator, model_validator
from torch import Tensor, nn

from magma import CheckInputs, CheckpointError, Encoder, Features, InputError, PartConfig, PartError, read_tensors

from .image_file import ALLOWED, open_image
from .preprocessing import convert_mode, resize_and_crop, to_displayed_rgb

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")
"""What the bytes of an image begin with; WebP's are told by more than that."""
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ImageConfig(PartConfig):
    """The keys that every image encoder has."""

    legacy_defaults = MappingProxyType({"preparation": "published"})
    preparation: Literal["displayed", "published"] = "displayed"
    """Which pixels an image has: those that a viewer displays (turned as EXIF says, transparency over `background`,
    greyscale of 16 or 32 bits scaled), or those that the published code reads, which does nothing of this."""
    background: str = "white"
    """What transparent pixels show: a colour as Pillow names it, such as "white" or "#808080"."""

    @field_validator("background")
    @classmethod
    def _opaque_colour(cls, given: str) -> str:
        try:
            opaque = len(ImageColor.getrgb(given)) == 3
        except ValueError:
            opaque = False
        if not opaque:
            raise ValueError('a colour such as "white" or "#808080", without alpha')
        return given

    @model_validator(mode="after")
    def _background_is_used(self) -> Self:
        if self.preparation == "published" and self.background != "white":
            raise ValueError('`background` with preparation = "displayed": "published" drops transparency')
        return self


def flatten_grid(grid: Tensor) -> Tensor:
    """A grid [b, e, h, w] row by row, or tokens [b, n, e] as they are: [b, n, e]."""
    return grid.flatten(2).transpose(1, 2) if grid.ndim == 4 else grid


class ImageEncoder(Encoder):
    """What image encoders share: preparation as the published code does it, and reading sizes off the network.

    The shorter side is resized (bicubic) to the image size, the centre is cut out, pixels go to 0..1 and are
    normalised by a mean and a standard deviation per channel.
    """

    modality = "image"
    config: ImageConfig
    image_size: int
    allow_smaller = False
    """Prepared tensors may be smaller than `image_size`, where the network takes them."""
    check_config: ClassVar[Mapping[str, Any]]
    """The fields of a small one, for its `check_inputs`."""
    mean: Sequence[float]
    std: Sequence[float]

    def __init__(
        self,
        config: ImageConfig,
        build: Callable[[], nn.Module],
        image_size: int,
        dry_run: tuple[nn.Module, Tensor] | None = None,
    ) -> None:
        """`build` makes the network. It stays on meta, where its output's shape is read, until it gets weights.

        `dry_run` is such a network and its features [1, n, e], where they are known.
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
                raise PartError(f"image_size: given {image_size}, which this network cannot take: {error}") from error
        self._lengths = {(image_size, image_size): self.length}

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """The encoder's own small configuration, with images of any shape."""
        colours = np.arange(40 * 60 * 3, dtype=np.uint32).reshape(40, 60, 3)
        photo, drawing = (colours // 29 % 256).astype(np.uint8), (colours[..., 0] // 7 % 256).astype(np.uint8)
        written = folder / "photo.png"
        Image.fromarray(photo).save(written)
        cut = folder / "cut.png"
        cut.write_bytes(written.read_bytes()[:60])
        good = (written, Image.fromarray(photo[:, :30]), drawing)
        return CheckInputs(cls.check_config, good, (folder / "none.png", cut, photo[:0]))

    def _grid(self, network: nn.Module, height: int, width: int) -> tuple[int, int]:
        """n and e of an image of this size, by a network on meta."""
        with torch.device("meta"), torch.no_grad():
            _, n, e = self.features(network.eval(), torch.empty(1, 3, height, width)).shape
        network.train()
        return n, e

    def _length(self, height: int, width: int) -> int | None:
        """n of a prepared image; None where the network cannot take it, or it is larger than `image_size`."""
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
        """Random ones, as the network's library draws them."""
        self.network = self._build().train(self.training)

    def load_state(self, state: dict[str, Tensor], where: str) -> None:
        """Take a state dict's tensors as they are: every one of the network, each of its shape; more is an error."""
        wanted = self.network.state_dict()
        problems = [f"{name} is missing" for name in sorted(wanted.keys() - state.keys())]
        problems += [f"{name} is not part of this network" for name in sorted(state.keys() - wanted.keys())]
        problems += [
            f"{name} is {list(state[name].shape)}, the network's is {list(wanted[name].shape)}"
            for name in sorted(wanted.keys() & state.keys())
            if wanted[name].shape != state[name].shape
        ]
        if problems:
            shown = "\n".join(f"  - {problem}" for problem in problems[:8])
            raise PartError(f"{where}: {len(problems)} tensors do not fit the network:\n{shown}")
        self.network.load_state_dict(state, assign=True)
        if any(buffer.is_meta for buffer in self.network.buffers()):  # tables that no file holds
            self.init_weights()
            self.network.load_state_dict(state)

    @staticmethod
    @abstractmethod
    def features(network: nn.Module, x: Tensor) -> Tensor:
        """[b, 3, s, s] to [b, n, e]."""

    def forward(self, x: Tensor) -> Features:
        """[b, 3, s, s] to features [b, n, e], row by row."""
        if x.is_cuda:  # tensor cores read channels last; on CPUs small networks gain by it and large ones lose
            x = x.contiguous(memory_format=torch.channels_last)
        return Features(self.features(self.network, x))

    def accepts(self, raw: Any) -> bool:
        """A PIL image, a path with an image's suffix, an image file's bytes, an array or tensor of an image's shape."""
        if isinstance(raw, Image.Image):
            return True
        if isinstance(raw, Path):
            return raw.suffix.lower() in SUFFIXES
        if isinstance(raw, bytes | bytearray):
            return raw.startswith(MAGIC) or (raw[:4] == b"RIFF" and raw[8:12] == b"WEBP")
        if isinstance(raw, np.ndarray):
            return raw.dtype == np.uint8 and (raw.ndim == 2 or (raw.ndim == 3 and raw.shape[-1] == 3))
        return isinstance(raw, Tensor) and raw.ndim == 3 and raw.shape[0] == 3

    def prepare(self, raw: Any, rng: random.Random | None = None) -> Tensor:
        """To [3, s, s] float32. `rng` is not used: the paper augments nothing."""
        size = self.image_size
        if isinstance(raw, Tensor) and raw.is_floating_point():
            fits = raw.shape == (3, size, size) or (
                raw.ndim == 3 and raw.shape[0] == 3 and self._length(*raw.shape[1:])
            )
            if not fits or not bool(raw.isfinite().all()):
                finite = "" if bool(raw.isfinite().all()) else " with NaN or infinity"
                raise InputError(
                    f"given a float tensor {list(raw.shape)}{finite}; allowed: {ALLOWED.format(size=size)}"
                )
            return raw.float()
        image = open_image(raw, size)
        try:
            published = self.config.preparation == "published"
            image = (
                convert_mode(image)
                if published
                else to_displayed_rgb(image, ImageColor.getrgb(self.config.background)[:3])
            )
        except InputError as error:
            raise InputError(f"{raw}: {error}") if isinstance(raw, str | Path) else error from error
        image = resize_and_crop(image, size)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (pixels - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]

    def num_features(self, prepared: Tensor) -> int:
        """n of this image."""
        return self._length(*prepared.shape[1:]) or self.length

    def stack(self, items: Sequence[Tensor]) -> Tensor:
        """[b, 3, h, w], all of one size."""
        if len(sizes := {tuple(item.shape) for item in items}) > 1:
            raise InputError(f"prepared images of several sizes in one batch: {', '.join(map(str, sorted(sizes)))}")
        return torch.stack(list(items))

    def dummy_item(self) -> Tensor:
        """[3, s, s] of zeros: the mean colour."""
        return torch.zeros(3, self.image_size, self.image_size)


def read_state(path: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a torch file; never code."""
    try:
        found, _ = read_tensors(path, "state_dict")
    except CheckpointError as error:
        raise PartError(str(error)) from error
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def describe_failed_download(weights: str, error: Exception) -> str:
    """What to say of weights that a library could not download, with the first line of its reason."""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return f"{weights} cannot be downloaded: {reason.rstrip('.')}. A file of them is allowed too"
