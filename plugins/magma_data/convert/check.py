"""`magma data check`: verifies a folder of shards against its index."""

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
    """A shard to be checked; sent to a worker process."""

    folder: str
    split: str
    kind: str
    entry: ShardEntry


@dataclass(frozen=True)
class _ShardResult:
    """The problems of a shard, and its first and last key (None without samples)."""

    file: str
    problems: list[str]
    first: str | None = None
    last: str | None = None


def check(folder: Path, workers: int = 1, on_progress: Callable[[int, int], None] = no_progress) -> list[str]:
    """All problems of a folder, each with shard and key."""
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
                problems.append(f"{INDEX}: {split} has {given} {key}, but its shards have {summed}")
        last = ""
        for entry in split_entry.shards:
            result = results[entry.file]
            problems += [f"{entry.file}: {problem}" for problem in result.problems]
            if result.first is not None and result.first <= last:
                problems.append(f"{entry.file} {result.first}: the key is not after {last}: it exists twice")
            last = result.last or last
    unlisted = sorted({path.name for path in folder.glob("*.tar")} - {entry.file for _, entry in entries})
    return problems + [f"{name}: not listed in {INDEX}" for name in unlisted]


def _check_shard(job: _Job) -> _ShardResult:
    path, entry = Path(job.folder) / job.entry.file, job.entry
    if not path.is_file():
        return _ShardResult(entry.file, ["the file is missing"])
    problems = []
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != entry.sha256:
        problems.append(f"its sha256 is {digest}; in the index: {entry.sha256}")
    keys: list[str] = []
    rows = 0
    try:
        for key, files in read_samples(path):
            if keys and key <= keys[-1]:
                problems.append(f"{key}: not after {keys[-1]}")
            if not key.startswith(f"{job.split}-"):
                problems.append(f"{key}: keys of {job.split} have to begin with {job.split}-")
            keys.append(key)
            found = list(_find_problems(files, job.kind))
            problems += [f"{key}: {problem}" for problem in found]
            if not found:
                fields = json.loads(files["json"])
                rows += len(fields[LISTS[job.kind]]) if job.kind in LISTS else 1
    except tarfile.TarError as error:
        problems.append(f"the tar cannot be read to its end: {error}")
    # A broken sample is reported above; its rows cannot be counted.
    counts = {"samples": len(keys), **({} if problems else {"rows": rows})}
    problems += [
        f"{n} {key}; in the index: {getattr(entry, key)}" for key, n in counts.items() if n != getattr(entry, key)
    ]
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
        yield "json is missing"
        return
    try:
        SAMPLE_TYPES[kind].model_validate_json(files["json"])
    except ValidationError as error:
        yield f"json: {format_errors(error)}"
