"""Reads the output of img2dataset: 00000.tar or 00000/, 00000.parquet, 00000_stats.json."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from magma import InputError

from ..formats import iter_members, split_member
from .annotations import SizedItems, caption_items, load_json
from .base_set import Options
from .images import ImageSource, LocalImage, TarImage
from .required_files import RequiredFile, required_file
from .shards import DroppedRow, Item
from .web_rows import SIZE_COLUMNS, find_reason_to_drop, read_parquet, to_number

_IMG2DATASET = "https://github.com/rom1504/img2dataset, output_format webdataset or files"
_VAL = r"(?:val|valid|validation)"
_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif")
_SHARD = r"\d{5,}(?:_stats\.json|\.tar)"


def required_img2dataset_files(split: str) -> RequiredFile:
    """The files of img2dataset for a split; those of validation are below a folder with such a name."""
    if split == "val":
        return required_file(
            "val/00000_stats.json", split, _IMG2DATASET, "img2dataset", rf"(?:.*/)?{_VAL}/(?:.*/)?{_SHARD}"
        )
    return required_file(
        "00000_stats.json", split, _IMG2DATASET, "img2dataset", rf"(?!(?:.*/)?{_VAL}/)(?:.*/)?{_SHARD}"
    )


def img2dataset(paths: Iterable[Path], options: Options) -> Iterable[Item]:
    """All samples, shard by shard. Failed downloads are dropped with the reason of img2dataset."""
    folders: dict[Path, list[str]] = {}
    for path in paths:
        folders.setdefault(path.parent, []).append(path.name)
    bases: list[Path] = []
    count = 0
    for folder, names in sorted(folders.items()):
        stats = sorted(name for name in names if name.endswith("_stats.json"))
        # A shard without statistics is incomplete, unless all statistics were deleted.
        bases += [folder / name.split("_")[0].removesuffix(".tar") for name in (stats or sorted(names))]
        count += sum(load_json(folder / name).get("successes", 0) for name in stats)
    return SizedItems(chain.from_iterable(_read_shard(base, options) for base in bases), count)


def _read_shard(base: Path, options: Options) -> Iterator[Item]:
    """The samples of one shard, and its failed rows."""
    tar = base.with_name(f"{base.name}.tar")
    if not tar.is_file() and not base.is_dir():
        raise InputError(f"{base}: there is neither {tar.name} nor a folder {base.name}/; allowed: {_IMG2DATASET}")
    table = base.with_name(f"{base.name}.parquet")
    known: dict[str, dict[str, Any]] = {}
    if table.is_file():
        for row in read_parquet(table, ("key", "status", "similarity", *SIZE_COLUMNS)):
            if row.get("status", "success") != "success":
                yield DroppedRow(str(row["key"]), f"img2dataset: {row['status']}")
            else:
                known[str(row["key"])] = row
    for key, picture, fields in _read_checked(tar if tar.is_file() else base):
        row = {**known.get(key.rpartition("/")[2], {}), **{name.lower(): value for name, value in fields.items()}}
        if picture is None:
            yield DroppedRow(key, "missing image")
        elif reason := find_reason_to_drop(row, options, f"{base}: its fields"):
            yield DroppedRow(key, reason)
        else:
            extra = {"url": row.get("url"), "similarity": to_number(row, "similarity")}
            yield from caption_items(key, picture, [row.get("caption", row.get("text"))], **extra)


Sample = tuple[str, ImageSource | None, dict[str, Any]]


def _read_checked(path: Path) -> Iterator[Sample]:
    """The samples of a tar or a folder. Raises `InputError` if their number differs from img2dataset's statistics."""
    samples = list(_read_tar(path) if path.suffix == ".tar" else _read_folder(path))
    stats = path.with_name(f"{path.stem}_stats.json")
    written = load_json(stats).get("successes") if stats.is_file() else None
    if isinstance(written, int) and written != len(samples):
        raise InputError(
            f"{path}: {len(samples)} samples, but {stats.name} has {written} successes; allowed: a shard with its "
            "original statistics: download it again, or correct them"
        )
    yield from samples


def _read_tar(path: Path) -> Iterator[Sample]:
    """Every sample of a tar, whose members need not be adjacent. Only small members are read."""
    samples: dict[str, dict[str, ImageSource | bytes]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in iter_members(tar):
                key, ending = split_member(member.name)
                sample = samples.setdefault(key, {})
                if ending in sample:
                    raise InputError(f"{path}: two members have the name {member.name}; allowed: one of each name")
                kind = ending.rpartition(".")[2]
                if kind in ("json", "txt"):
                    opened = tar.extractfile(member)
                    assert opened is not None
                    sample[ending] = opened.read()
                elif kind in _ENDINGS:
                    sample[ending] = TarImage(str(path), member.offset_data, member.size)
    except tarfile.TarError as error:
        raise InputError(f"{path}: {error}; perhaps img2dataset was interrupted") from error
    for key, sample in samples.items():
        yield _make_sample(str(path), key, sample)


def _read_folder(folder: Path) -> Iterator[Sample]:
    """Every sample of a folder."""
    names = sorted(name for name in os.listdir(folder) if re.fullmatch(r"\d+\.\w+", name))  # noqa: PTH208 - names only
    for key, group in groupby(names, lambda name: name.partition(".")[0]):
        sample: dict[str, ImageSource | bytes] = {}
        for name in group:
            ending = name.rpartition(".")[2].lower()
            if ending in ("json", "txt"):
                sample[ending] = (folder / name).read_bytes()
            elif ending in _ENDINGS:
                sample[ending] = LocalImage((str(folder / name),))
        yield _make_sample(str(folder), key, sample)


def _make_sample(where: str, key: str, members: Mapping[str, ImageSource | bytes]) -> Sample:
    """A sample from its members, which are given by suffix."""
    picture, fields = None, dict[str, Any]()
    for ending, member in members.items():
        if isinstance(member, bytes):
            _add_text(fields, f"{where} {key}.{ending}", ending.rpartition(".")[2], member)
        elif picture is not None:
            raise InputError(f"{where} {key}: it has several images; allowed: one")
        else:
            picture = member
    return key, picture, fields


def _add_text(fields: dict[str, Any], where: str, ending: str, data: bytes) -> None:
    """Add the fields of a JSON file, or a text file as `text`, which is the caption if the JSON has none."""
    if ending == "txt":
        fields.setdefault("text", data.decode("utf-8-sig", errors="replace"))
        return
    try:
        fields.update(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {error}") from error
