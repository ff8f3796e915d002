"""Handwritten digits: scikit-learn's 1,797 real images of 8 x 8 pixels, with captions and questions."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from magma import DataSource, Example, Media, PartConfig, Prediction, Question, State, Task, Text

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
Split = Literal["train", "test"]

CAPTION_PROMPT = "A picture of"
PARITY = "Q: Is it odd or even? A:"
NEXT = "Q: Which number comes next? A:"


@functools.cache
def images(split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [n, 8, 8] of 0 to 255, and labels [n]. Every fifth image of each digit, shuffled once, is held out."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(pixels))
    seen: dict[int, int] = {}
    chosen = []
    for i in order:
        label = int(digits.target[i])
        seen[label] = seen.get(label, 0) + 1
        if (seen[label] % 5 == 0) == (split == "test"):
            chosen.append(int(i))
    return pixels[chosen], digits.target[chosen].astype(np.int64)


def fill(template: str, word: str) -> str:
    """The digit's name in its place: {} "eight", {a} "an eight"."""
    return template.format(word, a=f"{'an' if word == 'eight' else 'a'} {word}")


class Digits(DataSource):
    """An image and something said about it: a caption, or a question with the digit's name as its answer."""

    name = "digits"

    class Config(PartConfig):
        """`questions` is the share of examples that are question-answer pairs."""

        split: Split = "train"
        input: str = "image"
        captions: tuple[str, ...] = Field(("A picture of {a}.",), min_length=1)
        """Templates: {} is the digit's name, {a} the same with its article."""
        pairs: tuple[tuple[str, str], ...] = ()
        questions: float = Field(0.0, ge=0, le=1)

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

    def iterate(self, state: State | None = None) -> Iterator[tuple[Example, State]]:
        """One pass in an order of its own; the held-out split stands in a fixed order with fixed texts."""
        state = state or {"epoch": 0, "position": 0}
        epoch = state["epoch"]
        pixels, labels = images(self.config.split)
        order = list(range(len(labels)))
        if self.config.split == "train":
            random.Random(f"{self.seed} {epoch}").shuffle(order)
        for position in range(state["position"], len(order)):
            i = order[position]
            draw = random.Random(f"{self.seed} {epoch} {i}")
            last = position + 1 == len(order)
            after = {"epoch": epoch + 1, "position": 0} if last else {"epoch": epoch, "position": position + 1}
            yield self._example(i, pixels[i], WORDS[labels[i]], draw), after

    def _example(self, i: int, pixels: NDArray[np.uint8], word: str, draw: random.Random) -> Example:
        medium = Media(self.config.input, pixels)
        name = f"digits {self.config.split} {i}"
        if self.config.pairs and draw.random() < self.config.questions:
            question, answer = draw.choice(self.config.pairs)
            return Example([medium, Text(question), Text(fill(answer, word), target=True)], name)
        return Example([medium, Text(fill(draw.choice(self.config.captions), word), target=True)], name)


class DigitsTask(Task):
    """Names held-out digits, and asks what only the language model knows about the number it sees.

    Accuracy: the first number word (or odd/even) of the greedy answer equals the label.
    """

    name = "digits"
    primary = "caption_accuracy"
    max_tokens = 12
    stop = ("\n", "Q:")

    class Config(PartConfig):
        """`limit` takes the first images of the split alone; `knowledge` asks the questions of figure 6 too."""

        input: str = "image"
        prompt: str = CAPTION_PROMPT
        limit: int | None = Field(None, ge=1)
        knowledge: bool = True

    config: Config
    KNOWLEDGE: ClassVar[dict[str, str]] = {"parity": PARITY, "next": NEXT}

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)

    def examples(self, split: str, shots: int, seed: int) -> Iterator[Question]:
        """Caption prompts, then each knowledge question in one step and in two; shots are captioned images."""
        held = images("test" if split == "test" else "train")
        shown = images("train")
        draw = random.Random(f"{seed} {shots}")
        groups = ["caption"]
        if self.config.knowledge:
            groups += [f"{what}_{steps}" for what in self.KNOWLEDGE for steps in ("one_step", "two_step")]
        for group in groups:
            for i, (pixels, label) in enumerate(zip(*held, strict=True)):
                if self.config.limit is not None and i >= self.config.limit:
                    break
                segments: list[Any] = []
                for j in draw.sample(range(len(shown[1])), shots):
                    segments += [
                        Media(self.config.input, shown[0][j]),
                        fill(f"{self.config.prompt} {{a}}.\n", WORDS[shown[1][j]]),
                    ]
                segments.append(Media(self.config.input, pixels))
                what = group.split("_")[0]
                segments.append(self.KNOWLEDGE[what] if group.endswith("one_step") else self.config.prompt)
                yield Question(
                    id=f"{group}/{i}",
                    segments=segments,
                    answer=_answer(what, int(label)),
                    group=group,
                    extra={"image": i, "label": int(label)},
                )

    def follow_up(self, prediction: Prediction) -> Question | None:
        """After the caption of a two-step question: the question itself, behind what the model said."""
        question = prediction.question
        if not question.group.endswith("two_step") or "caption" in question.extra:
            return None
        what = question.group.split("_")[0]
        return Question(
            question.id,
            [*question.segments, f"{prediction.text} {self.KNOWLEDGE[what]}"],
            question.answer,
            question.group,
            {**question.extra, "caption": prediction.text},
        )

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """`<group>_accuracy` for every group."""
        hits: dict[str, list[bool]] = {}
        for prediction in predictions:
            hits.setdefault(prediction.question.group, []).append(correct(prediction))
        return {f"{group}_accuracy": sum(found) / len(found) for group, found in hits.items()}

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
            right = correct(prediction)
            ax.imshow(pixels[prediction.question.extra["image"]], cmap="gray_r")
            ax.set_title(
                f"{self.config.prompt}{prediction.text}\n"
                + ("right" if right else f"wrong: {prediction.question.answer}"),
                color="#1a7f37" if right else "#cf222e",
                fontsize=9,
            )
        figure.tight_layout(h_pad=2)
        path = folder / "samples.png"
        figure.savefig(path, dpi=80)
        plt.close(figure)
        return [path]


def _answer(what: str, label: int) -> str:
    if what == "parity":
        return "odd" if label % 2 else "even"
    return WORDS[label + 1] if what == "next" else WORDS[label]


def correct(prediction: Prediction) -> bool:
    """Is the first word of the answer that could be one the right one?"""
    known = {"odd", "even"} if prediction.question.answer in ("odd", "even") else set(WORDS)
    words = (word.strip(".,!?:;\"'").lower() for word in prediction.text.split())
    return next((word for word in words if word in known), "") == prediction.question.answer
