"""Converts a data set to a folder of shards. A killed conversion resumes after the last complete shard.

`index.json` is written last, so a folder with this file is complete.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import length_hint
from pathlib import Path
from typing import Any

from magma import InputError, atomic_write, folder_lock

from .json_files import read_json, write_json
from .parallel import parallel_map
from .shards import NOTE_SUFFIX, Item, Record, SampleKind, Shard, ShardSettings, make_shards, write_shard

FORMAT = 1
INDEX, REPORT, DROPPED, OPTIONS, README = "index.json", "report.json", "dropped.jsonl", "options.json", "README.md"


@dataclass(frozen=True)
class Conversion:
    """A data set to convert, with all settings."""

    name: str
    kind: SampleKind
    splits: Mapping[str, Callable[[], Iterable[Item]]]
    settings: ShardSettings = field(default_factory=ShardSettings)
    options: Mapping[str, Any] = field(default_factory=dict)
    """All options that affect the result. A conversion can only be resumed with the same options."""
    readme: str = ""
    """The text of `README.md`; "": no file."""


@dataclass(frozen=True)
class Progress:
    """Progress of a split."""

    split: str
    read: int
    """Images so far, including dropped ones."""
    total: int
    """Number of images; 0 if unknown."""
    shards: int


def no_progress(*_: object) -> None:
    """The default callback, which ignores progress."""


def convert(
    conversion: Conversion, out: Path, workers: int = 1, on_progress: Callable[[Progress], None] = no_progress
) -> tuple[dict[str, Any], bool]:
    """Write the folder, or resume it. Returns the report, and whether the folder was already complete.

    Raises `InputError` for other options than before, and if the folder is locked by another process.
    """
    with folder_lock(out):
        _check_options(conversion, out)
        if (out / INDEX).is_file():
            _delete_notes(out)
            return read_json(out / REPORT), True
        for partial in out.glob(".*.partial"):
            partial.unlink()
        try:
            shard_names = {
                split: _write_split(conversion, split, out, workers, on_progress) for split in conversion.splits
            }
            return _finish(conversion, out, shard_names), False
        except OSError as error:  # such as a full disk or a deleted file
            raise InputError(f"{out}: {error}; correct this, then resume with the same command") from error


def _write_split(
    conversion: Conversion, split: str, out: Path, workers: int, on_progress: Callable[[Progress], None]
) -> list[str]:
    """Write the missing shards of a split. Returns the names of all its shards, in order."""
    items = conversion.splits[split]()
    total = length_hint(items)
    shard_names: list[str] = []
    read = shards = 0

    def count(images: int) -> None:
        nonlocal read, shards
        read += images
        shards += 1
        on_progress(Progress(split, read, total, shards))

    def missing_shards() -> Iterator[Shard]:
        for shard in make_shards(split, items, out, conversion.settings):
            shard_names.append(shard.stem)
            if _read_note(out, shard.stem) is None:
                yield shard
            else:
                count(sum(isinstance(item, Record) for item in shard.items))

    for images in parallel_map(write_shard, missing_shards(), workers):
        count(images)
    return shard_names


def _check_options(conversion: Conversion, out: Path) -> None:
    """Raise `InputError` if the folder has other options or other files."""
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
            raise InputError(f"--out: {out} contains {others[0]!r} but no {OPTIONS}; allowed: a new or empty folder")
        write_json(path, given)
        return
    previous = read_json(path)
    if different := [key for key in {**previous, **given} if previous.get(key) != given.get(key)]:
        lines = [
            f"\n  - {key}: {_shorten(previous.get(key))} before, {_shorten(given.get(key))} now" for key in different
        ]
        raise InputError(
            f"--out: {out} was started with other options; allowed: the same options, or another folder{''.join(lines)}"
        )


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _finish(conversion: Conversion, out: Path, shard_names: Mapping[str, list[str]]) -> dict[str, Any]:
    """Write dropped rows, the readme, the report and, last, the index; then delete the notes of the shards."""
    index: dict[str, Any] = {"format": FORMAT, "name": conversion.name, "kind": conversion.kind, "splits": {}}
    report: dict[str, Any] = {"format": FORMAT, "name": conversion.name, "splits": {}}
    for split, names in shard_names.items():
        shards, dropped, trimmed = [], Counter[str](), Counter[str]()
        for note in _read_notes(out, names):
            if note["shard"]["samples"]:
                shards.append(note["shard"])
            for counts, entries in ((dropped, note["dropped"]), (trimmed, note["trimmed"])):
                counts.update(reason for _, reason in entries)
        samples, rows = (sum(shard[key] for shard in shards) for key in ("samples", "rows"))
        index["splits"][split] = {"samples": samples, "rows": rows, "shards": shards}
        report["splits"][split] = {
            "read": rows + dropped.total(),
            "written": rows,
            "dropped": dict(sorted(dropped.items(), key=lambda one: (-one[1], one[0]))),
            "trimmed": dict(sorted(trimmed.items())),
        }
    if not any(split["samples"] for split in index["splits"].values()):
        _delete_notes(out)
        dropped_rows = {name: split["dropped"] for name, split in report["splits"].items()}
        raise InputError(f"{conversion.name}: all samples were dropped: {_shorten(dropped_rows)}")
    atomic_write(out / DROPPED, lambda partial: _write_dropped(partial, out, shard_names))
    if conversion.readme:
        atomic_write(out / README, conversion.readme)
    write_json(out / REPORT, report)
    write_json(out / INDEX, index)
    _delete_notes(out)
    return report


def _write_dropped(path: Path, out: Path, shard_names: Mapping[str, list[str]]) -> None:
    """Write one line for each dropped row: split, id and reason."""
    with path.open("w", encoding="utf-8") as lines:
        for split, names in shard_names.items():
            for note in _read_notes(out, names):
                for row, reason in (*note["dropped"], *note["trimmed"]):
                    line = {"split": split, "id": row, "reason": reason}
                    lines.write(json.dumps(line, ensure_ascii=False) + "\n")


def _read_notes(out: Path, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The notes of complete shards."""
    for name in names:
        note = _read_note(out, name)
        assert note is not None, name
        yield note


def _read_note(out: Path, stem: str) -> dict[str, Any] | None:
    """The note of a complete shard; None if the shard has to be written."""
    path = out / f"{stem}{NOTE_SUFFIX}"
    if not path.is_file():
        return None
    note = read_json(path)
    tar = out / note["shard"]["file"]
    complete = not note["shard"]["samples"] or (tar.is_file() and tar.stat().st_size == note["bytes"])
    return note if complete else None


def _delete_notes(out: Path) -> None:
    for note in out.glob(f"*{NOTE_SUFFIX}"):
        note.unlink()
