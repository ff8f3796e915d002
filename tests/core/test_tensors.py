"""Files of tensors that others wrote: what is read, what is refused, and that nothing damaged or alive gets through."""

from __future__ import annotations

import os
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import magma
from magma import CheckpointError

STATE = {
    "a": torch.arange(300.0).view(20, 15),
    "b": torch.arange(40, dtype=torch.int64),
    "c": torch.randn(7, 5, 3, generator=torch.Generator().manual_seed(0)).half(),
    "d": torch.tensor(2.5),
    "e": torch.zeros(0, 4),
}
OLD = {"_use_new_zipfile_serialization": False}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and torch.equal(one[n], other[n]) and one[n].is_contiguous() for n in one
    )


@pytest.mark.parametrize("kind", ["safetensors", "zip", "old"])
def test_tensors_come_back(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pt")
    save_file(STATE, path) if kind == "safetensors" else torch.save(STATE, path, **(OLD if kind == "old" else {}))
    found, top = magma.read_tensors(path)
    assert same(found, STATE)
    assert top == {}
    assert not any(t.requires_grad for t in found.values())


@pytest.mark.parametrize("how", [{}, OLD])
def test_tensors_may_stand_a_level_below(how: dict[str, bool], tmp_path: Path) -> None:
    parameters = {name: torch.nn.Parameter(t) if t.is_floating_point() else t for name, t in STATE.items()}
    torch.save({"state_dict": parameters, "epoch": 3}, tmp_path / "x.pt", **how)
    found, top = magma.read_tensors(str(tmp_path / "x.pt"), "state_dict")
    assert same(found, STATE)
    assert not any(t.requires_grad for t in found.values())
    assert top["epoch"] == 3
    with pytest.raises(CheckpointError, match="'state_dict' is a dict; allowed: tensors by name"):
        magma.read_tensors(tmp_path / "x.pt")
    torch.save(STATE, tmp_path / "flat.pt", **how)
    found, top = magma.read_tensors(tmp_path / "flat.pt", "state_dict")
    assert (same(found, STATE), top) == (True, {})


def test_views_are_taken_where_each_element_stands_once(tmp_path: Path) -> None:
    one = torch.arange(24.0).view(2, 3, 4)
    views = {
        "turned": one.permute(2, 0, 1),
        "last": one.to(memory_format=torch.contiguous_format)[1],
        "rows": one[0, 1:],
    }
    channels_last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    torch.save(views | {"images": channels_last}, tmp_path / "x.pt")
    assert same(magma.read_tensors(tmp_path / "x.pt")[0], views | {"images": channels_last})


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2).expand(3, 2),
        torch.arange(10.0)[::2],
        torch.arange(6.0).as_strided((4, 3), (1, 1)),
        torch.eye(3).to_sparse(),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2, device="meta"),
    ],
)
def test_other_tensors_are_not(tensor: Tensor, tmp_path: Path) -> None:
    torch.save({"x": tensor}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt: x is not a plain dense tensor|x\.pt is refused"):
        magma.read_tensors(tmp_path / "x.pt")


def test_what_is_no_file_of_tensors_is_explained(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    torch.save({3: torch.zeros(2)}, tmp_path / "number.pt")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "empty.safetensors").touch()
    with zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"0" * 1000)
    for name, message in {
        "list.pt": "holds a list; allowed: a dictionary of tensors",
        "number.pt": "3 is a Tensor; allowed: tensors by name",
        "empty.pt": "not an archive of torch.save, or is incomplete",
        "empty.safetensors": "cannot be read",
        "small.pt": "is a compressed archive",
        "none.pt": "does not exist; allowed: a .safetensors file, or a torch file of tensors",
        ".": "is a folder",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            magma.read_tensors(tmp_path / name)


class _Runs:
    def __reduce__(self) -> Any:
        return os.mkdir, ("was_here",)


@pytest.mark.parametrize("how", [{}, OLD])
def test_nothing_is_executed(how: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({**STATE, "x": _Runs()}, "bad.pt", **how)
    with pytest.raises(CheckpointError, match=r"bad.pt is refused: .*contains .*mkdir.*nothing was executed"):
        magma.read_tensors("bad.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pt"]


def test_a_damaged_archive_is_refused_although_its_sums_are_right(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    for victim in [name for name, data in entries.items() if "/data/" in name and data]:
        for change in (lambda data: data[:-1], lambda data: data + b"\0", lambda _: b""):
            with zipfile.ZipFile(tmp_path / "changed.pt", "w") as archive:
                for name, data in entries.items():
                    archive.writestr(name, change(data) if name == victim else data)
            with pytest.raises(CheckpointError, match="do not have the stored sizes|is refused"):
                magma.read_tensors(tmp_path / "changed.pt")


def test_bits_are_compared_with_the_sums(tmp_path: Path) -> None:
    """Refused, or nothing was lost: an archive has bytes that say nothing."""
    torch.save(STATE, tmp_path / "x.pt")
    original, draw, refused = (tmp_path / "x.pt").read_bytes(), random.Random(0), 0
    for _ in range(200):
        data = bytearray(original)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        (tmp_path / "damaged.pt").write_bytes(data[: draw.randrange(len(data))] if draw.random() < 0.2 else data)
        try:
            assert same(magma.read_tensors(tmp_path / "damaged.pt")[0], STATE)
        except CheckpointError:
            refused += 1
    assert refused > 100


def test_a_file_of_torchs_first_format_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.pt", **OLD)
    original = (tmp_path / "x.pt").read_bytes()
    for end in range(len(original) - 1, 0, -29):
        (tmp_path / "cut.pt").write_bytes(original[:end])
        with pytest.raises(CheckpointError):
            magma.read_tensors(tmp_path / "cut.pt")
