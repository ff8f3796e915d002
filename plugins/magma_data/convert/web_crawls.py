"""Data sets whose images lie on the web: lists of captions and URLs, or what img2dataset fetched of such lists."""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, groupby
from pathlib import Path
from typing import Any, ClassVar

from magma import InputError

from ..formats import members, split_member
from .base_set import Counted, Found, Need, OfficialSet, Options, captioned, load_json, need
from .images import AtUrl, InTar, OnDisk, Picture
from .shards import Drop, Item

_IMG2DATASET = "https://github.com/rom1504/img2dataset, output_format webdataset or files"
_VAL = r"(?:val|valid|validation)"
_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif")
_SHARD = r"\d{5,}(?:_stats\.json|\.tar)"
_MIME = ("image/jpeg", "image/png", "image/webp", "image/gif")


def fetched(split: str) -> Need:
    """What img2dataset leaves of a split; that of validation lies below a folder that says so."""
    if split == "val":
        return need("val/00000_stats.json", split, _IMG2DATASET, "img2dataset", rf"(?:.*/)?{_VAL}/(?:.*/)?{_SHARD}")
    return need("00000_stats.json", split, _IMG2DATASET, "img2dataset", rf"(?!(?:.*/)?{_VAL}/)(?:.*/)?{_SHARD}")


class _Listed(OfficialSet):
    """Captions and URLs in two columns without a head."""

    kind = "captions"
    columns: ClassVar[tuple[str, str]]

    def read(self, split: str, found: Found, options: Options) -> Iterable[Item]:
        """Line by line, or shard by shard of img2dataset."""
        paths = [path for one, paths in found.paths.items() if one.split == split for path in paths]
        if found.layouts == ["img2dataset"]:
            return img2dataset(paths, options)
        return Counted(self._lines(paths[0]), _count_lines(paths[0]))

    def _lines(self, path: Path) -> Iterator[Item]:
        with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                cells = line.rstrip("\r\n").split("\t")
                if number == 1 and sorted(cells) == ["caption", "url"]:  # written by hand, for img2dataset
                    continue
                if len(cells) != 2:
                    yield Drop(str(number), "not two columns")
                    continue
                row = dict(zip(self.columns, cells, strict=True))
                yield from captioned(str(number), AtUrl(row["url"].strip()), [row["caption"]], url=row["url"].strip())


class Cc3m(_Listed):
    """Conceptual Captions: 3.3 M images of the web with a cleaned alt text."""

    name = "cc3m"
    home = "https://ai.google.com/research/ConceptualCaptions/download"
    columns = ("caption", "url")
    optional = frozenset({"val"})
    needs = (
        need("Train_GCC-training.tsv|Train-GCC-training.tsv|GCC-training.tsv", "train", home, "tsv"),
        need(
            "Validation_GCC-1.1.0-Validation.tsv|Validation-GCC-1.1.0-Validation.tsv|GCC-1.1.0-Validation.tsv",
            "val",
            home,
            "tsv",
        ),
        *map(fetched, ("train", "val")),
    )


class Cc12m(_Listed):
    """Conceptual 12M: 12 M images of the web with their alt text."""

    name = "cc12m"
    home = "https://github.com/google-research-datasets/conceptual-12m"
    columns = ("url", "caption")
    needs = (need("cc12m.tsv", "train", home, "tsv"), fetched("train"))


class Laion(OfficialSet):
    """LAION: images of the web with their alt text and its CLIP similarity to the image."""

    name = "laion"
    kind = "captions"
    home = "https://laion.ai/blog/laion-400-open-dataset"
    takes = frozenset({"min_similarity"})
    needs = (
        fetched("train"),
        need("*.parquet", "train", home, "parquet", r"(?:.*/)?(?!\d{5,}\.parquet$)[^/]*\.parquet"),
    )

    def read(self, split: str, found: Found, options: Options) -> Iterable[Item]:
        """Shard by shard of img2dataset, or row by row of the published lists, whose images are fetched."""
        paths = found.files()
        if found.layouts == ["img2dataset"]:
            return img2dataset(paths, options)
        import pyarrow.parquet

        count = sum(pyarrow.parquet.ParquetFile(path).metadata.num_rows for path in paths)
        return Counted(chain.from_iterable(self._rows(path, options) for path in paths), count)

    @staticmethod
    def _rows(path: Path, options: Options) -> Iterator[Item]:
        for number, row in enumerate(_parquet(path, ("url", "text", "caption", "similarity", *_SIZES))):
            url, text = row["url"], row["text"] if "text" in row else row["caption"]
            identity = f"{path.name}:{number}"
            if reason := _refused(row, options, f"{path}: its columns"):
                yield Drop(identity, reason)
            else:
                yield from captioned(identity, AtUrl(url or ""), [text], url=url, similarity=_number(row, "similarity"))


class Wit(OfficialSet):
    """WIT: images of Wikipedia; the caption beside the image, else its alt text, else its description on Commons."""

    name = "wit"
    kind = "captions"
    home = "https://github.com/google-research-datasets/wit/blob/main/DATA.md"
    takes = frozenset({"language"})
    optional = frozenset({"val", "test"})
    needs = (
        need("wit_v1.train.all-?????-of-?????.tsv.gz|wit_v1.train.all-1percent_sample.tsv.gz", "train", home),
        need("wit_v1.val.all-?????-of-?????.tsv.gz", "val", home),
        need("wit_v1.test.all-?????-of-?????.tsv.gz", "test", home),
    )
    texts = ("caption_reference_description", "caption_alt_text_description", "caption_attribution_description")

    def read(self, split: str, found: Found, options: Options) -> Iterable[Item]:
        """A row is an image on a page; rows of other languages are not part of what is converted."""
        paths = [path for one, paths in found.paths.items() if one.split == split for path in paths]
        return chain.from_iterable(self._rows(path, options) for path in paths)

    def _rows(self, path: Path, options: Options) -> Iterator[Item]:
        csv.field_size_limit(2**31 - 1)  # whole sections of articles
        with gzip.open(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as lines:
            try:
                for number, row in enumerate(csv.DictReader(lines, delimiter="\t"), 1):
                    if row["language"] == (options.language or "en"):
                        yield from self._row(f"{path.name.removesuffix('.tsv.gz')}:{number}", row, options)
            except (EOFError, gzip.BadGzipFile, csv.Error) as error:
                raise InputError(f"{path}: {error}; perhaps it was not fetched to its end") from error

    def _row(self, identity: str, row: Mapping[str, Any], options: Options) -> Iterator[Item]:
        mime = row["mime_type"]
        svg = f"format {mime}" if mime and mime not in _MIME else ""
        if reason := svg or _refused(row, options, identity):
            yield Drop(identity, reason)
            return
        first = next((text for name in self.texts if (text := row[name]) and text.strip()), "")
        yield from captioned(identity, AtUrl(row["image_url"]), [first], url=row["image_url"])


# What img2dataset writes: 00000.tar or 00000/, 00000.parquet, 00000_stats.json


def img2dataset(paths: Iterable[Path], options: Options) -> Iterable[Item]:
    """Shard by shard; what it could not fetch is left out with the reason that it gives."""
    folders: dict[Path, list[str]] = {}
    for path in paths:
        folders.setdefault(path.parent, []).append(path.name)
    bases: list[Path] = []
    count = 0
    for folder, names in sorted(folders.items()):
        stats = sorted(name for name in names if name.endswith("_stats.json"))
        # A shard without figures is one that img2dataset was killed in, unless someone deleted them all.
        bases += [folder / name.split("_")[0].removesuffix(".tar") for name in (stats or sorted(names))]
        count += sum(load_json(folder / name).get("successes", 0) for name in stats)
    return Counted(chain.from_iterable(_shard(base, options) for base in bases), count)


def _shard(base: Path, options: Options) -> Iterator[Item]:
    """The samples of one shard, and the rows that have none."""
    tar = base.with_name(f"{base.name}.tar")
    if not tar.is_file() and not base.is_dir():
        raise InputError(f"{base}: neither {tar.name} nor a folder {base.name}/; allowed: {_IMG2DATASET}")
    table = base.with_name(f"{base.name}.parquet")
    known: dict[str, dict[str, Any]] = {}
    if table.is_file():
        for row in _parquet(table, ("key", "status", "similarity", *_SIZES)):
            if row.get("status", "success") != "success":
                yield Drop(str(row["key"]), f"img2dataset: {row['status']}")
            else:
                known[str(row["key"])] = row
    for key, picture, said in _as_counted(tar if tar.is_file() else base):
        row = {**known.get(key.rpartition("/")[2], {}), **{name.lower(): value for name, value in said.items()}}
        if picture is None:
            yield Drop(key, "missing image")
        elif reason := _refused(row, options, f"{base}: its fields"):
            yield Drop(key, reason)
        else:
            extra = {"url": row.get("url"), "similarity": _number(row, "similarity")}
            yield from captioned(key, picture, [row.get("caption", row.get("text"))], **extra)


Sample = tuple[str, Picture | None, dict[str, Any]]


def _as_counted(path: Path) -> Iterator[Sample]:
    """The samples of a tar or a folder. Raises `InputError` where they are not as many as img2dataset counted."""
    samples = list(_in_tar(path) if path.suffix == ".tar" else _in_folder(path))
    stats = path.with_name(f"{path.stem}_stats.json")
    written = load_json(stats).get("successes") if stats.is_file() else None
    if isinstance(written, int) and written != len(samples):
        raise InputError(
            f"{path}: {len(samples)} samples, but {stats.name} counts {written} successes; allowed: the shard as "
            "img2dataset wrote it, with its own figures: fetch it again, or correct them"
        )
    yield from samples


def _in_tar(path: Path) -> Iterator[Sample]:
    """Every sample, wherever in the shard its members are; only the small ones are read."""
    samples: dict[str, dict[str, Picture | bytes]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in members(tar):
                key, ending = split_member(member.name)
                sample = samples.setdefault(key, {})
                if ending in sample:
                    raise InputError(f"{path}: two members are called {member.name}; allowed: one of each name")
                kind = ending.rpartition(".")[2]
                if kind in ("json", "txt"):
                    opened = tar.extractfile(member)
                    assert opened is not None
                    sample[ending] = opened.read()
                elif kind in _ENDINGS:
                    sample[ending] = InTar(str(path), member.offset_data, member.size)
    except tarfile.TarError as error:
        raise InputError(f"{path}: {error}; perhaps img2dataset was ended while it wrote it") from error
    for key, sample in samples.items():
        yield _put_together(str(path), key, sample)


def _in_folder(folder: Path) -> Iterator[Sample]:
    """The same from the files of a folder."""
    names = sorted(name for name in os.listdir(folder) if re.fullmatch(r"\d+\.\w+", name))  # noqa: PTH208 - names only
    for key, group in groupby(names, lambda name: name.partition(".")[0]):
        sample: dict[str, Picture | bytes] = {}
        for name in group:
            ending = name.rpartition(".")[2].lower()
            if ending in ("json", "txt"):
                sample[ending] = (folder / name).read_bytes()
            elif ending in _ENDINGS:
                sample[ending] = OnDisk((str(folder / name),))
        yield _put_together(str(folder), key, sample)


def _put_together(where: str, key: str, members: Mapping[str, Picture | bytes]) -> Sample:
    """A sample of its members by their endings."""
    picture, said = None, dict[str, Any]()
    for ending, member in members.items():
        if isinstance(member, bytes):
            _tell(said, f"{where} {key}.{ending}", ending.rpartition(".")[2], member)
        elif picture is not None:
            raise InputError(f"{where} {key}: it has several images; allowed: one")
        else:
            picture = member
    return key, picture, said


def _tell(said: dict[str, Any], where: str, ending: str, data: bytes) -> None:
    """Add what a JSON or a text file says; the text stands for the caption where the JSON has none."""
    if ending == "txt":
        said.setdefault("text", data.decode("utf-8-sig", errors="replace"))
        return
    try:
        said.update(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: no JSON: {error}") from error


_SIZES = ("original_width", "original_height", "width", "height")


def _refused(row: Mapping[str, Any], options: Options, where: str) -> str:
    """Why a row is left out, unseen."""
    if options.min_similarity is not None:
        if "similarity" not in row:
            raise InputError(
                f"{where} are {', '.join(row)}: --min-similarity needs similarity, which img2dataset keeps with "
                "--save_additional_columns '[\"similarity\"]'"
            )
        similarity = _number(row, "similarity")
        if similarity is None or similarity < options.min_similarity:
            return f"similarity below {options.min_similarity:g}"
    if options.min_size:
        sides = [_number(row, f"original_{side}") or _number(row, side) for side in ("width", "height")]
        if any(side is not None and side < options.min_size for side in sides):
            return f"smaller than {options.min_size} pixels"
    return ""


def _number(row: Mapping[str, Any], key: str) -> float | None:
    """A figure; JSON and tables have several ways of saying that there is none."""
    try:
        value = float(row[key])
    except (KeyError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _parquet(path: Path, wanted: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Rows, a few thousand at a time, with the columns of these names in any case; names in lower case."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        columns = [name for name in table.schema_arrow.names if name.lower() in wanted]
        for batch in table.iter_batches(4096, columns=columns):
            for row in batch.to_pylist():
                yield {name.lower(): value for name, value in row.items()}
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: no parquet file, or a damaged one: {error}") from error


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(piece.count(b"\n") for piece in iter(lambda: file.read(2**20), b""))
