"""Pairs of a handwritten and a spoken digit, with the question whether they are the same number."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field

from magma import (
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

from ..formats.order import iter_positions
from ..hashing import content_hash
from .splits import Split, check_split
from .spoken import RecordingsPart, SpokenDigit, exclude_copies, load_recordings, take_evenly
from .written import load_images

PROMPT = "Q: Are they the same number? A:"


def held_out_pair(written: int, spoken: int) -> bool:
    """Whether this pair of different numbers is never in training. This is a fifth of all pairs."""
    return written != spoken and (written + 2 * spoken) % 5 == 4


class _Config(PartConfig):
    """Keys of the data source and of the task."""

    path: LocalPath = "fsdd"
    """Folder of the Free Spoken Digit Dataset's recordings."""
    image: str = "image"
    """Name of the model's input that gets the images."""
    audio: str = "audio"
    """Name of the model's input that gets the recordings."""
    prompt: str = PROMPT
    """The question after image and recording."""


class _SplitItems:
    """Images and recordings of a split, indexed by number."""

    def __init__(self, path: str, split: Split) -> None:
        self.pixels, labels = load_images(split)
        self.recordings = load_recordings(Path(path), split)
        self.images: list[list[int]] = [[] for _ in range(10)]
        for i, label in enumerate(labels):
            self.images[label].append(i)

    def draw(self, spoken: int, same: bool, training_only: bool, draw: random.Random) -> tuple[int, int]:
        """Draw an image of the spoken number (`same`) or of another one. Returns its number and its index."""
        others = [n for n in range(10) if n != spoken and not (training_only and held_out_pair(n, spoken))]
        written = spoken if same else draw.choice(others)
        return written, draw.choice(self.images[written])


class SameNumber(RecordingsPart, DataSource):
    """A handwritten digit, a spoken digit, and whether they are the same number, as in half of the examples.

    A fifth of the pairs of different numbers is never in training (`held_out_pair`).
    """

    name = "same_number"

    class Config(_Config):
        """Keys of the data source."""

        split: Split = "train"
        """Split of the images and of the recordings."""

    config: Config

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.seed = seed

    def iterate(self, state: SourceState | None = None) -> Iterator[tuple[Example, SourceState]]:
        """One epoch: every recording once with a random image; the training split is shuffled in each epoch."""
        state = state or {"epoch": 0, "position": 0}
        epoch, split = state["epoch"], self.config.split
        pairs = _SplitItems(self.config.path, split)
        order = list(range(len(pairs.recordings)))
        if split == "train":
            random.Random(f"{self.seed} {epoch}").shuffle(order)
        for position, after in iter_positions(state, len(order)):
            recording = pairs.recordings[order[position]]
            draw = random.Random(f"{self.seed} {epoch} {recording.path.name}")
            same = draw.random() < 0.5
            _, i = pairs.draw(recording.digit, same, split == "train", draw)
            media = [Media(self.config.image, pairs.pixels[i]), Media(self.config.audio, recording.path)]
            answer = Text(" yes" if same else " no", target=True)
            name = f"{recording.path.name} and image {i}"
            yield Example([*media, Text(self.config.prompt), answer], name), after


class SameNumberTask(RecordingsPart, Task):
    """Whether a held-out image and a held-out recording are the same number.

    Each recording is asked about twice: with an image of the same number, and with one of another number. The accuracy
    of a guess is therefore one half.
    """

    name = "same_number"
    primary_metric = "accuracy"
    max_tokens = 4
    stop = ("\n", "Q:")

    class Config(_Config):
        """Keys of the task."""

        limit: int | None = Field(None, ge=1)
        """Number of recordings that are asked about, distributed evenly over speakers and digits."""

    config: Config

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)

    def questions(self, split: str, shots: int, seed: int) -> Iterator[Question]:
        """Two questions per recording, each after `shots` few-shot examples of the training split."""
        config = self.config
        pairs, shot_pairs = (
            _SplitItems(config.path, check_split(split)),
            _SplitItems(config.path, "train"),
        )
        for j in take_evenly(range(len(pairs.recordings)), config.limit):
            for same in (True, False):
                one = pairs.recordings[j]
                before, written, i = self._draw_shots(pairs, shot_pairs, one, same, f"{seed} {shots} {j} {same}", shots)
                segments: list[Media | str] = []
                for other, k, yes in before:
                    segments += [Media(config.image, shot_pairs.pixels[k]), Media(config.audio, other.path)]
                    segments.append(f"{config.prompt} {'yes' if yes else 'no'}\n")
                segments += [Media(config.image, pairs.pixels[i]), Media(config.audio, one.path), config.prompt]
                extra = {"image": i, "written": written, "spoken": one.digit}
                yield Question(
                    f"{one.path.stem}/{i}", segments, "yes" if same else "no", extra=extra, shot_lengths=[3] * shots
                )

    @staticmethod
    def _draw_shots(
        pairs: _SplitItems, shot_pairs: _SplitItems, one: SpokenDigit, same: bool, seed: str, shots: int
    ) -> tuple[list[tuple[SpokenDigit, int, bool]], int, int]:
        """The few-shot examples (recording, image, same number), then number and image of the question.

        All are drawn again if the image of the question is among the few-shot examples; the recording never is.
        """
        others = exclude_copies(one, shot_pairs.recordings, shots)
        for number in itertools.count():
            draw = random.Random(f"{seed} {number}" if number else seed)
            before = []
            for other in draw.sample(others, shots):
                yes = draw.random() < 0.5
                before.append((other, shot_pairs.draw(other.digit, yes, True, draw)[1], yes))
            written, i = pairs.draw(one.digit, same, False, draw)
            own = content_hash(pairs.pixels[i]) if shots else ""
            if not any(content_hash(shot_pairs.pixels[k]) == own for _, k, _ in before):
                return before, written, i
        raise AssertionError

    def measures(self, predictions: Sequence[Prediction]) -> dict[str, str]:
        return {"accuracy": "exact match of yes or no"}

    def item_scores(self, prediction: Prediction) -> dict[str, float]:
        """`accuracy`, and `accuracy_unseen` over the pairs of numbers that are never in training."""
        right = float(_first_yes_or_no(prediction.text) == prediction.question.answer)
        pair = prediction.question.extra["written"], prediction.question.extra["spoken"]
        return dict.fromkeys(("accuracy", *(["accuracy_unseen"] if held_out_pair(*pair) else [])), right)


def _first_yes_or_no(text: str) -> str:
    """The first "yes" or "no" in a text; "" if there is none."""
    words = (word.strip(".,!?:;\"'").lower() for word in text.split())
    return next((word for word in words if word in ("yes", "no")), "")
