"""`magma data`: every official layout, byte for byte; conversions that are killed; what is dropped, and why."""

from __future__ import annotations

import codecs
import errno
import hashlib
import http.server
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import webdataset
from click.testing import Result
from magma_data.convert import check as converted
from magma_data.convert import conversion, shards
from magma_data.convert import images as pictures
from magma_data.convert.annotations import load_json, load_lines
from magma_data.convert.registry import SETS
from official_files import CASES, CORRUPT, Case, cc3m, coco_official, karpathy, picture, put, snli_ve, vqa2
from PIL import Image
from typer.testing import CliRunner

import magma
from magma import Program, folder_lock

ROOT = Path(__file__).parents[3]


def data(*words: object) -> Result:
    """`magma data ...`, in this process."""
    import magma_data

    program = Program(name="magma")
    magma_data.magma_commands(program)
    return CliRunner().invoke(program, ["data", *map(str, words)], catch_exceptions=False)


def convert(name: str, case: Case, out: Path, *more: object, workers: int = 1) -> Result:
    return data("convert", name, case.source, "--out", out, "--workers", workers, *case.options, *more)


def held(out: Path, split: str) -> list[tuple[str, bytes, dict[str, Any]]]:
    """What webdataset reads: key, bytes of the image, fields."""
    found = []
    for entry in index(out)["splits"][split]["shards"]:
        with (out / entry["file"]).open("rb") as stream:  # which webdataset itself leaves open
            files = webdataset.tariterators.tar_file_expander([{"url": entry["file"], "stream": stream}])
            for sample in webdataset.tariterators.group_by_keys(files):
                (image,) = (sample[ending] for ending in ("jpg", "png", "webp", "gif") if ending in sample)
                found.append((sample["__key__"], image, json.loads(sample["json"])))
    return found


def index(out: Path) -> dict[str, Any]:
    return json.loads((out / "index.json").read_text())  # type: ignore[no-any-return]


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


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
    assert converted.check(out) == []
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


# Killed


SCRIPT = """
import os, signal, sys
import magma_data
from magma import Program

def die_in_sample(number):
    import webdataset
    written, write = 0, webdataset.TarWriter.write

    def write_some(self, sample):
        nonlocal written
        written += 1
        if written == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, sample)

    webdataset.TarWriter.write = write_some

if __name__ == "__main__":
    if {kill_at}:
        die_in_sample({kill_at})
    program = Program(name="magma")
    magma_data.magma_commands(program)
    program(["data", "convert", *sys.argv[1:]])
"""


def started(folder: Path, kill_at: int, *words: object) -> subprocess.Popen[bytes]:
    script = folder / "convert.py"
    script.write_text(SCRIPT.format(kill_at=kill_at))
    path = os.pathsep.join([str(ROOT / "core"), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(script), *map(str, words)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL)


def test_sigkill_in_the_middle_of_a_shard(tmp_path: Path) -> None:
    case, out, whole = coco_official(tmp_path / "source"), tmp_path / "out", tmp_path / "whole"
    options = ("--samples-per-shard", 2)
    process = started(tmp_path, 4, "coco_captions", case.source, "--out", out, "--workers", 1, *options)
    assert process.wait() == -signal.SIGKILL
    assert [*out.glob(".*.partial")]
    assert [*out.glob("*.done.json")]
    assert not (out / "index.json").exists()
    convert("coco_captions", case, out, *options)
    convert("coco_captions", case, whole, *options)
    assert contents(out) == contents(whole)


def test_sigkill_of_a_conversion_by_processes_ends_its_workers(tmp_path: Path, server: Server) -> None:
    links = [f"{server.address}/slow/{i}" for i in range(40)]
    put(tmp_path / "source/cc12m.tsv", "".join(f"{link}\tcaption {i}\n" for i, link in enumerate(links)).encode())
    case, out, whole = Case(tmp_path / "source"), tmp_path / "out", tmp_path / "whole"
    server.pages = {f"/slow/{i}": picture(i) for i in range(40)}
    server.delay = 0.1
    options = ("--samples-per-shard", 2, "--threads", 1)
    process = started(tmp_path, 0, "cc12m", case.source, "--out", out, "--workers", 2, *options)
    while not [*out.glob("*.done.json")]:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    time.sleep(0.5)
    asked = server.asked
    time.sleep(0.5)
    assert server.asked == asked, "a worker goes on"
    assert not (out / "index.json").exists()
    server.delay = 0.0
    convert("cc12m", case, out, *options, workers=2)
    convert("cc12m", case, whole, *options)
    assert contents(out) == contents(whole)
    assert index(out)["splits"]["train"]["samples"] == 40


# The web


class Server:
    """Pages of this machine: bytes, or a status."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes | int] = {}
        self.delay, self.asked = 0.0, 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                page = outer.pages.get(self.path, 404)
                time.sleep(outer.delay)
                if self.path == "/sleeps":
                    time.sleep(1.5)
                self.send_response(page if isinstance(page, int) else 200)
                body = b"" if isinstance(page, int) else page
                self.send_header("Content-Length", str(len(body) + 5 * (self.path == "/cut")))
                self.end_headers()
                for i in range(0, len(body), 50):
                    if self.path == "/drips":
                        time.sleep(0.2)
                    try:
                        self.wfile.write(body[i : i + 50])
                    except OSError:
                        return

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, args=(0.02,))
    thread.start()
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


def test_images_of_the_web(tmp_path: Path, server: Server) -> None:
    good = picture(3)
    server.pages = {
        "/a%20b.jpg?x=1": good,
        "/sleeps": good,
        "/drips": good,
        "/cut": good,
        "/page": b"<html>",
        "/gone": 410,
    }
    wanted = {
        f"{server.address}/a b.jpg?x=1": "",
        f"{server.address}/sleeps": "timed out",
        f"{server.address}/drips": "timed out",
        f"{server.address}/cut": "broken connection",
        f"{server.address}/page": "no image",
        f"{server.address}/gone": "HTTP 410",
        "http://127.0.0.1:1/x.jpg": "no connection",
        "http://127.0.0.1:x/": "bad URL",
        "ftp://127.0.0.1/x.jpg": "bad URL",
        "": "bad URL",
    }
    put(tmp_path / "source/cc12m.tsv", "".join(f"{url}\tcaption\n" for url in wanted).encode())
    convert("cc12m", Case(tmp_path / "source"), tmp_path / "out", "--timeout", 0.5)
    lines = [json.loads(line) for line in (tmp_path / "out/dropped.jsonl").read_text().splitlines()]
    reasons = {line["id"]: line["reason"] for line in lines}
    assert [reasons.get(str(i), "") for i in range(1, len(wanted) + 1)] == list(wanted.values())
    assert [image for _, image, _ in held(tmp_path / "out", "train")] == [good]


def test_no_network_at_all_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "OFFLINE", 3)
    put(tmp_path / "source/cc12m.tsv", b"http://127.0.0.1:1/x.jpg\tcaption\n" * 4)
    with pytest.raises(magma.InputError, match="check the network"):
        convert("cc12m", Case(tmp_path / "source"), tmp_path / "out")
    assert not [*(tmp_path / "out").glob("*.done.json")]


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
    with pytest.raises(pictures.ImageError, match=f"^{reason}$"):
        pictures.check_image(content, 16)


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
    with pytest.raises(magma.InputError, match=r"samples_per_shard: 1000 there, 2 given"):
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
    with pytest.raises(magma.InputError, match="captions_val2014.json: no JSON"):
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
    message = r"00000(\.tar)?: 2 samples, but 00000_stats.json counts 3 successes; allowed: "
    with pytest.raises(magma.InputError, match=message):
        data("convert", "cc3m", tmp_path / "in", "--out", tmp_path / "out", "--workers", 1)


def test_duplicate_members_of_a_tar_are_no_conversion(tmp_path: Path) -> None:
    fetched(tmp_path / "in", "000", "001", successes=2, extra=("000.json",))
    with pytest.raises(magma.InputError, match=r"00000.tar: two members are called 000.json; allowed"):
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


# Check and show


def test_check_finds_what_is_wrong(tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert("vqa2", vqa2(tmp_path / "source"), out, "--samples-per-shard", 1)
    assert data("check", out, "--workers", 1).exit_code == 0
    first, second = (out / entry["file"] for entry in index(out)["splits"]["train"]["shards"])
    whole = first.read_bytes()
    flipped = bytearray(whole)
    flipped[700] ^= 1
    first.write_bytes(flipped)
    result = data("check", out, "--workers", 1)
    assert result.exit_code == 1
    assert f"{first.name}: sha256 is" in result.stdout
    first.write_bytes(whole)
    second.unlink()
    put(out / "train-000009.tar", b"")
    told = index(out)
    told["splits"]["val"]["rows"] += 1
    put(out / "index.json", told)
    problems = converted.check(out)
    assert f"{second.name}: there is no such file" in problems
    assert "train-000009.tar: not in index.json" in problems
    assert "index.json: val has 4 rows, its shards 3" in problems


@pytest.mark.parametrize(
    ("sample", "problem"),
    [
        ({"jpg": CORRUPT, "json": b'{"id": "1", "captions": []}'}, "train-000000000: jpg: corrupt image"),
        ({"png": picture(1), "json": b'{"id": "1", "captions": []}'}, "train-000000000: png: the image is a jpg"),
        ({"jpg": picture(1), "json": b'{"id": 1, "captions": []}'}, "train-000000000: json: id: Input should be a"),
        ({"jpg": picture(1), "json": b'{"id": "1"}'}, "train-000000000: json: captions: Field required"),
        ({"jpg": picture(1)}, "train-000000000: json is missing"),
        ({"json": b'{"id": "1", "captions": []}'}, "train-000000000: files json; allowed: one of jpg"),
    ],
)
def test_check_names_shard_and_key(sample: dict[str, bytes], problem: str, tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "train-000000.tar"), encoder=False) as tar:
        tar.write({"__key__": "train-000000000", **sample})
    entry = {"samples": 1, "rows": 1}
    digest = hashlib.sha256((tmp_path / "train-000000.tar").read_bytes()).hexdigest()
    split = {**entry, "shards": [{"file": "train-000000.tar", **entry, "sha256": digest}]}
    put(tmp_path / "index.json", {"format": 1, "name": "x", "kind": "captions", "splits": {"train": split}})
    assert any(found.startswith(f"train-000000.tar: {problem}") for found in converted.check(tmp_path))


@pytest.mark.parametrize("build", [coco_official, vqa2, snli_ve])
def test_show_draws_a_sheet(build: Callable[[Path], Case], tmp_path: Path) -> None:
    name = {coco_official: "coco_captions", vqa2: "vqa2", snli_ve: "snli_ve"}[build]
    out, png = tmp_path / "out", tmp_path / "sheets/sheet.png"
    convert(name, build(tmp_path / "source"), out, "--samples-per-shard", 2)
    result = data("show", out, "--out", png, "--count", 4, "--seed", 1)
    assert result.stdout == f"4 images: {png}\n"
    with Image.open(png) as image:
        assert min(image.size) > 300
    with pytest.raises(magma.InputError, match="--split: given 'dev'; allowed for"):
        data("show", out, "--split", "dev")


def test_folders_that_are_not_finished_are_not_looked_at(tmp_path: Path) -> None:
    for command in ("check", "show"):
        with pytest.raises(magma.InputError, match=r"has no index.json; allowed"):
            data(command, tmp_path)


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
    with pytest.raises(magma.InputError, match="deep.json: no JSON"):
        load_json(tmp_path / "deep.json")
    with pytest.raises(magma.InputError, match="deep.json line 1: no JSON"):
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
