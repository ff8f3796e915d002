"""The format of a folder of shards: its index, and the JSON of each sample."""

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
    """Base of samples: data sets may add fields."""

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
    """The JSON of a sample of captions; the list is empty if the captions are not published."""

    id: str
    captions: list[str]


class VqaQuestion(_OpenModel):
    """A question in a `VqaSample`."""

    id: str
    question: str
    answers: list[str]


class VqaSample(_OpenModel):
    """The JSON of a sample of questions."""

    id: str
    questions: list[VqaQuestion]


class LabelledStatement(_OpenModel):
    """A statement in a `LabelledSample`."""

    id: str
    text: str
    label: str


class LabelledSample(_OpenModel):
    """The JSON of a sample of labelled statements."""

    id: str
    statements: list[LabelledStatement]


SAMPLE_TYPES: dict[str, type[_OpenModel]] = {"captions": CaptionSample, "vqa": VqaSample, "labelled": LabelledSample}


def read_index(folder: Path) -> Index:
    """The index of a folder. Raises `InputError` if it is missing or invalid."""
    path = folder / INDEX
    if not path.is_file():
        raise InputError(
            f"{folder} has no {INDEX}; allowed: a folder that `magma data convert` completed. The same command resumes "
            "an unfinished conversion"
        )
    try:
        return Index.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(f"{path}: {format_errors(error)}") from error


def format_errors(error: ValidationError) -> str:
    """All errors of pydantic, in one line."""
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
