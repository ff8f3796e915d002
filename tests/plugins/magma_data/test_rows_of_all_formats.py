"""Rows in every layout: the same examples from the same data, from any point, and what is broken is named."""

from __future__ import annotations

import gc
import io
import itertools
import json
import os
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
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
from PIL import Image
from program import magma
from program import start as start_magma

from magma import Example, InputError, Media, SourceState, Text

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
        pq.write_table(
            table, folder / f"train-{number:05}-of-{-(-count // size):05}.parquet", row_group_size=max(1, size // 2)
        )
    return folder


WRITERS: list[Callable[[Path, int, int], Path]] = [jsonl, authors, saved, tars, indexed_tars, img2dataset, parquet]
RANDOM_ACCESS = [jsonl, authors, saved]
IDS = [writer.__name__ for writer in WRITERS]


def source(part: type[RowSource], path: Path | str, seed: int = 0, **fields: Any) -> RowSource:
    return part(part.Config(path=str(path), **fields), seed)  # type: ignore[call-arg]


def content(medium: Path | bytes) -> bytes:
    return medium if isinstance(medium, bytes) else medium.read_bytes()


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


# What is broken


def problems(path: Path | str, **fields: Any) -> tuple[int, list[str]]:
    """How many rows are good, and what is said of the others."""
    examples = [example for example, _ in source(Captions, path, shuffle=False, **fields).iterate()]
    said = [example.problem for example in examples if example.problem is not None]
    return len(examples) - len(said), said


def test_a_sample_that_cannot_be_read_is_named_by_shard_and_key(tmp_path: Path) -> None:
    bad: list[tuple[str, Members]] = [
        ("no_json", {"png": png(0), "json": b"{broken"}),
        ("list", {"png": png(0), "json": b"[1]"}),
        ("blind", {"json": b'{"caption": "a"}'}),
        ("path", {"json": b'{"caption": "a", "image": "/etc/passwd"}'}),
        ("two", {"png": png(0), "jpg": png(1), "json": b'{"caption": "a"}'}),
        ("mute", {"png": png(0)}),
        ("latin", {"png": png(0), "txt": "é".encode("latin-1")}),
    ]
    file = tar(tmp_path / "0.tar", [sample(0), *bad, sample(1)])
    count, said = problems(tmp_path)
    assert count == 2
    expected = [
        f"{file} no_json.json: no JSON",
        f"{file} list.json: given a list; allowed: a JSON object",
        f"{file} blind: image: given None; allowed: text",
        f'{file} path: image: given "/etc/passwd"; allowed: the medium itself',
        f"{file} two: it has several media (png, jpg); allowed: one",
        f"{file} mute: caption: given None; allowed: text",
        f"{file} latin.txt: no UTF-8",
    ]
    assert [one.startswith(start) for one, start in zip(said, expected, strict=True)] == [True] * 7, said


@pytest.mark.parametrize("cut", range(0, 15360, 256))
def test_a_shard_that_is_cut_off_gives_what_it_has_and_says_where_it_ends(cut: int, tmp_path: Path) -> None:
    """Wherever it is cut, and from whatever point one goes on: nothing is lost silently, nothing comes twice."""
    whole = tar(tmp_path / "0.tar", [sample(i) for i in range(6)])
    tar(tmp_path / "1.tar", [sample(i) for i in range(6, 9)])
    raw = whole.read_bytes()
    whole.write_bytes(raw[:cut])
    count, said = problems(tmp_path)
    members_end = 6 * 4 * 512
    if cut >= members_end + 1024:
        assert (count, said) == (9, [])
        return
    assert count == 3 + (cut + 256) // 2048  # less than 256 bytes of a sample's last block are not filling
    (problem,) = said
    assert problem.startswith(f"{whole} ")
    assert "the rest of the shard cannot be read: " in problem
    rows = open_rows(str(tmp_path), buffer=2)
    found = passes(rows, count + 1)
    for i, (_, _, state) in enumerate(found[:-1]):
        assert passes(rows, len(found) - 1 - i, state) == found[i + 1 :]


def test_a_damaged_head_is_no_end(tmp_path: Path) -> None:
    file = tar(tmp_path / "0.tar", [sample(i) for i in range(4)])
    raw = bytearray(file.read_bytes())
    raw[2 * 2048 + 10] ^= 255
    file.write_bytes(raw)
    count, said = problems(tmp_path)
    assert count == 2
    assert said == [f"{file} after 00001: the rest of the shard cannot be read: it is cut off or damaged here"]


def test_a_row_group_that_is_damaged_is_named(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "set", 20, 10)
    file = folder / "train-00000-of-00002.parquet"
    raw = bytearray(file.read_bytes())
    raw[4:200] = bytes(196)
    file.write_bytes(raw)
    count, said = problems(folder)
    assert count == 15
    (problem,) = said
    assert problem.startswith(f"{file} row group 0 row 0: the rest of the row group cannot be read: ")


def test_what_is_no_data_is_explained(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="a.parquet cannot be read as parquet"):
        list(source(Captions, tmp_path).iterate())
    folder = indexed_tars(tmp_path / "set", 6, 2)
    (folder / "train-000001.tar").unlink()
    assert Captions.problems(Captions.Config(path=str(folder))) == [f"path: {folder / 'train-000001.tar'} is missing"]
    (folder / "index.json").write_text('{"format": 1, "splits": {"train": {"samples": 3}}}')
    with pytest.raises(InputError, match="index.json: its shards cannot be read: KeyError"):
        Captions.problems(Captions.Config(path=str(folder)))
    for split in (None, "val"):
        empty = tmp_path / "empty"
        empty.mkdir(exist_ok=True)
        (problem,) = Vqa.problems(Vqa.Config(path=str(empty), split=split))
        assert problem.startswith(f"path: {empty} has none of: ")
    (problem,) = Captions.problems(Captions.Config(path="http://127.0.0.1/{0..1}.tar", split="val"))
    assert problem == "split: given 'val', but a url names its shards itself; allowed: `split = false`"


# Urls


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_urls_in_braces_are_read_as_files_are(served: str, tmp_path: Path) -> None:
    tars(tmp_path / "set", 40, 10)
    ways = [f"{served}/set/train-{{000000..000003}}.tar", f"pipe:cat {tmp_path}/set/train-{{000000..000003}}.tar"]
    stored = [(png(i), f"caption {i}") for i in range(40)]
    for url in [*ways, f"{tmp_path}/set/train-{{000000..000003}}.tar"]:
        rows = source(Captions, url, shuffle=False).rows
        assert [(content(row.medium), row.text("caption")) for row in rows.iter_in_stored_order()] == stored
        rows = open_rows(url, buffer=7)
        whole = passes(rows, 85)
        for position in (0, 6, 7, 39, 40, 60):
            assert passes(rows, 84 - position, whole[position][2]) == whole[position + 1 :]
    with pytest.raises(InputError, match=r"000004.tar: .*at its beginning"):
        list(source(Captions, f"{served}/set/train-{{000003..000004}}.tar", shuffle=False).iterate())
    raw = (tmp_path / "set/train-000002.tar").read_bytes()
    (tmp_path / "set/train-000002.tar").write_bytes(raw[: 3 * 2048 + 100])
    assert problems(ways[0])[0] == 33


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
    assert str(found[1]).startswith(f"{tmp_path / 'lines/train.txt'} line 2: no UTF-8")


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
        assert report["unreadable_examples"] == lists[name].count("\n") >= 10
        assert report["skipped_examples"] == 0
    assert len(losses["one"]) == 16
    assert losses["one"] == pytest.approx(losses["two"], rel=1e-3)
    assert losses["one"] == pytest.approx(losses["both"], rel=1e-3)
    reasons = [json.loads(line)["reason"] for line in lists["one"].splitlines()]
    assert {("no JSON" in reason, "cannot be read as an image" in reason) for reason in reasons} == {
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
