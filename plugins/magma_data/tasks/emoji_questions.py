"""What is asked about a picture of `magma data convert emoji`: groups of questions, their words and their answers.

SmolLM2-135M continues text rather than following instructions, so a question leads into its answer. Of the bare model,
in words: "Q: What kind of thing is it? A: It is a kind of" is answered better with more examples, while questions that
list the categories are answered with the first or the last of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from ..formats.row import Row

GroupName = Literal[
    "naming",
    "flag_naming",
    "category",
    "category_in_words",
    "capital_one_step",
    "capital_two_step",
    "capital_from_caption",
    "capital_in_words",
    "continent_one_step",
    "continent_two_step",
    "continent_from_caption",
    "continent_in_words",
]
GROUPS: tuple[GroupName, ...] = get_args(GroupName)
CATEGORIES = (
    *("animal", "food", "drink", "plant", "clothing", "vehicle", "building", "tool", "musical instrument"),
    *("sport", "weather"),
)
"""Categories whose word is not in most of the names, as it is in "grinning face" or "heart with arrow"."""
_OTHER_WORDS = {
    "animal": ("mammal", "bird", "fish", "insect", "reptile", "amphibian"),
    "food": ("fruit", "vegetable", "dish", "meal", "dessert"),
    "drink": ("beverage",),
    "plant": ("flower", "tree"),
    "clothing": ("garment", "footwear", "clothes"),
    "vehicle": ("transport", "transportation"),
    "building": ("structure",),
    "musical instrument": ("instrument",),
}
"""Other accepted words for a category."""
CATEGORY = "Q: What kind of thing is it? A: It is a kind of"
CAPITAL = "The capital of {country} is"
CONTINENT = "{country} is on the continent of"
UNNAMED = "this country"
"""The country in a question, if the model named none, or is asked in one step."""
_FLAG = re.compile(r"\bflag of ([^.,;:!?()\n]+)", re.IGNORECASE)


@dataclass(frozen=True)
class Group:
    """A group of questions."""

    name: GroupName
    subject: Literal["name", "category", "country"]
    """What is asked: the name of a picture, its category, or a fact about a country."""
    question: str
    """After the picture, the caption or the words; {country} is the country. "": only the caption is asked."""
    answers: Callable[[Row], list[str]]
    """The accepted answers, the usual one first. Raises `InputError`."""
    context: Literal["picture", "own caption", "only own caption", "words"] = "picture"
    """What comes before the question: the picture, the picture with the caption that the model wrote, this caption
    without the picture, or a right caption without the picture."""

    @property
    def starts_with_caption(self) -> bool:
        """Whether the model first writes a caption."""
        return self.context in ("own caption", "only own caption")

    def ask(self, country: str = UNNAMED) -> str:
        """The question about a country."""
        return fill_country(self.question, country)

    def asks_about(self, row: Row, categories: tuple[str, ...]) -> bool:
        """Whether there is such a question about a row."""
        is_flag = row.value("country") is not None
        if self.subject == "country":
            return is_flag
        return not is_flag and (self.subject == "name" or row.value("category") in categories)


def fill_country(question: str, country: str) -> str:
    """A question about a country, with a capital letter."""
    text = question.format(country=country)
    return text[:1].upper() + text[1:]


def split_answers(field: str) -> list[str]:
    """The accepted answers in a field, which are separated by `|`."""
    return field.split("|")


def find_country(caption: str) -> str | None:
    """The country that a caption names: what follows "flag of"; None if it names none."""
    found = _FLAG.search(caption)
    return found.group(1).strip() or None if found else None


def _category(row: Row) -> list[str]:
    category = row.text("category")
    return [category, *_OTHER_WORDS.get(category, ())]


def _accepted(field: str) -> Callable[[Row], list[str]]:
    return lambda row: split_answers(row.text(field))


_capital, _continent = _accepted("capital"), _accepted("continent")
BY_NAME: dict[GroupName, Group] = {
    group.name: group
    for group in (
        Group("naming", "name", "", lambda row: [row.text("name")]),
        Group("flag_naming", "country", "", lambda row: [row.text("country")]),
        Group("category", "category", CATEGORY, _category),
        Group("category_in_words", "category", CATEGORY, _category, "words"),
        Group("capital_one_step", "country", CAPITAL, _capital),
        Group("capital_two_step", "country", CAPITAL, _capital, "own caption"),
        Group("capital_from_caption", "country", CAPITAL, _capital, "only own caption"),
        Group("capital_in_words", "country", CAPITAL, _capital, "words"),
        Group("continent_one_step", "country", CONTINENT, _continent),
        Group("continent_two_step", "country", CONTINENT, _continent, "own caption"),
        Group("continent_from_caption", "country", CONTINENT, _continent, "only own caption"),
        Group("continent_in_words", "country", CONTINENT, _continent, "words"),
    )
}
"""The groups by name."""
