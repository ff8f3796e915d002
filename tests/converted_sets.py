"""Converts the small official files of tests, and reads what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import webdataset
from click.testing import Result
from official_files import Case
from typer.testing import CliRunner

from magma import Program

ROOT = Path(__file__).parents[1]


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
