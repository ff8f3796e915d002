"""What a data set is made of as its owners publish it, and how its files are found below a folder.

A data set is a class: `required_files` lists its official files, `read` turns a split of them into records. Its
files may be anywhere below the folders that are given; all that are missing are named at once.
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

_NUMBERED = re.compile(r"(.*?-)(\d+)(-of-)(\d+)(\D.*)")


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


class OfficialSet(ABC):
    """One data set as it is published. Subclasses are all there is to know about it."""

    name: ClassVar[str]
    kind: ClassVar[SampleKind]
    home: ClassVar[str]
    """Its page."""
    required_files: ClassVar[tuple[RequiredFile, ...]]
    optional: ClassVar[frozenset[str]] = frozenset()
    """Splits that are converted where their files are there; of the others, all files have to be."""
    combines: ClassVar[bool] = False
    """Are its layouts parts of one set, of which several are taken together?"""
    takes: ClassVar[frozenset[str]] = frozenset()
    """The fields of `Options` that it has a use for, beside splits, layouts and partial."""

    @abstractmethod
    def read(self, split: str, found: SplitFiles, options: Options) -> Iterable[Item]:
        """The records of a split, and what is left out of it already, always in the same order."""

    def items(self, split: str, found: SplitFiles, options: Options) -> Iterable[Item]:
        """What `read` gives; a file that is laid out otherwise than published is an `InputError`."""
        return _CheckedItems(f"{self.name} {split}", lambda: self.read(split, found, options))

    def find(self, tree: FileIndex, options: Options) -> SplitFiles:
        """All files of the splits; `InputError` with everything that is missing."""
        self._check(options)
        layouts = self._layouts(tree, options)
        mine = [one for one in self.required_files if one.layout in ("", *layouts)]
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
            problems += self._find_ambiguous(one, paths, options)
        if problems:
            self._raise_missing(tree, problems, splits, there)
        return SplitFiles(chosen, splits, layouts)

    def splits(self, layouts: Iterable[str], options: Options) -> list[str]:
        """Those of some layouts, in order."""
        return list(dict.fromkeys(one.split for one in self.required_files if one.layout in ("", *layouts)))

    @classmethod
    def layouts(cls) -> list[str]:
        """All of them; none where there is only one."""
        return list(dict.fromkeys(one.layout for one in cls.required_files if one.layout))

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

    def _layouts(self, tree: FileIndex, options: Options) -> list[str]:
        if options.layouts and not self.combines and len(options.layouts) > 1:
            raise InputError(f"--layout: {self.name} is read in one layout at a time")
        if options.layouts or not self.layouts():
            return list(options.layouts)
        there = [one.layout for one in self.required_files if one.layout and not one.is_folder and tree.find(one)]
        found = list(dict.fromkeys(there))
        if not found:
            lines = [f"{one} ({one.layout}): from {one.origin}" for one in self.required_files if one.layout]
            self._raise_missing(
                tree, [*lines, f"one of these layouts is enough: {', '.join(self.layouts())}"], [], set()
            )
        if len(found) > 1 and not self.combines:
            raise InputError(f"--layout: {self.name} is there as {' and as '.join(found)}; choose one")
        return found

    @staticmethod
    def _find_ambiguous(one: RequiredFile, paths: list[Path], options: Options) -> list[str]:
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

    def _raise_missing(self, tree: FileIndex, problems: list[str], splits: list[str], there: set[str]) -> None:
        where = ", ".join(map(str, tree.sources))
        lines = "".join(f"\n  - {problem}" for problem in dict.fromkeys(problems))
        whole = [s for s in splits if s in there]
        hint = f"\n--split takes some splits alone; there are files of: {', '.join(whole)}" if whole else ""
        raise InputError(f"{self.name}: not all of its files are below {where}:{lines}{hint}\n{self.home}")


class _CheckedItems:
    """Items, how many they are about, and a user's error where a field is missing."""

    def __init__(self, where: str, make: Callable[[], Iterable[Item]]) -> None:
        self.where = where
        with self._explain_errors():
            self.made = make()

    def __length_hint__(self) -> int:
        return length_hint(self.made)

    def __iter__(self) -> Iterator[Item]:
        with self._explain_errors():
            yield from self.made

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{self.where}: a file is not laid out as it was published: {type(error).__name__}: {error}"
            ) from error
