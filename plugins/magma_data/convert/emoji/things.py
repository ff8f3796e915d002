"""What the pictures of the data set `emoji` show: names, kinds of things, and facts about countries."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..annotations import clean_text
from .countries import Country, read_countries
from .packages import code_points

_FOLDER = Path(__file__).parent
_EXTRA_GROUPS = ("extras-openmoji", "extras-unicode", "component")
"""Groups that are not read: additions of OpenMoji, and parts of other emoji such as skin tones."""
_HELD_OUT_SHARE = 0.1
_FIRST_REGIONAL_INDICATOR = 0x1F1E6
"""The code point of a flag's letter A."""


@dataclass(frozen=True)
class Thing:
    """What a picture shows."""

    code_points: str
    name: str
    category: str | None
    group: str
    subgroup: str
    tags: tuple[str, ...]
    country: Country | None = None

    @property
    def is_held_out(self) -> bool:
        """Whether it is never trained: a fixed pseudo-random tenth of the names, without flags."""
        number = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4], "big")
        return self.group != "flags" and number < _HELD_OUT_SHARE * 2**32

    @property
    def facts(self) -> dict[str, str]:
        """The fields about the country; empty if it is not the flag of one."""
        return asdict(self.country) if self.country else {}

    @property
    def reason_to_drop(self) -> str:
        """Why no picture of it is converted; "" if they are."""
        is_regional = self.subgroup in ("country-flag", "subdivision-flag")
        return "flag of no sovereign state" if is_regional and self.country is None else ""


def read_things(rows: Iterable[Mapping[str, Any]]) -> list[Thing]:
    """The things in `openmoji.json`, in its order, without keycaps, skin tones and additions of OpenMoji."""
    return [_make_thing(row) for row in rows if _is_thing(row)]


def _is_thing(row: Mapping[str, Any]) -> bool:
    return row["group"] not in _EXTRA_GROUPS and row["subgroups"] != "keycap" and not row["skintone"]


def _make_thing(row: Mapping[str, Any]) -> Thing:
    codes, name, subgroup = code_points(row["hexcode"]), clean_text(row["annotation"]), row["subgroups"]
    country = read_countries().get(_country_code(codes)) if subgroup == "country-flag" else None
    tags = tuple(tag for part in row["tags"].split(",") if (tag := clean_text(part)))
    by_subgroup, by_name = _categories()
    return Thing(
        codes,
        f"flag of {country.country}" if country else name,
        by_name.get(name, by_subgroup.get(subgroup)),
        row["group"],
        subgroup,
        tags,
        country,
    )


def _country_code(codes: str) -> str:
    """KE for 1f1f0-1f1ea."""
    return "".join(chr(int(code, 16) - _FIRST_REGIONAL_INDICATOR + ord("A")) for code in codes.split("-"))


@cache
def _categories() -> tuple[dict[str, str], dict[str, str | None]]:
    """`categories.toml`: the category of each subgroup, and of the names that differ from their subgroup."""
    table = tomllib.loads((_FOLDER / "categories.toml").read_text(encoding="utf-8"))
    by_subgroup = {subgroup: word for word, entry in table.items() for subgroup in entry.get("subgroups", ())}
    by_name: dict[str, str | None] = {name: None for entry in table.values() for name in entry.get("without", ())}
    by_name.update((name, word) for word, entry in table.items() for name in entry.get("names", ()))
    return by_subgroup, by_name
