"""How VQA v2's official evaluation compares answers: its normalisation, and its accuracy over ten people's answers.

Both are kept to the last digit, oddities included: what they say is what published numbers mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

MIN_ANSWERS = 4
"""From this many answers on the accuracy can reach 100: each answer is compared with the others, three of which have
to agree with a prediction."""
_PUNCTUATION = tuple(';/[]"{}()=+\\_-><@`,?!')
_PERIOD = re.compile(r"\.(?!\d)")
"""A period that no digit follows. The official pattern means to look behind it too, and does not."""
_MAX_PERIODS = 32
"""So many of them are taken out: the official code passes a flag of this value where a count belongs."""
_COMMA = re.compile(r"\d,\d")
_ARTICLES = {"a", "an", "the"}
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(i) for i, word in enumerate(_NUMBER_WORDS)}
_APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905 - a list would fill a page
"""Words that are put right where one of their apostrophes is missing. Those that the official table writes with a
capital I are not here: it looks words up in lower case."""
CONTRACTIONS = (
    {"somebody'd": "somebodyd"}
    | {  # the one that the official table has the wrong way round
        word[:i] + word[i + 1 :]: word for word in _APOSTROPHES for i, letter in enumerate(word) if letter == "'"
    }
)


def strip_answer(text: str) -> str:
    """What is done to every answer: line breaks and tabs are spaces, and none stands around it."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(2**16)  # half of all answers are a few words
def normalize_answer(text: str) -> str:
    """In lower case, without punctuation and articles, numbers as digits, apostrophes where they belong."""
    words = (_NUMBERS.get(word, word) for word in _remove_punctuation(strip_answer(text)).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _remove_punctuation(text: str) -> str:
    """A mark goes where it touches a space anywhere in the text, and all go from one with 1,000; else it is a space."""
    joins = _COMMA.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        goes = joins or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if goes else " ")
    return _PERIOD.sub("", cleaned, count=_MAX_PERIODS)


def choose_normalizer(answers: Sequence[str]) -> Callable[[str], str]:
    """What is done to these answers, and to a prediction, before they are compared.

    Where all people answered the same, nothing is normalised: a prediction is right as it stands, or wrong.
    """
    return normalize_answer if len(set(map(strip_answer, answers))) > 1 else strip_answer


def normalize_exact(text: str) -> str:
    """The normalised form; of a text of which it leaves nothing ("A", as in multiple choice) the text in lower case."""
    return normalize_answer(text) or strip_answer(text).lower()


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Percent: 100 where it is one of the answers, both normalised; an empty answer is none."""
    return 100.0 * (normalize_exact(prediction) in {normalize_exact(answer) for answer in answers} - {""})


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Percent: for each person, a third for each of the others who said the same, three at most; then the mean."""
    normalize = choose_normalizer(answers)
    predicted = normalize(prediction)
    agreed = [normalize(answer) == predicted for answer in answers]
    return 100 * sum(min(1.0, (sum(agreed) - one) / 3) for one in agreed) / len(agreed)
