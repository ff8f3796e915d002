"""What a path holds: layouts, their files, and the splits that these are of."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from magma import InputError

IMAGE_DATA = "image_data"
INDEX = "index.json"
Layout = Literal["jsonl", "tar", "datasets", "parquet", "authors", "lines", "documents"]
IMAGES: tuple[Layout, ...] = ("datasets", "jsonl", "tar", "parquet")
"""Where every source of images with texts looks, in this order; the first layout that is there is read."""
_MANY = 8
"""So many names of splits are told."""


@dataclass(frozen=True)
class Found:
    """The files of one layout."""

    layout: Layout
    files: Sequence[str]


def find(path: str, split: str | None, layouts: Sequence[Layout] = IMAGES) -> Found | list[str]:
    """The files of a split, or of all; else what is wrong, as `Part.problems` tells it."""
    if is_url(path):
        if split is not None:
            return [f"split: given {split!r}, but a url names its shards itself; allowed: `split = false`"]
        return _existing(Found("tar", _expanded(path)))
    place = Path(path)
    if place.is_file():
        return Found(
            _SUFFIXES.get(place.suffix, layouts[0] if layouts[0] in ("lines", "documents") else "jsonl"), [path]
        )
    known: dict[str, None] = {}
    for layout in layouts:
        splits = _SPLITS[layout](place)
        if split in splits or (split is None and splits):
            chosen = [file for name, files in splits.items() if split in (None, name) for file in files]
            return _existing(Found(layout, chosen))
        known |= dict.fromkeys(splits)
    if not known:
        return [f"path: {path} has none of: {', '.join(_TOLD[layout] for layout in layouts)}"]
    names = [name for name in known if name]
    allowed = ", ".join(names[:_MANY]) + (", ..." if len(names) > _MANY else "") or "`split = false`, which reads all"
    return [f"split: given {split!r}, which {path} does not have; allowed: {allowed}"]


def is_url(path: str) -> bool:
    """Is it for the webdataset library: a url, a command (`pipe:`), or a list in braces?"""
    return "://" in path or path.startswith("pipe:") or bool(re.search(r"\{.*\}", path))


def _expanded(url: str) -> list[str]:
    from webdataset.shardlists import expand_urls

    return [str(one) for one in expand_urls(url)]


def _existing(found: Found) -> Found | list[str]:
    """What is found, unless files that it names are missing."""
    gone = [file for file in found.files if not is_url(file) and not Path(file).exists()]
    more = f", and {len(gone) - 1} others" if len(gone) > 1 else ""
    return [f"path: {gone[0]} is missing{more}"] if gone else found


def _stems(suffix: str) -> Any:
    """Each file is a split."""
    return lambda folder: {file.stem: [str(file)] for file in sorted(folder.glob(f"*{suffix}"), key=str)}


def _numbered(suffix: str) -> Any:
    """`SPLIT-*.tar`: files of one split, numbered; a bare number is of none."""

    def splits(folder: Path) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for file in sorted(folder.glob(f"*{suffix}"), key=str):
            name = re.sub(r"[-_]\d+([-_]of[-_]\d+)?$", "", file.stem)
            found.setdefault("" if name.isdigit() else name, []).append(str(file))
        return found

    return splits


def _shards(folder: Path) -> dict[str, list[str]]:
    """Tar files, as our `index.json` lists them where there is one."""
    listed = _json(folder / INDEX)
    if listed.get("format") != 1 or not isinstance(listed.get("splits"), dict):
        found: dict[str, list[str]] = _numbered(".tar")(folder)
        return found
    try:
        return {
            name: [str(folder / PurePosixPath(shard["file"]).name) for shard in split["shards"]]
            for name, split in listed["splits"].items()
        }
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / INDEX}: its shards cannot be read: {error!r}") from error


def _saved(folder: Path) -> dict[str, list[str]]:
    """What `save_to_disk` of the datasets library wrote."""
    names = _json(folder / "dataset_dict.json").get("splits")
    if isinstance(names, list):
        return {str(name): [str(folder / str(name))] for name in names}
    return {"": [str(folder)]} if (folder / "state.json").is_file() else {}


def _authors(folder: Path) -> dict[str, list[str]]:
    return {"": [str(folder)]} if (folder / IMAGE_DATA).is_dir() else {}


def _documents(folder: Path) -> dict[str, list[str]]:
    files = sorted(map(str, folder.rglob("*.txt")))
    return {"": files} if files else {}


def _json(file: Path) -> Mapping[str, Any]:
    """A JSON object; an empty one where the file is none."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


_SPLITS: Mapping[Layout, Any] = {
    "datasets": _saved,
    "jsonl": _stems(".jsonl"),
    "tar": _shards,
    "parquet": _numbered(".parquet"),
    "authors": _authors,
    "lines": _stems(".txt"),
    "documents": _documents,
}
_TOLD: Mapping[Layout, str] = {
    "datasets": "a folder that `save_to_disk` wrote",
    "jsonl": "*.jsonl",
    "tar": "*.tar",
    "parquet": "*.parquet",
    "authors": f"{IMAGE_DATA}/",
    "lines": "*.txt",
    "documents": "*.txt",
}
_SUFFIXES: Mapping[str, Layout] = {".jsonl": "jsonl", ".tar": "tar", ".parquet": "parquet"}
