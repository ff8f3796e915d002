"""The official files of a data set, and how to find them in folders."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from magma import InputError

from ..formats import is_hidden

DATA_ENDINGS = (".json", ".jsonl", ".tsv", ".tsv.gz", ".parquet", ".tar", ".tgz")


@dataclass(frozen=True)
class RequiredFile:
    """An official file, or a folder of images, whose name ends with a slash."""

    names: tuple[str, ...]
    """Published names, with the wildcards `*`, `?` and `[0-9]`. One of several files is enough; several folders are all
    used. A file after folders is an archive of them, which is used if there is no folder."""
    split: str
    origin: str
    """Where to download it."""
    layout: str = ""
    """The layout that it belongs to; "": all layouts."""
    pattern: str = ""
    """A regular expression for the path below the source. If given, `names` are only for messages."""

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of images."""
        return self.names[0].endswith("/")

    def __str__(self) -> str:
        return " or ".join(self.names)


def required_file(names: str, split: str, origin: str, layout: str = "", pattern: str = "") -> RequiredFile:
    """A `RequiredFile`; `names` are separated by `|`."""
    return RequiredFile(tuple(names.split("|")), split, origin, layout, pattern)


class FileIndex:
    """All data files and folders below some folders, without images, and given files. Symbolic links are followed."""

    def __init__(self, sources: Sequence[Path]) -> None:
        self.sources = sources
        self.files: list[tuple[str, Path]] = []
        self.folders: list[tuple[str, Path]] = []
        self.visited: set[tuple[int, int]] = set()
        for source in sources:
            if source.is_dir():
                self._walk(source.resolve().name, source)
            elif not source.is_file():
                raise InputError(
                    f"given {str(source)!r}, which does not exist; allowed: the official files, or folders with them"
                )
        self._add_given_files()

    def _walk(self, below: str, folder: Path) -> None:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in self.visited:
            return
        self.visited.add((status.st_dev, status.st_ino))
        self.folders.append((f"{below}/", folder))
        inside = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(PurePath(entry.name)):
                    continue
                if entry.name.endswith(DATA_ENDINGS):
                    if entry.is_file():
                        self.files.append((f"{below}/{entry.name}", folder / entry.name))
                elif entry.is_dir() and not _is_shard_folder(entry.name):
                    inside.append(entry.name)
        for name in inside:
            self._walk(f"{below}/{name}", folder / name)

    def _add_given_files(self) -> None:
        """Add the sources that are files, without those that are in a given folder too."""
        if given := [source for source in self.sources if source.is_file()]:
            known = {path.resolve() for _, path in self.files}
            new = {path: source for source in given if (path := source.resolve()) not in known}
            self.files += [(f"{source.absolute().parent.name}/{source.name}", source) for source in new.values()]

    def find(self, one: RequiredFile) -> list[Path]:
        """All matches, ordered by depth and path. Of several names of a file, only the first one that exists."""
        found: list[Path] = []
        for name in one.names:
            is_folder = name.endswith("/")
            if found and not is_folder:
                break
            pattern = one.pattern or rf"(?:.*/)?{fnmatch.translate(name)}"
            entries = self.folders if is_folder else self.files
            matching = [path for below, path in entries if re.fullmatch(pattern, below)]
            found += sorted(set(matching) - set(found), key=lambda path: (len(path.parts), path))
        return found

    def sizes(self, files: Iterable[Path]) -> dict[str, int]:
        """Path below the source to size in bytes, so that data can be moved."""
        known = {path: below.partition("/")[2] for below, path in self.files}
        return {known[path]: path.stat().st_size for path in files}


def _is_shard_folder(name: str) -> bool:
    """Whether it is a shard folder of img2dataset, which has ten thousand images and JSON files."""
    return re.fullmatch(r"\d{5,}", name) is not None


class SplitFiles:
    """The files of a data set that were found."""

    def __init__(self, paths: Mapping[RequiredFile, list[Path]], splits: Sequence[str], layouts: Sequence[str]) -> None:
        self.paths, self.splits, self.layouts = paths, splits, layouts

    def all(self, name: str, split: str | None = None) -> list[Path]:
        """All paths of the file with this name; empty if it is not part of the conversion."""
        found = [p for one, p in self.paths.items() if name in one.names and split in (None, one.split)]
        return [path for paths in found for path in paths]

    def one(self, name: str) -> Path:
        """The path of the file with this name."""
        return self.all(name)[0]

    def files(self) -> list[Path]:
        """All paths, without folders."""
        return [path for paths in self.paths.values() for path in paths if path.is_file()]
