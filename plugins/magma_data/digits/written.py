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

from ..formats.order import positions
from ..hashing import content_hash
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
"""Groups that begin with a caption."""


def _load_sklearn_digits() -> NDArray[np.float64]:
    """scikit-learn's digits [n, 65]: 64 values of 0 to 16, and the label.

    Its file is read without importing it, which takes seconds at every start.
    """
    package = importlib.util.find_spec("sklearn")
    assert package is not None, "scikit-learn is a dependency"
    assert package.submodule_search_locations is not None
    file = Path(package.submodule_search_locations[0]) / "datasets/data/digits.csv.gz"
    if not file.is_file():  # another version's place
        from sklearn.datasets import load_digits

        digits = load_digits()
        return np.column_stack((digits.data, digits.target))
    return np.loadtxt(file, delimiter=",")


@functools.cache
def images(split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [n, 8, 8] of 0 to 255, and labels [n]. Every fifth image of each digit, shuffled once, is held out."""
    rows = _load_sklearn_digits()
    labels = rows[:, 64].astype(np.int64)
    pixels = (rows[:, :64].reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(pixels))
    seen: dict[int, int] = {}
    chosen = []
    for i in order:
        label = int(labels[i])
        seen[label] = seen.get(label, 0) + 1
        if (seen[label] % 5 == 0) == (split == "test"):
            chosen.append(int(i))
    return pixels[chosen], labels[chosen]


def fill_template(template: str, word: str) -> str:
    """The digit's name in its place: {} "eight", {a} "an eight"."""
    return template.format(word, a=f"{'an' if word == 'eight' else 'a'} {word}")


class Digits(DataSource):
    """An image and something said about it: a caption, or a question with the digit's name as its answer."""

    name = "digits"

    class Config(PartConfig):
        """`question_fraction` is the share of examples that are question-answer pairs."""

        renamed_keys = MappingProxyType({"pairs": "question_pairs", "questions": "question_fraction"})

        split: Split = "train"
        input: str = "image"
        captions: tuple[str, ...] = Field(("A picture of {a}.",), min_length=1)
        """Templates: {} is the digit's name, {a} the same with its article."""
        question_pairs: tuple[tuple[str, str], ...] = ()
        question_fraction: float = Field(0.0, ge=0, le=1)

        @field_validator("captions")
        @classmethod
        def _names_the_digit(cls, captions: tuple[str, ...]) -> tuple[str, ...]:
            for caption in captions:
                if caption.count("{}") + caption.count("{a}") != 1:
                    raise ValueError(f"captions with one {{}} or {{a}} where the digit's name goes, not {caption!r}")
            return captions

    config: Config

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.seed = seed

    def iterate(self, state: SourceState | None = None) -> Iterator[tuple[Example, SourceState]]:
        """One pass in an order of its own; the held-out split stands in a fixed order with fixed texts."""
        state = state or {"epoch": 0, "position": 0}
        epoch = state["epoch"]
        pixels, labels = images(self.config.split)
        order = list(range(len(labels)))
        if self.config.split == "train":
            random.Random(f"{self.seed} {epoch}").shuffle(order)
        for position, after in positions(state, len(order)):
            i = order[position]
            draw = random.Random(f"{self.seed} {epoch} {i}")
            yield self._example(i, pixels[i], WORDS[labels[i]], draw), after

    def _example(self, i: int, pixels: NDArray[np.uint8], word: str, draw: random.Random) -> Example:
        medium = Media(self.config.input, pixels)
        name = f"digits {self.config.split} {i}"
        if self.config.question_pairs and draw.random() < self.config.question_fraction:
            question, answer = draw.choice(self.config.question_pairs)
            return Example([medium, Text(question), Text(fill_template(answer, word), target=True)], name)
        return Example([medium, Text(fill_template(draw.choice(self.config.captions), word), target=True)], name)


class DigitsTask(Task):
    """Names held-out digits, and asks what only the language model knows about the number it sees.

    Accuracy: the first word of the greedy answer that could be one (a number, odd or even) equals the right one.
    """

    name = "digits"
    primary_metric = "caption_accuracy"
    max_tokens = 12
    stop = ("\n", "Q:")

    class Config(PartConfig):
        """`limit` takes the first images of the split alone; `groups` is what is asked of each."""

        input: str = "image"
        prompt: str = CAPTION_PROMPT
        limit: int | None = Field(None, ge=1)
        groups: tuple[Group, ...] = Field(
            ("caption", "parity_one_step", "parity_two_step", "next_one_step", "next_two_step"), min_length=1
        )
        """In two steps a question stands behind the model's own caption (figure 6); `larger` is asked of two images."""

    config: Config

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)

    def questions(self, split: str, shots: int, seed: int) -> Iterator[Question]:
        """Group by group, image by image. Shots are training images of which the same was asked and answered."""
        held = images(check_split(split))
        shown = images("train")
        count = min(len(held[1]), self.config.limit or len(held[1]))
        media = [[Media(self.config.input, pixels) for pixels in part[0]] for part in (held, shown)]
        for group in self.config.groups:
            for i in range(count):
                before, asked = self._draw_shots(group, i, (held, shown), f"{seed} {shots} {group} {i}", shots)
                segments: list[Media | str] = []
                used, lengths = [], []
                for known, said in before:
                    question = (
                        f"{self.config.prompt} {said}." if group in CAPTION_FIRST else f"{QUESTIONS[group]} {said}"
                    )
                    segments += [*(media[1][j] for j in known), f"{question}\n"]
                    used += [f"train/{j}" for j in known]
                    lengths.append(len(known) + 1)
                segments += [media[0][j] for j in asked]
                segments.append(self.config.prompt if group in CAPTION_FIRST else QUESTIONS[group])
                yield Question(
                    id=f"{group}/{i}",
                    segments=segments,
                    answer=_answer(group, [int(held[1][j]) for j in asked]),
                    group=group,
                    shots=used,
                    shot_lengths=lengths,
                    extra={"image": i, "label": int(held[1][i])},
                )

    def _draw_shots(
        self, group: Group, i: int, parts: Sequence[Images], seed: str, shots: int
    ) -> tuple[list[tuple[list[int], str]], list[int]]:
        """What is shown, and the images that are asked about; drawn again while an image is among both."""
        (asked_pixels, asked_labels), (pixels, labels) = parts
        for number in itertools.count():
            draw = random.Random(f"{seed} {number}" if number else seed)
            before = [self._choose_images(group, draw.randrange(len(labels)), labels, draw) for _ in range(shots)]
            asked, _ = self._choose_images(group, i, asked_labels, draw)
            own = {content_hash(asked_pixels[j]) for j in asked} if shots else set()
            if not any(content_hash(pixels[j]) in own for known, _ in before for j in known):
                return before, asked
        raise AssertionError

    @staticmethod
    def _choose_images(group: Group, i: int, labels: NDArray[np.int64], draw: random.Random) -> tuple[list[int], str]:
        """The images that a question is about, and what a shot says of them."""
        asked = [i]
        if group == "larger":
            asked.append(draw.choice([j for j in range(len(labels)) if labels[j] != labels[i]]))
        numbers = [int(labels[j]) for j in asked]
        return asked, fill_template("{a}", WORDS[numbers[0]]) if group in CAPTION_FIRST else _answer(group, numbers)

    def follow_up(self, prediction: Prediction) -> Question | None:
        """After the caption of a two-step question: the question itself, behind what the model said."""
        question = prediction.question
        if question.group not in QUESTIONS or question.group not in CAPTION_FIRST or "caption" in question.extra:
            return None
        return replace(
            question,
            segments=[*question.segments, f"{prediction.text} {QUESTIONS[question.group]}"],
            extra={**question.extra, "caption": prediction.text},
        )

    def score_one(self, prediction: Prediction) -> tuple[str, float]:
        """The word that counts, and 1 or 0."""
        word = first_answer_word(prediction)
        return word, float(word == prediction.question.answer)

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """`<group>_accuracy` for every group."""
        hits: dict[str, list[float]] = {}
        for prediction in predictions:
            hits.setdefault(prediction.question.group, []).append(self.score_one(prediction)[1])
        return {f"{group}_accuracy": sum(found) / len(found) for group, found in hits.items()}

    def measures(self, predictions: Sequence[Prediction]) -> dict[str, str]:
        groups = dict.fromkeys(prediction.question.group for prediction in predictions)
        return {f"{group}_accuracy": "exact match of a word" for group in groups}

    def artifacts(self, folder: Path, predictions: Sequence[Prediction]) -> list[Path]:
        """`samples.png`: 24 held-out images, what the model said, right or wrong."""
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot as plt

        captions = [p for p in predictions if p.question.group == "caption" and not p.baseline][:24]
        pixels, _ = images("test")
        figure, axes = plt.subplots(4, 6, figsize=(12, 10))
        for ax in axes.flat:
            ax.axis("off")
        for ax, prediction in zip(axes.flat, captions, strict=False):
            right = self.score_one(prediction)[1] == 1
            ax.imshow(pixels[prediction.question.extra["image"]], cmap="gray_r")
            ax.set_title(
                f"{self.config.prompt}{prediction.text}\n"
                + ("right" if right else f"wrong: {prediction.question.answer}"),
                color="#1a7f37" if right else "#cf222e",
                fontsize=9,
                parse_math=False,
            )
        figure.tight_layout(h_pad=2)
        path = folder / "samples.png"
        figure.savefig(path, dpi=80)
        plt.close(figure)
        return [path]


def _answer(group: Group, numbers: Sequence[int]) -> str:
    if group.startswith("parity"):
        return "odd" if numbers[0] % 2 else "even"
    return WORDS[numbers[0] + 1 if group.startswith("next") else max(numbers)]


def first_answer_word(prediction: Prediction) -> str:
    """The first word of an answer that could be one; "" without any."""
    known = {"odd", "even"} if prediction.question.answer in ("odd", "even") else set(WORDS)
    words = (word.strip(".,!?:;\"'").lower() for word in prediction.text.split())
    return next((word for word in words if word in known), "")
