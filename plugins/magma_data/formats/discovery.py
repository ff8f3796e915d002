"""Finds the files of a split below a path, in any of the supported formats."""

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
FileFormat = Literal["jsonl", "tar", "datasets", "parquet", "csv", "json", "authors", "lines", "documents"]
IMAGES: tuple[FileFormat, ...] = ("datasets", "jsonl", "tar", "parquet", "csv", "json")
"""Formats of images with texts, in order of preference; the first one that is found is read."""
_SUFFIXES: Mapping[str, FileFormat] = {
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
_PATTERNS: Mapping[FileFormat, str] = {
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
_METADATA_FILES = re.compile(
    r"(index|options|report|dataset_dict|dataset_infos?|state|config|.*_stats)\.json", re.IGNORECASE
)
"""Files with metadata of a data set, without rows."""
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing", "testdev", "eval"})
"""Usual names of splits. A folder with files of these names is a data set."""
_SHARD_SUFFIX = re.compile(r"(?:^|[-_])\d+([-_]of[-_]\d+(-[0-9a-f]{16})?)?$")
"""The suffix of the split in the name of a shard; the Hub adds a hash."""
_NUMBERED_SHARD = re.compile(r"(.*?)(\d+)([-_]of[-_])(\d+)(?:-[0-9a-f]{16})?(\..*)")
_MAX_LISTED = 8
"""Maximum number of names that an error message lists."""


# Names


def is_remote(path: str) -> bool:
    """Whether it is a URL or a command (`pipe:`), which the webdataset library opens."""
    return "://" in path or path.startswith("pipe:")


def is_url(path: str) -> bool:
    """Whether it is remote, or a pattern in braces for several files. An existing path is not a pattern."""
    return is_remote(path) or (bool(re.search(r"\{.*\}", path)) and not Path(path).exists())


def is_hidden(inside: PurePath) -> bool:
    """Whether a path inside a folder or an archive is a hidden or system file, such as `._0.jpg`."""
    return any(
        (part.startswith(".") and part not in (".", "..")) or part.lower() in ("__macosx", "thumbs.db", "desktop.ini")
        for part in inside.parts
    )


def split_suffix(name: str) -> tuple[str, str]:
    """("train", ".jsonl") for "train.JSONL.gz": the suffix, in lower case, determines the format."""
    stem, dot, suffix = name.rpartition(".")
    if dot and f".{suffix}".lower() in COMPRESSIONS and "." in stem:
        stem, dot, suffix = stem.rpartition(".")
    return (stem, f".{suffix}".lower()) if stem else (name, "")


# Search


@dataclass(frozen=True)
class FoundFiles:
    """Files and their format."""

    file_format: FileFormat
    files: Sequence[str]


def find(path: str, split: str | None, file_formats: Sequence[FileFormat] = IMAGES) -> FoundFiles | list[str]:
    """The files of a split, or all files; or problems, as in `Part.problems`."""
    if is_url(path):
        return _find_by_pattern(path, split, file_formats)
    place = Path(path)
    if place.is_file():
        file_format = _find_format(place.name, file_formats)
        return (
            FoundFiles(file_format, [path])
            if file_format
            else [f"path: {path}: {_describe_unknown_suffixes({split_suffix(place.name)[1]})}"]
        )
    known_splits: dict[str, None] = {}
    search = _Search(place)
    for file_format, splits in search.file_formats(file_formats):
        if split is None and splits:
            return _check_complete(file_format, [file for files in splits.values() for file in files])
        if split is not None and (files := _select_split(file_format, splits, split)):
            return _check_complete(file_format, files)
        known_splits |= dict.fromkeys(splits)
    if not known_splits:
        return [search.describe_nothing_found(file_formats)]
    names = [name for name in known_splits if name]
    allowed = _list_names(names) or "`split = false`, which reads all rows"
    return [f"split: given {split!r}, which {path} does not have; allowed: {allowed}"]


def _find_by_pattern(path: str, split: str | None, known: Sequence[FileFormat]) -> FoundFiles | list[str]:
    """Tar shards at URLs, or local files of any format, by a pattern."""
    from webdataset.shardlists import expand_urls

    if split is not None:
        return [f"split: given {split!r}, but a URL already selects its shards; allowed: `split = false`"]
    files = [str(one) for one in expand_urls(path)]
    if not is_remote(path):
        file_formats = {_find_format(Path(file).name, known) for file in files}
        (file_format,) = file_formats if len(file_formats) == 1 else (None,)
        if file_format is None:
            return [f"path: {path}: {_describe_unknown_suffixes({split_suffix(Path(file).name)[1] for file in files})}"]
        return _check_existing(FoundFiles(file_format, files))
    suffix = split_suffix(PurePosixPath(path).name)[1]
    if path.startswith("hf://") and _SUFFIXES.get(suffix) != "tar":
        return [
            f"path: given {path}, but only tar shards can be read from URLs; allowed: a local folder, which "
            "`hf download --repo-type dataset NAME --local-dir FOLDER` creates"
        ]
    return FoundFiles("tar", files)


def _find_format(name: str, file_formats: Sequence[FileFormat]) -> FileFormat | None:
    """The format of a file, by its suffix."""
    text = file_formats[0] if file_formats[0] in ("lines", "documents") else None
    suffix = split_suffix(name)[1]
    if not suffix:
        return text or "jsonl"
    file_format = _SUFFIXES.get(suffix)
    return text if file_format in (None, "lines") else file_format


def _describe_unknown_suffixes(suffixes: set[str]) -> str:
    shown = ", ".join(sorted(suffix or "no suffix" for suffix in suffixes))
    return (
        f"files with {shown} are not supported; allowed: {', '.join(_SUFFIXES)}, all of one format; "
        f"text and tar may be compressed ({', '.join(COMPRESSIONS)})"
    )


def _select_split(file_format: FileFormat, splits: Mapping[str, list[str]], split: str) -> list[str]:
    """The files of a split. The complete name of a file is also a split, with priority if lines are rows."""
    exact = [file for files in splits.values() for file in files if split_suffix(Path(file).name)[0] == split]
    if exact and (file_format in ("jsonl", "lines") or split not in splits):
        return exact
    return splits.get(split, [])


def _check_complete(file_format: FileFormat, files: list[str]) -> FoundFiles | list[str]:
    """The files, or problems: missing files, and missing or duplicate numbered shards (`-00001-of-00004`)."""
    numbered: dict[tuple[str, ...], dict[int, list[str]]] = {}
    for file in files:
        if parts := _NUMBERED_SHARD.fullmatch(Path(file).name):
            front, number, middle, count, end = parts.groups()
            key = (str(Path(file).parent / front), middle, count, end, f"{len(number)}")
            numbered.setdefault(key, {}).setdefault(int(number), []).append(file)
    for (front, middle, count, end, width), by_number in numbered.items():
        duplicate = next((same for same in by_number.values() if len(same) > 1), None)
        if duplicate:
            return [f"path: {' and '.join(duplicate)} are the same shard; allowed: one of them"]
        first = 0 if 0 in by_number or int(count) not in by_number else 1
        missing = [i for i in range(first, first + int(count)) if i not in by_number]
        if missing:
            more = f", and {len(missing) - 1} others" if len(missing) > 1 else ""
            ends = "..".join(f"{i:0{width}}" for i in (min(by_number), max(by_number)))
            return [
                f"path: {front}{missing[0]:0{width}}{middle}{count}{end} is missing{more}: {len(by_number)} of "
                f"{int(count)} shards exist; allowed: all shards, or a path that selects some of them "
                f"(`{front}{{{ends}}}{middle}{count}{end}`)"
            ]
    return _check_existing(FoundFiles(file_format, files))


def _check_existing(found: FoundFiles) -> FoundFiles | list[str]:
    """The files, or a problem if one does not exist."""
    missing = [file for file in found.files if not is_remote(file) and not Path(file).exists()]
    more = f", and {len(missing) - 1} others" if len(missing) > 1 else ""
    return [f"path: {missing[0]} is missing{more}"] if missing else found


def _list_names(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_LISTED]) + (", ..." if len(names) > _MAX_LISTED else "")


# Folders

Splits = dict[str, list[str]]


class _Folder:
    """The files of one folder, by format and split."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.splits: dict[FileFormat, Splits] = {}
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
            file_format = _SUFFIXES.get(suffix)
            if file_format is None:
                self.others[suffix] += 1
            elif not _METADATA_FILES.fullmatch(name) and not (name == DROPPED and INDEX in all_names):
                if Path(name).suffix.lower() in COMPRESSIONS and Path(name).stem in all_names:
                    continue  # the same file exists uncompressed
                split = _SHARD_SUFFIX.sub("", stem)
                self.splits.setdefault(file_format, {}).setdefault(split, []).append(str(path / name))

    def __getitem__(self, file_format: FileFormat) -> Splits:
        match file_format:
            case "datasets":
                return _find_saved_dataset(self.path)
            case "authors":
                return {"": [str(self.path)]} if (self.path / IMAGE_DATA).is_dir() else {}
            case "documents":
                return _find_documents(self.path)
            case "tar":
                listed = _read_index(self.path)
                return self.splits.get("tar", {}) if listed is None else listed
        return self.splits.get(file_format, {})


class _Search:
    """Searches for rows in a folder, in its subfolders (one per split), and likewise in its `data/`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.subsets: dict[str, None] = {}
        self.others: Counter[str] = Counter()

    def file_formats(self, file_formats: Sequence[FileFormat]) -> Iterator[tuple[FileFormat, Splits]]:
        """Each format with its splits, folder by folder."""
        for place in (
            self.path,
            self.path / "data",
            self.path / "default",
        ):  # `default` is the name in conversions by the Hub
            if not place.is_dir():
                continue
            folder = _Folder(place)
            self.others += folder.others
            for file_format in file_formats:
                yield file_format, folder[file_format]
            nested = [_Folder(one) for one in folder.folders]
            for file_format in file_formats:
                if file_format not in ("datasets", "authors", "documents", "json"):
                    yield file_format, self._by_folder(file_format, nested)

    def _by_folder(self, file_format: FileFormat, folders: Sequence[_Folder]) -> Splits:
        """Splits with the names of the folders."""
        found: Splits = {}
        for folder in folders:
            splits, name = folder.splits.get(file_format, {}), folder.path.name
            if any(split != name and split in _SPLITS for split in splits):
                self.subsets[name] = None
            elif splits and name not in ("data", "default"):
                found[name] = [file for files in splits.values() for file in files]
        return found

    def describe_nothing_found(self, file_formats: Sequence[FileFormat]) -> str:
        """The problem if there are no rows."""
        if self.subsets:
            names = list(self.subsets)
            return (
                f"path: {self.path} contains several data sets with splits: {_list_names(names)}; allowed: one "
                f"of them ({self.path / names[0]})"
            )
        shown = ", ".join(dict.fromkeys(_PATTERNS[file_format] for file_format in file_formats))
        others = [f"{suffix or 'no suffix'} ({count:,})" for suffix, count in self.others.most_common()]
        return f"path: {self.path} has none of: {shown}" + (f"; its files have {_list_names(others)}" if others else "")


def _read_index(folder: Path) -> Splits | None:
    """The shards in `index.json` of `magma data convert`; None without such a file. Raises `InputError`."""
    listed = _read_json(folder / INDEX)
    if listed.get("format") != 1 or not isinstance(listed.get("splits"), dict):
        return None
    try:
        return {
            name: [str(folder / PurePosixPath(shard["file"]).name) for shard in split["shards"]]
            for name, split in listed["splits"].items()
        }
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / INDEX}: its shards cannot be read: {error!r}") from error


def _find_saved_dataset(folder: Path) -> Splits:
    """The folders that `save_to_disk` of the datasets library wrote, by split."""
    names = _read_json(folder / "dataset_dict.json").get("splits")
    if isinstance(names, list):
        return {str(name): [str(folder / str(name))] for name in names}
    return {"": [str(folder)]} if (folder / "state.json").is_file() else {}


def _find_documents(folder: Path) -> Splits:
    """Every text file below a folder."""
    files = sorted(
        str(Path(below) / name)
        for below, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(".txt") and not is_hidden((Path(below) / name).relative_to(folder))
    )
    return {"": files} if files else {}


def _read_json(file: Path) -> Mapping[str, Any]:
    """The JSON object in a file; an empty one if the file is missing or invalid."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
