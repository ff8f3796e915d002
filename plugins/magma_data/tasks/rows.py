"""What evaluations over rows do alike: a split's rows as questions, behind completed examples of another split."""

from __future__ import annotations

import json
import random
from abc import abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from pydantic import Field

from magma import CheckInputs, InputError, LocalPath, Media, PartConfig, Question, Task, Text

from ..formats import find, open_rows
from ..formats.columns import MediaConfig
from ..formats.row import Row
from .shots import ShotPool, TaskItem

POOL_PASSES, ROWS_PER_PASS = 16, 32
"""Completed examples are drawn from the first rows of so many shuffled passes: images of 512 rows fit into memory."""


class RowsConfig(MediaConfig):
    """Where the rows are, and what stands between them. Every set has a `path` and a `split` of its own."""

    renamed_keys = MappingProxyType({"joint": "shot_separator"})
    names: ClassVar[tuple[str, ...]] = ("id",)

    path: LocalPath
    """A folder in one of the layouts of docs/recipes.md, such as `magma data convert` makes."""
    split: str
    """The one that is asked about."""
    shots_split: str = "train"
    """The one that completed examples are from."""
    shot_separator: str = "\n"
    """What stands behind a completed example."""
    fixed_shots: bool = False
    """The same ones before every question, which are then read once; else each question has some of its own."""
    limit: int | None = Field(None, ge=1)
    """The first questions alone."""


class RowsTask(Task):
    """Rows as questions. Those about one image come in a row and share its medium, which is then read once."""

    config: RowsConfig
    stop: ClassVar[tuple[str, ...]] = ("\n", "Q:")
    list_field: ClassVar[str | None] = None
    """The list of a record that is a row for each of its entries."""
    group_field: ClassVar[str] = ""
    """The field that says which of the figures a row counts for besides the first."""

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """Three images that are asked about, three to learn from."""
        from PIL import Image

        config = cls.Config()
        assert isinstance(config, RowsConfig)
        for part, split in enumerate((config.split, config.shots_split)):
            lines = []
            for i in range(3 * part, 3 * part + 3):
                Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(folder / f"{i}.png")
                said = [f"shade {i}"] * 7 + ["red"] * 3
                kinds = {"answer_type": "other", "question_type": "query", "group": "Colours"}
                questions = [
                    {"id": f"{i}.{n}", "question": f"How red is {n}?", "answers": said, **kinds} for n in (0, 1)
                ]
                statements = [{"id": f"{i}.0", "text": f"It is red {i}.", "label": ("neutral", "entailment")[i % 2]}]
                captions = [f"a square of the shade {i} on its own", f"a red square that has the number {i}"]
                asked = {"questions": questions, "statements": statements, "captions": captions}
                lines.append(json.dumps({"id": f"{i}", "image": f"{i}.png", "domain": "in-domain", **asked}))
            (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        return CheckInputs({"path": str(folder)})

    @classmethod
    def problems(cls, config: RowsConfig) -> list[str]:
        """A folder that is not there, or has no such split. Shots are looked for where some are asked for."""
        if Path(config.path).exists():
            found = find(config.path, config.split)
            return [*(found if isinstance(found, list) else []), *config.missing()]
        from ..convert.registry import find_set

        return [
            f"path: given {config.path!r}, which is neither beside the recipe nor in $MAGMA_DATA nor in the working "
            f"folder. `magma data convert {cls.name} FOLDER --out {cls.name}` makes it of the official files, from "
            f"{find_set(cls.name).home}; set `path` to it, or MAGMA_DATA to the folder that holds it"
        ]

    @abstractmethod
    def prompt(self, row: Row) -> Text:
        """What stands behind the image. Raises `InputError`."""

    @abstractmethod
    def answers(self, row: Row) -> list[str]:
        """What people answered. Raises `InputError` where nobody did."""

    def questions(self, split: str, shots: int, seed: int) -> Iterator[Question]:
        """Image by image, each question after `shots` few-shot examples that `seed` and its id decide.

        `split` is a split of the data set; "test", the default of an evaluation, is the one that `config.split` names.
        Raises `InputError` for a split that the data set does not have.
        """
        config = self.config if split == "test" else self.config.model_copy(update={"split": split})
        if problems := self.problems(config):
            raise InputError("; ".join(problems))
        shown = ShotPool(self._read_pool(seed) if shots else [], seed, config.fixed_shots, self.can_read)
        known = set()
        for asked in islice(self.read(config.split), config.limit):
            if asked.id in known:
                raise InputError(
                    f"{config.path}: two questions have the id {asked.id!r}; allowed: one of its own for each"
                )
            known.add(asked.id)
            before = shown.draw(asked, shots)
            separator = Text.fill(config.shot_separator)
            completed = [(one.medium, one.prompt + Text(f" {one.answer}") + separator) for one in before]
            yield Question(
                id=asked.id,
                segments=[*(part for pair in completed for part in pair), asked.medium, asked.prompt],
                answer=asked.answer,
                group=asked.group,
                answers=asked.answers,
                shots=[one.id for one in before],
                shot_lengths=[len(pair) for pair in completed],
            )

    def read(self, split: str) -> Iterator[TaskItem]:
        """The rows of a split as they are stored."""
        medium: Media | None = None
        columns = self.config.resolve_columns()
        for row in open_rows(self.config.path, split, self.list_field, columns=columns).iter_in_stored_order():
            asked = self._item_of_row(row, medium)
            yield asked
            medium = asked.medium

    def _read_pool(self, seed: int) -> list[TaskItem]:
        """Some rows of the split that shots are from, of shards the beginnings of several; no unanswered ones."""
        config = self.config
        columns = config.resolve_columns()
        rows = open_rows(config.path, config.shots_split, self.list_field, buffer=ROWS_PER_PASS, columns=columns)
        found = {}
        for number in range(POOL_PASSES):
            way = random.Random(f"{seed} {number}").getrandbits(64)
            for row, _ in islice(rows.iterate(None, way, shuffle=True, limit=None), ROWS_PER_PASS):
                try:
                    found[row.where] = self._item_of_row(row)
                except InputError:  # as in training, the others will do
                    continue
        return [one for one in found.values() if one.answer]

    def _item_of_row(self, row: Row, last: Media | None = None) -> TaskItem:
        """A row's question; `last` is the medium of the row before it."""
        prompt, answers, value = self.prompt(row), tuple(self.answers(row)), row.medium
        medium = last if last is not None and last.value == value else self._make_medium(row.where, value)
        identity, group = row.value("id"), row.value(self.group_field)
        if identity is None:
            identity = row.where.removeprefix(self.config.path).lstrip("/ ")
        return TaskItem(str(identity), medium, prompt, answers, "" if group is None else str(group))

    def _make_medium(self, where: str, value: Path | bytes) -> Media:
        """Bytes do not say where they are from."""
        return Media(self.config.input, value, "" if isinstance(value, Path) else where)

    def postprocess(self, question: Question, output: str) -> str:
        """Up to where an answer ends."""
        ends = [at for stop in self.stop if (at := output.find(stop)) >= 0]
        return output[: min(ends, default=None)].strip()
