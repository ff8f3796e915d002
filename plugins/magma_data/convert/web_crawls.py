"""Published data sets of web images: lists of captions and URLs, or their download by img2dataset."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from magma import InputError

from .annotations import SizedItems, caption_items
from .base_set import OfficialSet, Options
from .images import WebImage
from .img2dataset import img2dataset, required_img2dataset_files
from .required_files import SplitFiles, required_file
from .shards import DroppedRow, Item
from .web_rows import SIZE_COLUMNS, find_reason_to_drop, read_parquet, to_number

_MIME = ("image/jpeg", "image/png", "image/webp", "image/gif")


class _UrlList(OfficialSet):
    """Captions and URLs in two columns, without a header."""

    kind = "captions"
    columns: ClassVar[tuple[str, str]]

    def read(self, split: str, found: SplitFiles, options: Options) -> Iterable[Item]:
        """One record per line, or per sample of img2dataset."""
        paths = [path for one, paths in found.paths.items() if one.split == split for path in paths]
        if found.layouts == ["img2dataset"]:
            return img2dataset(paths, options)
        return SizedItems(self._read_lines(paths[0]), _count_lines(paths[0]))

    def _read_lines(self, path: Path) -> Iterator[Item]:
        with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                cells = line.rstrip("\r\n").split("\t")
                if number == 1 and sorted(cells) == ["caption", "url"]:  # a header, added for img2dataset
                    continue
                if len(cells) != 2:
                    yield DroppedRow(str(number), "not two columns")
                    continue
                row = dict(zip(self.columns, cells, strict=True))
                yield from caption_items(
                    str(number), WebImage(row["url"].strip()), [row["caption"]], url=row["url"].strip()
                )


class Cc3m(_UrlList):
    """Conceptual Captions: 3.3 M web images with a cleaned alt text."""

    name = "cc3m"
    home = "https://ai.google.com/research/ConceptualCaptions/download"
    columns = ("caption", "url")
    optional = frozenset({"val"})
    required_files = (
        required_file("Train_GCC-training.tsv|Train-GCC-training.tsv|GCC-training.tsv", "train", home, "tsv"),
        required_file(
            "Validation_GCC-1.1.0-Validation.tsv|Validation-GCC-1.1.0-Validation.tsv|GCC-1.1.0-Validation.tsv",
            "val",
            home,
            "tsv",
        ),
        *map(required_img2dataset_files, ("train", "val")),
    )


class Cc12m(_UrlList):
    """Conceptual 12M: 12 M web images with their alt text."""

    name = "cc12m"
    home = "https://github.com/google-research-datasets/conceptual-12m"
    columns = ("url", "caption")
    required_files = (required_file("cc12m.tsv", "train", home, "tsv"), required_img2dataset_files("train"))


class Laion(OfficialSet):
    """LAION: web images with their alt text and its CLIP similarity to the image."""

    name = "laion"
    kind = "captions"
    home = "https://laion.ai/blog/laion-400-open-dataset"
    supported_options = frozenset({"min_similarity"})
    required_files = (
        required_img2dataset_files("train"),
        required_file("*.parquet", "train", home, "parquet", r"(?:.*/)?(?!\d{5,}\.parquet$)[^/]*\.parquet"),
    )

    def read(self, split: str, found: SplitFiles, options: Options) -> Iterable[Item]:
        """One record per sample of img2dataset, or per row of the published lists, whose images are downloaded."""
        paths = found.files()
        if found.layouts == ["img2dataset"]:
            return img2dataset(paths, options)
        import pyarrow.parquet

        count = sum(pyarrow.parquet.ParquetFile(path).metadata.num_rows for path in paths)
        return SizedItems(chain.from_iterable(self._read_rows(path, options) for path in paths), count)

    @staticmethod
    def _read_rows(path: Path, options: Options) -> Iterator[Item]:
        for number, row in enumerate(read_parquet(path, ("url", "text", "caption", "similarity", *SIZE_COLUMNS))):
            url, text = row["url"], row["text"] if "text" in row else row["caption"]
            identity = f"{path.name}:{number}"
            if reason := find_reason_to_drop(row, options, f"{path}: its columns"):
                yield DroppedRow(identity, reason)
            else:
                yield from caption_items(
                    identity, WebImage(url or ""), [text], url=url, similarity=to_number(row, "similarity")
                )


class Wit(OfficialSet):
    """WIT: images of Wikipedia, with the caption, else the alt text, else the description on Commons."""

    name = "wit"
    kind = "captions"
    home = "https://github.com/google-research-datasets/wit/blob/main/DATA.md"
    supported_options = frozenset({"language"})
    optional = frozenset({"val", "test"})
    required_files = (
        required_file("wit_v1.train.all-?????-of-?????.tsv.gz|wit_v1.train.all-1percent_sample.tsv.gz", "train", home),
        required_file("wit_v1.val.all-?????-of-?????.tsv.gz", "val", home),
        required_file("wit_v1.test.all-?????-of-?????.tsv.gz", "test", home),
    )
    texts = ("caption_reference_description", "caption_alt_text_description", "caption_attribution_description")

    def read(self, split: str, found: SplitFiles, options: Options) -> Iterable[Item]:
        """One record per row, an image on a page; rows of other languages are skipped."""
        paths = [path for one, paths in found.paths.items() if one.split == split for path in paths]
        return chain.from_iterable(self._read_rows(path, options) for path in paths)

    def _read_rows(self, path: Path, options: Options) -> Iterator[Item]:
        csv.field_size_limit(2**31 - 1)  # cells may contain sections of articles
        with gzip.open(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as lines:
            try:
                for number, row in enumerate(csv.DictReader(lines, delimiter="\t"), 1):
                    if row["language"] == (options.language or "en"):
                        yield from self._convert_row(f"{path.name.removesuffix('.tsv.gz')}:{number}", row, options)
            except (EOFError, gzip.BadGzipFile, csv.Error) as error:
                raise InputError(f"{path}: {error}; perhaps the download was incomplete") from error

    def _convert_row(self, identity: str, row: Mapping[str, Any], options: Options) -> Iterator[Item]:
        mime = row["mime_type"]
        svg = f"format {mime}" if mime and mime not in _MIME else ""
        if reason := svg or find_reason_to_drop(row, options, identity):
            yield DroppedRow(identity, reason)
            return
        first = next((text for name in self.texts if (text := row[name]) and text.strip()), "")
        yield from caption_items(identity, WebImage(row["image_url"]), [first], url=row["image_url"])


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(piece.count(b"\n") for piece in iter(lambda: file.read(2**20), b""))
