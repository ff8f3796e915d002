"""The digits: the fixed split, deterministic order, and what counts as right."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from magma_data.digits.written import LARGER, NAME, NEXT, PARITY, WORDS, Digits, DigitsTask, first_answer_word, images
from PIL import Image

from magma import InputError, Media, Prediction, Question, Text


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
    fields = {"captions": ("See {a}.", "It is {}."), "question_pairs": (("Which?", " {}"),), "question_fraction": 0.25}
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
    questions = list(task(limit=3).questions("test", 0, 0))
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


def test_only_real_splits_are_asked() -> None:
    (first, *_) = task(groups=("caption",)).questions("train", 0, 0)
    assert first.extra["label"] == images("train")[1][0]
    with pytest.raises(InputError, match="^split: given 'val'; allowed: train, test$"):
        next(task().questions("val", 0, 0))


def test_shots_are_training_images_of_which_the_same_was_asked() -> None:
    groups = ("caption", "name", "parity_one_step", "next_one_step", "larger")
    pixels, labels = images("train")
    for group, question in zip(groups, task(limit=1, groups=groups).questions("test", 2, 0), strict=True):
        assert question.group == group
        kinds = [type(segment).__name__ for segment in question.segments]
        assert kinds == [*["Media"] * (1 + (group == "larger")), "str"] * 3
        assert len(question.shots) == kinds.count("Media") - 1 - (group == "larger")
        assert question.shot_lengths == [len(kinds) // 3] * 2
        known = [int(labels[int(shot.removeprefix("train/"))]) for shot in question.shots]
        if group == "larger":
            assert question.segments[2] == f"{LARGER} {WORDS[max(known[:2])]}\n"
            assert known[0] != known[1]
            continue
        first = question.segments[0]
        assert isinstance(first, Media)
        assert np.array_equal(first.value, pixels[int(question.shots[0].removeprefix("train/"))])
        word = WORDS[known[0]]
        article = "an" if word == "eight" else "a"
        assert (
            question.segments[1]
            == {
                "caption": f"A picture of {article} {word}.\n",
                "name": f"{NAME} {word}\n",
                "parity_one_step": f"{PARITY} {'odd' if known[0] % 2 else 'even'}\n",
                "next_one_step": f"{NEXT} {WORDS[known[0] + 1]}\n",
            }[group]
        )


def test_questions_about_one_image_share_it() -> None:
    """Equal objects, so that it is read once."""
    questions = list(task(limit=3).questions("test", 0, 0))
    first = [q.segments[0] for q in questions if q.id.endswith("/0")]
    assert len(first) == 5
    assert all(one.value is first[0].value for one in first)  # type: ignore[union-attr]


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
    assert (first_answer_word(Prediction(Question("x", [], answer), text)) == answer) == right


def test_scores_and_the_sample_sheet(tmp_path: Path) -> None:
    questions = [q for q in task(limit=30).questions("test", 0, 0) if q.group == "caption"]
    predictions = [Prediction(q, f" a {q.answer}." if i % 3 else " a cat") for i, q in enumerate(questions)]
    assert task().score(predictions) == {"caption_accuracy": 20 / 30}
    (path,) = task().artifacts(tmp_path, predictions)
    with Image.open(path) as sheet:
        assert sheet.size == (960, 800)


def test_the_stored_digits_are_those_of_scikit_learn() -> None:
    from magma_data.digits.written import _load_sklearn_digits
    from sklearn.datasets import load_digits

    digits = load_digits()
    assert np.array_equal(_load_sklearn_digits(), np.column_stack((digits.data, digits.target)))
