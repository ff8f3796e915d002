"""Checkpoints of the authors' code that are damaged, unknown or unsafe."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from magma_reference.convert import read, to_file, to_folder
from reference_files import HALF, State, same, state_of, without
from safetensors.torch import save_file
from torch import Tensor

import magma
from magma import CheckpointError


def put(name: str, tensor: Tensor) -> Callable[[State], None]:
    return lambda state: state.update({name: tensor})


H0 = "lm.transformer.h.0."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            put("lm.transformer.h.0.strange", torch.zeros(2)),
            r"1 tensors are unknown .*: lm\.transformer\.h\.0\.strange",
        ),
        (put("image_prefix.enc.attnpool.x", torch.zeros(2)), r"image_prefix\.enc\.attnpool\.x"),
        (without("h.1.ln_1.bias"), r"missing: lm\.transformer\.h\.1\.ln_1\.bias"),
        (without("lm_head.weight"), r"not a checkpoint of the authors' code: it has no tensor lm\.lm_head\.weight"),
        (without(".sin"), r"no tensor lm\.transformer\.h\.0\.attn\.attention\.sin"),
        (put(f"{H0}attn.attention.scale_attn", torch.tensor(2.3)), "heads of width 5, which does not divide"),
        (put(f"{H0}attn.attention.sin", torch.ones(32, 2)), "sin differs|sin is not the table"),
        (put("transformer.0.ln_1.bias", torch.ones(32)), "transformer.0.ln_1.bias differs from lm.transformer.h.0"),
        (put("lm.lm_head.bias", torch.full((96,), torch.nan)), "lm.lm_head.bias contains NaN or infinity"),
        (put("image_prefix.proj.weight", torch.zeros(32, 200)), r"projection.weight is \[32, 200\], the model's is"),
        (put("lm.transformer.h.7.ln_1.bias", torch.ones(32)), "transformer.h.N. are "),
    ],
)
def test_what_cannot_be_explained_is_named(change: Callable[[State], None], message: str, tmp_path: Path) -> None:
    state = state_of("seq_ff4")
    change(state)
    save_file(state, tmp_path / "in.safetensors")
    with pytest.raises(CheckpointError, match=message):
        to_folder(tmp_path / "in.safetensors", tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert not list(tmp_path.glob(".*"))


class _Runs:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("was_here",))


def test_a_transposed_weight_is_taken(tmp_path: Path) -> None:
    """Dense, but in another order than safetensors writes."""
    state = state_of("seq_ff4")
    turned = {name: t.t().contiguous().t() if t.ndim == 2 else t for name, t in state.items()}
    assert not turned["lm.lm_head.weight"].is_contiguous()
    torch.save(turned, tmp_path / "in.pt")
    to_folder(tmp_path / "in.pt", tmp_path / "model")
    to_file(tmp_path / "model", tmp_path / "out.safetensors")
    assert same(read(tmp_path / "out.safetensors")[0], state)


@pytest.mark.parametrize("level", ["top", "module", "tensor"])
def test_a_pickle_that_would_run_code_is_refused(level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bad: Any = _Runs()
    torch.save({"top": bad, "module": {"module": bad}, "tensor": {"module": {"lm": bad}}}[level], "bad.pt")
    with pytest.raises(CheckpointError, match=r"refused: .*contains .*mkdir.*nothing was executed"):
        to_folder("bad.pt", "model")
    Path("plain.pt").write_bytes(pickle.dumps(bad))
    with pytest.raises(CheckpointError, match="not an archive of torch.save"):
        to_folder("plain.pt", "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pt", "plain.pt"]


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    torch.save({"module": {"a": 3}}, tmp_path / "number.pt")
    torch.save({"a": torch.zeros(2).expand(3, 2)}, tmp_path / "view.pt")
    with zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", b"0" * 1000)
    for name, message in {
        "list.pt": "holds a list; allowed: a dictionary of tensors",
        "number.pt": "'a' is a int; allowed: tensors by name",
        "view.pt": "a is not a plain dense tensor",
        "small.pt": "compressed archive",
        "none.pt": "does not exist",
        "folder": "is a folder",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            to_folder(tmp_path / name, tmp_path / "model")


def mutated(original: bytes, draw: random.Random) -> bytes:
    """Bits flipped, bytes overwritten, a piece cut out, doubled or moved, or the end cut off."""
    data = bytearray(original)
    at, size = draw.randrange(len(data)), draw.choice([1, 8, 64, 4096])
    kind = draw.randrange(6)
    if kind == 0:
        data[at] ^= 1 << draw.randrange(8)
    elif kind == 1:
        data[at : at + size] = draw.randbytes(size)
    elif kind == 2:
        del data[at : at + size]
    elif kind == 3:
        data[at:at] = data[at : at + size]
    elif kind == 4:
        del data[at:]
    else:
        head = draw.randrange(2048)  # where pickles and headers are
        data[head] = draw.randrange(256)
    return bytes(data)


def test_no_damaged_file_gets_through(tmp_path: Path) -> None:
    """Refused, or so little damaged that every tensor is still what it was (an archive has bytes that say nothing)."""
    intact, _ = read(HALF)
    original, draw = HALF.read_bytes(), random.Random(0)
    refused = 0
    for i in range(300):
        (tmp_path / "damaged.pt").write_bytes(mutated(original, draw))
        try:
            found, _ = read(tmp_path / "damaged.pt")
        except CheckpointError:
            refused += 1
            continue
        assert same(found, intact), f"mutation {i} was read, and is another model"
    assert refused > 280


def test_an_archive_whose_sums_are_right_is_checked_too(tmp_path: Path) -> None:
    """Entries cut and pickles changed before the archive was written: a tensor may not read what is not its own."""
    intact, _ = read(HALF)
    draw = random.Random(3)
    with zipfile.ZipFile(HALF) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    numbers = [name for name, data in entries.items() if "/data/" in name and len(data) > 1]
    (pickled,) = [name for name in entries if name.endswith("data.pkl")]
    for i in range(200):
        changed = dict(entries)
        victim = pickled if i % 2 else draw.choice(numbers)
        data = entries[victim]
        if victim == pickled:
            at = draw.randrange(len(data))
            changed[victim] = data[:at] + draw.randbytes(1) + data[at + draw.choice([0, 1, 8]) :]
        else:
            changed[victim] = data[: draw.randrange(len(data))]
        with zipfile.ZipFile(tmp_path / "changed.pt", "w") as archive:
            for name, data in changed.items():
                archive.writestr(name, data)
        try:
            found, _ = read(tmp_path / "changed.pt")
            assert victim == pickled, f"mutation {i}: {victim} is cut short, and was read"
            if not same(found, intact):
                to_folder(tmp_path / "changed.pt", tmp_path / "model")
                pytest.fail(f"mutation {i} was imported, and is another model")
        except CheckpointError:
            continue


def test_a_damaged_plain_state_dict_is_refused_or_misses_nothing(tmp_path: Path) -> None:
    """safetensors has no sums over its data: its header and its length are what can be checked."""
    save_file(state_of("seq_ff4"), tmp_path / "in.safetensors")
    original, draw = (tmp_path / "in.safetensors").read_bytes(), random.Random(1)
    header = 8 + int.from_bytes(original[:8], "little")
    for _ in range(60):
        data = bytearray(original)
        data[draw.randrange(header)] ^= 1 << draw.randrange(8)
        (tmp_path / "damaged.safetensors").write_bytes(
            data if draw.random() < 0.7 else original[: -draw.randrange(1, 999)]
        )
        with pytest.raises(CheckpointError):
            to_folder(tmp_path / "damaged.safetensors", tmp_path / "model")


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    to_folder(HALF, tmp_path / "model")
    draw = random.Random(2)
    for file in ("trained.safetensors", "lm/model.safetensors"):
        path = tmp_path / "model" / file
        original = path.read_bytes()
        for _ in range(20):
            data = bytearray(original)
            data[draw.randrange(len(data) - 1)] ^= 1 << draw.randrange(8)
            path.write_bytes(data)
            with pytest.raises(magma.MagmaError):
                magma.load(tmp_path / "model")
        path.write_bytes(original)
    config = tmp_path / "model/lm/config.json"
    text = config.read_text()
    config.write_text(text.replace('"layer_norm_epsilon": 1e-05', '"layer_norm_epsilon": 1e-02'))
    assert config.read_text() != text
    with pytest.raises(CheckpointError, match=r"lm/config\.json was modified after saving"):
        magma.load(tmp_path / "model")
    config.write_text(text)
    assert magma.load(tmp_path / "model").dtype == torch.float16


def test_a_folder_may_be_moved(tmp_path: Path) -> None:
    to_folder(HALF, tmp_path / "model")
    (tmp_path / "model").rename(tmp_path / "moved")
    assert 'weights = "lm"' in (tmp_path / "moved/recipe.toml").read_text()
    assert magma.load(tmp_path / "moved").dtype == torch.float16
