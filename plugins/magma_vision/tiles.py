"""Images in more than the resolution of their encoder: a grid of tiles, and the whole image as a thumbnail.

Axes: b batch, n features of a tile, e encoder width.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from magma_media.image_file import open_image
from magma_media.image_values import looks_like_image
from magma_media.preprocessing import check_opaque_colour, to_displayed_rgb
from PIL import Image, ImageColor
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from magma import CheckInputs, Encoder, InputError, PartConfig, PartError, PartOf, PiecewiseEncoder, Prepared

from .grids import best_resolution, closest_aspect_ratio, grids_up_to, size_inside


class Tiles(PiecewiseEncoder):
    """An image encoder on each tile of an image, and on the whole image as a thumbnail.

    The grid depends on the image. The tiles are in reading order, the features of one tile follow those of the one
    before it. The number of features varies with the grid. It has no weights besides those of the image encoder.
    """

    name = "tiles"
    modality = "image"

    class Config(PartConfig):
        """The image encoder, and the grids."""

        of: PartOf[Encoder]
        """The image encoder."""
        tiles: int = Field(6, ge=1)
        """Maximum number of tiles, without the thumbnail."""
        fit: Literal["stretch", "pad"] = "stretch"
        """`"stretch"` (InternVL): the grid whose aspect ratio is closest to that of the image, which is stretched to
        it; the thumbnail is last, and there is none with a single tile. `"pad"` (LLaVA-NeXT): the grid that keeps most
        pixels and wastes fewest; the image keeps its aspect ratio and gets black borders, and the thumbnail is
        first."""
        grids: tuple[tuple[int, int], ...] | None = Field(None, min_length=1)
        """Allowed grids, `[rows, columns]`. Default: all with at most `tiles` tiles."""
        thumbnail: bool = True
        """Add the whole image, stretched to a square."""
        tile_size: int | None = Field(None, ge=1)
        """Pixels per side of a tile. Default: the size of the encoder's images."""
        background: str = "white"
        """Colour that transparent pixels are placed over, as Pillow names it: `"white"`, `"#808080"`."""

        @field_validator("background")
        @classmethod
        def _opaque_colour(cls, given: str) -> str:
            return check_opaque_colour(given)

        @model_validator(mode="after")
        def _grids_fit(self) -> Self:
            for rows, columns in self.grids or ():
                if min(rows, columns) < 1 or rows * columns > self.tiles:
                    raise ValueError(f"grids of 1 to {self.tiles} tiles (`tiles`), not {rows} x {columns}")
            return self

        def allowed_grids(self) -> list[tuple[int, int]]:
            """The grids, in the order in which they are compared."""
            return list(self.grids) if self.grids else grids_up_to(self.tiles)

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.of = config.of.build()
        if self.of.modality != "image":
            raise PartError(
                f"{self.name}: of: given {self.of.name}, which reads {self.of.modality}; allowed: an encoder of images"
            )
        self.tile_size = config.tile_size or _image_size(self.of)
        self.grids = config.allowed_grids()
        most = max(rows * columns for rows, columns in self.grids)
        self.set_sizes(most + self._has_thumbnail(most))

    def _has_thumbnail(self, tiles: int) -> bool:
        return self.config.thumbnail and (tiles > 1 or self.config.fit == "pad")

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """A small image encoder, and images of several shapes."""
        colours = np.arange(40 * 90 * 3, dtype=np.uint32).reshape(40, 90, 3)
        photo = (colours // 29 % 256).astype(np.uint8)
        written = folder / "photo.png"
        Image.fromarray(photo).save(written)
        cut = folder / "cut.png"
        cut.write_bytes(written.read_bytes()[:60])
        of = {"use": "clip", "layers": 1, "width": 16, "image_size": 32, "patch_size": 16, "head_width": 8}
        good = (written, Image.fromarray(photo[:, :35]), photo[:, :20, 0])
        return CheckInputs({"of": of, "tiles": 4}, good, (folder / "none.png", cut, photo[:0]))

    def accepts(self, raw: Any) -> bool:
        """True for a PIL image, an image's path or bytes, and an array or tensor with the shape of an image."""
        return looks_like_image(raw)

    def prepare(self, raw: Any, rng: random.Random | None = None) -> tuple[Prepared, ...]:
        """The tiles and the thumbnail, each prepared by the image encoder. Raises `InputError`."""
        try:
            image = to_displayed_rgb(open_image(raw), ImageColor.getrgb(self.config.background)[:3])
        except InputError as error:
            raise InputError(f"{raw}: {error}") if isinstance(raw, str | Path) else error from error
        return self.prepare_pieces(self.split(image), rng)

    def split(self, image: Image.Image) -> list[Image.Image]:
        """The tiles of an RGB image, and the thumbnail where it belongs."""
        size, side, pad = (image.height, image.width), self.tile_size, self.config.fit == "pad"
        rows, columns = (best_resolution if pad else closest_aspect_ratio)(size, self.grids, side)
        canvas = (_pad if pad else _resize)(image, (rows * side, columns * side))
        tiles = [
            canvas.crop((c * side, r * side, (c + 1) * side, (r + 1) * side))
            for r in range(rows)
            for c in range(columns)
        ]
        if not self._has_thumbnail(len(tiles)):
            return tiles
        thumbnail = _resize(image, (side, side))
        return [thumbnail, *tiles] if pad else [*tiles, thumbnail]


def _image_size(encoder: Encoder) -> int:
    """Pixels per side of the images of an encoder. Raises `PartError` if its items are not square images."""
    item = encoder.max_size_item()
    if isinstance(item, Tensor) and item.ndim == 3 and item.shape[0] == 3 and item.shape[1] == item.shape[2]:
        return int(item.shape[1])
    raise PartError(f"tile_size: it is not given, and {encoder.name} has no image size; allowed: pixels per side")


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _pad(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize an image to fit into a black canvas, and place it in the middle."""
    height, width = size
    inner = _resize(image, size_inside((image.height, image.width), size))
    canvas = Image.new("RGB", (width, height))
    canvas.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
    return canvas
