"""The task on emoji: what is asked of which pictures, what follows the model's own caption, how answers are scored."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from magma_data.metrics.short_answers import same_first_word, split_words, starts_with_answer, word_f1
from magma_data.tasks.emoji import EmojiTask
from magma_data.tasks.emoji_questions import GROUPS, find_country
from PIL import Image
from task_rows import jsonl, png, questions, task, told

import magma
from magma import InputError, Prediction, Question, RecipeError

CATEGORY = "Q: What kind of thing is it? A: It is a kind of"


def thing(i: int, name: str, category: str | None) -> dict[str, Any]:
    return {"id": str(i), "name": name, "captions": [name], "category": category}


def flag(i: int, country: str, capital: str, continent: str) -> dict[str, Any]:
    facts = {"country": country, "capital": capital, "continent": continent}
    return {**thing(i, f"flag of {country}", "flag"), **facts}


STYLE = [
    thing(0, "dog", "animal"),
    thing(1, "red apple", "food"),
    thing(2, "grinning face", "face"),
    thing(3, "pirate flag", "flag"),
    thing(4, "sparkles", None),
    flag(5, "Kenya", "Nairobi", "Africa"),
    flag(6, "the Netherlands", "Amsterdam|The Hague", "Europe"),
]
TRAIN = [{**row, "id": f"{20 + i}"} for i, row in enumerate(STYLE)]
TRAIN += [thing(30, "bus", "vehicle"), thing(31, "cat", "animal"), flag(32, "Peru", "Lima", "South America")]


@pytest.fixture
def emoji(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "emoji", {"style": STYLE, "train": TRAIN, "thing": [thing(9, "otter", "animal")]})


def by_id(found: list[Question]) -> dict[str, Question]:
    return {question.id: question for question in found}


# Questions


def test_every_group_asks_about_its_pictures(emoji: Path) -> None:
    found = by_id(questions(EmojiTask, emoji))
    things, flags = range(5), (5, 6)
    expected = {f"naming/{i}" for i in things} | {f"flag_naming/{i}" for i in flags}
    expected |= {f"{group}/{i}" for group in ("category", "category_in_words") for i in (0, 1)}
    for fact in ("capital", "continent"):
        expected |= {f"{fact}_{how}/{i}" for how in ("one_step", "two_step", "from_caption", "in_words") for i in flags}
    assert set(found) == expected
    prompts = {
        "naming/4": [png(4), "A picture of"],
        "flag_naming/5": [png(5), "A picture of"],
        "category/1": [png(1), CATEGORY],
        "category_in_words/1": [f"A picture of red apple. {CATEGORY}"],
        "capital_one_step/5": [png(5), "The capital of this country is"],
        "capital_two_step/5": [png(5), "A picture of"],
        "capital_in_words/6": ["A picture of flag of the Netherlands. The capital of the Netherlands is"],
        "continent_one_step/6": [png(6), "This country is on the continent of"],
        "continent_in_words/6": ["A picture of flag of the Netherlands. The Netherlands is on the continent of"],
    }
    assert {key: told(found[key].segments) for key in prompts} == prompts
    answers = {key: (found[key].answer, tuple(found[key].answers)) for key in ("naming/1", "capital_one_step/6")}
    assert answers == {
        "naming/1": ("red apple", ("red apple",)),
        "capital_one_step/6": ("Amsterdam", ("Amsterdam", "The Hague")),
    }
    assert "fruit" in found["category/1"].answers
    assert all(question.group == key.split("/")[0] for key, question in found.items())


def test_keys_choose_split_groups_and_categories(emoji: Path) -> None:
    assert [q.id for q in questions(EmojiTask, emoji, split="thing", groups=("naming",))] == ["naming/9"]
    found = questions(EmojiTask, emoji, groups=("category",), categories=("face", "food"), prompt="unused")
    assert sorted(q.id for q in found) == ["category/1", "category/2"]
    some = questions(EmojiTask, emoji, limit=2)
    assert Counter(q.group for q in some) == dict.fromkeys(GROUPS, 2)
    every = [q.id for q in questions(EmojiTask, emoji, groups=("naming",))]
    assert [q.id for q in some if q.group == "naming"] == every[:2]
    assert every != sorted(every)  # a bit of everything, also of the first ones
    assert set(EmojiTask.Config(path=str(emoji)).groups) == set(GROUPS)
    with pytest.raises(RecipeError, match=r"groups.*given .*nothing.*"):
        magma.assemble({"name": "x", "lm": {"use": "gptj"}, "tasks": [{"use": "emoji", "groups": ["nothing"]}]})


def test_shots_are_the_same_question_about_other_things(emoji: Path) -> None:
    prompts = {q.id: told(q.segments) for q in questions(EmojiTask, emoji, 2, seed=1)}
    found = by_id(questions(EmojiTask, emoji, 2, seed=1))
    for key, question in found.items():
        group, _, i = key.partition("/")
        names = {row["name"] for row in TRAIN if f"{group}/{row['id']}" in question.shots}
        assert len(names) == 2
        assert next(row["name"] for row in STYLE if row["id"] == i) not in names
        assert question.shot_lengths == [1, 1] if group.endswith("words") else [2, 2]
    shots = found["category/0"].shots
    assert set(shots) <= {f"category/{i}" for i in (21, 30)} | {"category/31"}
    answers = {"21": "food", "30": "vehicle", "31": "animal"}
    expected = [[png(int(i)), f"{CATEGORY} {answers[i]}\n"] for i in (shot.split("/")[1] for shot in shots)]
    assert prompts["category/0"] == [*expected[0], *expected[1], png(0), CATEGORY]
    # in two steps, examples show captions; in words, they have no picture
    names = {"25": "flag of Kenya", "32": "flag of Peru"}
    shown = [names[shot.split("/")[1]] for shot in found["capital_two_step/6"].shots]
    assert prompts["capital_two_step/6"][1::2] == [*(f"A picture of {name}\n" for name in shown), "A picture of"]
    words = prompts["continent_in_words/6"]
    assert {"A picture of flag of Peru. Peru is on the continent of South America\n"} < set(words)
    with pytest.raises(InputError, match="3 shots: 2 few-shot examples are available for question"):
        questions(EmojiTask, emoji, 3, groups=("capital_in_words",))


@pytest.mark.parametrize(
    ("caption", "country", "second"),
    [
        ("flag of Kenya", "Kenya", " flag of Kenya. The capital of Kenya is"),
        ("the flag of the Gambia.", "the Gambia", " the flag of the Gambia. The capital of the Gambia is"),
        ("a dog", None, " a dog. The capital of this country is"),
        ("", None, ". The capital of this country is"),
    ],
)
def test_the_second_step_asks_about_the_country_of_the_caption(
    emoji: Path, caption: str, country: str | None, second: str
) -> None:
    asking = task(EmojiTask, emoji)
    question = by_id(questions(EmojiTask, emoji))["capital_two_step/5"]
    follow_up = asking.follow_up(Prediction(question, caption))
    assert follow_up is not None
    assert told(follow_up.segments[:-1]) == [png(5), "A picture of"]
    assert follow_up.segments[-1] == second
    assert (follow_up.extra["caption"], follow_up.extra["country"]) == (caption, country)
    assert follow_up.answer == "Nairobi"
    assert asking.follow_up(Prediction(follow_up, "Nairobi")) is None
    without = asking.follow_up(Prediction(by_id(questions(EmojiTask, emoji))["capital_from_caption/5"], caption))
    assert without is not None
    assert without.segments == follow_up.segments[1:]
    assert find_country(caption) == country


def test_a_caption_may_follow_the_picture_directly(emoji: Path) -> None:
    """As in training without a prompt; there is then no space before it."""
    found = by_id(questions(EmojiTask, emoji, 1, prompt=""))
    for key in ("naming/0", "capital_two_step/5"):
        _, shot, picture, *prompt = told(found[key].segments)
        assert shot in [f"{row['name']}\n" for row in TRAIN]
        assert picture == png(int(key[-1]))
        assert not any(prompt)
    assert told(found["capital_in_words/5"].segments)[-1] == "flag of Kenya. The capital of Kenya is"
    follow_up = task(EmojiTask, emoji, prompt="").follow_up(Prediction(found["capital_two_step/5"], "flag of Kenya"))
    assert follow_up is not None
    assert follow_up.segments[-1] == "flag of Kenya. The capital of Kenya is"
    assert found["category/0"].segments[-1].text == CATEGORY


def test_other_groups_have_one_step(emoji: Path) -> None:
    asking = task(EmojiTask, emoji)
    found = questions(EmojiTask, emoji)
    second = {q.group for q in found if asking.follow_up(Prediction(q, "flag of Peru")) is not None}
    steps = ("two_step", "from_caption")
    assert second == {f"{fact}_{how}" for fact in ("capital", "continent") for how in steps}


# Scores


def test_words_are_compared_without_case_marks_and_articles() -> None:
    assert split_words("The Côte-d'Or, and São Tomé's 2 men_") == ["cote", "dor", "and", "sao", "tomes", "2", "men"]
    assert word_f1("a big red apple!", ["red apple"]) == pytest.approx(0.8)
    assert word_f1("dog", ["cat", "the DOG."]) == 1
    assert word_f1("apple apple", ["apple pie"]) == 0.5
    assert word_f1("", ["dog"]) == word_f1("dog", ["cat"]) == 0
    assert same_first_word("The dog runs", ["dog face"])
    assert not same_first_word("a face of a dog", ["dog face"])
    assert not same_first_word("", ["dog"])


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Nairobi, the largest city of Kenya.", True),
        ("the city of NAIROBI", True),
        ("a very big city, Nairobi", False),  # the fifth word
        ("Nairobian", False),
        ("", False),
    ],
)
def test_an_answer_is_among_the_first_words(text: str, right: bool) -> None:
    assert starts_with_answer(text, ["Nairobi"]) is right


def test_several_words_and_accents_of_an_answer() -> None:
    assert starts_with_answer("South America, and", ["South America"])
    assert not starts_with_answer("South Africa", ["South America"])
    assert starts_with_answer("Bogota", ["Bogotá"])
    assert starts_with_answer("Porto Novo", ["Porto-Novo", "Cotonou"])


def test_scores_are_means_by_group(emoji: Path) -> None:
    asking, found = task(EmojiTask, emoji), by_id(questions(EmojiTask, emoji))
    given = {
        "naming/0": "a dog",
        "naming/1": "apple",
        "flag_naming/5": "the flag of Kenya.",
        "flag_naming/6": "flag of Netherlands Antilles",
        "category/0": "small mammal",
        "category/1": "animal",
        "capital_two_step/6": "The Hague",
        "continent_in_words/5": "Africa. It is",
    }
    predictions = [Prediction(found[key], text) for key, text in given.items()]
    scores = asking.score(predictions)
    assert scores == {
        "naming_word_f1": pytest.approx((1 + 2 / 3) / 2),
        "naming_exact": 0.5,
        "naming_first_word": 0.5,
        "flag_naming_accuracy": 0.5,
        "category_accuracy": 0.5,
        "capital_two_step_accuracy": 1,
        "continent_in_words_accuracy": 1,
    }
    assert set(asking.measures(predictions)) == set(scores)
    assert asking.score_one(predictions[0]) == ("dog", 1)
    unread = Prediction(found["naming/2"], "", problem="it cannot be read")
    assert set(asking.item_scores(unread).values()) == {0}


# With a model


RECIPE: dict[str, Any] = {
    "name": "emoji",
    "lm": {"use": "gptj", "weights": "bundled:tiny"},
    "inputs": {
        "image": {
            "encoder": {"use": "clip", "layers": [1, 1, 1, 1], "width": 8, "image_size": 64},
            "prefix": {"use": "linear"},
        }
    },
}


def test_a_recipe_asks_both_splits_and_words_ignore_the_controls(emoji: Path, tmp_path: Path) -> None:
    groups = ["naming", "category", "category_in_words", "capital_two_step", "capital_in_words"]
    tasks = [
        {"use": "emoji", "path": str(emoji), "groups": groups, "shots": [0, 1]},
        {"use": "emoji", "path": str(emoji), "split": "thing", "groups": ["category"]},
    ]
    data = {"train": [{"use": "captions", "path": str(emoji), "split": "train", "columns": {"caption": "name"}}]}
    train = {"steps": 1, "batch_size": 2, "lr": 1e-3, "precision": "fp32"}
    report = magma.run({**RECIPE, "data": data, "tasks": tasks, "train": train}, tmp_path / "run")
    assert list(report["tasks"]) == ["0.emoji", "0.emoji@1", "1.emoji"]
    runs = report["tasks"]["0.emoji"]
    assert runs["model"].keys() == runs["blind"].keys() == report["intervals"]["0.emoji"]["shuffled"].keys()
    assert "category_accuracy" in report["tasks"]["1.emoji"]["model"]
    for name, value in runs["model"].items():
        low, high = report["intervals"]["0.emoji"]["model"][name]
        assert 0 <= low <= value <= high <= 1
        if name.endswith("in_words_accuracy"):
            assert runs["shuffled"][name] == runs["blind"][name] == value
    folder = tmp_path / "run/eval/emoji"
    rows = {name: (folder / f"0_shot{name}.jsonl").read_text().splitlines() for name in ("", ".blind")}
    own, blind = ({row["id"]: row for row in map(json.loads, lines)} for lines in rows.values())
    assert own["capital_in_words/5"] == blind["capital_in_words/5"]
    first, _, second = own["capital_two_step/5"]["prompt"].partition(own["capital_two_step/5"]["extra"]["caption"])
    assert first.rstrip() == "[image]A picture of"
    assert second.rstrip(" .").endswith("is")
    assert blind["capital_two_step/5"]["prompt"].startswith("A picture of")
    with Image.open(tmp_path / "run/emoji_style.png") as sheet:
        assert sheet.size == (960, 800)
        assert len(np.unique(np.asarray(sheet.convert("L")))) > 50
    assert not (tmp_path / "run/emoji_thing.png").exists()  # no names were asked
    assert json.loads((tmp_path / "run/eval/emoji.1/scores.json").read_text())["primary"] == "category_accuracy"


def test_a_category_that_no_picture_has_is_refused(emoji: Path) -> None:
    assert questions(EmojiTask, emoji, groups=["category"], categories=["food"])
    with pytest.raises(
        InputError, match=r"categories: given anmal; allowed: categories of split style: animal, .*food"
    ):
        questions(EmojiTask, emoji, groups=["category"], categories=["anmal", "food"])
    assert questions(EmojiTask, emoji, groups=["naming"], categories=["anmal"])
