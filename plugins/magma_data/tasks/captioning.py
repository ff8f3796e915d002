"""The paper's evaluations of captions (section 4.1.2): CIDEr and BLEU@4, as the official package computes them."""

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
    """`prompt` stands behind the image and is no part of the caption (section 4.1.2)."""

    names = ("id", "caption", "captions", "domain")
    aliases: ClassVar = {"text": "caption"}
    prompt: str = "A picture of"


class _CaptionTask(RowsTask):
    """One caption an image, compared with all that people gave it."""

    config: _CaptionConfig
    primary_metric = "cider"
    score_unit = "percent"
    max_tokens = 32
    stop = ("\n",)

    @classmethod
    def problems(cls, config: RowsConfig) -> list[str]:
        """No rows, or no Java: that is told before a caption is written."""
        return [*super().problems(config), *([] if shutil.which("java") else [NO_JAVA])]

    def prompt(self, row: Row) -> Text:
        return Text.fill(self.config.prompt)

    def answers(self, row: Row) -> list[str]:
        return [text for text in row.texts("caption", "captions") if text]

    def read(self, split: str) -> Iterator[TaskItem]:
        """Image by image: rows with a caption each are one, with all captions."""
        for _, rows in groupby(super().read(split), lambda asked: asked.medium.value):
            first, *more = rows
            captions = (caption for one in (first, *more) for caption in one.answers)
            yield replace(first, answers=tuple(captions), group=first.group.removesuffix("-domain"))

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """`cider` and `bleu4` times 100, and `cider_<group>`, `bleu4_<group>` of every group's images by themselves."""
        sentences = [[prediction.text, *reference_answers(prediction.question)] for prediction in predictions]
        tokens = iter(tokenize_captions([sentence for some in sentences for sentence in some]))
        pairs = [(next(tokens), [next(tokens) for _ in some[1:]]) for some in sentences]
        found: dict[str, float] = {}
        for part, members in _group_indices(predictions).items():
            found |= {f"{name}{part}": value for name, value in cider_and_bleu([pairs[i] for i in members]).items()}
        return found

    def measures(self, predictions: Sequence[Prediction]) -> dict[str, str]:
        """CIDEr weighs a word by how few of the images have it: of a single image every weight is 0."""
        single = [part for part, members in _group_indices(predictions).items() if len(members) == 1]
        return {f"cider{part}": "of a single image: meaningless, always 0" for part in single}


def _group_indices(predictions: Sequence[Prediction]) -> dict[str, list[int]]:
    """What a score's name ends with, to the numbers of the predictions that it is of: "" for all, and each group."""
    parts: dict[str, list[int]] = defaultdict(list)
    for i, prediction in enumerate(predictions):
        parts[""].append(i)
        if group := prediction.question.group:
            parts[f"_{group}"].append(i)
    return parts


class CocoCaptionsTask(_CaptionTask):
    """Captions of COCO's images: CIDEr and BLEU@4 of the official package, times 100; needs Java."""

    name = "coco_captions"

    class Config(_CaptionConfig):
        """Karpathy's test split; the official ones have `val`."""

        path: LocalPath = Field("coco_captions", validate_default=True)
        split: str = "test"


class NocapsTask(_CaptionTask):
    """Captions of nocaps' images, also by domain (in, near, out): CIDEr and BLEU@4, times 100; needs Java."""

    name = "nocaps"
    group_field = "domain"

    class Config(_CaptionConfig):
        """The set has no training split: shots are other images of the same one."""

        path: LocalPath = Field("nocaps", validate_default=True)
        split: str = "val"
        shots_split: str = "val"
