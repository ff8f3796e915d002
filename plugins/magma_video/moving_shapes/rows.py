"""The rows that `magma data make moving-shapes` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from magma import CheckInputs, InputError, LocalPath, Media, Part, PartConfig, Text

from .draw import DIRECTIONS
from .make import FORWARD, REVERSED, SPLITS

COMMAND = "magma data make moving-shapes --out"


class ClipsConfig(PartConfig):
    """Keys of the data source and of the task."""

    path: LocalPath = Field("moving_shapes", validate_default=True)
    """Folder that `magma data make moving-shapes` wrote."""
    input: str = "video"
    """Name of the model's input that gets the clips."""


class ClipsPart(Part):
    """Base class of the data source and the task. Both ask the question first, and then show the clip."""

    config: ClipsConfig

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """A configuration with rows about four clips, which are read by no check."""
        for split in SPLITS:
            rows = [
                {"id": f"{i}", "video": f"{split}/{i}.mp4", "question": "Where to?", "answer": answer, "group": group}
                for i, answer in enumerate(DIRECTIONS)
                for group in ((FORWARD, REVERSED) if split == "test" else (FORWARD,))
            ]
            (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return CheckInputs({"path": str(folder)})

    @classmethod
    def problems(cls, config: ClipsConfig) -> list[str]:
        """Missing clips."""
        missing = [f"{split}.jsonl" for split in SPLITS if not (Path(config.path) / f"{split}.jsonl").is_file()]
        if not missing:
            return []
        return [
            f"path: given {config.path!r}, which has no {' and no '.join(missing)} beside the recipe, in $MAGMA_DATA "
            f"or in the working directory; `{COMMAND} {Path(config.path).name}` makes the clips"
        ]

    def rows(self, split: str) -> list[dict[str, Any]]:
        """All rows of a split. Raises `InputError` if it does not exist."""
        file = Path(self.config.path) / f"{split}.jsonl"
        if not file.is_file():
            raise InputError(f"{file}: no such file; allowed splits: {', '.join(SPLITS)}")
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]

    def prompt(self, row: dict[str, Any]) -> list[Text | Media]:
        """The question, then the clip."""
        return [Text(row["question"]), Media(self.config.input, Path(self.config.path) / row["video"])]
