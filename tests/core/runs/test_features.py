"""`magma features` and `Magma.embed_media`."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cached_toys import FileEncoder, build_model, write_files
from safetensors.torch import load_file
from torch import Tensor

from magma import InputError, Magma
from magma.runs.features import NamedMedium, media_in_folder, write_features


def write(model: Magma, folder: Path, out: Path, **options: Any) -> Any:
    settings = {"name": "numbers", "shard_size": 3, "batch_size": 2, **options}
    return write_features(model, media_in_folder(model, folder, "numbers"), out, **settings)


def read(out: Path) -> dict[str, Tensor]:
    index = json.loads((out / "index.json").read_text())
    shards = [load_file(out / shard["file"]) for shard in index["shards"]]
    assert [len(shard["features"]) for shard in shards] == [shard["media"] for shard in index["shards"]]
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


def test_embed_media_is_what_the_language_model_reads(tmp_path: Path) -> None:
    files = [*write_files(tmp_path / "short", 2, 2), *write_files(tmp_path / "long", 2, 5)]
    model = build_model(None)
    found = model.embed_media(files, batch_size=3)
    assert found.shape == (4, 5, model.lm.embedding_dim)
    for row, file in zip(found, files, strict=True):
        single = model.embed_media([file])[0]
        torch.testing.assert_close(row[: len(single)], single)
        assert not row[len(single) :].any()
        words = model.embed(model._prompts(model.collator().examples([[file]])))[0]
        torch.testing.assert_close(single, words)
    assert torch.equal(model.embed_media(files, "numbers", 3), found)
    assert model.training


def test_embed_media_refuses_what_is_no_medium(tmp_path: Path) -> None:
    model = build_model(None)
    for given, message in (
        ([], "given nothing; allowed: a list of media"),
        (["text"], "given text; allowed"),
        ("text", "given a str; allowed: a list"),
        ([object()], "no input accepts"),
        ([tmp_path / "none.txt"], "medium 0: numbers: .*none.txt cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            model.embed_media(given)
    with pytest.raises(InputError, match="batch_size: given 0"):
        model.embed_media([[1.0]], batch_size=0)
    with pytest.raises(InputError, match='no input is called "scan"'):
        model.embed_media([[1.0]], "scan")


def test_features_are_those_of_the_parts(tmp_path: Path) -> None:
    files = write_files(tmp_path / "files", 8)
    files[3].write_text("0.5")
    model = build_model(None)
    done = write(model, tmp_path / "files", tmp_path / "out")
    assert (done.media, done.shards, done.kept, done.skipped) == (8, 3, 0, [])
    found = read(tmp_path / "out")
    assert found["features"].shape == (8, 3, 6)
    assert found["feature_lengths"].tolist() == found["embedding_lengths"].tolist() == [3, 3, 3, 1, 3, 3, 3, 3]
    torch.testing.assert_close(found["embeddings"], model.embed_media(files))
    encoder = model.input_modules()["numbers"].encoder
    features = encoder(encoder.prepare(files[5])[None]).values[0]
    torch.testing.assert_close(found["features"][5], features)
    names = [json.loads((tmp_path / "out" / f"0000{i}.json").read_text())["media"] for i in range(3)]
    assert list(itertools.chain(*names)) == [file.name for file in files]


def test_it_resumes_and_repairs(tmp_path: Path) -> None:
    files = write_files(tmp_path / "files", 8)
    model, out = build_model(None), tmp_path / "out"
    write(model, tmp_path / "files", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "index.json").unlink()
    (out / "00001.safetensors").write_bytes(before["00001.safetensors"][:-1])
    (out / "00002.json").write_text("{")
    FileEncoder.calls.update(prepare=0)
    assert write(model, tmp_path / "files", out).kept == 1
    assert FileEncoder.calls["prepare"] == 5
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    files[0].write_text("3 1 2")
    assert write(model, tmp_path / "files", out).kept == 2
    with torch.no_grad():
        model.input_modules()["numbers"].prefix.linear.bias += 1
    assert write(model, tmp_path / "files", out).kept == 0
    for file in files[2:]:
        file.unlink()
    assert write(model, tmp_path / "files", out).shards == 1
    assert sorted(path.name for path in out.iterdir()) == ["00000.json", "00000.safetensors", "index.json"]


def test_media_that_cannot_be_read(tmp_path: Path) -> None:
    files = write_files(tmp_path / "files", 4)
    files[1].write_text("one")
    model = build_model(None)
    with pytest.raises(InputError, match="1.txt cannot be read"):
        write(model, tmp_path / "files", tmp_path / "out")
    done = write(model, tmp_path / "files", tmp_path / "out", skip_unreadable=True)
    assert done.media == 3
    assert len(done.skipped) == 1
    assert "1.txt" in done.skipped[0]
    again = write(model, tmp_path / "files", tmp_path / "out", skip_unreadable=True)
    assert (again.media, again.kept, again.skipped) == (3, 2, done.skipped)


def test_nothing_to_write(tmp_path: Path) -> None:
    model = build_model(None)
    with pytest.raises(InputError, match="there is no medium of the input numbers"):
        write_features(model, list[NamedMedium](), tmp_path / "out", name="numbers")
    model.input_modules()["numbers"].encoder.accepts = lambda _: False  # type: ignore[method-assign]
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "file").touch()
    with pytest.raises(InputError, match="none of its 1 files is one that the input numbers accepts.*--use NAME"):
        write_features(model, media_in_folder(model, tmp_path / "files", "numbers"), tmp_path / "out", name="numbers")
