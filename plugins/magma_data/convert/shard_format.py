"""What a folder of shards must look like: its index, and the JSON of each sample."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from magma import InputError

from ..formats import split_member
from .conversion import INDEX
from .shards import SampleKind

IMAGE_ENDINGS = ("jpg", "png", "webp", "gif")


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _OpenModel(BaseModel):
    """Sets add fields of their own."""

    model_config = ConfigDict(extra="allow", strict=True)


class ShardEntry(_StrictModel):
    """A shard in the index."""

    file: str
    samples: int
    rows: int
    sha256: str


class SplitEntry(_StrictModel):
    """A split in the index."""

    samples: int
    rows: int
    shards: list[ShardEntry]


class Index(_StrictModel):
    """`index.json`."""

    format: Literal[1]
    name: str
    kind: SampleKind
    splits: dict[str, SplitEntry]


class CaptionSample(_OpenModel):
    """The JSON of a sample of captions; there may be none in a split whose captions are kept from the public."""

    id: str
    captions: list[str]


class VqaQuestion(_OpenModel):
    """A question of a sample of `vqa`."""

    id: str
    question: str
    answers: list[str]


class VqaSample(_OpenModel):
    """The JSON of a sample of `vqa`."""

    id: str
    questions: list[VqaQuestion]


class LabelledStatement(_OpenModel):
    """A statement of a labelled sample."""

    id: str
    text: str
    label: str


class LabelledSample(_OpenModel):
    """The JSON of a labelled sample."""

    id: str
    statements: list[LabelledStatement]


SAMPLE_TYPES: dict[str, type[_OpenModel]] = {"captions": CaptionSample, "vqa": VqaSample, "labelled": LabelledSample}


def read_index(folder: Path) -> Index:
    """What a folder says that it holds."""
    path = folder / INDEX
    if not path.is_file():
        raise InputError(
            f"{folder} has no {INDEX}; allowed: a folder that `magma data convert` has finished, and one that it has "
            "not goes on with the same command"
        )
    try:
        return Index.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(f"{path}: {format_errors(error)}") from error


def format_errors(error: ValidationError) -> str:
    """All mistakes that pydantic found, in one line."""
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())


def read_samples(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and files of each sample of a shard."""
    with tarfile.open(path, "r:") as tar:

        def iter_members() -> Iterator[tuple[str, str, bytes]]:
            for member in tar:
                opened = tar.extractfile(member)
                key, ending = split_member(member.name)
                yield key, ending, opened.read() if opened else b""

        for key, group in groupby(iter_members(), lambda one: one[0]):
            yield key, {ending: data for _, ending, data in group}
