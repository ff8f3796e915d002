"""Tiles of images: the grids and pixels of transformers, and exact numbers of features in batches."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from magma_vision.grids import best_resolution, closest_aspect_ratio, grids_up_to, size_inside
from magma_vision.tiles import Tiles
from PIL import Image
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension
from transformers.models.got_ocr2 import image_processing_pil_got_ocr2 as got
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

import magma
from magma import InputError, PartError

OF = {"use": "clip", "layers": 1, "width": 16, "image_size": 32, "patch_size": 16, "head_width": 8}
"""4 features of 32 x 32 pixels."""
SIZES = [
    *((h, w) for h in (1, 17, 30, 64, 100, 333, 800) for w in (1, 17, 30, 64, 100, 333, 800)),
    (448, 449),
    (31, 32),
]


def photo(height: int, width: int) -> Image.Image:
    values = np.random.default_rng(height * width).integers(256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height))


@pytest.mark.parametrize("tiles", [1, 2, 4, 6, 12])
@pytest.mark.parametrize("side", [14, 32, 448])
def test_grids_of_internvl_are_those_of_transformers(tiles: int, side: int) -> None:
    grids = grids_up_to(tiles)
    assert [(c, r) for r, c in grids] == got.get_all_supported_aspect_ratios(1, tiles)
    for size in SIZES:
        columns, rows = got.get_optimal_tiled_canvas(size, (side, side), 1, tiles)
        assert closest_aspect_ratio(size, grids, side) == (rows, columns), size


@pytest.mark.parametrize("grids", [grids_up_to(6), [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)], [(3, 3)]])
@pytest.mark.parametrize("side", [14, 32, 336])
def test_grids_of_llava_next_are_those_of_transformers(grids: list[tuple[int, int]], side: int) -> None:
    resolutions = [(r * side, c * side) for r, c in grids]
    for size in SIZES:
        height, width = select_best_resolution(size, resolutions) or resolutions[0]  # an image may keep no pixel
        assert best_resolution(size, grids, side) == (height // side, width // side), size
        pixels = np.zeros((3, *size), np.uint8)
        expected = get_patch_output_size(pixels, (height, width), ChannelDimension.FIRST)
        assert size_inside(size, (height, width)) == expected


def as_arrays(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(one).transpose(2, 0, 1) for one in images])


@pytest.mark.parametrize(
    ("size", "count"), [((90, 200), 3), ((200, 90), 3), ((64, 64), 5), ((20, 20), 1), ((31, 100), 4)]
)
def test_stretched_tiles_have_the_pixels_of_transformers(size: tuple[int, int], count: int) -> None:
    image = photo(*size)
    tiles = Tiles(Tiles.Config(of=OF, tiles=4))  # type: ignore[arg-type]  # a table
    processor = got.GotOcr2ImageProcessorPil(
        size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=4, do_normalize=False,
        do_rescale=False,
    )  # fmt: skip
    expected = processor(image, return_tensors="np")["pixel_values"]
    found = as_arrays(tiles.split(image))
    assert len(found) == count
    assert np.array_equal(found, expected.reshape(found.shape))


@pytest.mark.parametrize("size", [(90, 200), (200, 90), (64, 64), (20, 20), (31, 100)])
def test_padded_tiles_have_the_pixels_of_transformers(size: tuple[int, int]) -> None:
    image = photo(*size)
    grids = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
    tiles = Tiles(Tiles.Config(of=OF, tiles=4, fit="pad", grids=grids))  # type: ignore[arg-type]  # a table
    processor = LlavaNextImageProcessorPil(
        size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}, do_normalize=False, do_rescale=False,
        image_grid_pinpoints=[[r * 32, c * 32] for r, c in grids],
    )  # fmt: skip
    (expected,) = processor(image, return_tensors="np")["pixel_values"]
    assert np.array_equal(as_arrays(tiles.split(image)), expected)


@pytest.fixture(scope="module")
def tiles() -> Tiles:
    torch.manual_seed(0)
    return Tiles.build(of=OF, tiles=4)


def test_features_are_those_of_the_image_encoder_one_tile_after_another(tiles: Tiles) -> None:
    images = [photo(64, 64), photo(32, 32), photo(30, 70)]
    items = [tiles.prepare(image) for image in images]
    assert [tiles.num_features(item) for item in items] == [20, 4, 12]
    assert (tiles.length, tiles.dim) == (20, 16)
    found = tiles.eval()(tiles.stack(items))
    assert found.lengths is not None
    assert found.lengths.tolist() == [20, 4, 12]
    for i, image in enumerate(images):
        parts = tiles.split(image)
        expected = tiles.of(torch.stack([tiles.of.prepare(one) for one in parts])).values.flatten(0, 1)
        torch.testing.assert_close(found.values[i, : len(expected)], expected)


def test_packed_rows_equal_single_ones() -> None:
    recipe = magma.Recipe.load(
        {
            "name": "tiles",
            "lm": {"use": "gptj", "weights": "bundled:tiny"},
            "inputs": {"image": {"encoder": {"use": "tiles", "of": OF, "tiles": 4}, "prefix": {"use": "linear"}}},
        }
    )
    torch.manual_seed(0)
    model = magma.assemble(recipe).eval()
    collator = model.collator()
    examples = [
        magma.Example([magma.Media("image", photo(*size)), magma.Text(" a picture", target=True)])
        for size in ((64, 64), (20, 20), (30, 70))
    ]
    encoded = [collator.encode_example(one) for one in examples]
    assert [len(one) - len(encoded[1]) for one in encoded] == [16, 0, 8]
    with torch.no_grad():
        single = sum(float(model(collator.pad([one]))) for one in encoded)
        packed = float(model(collator.pack(encoded, 40)))
        padded = float(model(collator.pad(encoded)))
    assert packed == pytest.approx(single, rel=1e-5)
    assert padded == pytest.approx(single, rel=1e-5)


def test_the_plan_counts_the_largest_grid() -> None:
    table = {"use": "tiles", "of": OF, "tiles": 6}
    recipe = {
        "name": "tiles",
        "lm": {"use": "gptj", "weights": "bundled:tiny"},
        "inputs": {"image": {"encoder": table, "prefix": {"use": "linear"}}},
    }
    model = magma.assemble(recipe)
    assert model.input_modules()["image"].prefix.length == 4 * 7


def test_tiles_are_augmented_in_the_same_way() -> None:
    of = {**OF, "augmentation": {"brightness": 0.5}}
    tiles = Tiles(Tiles.Config(of=of, tiles=2))  # type: ignore[arg-type]  # a table
    grey = Image.new("RGB", (64, 32), (100, 100, 100))
    one, other, thumbnail = tiles.prepare(grey, random.Random(3))
    assert torch.equal(one, other)
    assert torch.equal(one, thumbnail)
    assert not torch.equal(one, tiles.prepare(grey)[0])


def test_transparency_and_orientation_are_corrected(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(40, 80).save(tmp_path / "a.png", exif=exif)
    tiles = Tiles(Tiles.Config(of=OF, tiles=2, background="#808080"))  # type: ignore[arg-type]  # a table
    assert len(tiles.prepare(tmp_path / "a.png")) == 3
    assert tiles.prepare(tmp_path / "a.png")[0].shape == (3, 32, 32)
    clear = tiles.prepare(Image.new("RGBA", (32, 32)))[0]
    assert torch.equal(clear, tiles.prepare(Image.new("RGB", (32, 32), (128, 128, 128)))[0])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"tiles": 2, "grids": [[2, 2]]}, "grids of 1 to 2 tiles"),
        ({"grids": [[0, 2]]}, "grids of 1 to 6 tiles"),
        ({"background": "#00000000"}, "without alpha"),
    ],
)
def test_wrong_keys_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tiles.Config(of=OF, **table)  # type: ignore[arg-type]  # a table


def test_only_encoders_of_images_and_only_images() -> None:
    with pytest.raises(PartError, match="which reads audio; allowed: an encoder of images"):
        Tiles.build(of={"use": "spectrogram", "rate": 8000, "seconds": 0.6, "bands": 16, "width": 16, "heads": 2})
    with pytest.raises(PartError, match="tile_size"):
        Tiles.build(of={"use": "tiles", "of": OF})
    with pytest.raises(InputError, match="given a float; allowed: an image file"):
        Tiles.build(of=OF).prepare(1.0)
