"""The data set `emoji`: packed and unpacked packages, SVG pictures, names that are held out, facts about countries."""

from __future__ import annotations

import csv
import io
import shutil
import tomllib
from collections import Counter
from pathlib import Path

import magma_data.convert.emoji as emoji_package
import numpy as np
import pytest
from converted_sets import contents, convert, data, held, index
from emoji_files import GOOGLE, ROWS, emoji, pack, row, svg
from magma_data.convert import svg as svg_module
from magma_data.convert.archives import read_archive_folder
from magma_data.convert.check import check as check_folder
from magma_data.convert.emoji.things import read_things
from magma_data.convert.images import LocalImage
from magma_data.convert.svg import SvgImage
from magma_data.sources.captions import Captions
from official_files import Case, put
from PIL import Image

import magma
from magma import Text

TABLES = Path(emoji_package.__file__).parent


# Packages


@pytest.mark.parametrize("given", ["files", "folder", "files and their folder", "mixed", "both"])
def test_packed_packages_give_the_same_shards(given: str, tmp_path: Path) -> None:
    """The archives of GitHub have another top folder than `package`. Of both, the unpacked package is used."""
    case, packed = emoji(tmp_path / "source"), tmp_path / "packed"
    files = pack(case.source, packed, top="package" if given == "files" else "openmoji-16.0.0")
    if given == "files":  # the name of a link counts, as in folders
        files[0].rename(tmp_path / "blob")
        files[0].symlink_to(tmp_path / "blob")
    convert("emoji", case, tmp_path / "whole")
    if given == "mixed":
        shutil.rmtree(case.source / GOOGLE)
    sources = {
        "files": files,
        "folder": [packed],
        "files and their folder": [packed, *(packed / ".." / "packed" / path.name for path in files)],
        "mixed": [case.source, packed / f"{GOOGLE}-16.0.0.tgz"],
        "both": [case.source, packed],
    }[given]
    result = data("convert", "emoji", *sources, "--out", tmp_path / "out", "--workers", 1)
    assert "is complete" in result.stdout
    found, wanted = contents(tmp_path / "out"), contents(tmp_path / "whole")
    assert (f"{GOOGLE}-16.0.0.tgz".encode() in found.pop("options.json")) == (given != "both")
    del wanted["options.json"]
    assert found == wanted


def test_workers_read_archives_too(tmp_path: Path) -> None:
    case = emoji(tmp_path / "source")
    packed = Case(tmp_path / "packed")
    pack(case.source, packed.source)
    convert("emoji", packed, tmp_path / "out", "--samples-per-shard", 3, workers=2)
    assert [(image, fields) for _, image, fields in held(tmp_path / "out", "train")] == case.samples["train"]


def test_a_truncated_archive_is_no_conversion(tmp_path: Path) -> None:
    case = emoji(tmp_path / "source")
    (_, openmoji, _) = pack(case.source, tmp_path / "packed")
    openmoji.write_bytes(openmoji.read_bytes()[:-100])
    with pytest.raises(magma.InputError, match=r"openmoji-16.0.0.tgz: .*; perhaps the download was incomplete"):
        convert("emoji", Case(tmp_path / "packed"), tmp_path / "out")
    openmoji.write_bytes(b"not found")
    with pytest.raises(magma.InputError, match=r"openmoji-16.0.0.tgz: .*; perhaps the download was incomplete"):
        convert("emoji", Case(tmp_path / "packed"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_of_subfolders_are_not_those_of_a_folder(tmp_path: Path) -> None:
    put(tmp_path / "source" / GOOGLE / "package/img/google/64/old/1.png", b"old")
    put(tmp_path / "source" / GOOGLE / "package/img/google/64/1.png", b"new")
    archive, *_ = pack(tmp_path / "source", tmp_path / "packed")
    assert read_archive_folder(str(archive), "img/google/64") == {"1.png": b"new"}
    assert read_archive_folder(str(archive), "img") == {}


def test_packages_that_are_missing_are_named_with_their_command(tmp_path: Path) -> None:
    case = emoji(tmp_path / "source")
    for package in (GOOGLE, "openmoji"):
        shutil.rmtree(case.source / package)
        with pytest.raises(magma.InputError) as caught:
            convert("emoji", case, tmp_path / "out")
        assert f"from npm pack {package}\n" in str(caught.value)
        assert "--split" not in str(caught.value), "every split needs all packages"
    assert "from npm pack emoji-datasource-google\n" in str(caught.value)
    assert "twitter" not in str(caught.value)
    with pytest.raises(magma.InputError, match="given .*gone.*, which does not exist; allowed: the official files, or"):
        data("convert", "emoji", tmp_path / "gone", "--out", tmp_path / "out")


def test_a_package_that_is_there_twice_or_without_pictures_is_refused(tmp_path: Path) -> None:
    case = emoji(tmp_path / "source")
    shutil.copytree(case.source / GOOGLE, case.source / "copy")
    with pytest.raises(magma.InputError, match="emoji-datasource-google was found more than once: .*; allowed: "):
        convert("emoji", case, tmp_path / "out")
    shutil.rmtree(case.source / "copy")
    shutil.rmtree(case.source / "openmoji/package/color")
    with pytest.raises(magma.InputError, match="has no files in color/svg; allowed: from npm pack openmoji"):
        convert("emoji", case, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Pictures


def test_svg_is_rendered_on_a_transparent_background(tmp_path: Path) -> None:
    put(tmp_path / "1.svg", svg(3).encode())
    png = SvgImage(LocalImage((str(tmp_path / "1.svg"),)), 96).read(0)
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (96, 96, 4)
    assert pixels[48, 48].tolist() == [3 * 37, 0x80, 0x40, 255]
    assert pixels[0, 0, 3] == 0
    radius = np.sqrt((pixels[..., 3] > 127).sum() / np.pi)
    assert radius == pytest.approx(20 / 72 * 96, rel=0.02)
    for box, size in (("144 72", (96, 48)), ("72 144", (48, 96))):
        put(tmp_path / "1.svg", svg(3).replace("72 72", box).encode())
        with Image.open(io.BytesIO(SvgImage(LocalImage((str(tmp_path / "1.svg"),)), 96).read(0))) as image:
            assert image.size == size


@pytest.mark.parametrize("content", [b"", b"<svg", b"<html/>", b"\xff\xfe\xfd"])
def test_svg_that_cannot_be_rendered_is_dropped(content: bytes, tmp_path: Path) -> None:
    case = emoji(tmp_path / "source")
    put(case.source / "openmoji/package/color/svg/1F415.svg", content)
    result = convert("emoji", case, tmp_path / "out")
    assert "1  invalid SVG" in result.stdout
    assert [one["style"] for _, _, one in held(tmp_path / "out", "train") if one["name"] == "dog"] == ["noto"]


def test_a_missing_renderer_is_an_error_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = emoji(tmp_path / "source")
    monkeypatch.setattr(svg_module, "find_spec", lambda _: None)
    with pytest.raises(magma.InputError, match=r"emoji: rendering SVG pictures needs resvg-py: pip install resvg-py$"):
        convert("emoji", case, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    convert("emoji", case, tmp_path / "out", "--split", "style")
    assert set(index(tmp_path / "out")["splits"]) == {"style"}


def test_the_licences_are_in_the_folder_which_is_a_data_source(tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert("emoji", emoji(tmp_path / "source"), out)
    readme = (out / "README.md").read_text()
    assert all(text in readme for text in ("`noto`", "Apache License 2.0", "`openmoji`", "CC BY-SA 4.0", "`twemoji`"))
    assert check_folder(out) == []
    rows = Captions(Captions.Config(path=str(out), split="style"), 0)
    examples = [example for example, _ in rows.iterate()]
    assert all(example.problem is None for example in examples)
    texts = {text.text.strip() for example in examples for text in example.segments if isinstance(text, Text)}
    assert {"dog", "red heart", "flag of Kenya"} <= texts


# Names and facts


def test_a_tenth_of_the_names_is_held_out_and_no_flag() -> None:
    things = read_things(row("1F415", f"thing {i}", "objects", "tool") for i in range(5000))
    assert 0.09 < sum(thing.is_held_out for thing in things) / 5000 < 0.11
    flags = read_things(row("1F3F4", f"flag {i}", "flags", "flag") for i in range(200))
    assert not any(flag.is_held_out for flag in flags)
    assert {thing.name for thing in read_things(ROWS) if thing.is_held_out} == {"man student", "penguin"}


def test_the_table_of_countries_is_consistent() -> None:
    with (TABLES / "countries.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 197  # 193 members of the United Nations, its 2 observer states, Kosovo and Taiwan
    codes, countries = [one["code"] for one in rows], [one["country"] for one in rows]
    assert codes == sorted(set(codes))
    assert len(set(countries)) == len(rows)
    assert {part for one in rows for part in one["continent"].split("|")} == {
        *("Africa", "Asia", "Europe", "North America", "South America", "Oceania", "Australia")
    }
    assert all(part == part.strip() != "" for one in rows for cell in one.values() for part in cell.split("|"))
    capitals = Counter(capital for one in rows for capital in one["capital"].split("|"))
    assert {capital for capital, count in capitals.items() if count > 1} == {"Jerusalem"}


def test_every_flag_finds_its_country() -> None:
    with (TABLES / "countries.csv").open(encoding="utf-8", newline="") as lines:
        codes = [one["code"] for one in csv.DictReader(lines)]
    hexcodes = ["-".join(f"{0x1F1E6 + ord(letter) - ord('A'):X}" for letter in code) for code in codes]
    flags = read_things(row(hexcode, "flag: X", "flags", "country-flag") for hexcode in hexcodes)
    assert [flag.facts.get("code") for flag in flags] == codes
    assert all(flag.name == f"flag of {flag.facts['country']}" for flag in flags)


def test_a_thing_has_one_category() -> None:
    table = tomllib.loads((TABLES / "categories.toml").read_text(encoding="utf-8"))
    for key in ("subgroups", "names", "without"):
        entries = Counter(name for entry in table.values() for name in entry.get(key, ()))
        assert max(entries.values()) == 1, key
    names = read_things(
        [
            row("1", "new moon", "travel-places", "sky-weather"),
            row("2", "umbrella", "travel-places", "sky-weather"),
            row("3", "cloud with rain", "travel-places", "sky-weather"),
        ]
    )
    assert [thing.category for thing in names] == ["moon", None, "weather"]
