"""Pictures of emoji: their names, and questions that need knowledge of the language model (figure 6 of the paper)."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from magma import CheckInputs, InputError, LocalPath, Media, PartConfig, Prediction, Question, Text

from ..formats import open_rows
from ..formats.row import Row
from ..metrics.short_answers import (
    FIRST_WORDS,
    same_first_word,
    same_words,
    split_words,
    starts_with_answer,
    word_f1,
)
from ..sample_sheet import SAMPLES, Sample, draw_samples
from .answers import reference_answers
from .emoji_questions import BY_NAME, CATEGORIES, GROUPS, Group, GroupName, find_country
from .rows import RowsConfig, RowsTask
from .shots import TaskItem


class EmojiTask(RowsTask):
    """Names and categories of emoji, capitals and continents of flags; also in words, for the language model's limit.

    An answer is right if an accepted one is among its first words.
    """

    name = "emoji"
    primary_metric = "naming_word_f1"
    max_tokens = 16

    class Config(RowsConfig):
        """Keys of the task. The rows are those of `magma data convert emoji`."""

        names = ("id", "name", "category", "country", "capital", "continent")
        path: LocalPath = Field("emoji", validate_default=True)
        """A folder of rows in any layout of data sources, such as `magma data convert` writes."""
        split: str = "style"
        """The split whose questions are asked: `"style"`, names of the training in an unseen drawing style, or
        `"thing"`, names that are never trained."""
        prompt: str = "A picture of"
        """The prompt for a caption, after the picture; `""` for a model whose training captions follow the picture
        directly and that should not see anything else."""
        groups: tuple[GroupName, ...] = Field(GROUPS, min_length=1)
        """What is asked. In two steps, the question follows the picture and the model's own caption; from a caption,
        only this caption; in words, a right caption."""
        categories: tuple[str, ...] = Field(CATEGORIES, min_length=1)
        """Categories of the pictures in category questions."""

    config: Config

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)
        self._groups = [BY_NAME[name] for name in dict.fromkeys(self.config.groups)]
        self._space = " " if self.config.prompt else ""

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """A configuration with two things and two flags for questions, and as many for few-shot examples."""
        from PIL import Image

        facts = ("capital", "continent")
        things = [("dog", "animal"), ("bread", "food"), ("cat", "animal"), ("cake", "food"), ("bus", "vehicle")]
        flags = [("Kenya", "Nairobi", "Africa"), ("Peru", "Lima", "South America"), ("France", "Paris", "Europe")]
        for part, split in enumerate(("style", "train")):
            rows: list[dict[str, Any]] = [{"name": name, "category": category} for name, category in things]
            for country, *known in flags:
                known_facts = dict(zip(facts, known, strict=True))
                rows.append({"name": f"flag of {country}", "category": "flag", "country": country, **known_facts})
            for i, row in enumerate(rows):
                row |= {"id": f"{split}-{i}", "image": f"{split}-{i}.png"}
                Image.new("RGB", (8, 8), (20 * i, 99 * part, 0)).save(folder / row["image"])
            (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return CheckInputs({"path": str(folder)})

    # Questions

    def prompt(self, row: Row) -> Text:
        return Text.fill(self.config.prompt)

    def answers(self, row: Row) -> list[str]:
        return [row.text("name")]

    def read(self, split: str) -> Iterator[TaskItem]:
        """The questions in a fixed pseudo-random order of pictures, so that the first ones show a bit of everything."""
        items = list(super().read(split))
        yield from sorted(items, key=lambda item: hashlib.sha256(item.id.rpartition("/")[2].encode()).digest())

    def read_limited(self, split: str) -> Iterator[TaskItem]:
        """The first `limit` questions of each group."""
        items = list(self.read(split))
        self._check_categories(items, split)
        counts: Counter[str] = Counter()
        for item in items:
            counts[item.group] += 1
            if self.config.limit is None or counts[item.group] <= self.config.limit:
                yield item

    def _check_categories(self, items: Sequence[TaskItem], split: str) -> None:
        """Raise `InputError` for a category that neither `magma data convert emoji` nor a picture has."""
        groups = [group.name for group in self._groups if group.subject == "category"]
        known = {*CATEGORIES, *(item.answer for item in items if item.group in groups)}
        if groups and (unknown := [name for name in self.config.categories if name not in known]):
            rows = open_rows(
                self.config.path, split, None, columns=self.config.resolve_columns()
            ).iter_in_stored_order()
            found = sorted({name for row in rows if (name := row.value("category")) is not None})
            raise InputError(
                f"categories: given {', '.join(unknown)}; allowed: categories of split {split}: {', '.join(found)}"
            )

    def read_pool(self, seed: int) -> list[TaskItem]:
        """All rows: shards are in Unicode's order, so that the beginnings of some would be of few kinds."""
        return list(self.read(self.config.shots_split))

    def make_items(self, row: Row, last: Media | None = None) -> list[TaskItem]:
        """A question of each group that asks about this picture."""
        (item,) = super().make_items(row, last)
        asked = [group for group in self._groups if group.asks_about(row, self.config.categories)]
        return [self._make_question(item, group, row) for group in asked]

    def _make_question(self, item: TaskItem, group: Group, row: Row) -> TaskItem:
        name, country = item.answer, row.value("country")
        writes_caption = group.starts_with_caption or not group.question
        if group.context == "words":
            asked = group.ask(country) if country else group.ask()
            prompt = item.prompt + Text(f"{self._space}{name}. {asked}")
        else:
            prompt = item.prompt if writes_caption else Text(group.ask())
        return replace(
            item,
            id=f"{group.name}/{item.id}",
            prompt=prompt,
            answers=tuple(group.answers(row)),
            group=group.name,
            kind=group.name,
            subject=name,
            is_shown=group.context != "words",
            shown_answer=name if writes_caption else "",
            extra={"name": name},
        )

    def follow_up(self, prediction: Prediction) -> Question | None:
        """The second step of a question in two steps: the question after the model's own caption."""
        question, group = prediction.question, BY_NAME[self._group(prediction)]
        if not group.starts_with_caption or "caption" in question.extra:
            return None
        country = find_country(prediction.text)
        asked = group.ask(country) if country else group.ask()
        caption = f"{self._space}{prediction.text}".rstrip(" .")
        before = question.segments
        if group.context == "only own caption":
            before = [one for one in before if not isinstance(one, Media)]
        return replace(
            question,
            segments=[*before, f"{caption}. {asked}"],
            extra={**question.extra, "caption": prediction.text, "country": country},
        )

    # Scores

    def score_one(self, prediction: Prediction) -> tuple[str, float]:
        """The words that are compared, and the score, 0 to 1; for `naming` the word F1."""
        group, text = self._group(prediction), prediction.text
        answers = reference_answers(prediction.question)
        if group == "naming":
            return " ".join(split_words(text)), word_f1(text, answers)
        if group == "flag_naming":
            text = find_country(text) or text
            return " ".join(split_words(text)), float(same_words(text, answers))
        return " ".join(split_words(text)), float(starts_with_answer(text, answers))

    def item_scores(self, prediction: Prediction) -> dict[str, float]:
        """`naming_word_f1`, `naming_exact`, `naming_first_word`, and `<group>_accuracy` of the other groups."""
        group, text = self._group(prediction), prediction.text
        if group != "naming":
            return {f"{group}_accuracy": self.score_one(prediction)[1]}
        answers = reference_answers(prediction.question)
        return {
            "naming_word_f1": self.score_one(prediction)[1],
            "naming_exact": float(same_words(text, answers)),
            "naming_first_word": float(same_first_word(text, answers)),
        }

    def measures(self, predictions: Sequence[Prediction]) -> dict[str, str]:
        """How each score is measured."""
        known = {"naming_word_f1": "F1 of words", "naming_exact": "same words", "naming_first_word": "same first word"}
        names = dict.fromkeys(name for one in predictions for name in self.item_scores(one))
        flags = {"flag_naming_accuracy": "same country"}
        return {name: {**known, **flags}.get(name, FIRST_WORDS) for name in names}

    def _group(self, prediction: Prediction) -> GroupName:
        """The group of a prediction; answers in a file of predictions may lack it and are names."""
        return next((group.name for group in BY_NAME.values() if group.name == prediction.question.group), "naming")

    def artifacts(self, folder: Path, predictions: Sequence[Prediction]) -> list[Path]:
        """`emoji_SPLIT.png`: 24 pictures with the captions of the model."""
        captions = [p for p in predictions if p.question.group == "naming" and not p.baseline][:SAMPLES]
        if not captions:
            return []
        ids = {one.question.id for one in captions}
        media = {item.id: item.medium for item in self.read(self.config.split) if item.id in ids}
        samples = [
            Sample(
                _read_picture(media[one.question.id].value),
                one.text,
                one.question.answer,
                same_words(one.text, reference_answers(one.question)),
            )
            for one in captions
            if one.question.id in media and not one.problem
        ]
        return [draw_samples(samples, folder / f"emoji_{self.config.split}.png")]


def _read_picture(value: Path | bytes) -> Any:
    """Pixels [h, w, 4] of a picture."""
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(value) if isinstance(value, bytes) else value) as image:
        return np.asarray(image.convert("RGBA"))
