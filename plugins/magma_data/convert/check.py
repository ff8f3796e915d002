"""Folders of shards, looked at again: is everything as the index says, and what does it look like?"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from .conversion import INDEX, no_progress
from .images import ImageError, check_image
from .parallel import parallel_map
from .shard_format import IMAGE_ENDINGS, SAMPLE_TYPES, ShardEntry, format_errors, read_index, read_samples
from .shards import LISTS


@dataclass(frozen=True)
class _Job:
    """A shard to be checked by some process."""

    folder: str
    split: str
    kind: str
    entry: ShardEntry


@dataclass(frozen=True)
class _ShardResult:
    """What a shard was found to be; first and last key are None where it has none."""

    file: str
    problems: list[str]
    first: str | None = None
    last: str | None = None


def check(folder: Path, workers: int = 1, on_progress: Callable[[int, int], None] = no_progress) -> list[str]:
    """Everything that is wrong with a folder, each with shard and key."""
    index = read_index(folder)
    entries = [(split, entry) for split, split_entry in index.splits.items() for entry in split_entry.shards]
    jobs = (_Job(str(folder), split, index.kind, entry) for split, entry in entries)
    results: dict[str, _ShardResult] = {}
    for result in parallel_map(_check_shard, jobs, workers):
        results[result.file] = result
        on_progress(len(results), len(entries))
    problems: list[str] = []
    for split, split_entry in index.splits.items():
        for key in ("samples", "rows"):
            given, summed = getattr(split_entry, key), sum(getattr(entry, key) for entry in split_entry.shards)
            if given != summed:
                problems.append(f"{INDEX}: {split} has {given} {key}, its shards {summed}")
        last = ""
        for entry in split_entry.shards:
            result = results[entry.file]
            problems += [f"{entry.file}: {problem}" for problem in result.problems]
            if result.first is not None and result.first <= last:
                problems.append(f"{entry.file} {result.first}: the key does not follow {last}: it is there twice")
            last = result.last or last
    stray = sorted({path.name for path in folder.glob("*.tar")} - {entry.file for _, entry in entries})
    return problems + [f"{name}: not in {INDEX}" for name in stray]


def _check_shard(job: _Job) -> _ShardResult:
    path, entry = Path(job.folder) / job.entry.file, job.entry
    if not path.is_file():
        return _ShardResult(entry.file, ["there is no such file"])
    problems = []
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != entry.sha256:
        problems.append(f"sha256 is {digest}, not {entry.sha256} as the index says")
    keys: list[str] = []
    rows = 0
    try:
        for key, files in read_samples(path):
            if keys and key <= keys[-1]:
                problems.append(f"{key}: does not follow {keys[-1]}")
            if not key.startswith(f"{job.split}-"):
                problems.append(f"{key}: a key of {job.split} begins with {job.split}-")
            keys.append(key)
            found = list(_find_problems(files, job.kind))
            problems += [f"{key}: {fault}" for fault in found]
            if not found:
                fields = json.loads(files["json"])
                rows += len(fields[LISTS[job.kind]]) if job.kind in LISTS else 1
    except tarfile.TarError as error:
        problems.append(f"no tar that can be read to its end: {error}")
    # A broken sample has its own line, and no rows that could be counted.
    counts = {"samples": len(keys), **({} if problems else {"rows": rows})}
    problems += [f"{n} {key}, not {getattr(entry, key)}" for key, n in counts.items() if n != getattr(entry, key)]
    return _ShardResult(entry.file, problems, *((keys[0], keys[-1]) if keys else ()))


def _find_problems(files: dict[str, bytes], kind: str) -> Iterator[str]:
    images = [ending for ending in files if ending in IMAGE_ENDINGS]
    if len(images) != 1 or set(files) - {*IMAGE_ENDINGS, "json"}:
        yield f"files {', '.join(sorted(files))}; allowed: one of {', '.join(IMAGE_ENDINGS)}, and json"
    for ending in images:
        try:
            actual = check_image(files[ending])
            if actual != ending:
                yield f"{ending}: the image is a {actual}"
        except ImageError as reason:
            yield f"{ending}: {reason}"
    if "json" not in files:
        yield "no json"
        return
    try:
        SAMPLE_TYPES[kind].model_validate_json(files["json"])
    except ValidationError as error:
        yield f"json: {format_errors(error)}"
