"""The Free Spoken Digit Dataset: recordings `{digit}_{speaker}_{take}.wav`, 8 kHz; takes 0 to 4 are the test split."""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import Field, field_validator

from magma import (
    CheckInputs,
    DataSource,
    Example,
    InputError,
    LocalPath,
    Media,
    Part,
    PartConfig,
    Prediction,
    Question,
    SourceState,
    Task,
    Text,
)

from ..formats.order import iter_positions
from ..hashing import content_hash
from .splits import Split, check_split

T = TypeVar("T")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PROMPT = "Q: Which number is this? A:"
HELD_OUT = 5
"""Takes below this number are the official test split."""
_FILE_NAME = re.compile(r"(\d)_(\w+)_(\d+)\.wav")


@dataclass(frozen=True)
class SpokenDigit:
    """A recording of a spoken digit."""

    path: Path
    digit: int
    speaker: str


@functools.cache
def load_recordings(folder: Path, split: Split) -> tuple[SpokenDigit, ...]:
    """The recordings of a split, sorted by name."""
    found = []
    for path in sorted(folder.glob("*.wav")):
        parts = _FILE_NAME.fullmatch(path.name)
        if parts and (int(parts[3]) < HELD_OUT) == (split == "test"):
            found.append(SpokenDigit(path, int(parts[1]), parts[2]))
    return tuple(found)


def exclude_copies(one: SpokenDigit, candidates: Sequence[SpokenDigit], shots: int) -> Sequence[SpokenDigit]:
    """The candidates that differ from this recording. Raises `InputError` if they are fewer than `shots`."""
    if not shots:
        return ()
    own = content_hash(one.path)
    others = [other for other in candidates if content_hash(other.path) != own]
    if len(others) < shots:
        raise InputError(
            f"{shots} shots: the training split has {len(others)} recordings that differ from {one.path.name}; "
            "allowed: at most that number of shots"
        )
    return others


def take_evenly(items: Sequence[T], limit: int | None) -> Sequence[T]:
    """At most `limit` items, distributed evenly over all of them. None: all."""
    if limit is None or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


class RecordingsPart(Part):
    """A part whose config has a `path`: the folder of the recordings, which needs both splits."""

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """A configuration with noise: recordings of two digits by two speakers in each split."""
        import soundfile

        draw = np.random.default_rng(0)
        for digit, speaker, take in itertools.product((3, 8), ("ann", "bob"), (0, HELD_OUT)):
            soundfile.write(folder / f"{digit}_{speaker}_{take}.wav", draw.normal(scale=0.1, size=800), 8_000)
        return CheckInputs({"path": str(folder)})

    @classmethod
    def problems(cls, config: Any) -> list[str]:
        """Missing recordings."""
        if load_recordings(Path(config.path), "train") and load_recordings(Path(config.path), "test"):
            return []
        return [
            f"path: given {config.path!r}, which has no recordings named digit_speaker_take.wav for both splits; "
            "download them from https://github.com/Jakobovski/free-spoken-digit-dataset, and set this path or "
            "MAGMA_DATA"
        ]


class SpokenDigits(RecordingsPart, DataSource):
    """A recording of a digit, with its name."""

    name = "spoken_digits"

    class Config(PartConfig):
        """Keys of the data source."""

        path: LocalPath = "fsdd"
        """Folder of the Free Spoken Digit Dataset's recordings."""
        split: Split = "train"
        """Split of the recordings."""
        input: str = "audio"
        """Name of the model's input that gets the media."""
        texts: tuple[tuple[str, str], ...] = Field(((PROMPT, " {}"),), min_length=1)
        """Pairs of prompt and target, of which each example draws one; `{}` is the digit's name."""

        @field_validator("texts")
        @classmethod
        def _names_the_digit(cls, texts: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
            for _, target in texts:
                if target.count("{}") != 1:
                    raise ValueError(
                        f"texts whose second part contains {{}} once, for the digit's name, not {target!r}"
                    )
            return texts

    config: Config

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.seed = seed

    def iterate(self, state: SourceState | None = None) -> Iterator[tuple[Example, SourceState]]:
        """One epoch; the training split is shuffled in each epoch."""
        state = state or {"epoch": 0, "position": 0}
        epoch = state["epoch"]
        recordings = list(load_recordings(Path(self.config.path), self.config.split))
        if self.config.split == "train":
            random.Random(f"{self.seed} {epoch}").shuffle(recordings)
        for position, after in iter_positions(state, len(recordings)):
            yield self._make_example(recordings[position], epoch), after

    def _make_example(self, one: SpokenDigit, epoch: int) -> Example:
        draw = random.Random(f"{self.seed} {epoch} {one.path.name}")
        prompt, target = draw.choice(self.config.texts)
        medium = Media(self.config.input, one.path)
        return Example([medium, Text(prompt), Text(target.format(WORDS[one.digit]), target=True)], one.path.name)


class SpokenDigitsTask(RecordingsPart, Task):
    """Which digit is spoken in a held-out recording. The first number word of the answer is compared."""

    name = "spoken_digits"
    primary_metric = "accuracy"
    max_tokens = 8
    stop = ("\n", "Q:")

    class Config(PartConfig):
        """Keys of the task."""

        path: LocalPath = "fsdd"
        """Folder of the Free Spoken Digit Dataset's recordings."""
        input: str = "audio"
        """Name of the model's input that gets the media."""
        prompt: str = PROMPT
        """The prompt after the medium."""
        limit: int | None = Field(None, ge=1)
        """Number of questions, distributed evenly over speakers and digits."""

    config: Config

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)

    def questions(self, split: str, shots: int, seed: int) -> Iterator[Question]:
        """One question per recording of the split, after `shots` few-shot examples of the training split."""
        folder = Path(self.config.path)
        recordings = take_evenly(load_recordings(folder, check_split(split)), self.config.limit)
        candidates = load_recordings(folder, "train")
        draw = random.Random(f"{seed} {shots}")
        for one in recordings:
            segments: list[Media | str] = []
            for other in draw.sample(exclude_copies(one, candidates, shots), shots):
                segments += [Media(self.config.input, other.path), f"{self.config.prompt} {WORDS[other.digit]}\n"]
            segments += [Media(self.config.input, one.path), self.config.prompt]
            yield Question(
                one.path.stem, segments, WORDS[one.digit], extra={"speaker": one.speaker}, shot_lengths=[2] * shots
            )

    def item_scores(self, prediction: Prediction) -> dict[str, float]:
        """`accuracy`, and `accuracy_<speaker>` for each speaker."""
        right = float(first_number_word(prediction.text) == prediction.question.answer)
        return dict.fromkeys(("accuracy", f"accuracy_{prediction.question.extra['speaker']}"), right)

    def measures(self, predictions: Sequence[Prediction]) -> dict[str, str]:
        return {"accuracy": "exact match of a word"}


def first_number_word(text: str) -> str:
    """The first number word in a text; "" if there is none."""
    words = (word.strip(".,!?:;\"'").lower() for word in text.split())
    return next((word for word in words if word in WORDS), "")
