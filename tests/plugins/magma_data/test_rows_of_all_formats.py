"""Rows in every layout: the same examples from the same data, from any point, and what is broken is named."""

from __future__ import annotations

import gc
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from magma_data.formats import open_rows
from magma_data.formats.order import Rows
from magma_data.formats.row import Row
from magma_data.sources.captions import Captions
from magma_data.sources.labelled import Labelled
from magma_data.sources.plain_text import PlainText
from magma_data.sources.question_answering import Vqa
from magma_data.sources.rows import RowSource
from program import magma
from program import start as start_magma
from row_formats import content, indexed_tars, parquet, passes, png, sample, source, tar, tars

from magma import Example, Media, SourceState, Text


def jsonl(folder: Path, count: int, _: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        (folder / f"{i}.png").write_bytes(png(i))
        rows.append(json.dumps({"image": f"{i}.png", "caption": f"caption {i}"}))
    (folder / "train.jsonl").write_text("\n".join(rows))
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


WRITERS: list[Callable[[Path, int, int], Path]] = [jsonl, authors, saved, tars, indexed_tars, img2dataset, parquet]

RANDOM_ACCESS = [jsonl, authors, saved]

IDS = [writer.__name__ for writer in WRITERS]


def told(rows: Iterator[tuple[Row, SourceState]]) -> list[tuple[str, bytes, str]]:
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
    assert [content(row.medium) for row in rows.rows.iter_in_stored_order()] == [png(i) for i in range(23)]
    assert len(list(source(Captions, folder, limit=7).iterate())) == 7
    if write not in (authors, img2dataset):
        assert len(list(source(Captions, folder, split="train").iterate())) == 23
        (problem,) = Captions.problems(Captions.Config(path=str(folder), split="test"))
        assert problem == f"split: given 'test', which {folder} does not have; allowed: train"


@pytest.mark.parametrize("write", WRITERS, ids=IDS)
@pytest.mark.parametrize("how", [{}, {"shuffle": False}, {"limit": 16}])
def test_it_goes_on_from_every_row(write: Callable[[Path, int, int], Path], how: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "set", 23, 5)

    def rows() -> Rows:
        return open_rows(str(folder), file_formats=("datasets", "jsonl", "tar", "parquet", "authors"), buffer=4)

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


# Shards that are read in sequence


def wheres(rows: Rows, count: int, **how: Any) -> list[str]:
    return [where for where, _, _ in passes(rows, count, **how)]


@pytest.mark.parametrize("write", [tars, parquet])
def test_shards_and_their_samples_come_in_an_order_of_their_own(
    write: Callable[[Path, int, int], Path], tmp_path: Path
) -> None:
    folder = str(write(tmp_path / "set", 60, 12))
    stored = wheres(open_rows(folder), 60, shuffle=False)
    found = wheres(open_rows(folder, buffer=8), 180)
    assert found == wheres(open_rows(folder, buffer=8), 180)
    epochs = [found[:60], found[60:120], found[120:]]
    assert all(sorted(epoch) == sorted(stored) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [stored, *epochs]}) == 4
    firsts = {epoch[0].split(".")[0] for epoch in epochs}
    assert len(firsts) > 1, "shards stay where they are"
    block = epochs[0][:8]
    assert block != sorted(block), "a block stays as it is"
    assert wheres(open_rows(folder, buffer=8), 60, seed=3) != epochs[0]


def test_the_same_few_rows_come_every_pass(tmp_path: Path) -> None:
    folder = str(tars(tmp_path / "set", 60, 12))
    found = wheres(open_rows(folder, buffer=8), 60, limit=20)
    stored = wheres(open_rows(folder), 60, shuffle=False)
    assert [set(found[at : at + 20]) for at in (0, 20, 40)] == [set(stored[:20])] * 3
    assert found[:20] != found[20:40]


QUESTIONS = {
    "source": "s",
    "questions": [
        {"id": 7, "question": "What?", "answers": ["a", "b", "b"]},
        {"id": 8, "question": "Where?", "answers": ["c"], "source": "own"},
    ],
    "statements": [{"id": 1, "text": "It is.", "label": "true"}],
    "captions": ["one caption"],
}


def nested_tar(folder: Path) -> Path:
    samples = [sample(0, **QUESTIONS), sample(1, question="Who?", answer="d"), sample(2, **QUESTIONS)]
    tar(folder / "val-000000.tar", samples)
    return folder


def nested_jsonl(folder: Path) -> Path:
    folder.mkdir()
    rows: list[dict[str, Any]] = [QUESTIONS, {"question": "Who?", "answer": "d"}, QUESTIONS]
    for i in range(3):
        (folder / f"{i}.png").write_bytes(png(i))
    (folder / "val.jsonl").write_text("\n".join(json.dumps({"image": f"{i}.png", **row}) for i, row in enumerate(rows)))
    return folder


def nested_rows() -> dict[str, list[Any]]:
    rows: list[dict[str, Any]] = [QUESTIONS, {"question": "Who?", "answer": "d"}, QUESTIONS]
    names = ("question", "answer", "questions", "statements", "captions", "source")
    return {"image": [png(i) for i in range(3)], **{name: [row.get(name) for row in rows] for name in names}}


def nested_parquet(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    pq.write_table(pa.table(nested_rows()), folder / "val.parquet")
    return folder


def nested_saved(folder: Path) -> Path:
    import datasets
    import pyarrow as pa

    datasets.Dataset(pa.table(nested_rows())).save_to_disk(folder)
    return folder


@pytest.mark.parametrize("write", [nested_tar, nested_jsonl, nested_parquet, nested_saved])
def test_every_question_about_an_image_is_a_row(write: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = write(tmp_path / "set")

    def found(part: type[RowSource]) -> list[tuple[bytes, list[str], str | None]]:
        examples = [example for example, _ in source(part, folder, shuffle=False).iterate()]
        assert len({example.name for example in examples}) == len(examples)
        return [
            (
                next((content(s.value) for s in example.segments if isinstance(s, Media)), b""),
                [s.text for s in example.segments if isinstance(s, Text)],
                example.label,
            )
            for example in examples
            if example.problem is None
        ]

    asked = [(0, "What", " b"), (0, "Where", " c"), (1, "Who", " d"), (2, "What", " b"), (2, "Where", " c")]
    assert found(Vqa) == [(png(i), [f"Q: {question}? A:", answer], None) for i, question, answer in asked]
    assert found(Labelled) == [(png(i), ["It is."], "true") for i in (0, 2)]
    assert found(Captions) == [(png(i), ["one caption"], None) for i in (0, 2)]
    rows = list(open_rows(str(folder), list_field="questions").iter_in_stored_order())
    assert [row.fields.get("id") for row in rows] == [7, 8, None, 7, 8]
    assert [row.fields.get("source") for row in rows] == ["s", "own", None, "s", "own"]
    assert len(passes(open_rows(str(folder), list_field="questions", buffer=2), 10)) == 10


def test_rows_about_one_file_are_evaluated_together(tmp_path: Path) -> None:
    rows = [{"image": f"{i % 3}.png", "question": f"{i}"} for i in range(9)]
    (tmp_path / "val.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [row.text("question") for row in open_rows(str(tmp_path)).iter_in_stored_order()] == list("036147258")


# Text


def test_text_of_every_layout(tmp_path: Path) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = ["A first text.", "Ein zweiter, länger.", "3"]
    for layout in ("lines", "files", "jsonl", "parquet", "saved"):
        (tmp_path / layout).mkdir()
    (tmp_path / "lines/train.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    for i, text in enumerate(texts):
        (tmp_path / f"files/{i}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "jsonl/train.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    pq.write_table(pa.table({"text": texts}), tmp_path / "parquet/train.parquet")
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(tmp_path / "saved")
    for path in ("lines", "lines/train.txt", "files", "files/0.txt", "jsonl", "parquet", "saved"):
        documents = "file" if path.startswith("files") else "line"
        rows = source(PlainText, tmp_path / path, shuffle=False, documents=documents)
        expected = texts[:1] if path == "files/0.txt" else texts
        assert [example.segments for example, _ in rows.iterate()] == [[Text(t, target=True)] for t in expected]
    (tmp_path / "lines/train.txt").write_bytes(b"good\n\xff\n")
    found = [example.problem for example, _ in source(PlainText, tmp_path / "lines", shuffle=False).iterate()]
    assert found[0] is None
    assert str(found[1]).startswith(f"{tmp_path / 'lines/train.txt'} line 2: not UTF-8")


# Trained on


@pytest.mark.slow
def test_shards_are_trained_on_and_what_is_broken_is_listed_once(tmp_path: Path) -> None:
    """By one process or two, uninterrupted or killed and resumed: the same examples, the same list."""
    samples = [sample(i, caption=f"A picture of a {'zero' if i % 2 else 'one'}.") for i in range(100)]
    for i in range(5, 100, 10):
        samples[i] = (f"{i:05}", {**samples[i][1], **({"json": b"{"} if i % 20 == 5 else {"png": png(i)[:40]})})
    tar(tmp_path / "set/train-000000.tar", samples)
    values = {
        "data.train": f'[{{ use = "captions", path = "{tmp_path / "set"}", buffer = 30 }}]',
        "data.evaluation": "[]",
        "tasks": "[]",
        "inputs.image.trainable": "false",
        "inputs.image.prefix.dropout": "0.0",
        "train.unreadable": "skip",
        "train.max_unreadable": "0.2",
        "train.workers": "1",
        "train.batch_size": "10",
        "train.samples": "160",
        "train.checkpoint_every": "4",
    }
    words = ["recipe", "run", "quickstart", *(w for key, value in values.items() for w in ("--set", f"{key}={value}"))]
    runs = {name: tmp_path / name for name in ("one", "two", "both")}
    done = [magma(*words, "--out", runs["one"]), start_magma(*words, "--out", runs["two"], "--nproc", 2)]
    assert [process.returncode for process in done] == [0, 0], [process.stderr for process in done]
    shutil.copytree(runs["two"], runs["both"])
    for step in (12, 16):  # as if it had been killed before they were complete
        shutil.rmtree(runs["both"] / f"checkpoints/step-{step:08d}")
    (runs["both"] / "report.json").unlink()
    resumed = magma(*words, "--out", runs["both"], "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "step 8" in resumed.stderr
    lists = {name: (out / "skipped.jsonl").read_text() for name, out in runs.items()}
    assert lists["one"] == lists["two"] == lists["both"]
    losses = {}
    for name, out in runs.items():
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [row["loss"] for row in rows if "loss" in row]
        report = json.loads((out / "report.json").read_text())
        assert report["processes"] == {"one": 1, "two": 2, "both": 1}[name]
        assert report["unreadable_examples"] == lists[name].count("\n") >= 10
        assert report["skipped_examples"] == 0
    assert len(losses["one"]) == 16
    # dropout 0 and BatchNorm frozen: the same examples give the same losses
    assert losses["one"] == pytest.approx(losses["two"], rel=1e-4)
    assert losses["one"] == pytest.approx(losses["both"], rel=1e-4)
    reasons = [json.loads(line)["reason"] for line in lists["one"].splitlines()]
    assert {("not JSON" in reason, "cannot be read as an image" in reason) for reason in reasons} == {
        (True, False),
        (False, True),
    }


# Size


def resident() -> int:
    """Bytes of main memory that this process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_memory_is_flat_over_a_stream_and_it_resumes_from_row_45678(tmp_path: Path) -> None:
    """80,000 rows in 8 shards, each a small but real image with a caption."""
    image = png(0)
    for shard in range(8):
        samples = (
            (f"{i:09}", {"png": image, "json": b'{"caption": "caption %d"}' % i})
            for i in range(shard * 10_000, (shard + 1) * 10_000)
        )
        tar(tmp_path / f"train-{shard:06}.tar", samples)
    before, count, state = 0, 0, None
    following: list[tuple[Example, SourceState]] = []
    for example, after in source(Captions, tmp_path).iterate():
        count += 1
        if count == 20_000:
            before = resident()
        if count == 45_678:
            state = json.loads(json.dumps(after))
        elif state is not None and len(following) < 1000:
            following.append((example, after))
    assert count == 80_000
    assert resident() - before < 10e6
    began = time.perf_counter()
    assert list(itertools.islice(source(Captions, tmp_path).iterate(state), 1000)) == following
    assert time.perf_counter() - began < 10, "it reads from the beginning"


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["jsonl", "parquet"])
def test_memory_is_flat_over_many_rows(layout: str, tmp_path: Path) -> None:
    """All of them indexed, a third of them read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 400_000
    if layout == "jsonl":
        with (tmp_path / "train.jsonl").open("w") as file:
            file.writelines(f'{{"image": "{i}.png", "caption": "caption {i}"}}\n' for i in range(count))
    else:
        with pq.ParquetWriter(
            tmp_path / "train.parquet", pa.schema({"caption": "string", "image": "string"})
        ) as writer:
            for start in range(0, count, 100_000):
                said = [f"caption {i}" for i in range(start, start + 100_000)]
                writer.write_table(pa.table({"caption": said, "image": [f"{one}.png" for one in said]}))
    examples = source(Captions, tmp_path).iterate()
    assert sum(1 for _ in itertools.islice(examples, 20_000)) == 20_000
    before = resident()
    assert sum(1 for _ in itertools.islice(examples, 120_000)) == 120_000
    assert resident() - before < 15e6
