"""The npm packages of the data set `emoji` with a few made-up pictures, and what a conversion of them has to give."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import resvg_py
from official_files import Case, picture, put

GOOGLE, OPENMOJI, TWITTER = "emoji-datasource-google", "openmoji", "emoji-datasource-twitter"
_PICTURES = {GOOGLE: "img/google/64", OPENMOJI: "color/svg", TWITTER: "img/twitter/64"}
_STYLES = {GOOGLE: "noto", OPENMOJI: "openmoji", TWITTER: "twemoji"}


def row(hexcode: str, annotation: str, group: str, subgroups: str, skintone: str = "") -> dict[str, str]:
    """An entry of `openmoji.json`."""
    more = {"tags": f"{annotation}, {group} ", "openmoji_tags": "", "emoji": "", "skintone": skintone}
    return {"hexcode": hexcode, "annotation": annotation, "group": group, "subgroups": subgroups, **more}


DOG = row("1F415", "dog", "animals-nature", "animal-mammal")
HEART = row("2764", "red heart", "smileys-emotion", "heart")  # the other packages write 2764-FE0F
STUDENT = row("1F9D1-200D-1F393", "student", "people-body", "person-role")
MAN_STUDENT = row("1F468-200D-1F393", "man student", "people-body", "person-role")  # a name that is held out
PENGUIN = row("1F427", "penguin", "animals-nature", "animal-bird")  # also held out
KEY = row("1F511", "key", "objects", "lock")
KENYA = row("1F1F0-1F1EA", "flag: Kenya", "flags", "country-flag")
GUERNSEY = row("1F1EC-1F1EC", "flag: Guernsey", "flags", "country-flag")
WALES = row("1F3F4-E0067", "flag: Wales", "flags", "subdivision-flag")
ORCA = row("1FACD", "orca", "animals-nature", "animal-marine")  # only in OpenMoji
NOT_READ = [
    row("1F44B-1F3FB", "waving hand: light skin tone", "people-body", "hand-fingers-open", "1"),
    row("0031-FE0F-20E3", "keycap: 1", "symbols", "keycap"),
    row("1F3FB", "light skin tone", "component", "skin-tone"),
    row("E045", "Android", "extras-openmoji", "brand"),
    row("1F1E6", "regional indicator symbol letter A", "extras-unicode", "regional-indicator"),
]
ROWS = [DOG, HEART, STUDENT, MAN_STUDENT, PENGUIN, KEY, ORCA, KENYA, GUERNSEY, WALES, *NOT_READ]

ATTRIBUTES: dict[str, dict[str, Any]] = {
    "dog": {"category": "animal"},
    "red heart": {"category": "heart"},
    "student": {"category": "person"},
    "man student": {"category": "person"},
    "penguin": {"category": "animal"},
    "key": {"category": None},
    "flag: Kenya": {
        "name": "flag of Kenya",
        "category": "flag",
        "code": "KE",
        "country": "Kenya",
        "capital": "Nairobi",
        "continent": "Africa",
    },
}


def emoji(source: Path) -> Case:
    """The unpacked packages."""
    put(source / "openmoji/package/data/openmoji.json", ROWS)
    data = {
        (package, entry["annotation"]): _put_picture(source, package, entry, number)
        for package in _PICTURES
        for number, entry in enumerate(ROWS)
        if package == OPENMOJI or entry is not ORCA
    }

    def samples(entries: Iterable[dict[str, str]], *packages: str) -> list[tuple[bytes, dict[str, Any]]]:
        return [(data[package, one["annotation"]], _fields(one, package)) for one in entries for package in packages]

    drawn = samples([PENGUIN], *_PICTURES)
    first = samples([MAN_STUDENT], GOOGLE, TWITTER)  # the picture of OpenMoji is that of "student"
    trained = [DOG, HEART, STUDENT, KEY, KENYA]
    return Case(
        source,
        {"train": samples(trained, GOOGLE, OPENMOJI), "style": samples(trained, TWITTER), "thing": first + drawn},
        {
            "train": {"flag of no sovereign state": 4, "not in all packages": 2},
            "style": {"flag of no sovereign state": 2, "not in all packages": 1},
            "thing": {"same picture as another name": 1},
        },
    )


def svg(number: int) -> str:
    """A circle of a colour that no other number has."""
    circle = f'<circle cx="36" cy="36" r="20" fill="#{number * 37 % 256:02x}8040"/>'
    return f'<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">{circle}</svg>'


def pack(source: Path, folder: Path, *, top: str = "package") -> list[Path]:
    """The unpacked packages below `source` as `npm pack` writes them to `folder`."""
    folder.mkdir(parents=True)
    made = []
    for package in _PICTURES:
        made.append(folder / f"{package}-16.0.0.tgz")
        with tarfile.open(made[-1], "w:gz") as tar:
            root = source / package / "package"
            for path in sorted(path for path in root.rglob("*") if path.is_file()):
                info = tarfile.TarInfo(f"{top}/{path.relative_to(root)}")
                content = path.read_bytes()
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return made


def _put_picture(source: Path, package: str, entry: dict[str, str], number: int) -> bytes:
    """Write the picture of an entry. Returns what a shard has to contain."""
    folder = source / package / "package" / _PICTURES[package]
    if package == OPENMOJI:
        text = svg(ROWS.index(STUDENT) if entry is MAN_STUDENT else number)
        put(folder / f"{entry['hexcode']}.svg", text.encode())
        return resvg_py.svg_to_bytes(svg_string=text, width=128, height=128, skip_system_fonts=True)
    stem = "2764-fe0f" if entry is HEART else entry["hexcode"].lower()
    return put(folder / f"{stem}.png", picture(number + 100 * (package == TWITTER), "PNG", (64, 64)))


def _fields(entry: dict[str, str], package: str) -> dict[str, Any]:
    name = entry["annotation"]
    facts = {"name": name, **ATTRIBUTES[name]}
    codes = "2764" if entry is HEART else entry["hexcode"].lower()
    return {
        "id": f"{_STYLES[package]}-{codes}",
        "captions": [facts["name"]],
        "style": _STYLES[package],
        "group": entry["group"],
        "subgroup": entry["subgroups"],
        "tags": [name, entry["group"]],
        **facts,
    }
