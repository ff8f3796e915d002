"""Which pixels an encoder sees: depth, orientation, transparency, long thin images, and the published code's way."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from magma_data.convert import contact_sheet
from magma_data.sources.captions import Captions
from magma_media import preprocessing
from magma_vision.clip import Clip
from magma_vision.nfresnet import NFResNet
from magma_vision.timm_features import Timm
from PIL import Image, ImageOps

from magma import Encoder, InputError, Media, Recipe

SIZE = 64
RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (50, 70, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]
ALPHA = np.where(np.arange(70) < 30, 0, 255).astype(np.uint8) * np.ones((50, 1), np.uint8)


def encoder(part: type[Encoder] = Clip, **fields: Any) -> Any:
    small = {"layers": [1, 1, 1, 1], "width": 16, "image_size": SIZE} if part is Clip else dict(part.check_config)  # type: ignore[attr-defined]
    with torch.device("meta"):
        return part(part.Config(**small, **fields))  # type: ignore[call-arg]


SHOWN, PUBLISHED = encoder(), encoder(preparation="published")


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


# Depth

WIDE = RANDOM.integers(0, 65536, (50, 70), dtype=np.uint16)
NARROWED = np.rint(WIDE / 257).astype(np.uint8)


@pytest.mark.parametrize(
    "raw",
    [
        file_of(Image.fromarray(WIDE), "PNG"),
        file_of(Image.fromarray(WIDE), "TIFF"),
        file_of(Image.fromarray(WIDE), "PPM"),
        Image.fromarray(WIDE),
        Image.frombytes("I;16B", (70, 50), WIDE.astype(">u2").tobytes()),
        Image.fromarray(WIDE.astype(np.int32)),
        file_of(Image.fromarray(WIDE.astype(np.int32)), "TIFF"),
    ],
    ids=["png", "tiff", "pgm", "I;16", "I;16B", "I", "tiff of 32 bits"],
)
def test_sixteen_bits_are_scaled_to_eight(raw: Any) -> None:
    assert torch.equal(SHOWN.prepare(raw), SHOWN.prepare(NARROWED))


def test_a_dark_image_of_sixteen_bits_stays_dark() -> None:
    dark = np.full((8, 8), 200, np.uint16)
    for kind in ("PNG", "PPM"):  # the latter is opened in mode I
        assert torch.equal(
            SHOWN.prepare(file_of(Image.fromarray(dark), kind)), SHOWN.prepare(np.ones((8, 8), np.uint8))
        )


def test_eight_bits_in_wide_integers_and_floats_from_0_to_1() -> None:
    assert torch.equal(SHOWN.prepare(Image.fromarray(GREY.astype(np.int32))), SHOWN.prepare(GREY))
    fractions = Image.fromarray(GREY.astype(np.float32) / 255)
    assert fractions.mode == "F"
    assert torch.equal(SHOWN.prepare(fractions), SHOWN.prepare(GREY))
    assert torch.equal(SHOWN.prepare(file_of(fractions, "TIFF")), SHOWN.prepare(GREY))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((4, 4), 70000, np.int32), "greyscale image with values from 70000 to 70000; allowed: 0 to 255, or 0"),
        (np.full((4, 4), -3, np.int32), "values from -3 to -3; allowed: 0 to 255, or 0 to 65535"),
        (np.full((4, 4), 255, np.float32), "a float image with values from 255 to 255; allowed: 0 to 1"),
        (np.full((4, 4), -0.5, np.float32), "values from -0.5 to -0.5; allowed: 0 to 1"),
        (np.full((4, 4), np.nan, np.float32), "a float image with NaN or infinity; allowed: 0 to 1"),
    ],
)
def test_values_of_no_known_range_are_refused_by_the_files_name(
    tmp_path: Path, values: np.ndarray[Any, Any], message: str
) -> None:
    image = Image.fromarray(values)
    with pytest.raises(InputError, match=message):
        SHOWN.prepare(image)
    image.save(tmp_path / "x.tif")
    with pytest.raises(InputError, match=rf"x.tif: given .*{message}"):
        SHOWN.prepare(tmp_path / "x.tif")


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_an_image_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "x.jpg").write_bytes(file_of(Image.fromarray(COLOUR), "JPEG", exif=exif))
    stored = opened((tmp_path / "x.jpg").read_bytes())
    expected = SHOWN.prepare(np.asarray(ImageOps.exif_transpose(stored)))
    for raw in (tmp_path / "x.jpg", (tmp_path / "x.jpg").read_bytes(), Image.open(tmp_path / "x.jpg")):
        assert torch.equal(SHOWN.prepare(raw), expected)
        assert torch.equal(PUBLISHED.prepare(raw), SHOWN.prepare(np.asarray(stored)))
    for kind in ("PNG", "WEBP", "TIFF"):
        lossless = file_of(Image.fromarray(COLOUR), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
        upright = ImageOps.exif_transpose(opened(lossless))
        assert torch.equal(SHOWN.prepare(lossless), SHOWN.prepare(np.asarray(upright.convert("RGB"))))


def test_damaged_exif_costs_no_image() -> None:
    data = file_of(Image.fromarray(COLOUR), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f broken")
    assert torch.equal(SHOWN.prepare(data), PUBLISHED.prepare(data))


def test_an_image_out_of_a_shard_is_turned_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = file_of(Image.fromarray(COLOUR), "JPEG", exif=exif)
    with tarfile.open(tmp_path / "train-000.tar", "w") as tar:
        for name, content in (("0.jpg", data), ("0.json", json.dumps({"caption": "noise"}).encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    source = Captions(Captions.Config(path=str(tmp_path), split="train"), 0)
    medium = next(source.iterate())[0].segments[0]
    assert isinstance(medium, Media)
    upright = ImageOps.exif_transpose(opened(data))
    assert torch.equal(SHOWN.prepare(medium.value), SHOWN.prepare(np.asarray(upright)))


# Transparency


def transparent() -> dict[str, Any]:
    """Images of which the first 30 columns are transparent, in every way in which Pillow says so."""
    rgba = Image.fromarray(np.dstack([COLOUR, ALPHA]))
    la = Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(ALPHA)))
    two = Image.fromarray((ALPHA // 255).astype(np.uint8), "P")
    two.putpalette([10, 20, 30, 200, 100, 50])
    keyed = np.where(ALPHA[..., None] > 0, COLOUR // 2 + 100, 7).astype(np.uint8)
    wide = np.where(ALPHA > 0, WIDE | 1, 1600)
    return {
        "RGBA": rgba,
        "RGBA png": file_of(rgba, "PNG"),
        "RGBA webp": file_of(rgba, "WEBP", lossless=True),
        "RGBa": rgba.convert("RGBa"),
        "LA": la,
        "LA png": file_of(la, "PNG"),
        "La": la.convert("La"),
        "PA": _pa(two),
        "P with an index": file_of(two, "PNG", transparency=0),
        "P with alphas": file_of(two, "PNG", transparency=b"\x00\xff"),
        "gif": file_of(two, "GIF", transparency=0),
        "RGB with a colour": file_of(Image.fromarray(keyed), "PNG", transparency=(7, 7, 7)),
        "L with a value": file_of(Image.fromarray(keyed[..., 0]), "PNG", transparency=7),
        "16 bits with a value": file_of(Image.fromarray(wide.astype(np.uint16)), "PNG", transparency=1600),
    }


def _pa(palette: Image.Image) -> Image.Image:
    image = palette.convert("PA")
    image.putalpha(Image.fromarray(ALPHA))
    return image


TRANSPARENT = transparent()


@pytest.mark.parametrize("name", TRANSPARENT)
@pytest.mark.parametrize("part", [Clip, NFResNet, Timm])
def test_transparency_shows_the_background(name: str, part: type[Encoder]) -> None:
    raw = TRANSPARENT[name]
    shown = preprocessing.to_displayed_rgb(raw if isinstance(raw, Image.Image) else opened(raw), (0, 128, 255))
    assert shown.mode == "RGB"
    found = np.asarray(shown)
    assert (found[:, :30] == (0, 128, 255)).all()
    opaque = opened(raw).convert("RGBA") if isinstance(raw, bytes) else raw
    if name == "16 bits with a value":
        expected = np.rint((WIDE | 1) / 257)[:, 30:, None]
    else:
        expected = np.asarray((opaque.convert("LA") if opaque.mode == "La" else opaque).convert("RGBA"))[:, 30:, :3]
    assert (found[:, 30:] == expected).all()
    for background, colour in (("white", 255), ("#000000", 0)):
        one = encoder(part, background=background)
        composed = np.where(ALPHA[..., None] > 0, found, colour).astype(np.uint8)
        assert torch.equal(one.prepare(raw), one.prepare(composed))


def test_half_transparency_is_mixed() -> None:
    image = Image.new("RGBA", (8, 8), (200, 100, 0, 128))
    mixed = Image.new("RGB", (8, 8), "white")
    mixed.paste(image, mask=image)
    assert torch.allclose(SHOWN.prepare(image), SHOWN.prepare(mixed), atol=1.01 / 255 / 0.26)
    assert np.asarray(preprocessing.to_displayed_rgb(image, (255, 255, 255)))[0, 0].tolist() == [227, 177, 127]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"background": "blanc"}, 'a colour such as "white"'),
        ({"background": "#ffffff80"}, "without alpha"),
        ({"background": "black", "preparation": "published"}, '`background` only with preparation = "displayed"'),
        ({"preparation": "authors"}, "displayed"),
    ],
)
def test_keys_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder(**fields)


# The published way


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(COLOUR),
        Image.fromarray(GREY),
        Image.fromarray(GREY > 128),
        Image.fromarray(COLOUR).convert("P"),
        Image.fromarray(COLOUR).convert("CMYK"),
        Image.fromarray(COLOUR).convert("YCbCr"),
        Image.fromarray(np.dstack([COLOUR, np.full_like(GREY, 255)])),
        opened(file_of(Image.fromarray(COLOUR), "JPEG")),
    ],
    ids=lambda image: image.mode,
)
def test_opaque_images_of_eight_bits_are_the_same_in_both_ways(image: Image.Image) -> None:
    assert torch.equal(SHOWN.prepare(image), PUBLISHED.prepare(image))
    assert torch.equal(SHOWN.prepare(image), SHOWN.prepare(np.asarray(image.convert("RGB"))))


@pytest.mark.parametrize("name", [name for name in TRANSPARENT if name != "La"])
def test_the_published_way_is_pillows_conversion(name: str) -> None:
    raw = TRANSPARENT[name]
    stored = (raw if isinstance(raw, Image.Image) else opened(raw)).convert("RGB")
    assert torch.equal(PUBLISHED.prepare(raw), SHOWN.prepare(np.asarray(stored)))


def test_a_mode_that_pillow_cannot_convert_is_named() -> None:
    with pytest.raises(InputError, match="an image of mode La: .*allowed"):
        PUBLISHED.prepare(Image.new("La", (4, 4)))


def test_who_prepares_in_which_way(tmp_path: Path) -> None:
    """The authors' recipes, and checkpoints from before there was a choice, keep the published way."""

    def way(source: Any, **options: Any) -> str:
        return str(Recipe.load(source, **options).part("inputs.image.encoder")[1].preparation)

    assert [way(f"released/magma_v{n}") for n in (1, 2)] == ["published"] * 2
    assert [way(name) for name in ("magma_base", "limber_beit", "paper/frozen")] == ["displayed"] * 3
    text = Recipe.load("magma_base").to_toml()
    assert 'preparation = "displayed"' in text
    (tmp_path / "new.toml").write_text(text)
    (tmp_path / "old.toml").write_text(
        text.replace('preparation = "displayed"\n', "").replace('background = "white"\n', "")
    )
    assert way(tmp_path / "new.toml", model_only=True) == "displayed"
    assert way(tmp_path / "old.toml", model_only=True) == "published"
    assert way(tmp_path / "old.toml") == "displayed"  # a recipe that someone wrote


# Size


@pytest.mark.parametrize("shape", [(20_000, 1), (1, 20_000), (3, 150_000)])
def test_a_long_thin_image_is_not_resized_as_a_whole(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]) -> None:
    asked = []
    resize = Image.Image.resize

    def spy(image: Image.Image, size: tuple[int, int], *rest: Any, **options: Any) -> Image.Image:
        asked.append(size)
        assert image.size[0] * image.size[1] < 1000
        return resize(image, size, *rest, **options)

    monkeypatch.setattr(Image.Image, "resize", spy)
    steps = np.arange(max(shape)).reshape(shape[0] if shape[0] > 3 else 1, -1) // (max(shape) // 2) * 200
    image = np.broadcast_to(steps.clip(0, 200).astype(np.uint8), shape)
    monkeypatch.setattr(preprocessing, "MAX_RESIZED_PIXELS", 2**16)
    found = SHOWN.prepare(np.ascontiguousarray(image))
    assert asked == [(SIZE, SIZE)]
    assert found.min() < -1 < 1 < found.max()  # the step from dark to bright is in the middle


@pytest.mark.parametrize(
    "shape", [(8, 8), (101, 64), (64, 97), (300, 211), (75, 333), (40, 3000), (3000, 40), (3, 500), (500, 70), (1, 900)]
)
def test_the_middle_alone_is_what_torchvision_gives(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]) -> None:
    from torchvision import transforms

    image = Image.fromarray(RANDOM.integers(0, 256, (*shape, 3), dtype=np.uint8))
    bicubic = transforms.InterpolationMode.BICUBIC
    whole = transforms.Compose([transforms.Resize(SIZE, bicubic), transforms.CenterCrop(SIZE)])(image)
    assert np.array_equal(np.asarray(preprocessing.resize_and_crop(image, SIZE)), np.asarray(whole))
    monkeypatch.setattr(preprocessing, "MAX_RESIZED_PIXELS", 0)
    middle = preprocessing.resize_and_crop(image, SIZE)
    assert np.abs(np.asarray(middle).astype(int) - np.asarray(whole).astype(int)).max() <= 1


def test_decompression_bombs_are_refused_and_large_images_read_without_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )
    with pytest.raises(
        InputError, match="cannot be read as an image: .*3600000000 pixels.* exceeds limit of 178956970"
    ):
        SHOWN.prepare(bomb)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4200)
    assert SHOWN.prepare(file_of(Image.new("L", (100, 50)), "PNG")).shape == (3, SIZE, SIZE)


def test_an_opened_image_that_is_cut_off_is_refused() -> None:
    data = file_of(Image.fromarray(COLOUR), "PNG")
    with pytest.raises(InputError, match="the opened image cannot be read as an image"):
        SHOWN.prepare(opened(data[: len(data) // 2]))


def test_the_sheet_of_samples_shows_what_a_viewer_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    exif = Image.Exif()
    exif[0x0112] = 6
    drawn: list[Image.Image] = []
    monkeypatch.setattr(Axes, "imshow", lambda _, image: drawn.append(image))
    files = [
        file_of(Image.fromarray(COLOUR), "PNG", exif=exif),
        file_of(Image.fromarray(WIDE), "PNG"),
        TRANSPARENT["RGBA png"],
        file_of(Image.fromarray(COLOUR), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f broken"),
    ]
    samples = [(f"{i}", {"png": data, "json": b'{"captions": ["a"]}'}) for i, data in enumerate(files)]
    contact_sheet._draw_sheet("title", samples, tmp_path / "sheet.png")
    turned, wide, clear, damaged = (np.asarray(image) for image in drawn)
    assert np.array_equal(turned[..., :3], np.rot90(COLOUR, -1))
    assert np.array_equal(wide[..., 0], WIDE // 257)
    assert np.array_equal(clear[..., 3], ALPHA)
    assert np.array_equal(damaged[..., :3], COLOUR)
