"""Converts emoji in three drawing styles: two are trained, the third is unseen, and some names are never trained."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from magma import InputError

from ..base_set import OfficialSet, Options
from ..images import ImageError, ImageSource
from ..required_files import FileIndex, SplitFiles
from ..shards import DroppedRow, Item, Record
from ..svg import describe_missing_renderer
from .packages import NOTO, OPENMOJI, STYLES, TWEMOJI, Package, Style
from .things import Thing, read_things

_SPLITS = {"train": (NOTO, OPENMOJI), "style": (TWEMOJI,), "thing": STYLES}
"""The styles of each split. `thing` has the names that are held out, the others have the rest."""

_README = """# Emoji: sources and licences

Each sample has the field `style`:

{}
The names are those of the Unicode CLDR, as OpenMoji lists them, under the Unicode License v3. The pictures of OpenMoji
were rendered from SVG, the others are unchanged. Whoever publishes the pictures has to name their authors, and those of
OpenMoji only under CC BY-SA 4.0.
"""


class Emoji(OfficialSet):
    """Emoji with their names in three drawing styles: about 1,800 things, and the flags of 197 countries."""

    name = "emoji"
    kind = "captions"
    home = "https://unicode.org/emoji/charts/full-emoji-list.html"
    required_files = tuple(style.required_file(split) for split in _SPLITS for style in STYLES)

    def find(self, index: FileIndex, options: Options) -> SplitFiles:
        """Find the packages. Raises `InputError` also if a package has no pictures, or SVG cannot be rendered."""
        found = super().find(index, options)
        for split in found.splits:
            _open_packages(split, found)
        missing = describe_missing_renderer()
        if missing and any(style.is_svg for split in found.splits for style in _SPLITS[split]):
            raise InputError(f"emoji: {missing}")
        return found

    def readme(self) -> str:
        """Sources and licences."""
        return _README.format("".join(f"- `{s.name}`: {s.attribution}. npm package: {s.package}\n" for s in STYLES))

    def read(self, split: str, found: SplitFiles, options: Options) -> Iterable[Item]:
        """One record per thing and style, in Unicode's order of things."""
        packages = _open_packages(split, found)
        things = read_things(packages[OPENMOJI].load_json("data", "openmoji.json"))
        pictures = {style: style.pictures(packages[style]) for style in STYLES}
        complete = {thing for thing in things if all(thing.code_points in held for held in pictures.values())}
        kept = [thing for thing in things if thing in complete and not thing.reason_to_drop]
        repeated = {style: _find_repeated(kept, pictures[style]) for style in _SPLITS[split]}
        return [
            _make_item(thing, style, pictures[style], thing in complete, thing in repeated[style])
            for thing in things
            if thing.is_held_out == (split == "thing")
            for style in _SPLITS[split]
        ]


def _open_packages(split: str, found: SplitFiles) -> dict[Style, Package]:
    return {style: style.open(found.all(style.marker, split)) for style in STYLES}


def _find_repeated(things: Iterable[Thing], pictures: Mapping[str, ImageSource]) -> set[Thing]:
    """The things whose picture has a shorter name too: many families have the same silhouette."""
    same: dict[bytes, list[Thing]] = defaultdict(list)
    for thing in things:
        with suppress(ImageError):  # reported when the shard is written
            same[hashlib.sha256(pictures[thing.code_points].read(0)).digest()].append(thing)
    # `sorted` keeps Unicode's order of names of the same length.
    return {thing for group in same.values() for thing in sorted(group, key=lambda one: len(one.name))[1:]}


def _make_item(
    thing: Thing, style: Style, pictures: Mapping[str, ImageSource], is_complete: bool, is_repeated: bool
) -> Item:
    identity = f"{style.name}-{thing.code_points}"
    if thing.reason_to_drop:
        return DroppedRow(identity, thing.reason_to_drop)
    if not is_complete:
        return DroppedRow(identity, "not in all packages")
    if is_repeated:
        return DroppedRow(identity, "same picture as another name")
    fields: dict[str, Any] = {
        "captions": [thing.name],
        "name": thing.name,
        "style": style.name,
        "category": thing.category,
        "group": thing.group,
        "subgroup": thing.subgroup,
        "tags": list(thing.tags),
    }
    return Record(identity, style.drawn(pictures[thing.code_points]), {**fields, **thing.facts})
