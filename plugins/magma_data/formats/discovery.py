"""What a path holds: layouts, their files, and the splits that these are of."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Literal

from magma import InputError

from .content import COMPRESSIONS

IMAGE_DATA = "image_data"
INDEX, DROPPED = "index.json", "dropped.jsonl"
Layout = Literal["jsonl", "tar", "datasets", "parquet", "csv", "json", "authors", "lines", "documents"]
IMAGES: tuple[Layout, ...] = ("datasets", "jsonl", "tar", "parquet", "csv", "json")
"""Where every source of images with texts looks, in this order; the first layout that is there is read."""
_SUFFIXES: Mapping[str, Layout] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".tar": "tar",
    ".tgz": "tar",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".txt": "lines",
}
_SHOWN: Mapping[Layout, str] = {
    "datasets": "a folder that `save_to_disk` wrote",
    "jsonl": "*.jsonl",
    "tar": "*.tar",
    "parquet": "*.parquet",
    "csv": "*.csv, *.tsv",
    "json": "*.json",
    "authors": f"{IMAGE_DATA}/",
    "lines": "*.txt",
    "documents": "*.txt",
}
_ABOUT_ROWS = re.compile(
    r"(index|options|report|dataset_dict|dataset_infos?|state|config|.*_stats)\.json", re.IGNORECASE
)
"""Files that describe a data set, and hold no rows."""
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing", "testdev", "eval"})
"""Usual names of splits: a folder with files of these names holds a data set."""
_NUMBER = re.compile(r"(?:^|[-_])\d+([-_]of[-_]\d+(-[0-9a-f]{16})?)?$")
"""What follows the split in the name of a shard; the Hub adds a hash."""
_OF = re.compile(r"(.*?)(\d+)([-_]of[-_])(\d+)(?:-[0-9a-f]{16})?(\..*)")
_MANY = 8
"""The most names that an error lists."""


# Names


def is_remote(path: str) -> bool:
    """Is it a url or a command (`pipe:`), which the webdataset library opens?"""
    return "://" in path or path.startswith("pipe:")


def is_url(path: str) -> bool:
    """Is it remote, or a pattern in braces that stands for several files? What exists is no pattern."""
    return is_remote(path) or (bool(re.search(r"\{.*\}", path)) and not Path(path).exists())


def is_hidden(inside: PurePath) -> bool:
    """Does a path inside a folder or an archive belong to the system that packed it, as `._0.jpg` does?"""
    return any(
        (part.startswith(".") and part not in (".", "..")) or part.lower() in ("__macosx", "thumbs.db", "desktop.ini")
        for part in inside.parts
    )


def split_suffix(name: str) -> tuple[str, str]:
    """("train", ".jsonl") of "train.JSONL.gz": what decides how a file is read, in lower case."""
    stem, dot, suffix = name.rpartition(".")
    if dot and f".{suffix}".lower() in COMPRESSIONS and "." in stem:
        stem, dot, suffix = stem.rpartition(".")
    return (stem, f".{suffix}".lower()) if stem else (name, "")


# What is there


@dataclass(frozen=True)
class Found:
    """The files of one layout."""

    layout: Layout
    files: Sequence[str]


def find(path: str, split: str | None, layouts: Sequence[Layout] = IMAGES) -> Found | list[str]:
    """The files of a split, or of all; otherwise what is wrong, as lines of `Part.problems`."""
    if is_url(path):
        return _pattern(path, split, layouts)
    place = Path(path)
    if place.is_file():
        layout = _layout_of(place.name, layouts)
        return Found(layout, [path]) if layout else [f"path: {path}: {_unknown({split_suffix(place.name)[1]})}"]
    known: dict[str, None] = {}
    search = _Search(place)
    for layout, splits in search.layouts(layouts):
        if split is None and splits:
            return _complete(layout, [file for files in splits.values() for file in files])
        if split is not None and (files := _of_split(layout, splits, split)):
            return _complete(layout, files)
        known |= dict.fromkeys(splits)
    if not known:
        return [search.nothing(layouts)]
    names = [name for name in known if name]
    allowed = _listed(names) or "`split = false`, which reads all"
    return [f"split: given {split!r}, which {path} does not have; allowed: {allowed}"]


def _pattern(path: str, split: str | None, known: Sequence[Layout]) -> Found | list[str]:
    """Tar shards behind urls, or files of any layout."""
    from webdataset.shardlists import expand_urls

    if split is not None:
        return [f"split: given {split!r}, but a url names its shards itself; allowed: `split = false`"]
    files = [str(one) for one in expand_urls(path)]
    if not is_remote(path):
        layouts = {_layout_of(Path(file).name, known) for file in files}
        (layout,) = layouts if len(layouts) == 1 else (None,)
        if layout is None:
            return [f"path: {path}: {_unknown({split_suffix(Path(file).name)[1] for file in files})}"]
        return _existing(Found(layout, files))
    suffix = split_suffix(PurePosixPath(path).name)[1]
    if path.startswith("hf://") and _SUFFIXES.get(suffix) != "tar":
        return [
            f"path: given {path}, but only tar shards are read from urls; allowed: a folder on this machine, as "
            "`hf download --repo-type dataset NAME --local-dir FOLDER` makes it"
        ]
    return Found("tar", files)


def _layout_of(name: str, layouts: Sequence[Layout]) -> Layout | None:
    """How a file is read, by its suffix."""
    text = layouts[0] if layouts[0] in ("lines", "documents") else None
    suffix = split_suffix(name)[1]
    if not suffix:
        return text or "jsonl"
    layout = _SUFFIXES.get(suffix)
    return text if layout in (None, "lines") else layout


def _unknown(suffixes: set[str]) -> str:
    shown = ", ".join(sorted(suffix or "no suffix" for suffix in suffixes))
    return (
        f"files with {shown} are not read; allowed: {', '.join(_SUFFIXES)}, all of one kind, "
        f"and compressed text or tar ({', '.join(COMPRESSIONS)})"
    )


def _of_split(layout: Layout, splits: Mapping[str, list[str]], split: str) -> list[str]:
    """The split's files. A whole file name is a split too, and comes first where lines are rows."""
    exact = [file for files in splits.values() for file in files if split_suffix(Path(file).name)[0] == split]
    if exact and (layout in ("jsonl", "lines") or split not in splits):
        return exact
    return splits.get(split, [])


def _complete(layout: Layout, files: list[str]) -> Found | list[str]:
    """These files, unless some are missing: listed ones, or ones that the names of others count (`-00001-of-00004`)."""
    numbered: dict[tuple[str, ...], dict[int, list[str]]] = {}
    for file in files:
        if parts := _OF.fullmatch(Path(file).name):
            front, number, middle, count, end = parts.groups()
            key = (str(Path(file).parent / front), middle, count, end, f"{len(number)}")
            numbered.setdefault(key, {}).setdefault(int(number), []).append(file)
    for (front, middle, count, end, width), there in numbered.items():
        twice = next((same for same in there.values() if len(same) > 1), None)
        if twice:
            return [f"path: {' and '.join(twice)} are the same shard; allowed: one of them"]
        first = 0 if 0 in there or int(count) not in there else 1
        gone = [i for i in range(first, first + int(count)) if i not in there]
        if gone:
            more = f", and {len(gone) - 1} others" if len(gone) > 1 else ""
            ends = "..".join(f"{i:0{width}}" for i in (min(there), max(there)))
            return [
                f"path: {front}{gone[0]:0{width}}{middle}{count}{end} is missing{more}: {len(there)} of {count} shards "
                f"are there; allowed: all, or a path that names some of them (`{front}{{{ends}}}{middle}{count}{end}`)"
            ]
    return _existing(Found(layout, files))


def _existing(found: Found) -> Found | list[str]:
    """What is found, unless files that it names are missing."""
    gone = [file for file in found.files if not is_remote(file) and not Path(file).exists()]
    more = f", and {len(gone) - 1} others" if len(gone) > 1 else ""
    return [f"path: {gone[0]} is missing{more}"] if gone else found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_MANY]) + (", ..." if len(names) > _MANY else "")


# Folders

Splits = dict[str, list[str]]


class _Folder:
    """The files of one folder, by layout and split; one listing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.splits: dict[Layout, Splits] = {}
        self.folders: list[Path] = []
        self.others: Counter[str] = Counter()
        names = []
        with os.scandir(path) as entries:
            for entry in entries:
                if is_hidden(PurePath(entry.name)):
                    continue
                if entry.is_file():
                    names.append(entry.name)
                elif entry.is_dir():
                    self.folders.append(path / entry.name)
        self.folders.sort()
        all_names = set(names)
        for name in sorted(names):
            stem, suffix = split_suffix(name)
            layout = _SUFFIXES.get(suffix)
            if layout is None:
                self.others[suffix] += 1
            elif not _ABOUT_ROWS.fullmatch(name) and not (name == DROPPED and INDEX in all_names):
                if Path(name).suffix.lower() in COMPRESSIONS and Path(name).stem in all_names:
                    continue  # beside the same file, not compressed
                split = _NUMBER.sub("", stem)
                self.splits.setdefault(layout, {}).setdefault(split, []).append(str(path / name))

    def __getitem__(self, layout: Layout) -> Splits:
        match layout:
            case "datasets":
                return _saved(self.path)
            case "authors":
                return {"": [str(self.path)]} if (self.path / IMAGE_DATA).is_dir() else {}
            case "documents":
                return _documents(self.path)
            case "tar":
                listed = _indexed(self.path)
                return self.splits.get("tar", {}) if listed is None else listed
        return self.splits.get(layout, {})


class _Search:
    """Where rows are looked for: in the folder, in a folder for each split, and in the same way in `data/`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.subsets: dict[str, None] = {}
        self.others: Counter[str] = Counter()

    def layouts(self, layouts: Sequence[Layout]) -> Iterator[tuple[Layout, Splits]]:
        """Each layout with the splits that it has in a place."""
        for place in (self.path, self.path / "data", self.path / "default"):  # the last one as the Hub converts
            if not place.is_dir():
                continue
            folder = _Folder(place)
            self.others += folder.others
            for layout in layouts:
                yield layout, folder[layout]
            nested = [_Folder(one) for one in folder.folders]
            for layout in layouts:
                if layout not in ("datasets", "authors", "documents", "json"):
                    yield layout, self._by_folder(layout, nested)

    def _by_folder(self, layout: Layout, folders: Sequence[_Folder]) -> Splits:
        """The folders' names are the splits."""
        found: Splits = {}
        for folder in folders:
            splits, name = folder.splits.get(layout, {}), folder.path.name
            if any(split != name and split in _SPLITS for split in splits):
                self.subsets[name] = None
            elif splits and name not in ("data", "default"):
                found[name] = [file for files in splits.values() for file in files]
        return found

    def nothing(self, layouts: Sequence[Layout]) -> str:
        """Why nothing was found."""
        if self.subsets:
            names = list(self.subsets)
            return (
                f"path: {self.path} holds several data sets, each with its splits: {_listed(names)}; allowed: one of "
                f"them ({self.path / names[0]})"
            )
        shown = ", ".join(dict.fromkeys(_SHOWN[layout] for layout in layouts))
        others = [f"{suffix or 'no suffix'} ({count:,})" for suffix, count in self.others.most_common()]
        return f"path: {self.path} has none of: {shown}" + (f"; its files have {_listed(others)}" if others else "")


def _indexed(folder: Path) -> Splits | None:
    """The shards that our `index.json` lists, where there is one."""
    listed = _json(folder / INDEX)
    if listed.get("format") != 1 or not isinstance(listed.get("splits"), dict):
        return None
    try:
        return {
            name: [str(folder / PurePosixPath(shard["file"]).name) for shard in split["shards"]]
            for name, split in listed["splits"].items()
        }
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / INDEX}: its shards cannot be read: {error!r}") from error


def _saved(folder: Path) -> Splits:
    """What `save_to_disk` of the datasets library wrote."""
    names = _json(folder / "dataset_dict.json").get("splits")
    if isinstance(names, list):
        return {str(name): [str(folder / str(name))] for name in names}
    return {"": [str(folder)]} if (folder / "state.json").is_file() else {}


def _documents(folder: Path) -> Splits:
    """Every text file below a folder."""
    files = sorted(
        str(Path(below) / name)
        for below, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(".txt") and not is_hidden((Path(below) / name).relative_to(folder))
    )
    return {"": files} if files else {}


def _json(file: Path) -> Mapping[str, Any]:
    """A JSON object; an empty one where the file is none."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
