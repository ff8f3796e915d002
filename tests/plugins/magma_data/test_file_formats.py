"""Files as people have them: every row is read, or is named with what is wrong with it."""

from __future__ import annotations

import gzip
import json
import socket
import tarfile
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
from row_files import TWO, archive, captions, good, lines, rows
from webdataset.tariterators import base_plus_ext

from magma import InputError

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
        f"path: {front}00002-of-00004{suffix} is missing: 3 of 4 shards exist; allowed: all shards, or a path "
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
