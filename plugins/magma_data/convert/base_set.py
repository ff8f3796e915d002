"""What a data set is made of as its owners publish it, and how its files are found below a folder.

A data set is a class: `needs` lists its official files, `read` turns a split of them into records. Its files may lie
anywhere below the folders that are given, and whatever is missing is said at once.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import length_hint
from pathlib import Path, PurePath
from typing import Any, ClassVar, Literal

from magma import InputError

from ..formats import is_hidden
from .images import OnDisk, Picture
from .shards import Drop, Item, Kind, Record

DATA_ENDINGS = (".json", ".jsonl", ".tsv", ".tsv.gz", ".parquet", ".tar")
_NUMBERED = re.compile(r"(.*?-)(\d+)(-of-)(\d+)(\D.*)")


@dataclass(frozen=True)
class Need:
    """An official file, or a folder of images: its name ends with a slash."""

    names: tuple[str, ...]
    """As published, `*` and `?` as in a shell. Of several, one is enough; of folders, all count."""
    split: str
    origin: str
    """Where to get it."""
    layout: str = ""
    """The one of the set's layouts that it belongs to; "": to all."""
    pattern: str = ""
    """Matches the path below the source, where `names` only tell what it looks like."""

    @property
    def is_folder(self) -> bool:
        """Of images."""
        return self.names[0].endswith("/")

    def __str__(self) -> str:
        return " or ".join(self.names)


def need(names: str, split: str, origin: str, layout: str = "", pattern: str = "") -> Need:
    """`names` with `|` between alternatives."""
    return Need(tuple(names.split("|")), split, origin, layout, pattern)


@dataclass(frozen=True)
class Options:
    """What a person may choose; None where nothing was said."""

    splits: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    partial: bool = False
    min_size: int = 0
    min_similarity: float | None = None
    language: str | None = None
    restval: Literal["train", "restval", "none"] | None = None


class Tree:
    """The data files and folders below some folders, images left aside: one walk, links followed."""

    def __init__(self, sources: Sequence[Path]) -> None:
        self.sources = sources
        self.files: list[tuple[str, Path]] = []
        self.folders: list[tuple[str, Path]] = []
        self.seen: set[tuple[int, int]] = set()
        for source in sources:
            if not source.is_dir():
                raise InputError(f"given {str(source)!r}, which is no folder; allowed: folders with the official files")
            self._walk(source.resolve().name, source)

    def _walk(self, below: str, folder: Path) -> None:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in self.seen:
            return
        self.seen.add((status.st_dev, status.st_ino))
        self.folders.append((f"{below}/", folder))
        inside = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(PurePath(entry.name)):
                    continue
                if entry.name.endswith(DATA_ENDINGS):
                    if entry.is_file():
                        self.files.append((f"{below}/{entry.name}", folder / entry.name))
                elif entry.is_dir() and not _is_number(entry.name):
                    inside.append(entry.name)
        for name in inside:
            self._walk(f"{below}/{name}", folder / name)

    def find(self, one: Need) -> list[Path]:
        """What matches, the least deep first, in order of path; of files, the first alternative that is there alone."""
        found: list[Path] = []
        for name in one.names:
            pattern = one.pattern or rf"(?:.*/)?{fnmatch.translate(name)}"
            entries = self.folders if one.is_folder else self.files
            matching = [path for below, path in entries if re.fullmatch(pattern, below)]
            found += sorted(set(matching) - set(found), key=lambda path: (len(path.parts), path))
            if found and not one.is_folder:
                break
        return found

    def sizes(self, files: Iterable[Path]) -> dict[str, int]:
        """Bytes of each file, named by its path below the source: moved data is the same data."""
        known = {path: below.partition("/")[2] for below, path in self.files}
        return {known[path]: path.stat().st_size for path in files}


def _is_number(name: str) -> bool:
    """A folder of img2dataset's, ten thousand images and as many JSON files."""
    return re.fullmatch(r"\d{5,}", name) is not None


class Found:
    """The files of a data set on this machine."""

    def __init__(self, paths: Mapping[Need, list[Path]], splits: Sequence[str], layouts: Sequence[str]) -> None:
        self.paths, self.splits, self.layouts = paths, splits, layouts

    def all(self, name: str, split: str | None = None) -> list[Path]:
        """Every match of a file that goes by this name; none where it was not asked for."""
        found = [p for one, p in self.paths.items() if name in one.names and split in (None, one.split)]
        return [path for paths in found for path in paths]

    def one(self, name: str) -> Path:
        """The one file that goes by this name."""
        return self.all(name)[0]

    def files(self) -> list[Path]:
        """All of them, without folders."""
        return [path for one, paths in self.paths.items() if not one.is_folder for path in paths]


class OfficialSet(ABC):
    """One data set as it is published. Subclasses are all there is to know about it."""

    name: ClassVar[str]
    kind: ClassVar[Kind]
    home: ClassVar[str]
    """Its page."""
    needs: ClassVar[tuple[Need, ...]]
    optional: ClassVar[frozenset[str]] = frozenset()
    """Splits that are converted where their files are there; of the others, all files have to be."""
    combines: ClassVar[bool] = False
    """Are its layouts parts of one set, of which several are taken together?"""
    takes: ClassVar[frozenset[str]] = frozenset()
    """The fields of `Options` that it has a use for, beside splits, layouts and partial."""

    @abstractmethod
    def read(self, split: str, found: Found, options: Options) -> Iterable[Item]:
        """The records of a split, and what is left out of it already, always in the same order."""

    def items(self, split: str, found: Found, options: Options) -> Iterable[Item]:
        """What `read` gives; a file that is laid out otherwise than published is an `InputError`."""
        return _Items(f"{self.name} {split}", lambda: self.read(split, found, options))

    def find(self, tree: Tree, options: Options) -> Found:
        """All files of the splits; `InputError` with everything that is missing."""
        self._check(options)
        layouts = self._layouts(tree, options)
        mine = [one for one in self.needs if one.layout in ("", *layouts)]
        known = {one: tree.find(one) for one in mine}
        there = {one.split for one, paths in known.items() if paths and not one.is_folder}
        known_splits = self.splits(layouts, options)
        usual = [split for split in known_splits if split not in self.optional or split in there]
        splits = [split for split in known_splits if split in (options.splits or usual)]
        pairs = {(one.layout, one.split) for one, paths in known.items() if paths and not one.is_folder}
        chosen = {
            one: paths
            for one, paths in known.items()
            if one.split in splits and (not self.combines or (one.layout, one.split) in pairs or one.split not in there)
        }
        problems = [f"{one}: from {one.origin}" for one, paths in chosen.items() if not paths]
        for one, paths in chosen.items():
            problems += self._unclear(one, paths, options)
        if problems:
            self._refuse(tree, problems, splits, there)
        return Found(chosen, splits, layouts)

    def splits(self, layouts: Iterable[str], options: Options) -> list[str]:
        """Those of some layouts, in order."""
        return list(dict.fromkeys(one.split for one in self.needs if one.layout in ("", *layouts)))

    @classmethod
    def layouts(cls) -> list[str]:
        """All of them; none where there is only one."""
        return list(dict.fromkeys(one.layout for one in cls.needs if one.layout))

    def _check(self, options: Options) -> None:
        for key in ("min_similarity", "language", "restval"):
            if getattr(options, key) is not None and key not in self.takes:
                raise InputError(f"--{key.replace('_', '-')}: {self.name} has no use for it")
        allowed = self.layouts()
        for layout in options.layouts:
            if layout not in allowed:
                raise InputError(f"--layout: given {layout!r}; allowed for {self.name}: {', '.join(allowed) or 'none'}")
        splits = self.splits(options.layouts or allowed, options)
        for split in options.splits:
            if split not in splits:
                raise InputError(f"--split: given {split!r}; allowed for {self.name}: {', '.join(splits)}")

    def _layouts(self, tree: Tree, options: Options) -> list[str]:
        if options.layouts and not self.combines and len(options.layouts) > 1:
            raise InputError(f"--layout: {self.name} is read in one layout at a time")
        if options.layouts or not self.layouts():
            return list(options.layouts)
        there = [one.layout for one in self.needs if one.layout and not one.is_folder and tree.find(one)]
        found = list(dict.fromkeys(there))
        if not found:
            lines = [f"{one} ({one.layout}): from {one.origin}" for one in self.needs if one.layout]
            self._refuse(tree, [*lines, f"one of these layouts is enough: {', '.join(self.layouts())}"], [], set())
        if len(found) > 1 and not self.combines:
            raise InputError(f"--layout: {self.name} is there as {' and as '.join(found)}; choose one")
        return found

    @staticmethod
    def _unclear(one: Need, paths: list[Path], options: Options) -> list[str]:
        """A file that is there twice, or of which a numbered part is missing."""
        if one.is_folder or one.pattern or len(paths) == 0:
            return []
        names = [path.name for path in paths]
        if twice := [str(path) for path in paths if names.count(path.name) > 1]:
            return [f"{one}: there more than once, give a narrower folder: {', '.join(twice)}"]
        if "*" not in str(one) and "?" not in str(one):
            return []
        numbered = [parts for name in names if (parts := _NUMBERED.fullmatch(name))]
        if not numbered or options.partial:
            return []
        front, _, middle, count, end = numbered[0].groups()
        whole = [f"{front}{i:0{len(count)}}{middle}{count}{end}" for i in range(int(count))]
        return [f"{n}: from {one.origin} (--partial does without)" for n in whole if n not in names]

    def _refuse(self, tree: Tree, problems: list[str], splits: list[str], there: set[str]) -> None:
        where = ", ".join(map(str, tree.sources))
        lines = "".join(f"\n  - {problem}" for problem in dict.fromkeys(problems))
        whole = [s for s in splits if s in there]
        hint = f"\n--split takes some splits alone; there are files of: {', '.join(whole)}" if whole else ""
        raise InputError(f"{self.name}: not all of its files are below {where}:{lines}{hint}\n{self.home}")


class _Items:
    """Items, how many they are about, and a user's error where a field is missing."""

    def __init__(self, where: str, make: Callable[[], Iterable[Item]]) -> None:
        self.where = where
        with self._as_published():
            self.made = make()

    def __length_hint__(self) -> int:
        return length_hint(self.made)

    def __iter__(self) -> Iterator[Item]:
        with self._as_published():
            yield from self.made

    @contextmanager
    def _as_published(self) -> Iterator[None]:
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{self.where}: a file is not laid out as it was published: {type(error).__name__}: {error}"
            ) from error


# What all sets do alike


@dataclass(frozen=True)
class Counted:
    """Rows that are read as they are used, with how many there are, for a progress bar."""

    rows: Iterable[Item]
    count: int

    def __length_hint__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Item]:
        return iter(self.rows)


def clean(text: Any) -> str:
    """Stripped and in Unicode's composed form (NFC), otherwise as published; "" for what is no text."""
    if not isinstance(text, str):
        return ""
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return ""
    return unicodedata.normalize("NFC", text).strip()


def captioned(identity: str, picture: Picture, texts: Iterable[Any], **extra: Any) -> Iterator[Item]:
    """An image with its captions; a field of `extra` that is None is none."""
    given = list(texts)
    captions = [caption for text in given if (caption := clean(text))]
    if not captions:
        yield Drop(identity, "empty caption" if given else "no caption")
        return
    for _ in range(len(given) - len(captions)):
        yield Drop(identity, "empty caption, others kept", row=False)
    yield Record(identity, picture, {"captions": captions, **_known(extra)})


def question(identity: str, text: Any, answers: Iterable[Any], **extra: Any) -> dict[str, Any]:
    """A question of `asked`."""
    return {"id": identity, "question": clean(text), "answers": [clean(a) for a in answers], **_known(extra)}


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


Row = tuple[str, Picture, dict[str, Any]]
"""An image's id, where it is, and a question or statement about it."""


def grouped(key: str, text: str, rows: Iterable[Row | Drop]) -> list[Item]:
    """Questions or statements (`key`), image by image in the order of their first; `text` is the field that says it."""
    items: list[Item] = []
    images: dict[str, Record] = {}
    for row in rows:
        if isinstance(row, Drop):
            items.append(row)
            continue
        identity, picture, entry = row
        if not entry[text]:
            items.append(Drop(entry["id"], f"empty {text}"))
            continue
        if identity not in images:
            items.append(images.setdefault(identity, Record(identity, picture, {key: []})))
        images[identity].fields[key].append(entry)
    return items


def inside(folders: Iterable[Path], *names: str) -> OnDisk:
    """The first of these files that is in one of these folders."""
    return OnDisk(tuple(os.path.join(folder, name) for folder in folders for name in names))  # noqa: PTH118 - millions


def load_json(path: Path) -> Any:
    """A whole file."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON: {error}; perhaps it was not fetched to its end") from error


def load_lines(path: Path) -> Iterator[dict[str, Any]]:
    """A JSONL file, line by line."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{path} line {number}: no JSON: {error}") from error
