"""`magma data check` and `magma data show`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset
from converted_sets import convert, data, index
from magma_data.convert.check import check as check_folder
from official_files import CORRUPT, Case, coco_official, picture, put, snli_ve, vqa2
from PIL import Image

import magma

# Check and show


def test_check_finds_what_is_wrong(tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert("vqa2", vqa2(tmp_path / "source"), out, "--samples-per-shard", 1)
    assert data("check", out, "--workers", 1).exit_code == 0
    first, second = (out / entry["file"] for entry in index(out)["splits"]["train"]["shards"])
    whole = first.read_bytes()
    flipped = bytearray(whole)
    flipped[700] ^= 1
    first.write_bytes(flipped)
    result = data("check", out, "--workers", 1)
    assert result.exit_code == 1
    assert f"{first.name}: its sha256 is" in result.stdout
    first.write_bytes(whole)
    second.unlink()
    put(out / "train-000009.tar", b"")
    told = index(out)
    told["splits"]["val"]["rows"] += 1
    put(out / "index.json", told)
    problems = check_folder(out)
    assert f"{second.name}: the file is missing" in problems
    assert "train-000009.tar: not listed in index.json" in problems
    assert "index.json: val has 4 rows, but its shards have 3" in problems


@pytest.mark.parametrize(
    ("sample", "problem"),
    [
        ({"jpg": CORRUPT, "json": b'{"id": "1", "captions": []}'}, "train-000000000: jpg: corrupt image"),
        ({"png": picture(1), "json": b'{"id": "1", "captions": []}'}, "train-000000000: png: the image is a jpg"),
        ({"jpg": picture(1), "json": b'{"id": 1, "captions": []}'}, "train-000000000: json: id: Input should be a"),
        ({"jpg": picture(1), "json": b'{"id": "1"}'}, "train-000000000: json: captions: Field required"),
        ({"jpg": picture(1)}, "train-000000000: json is missing"),
        ({"json": b'{"id": "1", "captions": []}'}, "train-000000000: files json; allowed: one of jpg"),
    ],
)
def test_check_names_shard_and_key(sample: dict[str, bytes], problem: str, tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "train-000000.tar"), encoder=False) as tar:
        tar.write({"__key__": "train-000000000", **sample})
    entry = {"samples": 1, "rows": 1}
    digest = hashlib.sha256((tmp_path / "train-000000.tar").read_bytes()).hexdigest()
    split = {**entry, "shards": [{"file": "train-000000.tar", **entry, "sha256": digest}]}
    put(tmp_path / "index.json", {"format": 1, "name": "x", "kind": "captions", "splits": {"train": split}})
    assert any(found.startswith(f"train-000000.tar: {problem}") for found in check_folder(tmp_path))


@pytest.mark.parametrize("build", [coco_official, vqa2, snli_ve])
def test_show_draws_a_sheet(build: Callable[[Path], Case], tmp_path: Path) -> None:
    name = {coco_official: "coco_captions", vqa2: "vqa2", snli_ve: "snli_ve"}[build]
    out, png = tmp_path / "out", tmp_path / "sheets/sheet.png"
    convert(name, build(tmp_path / "source"), out, "--samples-per-shard", 2)
    result = data("show", out, "--out", png, "--count", 4, "--seed", 1)
    assert result.stdout == f"4 images: {png}\n"
    with Image.open(png) as image:
        assert min(image.size) > 300
    with pytest.raises(magma.InputError, match="--split: given 'dev'; allowed for"):
        data("show", out, "--split", "dev")


def test_folders_that_are_not_finished_are_not_looked_at(tmp_path: Path) -> None:
    for command in ("check", "show"):
        with pytest.raises(magma.InputError, match=r"has no index.json; allowed"):
            data(command, tmp_path)
