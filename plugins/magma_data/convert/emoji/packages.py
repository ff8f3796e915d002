"""The npm packages with the pictures of the data set `emoji`, as files (`npm pack`) or as folders (`npm install`)."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magma import InputError

from ..annotations import image_in, load_json
from ..archives import ArchiveImage, read_archive_folder
from ..images import ImageSource
from ..required_files import RequiredFile, required_file
from ..svg import SvgImage

SVG_SIZE = 128
"""Pixels per side of a picture that is rendered from SVG."""


@dataclass(frozen=True)
class Style:
    """A drawing style, and the package that contains its pictures, named by their code points."""

    name: str
    package: str
    folder: str
    """The folder of the pictures in the package."""
    marker: str
    """A file, or a folder with a slash, by which an unpacked package is found, as a path in the package."""
    attribution: str

    @property
    def is_svg(self) -> bool:
        """Whether the pictures are SVG, otherwise PNG."""
        return self.folder.endswith("svg")

    def required_file(self, split: str) -> RequiredFile:
        """The package, for a split."""
        return required_file(f"{self.marker}|{self.package}-[0-9]*.tgz", split, f"npm pack {self.package}")

    def open(self, paths: list[Path]) -> Package:
        """The package that was found at these paths. Raises `InputError` for several."""
        if len(paths) > 1:
            raise InputError(
                f"emoji: {self.package} was found more than once: {', '.join(map(str, paths))}; allowed: sources with "
                "one of them"
            )
        (path,) = paths
        found = _PackedPackage(path) if path.is_file() and path.suffix == ".tgz" else _unpacked(path, self.marker)
        if not found.names(self.folder):
            raise InputError(f"emoji: {found} has no files in {self.folder}; allowed: from npm pack {self.package}")
        return found

    def pictures(self, package: Package) -> dict[str, ImageSource]:
        """The published pictures of the package, by `code_points`."""
        return {
            code_points(name.rpartition(".")[0]): package.image(self.folder, name)
            for name in sorted(package.names(self.folder))
        }

    def drawn(self, picture: ImageSource) -> ImageSource:
        """A picture of this style as an image that goes into a shard."""
        return SvgImage(picture, SVG_SIZE) if self.is_svg else picture


NOTO = Style(
    "noto",
    "emoji-datasource-google",
    "img/google/64",
    "img/google/64/",
    "Noto Emoji, https://github.com/googlefonts/noto-emoji, by Google, images under the Apache License 2.0",
)
OPENMOJI = Style(
    "openmoji",
    "openmoji",
    "color/svg",
    "data/openmoji.json",
    "OpenMoji, https://openmoji.org, the open-source emoji and icon project, under CC BY-SA 4.0",
)
TWEMOJI = Style(
    "twemoji",
    "emoji-datasource-twitter",
    "img/twitter/64",
    "img/twitter/64/",
    "Twemoji, https://github.com/jdecked/twemoji, by Twitter, Inc. and other contributors, graphics under CC BY 4.0",
)
STYLES = (NOTO, OPENMOJI, TWEMOJI)


def code_points(stem: str) -> str:
    """The code points of an emoji in lower case, without the variation selector that some packages omit."""
    return stem.lower().replace("-fe0f", "")


class Package(ABC):
    """A package of npm."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder of the package; empty if there is no such folder."""

    @abstractmethod
    def image(self, folder: str, name: str) -> ImageSource:
        """The image in a file."""

    @abstractmethod
    def load_json(self, folder: str, name: str) -> Any:
        """The content of a JSON file. Raises `InputError`."""


@dataclass(frozen=True)
class _UnpackedPackage(Package):
    root: Path

    def __str__(self) -> str:
        return str(self.root)

    def names(self, folder: str) -> list[str]:
        below = self.root / folder
        return [path.name for path in below.iterdir()] if below.is_dir() else []

    def image(self, folder: str, name: str) -> ImageSource:
        return image_in([self.root / folder], name)

    def load_json(self, folder: str, name: str) -> Any:
        return load_json(self.root / folder / name)


@dataclass(frozen=True)
class _PackedPackage(Package):
    archive: Path

    def __str__(self) -> str:
        return str(self.archive)

    def names(self, folder: str) -> list[str]:
        return list(self._files(folder))

    def image(self, folder: str, name: str) -> ImageSource:
        return ArchiveImage(str(self.archive), folder, name)

    def load_json(self, folder: str, name: str) -> Any:
        files = self._files(folder)
        if name not in files:
            raise InputError(f"{self.archive}: it has no file {folder}/{name}")
        try:
            return json.loads(files[name])
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.archive} {folder}/{name}: not JSON: {error}") from error

    def _files(self, folder: str) -> Mapping[str, bytes]:
        return read_archive_folder(str(self.archive), folder)


def _unpacked(path: Path, marker: str) -> _UnpackedPackage:
    """The package in which `path` is the marker."""
    return _UnpackedPackage(path.parents[marker.rstrip("/").count("/")])
