"""Records to WebDataset shards: in parallel, and so that a killed conversion goes on where it was.

One sample of a tar is one image: `KEY.jpg` (or png, webp, gif), the bytes as they were published, and `KEY.json`, what
is said about it. The folder's `index.json` is written last: where it is, the folder is complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from operator import length_hint
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

from magma import InputError

from .images import NO_CONNECTION, Picture, Unreadable, examine, read_all

FORMAT = 1
INDEX, REPORT, DROPPED, OPTIONS = "index.json", "report.json", "dropped.jsonl", "options.json"
DONE = ".done.json"
"""Ends the name of a shard's note, which stands beside it until the index is written."""
Kind = Literal["captions", "vqa", "labelled"]
LISTS: dict[str, str] = {"vqa": "questions", "labelled": "statements"}
"""The field whose entries are a sample's rows; a sample of captions is one row."""
OFFLINE = 100
"""Where so many images of a shard, and all of them, reach no server, this machine has no network."""

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Record:
    """An image, and what its JSON will hold beside `id`."""

    id: str
    picture: Picture
    fields: dict[str, Any]

    def rows(self) -> list[str]:
        """The id of each question or statement; of a sample of captions, its own."""
        entries = next((self.fields[key] for key in LISTS.values() if key in self.fields), None)
        return [self.id] if entries is None else [entry["id"] for entry in entries]


@dataclass(frozen=True, slots=True)
class Drop:
    """A row that is left out before its image is read. Not `row`: a caption of several, whose sample stays."""

    id: str
    reason: str
    row: bool = True


Item = Record | Drop


@dataclass(frozen=True)
class Settings:
    """How shards are made. The last two change no byte of what can be had."""

    samples_per_shard: int = 1000
    min_size: int = 0
    timeout: float = 10.0
    threads: int = 32


@dataclass(frozen=True)
class Conversion:
    """A data set on its way into a folder."""

    name: str
    kind: Kind
    splits: Mapping[str, Callable[[], Iterable[Item]]]
    settings: Settings = Settings()
    options: Mapping[str, Any] = field(default_factory=dict)
    """What changes the result: a folder goes on with the same ones alone."""


@dataclass(frozen=True)
class Shard:
    """One shard's work: light, and sent to other processes."""

    folder: str
    split: str
    number: int
    first: int
    items: list[Item]
    settings: Settings

    @property
    def stem(self) -> str:
        """Name of its files, without ending."""
        return f"{self.split}-{self.number:06d}"


@dataclass(frozen=True)
class Progress:
    """How far a split is."""

    split: str
    read: int
    """Images, those among them that are left out."""
    total: int
    """0 where nobody knows."""
    shards: int


def quiet(*_: object) -> None:
    """Nobody wants to know how far it is."""


def convert(
    conversion: Conversion, out: Path, workers: int = 1, tell: Callable[[Progress], None] = quiet
) -> tuple[dict[str, Any], bool]:
    """Write the folder, or go on with it; the report, and whether the folder was complete before."""
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        _agree(conversion, out)
        if (out / INDEX).is_file():
            _forget(out)
            return _read_json(out / REPORT), True
        for left in out.glob(".*.partial"):
            left.unlink()
        try:
            stems = {split: _write_split(conversion, split, out, workers, tell) for split in conversion.splits}
            return _finish(conversion, out, stems), False
        except OSError as error:  # a disk that is full, a file that was taken away
            raise InputError(f"{out}: {error}; the same command goes on, once that is put right") from error


def _write_split(
    conversion: Conversion, split: str, out: Path, workers: int, tell: Callable[[Progress], None]
) -> list[str]:
    """Write what is not there yet; the names of the split's shards in order."""
    items = conversion.splits[split]()
    total = length_hint(items)
    stems: list[str] = []
    read = shards = 0

    def count(images: int) -> None:
        nonlocal read, shards
        read += images
        shards += 1
        tell(Progress(split, read, total, shards))

    def missing() -> Iterator[Shard]:
        for shard in cut(split, items, out, conversion.settings):
            stems.append(shard.stem)
            if _note(out, shard.stem) is None:
                yield shard
            else:
                count(sum(isinstance(item, Record) for item in shard.items))

    for images in spread(write_shard, missing(), workers):
        count(images)
    return stems


def cut(split: str, items: Iterable[Item], out: Path, settings: Settings) -> Iterator[Shard]:
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
    partial = out / f".{shard.stem}.partial"
    records = [item for item in shard.items if isinstance(item, Record)]
    dropped = [[item.id, item.reason] for item in shard.items if isinstance(item, Drop) and item.row]
    trimmed = [[item.id, item.reason] for item in shard.items if isinstance(item, Drop) and not item.row]
    settings = shard.settings
    samples = rows = 0
    reasons: Counter[str] = Counter()
    with partial.open("wb") as file:
        hashed = _Hashed(file)
        with webdataset.TarWriter(hashed, encoder=False, user="magma", group="magma", mtime=0) as tar:
            found = read_all((record.picture for record in records), settings.timeout, settings.threads)
            for position, (record, data) in enumerate(zip(records, found, strict=True), shard.first):
                try:
                    if isinstance(data, Unreadable):
                        raise data
                    ending = examine(data, settings.min_size)
                except Unreadable as reason:
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
    _write_json(out / f"{shard.stem}{DONE}", note)
    return len(records)


class _Hashed:
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


# Folders that are begun, and finished ones


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """One process at a time writes to a folder."""
    path = out / ".lock"
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{out} is being written by another process: wait for it, or end it first") from error
        except OSError as error:
            logging.getLogger(__name__).warning(
                "%s cannot be locked: %s; do not start a second conversion into %s", path, error.strerror, out
            )
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _agree(conversion: Conversion, out: Path) -> None:
    """Refuse a folder that was begun otherwise, or that holds something else."""
    given = {
        "format": FORMAT,
        "name": conversion.name,
        **{key: getattr(conversion.settings, key) for key in ("samples_per_shard", "min_size")},
        **conversion.options,
    }
    given = json.loads(json.dumps(given))
    path = out / OPTIONS
    if not path.is_file():
        if others := sorted(found.name for found in out.iterdir() if not found.name.startswith(".")):
            raise InputError(f"--out: {out} holds {others[0]!r} and no {OPTIONS}; allowed: a new or empty folder")
        _write_json(path, given)
        return
    begun = _read_json(path)
    if different := [key for key in {**begun, **given} if begun.get(key) != given.get(key)]:
        lines = [f"\n  - {key}: {_short(begun.get(key))} there, {_short(given.get(key))} given" for key in different]
        raise InputError(
            f"--out: {out} was begun with other options; allowed: the same ones, or another folder{''.join(lines)}"
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _finish(conversion: Conversion, out: Path, stems: Mapping[str, list[str]]) -> dict[str, Any]:
    """Dropped rows, report, and at last the index; then the notes go."""
    index: dict[str, Any] = {"format": FORMAT, "name": conversion.name, "kind": conversion.kind, "splits": {}}
    report: dict[str, Any] = {"format": FORMAT, "name": conversion.name, "splits": {}}
    partial = out / f".{DROPPED}.partial"
    with partial.open("w", encoding="utf-8") as lines:
        for split, names in stems.items():
            shards, dropped, trimmed = [], Counter[str](), Counter[str]()
            for name in names:
                note = _note(out, name)
                assert note is not None, name
                if note["shard"]["samples"]:
                    shards.append(note["shard"])
                for counted, entries in ((dropped, note["dropped"]), (trimmed, note["trimmed"])):
                    counted.update(reason for _, reason in entries)
                    told = [{"split": split, "id": row, "reason": reason} for row, reason in entries]
                    lines.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in told)
            samples, rows = (sum(shard[key] for shard in shards) for key in ("samples", "rows"))
            index["splits"][split] = {"samples": samples, "rows": rows, "shards": shards}
            report["splits"][split] = {
                "read": rows + dropped.total(),
                "written": rows,
                "dropped": dict(sorted(dropped.items(), key=lambda one: (-one[1], one[0]))),
                "trimmed": dict(sorted(trimmed.items())),
            }
    if not any(split["samples"] for split in index["splits"].values()):
        partial.unlink()
        _forget(out)
        left_out = {name: split["dropped"] for name, split in report["splits"].items()}
        raise InputError(f"{conversion.name}: no sample is left to be written; left out: {_short(left_out)}")
    partial.replace(out / DROPPED)
    _write_json(out / REPORT, report)
    _write_json(out / INDEX, index)
    _forget(out)
    return report


def _note(out: Path, stem: str) -> dict[str, Any] | None:
    """What is known of a complete shard; None where it has to be written."""
    path = out / f"{stem}{DONE}"
    if not path.is_file():
        return None
    note = _read_json(path)
    tar = out / note["shard"]["file"]
    complete = not note["shard"]["samples"] or (tar.is_file() and tar.stat().st_size == note["bytes"])
    return note if complete else None


def _forget(out: Path) -> None:
    for note in out.glob(f"*{DONE}"):
        note.unlink()


def _write_json(path: Path, value: Any) -> None:
    """All of it, or nothing."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


# Processes


def spread(work: Callable[[Given], Made], given: Iterator[Given], workers: int) -> Iterator[Made]:
    """`work` over everything given, by processes, in the order in which it is done; few jobs are held at a time."""
    if workers == 1:
        yield from map(work, given)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["webdataset"])  # it loads torch: once, not in every process
    with ProcessPoolExecutor(workers, context, _die_with_parent) as pool:
        try:
            running: set[Future[Made]] = {pool.submit(work, one) for one in islice(given, 2 * workers)}
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                    running |= {pool.submit(work, one) for one in islice(given, 1)}
        except BrokenProcessPool as error:
            raise InputError(
                "a worker was killed, perhaps for want of memory; the same command goes on, with fewer --workers if so"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _die_with_parent() -> None:
    """A worker outlives no conversion that is killed, and ends without a word at Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
