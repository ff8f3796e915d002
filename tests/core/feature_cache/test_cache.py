"""Losses with a feature cache are those without one, bit by bit, whatever happens to its files."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cached_toys import FileEncoder, build_model, epoch, write_files
from torch import Tensor

import magma
from magma import Features, PartError
from magma.feature_cache.cache import FeatureCache

CALLS = FileEncoder.calls


@pytest.fixture(autouse=True)
def _count() -> None:
    CALLS.update(prepare=0, forward=0)


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("??/*") if path.is_file())


def test_losses_are_those_without_a_cache(tmp_path: Path) -> None:
    files, folder = write_files(tmp_path / "files"), tmp_path / "cache"
    plain = [epoch(build_model(None), files, order) for order in range(3)]
    cold = build_model(FeatureCache(folder))
    assert [epoch(cold, files, order) for order in range(3)] == plain
    computed = dict(CALLS)
    warm = build_model(FeatureCache(folder))
    assert [epoch(warm, files, order) for order in range(3)] == plain
    assert CALLS["forward"] == computed["forward"]
    assert CALLS["prepare"] - computed["prepare"] == 4  # of the first batch, whose size is not known before
    cache = warm.input_modules()["numbers"].cache
    assert cache is not None
    assert (cache.hits, cache.misses) == (24, 0)


def test_item_by_item_fits_batches_of_any_size_and_items_of_any_length(tmp_path: Path) -> None:
    files = [*write_files(tmp_path / "short", 4, 2), *write_files(tmp_path / "long", 4, 5)]
    cold = build_model(FeatureCache(tmp_path / "cache", encode_by="item"))
    first = [epoch(cold, files, 1, size) for size in (4, 3, 8)]
    CALLS.update(prepare=0, forward=0)
    warm = build_model(FeatureCache(tmp_path / "cache", encode_by="item"))
    assert [epoch(warm, files, 1, size) for size in (4, 3, 8)] == first
    assert CALLS == {"prepare": 0, "forward": 0}
    for path in entries(tmp_path / "cache")[::2]:
        path.unlink()
    assert [epoch(warm, files, 1, size) for size in (4, 3, 8)] == first
    assert CALLS == {"prepare": 4, "forward": 4 + 2}  # the first item of each length is computed twice
    plain = [epoch(build_model(None), files, 1, size) for size in (4, 3, 8)]
    assert [x for losses in first for x in losses] == pytest.approx([x for losses in plain for x in losses], abs=1e-5)


def test_items_of_several_lengths_are_right_in_whole_batches(tmp_path: Path) -> None:
    files = [*write_files(tmp_path / "short", 4, 2), *write_files(tmp_path / "long", 4, 5)]
    cached = build_model(FeatureCache(tmp_path / "cache"))
    for order in range(4):
        assert epoch(cached, files, order) == epoch(build_model(None), files, order)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _flip(position: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[position] ^= 1
        path.write_bytes(content)

    return change


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").touch()


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _other_entry(path: Path) -> None:
    """The entry of another medium, valid under its own name."""
    other = next(one for one in entries(path.parents[1]) if one.read_bytes() != path.read_bytes())
    shutil.copy(other, path)


def _other_shape(path: Path) -> None:
    """An entry that says that its tensor has another shape."""
    path.write_bytes(path.read_bytes().replace(b'"shape":[3,6]', b'"shape":[6,3]'))


MODIFICATIONS: dict[str, Callable[[Path], Any]] = {
    "cut off": _cut,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"0"),
    "empty": lambda path: path.write_bytes(b""),
    "a bit of the features": _flip(-1),
    "a bit of the header": _flip(70),
    "a bit of the format": _flip(2),
    "a bit of the length": _flip(15),
    "a bit of the checksum": _flip(20),
    "another shape": _other_shape,
    "text": lambda path: path.write_text("nothing"),
    "removed": Path.unlink,
    "a folder": _folder,
    "an endless file": _link,
    "a pipe": _pipe,
    "another entry": _other_entry,
    "not readable": lambda path: path.chmod(0),
}


@pytest.mark.parametrize("encode_by", ["batch", "item"])
@pytest.mark.parametrize("how", MODIFICATIONS)
def test_modified_entries_are_computed_again(tmp_path: Path, how: str, encode_by: Any) -> None:
    files, folder = write_files(tmp_path / "files"), tmp_path / "cache"
    before = epoch(build_model(FeatureCache(folder, encode_by=encode_by)), files)
    original = {path: path.read_bytes() for path in entries(folder)}
    assert len(original) == 8
    for path in list(original)[::3]:
        MODIFICATIONS[how](path)
    model = build_model(FeatureCache(folder, encode_by=encode_by))
    assert epoch(model, files) == before
    if how != "not readable" or os.getuid():
        cache = model.input_modules()["numbers"].cache
        assert cache is not None
        assert cache.misses > 0
        assert {path: path.read_bytes() for path in entries(folder)} == original


def changed(**how: Any) -> dict[str, Any]:
    """Arguments of `build_model` with an encoder that differs in one thing."""
    encoder = FileEncoder(FileEncoder.Config(**how.get("config", {})))
    return {"encoder": encoder, **{key: value for key, value in how.items() if key != "config"}}


def test_another_encoder_or_preparation_gets_other_entries(tmp_path: Path) -> None:
    files, folder = write_files(tmp_path / "files"), tmp_path / "cache"

    def losses(change: Callable[[FileEncoder], object], config: dict[str, Any] | None = None) -> list[list[float]]:
        found = []
        for cache in (FeatureCache(folder), None):
            torch.manual_seed(7)
            encoder = FileEncoder(FileEncoder.Config(**(config or {})))
            change(encoder)
            found.append(epoch(build_model(cache, encoder), files))
        return found

    @torch.no_grad()
    def smaller(encoder: FileEncoder) -> None:
        encoder.network[0].bias[0] *= 0.5

    class Renamed(FileEncoder):
        pass

    seen = []
    for change, config in (
        (lambda _: None, {}),
        (smaller, {}),
        (lambda _: None, {"scale": 2.0}),
        (lambda encoder: setattr(encoder, "level", 3), {}),
        (lambda encoder: setattr(encoder.network[1], "eps", 1e-3), {}),
        (lambda encoder: setattr(encoder, "__class__", Renamed), {}),
        (lambda encoder: encoder.double().float().bfloat16().float(), {}),
    ):
        count = len(entries(folder))
        cached, plain = losses(change, config)
        assert cached == plain
        seen.append(len(entries(folder)) - count)
    assert seen == [8] * 7


def test_weights_that_change_in_place_are_noticed(tmp_path: Path) -> None:
    files = write_files(tmp_path / "files")
    cached, plain = build_model(FeatureCache(tmp_path / "cache")), build_model(None)
    for scale in (1.0, 0.5, 2.0):
        for model in (cached, plain):
            with torch.no_grad():
                model.input_modules()["numbers"].encoder.network[0].weight *= scale
        assert epoch(cached, files) == epoch(plain, files)


def test_a_changed_file_is_another_medium(tmp_path: Path) -> None:
    files = write_files(tmp_path / "files")
    model = build_model(FeatureCache(tmp_path / "cache"))
    before = epoch(model, files)
    files[2].write_text("0.9 0.1 0.4")
    assert epoch(model, files) == epoch(build_model(None), files) != before


def test_values_without_a_file_are_known_by_what_is_prepared(tmp_path: Path) -> None:
    numbers = [[0.1 * i, 0.2, 0.3] for i in range(4)]
    model = build_model(FeatureCache(tmp_path / "cache"))
    expected = build_model(None).embed_media(numbers)
    for _ in range(2):
        assert torch.equal(model.embed_media(numbers), expected)
    assert CALLS["forward"] == 1 + 2  # without a cache; once and for the check with one


def test_precision_and_strides_are_kept(tmp_path: Path) -> None:
    files = write_files(tmp_path / "files", 4)
    for dtype in (torch.float32, torch.bfloat16):
        found = []
        for _ in range(2):
            model = build_model(FeatureCache(tmp_path / "cache")).to(dtype)
            collator, one = model.collator(), model.input_modules()["numbers"]
            items = [collator.prepare(magma.Media("numbers", file), "a file")[0] for file in files]
            stacked = collator.stack("numbers", items)
            found.append(one.features(stacked.map(lambda x, dtype=dtype: x.to(dtype), lambda x: x)))
        assert found[0].values.dtype == found[1].values.dtype == dtype
        assert found[0].values.stride() == found[1].values.stride() != (18, 6, 1)
        assert torch.equal(found[0].values, found[1].values)
        assert torch.equal(found[0].lengths, found[1].lengths)


def _fill(folder: Path, files: list[Path], seed: int, results: Any) -> None:
    torch.set_num_threads(1)
    results.put([epoch(build_model(FeatureCache(folder)), files, order) for order in (seed, 0)][1])


def test_processes_share_a_folder(tmp_path: Path) -> None:
    files, folder = write_files(tmp_path / "files"), tmp_path / "cache"
    expected = epoch(build_model(None), files)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_fill, args=(folder, files, seed, results)) for seed in range(3)]
    for process in processes:
        process.start()
    assert [results.get(timeout=120) for _ in processes] == [expected] * 3
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert [path for path in folder.rglob("*") if path.name.endswith(".partial")] == []


def test_the_oldest_entries_are_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files, folder = write_files(tmp_path / "files", 24), tmp_path / "cache"
    first = epoch(build_model(FeatureCache(folder)), files[:4])
    size = entries(folder)[0].stat().st_size
    old = entries(folder)
    for path in old:
        os.utime(path, (1, 1))
    limited = build_model(FeatureCache(folder, max_bytes=10 * size))
    epoch(limited, files[4:12])
    assert "larger max_bytes" not in caplog.text
    assert sum(path.stat().st_size for path in entries(folder)) <= 11 * size
    assert not any(path.exists() for path in old[:2])
    epoch(limited, files)
    assert caplog.text.count("larger max_bytes") == 1
    assert epoch(limited, files[:4]) == first


def test_a_folder_that_cannot_be_written_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = write_files(tmp_path / "files")
    (tmp_path / "cache").write_text("a file")
    assert epoch(build_model(FeatureCache(tmp_path / "cache")), files) == epoch(build_model(None), files)
    assert caplog.text.count("cannot be written") == 1


class Neighbours(FileEncoder):
    """Features that depend on the other items of the batch."""

    def forward(self, x: Tensor) -> Features:
        values, lengths = super().forward(x)
        return Features(values + values.mean(0), lengths)


class Drawing(FileEncoder):
    """Features that differ from one call to the next."""

    def forward(self, x: Tensor) -> Features:
        values, lengths = super().forward(x)
        return Features(values + torch.rand(()), lengths)


class Undeclared(FileEncoder):
    """Augmentation that `augments` does not declare."""

    def prepare(self, raw: Any, rng: random.Random | None = None) -> Tensor:
        return super().prepare(raw) + (rng.uniform(0, 0.1) if rng else 0)


def test_encoders_whose_features_differ_are_refused(tmp_path: Path) -> None:
    files = write_files(tmp_path / "files")
    for encoder, encode_by, message in (
        (Neighbours, "batch", 'depend on the other media.*or cache = { encode_by = "item" }'),
        (Drawing, "batch", "differ from one call to the next"),
        (Drawing, "item", "differ from one call to the next.*allowed: no cache$"),
        (Undeclared, "batch", "random changes"),
    ):
        cache = FeatureCache(tmp_path / "cache", encode_by=encode_by)  # type: ignore[arg-type]
        with pytest.raises(PartError, match=message):
            epoch(build_model(cache, encoder(encoder.Config())), files)
        assert entries(tmp_path / "cache") == []
    single = FeatureCache(tmp_path / "cache", encode_by="item")
    epoch(build_model(single, Neighbours(Neighbours.Config())), files)
    model = build_model(single, Undeclared(Undeclared.Config()))
    model.embed_media(files)  # without training, nothing is drawn
    with pytest.raises(PartError, match="random changes"):
        epoch(model, files)


def test_a_trained_encoder_is_refused(tmp_path: Path) -> None:
    model = build_model(FeatureCache(tmp_path / "cache"))
    model.input_modules()["numbers"].encoder.frozen = False
    with pytest.raises(PartError, match=r"inputs.numbers.cache: the encoder numbers is trained"):
        model.collator()


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MAGMA_CACHE", str(tmp_path))
    assert FeatureCache().store.folder == tmp_path / "features"
    monkeypatch.delenv("MAGMA_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert FeatureCache().store.folder == tmp_path / "xdg" / "magma" / "features"
