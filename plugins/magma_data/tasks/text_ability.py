"""What a language model can do with text only: whether training on other modalities changes it."""

from __future__ import annotations

import math
import platform
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field

from magma import InputError, PartConfig, Prediction, Question, Task

from ..convert.emoji.countries import read_countries
from ..metrics.short_answers import FIRST_WORDS, split_words, starts_with_answer
from .answers import reference_answers
from .emoji_questions import CAPITAL, CONTINENT, fill_country, split_answers

_TOPICS = (
    *("assignment", "booleans", "calls", "class", "comparisons", "compound", "debugger", "dict", "exceptions", "for"),
    *("function", "global", "import", "lists", "naming", "objects", "raise", "sequence-types", "strings", "try"),
    *("types", "while", "yield"),
)
"""Topics of Python's help, of each of which the first paragraphs are read."""
_PARAGRAPHS_PER_TOPIC = 2
_MIN_WORDS, _MAX_WORDS, _MIN_PLAIN = 40, 150, 0.96
"""Length of a paragraph, and the least share of letters, spaces, commas and full stops: prose, not code."""
_PROMPT_WORDS = 4
"""Words at the start of a paragraph that are given."""
_TEXT = "text"
_QUESTIONS = {"capital": CAPITAL, "continent": CONTINENT}


class TextAbilityTask(Task):
    """Prompts without media: knowledge of countries, and the perplexity of English text from Python's documentation."""

    name = "text_ability"
    primary_metric = "knowledge_accuracy"
    max_tokens = 12
    stop = ("\n",)

    class Config(PartConfig):
        """Keys of the task."""

        limit: int | None = Field(None, ge=1)
        """Use only the first countries, and the first paragraphs of text."""

    config: Config

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)

    def questions(self, split: str, shots: int, seed: int) -> Iterator[Question]:
        """The capital and the continent of each country, and paragraphs whose likelihood is measured.

        Few-shot examples are the same questions about other countries; paragraphs have none.

        Raises:
            InputError: For a split other than "test", or more few-shot examples than other countries.
        """
        if split != "test":
            raise InputError(f"split: given {split!r}; allowed: test")
        if shots > (most := len(read_countries()) - 1):
            raise InputError(f"shots: given {shots}; allowed: 0 to {most}, the number of other countries")
        yield from self._ask_countries(shots, seed)
        for number, paragraph in enumerate(read_paragraphs()[: self.config.limit]):
            words = paragraph.split(" ")
            prompt, rest = (" ".join(some) for some in (words[:_PROMPT_WORDS], words[_PROMPT_WORDS:]))
            yield Question(f"{_TEXT}/{number}", [prompt], "", _TEXT, continuation=f" {rest}")

    def _ask_countries(self, shots: int, seed: int) -> Iterator[Question]:
        countries = list(read_countries().values())
        for country in sorted(countries, key=lambda one: one.code)[: self.config.limit]:
            for group, question in _QUESTIONS.items():
                draw = random.Random(f"{seed} {country.code} {group}")
                before = draw.sample([one for one in countries if one != country], shots)
                examples = [
                    f"{fill_country(question, one.country)} {split_answers(getattr(one, group))[0]}.\n"
                    for one in before
                ]
                answers = split_answers(getattr(country, group))
                yield Question(
                    id=f"{group}/{country.code}",
                    segments=[*examples, fill_country(question, country.country)],
                    answer=answers[0],
                    group=group,
                    answers=answers,
                    shots=[f"{group}/{one.code}" for one in before],
                    shot_lengths=[1] * shots,
                )

    def score_one(self, prediction: Prediction) -> tuple[str, float]:
        """The words that are compared, and 1 or 0; of a text the negative log-likelihood per token in nats."""
        if prediction.question.group == _TEXT:
            return "", _mean_loss([prediction])
        found = starts_with_answer(prediction.text, reference_answers(prediction.question))
        return " ".join(split_words(prediction.text)), float(found)

    def item_scores(self, prediction: Prediction) -> dict[str, float]:
        """`knowledge_accuracy`, `capital_accuracy` and `continent_accuracy`."""
        if prediction.question.group == _TEXT:
            return {}
        names = ("knowledge_accuracy", f"{prediction.question.group}_accuracy")
        return dict.fromkeys(names, self.score_one(prediction)[1])

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """The accuracies, and `perplexity`: e to the power of the mean loss of all tokens of the texts."""
        texts = [one for one in predictions if one.num_tokens]
        return {**super().score(predictions), **({"perplexity": math.exp(_mean_loss(texts))} if texts else {})}

    def measures(self, predictions: Sequence[Prediction]) -> dict[str, str]:
        """How each score is measured; the text depends on the version of Python."""
        version = ".".join(platform.python_version_tuple()[:2])
        text = {"perplexity": f"per token, help of Python {version}"}
        return {name: text.get(name, FIRST_WORDS) for name in self.score(predictions)}


def _mean_loss(predictions: Sequence[Prediction]) -> float:
    """The negative log-likelihood per token, in nats; 0 without tokens."""
    tokens = sum(one.num_tokens for one in predictions)
    return -sum(one.log_likelihood or 0.0 for one in predictions) / tokens if tokens else 0.0


def read_paragraphs() -> list[str]:
    """Paragraphs of prose from the topics of Python's `help`, which every installation has."""
    from pydoc_data.topics import topics

    known: dict[str, Any] = topics
    found = [one for topic in _TOPICS for one in _prose(known.get(topic, ""))[:_PARAGRAPHS_PER_TOPIC]]
    return list(dict.fromkeys(found))


def _prose(text: str) -> list[str]:
    """The paragraphs of a text that are prose, each on one line."""
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part[:1].isupper())
    return [one for one in paragraphs if one.endswith(".") and _is_prose(one)]


def _is_prose(paragraph: str) -> bool:
    plain = sum(character.isalpha() or character in " ,." for character in paragraph)
    return _MIN_WORDS <= len(paragraph.split(" ")) <= _MAX_WORDS and plain >= _MIN_PLAIN * len(paragraph)
