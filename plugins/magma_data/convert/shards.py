"""Records to WebDataset shards: in parallel, and so that a killed conversion goes on where it was.

One sample of a tar is one image: `KEY.jpg` (or png, webp, gif), the bytes as they were published, and `KEY.json`, what
is said about it. The folder's `index.json` is written last: where it is, the folder is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from magma import InputError

from .atomic_files import partial_path, write_json
from .images import NO_CONNECTION, ImageError, ImageSource, check_image, read_images

DONE = ".done.json"
"""Ends the name of a shard's note, which stands beside it until the index is written."""
SampleKind = Literal["captions", "vqa", "labelled"]
LISTS: dict[str, str] = {"vqa": "questions", "labelled": "statements"}
"""The field whose entries are a sample's rows; a sample of captions is one row."""
OFFLINE = 100
"""Where so many images of a shard, and all of them, reach no server, this machine has no network."""


@dataclass(frozen=True, slots=True)
class Record:
    """An image, and what its JSON will hold beside `id`."""

    id: str
    picture: ImageSource
    fields: dict[str, Any]

    def rows(self) -> list[str]:
        """The id of each question or statement; of a sample of captions, its own."""
        entries = next((self.fields[key] for key in LISTS.values() if key in self.fields), None)
        return [self.id] if entries is None else [entry["id"] for entry in entries]


@dataclass(frozen=True, slots=True)
class DroppedRow:
    """A row that is left out before its image is read. Not `row`: a caption of several, whose sample stays."""

    id: str
    reason: str
    row: bool = True


Item = Record | DroppedRow


@dataclass(frozen=True)
class ShardSettings:
    """How shards are made. The last two change no byte of what can be had."""

    samples_per_shard: int = 1000
    min_size: int = 0
    timeout: float = 10.0
    threads: int = 32


@dataclass(frozen=True)
class Shard:
    """One shard's work: light, and sent to other processes."""

    folder: str
    split: str
    number: int
    first: int
    items: list[Item]
    settings: ShardSettings

    @property
    def stem(self) -> str:
        """Name of its files, without ending."""
        return f"{self.split}-{self.number:06d}"


def make_shards(split: str, items: Iterable[Item], out: Path, settings: ShardSettings) -> Iterator[Shard]:
    """Shards of `samples_per_shard` records; what is left out already rides along, and is never too much at once."""
    held: list[Item] = []
    number = first = records = 0
    for item in items:
        held.append(item)
        records += isinstance(item, Record)
        if records == settings.samples_per_shard or len(held) == 100 * settings.samples_per_shard:
            yield Shard(str(out), split, number, first, held, settings)
            number, first, records, held = number + 1, first + records, 0, []
    if held:
        yield Shard(str(out), split, number, first, held, settings)


def write_shard(shard: Shard) -> int:
    """A tar and, after it, the note that says it is complete. Returns how many images were read."""
    import webdataset

    out = Path(shard.folder)
    partial = partial_path(out / shard.stem)
    records = [item for item in shard.items if isinstance(item, Record)]
    dropped = [[item.id, item.reason] for item in shard.items if isinstance(item, DroppedRow) and item.row]
    trimmed = [[item.id, item.reason] for item in shard.items if isinstance(item, DroppedRow) and not item.row]
    settings = shard.settings
    samples = rows = 0
    reasons: Counter[str] = Counter()
    with partial.open("wb") as file:
        hashed = HashingWriter(file)
        with webdataset.TarWriter(hashed, encoder=False, user="magma", group="magma", mtime=0) as tar:
            found = read_images((record.picture for record in records), settings.timeout, settings.threads)
            for position, (record, data) in enumerate(zip(records, found, strict=True), shard.first):
                try:
                    if isinstance(data, ImageError):
                        raise data
                    ending = check_image(data, settings.min_size)
                except ImageError as reason:
                    dropped += [[row, str(reason)] for row in record.rows()]
                    reasons[str(reason)] += 1
                    continue
                fields = json.dumps({"id": record.id, **record.fields}, ensure_ascii=False).encode()
                tar.write({"__key__": f"{shard.split}-{position:09d}", ending: data, "json": fields})
                samples += 1
                rows += len(record.rows())
        file.flush()
        os.fsync(file.fileno())
    if reasons[NO_CONNECTION] == len(records) >= OFFLINE:
        partial.unlink()
        raise InputError(f"{shard.stem}: none of {len(records)} images reached a server; is there a network?")
    if samples:
        partial.replace(out / f"{shard.stem}.tar")
    else:
        partial.unlink()
    note = {
        "shard": {"file": f"{shard.stem}.tar", "samples": samples, "rows": rows, "sha256": hashed.hexdigest()},
        "bytes": hashed.size,
        "dropped": dropped,
        "trimmed": trimmed,
    }
    write_json(out / f"{shard.stem}{DONE}", note)
    return len(records)


class HashingWriter:
    """A file that is only written to, with the hash of all that went in."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.hash = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        """As a file does."""
        self.hash.update(data)
        self.size += len(data)
        return self.file.write(data)

    def hexdigest(self) -> str:
        """Of everything so far."""
        return self.hash.hexdigest()
