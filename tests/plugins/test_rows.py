"""Rows in every layout: the same examples from the same data, from any point, and what is broken is named."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from magma_data.pairs import Captions, _Source
from magma_data.passes import Row, Rows
from magma_data.rows import open_rows
from PIL import Image

from magma import Media, State, Text

Members = Mapping[str, bytes]


def png(i: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (i % 256, i // 256 % 256, 7)).save(file, "PNG")
    return file.getvalue()


def tar(file: Path, samples: Sequence[tuple[str, Members]]) -> Path:
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


def jsonl(folder: Path, count: int, _: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        (folder / f"{i}.png").write_bytes(png(i))
        rows.append(json.dumps({"image": f"{i}.png", "caption": f"caption {i}"}))
    (folder / "train.jsonl").write_text("\n".join(rows))
    return folder


def indexed_tars(folder: Path, count: int, size: int) -> Path:
    """With our own list, which alone says what is a shard."""
    tars(folder, count, size)
    shards = [{"file": file.name, "samples": size} for file in sorted(folder.glob("*.tar"))]
    tars(folder, count, size, "left-over")
    index = {"format": 1, "name": "n", "kind": "captions", "splits": {"train": {"samples": count, "shards": shards}}}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def img2dataset(folder: Path, count: int, size: int) -> Path:
    """KEY.jpg, KEY.txt, KEY.json, in shards that are numbered alone."""
    for number, start in enumerate(range(0, count, size)):
        samples = [
            (f"{i:09}", {"png": png(i), "txt": f"caption {i}\n".encode(), "json": b'{"url": "u", "status": "success"}'})
            for i in range(start, min(count, start + size))
        ]
        tar(folder / f"{number:05}.tar", samples)
    return folder


def authors(folder: Path, count: int, _: int) -> Path:
    for name in ("images", "image_data"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        (folder / f"images/{i:05}.png").write_bytes(png(i))
        row = {"image_path": f"images/{i:05}.png", "captions": [f"caption {i}"]}
        (folder / f"image_data/{i:05}.json").write_text(json.dumps(row))
    return folder


def saved(folder: Path, count: int, size: int) -> Path:
    import datasets

    made = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": png(i), "path": None} for i in range(count)],
            "caption": [f"caption {i}" for i in range(count)],
        }
    ).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": made}).save_to_disk(folder, num_shards={"train": -(-count // size)})
    return folder


def parquet(folder: Path, count: int, size: int) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, count, size)):
        ids = range(start, min(count, start + size))
        image = [{"bytes": png(i), "path": None} for i in ids]
        table = pa.table({"image": image, "caption": [f"caption {i}" for i in ids]})
        pq.write_table(table, folder / f"train-{number:05}-of-00099.parquet", row_group_size=max(1, size // 2))
    return folder


WRITERS: list[Callable[[Path, int, int], Path]] = [jsonl, authors, saved, tars, indexed_tars, img2dataset, parquet]
RANDOM_ACCESS = [jsonl, authors, saved]
IDS = [writer.__name__ for writer in WRITERS]


def source(part: type[_Source], path: Path | str, seed: int = 0, **fields: Any) -> _Source:
    return part(part.Config(path=str(path), **fields), seed)  # type: ignore[call-arg]


def content(medium: Path | bytes) -> bytes:
    return medium if isinstance(medium, bytes) else medium.read_bytes()


def told(rows: Iterator[tuple[Row, State]]) -> list[tuple[str, bytes, str]]:
    return [(row.where, content(row.medium), row.one_of("caption", "captions")) for row, _ in rows]


@pytest.mark.parametrize("write", WRITERS, ids=IDS)
def test_every_layout_gives_the_same_examples(write: Callable[[Path, int, int], Path], tmp_path: Path) -> None:
    folder = write(tmp_path / "set", 23, 5)
    rows = source(Captions, folder, shuffle=False)
    found = []
    for example, _ in rows.iterate():
        medium, text = example.segments
        assert isinstance(medium, Media)
        assert isinstance(text, Text)
        found.append((medium.name, content(medium.value), text))
    expected = [("image", png(i), Text(f"caption {i}", target=True)) for i in range(23)]
    assert found == expected
    assert [content(row.medium) for row in rows.rows.in_order()] == [png(i) for i in range(23)]
    assert len(list(source(Captions, folder, limit=7).iterate())) == 7
    if write not in (authors, img2dataset):
        assert len(list(source(Captions, folder, split="train").iterate())) == 23
        (problem,) = Captions.problems(Captions.Config(path=str(folder), split="test"))
        assert problem == f"split: given 'test', which {folder} does not have; allowed: train"


def passes(rows: Rows, count: int, state: State | None = None, **how: Any) -> list[tuple[str, str | None, State]]:
    """The next rows over as many passes as it takes, with what draws among their texts."""
    how = {"seed": 0, "shuffle": True, "limit": None, **how}
    found: list[tuple[str, str | None, State]] = []
    while len(found) < count:
        for row, after in itertools.islice(rows.iterate(state, **how), count - len(found)):
            found.append((row.where, row.seed, after))
        state = json.loads(json.dumps(found[-1][2]))
    return found


@pytest.mark.parametrize("write", WRITERS, ids=IDS)
@pytest.mark.parametrize("how", [{}, {"shuffle": False}, {"limit": 16}])
def test_it_goes_on_from_every_row(write: Callable[[Path, int, int], Path], how: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "set", 23, 5)

    def rows() -> Rows:
        return open_rows(str(folder), layouts=("datasets", "jsonl", "tar", "parquet", "authors"), buffer=4)

    size = how.get("limit", 23)
    whole = passes(rows(), 2 * size + 5, **how)
    again = rows()
    for position in range(2 * size + 2):
        state = json.loads(json.dumps(whole[position][2]))
        assert passes(again, len(whole) - 1 - position, state, **how) == whole[position + 1 :]
    first, second = ([where for where, _, _ in whole[at : at + size]] for at in (0, size))
    assert sorted(first) == sorted(set(second))
    shuffled = how.get("shuffle", True)
    assert (first == second) is not shuffled
    other = [where for where, _, _ in passes(rows(), size, **{**how, "seed": 1})]
    assert sorted(other) == sorted(first)
    assert (first == other) is not shuffled
