"""The Free Spoken Digit Dataset: recordings `{digit}_{speaker}_{take}.wav`, 8 kHz, takes 0 to 4 held out."""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field, field_validator

from magma import (
    CheckInputs,
    DataSource,
    Example,
    InputError,
    LocalPath,
    Media,
    PartConfig,
    Prediction,
    Question,
    SourceState,
    Task,
    Text,
)

from ..formats.order import positions
from ..hashing import content_hash
from .splits import Split, check_split

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PROMPT = "Q: Which number is this? A:"
HELD_OUT = 5
"""Takes below this one are the set's own test split."""
_NAME = re.compile(r"(\d)_(\w+)_(\d+)\.wav")


@dataclass(frozen=True)
class SpokenDigit:
    """One spoken digit."""

    path: Path
    digit: int
    speaker: str


@functools.cache
def load_recordings(folder: Path, split: Split) -> tuple[SpokenDigit, ...]:
    """Those of a split, in order of name."""
    found = []
    for path in sorted(folder.glob("*.wav")):
        parts = _NAME.fullmatch(path.name)
        if parts and (int(parts[3]) < HELD_OUT) == (split == "test"):
            found.append(SpokenDigit(path, int(parts[1]), parts[2]))
    return tuple(found)


def exclude_copies(one: SpokenDigit, shown: Sequence[SpokenDigit], shots: int) -> Sequence[SpokenDigit]:
    """Those that are no copy of this one. Raises `InputError` where they are fewer than `shots`."""
    if not shots:
        return ()
    own = content_hash(one.path)
    others = [other for other in shown if content_hash(other.path) != own]
    if len(others) < shots:
        raise InputError(
            f"{shots} shots: {len(others)} recordings of the training split are no copy of {one.path.name}; "
            "allowed: at most that number"
        )
    return others


def find_problems(path: str) -> list[str]:
    """What is said where a folder lacks the recordings of a split."""
    if load_recordings(Path(path), "train") and load_recordings(Path(path), "test"):
        return []
    return [
        f"path: given {path!r}, which has no recordings named digit_speaker_take.wav for both splits; get them from "
        "https://github.com/Jakobovski/free-spoken-digit-dataset, and set this path or MAGMA_DATA"
    ]


def example_recordings(folder: Path) -> CheckInputs:
    """A recording of two digits by two speakers in each split."""
    import soundfile

    draw = np.random.default_rng(0)
    for digit, speaker, take in itertools.product((3, 8), ("ann", "bob"), (0, HELD_OUT)):
        soundfile.write(folder / f"{digit}_{speaker}_{take}.wav", draw.normal(scale=0.1, size=800), 8_000)
    return CheckInputs({"path": str(folder)})


class SpokenDigits(DataSource):
    """A recording and the digit's name."""

    name = "spoken_digits"

    class Config(PartConfig):
        """`texts` are pairs of what is shown and what is said, {} the digit's name; each example draws one."""

        path: LocalPath = "fsdd"
        split: Split = "train"
        input: str = "audio"
        texts: tuple[tuple[str, str], ...] = Field(((PROMPT, " {}"),), min_length=1)

        @field_validator("texts")
        @classmethod
        def _names_the_digit(cls, texts: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
            for _, said in texts:
                if said.count("{}") != 1:
                    raise ValueError(f"texts whose second part has one {{}} where the digit's name goes, not {said!r}")
            return texts

    config: Config

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.seed = seed

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """Eight recordings of noise."""
        return example_recordings(folder)

    @classmethod
    def problems(cls, config: Config) -> list[str]:
        """Recordings that are not there."""
        return find_problems(config.path)

    def iterate(self, state: SourceState | None = None) -> Iterator[tuple[Example, SourceState]]:
        """One pass; the training split in an order of its own each time."""
        state = state or {"epoch": 0, "position": 0}
        epoch = state["epoch"]
        known = list(load_recordings(Path(self.config.path), self.config.split))
        if self.config.split == "train":
            random.Random(f"{self.seed} {epoch}").shuffle(known)
        for position, after in positions(state, len(known)):
            yield self._example(known[position], epoch), after

    def _example(self, one: SpokenDigit, epoch: int) -> Example:
        draw = random.Random(f"{self.seed} {epoch} {one.path.name}")
        shown, said = draw.choice(self.config.texts)
        medium = Media(self.config.input, one.path)
        return Example([medium, Text(shown), Text(said.format(WORDS[one.digit]), target=True)], one.path.name)


class SpokenDigitsTask(Task):
    """Which digit is spoken in a held-out recording; the first number word of the answer counts."""

    name = "spoken_digits"
    primary_metric = "accuracy"
    max_tokens = 8
    stop = ("\n", "Q:")

    class Config(PartConfig):
        """`limit` asks that many questions, evenly over speakers and digits."""

        path: LocalPath = "fsdd"
        input: str = "audio"
        prompt: str = PROMPT
        limit: int | None = Field(None, ge=1)

    config: Config

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """Eight recordings of noise."""
        return example_recordings(folder)

    @classmethod
    def problems(cls, config: Config) -> list[str]:
        """Recordings that are not there."""
        return find_problems(config.path)

    def questions(self, split: str, shots: int, seed: int) -> Iterator[Question]:
        """Every recording of a split behind `shots` others of the training split, with their answers."""
        folder = Path(self.config.path)
        asked = list(load_recordings(folder, check_split(split)))
        if self.config.limit is not None and self.config.limit < len(asked):
            asked = [asked[i * len(asked) // self.config.limit] for i in range(self.config.limit)]
        shown = load_recordings(folder, "train")
        draw = random.Random(f"{seed} {shots}")
        for one in asked:
            segments: list[Media | str] = []
            for other in draw.sample(exclude_copies(one, shown, shots), shots):
                segments += [Media(self.config.input, other.path), f"{self.config.prompt} {WORDS[other.digit]}\n"]
            segments += [Media(self.config.input, one.path), self.config.prompt]
            yield Question(
                one.path.stem, segments, WORDS[one.digit], extra={"speaker": one.speaker}, shot_lengths=[2] * shots
            )

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """`accuracy`, and `accuracy_<speaker>`."""
        hits: dict[str, list[bool]] = defaultdict(list)
        for prediction in predictions:
            right = first_number_word(prediction.text) == prediction.question.answer
            for name in ("accuracy", f"accuracy_{prediction.question.extra['speaker']}"):
                hits[name].append(right)
        return {name: sum(found) / len(found) for name, found in hits.items()}

    def measures(self, predictions: Sequence[Prediction]) -> dict[str, str]:
        return {"accuracy": "exact match of a word"}


def first_number_word(text: str) -> str:
    """The first number word of a text; "" without one."""
    words = (word.strip(".,!?:;\"'").lower() for word in text.split())
    return next((word for word in words if word in WORDS), "")
