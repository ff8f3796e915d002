"""Rows on disk or behind urls, in every layout that the sources and evaluations of this package read.

`find(path, split)` says what is there, `open_rows(path, split)` reads it: see `passes.Rows` for what comes out.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
import zlib
from abc import abstractmethod
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from magma import InputError

from .columns import AS_NAMED, MEDIUM, Columns
from .passes import Indexed, Row, Rows, Streamed

IMAGE_DATA = "image_data"
INDEX = "index.json"
BUFFER = 1000
Layout = Literal["jsonl", "tar", "datasets", "parquet", "authors", "lines", "documents"]
IMAGES: tuple[Layout, ...] = ("datasets", "jsonl", "tar", "parquet")
"""Where every source of images with texts looks, in this order; the first layout that is there is read."""
_MANY = 8
"""So many names of splits are told."""


# What is there


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
    except (OSError, ValueError, RecursionError):
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


def open_rows(
    path: str,
    split: str | None = None,
    each: str | None = None,
    *,
    layouts: Sequence[Layout] = IMAGES,
    buffer: int = BUFFER,
    columns: Columns = AS_NAMED,
) -> Rows:
    """The rows of a split, or of all; `columns` says where a row's fields are.

    A record whose field `each` is a list of objects ("questions") is a row for each of them, all with its medium.
    `buffer` is the size of a block of what can only be read in sequence. Raises `InputError` where nothing is found.
    """
    found = find(path, split, layouts)
    if isinstance(found, list):
        raise InputError("; ".join(found))
    rows = _opened_as(found, each and columns.of(each), buffer, columns)
    rows.columns = columns
    return rows


def _opened_as(found: Found, each: str | None, buffer: int, columns: Columns) -> Rows:
    match found.layout:
        case "tar":
            return Tars(found.files, each, buffer)
        case "parquet":
            return Parquet(found.files, each, buffer, columns)
        case "datasets":
            return Table(found.files, each, columns)
        case "authors":
            return Authors(Path(found.files[0]))
        case "documents":
            return Documents(found.files)
        case "lines":
            return TextLines(found.files)
    return Lines(found.files, each)


def _parsed(where: str, raw: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{where}: given a {type(fields).__name__}; allowed: a JSON object")
    return fields


# Read in any order


class Lines(Indexed):
    """The lines of JSONL files, by where they begin and which they are: sixteen bytes a line."""

    def __init__(self, files: Sequence[str], each: str | None = None) -> None:
        super().__init__(each)
        self.files = [Path(file) for file in files]
        found = [self._index(file) for file in self.files]
        self.starts: NDArray[np.int64] = np.concatenate([starts for starts, _ in found])
        self.file_ends = np.cumsum([len(starts) for starts, _ in found])
        self._counts: NDArray[np.int64] = np.concatenate([counts for _, counts in found])

    def _index(self, file: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """[n, 2] where each line that is not blank begins, and its number; [n] how many rows it is."""
        starts, counts = array("q"), array("q")
        nested = f'"{self.each}"'.encode()
        at = 0
        with file.open("rb") as opened:
            for number, line in enumerate(opened, 1):
                if line.strip():
                    starts.extend((at, number))
                    several = self.each is not None and nested in line
                    counts.append(len(self._row(file, number, line).each(self.each)) if several else 1)
                at += len(line)
        return np.array(starts, dtype=np.int64).reshape(-1, 2), np.array(counts, dtype=np.int64)

    def counts(self) -> NDArray[np.int64]:
        """Found with the lines."""
        return self._counts

    def read(self, record: int) -> Row:
        """One line."""
        file = self.files[int(np.searchsorted(self.file_ends, record, side="right"))]
        start, number = map(int, self.starts[record])
        with file.open("rb") as opened:
            opened.seek(start)
            return self._row(file, number, opened.readline())

    def _row(self, file: Path, number: int, line: bytes) -> Row:
        where = f"{file} line {number}"
        try:
            return Row(where, self.fields(where, line), file.parent)
        except InputError as error:
            return Row(where, {}, problem=str(error))

    @staticmethod
    def fields(where: str, line: bytes) -> dict[str, Any]:
        """What a line says."""
        return _parsed(where, line)


class TextLines(Lines):
    """The lines of text files: each is a document."""

    @staticmethod
    def fields(where: str, line: bytes) -> dict[str, Any]:
        """Its text."""
        return {"text": _decoded(where, line)}


def _decoded(where: str, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: no UTF-8: {error}") from error


class _Files(Indexed):
    """A record a file."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        super().__init__(None)
        self.folder = folder
        self.names = np.array([os.fsencode(name) for name in names])  # a million strings are ten times as much

    def counts(self) -> NDArray[np.int64]:
        """One row each."""
        return np.ones(len(self.names), dtype=np.int64)

    def read(self, record: int) -> Row:
        """One file."""
        file = self.folder / os.fsdecode(self.names[record])
        try:
            return self.row(file, file.read_bytes())
        except InputError as error:
            return Row(str(file), {}, problem=str(error))
        except OSError as error:
            return Row(str(file), {}, problem=f"{file}: {error.strerror}")

    @abstractmethod
    def row(self, file: Path, raw: bytes) -> Row:
        """What a file says. Raises `InputError`."""


class Authors(_Files):
    """The layout of the authors' code: a JSON file an image, with `image_path` and `captions`."""

    def __init__(self, folder: Path) -> None:
        inside = folder / IMAGE_DATA
        super().__init__(folder, sorted(str(file.relative_to(folder)) for file in inside.rglob("*.json")))

    def row(self, file: Path, raw: bytes) -> Row:
        """The path of its image is relative to the whole folder."""
        return Row(str(file), _parsed(str(file), raw), self.folder, "image_path")


class Documents(_Files):
    """Text files: each is a document."""

    def __init__(self, files: Sequence[str]) -> None:
        super().__init__(Path(), files)

    def row(self, file: Path, raw: bytes) -> Row:
        """Its text."""
        return Row(str(file), {"text": _decoded(str(file), raw)})


class Table(Indexed):
    """What the datasets library saved: memory-mapped, a row is copied out when its turn comes, no medium decoded."""

    def __init__(self, folders: Sequence[str], each: str | None, columns: Columns) -> None:
        super().__init__(each)
        import datasets

        try:
            saved = [datasets.load_from_disk(folder) for folder in folders]
            self.tables = [table.with_format("arrow") for table in saved]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folders[0]} cannot be read as a saved dataset: {error}") from error
        self.folders = [Path(folder) for folder in folders]
        self.file_ends = np.cumsum([len(table) for table in self.tables])
        self.media = [
            _medium_column(folder, table.data.schema, columns)
            for folder, table in zip(folders, self.tables, strict=True)
        ]

    def counts(self) -> NDArray[np.int64]:
        """The lengths of the lists."""
        return np.concatenate([self._lengths(table) for table in self.tables])

    def _lengths(self, table: Any) -> NDArray[np.int64]:
        import pyarrow.compute as pc
        import pyarrow.types as types

        ones = np.ones(len(table), dtype=np.int64)
        if self.each not in table.column_names or not types.is_list(table.data.schema.field(self.each).type):
            return ones
        lengths = pc.list_value_length(table.data.column(self.each)).fill_null(1).to_numpy()
        return np.maximum(ones, np.asarray(lengths, dtype=np.int64))  # of an empty list there is a row that says so

    def read(self, record: int) -> Row:
        """One row of one table."""
        number = int(np.searchsorted(self.file_ends, record, side="right"))
        table = self.tables[number]
        at = record - int(self.file_ends[number]) + len(table)
        (fields,) = table[at : at + 1].to_pylist()
        folder = self.folders[number]
        return _arrow_row(f"{folder} row {at}", fields, self.media[number], folder)


def _medium_column(where: str, schema: Any, wanted: Columns) -> str | None:
    """The column that holds media: bytes, or bytes and path as the datasets library stores them."""
    if found := wanted.given_among(where, schema.names) or wanted.implied(schema.names):
        return found
    import pyarrow.types as types

    def holds(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    columns = [field.name for field in schema if holds(field.type)]
    if len(columns) > 1 and MEDIUM not in columns:
        raise InputError(
            f"{where}: several columns hold media ({', '.join(columns)}); allowed: one, one called {MEDIUM}, or the "
            f"one that `columns = {{ {wanted.input} = ... }}` names"
        )
    return MEDIUM if MEDIUM in columns else next(iter(columns), None)


def _arrow_row(where: str, fields: dict[str, Any], column: str | None, folder: Path) -> Row:
    """Fields without those that are null; the medium apart."""
    medium = fields.pop(column, None) if column else None
    if isinstance(medium, dict):
        data, path = medium.get("bytes"), medium.get("path")
    else:
        data, path = (medium, None) if isinstance(medium, bytes) else (None, medium)
    said = {name: value for name, value in fields.items() if value is not None}
    return Row(where, said | ({column: path} if column and path else {}), folder, column or MEDIUM, data)


# Read in sequence


class Parquet(Streamed):
    """Row groups of parquet files, which are decoded from their beginning: each is a shard."""

    def __init__(self, files: Sequence[str], each: str | None, buffer: int, columns: Columns) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        groups = []
        for file in files:
            try:
                with pq.ParquetFile(file) as opened:
                    groups += [(file, group) for group in range(opened.num_row_groups)]
                    _medium_column(file, opened.schema_arrow, columns)
            except (OSError, pa.ArrowException) as error:
                raise InputError(f"{file} cannot be read as parquet: {error}") from error
        super().__init__(groups, each, buffer)

    def samples(self, shard: tuple[str, int], skip: int) -> Iterator[Row]:
        """The rows of a row group."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        file, group = shard
        folder, at = Path(file).parent, 0
        try:
            with pq.ParquetFile(file, memory_map=True) as opened:
                column = _medium_column(file, opened.schema_arrow, self.columns)
                for batch in opened.iter_batches(64, row_groups=[group], use_threads=False):
                    for i in range(max(0, skip - at), len(batch)):
                        (fields,) = batch.slice(i, 1).to_pylist()
                        yield _arrow_row(f"{file} row group {group} row {at + i}", fields, column, folder)
                    at += len(batch)
        except (OSError, pa.ArrowException) as error:
            if skip <= at:
                where = f"{file} row group {group} row {at}"
                yield Row(where, {}, problem=f"{where}: the rest of the row group cannot be read: {error}")


class Tars(Streamed):
    """Tar shards of the WebDataset convention: members that share a name up to its first dot are a sample.

    KEY.json holds the fields, KEY.txt is the caption where they have none (img2dataset writes both), and the one other
    member is the medium. A shard that cannot be opened raises `InputError`: that is no matter of a sample, and the
    position is known.
    """

    def samples(self, shard: str, skip: int) -> Iterator[Row]:
        """The samples of a shard; of those that are skipped, nothing but the members' heads is looked at."""
        key: str | None = None
        number, broken = 0, None
        members: dict[str, bytes] = {}
        try:
            with closing(_opened(shard)) as file, _tar(file, shard) as tar:
                for member in _members(tar):
                    name = PurePosixPath(member.name)
                    stem, _, ending = name.name.partition(".")
                    found = str(name.with_name(stem))
                    if found != key:
                        if key is not None and number >= skip:
                            yield _sample(shard, key, members, self.columns)
                        number += key is not None
                        key, members = found, {}
                    if number >= skip:
                        members[ending.lower()] = _content(tar, member)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            broken = str(error)
        except OSError as error:
            raise InputError(f"{shard}: it can no longer be read behind sample {number} ({key}): {error}") from error
        if broken is not None and number >= skip:
            where = f"{shard} {key or 'at its beginning'}"
            yield Row(where, {}, problem=f"{where}: the rest of the shard cannot be read: {broken}")
        elif key is not None and number >= skip:
            yield _sample(shard, key, members, self.columns)


def _opened(shard: str) -> IO[bytes]:
    try:
        if not is_url(shard):
            return Path(shard).open("rb")
        from webdataset.gopen import gopen

        opened: IO[bytes] = gopen(shard)
        return opened
    except (OSError, ValueError) as error:
        raise InputError(f"{shard} cannot be opened: {error}") from error


def _tar(file: IO[bytes], shard: str) -> tarfile.TarFile:
    """Members that are passed over are sought past in a file, and read past in a stream."""
    return tarfile.open(fileobj=file, mode="r|*") if is_url(shard) else tarfile.open(fileobj=file, mode="r:*")


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files of an archive, as it is read. Raises `tarfile.ReadError` where it ends without its end mark."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
        if member.isfile():
            yield member
    # It takes a damaged head for the end; behind the end proper there is a second block of zeros.
    if tar.fileobj is None or tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it is cut off or damaged here")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = tar.extractfile(member)
    assert opened is not None  # a file
    content = opened.read()
    if len(content) != member.size:
        raise tarfile.ReadError("it is cut off here")
    return content


def _sample(shard: str, key: str, members: Mapping[str, bytes], columns: Columns) -> Row:
    where = f"{shard} {key}"
    try:
        fields = _parsed(f"{where}.json", members["json"]) if "json" in members else {}
        if "txt" in members and not {"caption", "captions"} & fields.keys():
            fields["caption"] = _decoded(f"{where}.txt", members["txt"])
        medium = columns.given_among(where, [*members, *fields]) or columns.implied(members)
        texts = {"json", "txt", *columns.given.values()}
        media = [medium] if medium is not None else [ending for ending in members if ending not in texts]
        if len(media) > 1:
            raise InputError(
                f"{where}: it has several media ({', '.join(media)}); allowed: one, or the one that "
                f"`columns = {{ {columns.input} = ... }}` names"
            )
        for ending in columns.given.values():
            if ending in members and ending not in (medium, *fields):
                fields[ending] = _decoded(f"{where}.{ending}", members[ending])
    except InputError as error:
        return Row(where, {}, problem=str(error))
    return Row(where, fields, data=members.get(media[0]) if media else None)
