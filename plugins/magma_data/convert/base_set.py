"""Base class of published data sets: finds their official files and converts them to records.

A data set is a class. `required_files` lists its official files, `read` converts a split to records. The files may be
at any depth of the given folders. An error lists all missing files.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import length_hint
from pathlib import Path
from typing import ClassVar, Literal

from magma import InputError

from .required_files import FileIndex, RequiredFile, SplitFiles
from .shards import Item, SampleKind

_PART_FILE = re.compile(r"(.*?-)(\d+)(-of-)(\d+)(\D.*)")


@dataclass(frozen=True)
class Options:
    """The options of `magma data convert`; None if not given."""

    splits: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    partial: bool = False
    min_size: int = 0
    min_similarity: float | None = None
    language: str | None = None
    restval: Literal["train", "restval", "none"] | None = None


class OfficialSet(ABC):
    """Base class of data sets, as published by their owners."""

    name: ClassVar[str]
    kind: ClassVar[SampleKind]
    home: ClassVar[str]
    """URL of its web page."""
    required_files: ClassVar[tuple[RequiredFile, ...]]
    optional: ClassVar[frozenset[str]] = frozenset()
    """Splits that are skipped if they have no files. All files of other splits are required."""
    combines_layouts: ClassVar[bool] = False
    """Whether its layouts are parts of one data set, and several are converted together."""
    supported_options: ClassVar[frozenset[str]] = frozenset()
    """The fields of `Options` that it supports, besides splits, layouts and partial."""

    @abstractmethod
    def read(self, split: str, found: SplitFiles, options: Options) -> Iterable[Item]:
        """The records and dropped rows of a split, always in the same order."""

    def readme(self) -> str:
        """The text of `README.md` in the folder of shards, such as licences that have to be passed on; "": no file."""
        return ""

    def items(self, split: str, found: SplitFiles, options: Options) -> Iterable[Item]:
        """The items of `read`. Raises `InputError` if a file does not have the published format."""
        return _CheckedItems(f"{self.name} {split}", lambda: self.read(split, found, options))

    def find(self, index: FileIndex, options: Options) -> SplitFiles:
        """Find all files of the splits. Raises `InputError` with all missing files."""
        self._check_options(options)
        layouts = self._find_layouts(index, options)
        required = [one for one in self.required_files if one.layout in ("", *layouts)]
        found = {one: index.find(one) for one in required}
        available = {one.split for one, paths in found.items() if paths and not one.is_folder}
        known_splits = self.splits(layouts, options)
        default = [split for split in known_splits if split not in self.optional or split in available]
        splits = [split for split in known_splits if split in (options.splits or default)]
        pairs = {(one.layout, one.split) for one, paths in found.items() if paths and not one.is_folder}
        chosen = {
            one: paths
            for one, paths in found.items()
            if one.split in splits
            and (not self.combines_layouts or (one.layout, one.split) in pairs or one.split not in available)
        }
        problems = [f"{one}: from {one.origin}" for one, paths in chosen.items() if not paths]
        for one, paths in chosen.items():
            problems += self._find_ambiguous(one, paths, options)
        if problems:
            self._raise_missing(index, problems, splits, available)
        return SplitFiles(chosen, splits, layouts)

    def splits(self, layouts: Iterable[str], options: Options) -> list[str]:
        """The splits of some layouts, in order."""
        return list(dict.fromkeys(one.split for one in self.required_files if one.layout in ("", *layouts)))

    @classmethod
    def layouts(cls) -> list[str]:
        """All layouts; empty if there is only one."""
        return list(dict.fromkeys(one.layout for one in cls.required_files if one.layout))

    def _check_options(self, options: Options) -> None:
        for key in ("min_similarity", "language", "restval"):
            if getattr(options, key) is not None and key not in self.supported_options:
                raise InputError(f"--{key.replace('_', '-')}: {self.name} does not support this option")
        allowed = self.layouts()
        for layout in options.layouts:
            if layout not in allowed:
                raise InputError(f"--layout: given {layout!r}; allowed for {self.name}: {', '.join(allowed) or 'none'}")
        splits = self.splits(options.layouts or allowed, options)
        for split in options.splits:
            if split not in splits:
                raise InputError(f"--split: given {split!r}; allowed for {self.name}: {', '.join(splits)}")

    def _find_layouts(self, index: FileIndex, options: Options) -> list[str]:
        if options.layouts and not self.combines_layouts and len(options.layouts) > 1:
            raise InputError(f"--layout: {self.name} can only be converted from one layout at a time")
        if options.layouts or not self.layouts():
            return list(options.layouts)
        available = [one.layout for one in self.required_files if one.layout and not one.is_folder and index.find(one)]
        found = list(dict.fromkeys(available))
        if not found:
            lines = [f"{one} ({one.layout}): from {one.origin}" for one in self.required_files if one.layout]
            self._raise_missing(
                index, [*lines, f"one of these layouts is enough: {', '.join(self.layouts())}"], [], set()
            )
        if len(found) > 1 and not self.combines_layouts:
            raise InputError(f"--layout: files of several layouts were found: {' and '.join(found)}; choose one")
        return found

    @staticmethod
    def _find_ambiguous(one: RequiredFile, paths: list[Path], options: Options) -> list[str]:
        """Problems of a file that was found twice, or whose numbered parts are incomplete."""
        if one.is_folder or one.pattern or len(paths) == 0:
            return []
        names = [path.name for path in paths]
        if twice := [str(path) for path in paths if names.count(path.name) > 1]:
            return [f"{one}: found more than once; allowed: folders with one of them: {', '.join(twice)}"]
        if "*" not in str(one) and "?" not in str(one):
            return []
        numbered = [parts for name in names if (parts := _PART_FILE.fullmatch(name))]
        if not numbered or options.partial:
            return []
        front, _, middle, count, end = numbered[0].groups()
        expected = [f"{front}{i:0{len(count)}}{middle}{count}{end}" for i in range(int(count))]
        return [f"{n}: from {one.origin} (--partial allows missing parts)" for n in expected if n not in names]

    def _raise_missing(self, index: FileIndex, problems: list[str], splits: list[str], available: set[str]) -> None:
        where = ", ".join(map(str, index.sources))
        lines = "".join(f"\n  - {problem}" for problem in dict.fromkeys(problems))
        splits_with_files = [s for s in splits if s in available]
        hint = ""
        if 0 < len(splits_with_files) < len(splits):
            hint = f"\n--split converts only some splits; there are files of: {', '.join(splits_with_files)}"
        raise InputError(f"{self.name}: files are missing below {where}:{lines}{hint}\n{self.home}")


class _CheckedItems:
    """Items with their approximate number. Turns exceptions of a wrong file format into `InputError`."""

    def __init__(self, where: str, make: Callable[[], Iterable[Item]]) -> None:
        self.where = where
        with self._explain_errors():
            self.items = make()

    def __length_hint__(self) -> int:
        return length_hint(self.items)

    def __iter__(self) -> Iterator[Item]:
        with self._explain_errors():
            yield from self.items

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{self.where}: a file does not have the published format: {type(error).__name__}: {error}"
            ) from error
