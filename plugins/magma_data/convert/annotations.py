"""Converts annotations of published data sets to records: captions, questions and statements about images."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magma import InputError

from .images import ImageSource, LocalImage
from .shards import DroppedRow, Item, Record


@dataclass(frozen=True)
class SizedItems:
    """Lazily read rows with their number, for a progress bar."""

    rows: Iterable[Item]
    count: int

    def __length_hint__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Item]:
        return iter(self.rows)


def clean_text(text: Any) -> str:
    """The text, stripped and in Unicode's composed form (NFC); "" if it is not a valid string."""
    if not isinstance(text, str):
        return ""
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return ""
    return unicodedata.normalize("NFC", text).strip()


def caption_items(identity: str, picture: ImageSource, texts: Iterable[Any], **extra: Any) -> Iterator[Item]:
    """An image with its captions; fields of `extra` that are None are omitted."""
    given = list(texts)
    captions = [caption for text in given if (caption := clean_text(text))]
    if not captions:
        yield DroppedRow(identity, "empty caption" if given else "no caption")
        return
    for _ in range(len(given) - len(captions)):
        yield DroppedRow(identity, "empty caption, others kept", row=False)
    yield Record(identity, picture, {"captions": captions, **_without_none(extra)})


def question_entry(identity: str, text: Any, answers: Iterable[Any], **extra: Any) -> dict[str, Any]:
    """An entry of the list `questions`."""
    return {
        "id": identity,
        "question": clean_text(text),
        "answers": [clean_text(a) for a in answers],
        **_without_none(extra),
    }


def _without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


ImageEntry = tuple[str, ImageSource, dict[str, Any]]
"""The id of an image, its source, and a question or statement about it."""


def group_by_image(key: str, text: str, rows: Iterable[ImageEntry | DroppedRow]) -> list[Item]:
    """One record per image, with its list of questions or statements (`key`); empty ones (field `text`) are dropped."""
    items: list[Item] = []
    images: dict[str, Record] = {}
    for row in rows:
        if isinstance(row, DroppedRow):
            items.append(row)
            continue
        identity, picture, entry = row
        if not entry[text]:
            items.append(DroppedRow(entry["id"], f"empty {text}"))
            continue
        if identity not in images:
            items.append(images.setdefault(identity, Record(identity, picture, {key: []})))
        images[identity].fields[key].append(entry)
    return items


def image_in(folders: Iterable[Path], *names: str) -> LocalImage:
    """The first existing file with one of these names in these folders."""
    return LocalImage(tuple(os.path.join(folder, name) for folder in folders for name in names))  # noqa: PTH118 - millions


def load_json(path: Path) -> Any:
    """The content of a JSON file. Raises `InputError`."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}; perhaps the download was incomplete") from error


def load_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file. Raises `InputError`."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{path} line {number}: not JSON: {error}") from error
