"""`magma data`: every official layout, byte for byte; conversions that are killed; what is dropped, and why."""

from __future__ import annotations

import codecs
import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from converted_sets import ROOT, contents, convert, data, held, index
from magma_data.convert import conversion, images, shards
from magma_data.convert.annotations import load_json, load_lines
from magma_data.convert.check import check as check_folder
from magma_data.convert.registry import SETS
from official_cases import CASES
from official_files import CORRUPT, Case, cc3m, coco_official, karpathy, picture, put, snli_ve, vqa2

import magma
from magma import folder_lock

# Every layout


@pytest.mark.parametrize(("name", "build"), CASES, ids=[build.__name__ for _, build in CASES])
def test_official_files_become_shards(name: str, build: Callable[[Path], Case], tmp_path: Path) -> None:
    case, out = build(tmp_path / "source"), tmp_path / "out"
    result = convert(name, case, out, "--samples-per-shard", 2)
    assert f"{out} is complete" in result.stdout
    told = index(out)
    assert (told["format"], told["name"], told["kind"]) == (1, name, SETS[name].kind)
    assert set(told["splits"]) == set(case.samples)
    report = json.loads((out / "report.json").read_text())["splits"]
    for split, wanted in case.samples.items():
        found = held(out, split)
        assert [(image, fields) for _, image, fields in found] == wanted
        keys = [key for key, _, _ in found]
        assert keys == sorted(set(keys))
        assert all(key.startswith(f"{split}-") and len(key) == len(split) + 10 for key in keys)
        rows = sum(len(fields.get("questions", fields.get("statements", [0]))) for _, fields in wanted)
        entry = told["splits"][split]
        assert (entry["samples"], entry["rows"]) == (len(wanted), rows)
        for shard in entry["shards"]:
            assert shard["sha256"] == hashlib.sha256((out / shard["file"]).read_bytes()).hexdigest()
        dropped = case.dropped.get(split, {})
        assert report[split] == {
            "read": rows + sum(dropped.values()),
            "written": rows,
            "dropped": dropped,
            "trimmed": case.trimmed.get(split, {}),
        }
        for reason, count in dropped.items():
            assert f"{count}  {reason}" in result.stdout
    lines = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    listed = Counter((line["split"], line["reason"]) for line in lines)
    reasons = [(split, told) for one in (case.dropped, case.trimmed) for split, told in one.items()]
    assert listed == {(split, reason): count for split, told in reasons for reason, count in told.items()}
    assert all(line["id"] for line in lines)
    assert check_folder(out) == []
    assert not [path.name for path in out.iterdir() if path.name.startswith(".") or path.name.endswith(".done.json")]


@pytest.mark.parametrize(("name", "build"), CASES, ids=[build.__name__ for _, build in CASES])
def test_an_interrupted_conversion_ends_as_an_undisturbed_one(
    name: str, build: Callable[[Path], Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, out, whole = build(tmp_path / "source"), tmp_path / "out", tmp_path / "whole"
    convert(name, case, whole, "--samples-per-shard", 1)
    write, calls = conversion.write_shard, 0

    def write_some(shard: shards.Shard) -> int:
        nonlocal calls
        calls += 1
        if calls > 2:
            put(out / f".{shard.stem}.partial", b"half a shard")
            raise RuntimeError("the lights went out")
        return write(shard)

    monkeypatch.setattr(conversion, "write_shard", write_some)
    with pytest.raises(RuntimeError, match="lights"):
        convert(name, case, out, "--samples-per-shard", 1)
    assert not (out / "index.json").exists()
    calls = -1_000
    again = convert(name, case, out, "--samples-per-shard", 1)
    assert contents(out) == contents(whole)
    assert "is complete" in again.stdout
    third = convert(name, case, out, "--samples-per-shard", 1)
    assert "was complete already" in third.stdout
    assert contents(out) == contents(whole)


def test_every_set_has_a_case() -> None:
    assert {name for name, _ in CASES} == set(SETS)


# Images


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (CORRUPT, "corrupt image"),
        (picture(1)[:-200], "corrupt image"),
        (picture(1, "PNG")[:-20], "corrupt image"),
        (b"<svg/>", "no image"),
        (picture(1, "BMP"), "format BMP"),
        (picture(1, size=(40, 15)), "smaller than 16 pixels"),
    ],
)
def test_images_that_are_left_out(content: bytes, reason: str) -> None:
    with pytest.raises(images.ImageError, match=f"^{reason}$"):
        images.check_image(content, 16)


def test_a_size_filter_is_an_option_of_every_set(tmp_path: Path) -> None:
    case = snli_ve(tmp_path / "source")
    put(case.source / "flickr30k-images/47056.jpg", picture(1, size=(40, 15)))
    convert("snli_ve", case, tmp_path / "out", "--split", "val", "--min-size", 16)
    report = json.loads((tmp_path / "out/report.json").read_text())["splits"]
    assert report["val"]["dropped"] == {"missing image": 1, "no gold label": 1, "smaller than 16 pixels": 1}
    assert set(report) == {"val"}


# What is missing, and what is refused


def test_everything_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    case = vqa2(tmp_path / "source")
    (case.source / "v2_mscoco_train2014_annotations.json").unlink()
    shutil.rmtree(case.source / "val2014")
    shutil.rmtree(case.source / "test2015")
    with pytest.raises(magma.InputError) as caught:
        convert("vqa2", case, tmp_path / "out")
    message = str(caught.value)
    assert "v2_mscoco_train2014_annotations.json: from v2_Annotations_Train_mscoco.zip, https://visualqa.org" in message
    assert "val2014/: from val2014.zip, https://cocodataset.org" in message
    assert "test2015/: from test2015.zip" in message
    assert message.count("\n  - ") == 3
    assert not (tmp_path / "out").exists()
    (tmp_path / "nothing").mkdir()
    for name, one in SETS.items():
        with pytest.raises(magma.InputError) as caught:
            convert(name, Case(tmp_path / "nothing"), tmp_path / "out")
        needed = [n for n in one.required_files if n.layout or n.split not in one.optional]
        assert all(str(n) in str(caught.value) for n in needed), name


def test_several_folders_are_searched(tmp_path: Path) -> None:
    case = vqa2(tmp_path / "source")
    for name in ("train2014", "val2014", "test2015"):
        shutil.move(case.source / name, tmp_path / f"coco/{name}")
    data("convert", "vqa2", case.source, tmp_path / "coco", "--out", tmp_path / "out", "--workers", 1)
    assert [(i, f) for _, i, f in held(tmp_path / "out", "train")] == case.samples["train"]


def test_numbered_files_are_all_there_or_said_to_be_partial(tmp_path: Path) -> None:
    from official_files import wit

    case = wit(tmp_path / "source")
    (case.source / "wit_v1.train.all-00001-of-00002.tsv.gz").unlink()
    with pytest.raises(magma.InputError, match=r"wit_v1.train.all-00001-of-00002.tsv.gz: from .*--partial"):
        convert("wit", case, tmp_path / "out")
    convert("wit", case, tmp_path / "out", "--partial")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("coco_caption",), 'unknown data set "coco_caption". Did you mean "coco_captions"?'),
        (("vqa2", "--split", "dev"), "--split: given 'dev'; allowed for vqa2: train, val, test, testdev"),
        (("vqa2", "--layout", "x"), "--layout: given 'x'; allowed for vqa2: none"),
        (("vqa2", "--language", "de"), "--language: vqa2 does not support this option"),
        (("cc3m", "--min-similarity", "0.3"), "--min-similarity: cc3m does not support this option"),
    ],
)
def test_words_that_make_no_sense(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(magma.InputError) as caught:
        data("convert", words[0], tmp_path, "--out", tmp_path / "out", *words[1:])
    assert message in str(caught.value)


def test_a_set_that_is_there_twice_is_chosen_from(tmp_path: Path) -> None:
    case = coco_official(tmp_path / "source")
    karpathy(case.source)
    with pytest.raises(magma.InputError, match="files of several layouts were found: 2014 and karpathy"):
        convert("coco_captions", case, tmp_path / "out")
    convert("coco_captions", case, tmp_path / "out", "--layout", "2014")
    assert [(i, f) for _, i, f in held(tmp_path / "out", "val")] == case.samples["val"]
    put(case.source / "copy/captions_val2014.json", {})
    with pytest.raises(magma.InputError, match="captions_val2014.json: found more than once"):
        convert("coco_captions", case, tmp_path / "other", "--layout", "2014")


def test_a_folder_goes_on_with_the_same_options_alone(tmp_path: Path) -> None:
    case, out = coco_official(tmp_path / "source"), tmp_path / "out"
    convert("coco_captions", case, out)
    with pytest.raises(magma.InputError, match=r"samples_per_shard: 1000 before, 2 now"):
        convert("coco_captions", case, out, "--samples-per-shard", 2)
    with pytest.raises(magma.InputError, match=r'name: "coco_captions" before, "cc3m" now'):
        convert("cc3m", cc3m(tmp_path / "other"), out)
    put(case.source / "annotations/captions_val2014.json", {})
    with pytest.raises(magma.InputError, match=r"files: "):
        convert("coco_captions", case, out)
    with pytest.raises(magma.InputError, match=r"allowed: a new or empty folder"):
        convert("cc3m", cc3m(tmp_path / "other"), tmp_path / "source")


def test_a_file_with_other_fields_is_a_users_mistake(tmp_path: Path) -> None:
    case = coco_official(tmp_path / "source")
    put(case.source / "annotations/captions_val2014.json", {"images": []})
    with pytest.raises(magma.InputError, match="coco_captions val: a file does not have the published format"):
        convert("coco_captions", case, tmp_path / "out")
    put(case.source / "annotations/captions_val2014.json", b'{"images": [')
    with pytest.raises(magma.InputError, match="captions_val2014.json: not JSON"):
        convert("coco_captions", case, tmp_path / "out2")


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    case = cc3m(tmp_path / "source")
    shutil.rmtree(case.source / "web")
    with pytest.raises(magma.InputError, match="all samples were dropped"):
        convert("cc3m", case, tmp_path / "out")
    convert("cc3m", cc3m(tmp_path / "source"), tmp_path / "out")


# Files as people have them


def fetched(folder: Path, *keys: str, successes: int, order: str = "jpg json", extra: tuple[str, ...] = ()) -> None:
    """A shard of img2dataset whose members have these keys, and its figures."""
    folder.mkdir(parents=True)
    names = [f"{key}.{ending}" for key in keys for ending in order.split()] + [f"{name}" for name in extra]
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for name in names:
            fields = json.dumps({"caption": name.removesuffix(".json"), "url": "u"}).encode()
            content = picture(keys.index(name[:-4])) if name[:-4] in keys else fields
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (folder / "00000_stats.json").write_text(json.dumps({"count": 9, "successes": successes}))


DOTTED = ("./v1.0/000", "./v1.0/001", "v1.1/000", "v1.1/001", "./002", "003")


def test_dotted_folders_in_tar_members_are_converted(tmp_path: Path) -> None:
    """With hidden members among them."""
    fetched(tmp_path / "in", *DOTTED, successes=6, extra=("._003.jpg", "__MACOSX/._000.json", ".DS_Store"))
    data("convert", "cc3m", tmp_path / "in", "--out", tmp_path / "out", "--workers", 1)
    found = [(image, fields["id"], fields["captions"]) for _, image, fields in held(tmp_path / "out", "train")]
    assert found == [(picture(i), key.removeprefix("./"), [key]) for i, key in enumerate(DOTTED)]


@pytest.mark.parametrize("layout", ["webdataset", "files"])
def test_a_shard_with_another_count_than_its_stats_is_an_error(layout: str, tmp_path: Path) -> None:
    fetched(tmp_path / "in", "000", "001", successes=3)
    if layout == "files":
        (tmp_path / "in/00000").mkdir()
        with tarfile.open(tmp_path / "in/00000.tar") as tar:
            tar.extractall(tmp_path / "in/00000", filter="data")
        (tmp_path / "in/00000.tar").unlink()
    message = r"00000(\.tar)?: 2 samples, but 00000_stats.json has 3 successes; allowed: "
    with pytest.raises(magma.InputError, match=message):
        data("convert", "cc3m", tmp_path / "in", "--out", tmp_path / "out", "--workers", 1)


def test_duplicate_members_of_a_tar_are_no_conversion(tmp_path: Path) -> None:
    fetched(tmp_path / "in", "000", "001", successes=2, extra=("000.json",))
    with pytest.raises(magma.InputError, match=r"00000.tar: two members have the name 000.json; allowed"):
        data("convert", "cc3m", tmp_path / "in", "--out", tmp_path / "out", "--workers", 1)


def test_members_that_are_not_adjacent_are_converted(tmp_path: Path) -> None:
    fetched(tmp_path / "in", "000", "001", successes=2, order="jpg", extra=("001.json", "000.json"))
    data("convert", "cc3m", tmp_path / "in", "--out", tmp_path / "out", "--workers", 1)
    found = [(image, fields["captions"]) for _, image, fields in held(tmp_path / "out", "train")]
    assert found == [(picture(0), ["000"]), (picture(1), ["001"])]


def test_a_tar_without_its_end_mark_is_no_conversion(tmp_path: Path) -> None:
    fetched(tmp_path / "in", "000", "001", successes=2)
    tar = tmp_path / "in/00000.tar"
    tar.write_bytes(tar.read_bytes().rstrip(bytes(1)) + bytes(512 - len(tar.read_bytes().rstrip(bytes(1))) % 512))
    with pytest.raises(magma.InputError, match=r"00000.tar: it is truncated or damaged here; perhaps img2dataset was"):
        data("convert", "cc3m", tmp_path / "in", "--out", tmp_path / "out", "--workers", 1)


@pytest.mark.parametrize("name", ["cc3m", "cc12m"])
@pytest.mark.parametrize("head", [False, True])
def test_a_byte_order_mark_costs_a_list_no_row(name: str, head: bool, tmp_path: Path) -> None:
    put(tmp_path / "in/web/0", picture(0))
    put(tmp_path / "in/web/1", picture(1))
    columns = ("caption", "url") if name == "cc3m" else ("url", "caption")
    rows = [{"caption": f"text {i}", "url": f"file://{tmp_path}/in/web/{i}"} for i in (0, 1)]
    rows = [dict(zip(columns, columns, strict=True)), *rows] if head else rows
    lines = "".join("\t".join(row[column] for column in columns) + "\r\n" for row in rows)
    file = "Train_GCC-training.tsv" if name == "cc3m" else "cc12m.tsv"
    put(tmp_path / "in" / file, codecs.BOM_UTF8 + lines.encode())
    data("convert", name, tmp_path / "in", "--out", tmp_path / "out", "--workers", 1)
    found = [(image, fields["captions"]) for _, image, fields in held(tmp_path / "out", "train")]
    assert found == [(picture(0), ["text 0"]), (picture(1), ["text 1"])]
    assert json.loads((tmp_path / "out/report.json").read_text())["splits"]["train"]["dropped"] == {}


# The program


def test_the_commands_cost_the_program_little() -> None:
    code = "import magma_data.commands, sys; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    path = os.pathsep.join([str(ROOT / "core"), str(ROOT / "plugins")])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True, text=True
    )
    assert not {"torch", "webdataset", "pyarrow", "PIL", "matplotlib", "pydantic"} & set(eval(done.stdout))


def test_official_files_nested_too_deep_are_named(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(magma.InputError, match="deep.json: not JSON"):
        load_json(tmp_path / "deep.json")
    with pytest.raises(magma.InputError, match="deep.json line 1: not JSON"):
        next(load_lines(tmp_path / "deep.json"))


def test_a_file_system_without_locks_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", refuse)
    with folder_lock(tmp_path):
        pass
    assert caplog.messages == [
        f"{tmp_path}/.lock cannot be locked: Function not implemented; do not start a second process that writes to "
        f"{tmp_path}"
    ]
