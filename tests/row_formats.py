"""The same rows in every file format."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from magma_data.formats.order import Rows
from magma_data.sources.rows import RowSource
from PIL import Image

from magma import SourceState

Members = Mapping[str, bytes]


def png(i: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (i % 256, i // 256 % 256, 7)).save(file, "PNG")
    return file.getvalue()


def tar(file: Path, samples: Iterable[tuple[str, Members]]) -> Path:
    """A shard: each sample is a key, and the contents of KEY.ending."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as opened:
        for key, members in samples:
            for ending, content in members.items():
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(content)
                opened.addfile(info, io.BytesIO(content))
    return file


def sample(i: int, **fields: Any) -> tuple[str, Members]:
    return f"{i:05}", {"png": png(i), "json": json.dumps(fields or {"caption": f"caption {i}"}).encode()}


def tars(folder: Path, count: int, size: int, split: str = "train") -> Path:
    for number, start in enumerate(range(0, count, size)):
        tar(folder / f"{split}-{number:06}.tar", [sample(i) for i in range(start, min(count, start + size))])
    return folder


def indexed_tars(folder: Path, count: int, size: int) -> Path:
    """With our own list, which alone says what is a shard."""
    tars(folder, count, size)
    shards = [{"file": file.name, "samples": size} for file in sorted(folder.glob("*.tar"))]
    tars(folder, count, size, "left-over")
    index = {"format": 1, "name": "n", "kind": "captions", "splits": {"train": {"samples": count, "shards": shards}}}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def parquet(folder: Path, count: int, size: int) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, count, size)):
        ids = range(start, min(count, start + size))
        image = [{"bytes": png(i), "path": None} for i in ids]
        table = pa.table({"image": image, "caption": [f"caption {i}" for i in ids]})
        pq.write_table(
            table, folder / f"train-{number:05}-of-{-(-count // size):05}.parquet", row_group_size=max(1, size // 2)
        )
    return folder


def source(part: type[RowSource], path: Path | str, seed: int = 0, **fields: Any) -> RowSource:
    return part(part.Config(path=str(path), **fields), seed)  # type: ignore[call-arg]


def content(medium: Path | bytes) -> bytes:
    return medium if isinstance(medium, bytes) else medium.read_bytes()


def passes(
    rows: Rows, count: int, state: SourceState | None = None, **how: Any
) -> list[tuple[str, str | None, SourceState]]:
    """The next rows over as many passes as it takes, with what draws among their texts."""
    how = {"seed": 0, "shuffle": True, "limit": None, **how}
    found: list[tuple[str, str | None, SourceState]] = []
    while len(found) < count:
        for row, after in itertools.islice(rows.iterate(state, **how), count - len(found)):
            found.append((row.where, row.seed, after))
        state = json.loads(json.dumps(found[-1][2]))
    return found
