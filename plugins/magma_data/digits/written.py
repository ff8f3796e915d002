"""Handwritten digits: scikit-learn's 1,797 real images of 8 x 8 pixels, with captions and questions."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from magma import DataSource, Example, Media, PartConfig, Prediction, Question, SourceState, Task, Text

from ..formats.order import iter_positions
from ..hashing import content_hash
from ..sample_sheet import SAMPLES, Sample, draw_samples
from .splits import Split, check_split

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
Images = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Pixels [n, 8, 8] and labels [n]."""

Group = Literal["caption", "name", "parity_one_step", "parity_two_step", "next_one_step", "next_two_step", "larger"]

CAPTION_PROMPT = "A picture of"
NAME = "Q: Which number is this? A:"
PARITY = "Q: Is it odd or even? A:"
NEXT = "Q: Which number comes next? A:"
LARGER = "Q: Which number is larger? A:"
QUESTIONS: dict[str, str] = {
    "name": NAME,
    "parity_one_step": PARITY,
    "parity_two_step": PARITY,
    "next_one_step": NEXT,
    "next_two_step": NEXT,
    "larger": LARGER,
}
CAPTION_FIRST = ("caption", "parity_two_step", "next_two_step")
"""Groups in which the model first writes a caption."""


def _load_sklearn_digits() -> NDArray[np.float64]:
    """scikit-learn's digits [n, 65]: 64 values of 0 to 16, and the label.

    The file is read without importing scikit-learn, which takes seconds.
    """
    package = importlib.util.find_spec("sklearn")
    assert package is not None, "scikit-learn is a dependency"
    assert package.submodule_search_locations is not None
    file = Path(package.submodule_search_locations[0]) / "datasets/data/digits.csv.gz"
    if not file.is_file():  # another version of scikit-learn
        from sklearn.datasets import load_digits

        digits = load_digits()
        return np.column_stack((digits.data, digits.target))
    return np.loadtxt(file, delimiter=",")


@functools.cache
def load_images(split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [n, 8, 8], 0 to 255, and labels [n]. After a fixed shuffle every fifth image of each digit is held out."""
    rows = _load_sklearn_digits()
    labels = rows[:, 64].astype(np.int64)
    pixels = (rows[:, :64].reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(pixels))
    counts: dict[int, int] = {}
    chosen = []
    for i in order:
        label = int(labels[i])
        counts[label] = counts.get(label, 0) + 1
        if (counts[label] % 5 == 0) == (split == "test"):
            chosen.append(int(i))
    return pixels[chosen], labels[chosen]


def fill_template(template: str, word: str) -> str:
    """Insert the digit's name into a template: {} becomes "eight", {a} becomes "an eight"."""
    return template.format(word, a=f"{'an' if word == 'eight' else 'a'} {word}")


class Digits(DataSource):
    """An image of a digit with a caption, or with a question and its answer."""

    name = "digits"

    class Config(PartConfig):
        """Keys of the data source."""

        renamed_keys = MappingProxyType({"pairs": "question_pairs", "questions": "question_fraction"})

        split: Split = "train"
        """`"train"`, or the 355 held-out images: `"test"`."""
        input: str = "image"
        """Name of the model's input that gets the media."""
        captions: tuple[str, ...] = Field(("A picture of {a}.",), min_length=1)
        """Templates of captions. `{}` is the digit's name, `{a}` the name with its article."""
        question_pairs: tuple[tuple[str, str], ...] = ()
        """Questions and answers; `{}` is the digit's name."""
        question_fraction: float = Field(0.0, ge=0, le=1)
        """Fraction of examples that are a question with its answer; the others are captions."""

        @field_validator("captions")
        @classmethod
        def _names_the_digit(cls, captions: tuple[str, ...]) -> tuple[str, ...]:
            for caption in captions:
                if caption.count("{}") + caption.count("{a}") != 1:
                    raise ValueError(f"captions that contain {{}} or {{a}} once, for the digit's name, not {caption!r}")
            return captions

    config: Config

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.seed = seed

    def iterate(self, state: SourceState | None = None) -> Iterator[tuple[Example, SourceState]]:
        """One epoch. The training split is shuffled; the held-out split has a fixed order."""
        state = state or {"epoch": 0, "position": 0}
        epoch = state["epoch"]
        pixels, labels = load_images(self.config.split)
        order = list(range(len(labels)))
        if self.config.split == "train":
            random.Random(f"{self.seed} {epoch}").shuffle(order)
        for position, after in iter_positions(state, len(order)):
            i = order[position]
            draw = random.Random(f"{self.seed} {epoch} {i}")
            yield self._make_example(i, pixels[i], WORDS[labels[i]], draw), after

    def _make_example(self, i: int, pixels: NDArray[np.uint8], word: str, draw: random.Random) -> Example:
        medium = Media(self.config.input, pixels)
        name = f"digits {self.config.split} {i}"
        if self.config.question_pairs and draw.random() < self.config.question_fraction:
            question, answer = draw.choice(self.config.question_pairs)
            return Example([medium, Text(question), Text(fill_template(answer, word), target=True)], name)
        return Example([medium, Text(fill_template(draw.choice(self.config.captions), word), target=True)], name)


class DigitsTask(Task):
    """Captions of held-out digits, and questions about the number that need knowledge of the language model.

    Accuracy: the first word of the greedy answer that is a number, "odd" or "even", is the right one.
    """

    name = "digits"
    primary_metric = "caption_accuracy"
    max_tokens = 12
    stop = ("\n", "Q:")

    class Config(PartConfig):
        """Keys of the task."""

        input: str = "image"
        """Name of the model's input that gets the media."""
        prompt: str = CAPTION_PROMPT
        """The prompt after the medium."""
        limit: int | None = Field(None, ge=1)
        """Use only the first images."""
        groups: tuple[Group, ...] = Field(
            ("caption", "parity_one_step", "parity_two_step", "next_one_step", "next_two_step"), min_length=1
        )
        """What is asked. In two steps, the question follows the model's own caption; `larger` shows two images."""

    config: Config

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)

    def questions(self, split: str, shots: int, seed: int) -> Iterator[Question]:
        """One question per group and image. Few-shot examples are training images with the same question."""
        questioned = load_images(check_split(split))
        candidates = load_images("train")
        count = min(len(questioned[1]), self.config.limit or len(questioned[1]))
        media = [[Media(self.config.input, pixels) for pixels in part[0]] for part in (questioned, candidates)]
        for group in self.config.groups:
            for i in range(count):
                before, question_images = self._draw_shots(
                    group, i, (questioned, candidates), f"{seed} {shots} {group} {i}", shots
                )
                segments: list[Media | str] = []
                used, lengths = [], []
                for shot_images, answer in before:
                    question = (
                        f"{self.config.prompt} {answer}." if group in CAPTION_FIRST else f"{QUESTIONS[group]} {answer}"
                    )
                    segments += [*(media[1][j] for j in shot_images), f"{question}\n"]
                    used += [f"train/{j}" for j in shot_images]
                    lengths.append(len(shot_images) + 1)
                segments += [media[0][j] for j in question_images]
                segments.append(self.config.prompt if group in CAPTION_FIRST else QUESTIONS[group])
                yield Question(
                    id=f"{group}/{i}",
                    segments=segments,
                    answer=_right_answer(group, [int(questioned[1][j]) for j in question_images]),
                    group=group,
                    shots=used,
                    shot_lengths=lengths,
                    extra={"image": i, "label": int(questioned[1][i])},
                )

    def _draw_shots(
        self, group: Group, i: int, parts: Sequence[Images], seed: str, shots: int
    ) -> tuple[list[tuple[list[int], str]], list[int]]:
        """The few-shot examples and the images of the question; drawn again until no image is in both."""
        (asked_pixels, asked_labels), (pixels, labels) = parts
        for number in itertools.count():
            draw = random.Random(f"{seed} {number}" if number else seed)
            before = [self._choose_images(group, draw.randrange(len(labels)), labels, draw) for _ in range(shots)]
            question_images, _ = self._choose_images(group, i, asked_labels, draw)
            own = {content_hash(asked_pixels[j]) for j in question_images} if shots else set()
            if not any(content_hash(pixels[j]) in own for shot_images, _ in before for j in shot_images):
                return before, question_images
        raise AssertionError

    @staticmethod
    def _choose_images(group: Group, i: int, labels: NDArray[np.int64], draw: random.Random) -> tuple[list[int], str]:
        """The images of a question, and its answer as in a few-shot example."""
        question_images = [i]
        if group == "larger":
            question_images.append(draw.choice([j for j in range(len(labels)) if labels[j] != labels[i]]))
        numbers = [int(labels[j]) for j in question_images]
        return question_images, fill_template("{a}", WORDS[numbers[0]]) if group in CAPTION_FIRST else _right_answer(
            group, numbers
        )

    def follow_up(self, prediction: Prediction) -> Question | None:
        """The second step of a two-step question: the question, after the caption that the model wrote."""
        question = prediction.question
        if question.group not in QUESTIONS or question.group not in CAPTION_FIRST or "caption" in question.extra:
            return None
        return replace(
            question,
            segments=[*question.segments, f"{prediction.text} {QUESTIONS[question.group]}"],
            extra={**question.extra, "caption": prediction.text},
        )

    def score_one(self, prediction: Prediction) -> tuple[str, float]:
        """The word that is compared, and 1 or 0."""
        word = first_answer_word(prediction)
        return word, float(word == prediction.question.answer)

    def item_scores(self, prediction: Prediction) -> dict[str, float]:
        """`<group>_accuracy` for every group."""
        return {f"{prediction.question.group}_accuracy": self.score_one(prediction)[1]}

    def measures(self, predictions: Sequence[Prediction]) -> dict[str, str]:
        groups = dict.fromkeys(prediction.question.group for prediction in predictions)
        return {f"{group}_accuracy": "exact match of a word" for group in groups}

    def artifacts(self, folder: Path, predictions: Sequence[Prediction]) -> list[Path]:
        """`samples.png`: 24 held-out images with the captions of the model."""
        captions = [p for p in predictions if p.question.group == "caption" and not p.baseline][:SAMPLES]
        pixels, _ = load_images("test")
        samples = [
            Sample(
                pixels[one.question.extra["image"]],
                f"{self.config.prompt}{one.text}",
                one.question.answer,
                self.score_one(one)[1] == 1,
            )
            for one in captions
        ]
        return [draw_samples(samples, folder / "samples.png")]


def _right_answer(group: Group, numbers: Sequence[int]) -> str:
    if group.startswith("parity"):
        return "odd" if numbers[0] % 2 else "even"
    return WORDS[numbers[0] + 1 if group.startswith("next") else max(numbers)]


def first_answer_word(prediction: Prediction) -> str:
    """The first word of an answer that is a possible answer; "" if there is none."""
    possible = {"odd", "even"} if prediction.question.answer in ("odd", "even") else set(WORDS)
    words = (word.strip(".,!?:;\"'").lower() for word in prediction.text.split())
    return next((word for word in words if word in possible), "")
