"""VQA accuracy: the normalisation of answers and the score of VQA v2's official evaluation.

Both reproduce the official code exactly, including its errors, so that scores can be compared with published ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

MIN_ANSWERS = 4
"""Minimum number of answers for an accuracy of 100: three of the other answers have to agree with the prediction."""
_PUNCTUATION = tuple(';/[]"{}()=+\\_-><@`,?!')
_PERIOD = re.compile(r"\.(?!\d)")
"""A period without a digit after it. The official pattern was meant to check the character before it, too."""
_MAX_PERIODS = 32
"""Maximum number of periods that are removed. The official code passes a flag with this value as `count`."""
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
""".split()  # noqa: SIM905 - a list would be much longer
"""Words whose missing apostrophes are restored. The official table also has words with a capital I, which never match
because it looks words up in lower case."""
CONTRACTIONS = (
    {"somebody'd": "somebodyd"}
    | {  # the official table has this one reversed
        word[:i] + word[i + 1 :]: word for word in _APOSTROPHES for i, letter in enumerate(word) if letter == "'"
    }
)


def strip_answer(text: str) -> str:
    """Replace line breaks and tabs by spaces, and strip the answer. This is applied to every answer."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(2**16)  # few different words make up half of all answers
def normalize_answer(text: str) -> str:
    """Lower case, no punctuation, no articles, digits for number words, restored apostrophes."""
    words = (_NUMBERS.get(word, word) for word in _remove_punctuation(strip_answer(text)).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _remove_punctuation(text: str) -> str:
    """Remove a mark if it is next to a space anywhere in the text, or if the text has "1,000"; else make it a space."""
    has_comma_in_number = _COMMA.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        remove = has_comma_in_number or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if remove else " ")
    return _PERIOD.sub("", cleaned, count=_MAX_PERIODS)


def choose_normalizer(answers: Sequence[str]) -> Callable[[str], str]:
    """The normalisation of these answers and of a prediction, before they are compared.

    If all answers are the same, the official code does not normalise.
    """
    return normalize_answer if len(set(map(strip_answer, answers))) > 1 else strip_answer


def normalize_exact(text: str) -> str:
    """The normalised text; if that is empty ("A", as in multiple choice), the text in lower case."""
    return normalize_answer(text) or strip_answer(text).lower()


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """100 if the prediction is one of the answers, both normalised, else 0. An empty prediction is wrong."""
    return 100.0 * (normalize_exact(prediction) in {normalize_exact(answer) for answer in answers} - {""})


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy in percent: min(1, matches / 3) over all subsets that leave out one answer, averaged."""
    normalize = choose_normalizer(answers)
    predicted = normalize(prediction)
    matches = [normalize(answer) == predicted for answer in answers]
    return 100 * sum(min(1.0, (sum(matches) - one) / 3) for one in matches) / len(matches)
