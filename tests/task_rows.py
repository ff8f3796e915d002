"""Small splits of question answering data, and the questions of tasks on them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import webdataset
from magma_data.tasks.rows import RowsTask
from PIL import Image

from magma import Media, Question, Text

Rows = Sequence[dict[str, Any]]


def png(i: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (i % 256, i // 256, 7)).save(file, "PNG")
    return file.getvalue()


def jsonl(folder: Path, splits: dict[str, Rows]) -> Path:
    folder.mkdir(exist_ok=True)
    for split, rows in splits.items():
        lines = []
        for row in rows:
            (folder / f"{row['id']}.png").write_bytes(png(int(row["id"])))
            lines.append(json.dumps({"image": f"{row['id']}.png", **row}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def shards(folder: Path, splits: dict[str, Rows]) -> Path:
    """As `magma data convert` writes them."""
    folder.mkdir()
    index: dict[str, Any] = {"format": 1, "name": "a set", "kind": "vqa", "splits": {}}
    for split, rows in splits.items():
        listed = []
        for number, start in enumerate(range(0, len(rows), 2)):
            listed.append({"file": f"{split}-{number:06}.tar"})
            with webdataset.TarWriter(str(folder / listed[-1]["file"])) as tar:
                for row in rows[start : start + 2]:
                    sample = {"png": png(int(row["id"])), "json": json.dumps(row).encode()}
                    tar.write({"__key__": f"{split}-{int(row['id']):09}", **sample})
        index["splits"][split] = {"shards": listed}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def asked(i: int, count: int = 2) -> dict[str, Any]:
    """An image with its questions."""
    people = [f"a {i}"] * 3 + [f"the {i}"] * 4 + [""] * 3
    questions = [
        {
            "id": f"{i}00{n}",
            "question": f"What is {n} of {i}?",
            "answers": people,
            "answer_type": ("number", "other")[n],
        }
        for n in range(count)
    ]
    return {"id": str(i), "questions": questions}


SPLITS: dict[str, Rows] = {"train": [asked(i) for i in range(10, 15)], "val": [asked(i) for i in range(3)]}

LAYOUTS = [jsonl, shards]


def task(part: type[RowsTask], path: Path, **fields: Any) -> RowsTask:
    return part(part.Config(path=str(path), **fields), 0)  # type: ignore[call-arg]


def questions(part: type[RowsTask], path: Path, shots: int = 0, seed: int = 0, **fields: Any) -> list[Question]:
    return list(task(part, path, **fields).questions("test", shots, seed))


def told(segments: Sequence[Any]) -> list[str | bytes]:
    """Texts as they are; of a medium its bytes."""
    found: list[str | bytes] = []
    for segment in segments:
        if isinstance(segment, Text):
            assert not segment.target
            found.append(segment.text)
        else:
            assert isinstance(segment, Media)
            assert segment.name == "image"
            found.append(segment.value if isinstance(segment.value, bytes) else segment.value.read_bytes())
    return found
