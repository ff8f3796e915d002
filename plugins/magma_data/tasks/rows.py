"""Base class of tasks on rows: the rows of a split are questions, after few-shot examples of another split."""

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

POOL_EPOCHS, ROWS_PER_EPOCH = 16, 32
"""Few-shot examples are drawn from the first rows of this many shuffled epochs; images of 512 rows fit in memory."""


class RowsConfig(MediaConfig):
    """Keys of all tasks on rows. Each task has its default `path` and `split`."""

    renamed_keys = MappingProxyType({"joint": "shot_separator"})
    names: ClassVar[tuple[str, ...]] = ("id",)

    path: LocalPath
    """A folder of rows in any layout of data sources, such as `magma data convert` writes."""
    split: str
    """The split whose questions are asked."""
    shots_split: str = "train"
    """The split that in-context examples are drawn from."""
    shot_separator: str = "\n"
    """Text after each in-context example."""
    fixed_shots: bool = False
    """Use the same in-context examples before every question; they are then encoded once. Default: draw them for each
    question."""
    limit: int | None = Field(None, ge=1)
    """Ask only the first questions."""


class RowsTask(Task):
    """Base class of tasks on rows. Questions about an image are consecutive and share a medium, which is read once."""

    config: RowsConfig
    stop: ClassVar[tuple[str, ...]] = ("\n", "Q:")
    list_field: ClassVar[str | None] = None
    """The field with a list, each entry of which is a row."""
    group_field: ClassVar[str] = ""
    """The field with the group of a row, for scores by group."""

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """A configuration with three images for questions, and three for few-shot examples."""
        from PIL import Image

        config = cls.Config()
        assert isinstance(config, RowsConfig)
        for part, split in enumerate((config.split, config.shots_split)):
            lines = []
            for i in range(3 * part, 3 * part + 3):
                Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(folder / f"{i}.png")
                answers = [f"shade {i}"] * 7 + ["red"] * 3
                kinds = {"answer_type": "other", "question_type": "query", "group": "Colours"}
                questions = [
                    {"id": f"{i}.{n}", "question": f"How red is {n}?", "answers": answers, **kinds} for n in (0, 1)
                ]
                statements = [{"id": f"{i}.0", "text": f"It is red {i}.", "label": ("neutral", "entailment")[i % 2]}]
                captions = [f"a square of the shade {i} on its own", f"a red square that has the number {i}"]
                fields = {"questions": questions, "statements": statements, "captions": captions}
                lines.append(json.dumps({"id": f"{i}", "image": f"{i}.png", "domain": "in-domain", **fields}))
            (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        return CheckInputs({"path": str(folder)})

    @classmethod
    def problems(cls, config: RowsConfig) -> list[str]:
        """A missing folder or split. The split of few-shot examples is only checked when it is used."""
        if Path(config.path).exists():
            found = find(config.path, config.split)
            return [*(found if isinstance(found, list) else []), *config.missing()]
        from ..convert.registry import find_set

        return [
            f"path: given {config.path!r}, which is neither beside the recipe nor in $MAGMA_DATA nor in the working "
            f"directory. `magma data convert {cls.name} FOLDER --out {config.path}` converts it from the official "
            f"files of {find_set(cls.name).home}; set `path` to it, or MAGMA_DATA to the folder that contains it"
        ]

    @abstractmethod
    def prompt(self, row: Row) -> Text:
        """The prompt after the image. Raises `InputError`."""

    @abstractmethod
    def answers(self, row: Row) -> list[str]:
        """The reference answers of a row. Raises `InputError` if there are none."""

    def questions(self, split: str, shots: int, seed: int) -> Iterator[Question]:
        """Image by image, each question after `shots` few-shot examples that `seed` and its id decide.

        `split` is a split of the data set; "test", the default of an evaluation, is the one that `config.split` names.
        Raises `InputError` for a split that the data set does not have.
        """
        config = self.config if split == "test" else self.config.model_copy(update={"split": split})
        if problems := self.problems(config):
            raise InputError("; ".join(problems))
        shot_pool = ShotPool(self.read_pool(seed) if shots else [], seed, config.fixed_shots, self.can_read)
        ids = set()
        for item in self.read_limited(config.split):
            if item.id in ids:
                raise InputError(
                    f"{config.path}: two questions have the id {item.id!r}; allowed: a different id for each question"
                )
            ids.add(item.id)
            before = shot_pool.draw(item, shots)
            completed = [one.segments(Text.fill(config.shot_separator)) for one in before]
            yield Question(
                id=item.id,
                segments=[*(part for parts in completed for part in parts), *item.segments()],
                answer=item.answer,
                group=item.group,
                extra=dict(item.extra),
                answers=item.answers,
                shots=[one.id for one in before],
                shot_lengths=[len(parts) for parts in completed],
            )

    def read_limited(self, split: str) -> Iterator[TaskItem]:
        """The first `limit` questions of a split."""
        return islice(self.read(split), self.config.limit)

    def read(self, split: str) -> Iterator[TaskItem]:
        """The rows of a split, in stored order."""
        medium: Media | None = None
        columns = self.config.resolve_columns()
        for row in open_rows(self.config.path, split, self.list_field, columns=columns).iter_in_stored_order():
            for item in self.make_items(row, medium):
                yield item
                medium = item.medium

    def read_pool(self, seed: int) -> list[TaskItem]:
        """Candidates for few-shot examples: rows with answers, from the beginnings of several shards."""
        config = self.config
        columns = config.resolve_columns()
        rows = open_rows(config.path, config.shots_split, self.list_field, buffer=ROWS_PER_EPOCH, columns=columns)
        found: dict[str, list[TaskItem]] = {}
        for number in range(POOL_EPOCHS):
            order_seed = random.Random(f"{seed} {number}").getrandbits(64)
            for row, _ in islice(rows.iterate(None, order_seed, shuffle=True, limit=None), ROWS_PER_EPOCH):
                try:
                    found[row.where] = self.make_items(row)
                except InputError:  # as in training, it is skipped
                    continue
        return [one for items in found.values() for one in items if one.answer]

    def make_items(self, row: Row, last: Media | None = None) -> list[TaskItem]:
        """The questions of a row, here one; `last` is the medium of the row before it. Raises `InputError`."""
        prompt, answers, value = self.prompt(row), tuple(self.answers(row)), row.medium
        medium = last if last is not None and last.value == value else self._make_medium(row.where, value)
        group = row.value(self.group_field)
        return [TaskItem(self._identify(row), medium, prompt, answers, "" if group is None else str(group))]

    def _identify(self, row: Row) -> str:
        """The id of a row; without one, its place."""
        identity = row.value("id")
        return row.where.removeprefix(self.config.path).lstrip("/ ") if identity is None else str(identity)

    def _make_medium(self, where: str, value: Path | bytes) -> Media:
        """The medium; one in bytes gets the position of its row as its name."""
        return Media(self.config.input, value, "" if isinstance(value, Path) else where)

    def postprocess(self, question: Question, output: str) -> str:
        """The output up to the first stop string."""
        ends = [at for stop in self.stop if (at := output.find(stop)) >= 0]
        return output[: min(ends, default=None)].strip()
