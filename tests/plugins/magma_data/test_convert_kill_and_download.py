"""Conversions that are killed and resumed, and images that are downloaded."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from converted_sets import ROOT, contents, convert, held, index
from magma_data.convert import shards
from official_files import Case, coco_official, picture, put

import magma

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
    monkeypatch.setattr(shards, "MIN_OFFLINE_IMAGES", 3)
    put(tmp_path / "source/cc12m.tsv", b"http://127.0.0.1:1/x.jpg\tcaption\n" * 4)
    with pytest.raises(magma.InputError, match="check the network"):
        convert("cc12m", Case(tmp_path / "source"), tmp_path / "out")
    assert not [*(tmp_path / "out").glob("*.done.json")]
