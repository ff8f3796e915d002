"""The digits: the fixed split, deterministic order, and what counts as right."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from magma_data.digits import NEXT, PARITY, WORDS, Digits, DigitsTask, correct, images
from PIL import Image

from magma import Media, Prediction, Question, Text


def test_a_fifth_is_held_out_of_every_digit() -> None:
    train, test = images("train"), images("test")
    assert len(train[1]) + len(test[1]) == 1797
    assert len(test[1]) == sum(count // 5 for count in np.bincount(np.concatenate([train[1], test[1]])))
    assert np.bincount(test[1]).min() >= 34
    seen = {image.tobytes() for image in train[0]}
    assert sum(image.tobytes() in seen for image in test[0]) == 0
    assert train[0].dtype == np.uint8
    assert train[0].max() == 255


def source(**fields: object) -> Digits:
    return Digits(Digits.Config(**fields), seed=3)  # type: ignore[arg-type]


def test_passes_are_shuffled_and_repeatable() -> None:
    def texts(state: object = None) -> list[str]:
        return [example.name for example, _ in itertools.islice(source().iterate(state), 50)]  # type: ignore[arg-type]

    assert texts() == texts()
    assert texts({"epoch": 1, "position": 0}) != texts()
    whole = list(source().iterate())
    assert whole[-1][1] == {"epoch": 1, "position": 0}
    assert len({example.name for example, _ in whole}) == len(whole) == len(images("train")[1])


def test_any_state_goes_on_behind_it() -> None:
    whole = list(itertools.islice(source().iterate(), 30))
    rest = list(itertools.islice(source().iterate(whole[9][1]), 20))
    assert [e.name for e, _ in rest] == [e.name for e, _ in whole[10:]]
    assert [e.segments[1:] for e, _ in rest] == [e.segments[1:] for e, _ in whole[10:]]


def test_captions_name_the_digit_and_questions_have_their_share() -> None:
    fields = {"captions": ("See {a}.", "It is {}."), "pairs": (("Which?", " {}"),), "questions": 0.25}
    examples = [example for example, _ in source(**fields).iterate()]
    labels = images("train")[1]
    asked = 0
    for example in examples:
        word = WORDS[labels[int(example.name.split()[-1])]]
        medium, *texts = example.segments
        assert isinstance(medium, Media)
        if texts[0] == Text("Which?"):
            asked += 1
            assert texts[1] == Text(f" {word}", target=True)
        else:
            article = "an" if word == "eight" else "a"
            assert texts in ([Text(f"See {article} {word}.", target=True)], [Text(f"It is {word}.", target=True)])
    assert 0.2 < asked / len(examples) < 0.3


def test_captions_must_name_the_digit() -> None:
    with pytest.raises(ValueError, match="captions with one"):
        source(captions=("A picture.",))


def task(**fields: object) -> DigitsTask:
    return DigitsTask(DigitsTask.Config(**fields), 0)  # type: ignore[arg-type]


def test_questions_and_their_second_step() -> None:
    questions = list(task(limit=3).examples("test", 0, 0))
    assert {q.group: q.segments[1] for q in questions} == {
        "caption": "A picture of",
        "parity_one_step": PARITY,
        "parity_two_step": "A picture of",
        "next_one_step": NEXT,
        "next_two_step": "A picture of",
    }
    two = next(q for q in questions if q.group == "parity_two_step")
    second = task().follow_up(Prediction(two, " a seven."))
    assert second is not None
    assert second.segments[-1] == f" a seven. {PARITY}"
    assert task().follow_up(Prediction(second, " odd")) is None
    assert task().follow_up(Prediction(questions[0], " a seven.")) is None


def test_shots_are_captioned_training_images() -> None:
    (question, *_) = task(limit=1, knowledge=False).examples("test", 2, 0)
    kinds = [type(segment).__name__ for segment in question.segments]
    assert kinds == ["Media", "str", "Media", "str", "Media", "str"]
    assert str(question.segments[1]).startswith("A picture of a")


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        (" a seven.", "seven", True),
        (" the number Seven", "seven", True),
        (" a six, seven", "seven", False),
        (" nothing", "seven", False),
        ("", "seven", False),
        (" odd.", "odd", True),
        (" seven odd", "odd", True),
        (" even", "odd", False),
    ],
)
def test_the_first_word_that_could_be_an_answer_counts(text: str, answer: str, right: bool) -> None:
    assert correct(Prediction(Question("x", [], answer), text)) == right


def test_scores_and_the_sample_sheet(tmp_path: Path) -> None:
    questions = [q for q in task(limit=30).examples("test", 0, 0) if q.group == "caption"]
    predictions = [Prediction(q, f" a {q.answer}." if i % 3 else " a cat") for i, q in enumerate(questions)]
    assert task().score(predictions) == {"caption_accuracy": 20 / 30}
    (path,) = task().artifacts(tmp_path, predictions)
    with Image.open(path) as sheet:
        assert sheet.size == (960, 800)
