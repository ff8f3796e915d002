"""Writes records to WebDataset shards.

A sample of a shard is an image: `KEY.jpg` (or png, webp, gif), the published bytes, and `KEY.json`, its captions,
questions or statements. Beside each complete shard there is a note, so that a killed conversion can resume.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from magma import InputError, atomic_write

from .images import NO_CONNECTION, ImageError, ImageSource, check_image, read_images
from .json_files import write_json

NOTE_SUFFIX = ".done.json"
"""Suffix of the note of a complete shard, which exists until the index is written."""
SampleKind = Literal["captions", "vqa", "labelled"]
LISTS: dict[str, str] = {"vqa": "questions", "labelled": "statements"}
"""The field whose entries are the rows of a sample; a sample of captions is one row."""
MIN_OFFLINE_IMAGES = 100
"""If at least this many images of a shard fail, all without a connection, there is probably no network."""


@dataclass(frozen=True, slots=True)
class Record:
    """An image, and the fields of its JSON except `id`."""

    id: str
    picture: ImageSource
    fields: dict[str, Any]

    def rows(self) -> list[str]:
        """The id of each row: of each question or statement, or of the sample of captions."""
        entries = next((self.fields[key] for key in LISTS.values() if key in self.fields), None)
        return [self.id] if entries is None else [entry["id"] for entry in entries]


@dataclass(frozen=True, slots=True)
class DroppedRow:
    """A row that is dropped before its image is read. If not `row`, it is one of several captions of a sample."""

    id: str
    reason: str
    row: bool = True


Item = Record | DroppedRow


@dataclass(frozen=True)
class ShardSettings:
    """Settings of the shards. `timeout` and `threads` only affect downloads."""

    samples_per_shard: int = 1000
    min_size: int = 0
    timeout: float = 10.0
    threads: int = 32


@dataclass(frozen=True)
class Shard:
    """A shard to write. Small, because it is sent to other processes."""

    folder: str
    split: str
    number: int
    first: int
    items: list[Item]
    settings: ShardSettings

    @property
    def stem(self) -> str:
        """Name of its files, without suffix."""
        return f"{self.split}-{self.number:06d}"


def make_shards(split: str, items: Iterable[Item], out: Path, settings: ShardSettings) -> Iterator[Shard]:
    """Group items into shards of `samples_per_shard` records; dropped rows are limited to 100 times that number."""
    pending: list[Item] = []
    number = first = records = 0
    for item in items:
        pending.append(item)
        records += isinstance(item, Record)
        if records == settings.samples_per_shard or len(pending) == 100 * settings.samples_per_shard:
            yield Shard(str(out), split, number, first, pending, settings)
            number, first, records, pending = number + 1, first + records, 0, []
    if pending:
        yield Shard(str(out), split, number, first, pending, settings)


class _NoSamplesError(Exception):
    """All images of a shard are dropped, so there is no tar."""


def write_shard(shard: Shard) -> int:
    """Write the tar, then its note. Returns the number of images that were read. Raises `InputError`."""
    import webdataset

    out = Path(shard.folder)
    records = [item for item in shard.items if isinstance(item, Record)]
    dropped = [[item.id, item.reason] for item in shard.items if isinstance(item, DroppedRow) and item.row]
    trimmed = [[item.id, item.reason] for item in shard.items if isinstance(item, DroppedRow) and not item.row]
    settings = shard.settings
    tar_entry: dict[str, Any] = {"file": f"{shard.stem}.tar", "samples": 0, "rows": 0}
    size = 0
    reasons: Counter[str] = Counter()

    def write_tar(partial: Path) -> None:
        nonlocal size
        with partial.open("wb") as file:
            hashed = HashingWriter(file)
            with webdataset.TarWriter(hashed, encoder=False, user="magma", group="magma", mtime=0) as tar:
                found = read_images((record.picture for record in records), settings.timeout, settings.threads)
                for position, (record, data) in enumerate(zip(records, found, strict=True), shard.first):
                    try:
                        if isinstance(data, ImageError):
                            raise data
                        suffix = check_image(data, settings.min_size)
                    except ImageError as reason:
                        dropped.extend([row, str(reason)] for row in record.rows())
                        reasons[str(reason)] += 1
                        continue
                    fields = json.dumps({"id": record.id, **record.fields}, ensure_ascii=False).encode()
                    tar.write({"__key__": f"{shard.split}-{position:09d}", suffix: data, "json": fields})
                    tar_entry["samples"] += 1
                    tar_entry["rows"] += len(record.rows())
        tar_entry["sha256"], size = hashed.hexdigest(), hashed.size
        if not tar_entry["samples"]:
            raise _NoSamplesError

    with suppress(_NoSamplesError):
        atomic_write(out / f"{shard.stem}.tar", write_tar)
    if reasons[NO_CONNECTION] == len(records) >= MIN_OFFLINE_IMAGES:
        raise InputError(
            f"{shard.stem}: no server was reached for any of {len(records)} images; check the network connection"
        )
    note = {"shard": tar_entry, "bytes": size, "dropped": dropped, "trimmed": trimmed}
    write_json(out / f"{shard.stem}{NOTE_SUFFIX}", note)
    return len(records)


class HashingWriter:
    """A write-only file that computes the hash of its content."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.hash = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Write bytes, as a file."""
        self.hash.update(data)
        self.size += len(data)
        return self.file.write(data)

    def hexdigest(self) -> str:
        """SHA-256 of everything written so far."""
        return self.hash.hexdigest()
