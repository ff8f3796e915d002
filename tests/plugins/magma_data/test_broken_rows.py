"""Rows, shards and URLs that cannot be read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from magma_data.formats import open_rows
from magma_data.sources.captions import Captions
from magma_data.sources.question_answering import Vqa
from row_formats import Members, content, indexed_tars, parquet, passes, png, sample, source, tar, tars

from magma import InputError

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
        f"{file} no_json.json: not JSON",
        f"{file} list.json: given a list; allowed: a JSON object",
        f"{file} blind: image: given None; allowed: text",
        f'{file} path: image: given "/etc/passwd"; allowed: the medium itself',
        f"{file} two: several media (png, jpg); allowed: one",
        f"{file} mute: caption: given None; allowed: text",
        f"{file} latin.txt: not UTF-8",
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
    assert said == [f"{file} after 00001: the rest of the shard cannot be read: it is truncated or damaged here"]


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
    assert problem == "split: given 'val', but a URL already selects its shards; allowed: `split = false`"


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
