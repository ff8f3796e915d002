"""Captioning tasks of the paper (section 4.1.2), with CIDEr and BLEU@4 of the official package."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import ClassVar

from pydantic import Field

from magma import LocalPath, Prediction, Text

from ..formats.row import Row
from ..metrics.caption_scores import NO_JAVA, cider_and_bleu, tokenize_captions
from .answers import reference_answers
from .rows import RowsConfig, RowsTask
from .shots import TaskItem


class _CaptionConfig(RowsConfig):
    """Keys of captioning tasks. The prompt follows the image and is not part of the caption (section 4.1.2)."""

    names = ("id", "caption", "captions", "domain")
    aliases: ClassVar = {"text": "caption"}
    prompt: str = "A picture of"
    """The prompt after the medium."""


class _CaptionTask(RowsTask):
    """Base class of captioning tasks: one caption per image, compared with all reference captions."""

    config: _CaptionConfig
    primary_metric = "cider"
    score_unit = "percent"
    max_tokens = 32
    stop = ("\n",)

    @classmethod
    def problems(cls, config: RowsConfig) -> list[str]:
        """Missing rows, and missing Java."""
        return [*super().problems(config), *([] if shutil.which("java") else [NO_JAVA])]

    def prompt(self, row: Row) -> Text:
        return Text.fill(self.config.prompt)

    def answers(self, row: Row) -> list[str]:
        return [text for text in row.texts("caption", "captions") if text]

    def read(self, split: str) -> Iterator[TaskItem]:
        """One item per image; rows with one caption each are merged."""
        for _, rows in groupby(super().read(split), lambda item: item.medium.value):
            first, *more = rows
            captions = (caption for one in (first, *more) for caption in one.answers)
            yield replace(first, answers=tuple(captions), group=first.group.removesuffix("-domain"))

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """`cider` and `bleu4`, times 100, and `cider_<group>`, `bleu4_<group>` for the images of each group."""
        sentences = [[prediction.text, *reference_answers(prediction.question)] for prediction in predictions]
        tokens = iter(tokenize_captions([sentence for some in sentences for sentence in some]))
        pairs = [(next(tokens), [next(tokens) for _ in some[1:]]) for some in sentences]
        found: dict[str, float] = {}
        for part, members in _group_indices(predictions).items():
            found |= {f"{name}{part}": value for name, value in cider_and_bleu([pairs[i] for i in members]).items()}
        return found

    def measures(self, predictions: Sequence[Prediction]) -> dict[str, str]:
        """A note for CIDEr of a single image: its inverse document frequencies are all 0."""
        single = [part for part, members in _group_indices(predictions).items() if len(members) == 1]
        return {f"cider{part}": "one image only: always 0, without meaning" for part in single}


def _group_indices(predictions: Sequence[Prediction]) -> dict[str, list[int]]:
    """Suffix of a score's name to indices of its predictions: "" for all, and one for each group."""
    parts: dict[str, list[int]] = defaultdict(list)
    for i, prediction in enumerate(predictions):
        parts[""].append(i)
        if group := prediction.question.group:
            parts[f"_{group}"].append(i)
    return parts


class CocoCaptionsTask(_CaptionTask):
    """COCO captioning: CIDEr and BLEU@4 of the official package, times 100; needs Java."""

    name = "coco_captions"

    class Config(_CaptionConfig):
        """Keys of the task. The default is Karpathy's test split; the official splits have `val`."""

        path: LocalPath = Field("coco_captions", validate_default=True)
        """A folder of rows in any layout of data sources, such as `magma data convert` writes."""
        split: str = "test"
        """The split whose questions are asked."""


class NocapsTask(_CaptionTask):
    """nocaps captioning, also by domain (in, near, out): CIDEr and BLEU@4, times 100; needs Java."""

    name = "nocaps"
    group_field = "domain"

    class Config(_CaptionConfig):
        """Keys of the task. There is no training split, so few-shot examples are other images of `val`."""

        path: LocalPath = Field("nocaps", validate_default=True)
        """A folder of rows in any layout of data sources, such as `magma data convert` writes."""
        split: str = "val"
        """The split whose questions are asked."""
        shots_split: str = "val"
        """The split that in-context examples are drawn from."""
