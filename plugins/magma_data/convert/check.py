"""Folders of shards, looked at again: is everything as the index says, and what does it look like?"""

from __future__ import annotations

import hashlib
import json
import random
import tarfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from magma import InputError

from ..formats import split_member
from .images import Unreadable, examine
from .shards import INDEX, LISTS, Kind, quiet, spread

ENDINGS = ("jpg", "png", "webp", "gif")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Open(BaseModel):
    """Sets add fields of their own."""

    model_config = ConfigDict(extra="allow", strict=True)


class ShardEntry(_Strict):
    """A shard in the index."""

    file: str
    samples: int
    rows: int
    sha256: str


class SplitEntry(_Strict):
    """A split in the index."""

    samples: int
    rows: int
    shards: list[ShardEntry]


class Index(_Strict):
    """`index.json`."""

    format: Literal[1]
    name: str
    kind: Kind
    splits: dict[str, SplitEntry]


class Captioned(_Open):
    """The JSON of a sample of captions; there may be none in a split whose captions are kept from the public."""

    id: str
    captions: list[str]


class AskedQuestion(_Open):
    """A question of a sample of `vqa`."""

    id: str
    question: str
    answers: list[str]


class Asked(_Open):
    """The JSON of a sample of `vqa`."""

    id: str
    questions: list[AskedQuestion]


class Statement(_Open):
    """A statement of a labelled sample."""

    id: str
    text: str
    label: str


class Labelled(_Open):
    """The JSON of a labelled sample."""

    id: str
    statements: list[Statement]


FIELDS: dict[str, type[_Open]] = {"captions": Captioned, "vqa": Asked, "labelled": Labelled}


def read_index(folder: Path) -> Index:
    """What a folder says that it holds."""
    path = folder / INDEX
    if not path.is_file():
        raise InputError(
            f"{folder} has no {INDEX}; allowed: a folder that `magma data convert` has finished, and one that it has "
            "not goes on with the same command"
        )
    try:
        return Index.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(f"{path}: {_told(error)}") from error


def _told(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())


# Check


@dataclass(frozen=True)
class _Job:
    """A shard to be checked by some process."""

    folder: str
    split: str
    kind: str
    entry: ShardEntry


@dataclass(frozen=True)
class _Verdict:
    """What a shard was found to be; first and last key are None where it has none."""

    file: str
    problems: list[str]
    first: str | None = None
    last: str | None = None


def check(folder: Path, workers: int = 1, tell: Callable[[int, int], None] = quiet) -> list[str]:
    """Everything that is wrong with a folder, each with shard and key."""
    index = read_index(folder)
    entries = [(split, entry) for split, told in index.splits.items() for entry in told.shards]
    jobs = (_Job(str(folder), split, index.kind, entry) for split, entry in entries)
    verdicts: dict[str, _Verdict] = {}
    for verdict in spread(_check_shard, jobs, workers):
        verdicts[verdict.file] = verdict
        tell(len(verdicts), len(entries))
    problems: list[str] = []
    for split, told in index.splits.items():
        for key in ("samples", "rows"):
            said, summed = getattr(told, key), sum(getattr(entry, key) for entry in told.shards)
            if said != summed:
                problems.append(f"{INDEX}: {split} has {said} {key}, its shards {summed}")
        last = ""
        for entry in told.shards:
            verdict = verdicts[entry.file]
            problems += [f"{entry.file}: {problem}" for problem in verdict.problems]
            if verdict.first is not None and verdict.first <= last:
                problems.append(f"{entry.file} {verdict.first}: the key does not follow {last}: it is there twice")
            last = verdict.last or last
    stray = sorted({path.name for path in folder.glob("*.tar")} - {entry.file for _, entry in entries})
    return problems + [f"{name}: not in {INDEX}" for name in stray]


def _check_shard(job: _Job) -> _Verdict:
    path, entry = Path(job.folder) / job.entry.file, job.entry
    if not path.is_file():
        return _Verdict(entry.file, ["there is no such file"])
    problems = []
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != entry.sha256:
        problems.append(f"sha256 is {digest}, not {entry.sha256} as the index says")
    keys: list[str] = []
    rows = 0
    try:
        for key, files in samples(path):
            if keys and key <= keys[-1]:
                problems.append(f"{key}: does not follow {keys[-1]}")
            if not key.startswith(f"{job.split}-"):
                problems.append(f"{key}: a key of {job.split} begins with {job.split}-")
            keys.append(key)
            found = list(_faults(files, job.kind))
            problems += [f"{key}: {fault}" for fault in found]
            if not found:
                fields = json.loads(files["json"])
                rows += len(fields[LISTS[job.kind]]) if job.kind in LISTS else 1
    except tarfile.TarError as error:
        problems.append(f"no tar that can be read to its end: {error}")
    # A broken sample has its own line, and no rows that could be counted.
    counts = {"samples": len(keys), **({} if problems else {"rows": rows})}
    problems += [f"{n} {key}, not {getattr(entry, key)}" for key, n in counts.items() if n != getattr(entry, key)]
    return _Verdict(entry.file, problems, *((keys[0], keys[-1]) if keys else ()))


def _faults(files: dict[str, bytes], kind: str) -> Iterator[str]:
    images = [ending for ending in files if ending in ENDINGS]
    if len(images) != 1 or set(files) - {*ENDINGS, "json"}:
        yield f"files {', '.join(sorted(files))}; allowed: one of {', '.join(ENDINGS)}, and json"
    for ending in images:
        try:
            actual = examine(files[ending])
            if actual != ending:
                yield f"{ending}: the image is a {actual}"
        except Unreadable as reason:
            yield f"{ending}: {reason}"
    if "json" not in files:
        yield "no json"
        return
    try:
        FIELDS[kind].model_validate_json(files["json"])
    except ValidationError as error:
        yield f"json: {_told(error)}"


def samples(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and files of each sample of a shard."""
    with tarfile.open(path, "r:") as tar:

        def members() -> Iterator[tuple[str, str, bytes]]:
            for member in tar:
                opened = tar.extractfile(member)
                key, ending = split_member(member.name)
                yield key, ending, opened.read() if opened else b""

        for key, group in groupby(members(), lambda one: one[0]):
            yield key, {ending: data for _, ending, data in group}


# Show

_COLUMNS = 6
_WRAP = 36
"""Letters in a line below an image."""
_LINES = 7
"""Lines below an image; the rest is left out."""


def show(folder: Path, png: Path, count: int = 24, seed: int = 0, split: str | None = None) -> int:
    """Draw samples that `seed` picks, with what is said about them; how many there are on the sheet."""
    index = read_index(folder)
    if split is not None and split not in index.splits:
        raise InputError(f"--split: given {split!r}; allowed for {folder}: {', '.join(index.splits)}")
    entries = [e for name, told in index.splits.items() if split in (None, name) for e in told.shards]
    total = sum(entry.samples for entry in entries)
    picked = sorted(random.Random(seed).sample(range(total), min(count, total)))
    _draw(folder.name, list(_picked(folder, entries, picked)), png)
    return len(picked)


def _picked(folder: Path, entries: list[ShardEntry], picked: list[int]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of these numbers, counted through all shards; only the shards that hold one are read."""
    start = 0
    for entry in entries:
        here = {number - start for number in picked if start <= number < start + entry.samples}
        if here:
            yield from (one for i, one in enumerate(samples(folder / entry.file)) if i in here)
        start += entry.samples


def _draw(title: str, chosen: list[tuple[str, dict[str, bytes]]], png: Path) -> None:
    import io
    import warnings

    import numpy as np
    from matplotlib.figure import Figure
    from PIL import Image, ImageOps

    columns = min(_COLUMNS, max(1, len(chosen)))
    rows = max(1, -(-len(chosen) // columns))
    width, picture, text, head = 2.5, 2.1, 1.25, 0.45  # inches
    figure = Figure(figsize=(columns * width, rows * (picture + text) + head), dpi=120, facecolor="white")
    high = rows * (picture + text) + head
    figure.text(0.12 / (columns * width), 1 - 0.3 / high, title, fontsize=11, weight="bold", parse_math=False)
    for place, (key, files) in enumerate(chosen):
        row, column = divmod(place, columns)
        top = 1 - (head + row * (picture + text)) / high
        left = (column + 0.05) / columns
        axes = figure.add_axes((left, top - picture / high, 0.9 / columns, (picture - 0.08) / high))
        axes.axis("off")
        ending = next(e for e in ENDINGS if e in files)
        with Image.open(io.BytesIO(files[ending])) as opened:
            opened.load()
        image: Image.Image = opened
        with suppress(Exception):  # damaged EXIF, which raises many kinds
            image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # 16 bits
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        image = image.convert("RGBA")  # the sheet is white
        image.thumbnail((300, 300))
        axes.imshow(image)
        axes.set_anchor("S")
        below = top - (picture + 0.05) / high
        figure.text(left, below, key, fontsize=5.5, color="0.45", va="top", family="monospace", parse_math=False)
        told = "\n".join(_lines(json.loads(files["json"])))
        figure.text(left, below - 0.13 / high, told, fontsize=7, va="top", linespacing=1.15, parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # of scripts that no bundled font has
        png.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(png, format="png")


def _lines(fields: dict[str, Any]) -> list[str]:
    """What is said about an image, wrapped, as far as there is room."""
    if "questions" in fields:
        said = [f"Q: {q['question']} A: {_answers(q['answers'])}" for q in fields["questions"]]
    elif "statements" in fields:
        said = [f"{one['text']} [{one['label']}]" for one in fields["statements"]]
    else:
        said = fields["captions"] or ["(no captions)"]
    lines = [line for text in said for line in textwrap.wrap(text, _WRAP, subsequent_indent="  ")]
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], f"{lines[_LINES - 1][: _WRAP - 2]} \N{HORIZONTAL ELLIPSIS}"]
    return lines


def _answers(answers: list[str]) -> str:
    """The most frequent one, with how many gave it where there are several."""
    if not answers:
        return "?"
    best = max(dict.fromkeys(answers), key=answers.count)
    share = f"({answers.count(best)} of {len(answers)})".replace(" ", "\N{NO-BREAK SPACE}")
    return best if len(answers) == 1 else f"{best} {share}"
