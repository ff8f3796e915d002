"""Suffixes of files of rows, compression, encodings, and invalid JSON and CSV."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from magma_data.formats import open_rows
from magma_data.sources.captions import Captions
from magma_data.sources.plain_text import PlainText
from row_files import TWO, archive, captions, good, lines, rows

from magma import Text

# Suffixes


def zstd(raw: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return bytes(sink.getvalue())


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstd,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}

CSV = "image,caption\r\n0.png,a dog\r\n1.png,a cat\r\n"

WRITTEN = {
    ".jsonl": lines(*TWO),
    ".JSONL": lines(*TWO),
    ".json": json.dumps(TWO, indent=2),
    ".Json": lines(*TWO),
    ".csv": CSV,
    ".TSV": CSV.replace(",", "\t"),
}


@pytest.mark.parametrize("packed", PACKED, ids=lambda one: one or "plain")
@pytest.mark.parametrize("suffix", WRITTEN)
def test_every_suffix_of_text_is_read(suffix: str, packed: str, tmp_path: Path) -> None:
    file = tmp_path / f"train{suffix}{packed}"
    file.write_bytes(PACKED[packed](WRITTEN[suffix].encode()))
    for path in (tmp_path, file):
        found = rows(path)
        assert [dict(row.fields) for row in found] == TWO
        assert [row.medium for row in found] == [tmp_path / "0.png", tmp_path / "1.png"]
    assert captions(tmp_path, "train") == ["a dog", "a cat"]
    assert Captions.problems(Captions.Config(path=str(tmp_path), split="train")) == []
    if suffix.lower() == ".csv":
        assert [dict(row.fields) for row in rows(file)] == list(
            datasets.Dataset.from_csv(str(file), cache_dir=str(tmp_path / "cache")) if packed == "" else TWO
        )


@pytest.mark.parametrize("name", ["0.tar", "0.TAR", "0.tar.gz", "0.tgz", "0.tar.bz2", "0.tar.xz", "0.tar.zst"])
def test_every_suffix_of_tars_is_read(name: str, tmp_path: Path) -> None:
    file = archive(tmp_path / "plain", "0.jpg", "0.json", "1.jpg", "1.json")
    raw = file.read_bytes()
    file.unlink()
    packed = Path(name).suffix.lower().replace(".tgz", ".gz").replace(".tar", "")
    (tmp_path / name).write_bytes(PACKED[packed](raw))
    for path in (tmp_path, tmp_path / name):
        assert good(rows(path)) == (["0.json", "1.json"], [])
    if packed:
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        _, problems = good(rows(tmp_path))
        assert [problem for problem in problems if problem.startswith(f"{tmp_path / name}")]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_text_that_is_cut_off_is_counted(suffix: str, tmp_path: Path) -> None:
    given = [{"caption": f"{hash((i, 0.5)):x} {i}", "image": "a.png"} for i in range(20_000)]
    raw = PACKED[suffix](lines(*given).encode())
    (tmp_path / f"train.jsonl{suffix}").write_bytes(raw[: len(raw) // 2])
    said, problems = good(rows(tmp_path))
    assert 0 < len(said) < 20_000
    assert said == [row["caption"] for row in given[: len(said)]]
    assert "the rest of the file cannot be read after line" in problems[-1]


def test_a_stream_of_compressed_text_resumes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        raw = lines(*({"caption": f"{name} {i}"} for i in range(30))).encode()
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(raw))
    made = open_rows(str(tmp_path), buffer=8)
    whole = [(row.fields["caption"], state) for row, state in made.iterate(None, 3, True, None)]
    assert sorted(caption for caption, _ in whole) == sorted(f"{n} {i}" for n in "ab" for i in range(30))
    for at in (0, 7, 8, 29, 40, 58):
        again = [row.fields["caption"] for row, _ in made.iterate(json.loads(json.dumps(whole[at][1])), 3, True, None)]
        assert again == [caption for caption, _ in whole[at + 1 :]]


def test_other_suffixes_are_named_before_the_run(tmp_path: Path) -> None:
    for name in ("a.xlsx", "b.xlsx", "notes.pdf"):
        (tmp_path / name).write_bytes(b"x")
    (problem,) = Captions.problems(Captions.Config(path=str(tmp_path / "a.xlsx")))
    assert problem.startswith(f"path: {tmp_path / 'a.xlsx'}: files with .xlsx are not supported; allowed: .jsonl, ")
    (problem,) = Captions.problems(Captions.Config(path=str(tmp_path)))
    assert problem.endswith("*.csv, *.tsv, *.json, image_data/; its files have .xlsx (2), .pdf (1)")


def test_json_that_is_no_list_of_objects_is_named(tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    file.write_text(json.dumps({"images": [], "annotations": []}, indent=1))
    assert good(rows(file))[1] == [
        f"{file}: a JSON object over several lines; allowed: an array of objects, or one object per line"
    ]
    file.write_text('[{"image": "a", "caption": "b"}, 3, {"image": "a", "caption": "é"} , {"image": ')
    said, problems = good(rows(file))
    assert said == ["b", "é"]
    assert problems[0] == f"{file} item 2: given a int; allowed: a JSON object"
    assert problems[1].startswith(f"{file}: the rest of the file cannot be read after item 3: ")


def test_cells_with_line_breaks_quotes_and_too_few(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_text('image,caption,id\n0.png,"two\nlines, ""quoted""",\n\n1.png\n2.png,"a" b,3\n3.png,last,4\n')
    found = rows(file)
    assert dict(found[0].fields) == {"image": "0.png", "caption": 'two\nlines, "quoted"'}
    assert [row.problem for row in found[1:]] == [
        f"{file} line 5: 1 cells; allowed: 3, as in the first line",
        f"{file} line 6: the cells cannot be parsed: ',' expected after '\"'",
        None,
    ]
    assert found[-1].text("caption") == "last"
    for head, word in (
        ("image;caption", "one column"),
        ("image,image", "different name"),
        ("image,", "different name"),
    ):
        file.write_text(f"{head}\na;b\n")
        assert word in good(rows(file))[1][0]


def test_byte_order_marks_and_cr_lf(tmp_path: Path) -> None:
    mark = codecs.BOM_UTF8
    for suffix, text in WRITTEN.items():
        file = tmp_path / f"marked{suffix}"
        file.write_bytes(mark + text.replace("\r\n", "\n").replace("\n", "\r\n").encode())
        assert [dict(row.fields) for row in rows(file)] == TWO
        file.unlink()
    text = tmp_path / "a.txt"
    text.write_bytes(mark + b"one\r\ntwo\r\n")
    expected = {"line": ["one", "two"], "file": ["one\ntwo"]}
    for documents, said in expected.items():
        made = PlainText(PlainText.Config(path=str(text), documents=documents, shuffle=False), 0)
        assert [example.segments for example, _ in made.iterate()] == [[Text(one, target=True)] for one in said]
    file = archive(tmp_path / "0.tar", "0.jpg", "0.txt", content=lambda name: mark + name.encode() + b"\r\n")
    assert captions(file) == ["0.txt"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".json"])
def test_utf_16_is_named_with_what_converts_it(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"train{suffix}"
    file.write_bytes(WRITTEN[suffix].encode("utf-16"))
    assert good(rows(file))[1] == [
        f"{file}: the encoding is UTF-16; allowed: UTF-8; convert it with `iconv -f UTF-16 -t UTF-8`"
    ]
