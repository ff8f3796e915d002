"""A handwritten and a spoken digit: are they the same number?"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field

from magma import (
    CheckInputs,
    DataSource,
    Example,
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
from .spoken import SpokenDigit, example_recordings, exclude_copies, find_problems, load_recordings
from .written import images

PROMPT = "Q: Are they the same number? A:"


def held_out_pair(written: int, spoken: int) -> bool:
    """Is this pair of different numbers left out of training? A fifth of them is."""
    return written != spoken and (written + 2 * spoken) % 5 == 4


class _Config(PartConfig):
    """Where the recordings are, and the inputs that see and hear."""

    path: LocalPath = "fsdd"
    image: str = "image"
    audio: str = "audio"
    prompt: str = PROMPT


class _SplitItems:
    """Images and recordings of a split, by number."""

    def __init__(self, path: str, split: Split) -> None:
        self.pixels, labels = images(split)
        self.recordings = load_recordings(Path(path), split)
        self.images: list[list[int]] = [[] for _ in range(10)]
        for i, label in enumerate(labels):
            self.images[label].append(i)

    def draw(self, spoken: int, same: bool, seen_only: bool, draw: random.Random) -> tuple[int, int]:
        """An image of the spoken number or of another one: its number, and which it is."""
        others = [n for n in range(10) if n != spoken and not (seen_only and held_out_pair(n, spoken))]
        written = spoken if same else draw.choice(others)
        return written, draw.choice(self.images[written])


class SameNumber(DataSource):
    """A written digit, a spoken one, and whether they are the same number: half of them are.

    In training a fifth of the pairs of different numbers never meets (`unseen`).
    """

    name = "same_number"

    class Config(_Config):
        """`split` of the images, and of the recordings."""

        split: Split = "train"

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
        """Every recording once a pass, in an order of its own, with an image drawn anew."""
        state = state or {"epoch": 0, "position": 0}
        epoch, split = state["epoch"], self.config.split
        pairs = _SplitItems(self.config.path, split)
        order = list(range(len(pairs.recordings)))
        if split == "train":
            random.Random(f"{self.seed} {epoch}").shuffle(order)
        for position, after in positions(state, len(order)):
            recording = pairs.recordings[order[position]]
            draw = random.Random(f"{self.seed} {epoch} {recording.path.name}")
            same = draw.random() < 0.5
            _, i = pairs.draw(recording.digit, same, split == "train", draw)
            media = [Media(self.config.image, pairs.pixels[i]), Media(self.config.audio, recording.path)]
            said = Text(" yes" if same else " no", target=True)
            name = f"{recording.path.name} and image {i}"
            yield Example([*media, Text(self.config.prompt), said], name), after


class SameNumberTask(Task):
    """Are a held-out image and a held-out recording the same number? Each recording is asked with one that is.

    And with one that is not, so that who sees and hears nothing is right in half of them.
    """

    name = "same_number"
    primary_metric = "accuracy"
    max_tokens = 4
    stop = ("\n", "Q:")

    class Config(_Config):
        """`limit` asks about that many recordings, evenly over speakers and digits."""

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
        """Two questions a recording, each behind `shots` answered ones of the training split."""
        config = self.config
        pairs, shown = (
            _SplitItems(config.path, check_split(split)),
            _SplitItems(config.path, "train"),
        )
        asked = list(range(len(pairs.recordings)))
        if config.limit is not None:
            asked = [asked[i * len(asked) // config.limit] for i in range(min(config.limit, len(asked)))]
        for j in asked:
            for same in (True, False):
                one = pairs.recordings[j]
                before, written, i = self._draw_shots(pairs, shown, one, same, f"{seed} {shots} {j} {same}", shots)
                segments: list[Media | str] = []
                for other, k, yes in before:
                    segments += [Media(config.image, shown.pixels[k]), Media(config.audio, other.path)]
                    segments.append(f"{config.prompt} {'yes' if yes else 'no'}\n")
                segments += [Media(config.image, pairs.pixels[i]), Media(config.audio, one.path), config.prompt]
                extra = {"image": i, "written": written, "spoken": one.digit}
                yield Question(
                    f"{one.path.stem}/{i}", segments, "yes" if same else "no", extra=extra, shot_lengths=[3] * shots
                )

    @staticmethod
    def _draw_shots(
        pairs: _SplitItems, shown: _SplitItems, one: SpokenDigit, same: bool, seed: str, shots: int
    ) -> tuple[list[tuple[SpokenDigit, int, bool]], int, int]:
        """What is shown (recording, image, the same number?), then number and image of the question.

        All are drawn again while the image is among the shown ones; the recording never is.
        """
        others = exclude_copies(one, shown.recordings, shots)
        for number in itertools.count():
            draw = random.Random(f"{seed} {number}" if number else seed)
            before = []
            for other in draw.sample(others, shots):
                yes = draw.random() < 0.5
                before.append((other, shown.draw(other.digit, yes, True, draw)[1], yes))
            written, i = pairs.draw(one.digit, same, False, draw)
            own = content_hash(pairs.pixels[i]) if shots else ""
            if not any(content_hash(shown.pixels[k]) == own for _, k, _ in before):
                return before, written, i
        raise AssertionError

    def measures(self, predictions: Sequence[Prediction]) -> dict[str, str]:
        return {"accuracy": "exact match of yes or no"}

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """`accuracy`, and `accuracy_unseen` over the pairs of numbers that training leaves out."""
        hits = {"accuracy": [_first_yes_or_no(p.text) == p.question.answer for p in predictions]}
        numbers = [(p.question.extra["written"], p.question.extra["spoken"]) for p in predictions]
        hits["accuracy_unseen"] = [
            hit for hit, pair in zip(hits["accuracy"], numbers, strict=True) if held_out_pair(*pair)
        ]
        return {name: sum(found) / len(found) for name, found in hits.items() if found}


def _first_yes_or_no(text: str) -> str:
    """The first yes or no of a text; "" without one."""
    words = (word.strip(".,!?:;\"'").lower() for word in text.split())
    return next((word for word in words if word in ("yes", "no")), "")
