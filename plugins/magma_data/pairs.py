"""Images with something said about them, on disk: captions, questions and answers, labels.

A folder holds JSONL files, a line an example, with image paths relative to the file. `captions` also reads the folders
of the authors' code: `images/`, and in `image_data/` one JSON file an image.
"""

from __future__ import annotations

import json
import os
import random
from abc import abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from magma import DataSource, Example, InputError, LocalPath, Media, PartConfig, State, Text, Trial

IMAGE_DATA = "image_data"


class _Config(PartConfig):
    """Where the pairs are, and in which order they come."""

    path: LocalPath
    """A folder, or one JSONL file."""
    split: str | None = None
    """Reads `SPLIT.jsonl` of the folder alone; all its rows where it is not given."""
    input: str = "image"
    """The model's input that sees the images."""
    shuffle: bool = True
    """A new order every pass."""
    limit: int | None = Field(None, ge=1)
    """The first rows alone."""
    about: str = ""
    """Where the data set comes from: said where it is missing."""


class _Pairs(DataSource):
    """An index of where each row stands, a few bytes a row; rows are read when their turn comes."""

    config: _Config
    _other_layout: ClassVar[str] = ""

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.seed = seed

    @classmethod
    def trial(cls, folder: Path) -> Trial:
        """Six rows about three images."""
        from PIL import Image

        for i in range(3):
            Image.new("RGB", (8, 8), (80 * i, 0, 0)).save(folder / f"{i}.png")
        said = {"caption": "red", "question": "How red?", "answer": "very", "text": "It is red.", "label": "true"}
        rows = [{"image": f"{i % 3}.png", **{key: f"{text} {i}" for key, text in said.items()}} for i in range(6)]
        (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return Trial({"path": str(folder)})

    @classmethod
    def problems(cls, config: _Config) -> list[str]:
        """A path that is not there, or a folder without rows."""
        path = Path(config.path)
        if not path.exists():
            source = f"; get it from {config.about}" if config.about else ""
            rows = f"{config.split or '*'}.jsonl"
            return [
                f"path: given {config.path!r}, which is neither beside the recipe nor in $MAGMA_DATA nor in the "
                f"working folder{source}. It is a folder with {rows} and images (docs/recipes.md); set `path` to it, "
                "or MAGMA_DATA to the folder that holds it"
            ]
        if _files(config):
            return []
        if config.split is None:
            return [f"path: {path} has no *.jsonl{cls._other_layout}"]
        whole = f"; its {IMAGE_DATA}/ has no splits: `split = false` reads all of it"
        hint = whole if cls._other_layout and (path / IMAGE_DATA).is_dir() else ""
        return [f"path: {path} has no {config.split}.jsonl{hint}"]

    def iterate(self, state: State | None = None) -> Iterator[tuple[Example, State]]:
        """One pass, shuffled by seed and pass unless the config says otherwise."""
        state = state or {"epoch": 0, "position": 0}
        epoch = state["epoch"]
        count = len(self.rows)
        if self.config.limit is not None:
            count = min(count, self.config.limit)
        order: NDArray[np.int64] = np.arange(count)
        if self.config.shuffle:
            order = np.random.default_rng([self.seed % 2**64, epoch]).permutation(count)
        for position in range(state["position"], count):
            row = int(order[position])
            last = position + 1 == count
            after = {"epoch": epoch + 1, "position": 0} if last else {"epoch": epoch, "position": position + 1}
            yield self._example(row, random.Random(f"{self.seed} {epoch} {row}")), after

    @cached_property
    def rows(self) -> _Rows:
        """Every row of the files, found in one reading."""
        files = _files(self.config)
        if not files:
            raise InputError("; ".join(self.problems(self.config)))
        return _Folder(Path(self.config.path), files) if files[:1] == [IMAGE_DATA] else _Lines(files)

    def _example(self, i: int, draw: random.Random) -> Example:
        where, folder, row = self.rows.read(i)
        get = _Row(where, row)
        image = PurePosixPath(get.text(self.rows.image_key))
        if image.is_absolute() or ".." in image.parts:
            raise InputError(f'{where}: {self.rows.image_key}: given "{image}"; allowed: a path inside {folder}')
        return self.example(Media(self.config.input, folder / image), get, draw if self.config.shuffle else None)

    @abstractmethod
    def example(self, medium: Media, row: _Row, draw: random.Random | None) -> Example:
        """What is said about the medium; `draw` chooses where there are several, None: the first or most frequent."""


class Captions(_Pairs):
    """An image, and its caption: `{"image": ..., "caption": ...}`, or `captions`, of which each pass draws one."""

    name = "captions"

    class Config(_Config):
        """No prompt stands between image and caption, as in the paper (equation 3)."""

    _other_layout = f" and no {IMAGE_DATA}/"

    def example(self, medium: Media, row: _Row, draw: random.Random | None) -> Example:
        """The caption is the target."""
        caption = row.one_of("caption", "captions", draw)
        return Example([medium, Text(caption, target=True)], row.where)


class Vqa(_Pairs):
    """An image, a question, its answer: `{"image": ..., "question": ..., "answer": ...}`, or `answers`."""

    name = "vqa"

    class Config(_Config):
        """`template` is the prompt; a space and the answer follow (section 4.1.1)."""

        template: str = "Q: {question} A:"

    config: Config

    def example(self, medium: Media, row: _Row, draw: random.Random | None) -> Example:
        """The answer is the target."""
        prompt = self.config.template.replace("{question}", row.text("question"))
        answer = row.one_of("answer", "answers", draw)
        return Example([medium, Text(prompt), Text(f" {answer}", target=True)], row.where)


class Labelled(_Pairs):
    """An image, a text, and the label of the two: `{"image": ..., "text": ..., "label": ...}`."""

    name = "labelled"

    class Config(_Config):
        """`template` is what the model reads behind the image."""

        template: str = "{text}"

    config: Config

    def example(self, medium: Media, row: _Row, draw: random.Random | None) -> Example:
        """For a model with a head."""
        text = self.config.template.replace("{text}", row.text("text"))
        return Example([medium, Text(text)], row.where, label=row.text("label"))


# Rows on disk


class _Row:
    """One row's fields, checked as they are asked for."""

    def __init__(self, where: str, fields: Any) -> None:
        self.where, self.fields = where, fields

    def text(self, key: str) -> str:
        """A text that is not empty."""
        value = self.fields.get(key)
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{self.where}: {key}: given {value!r}; allowed: text")
        return value.strip()

    def one_of(self, single: str, several: str, draw: random.Random | None) -> str:
        """`single`, or one of the list `several`."""
        if several not in self.fields:
            return self.text(single)
        values = self.fields[several]
        if not isinstance(values, list) or not values or not all(isinstance(v, str) and v.strip() for v in values):
            raise InputError(f"{self.where}: {several}: given {values!r}; allowed: a list of texts")
        values = [value.strip() for value in values]
        chosen: str = draw.choice(values) if draw else Counter(values).most_common(1)[0][0]
        return chosen


class _Lines:
    """The lines of JSONL files, by where they begin and which they are."""

    image_key = "image"

    def __init__(self, files: list[str]) -> None:
        self.files = [Path(file) for file in files]
        found = [_line_starts(file) for file in self.files]
        self.starts: NDArray[np.int64] = np.concatenate(found)
        self.ends = np.cumsum([len(starts) for starts in found])

    def __len__(self) -> int:
        return len(self.starts)

    def read(self, i: int) -> tuple[str, Path, Any]:
        """(name for errors, folder of its image, fields)."""
        number = int(np.searchsorted(self.ends, i, side="right"))
        file = self.files[number]
        start, line = map(int, self.starts[i])
        with file.open("rb") as opened:
            opened.seek(start)
            raw = opened.readline()
        where = f"{file} line {line}"
        return where, file.parent, _parse(where, raw)


def _line_starts(file: Path) -> NDArray[np.int64]:
    """[n, 2]: where each line that is not blank begins, and its number."""
    starts = array("q")
    at = 0
    with file.open("rb") as opened:
        for number, line in enumerate(opened, 1):
            if line.strip():
                starts.extend((at, number))
            at += len(line)
    return np.array(starts, dtype=np.int64).reshape(-1, 2)


class _Folder:
    """The authors' layout: a JSON file an image, with `image_path` and `captions`."""

    image_key = "image_path"

    def __init__(self, folder: Path, _: list[str]) -> None:
        self.folder = folder
        names = sorted(str(p.relative_to(folder / IMAGE_DATA)) for p in (folder / IMAGE_DATA).rglob("*.json"))
        self.names = np.array([os.fsencode(name) for name in names])

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int) -> tuple[str, Path, Any]:
        """As `_Lines.read`."""
        file = self.folder / IMAGE_DATA / os.fsdecode(self.names[i])
        return str(file), self.folder, _parse(str(file), file.read_bytes())


_Rows = _Lines | _Folder


def _parse(where: str, raw: bytes) -> Any:
    try:
        fields = json.loads(raw)
    except ValueError as error:
        raise InputError(f"{where}: no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{where}: given a {type(fields).__name__}; allowed: a JSON object")
    return fields


def _files(config: _Config) -> list[str]:
    """The JSONL files of a path, or the authors' `image_data` where a config of captions finds that."""
    path = Path(config.path)
    if path.is_file():
        return [str(path)]
    if config.split is not None:
        chosen = path / f"{config.split}.jsonl"
        return [str(chosen)] if chosen.is_file() else []
    found = sorted(str(file) for file in path.glob("*.jsonl"))
    if not found and isinstance(config, Captions.Config) and (path / IMAGE_DATA).is_dir():
        return [IMAGE_DATA]
    return found
