"""Files as people have them: every row is read, or is named with what is wrong with it."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from magma_data.formats import find, open_rows
from magma_data.formats.row import Row
from magma_data.formats.saved_dataset import _is_list_of_objects
from magma_data.sources.captions import Captions
from magma_data.sources.plain_text import PlainText
from webdataset.tariterators import base_plus_ext

from magma import InputError, Text

RowsOf = list[dict[str, Any]]
TWO: RowsOf = [{"image": "0.png", "caption": "a dog"}, {"image": "1.png", "caption": "a cat"}]


def archive(file: Path, *names: str, mode: str = "w", content: Callable[[str], bytes] = str.encode) -> Path:
    """A tar whose members hold their own names, JSON files as a caption."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode) as opened:  # type: ignore[call-overload]
        for name in names:
            data = json.dumps({"caption": name}).encode() if name.lower().endswith(".json") else content(name)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    return file


def rows(path: Path | str, split: str | None = None, list_field: str | None = None) -> list[Row]:
    return list(open_rows(str(path), split, list_field).iter_in_stored_order())


def captions(path: Path | str, split: str | None = None) -> list[str]:
    return [row.text("caption") for row in rows(path, split)]


def good(found: list[Row]) -> tuple[list[str], list[str]]:
    """The captions of the rows that have them and a medium, and what is wrong with the others."""
    said, problems = [], []
    for row in found:
        try:
            row.medium  # noqa: B018 - it raises
            said.append(row.text("caption"))
        except InputError as error:
            problems.append(str(error))
    return said, problems


def lines(*given: dict[str, Any]) -> str:
    return "\n".join(map(json.dumps, given))


# Members of tars


def test_dotted_folders_in_tar_members(tmp_path: Path) -> None:
    """Keys as webdataset groups them, but that `./` is no part of one."""
    keys = ["./v1.0/000", "./v1.0/001", "v1.1/000", "v1.1/001", "./002", "003"]
    file = archive(tmp_path / "0.tar", *(f"{key}.{ending}" for key in keys for ending in ("jpg", "json")))
    assert captions(file) == [f"{key}.json" for key in keys]
    assert [row.data for row in rows(file)] == [f"{key}.jpg".encode() for key in keys]
    with tarfile.open(file) as opened:
        grouped = dict.fromkeys(base_plus_ext(name)[0].removeprefix("./") for name in opened.getnames())
    assert [row.where for row in rows(file)] == [f"{file} {key}" for key in grouped]


def test_hidden_members_of_tars_are_no_data(tmp_path: Path) -> None:
    hidden = [
        "._0.jpg",
        ".DS_Store",
        "__MACOSX/._0.jpg",
        "__MACOSX/0.json",
        "a/._1.json",
        "Thumbs.db",
        "./a/.cache/2.jpg",
    ]
    file = archive(tmp_path / "0.tar", *hidden, "0.jpg", "._0.json", "0.json", "a/1.jpg", "a/1.json")
    assert good(rows(file)) == (["0.json", "a/1.json"], [])


def test_hidden_files_of_folders_are_no_data(tmp_path: Path) -> None:
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "train.jsonl").write_text(lines(*TWO))
    for name in ("._train.jsonl", ".val.jsonl", "__MACOSX/train.jsonl"):
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    assert captions(tmp_path) == captions(tmp_path, "train") == ["a dog", "a cat"]
    for place, name in (("documents", "a.txt"), ("image_data", "a.json")):
        for inside in (name, f"._{name}", f"__MACOSX/{name}"):
            file = tmp_path / "other" / place / inside
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text('{"image_path": "a", "captions": ["b"]}')
    assert len(list(open_rows(str(tmp_path / "other"), file_formats=("authors",)).iter_in_stored_order())) == 1
    assert (
        len(list(open_rows(str(tmp_path / "other/documents"), file_formats=("documents",)).iter_in_stored_order())) == 1
    )


def test_duplicate_members_of_a_tar_are_named(tmp_path: Path) -> None:
    file = archive(tmp_path / "0.tar", "0.jpg", "0.JPG", "0.json", "1.jpg", "1.json", "0.jpg", "0.json")
    said, problems = good(rows(file))
    assert said == ["1.json"]
    assert problems[0] == f"{file} 0: two members have the name 0.jpg; allowed: one of each name"
    assert problems[1].startswith(f"{file} 0: 0.jpg, 0.json: other members with this key were in an earlier sample; ")


def test_members_that_are_not_adjacent_are_counted(tmp_path: Path) -> None:
    file = archive(tmp_path / "0.tar", "0.jpg", "1.jpg", "2.jpg", "2.json", "0.json", "1.json")
    said, problems = good(rows(file))
    assert said == ["2.json"]
    assert len(problems) == 4
    assert [problem.split(";")[0] for problem in problems[2:]] == [
        f"{file} {key}: {key}.json: other members with this key were in an earlier sample" for key in (0, 1)
    ]


def test_a_tar_without_its_end_mark_gives_all_its_samples(tmp_path: Path) -> None:
    file = archive(tmp_path / "0.tar", "0.jpg", "0.json", "1.jpg", "1.json")
    file.write_bytes(file.read_bytes()[: 8 * 512])
    said, problems = good(rows(file))
    assert said == ["0.json", "1.json"]
    assert problems == [f"{file} after 1: the rest of the shard cannot be read: it is truncated or damaged here"]


def test_archives_that_were_joined_are_no_silent_loss(tmp_path: Path) -> None:
    first, second = (archive(tmp_path / f"{i}.tar", f"{i}.jpg", f"{i}.json") for i in (0, 1))
    first.write_bytes(first.read_bytes() + second.read_bytes())
    said, problems = good(rows(first))
    assert said == ["0.json"]
    assert problems == [
        f"{first} after 0: the rest of the shard cannot be read: data after the end marker; perhaps archives were "
        "concatenated, which `tar -i` unpacks"
    ]


@pytest.mark.parametrize("name", ["b.tar", "b.jsonl", "b.parquet", "b.csv", "b.jsonl.gz"])
def test_a_file_of_zero_bytes_is_counted(name: str, tmp_path: Path) -> None:
    whole = tmp_path / name.replace("b.", "a.")
    match name:
        case "b.tar":
            archive(whole, "0.jpg", "0.json")
        case "b.parquet":
            pq.write_table(pa.table({"image": [b"0"], "caption": ["a"]}), whole)
        case "b.csv":
            whole.write_text("image,caption\n0.png,a\n")
        case "b.jsonl.gz":
            whole.write_bytes(gzip.compress(lines(TWO[0]).encode()))
        case _:
            whole.write_text(lines(TWO[0]))
    (tmp_path / name).write_bytes(b"")
    said, problems = good(rows(tmp_path))
    assert len(said) == 1
    (problem,) = problems
    assert problem.startswith(f"{tmp_path / name}")
    assert "0 bytes" in problem or "empty file" in problem


def test_an_arrow_file_of_zero_bytes_is_named(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"caption": ["a"]}).save_to_disk(tmp_path / "set")
    (tmp_path / "set/data-00000-of-00001.arrow").write_bytes(b"")
    with pytest.raises(InputError, match=f"{tmp_path / 'set'} cannot be read as a saved dataset"):
        rows(tmp_path / "set")


# Tables


STRUCT = pa.struct({"id": pa.int64(), "question": pa.string()})
KINDS = [pa.list_(STRUCT), pa.large_list(STRUCT), pa.list_(STRUCT, 2)]


def asked(found: list[Row]) -> list[tuple[Any, Any]]:
    return [(row.data, row.fields.get("question", row.problem)) for row in found]


@pytest.mark.parametrize("kind", KINDS, ids=["list", "large_list", "fixed_size_list"])
@pytest.mark.parametrize("layout", ["saved", "parquet"])
def test_no_question_of_a_large_list_or_a_fixed_size_list_is_lost(kind: Any, layout: str, tmp_path: Path) -> None:
    questions = [[{"id": 2 * i + n, "question": f"{i} {n}"} for n in range(2)] for i in range(3)]
    table = pa.table({"image": [b"0", b"1", b"2"], "questions": pa.array(questions, kind)})
    if layout == "saved":
        datasets.Dataset(table).save_to_disk(tmp_path / "set")
    else:
        (tmp_path / "set").mkdir()
        pq.write_table(table, tmp_path / "set/val.parquet")
    found = asked(rows(tmp_path / "set", list_field="questions"))
    assert found == [(f"{i}".encode(), f"{i} {n}") for i in range(3) for n in range(2)]


def test_list_views_are_lists_of_objects() -> None:
    kinds = [*KINDS, pa.list_view(STRUCT), pa.large_list_view(STRUCT)]
    assert [_is_list_of_objects(kind) for kind in kinds] == [True] * 5
    assert not _is_list_of_objects(pa.list_(pa.string()))
    assert not _is_list_of_objects(STRUCT)


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.list_(STRUCT)])
def test_lists_that_hold_no_objects_are_one_problem_each(kind: Any, tmp_path: Path) -> None:
    """Never an IndexError, which `unreadable = "skip"` would not catch."""
    entry = "a" if kind.value_type == pa.string() else {"id": 1, "question": "a"}
    given = [[entry, None, entry], [], None, [entry]]
    table = pa.table({"image": [b"0", b"1", b"2", b"3"], "questions": pa.array(given, kind)})
    datasets.Dataset(table).save_to_disk(tmp_path / "set")
    found = asked(rows(tmp_path / "set", list_field="questions"))
    assert [data for data, _ in found] == [b"0", b"1", b"2", b"3"]
    assert "questions: given [" in found[0][1]
    assert "questions: given []; allowed: a list of objects" in found[1][1]
    assert found[2][1] is None
    if kind.value_type != pa.string():
        assert found[3][1] == "a"


@pytest.mark.parametrize("layout", ["saved", "parquet"])
def test_an_object_of_lists_is_a_list_of_objects(layout: str, tmp_path: Path) -> None:
    """As the datasets library stores `Sequence({...})`."""
    several = {"id": datasets.Value("int64"), "question": datasets.Value("string")}
    features = datasets.Features({"questions": datasets.Sequence(several)})
    given = [{"id": [1, 2, 3], "question": ["a", "b", "c"]}, {"id": [4], "question": ["d"]}, {"id": [], "question": []}]
    made = datasets.Dataset.from_dict({"questions": given}, features=features)
    (tmp_path / "set").mkdir()
    _ = made.save_to_disk(tmp_path / "set") if layout == "saved" else made.to_parquet(tmp_path / "set/train.parquet")
    found = rows(tmp_path / "set", list_field="questions")
    assert [row.fields.get("question") for row in found[:4]] == ["a", "b", "c", "d"]
    assert len(found) == 5
    assert str(found[4].problem).endswith("questions: given []; allowed: a list of objects")


@pytest.mark.parametrize("layout", ["saved", "parquet"])
def test_class_labels_give_their_names(layout: str, tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features(
        {"label": label, "parts": datasets.List({"label": label}), "n": datasets.Value("int64")}
    )
    given = {"label": [1, 0, -1, None], "parts": [[{"label": 1}, {"label": 0}], [], None, []], "n": [1, 0, 1, 0]}
    made = datasets.Dataset.from_dict(given, features=features)
    (tmp_path / "set").mkdir()
    _ = made.save_to_disk(tmp_path / "set") if layout == "saved" else made.to_parquet(tmp_path / "set/train.parquet")
    found = [dict(row.fields) for row in rows(tmp_path / "set")]
    assert [row.get("label") for row in found] == [label.int2str(1), label.int2str(0), None, None]
    assert found[0]["parts"] == [{"label": "dog"}, {"label": "cat"}]
    assert [row["n"] for row in found] == [1, 0, 1, 0]


def test_class_labels_without_a_name_are_named(tmp_path: Path) -> None:
    about = {"info": {"features": {"label": {"names": ["cat"], "_type": "ClassLabel"}}}}
    table = pa.table({"label": [0, 7]}).replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(table, tmp_path / "train.parquet")
    first, second = rows(tmp_path)
    assert first.text("label") == "cat"
    assert str(second.problem).endswith("row 1: label: given the class 7; allowed: 0 to 0")


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
    for head, word in (("image;caption", "one column"), ("image,image", "another name"), ("image,", "another name")):
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


# Folders


HUB = {
    "data": (
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/test-00000-of-00001.parquet",
    ),
    "hashed": (
        "data/train-00000-of-00002-0123456789abcdef.parquet",
        "data/train-00001-of-00002-fedcba9876543210.parquet",
        "data/test-00000-of-00001-00112233445566aa.parquet",
    ),
    "folders": ("train/0000.parquet", "train/0001.parquet", "test/0000.parquet"),
    "converted": ("default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet"),
    "jsonl": ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test-00000-of-00001.jsonl"),
    "bare": ("train/a.jsonl", "train/b.jsonl", "test/metadata.jsonl"),
    "csv": ("data/train-00000.csv", "data/train-00001.csv", "data/test.csv"),
}


@pytest.mark.parametrize("layout", HUB)
def test_hub_layouts_are_read_as_a_whole(layout: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "dataset_infos.json").write_text("{}")
    for i, name in enumerate(HUB[layout]):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        match file.suffix:
            case ".parquet":
                pq.write_table(pa.table({"caption": [f"{i}"]}), file)
            case ".csv":
                file.write_text(f"caption\n{i}\n")
            case _:
                file.write_text(lines({"caption": f"{i}"}))
    assert captions(tmp_path, "train") == ["0", "1"]
    assert captions(tmp_path, "test") == ["2"]
    assert sorted(captions(tmp_path)) == ["0", "1", "2"]
    (problem,) = find(str(tmp_path), "val")  # type: ignore[misc]  # a list
    assert str(problem).startswith(f"split: given 'val', which {tmp_path} does not have; allowed: t")
    if layout in ("data", "hashed"):
        loaded = datasets.load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
        assert loaded["caption"][:] == ["0", "1"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".tar", ".jsonl.gz"])
def test_a_missing_shard_of_a_numbered_set_is_an_error(suffix: str, tmp_path: Path) -> None:
    for i in (0, 1, 3):
        (tmp_path / f"train-{i:05}-of-00004{suffix}").write_bytes(b"")
    (problem,) = Captions.problems(Captions.Config(path=str(tmp_path), split="train"))
    front = tmp_path / "train-"
    assert problem == (
        f"path: {front}00002-of-00004{suffix} is missing: 3 of 00004 shards exist; allowed: all shards, or a path "
        f"that selects some of them (`{front}{{00000..00003}}-of-00004{suffix}`)"
    )
    assert Captions.problems(Captions.Config(path=f"{front}{{00000..00001}}-of-00004{suffix}")) == []
    (tmp_path / f"train-00002-of-00004{suffix}").write_bytes(b"")
    assert Captions.problems(Captions.Config(path=str(tmp_path), split="train")) == []


def test_two_downloads_of_one_shard_are_an_error(tmp_path: Path) -> None:
    for name in ("train-00000-of-00001-0123456789abcdef.parquet", "train-00000-of-00001-fedcba9876543210.parquet"):
        (tmp_path / name).write_bytes(b"")
    (problem,) = Captions.problems(Captions.Config(path=str(tmp_path)))
    assert problem.endswith("are the same shard; allowed: one of them")


def test_a_repository_of_several_data_sets_is_an_error(tmp_path: Path) -> None:
    for name in ("de/train-00000-of-00001.jsonl", "de/test-00000-of-00001.jsonl", "en/train-00000-of-00001.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(lines({"caption": name}))
    (problem,) = Captions.problems(Captions.Config(path=str(tmp_path)))
    assert problem == (
        f"path: {tmp_path} contains several data sets with splits: de, en; allowed: one of them ({tmp_path / 'de'})"
    )
    assert captions(tmp_path / "de", "test") == ["de/test-00000-of-00001.jsonl"]


def test_what_a_conversion_dropped_is_no_data(tmp_path: Path) -> None:
    shard = archive(tmp_path / "train-000000.tar", "0.jpg", "0.json")
    index = {"format": 1, "splits": {"train": {"shards": [{"file": shard.name}]}}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    (tmp_path / "dropped.jsonl").write_text('{"id": "9", "reason": "missing image"}\n')
    assert captions(tmp_path) == captions(tmp_path, "train") == ["0.json"]


@pytest.mark.parametrize("name", ["data{1}", "runs[a]", "all*", "{0..3}", "what?", "a b"])
def test_folder_names_with_braces_or_brackets_are_folders(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    archive(folder / "tar/train-0.tar", "0.jpg", "0.json")
    (folder / "jsonl").mkdir()
    (folder / "jsonl/train.jsonl").write_text(lines(*TWO))
    (folder / "parquet").mkdir()
    pq.write_table(pa.table({"caption": ["0"]}), folder / "parquet/train.parquet")
    datasets.Dataset.from_dict({"caption": ["a"]}).save_to_disk(folder / "saved")
    found = {layout: captions(folder / layout) for layout in ("tar", "jsonl", "parquet", "saved")}
    assert found == {"tar": ["0.json"], "jsonl": ["a dog", "a cat"], "parquet": ["0"], "saved": ["a"]}
    (folder / "documents").mkdir()
    (folder / "documents/a.txt").write_text("b")
    assert len(list(open_rows(str(folder / "documents"), file_formats=("documents",)).iter_in_stored_order())) == 1


# Urls


@pytest.mark.parametrize("url", ["hf://datasets/a/b/0.tar", "https://a.invalid/{0..9}.tar"])
def test_a_url_without_a_network_is_one_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(InputError, match="cannot be opened: no connection to ") as raised:
        rows(url)
    assert "\n" not in str(raised.value)


def test_a_url_of_no_tar_says_how_to_download() -> None:
    (problem,) = Captions.problems(Captions.Config(path="hf://datasets/a/b"))
    assert problem.startswith("path: given hf://datasets/a/b, but only tar shards can be read from URLs; allowed: ")
