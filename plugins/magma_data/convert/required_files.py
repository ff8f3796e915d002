"""The official files of a data set, and how they are found below some folders."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from magma import InputError

from ..formats import is_hidden

DATA_ENDINGS = (".json", ".jsonl", ".tsv", ".tsv.gz", ".parquet", ".tar")


@dataclass(frozen=True)
class RequiredFile:
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


def required_file(names: str, split: str, origin: str, layout: str = "", pattern: str = "") -> RequiredFile:
    """`names` with `|` between alternatives."""
    return RequiredFile(tuple(names.split("|")), split, origin, layout, pattern)


class FileIndex:
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

    def find(self, one: RequiredFile) -> list[Path]:
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


class SplitFiles:
    """The files of a data set on this machine."""

    def __init__(self, paths: Mapping[RequiredFile, list[Path]], splits: Sequence[str], layouts: Sequence[str]) -> None:
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
